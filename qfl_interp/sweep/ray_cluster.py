"""A Ray cluster to train on: found or started, room for the runs, the same code on its machines."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import qfl_interp
from qfl_interp.digests import digest
from qfl_interp.errors import QflError

_REACH_SECONDS = 5.0
# What a gRPC client says first, and the type of the frame the server answers with (RFC 9113, sections 3.4 and 6.5).
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS = 4
_PROBE_SECONDS = 120.0
# Results are a few rows a job: this is about the least that Ray takes.
_OBJECT_STORE_BYTES = 100 << 20


def import_ray() -> ModuleType:
    """Ray, which only sweeps on it need.

    Raises:
        QflError: It is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise QflError(
            f"a sweep on Ray needs the package ray: {error}. Run: pip install 'qfl-interp[ray]', or leave Ray out."
        ) from error
    return ray


def connect(ray: ModuleType, address: str, stack: contextlib.ExitStack, n_cpus: int) -> bool:
    """Connect to the cluster at `address`, or start one; whether one was started.

    `stack` gets what is to be undone at the end, but for the connection. A Ray that is started has `n_cpus`.

    Raises:
        QflError: `address` is none, nothing answers there, it cannot be used, or this program is connected elsewhere.
    """
    if ray.is_initialized():
        if address not in ("auto", "local", head_address(ray)):
            raise QflError(
                f"this program is connected to Ray at {head_address(ray)} already, but {address} was asked for. "
                "Call ray.shutdown() first, or give the address 'auto'."
            )
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    if named not in ("auto", "local"):
        _require_reachable(named)
    with _elsewhere(stack):
        if named != "local":
            try:
                ray.init(address=named, log_to_driver=False, logging_level="ERROR")
                return False
            except ConnectionError as error:
                if named != "auto":
                    raise QflError(f"Ray at {named} cannot be used: {first_line(error)}. Is a head there?") from error
            except (RuntimeError, ValueError) as error:
                raise QflError(
                    f"Ray at {named} cannot be used: {first_line(error)}. `ray status` says more."
                ) from error
        ray.init(
            address="local", num_cpus=n_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=_OBJECT_STORE_BYTES,
        )  # fmt: skip
    return True


@contextlib.contextmanager
def _elsewhere(stack: contextlib.ExitStack) -> Iterator[None]:
    """Work from an empty folder: workers look for modules where Ray was started, and a user's files may lie here."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qfl-ray-", ignore_cleanup_errors=True))
    with contextlib.chdir(folder):
        yield


def _require_reachable(address: str) -> None:
    """Raise at once where nothing answers: Ray itself would try for a long time."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise QflError(f"a Ray address is auto, local, host:port or ray://host:port, got {address!r}.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS) as connection:
            if not os.environ.get("RAY_USE_TLS"):
                connection.sendall(_HTTP2_PREFACE)
                answer = connection.recv(9)
                if len(answer) < 4 or answer[3] != _HTTP2_SETTINGS:
                    raise OSError("what listens there is no Ray")
    except (OSError, OverflowError) as error:
        raise QflError(
            f"no Ray answers at {address}: {error}. Start a head there (ray start --head --port={port}), check address "
            "and firewall, or use 'local' for this machine alone; nothing was changed."
        ) from error


def head_address(ray: ModuleType) -> str:
    """The head's host:port."""
    return str(ray.get_runtime_context().gcs_address)


def live_nodes(ray: ModuleType) -> list[dict[str, Any]]:
    """The machines of the cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def room(nodes: Sequence[Mapping[str, Any]], cpus: float, gpus: float) -> dict[str, int]:
    """How many runs fit on each machine at a time, by its id; machines with room for none are not in it.

    Raises:
        QflError: There is room for none: Ray would let it wait without end.
    """
    found = {node["NodeID"]: _fitting(node["Resources"], cpus, gpus) for node in nodes}
    if not any(found.values()):
        raise QflError(
            f"no machine of the Ray cluster has room for one run: it asks for {cpus:g} CPUs and {gpus:g} GPUs, and "
            f"there are {totals(nodes)} in all. Ask for less (cpus_per_run, gpus_per_run) or add machines."
        )
    return {name: n for name, n in found.items() if n}


def _fitting(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many runs fit on a machine at a time; a fraction of a GPU is always of one GPU."""
    limits = []
    if cpus:
        limits.append(math.floor(resources.get("CPU", 0) / cpus + 1e-9))
    if gpus:
        there = resources.get("GPU", 0)
        limits.append(math.floor(there / gpus) if gpus >= 1 else math.floor(there) * math.floor(1 / gpus + 1e-9))
    return min(limits)


def totals(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Machines, CPUs and GPUs in words."""
    cpus, gpus = (sum(node["Resources"].get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    parts = [f"{len(nodes)} machine{'s' if len(nodes) != 1 else ''}", f"{cpus:g} CPUs"]
    return ", ".join([*parts, f"{gpus:g} GPUs"] if gpus else parts)


def code_fingerprint() -> str:
    """Versions and a hash of this package's source, equal where runs come out the same."""
    assert qfl_interp.__file__ is not None
    root = Path(qfl_interp.__file__).parent
    # `glob` goes into the links to tasks and analyses that a checkout has, `rglob` does not.
    files = sorted(map(Path, glob.glob(f"{glob.escape(str(root))}/**/*.py", recursive=True)))
    source = digest(*(part for f in files for part in (f"{f.relative_to(root).as_posix()}\0", f.read_bytes())))
    return f"qfl-interp {version('qfl-interp')} (source {source}), torch {version('torch')}"


def require_same_code(ray: ModuleType, node_ids: Iterable[str]) -> None:
    """Ask every machine that will train for its code.

    Raises:
        QflError: One of them has another version, or cannot use the package at all.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask, here = ray.remote(code_fingerprint), code_fingerprint()
    refs = {}
    for node_id in node_ids:
        strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        refs[ask.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote()] = node_id
    for ref, node_id in refs.items():
        try:
            there = ray.get(ref, timeout=_PROBE_SECONDS)
        except ray.exceptions.RayError as error:
            raise QflError(
                f"a worker on machine {node_id[:8]} of the Ray cluster cannot use this package: {first_line(error)}. "
                "Install the same version on every machine."
            ) from error
        if there != here:
            raise QflError(
                f"machine {node_id[:8]} of the Ray cluster has {there}, this one {here}. Their runs would not be "
                "the same: install the same version on every machine."
            )


def first_line(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
