"""What fetching revisions of the hub takes, before it is done."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.runs.hub import client
from qfl_interp.runs.hub.revisions import Revision

# Requests at a time.
_AT_ONCE = 8
# Names of the weights, the safer format first: in one file, and the beginning and end of shards.
_WEIGHTS = (
    ("model.safetensors", "model-", ".safetensors"),
    ("pytorch_model.bin", "pytorch_model-", ".bin"),
)


class Download(NamedTuple):
    """What fetching revisions takes: bytes that are not in the cache, revisions that are, and those of unknown size."""

    n_bytes: int
    n_cached: int
    unknown: tuple[str, ...]


def wanted_files(files: Sequence[client.HubFile]) -> list[client.HubFile]:
    """The files of a revision that loading its model takes: configuration and weights, safetensors before pickles."""
    by_name = {file.name: file for file in files}
    shards: list[str] = []
    for single, start, ending in (
        ("model.safetensors", "model-", ".safetensors"),
        ("pytorch_model.bin", "pytorch_model-", ".bin"),
    ):
        if single in by_name:
            shards = [single]
            break
        if f"{single}.index.json" in by_name:
            parts = [name for name in by_name if name.startswith(start) and name.endswith(ending)]
            shards = [f"{single}.index.json", *sorted(parts)]
            break
    others = [name for name in ("config.json", "generation_config.json") if name in by_name]
    return [by_name[name] for name in [*others, *shards]]


def download_size(repo: str, revisions: Sequence[Revision]) -> Download:
    """What fetching these revisions takes, from the hub's list of their files; asks nothing about cached ones."""

    def asked(revision: Revision) -> list[client.HubFile] | None:
        try:
            return wanted_files(client.list_files(repo, revision.commit, f"listing the files of {revision.name!r} of"))
        except QflError:  # told when it is fetched
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(asked, revisions))
    unknown = tuple(one.name for one, files in zip(revisions, found, strict=True) if files is None)
    missing: dict[str, int] = {}  # by hash: what two revisions share is fetched once
    n_cached = 0
    for revision, files in zip(revisions, found, strict=True):
        lacking = [file for file in files or () if client.cached_file(repo, revision.commit, file.name) is None]
        n_cached += files is not None and not lacking
        missing |= {file.digest: file.size for file in lacking}
    return Download(sum(missing.values()), n_cached, unknown)
