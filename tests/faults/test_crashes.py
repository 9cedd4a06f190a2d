"""A process dies, or the disk is full, at any file operation: the next call ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults import workloads
from faults.driver import Faults, Work

from qfl_interp.errors import QflError
from qfl_interp.runs.checkpoint import storage_error, write_atomic

EVERY = ["train", "probe"]
OTHERS = [workloads.REPLAY, *(name for name in workloads.CALLS if name not in EVERY)]
SEED = 0


@pytest.fixture(scope="module")
def faults_in(tmp_path_factory) -> Callable[[str], Faults]:
    """The faults of a workload; each is prepared once."""
    folder, made = tmp_path_factory.mktemp("faults"), {}

    def make(name: str) -> Faults:
        if name not in made:
            made[name] = Faults(workloads.make(name, folder), folder / f"{name}-work")
        return made[name]

    return make


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(pytest.param(name, 6, id=f"{name}-6") for name in EVERY),
        *(pytest.param(name, 12, id=f"{name}-12", marks=pytest.mark.slow) for name in EVERY),
        *(pytest.param(name, 3, id=f"{name}-3", marks=pytest.mark.slow) for name in OTHERS),
    ],
)
def test_killed_work_ends_with_the_same_bytes(faults_in, name, n):
    faults = faults_in(name)
    numbers = faults.some(n, SEED)
    counts, bad = faults.verdicts(numbers, "kill")
    assert bad == []
    assert dict(counts) == {"same": len(numbers)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(pytest.param(name, 8, id=f"{name}-8") for name in EVERY),
        *(pytest.param(name, 3, id=f"{name}-3") for name in OTHERS),
    ],
)
def test_a_full_disk_is_named_and_work_goes_on_once_there_is_room(faults_in, name, n):
    faults = faults_in(name)
    counts, bad = faults.verdicts(faults.some(n, SEED), "full disk")
    assert bad == []
    assert counts["named"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "full disk"])
def test_the_page_of_a_report_is_whole_or_not_there(faults_in, fault):
    faults = faults_in("report")
    numbers = [number for number, name in enumerate(faults.operations) if name.endswith(".html")]
    assert [faults.operations[number].split()[0] for number in numbers] == ["open", "write", "fsync", "replace"]
    counts, bad = faults.verdicts(numbers, fault)
    assert bad == []
    assert dict(counts) == {"same" if fault == "kill" else "named": 4}


def test_all_kinds_of_operations_are_counted(faults_in):
    kinds = {name.split()[0] for name in faults_in("train").operations}
    assert kinds == {"open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir"}


def test_what_lies_elsewhere_is_not_counted(tmp_path):
    (tmp_path / "elsewhere").mkdir()

    def call(folder: Path) -> None:
        (tmp_path / "elsewhere" / "a").write_text("a")
        (folder / "b").write_text("b")

    assert Faults(Work(call), tmp_path / "work").operations == ("open b", "write b")


def _in_place(folder: Path) -> None:
    if not (folder / "a").exists():
        (folder / "a").write_bytes(bytes(range(256)))


def _over_itself(folder: Path) -> None:
    (folder / "a").write_bytes(b"abc")


def _unfinished(folder: Path) -> None:
    if (folder / ".tmp-a").exists():
        raise QflError("clean up first.")
    (folder / ".tmp-a").write_bytes(b"abc")
    (folder / ".tmp-a").replace(folder / "a")


def _careful(folder: Path) -> None:
    write_atomic(folder / "a", b"abc")
    for path in folder.glob(".tmp-*"):
        path.unlink()


def _without_a_word(folder: Path) -> None:
    try:
        write_atomic(folder / "a", b"abc")
    except QflError as error:
        raise QflError("it did not work.") from error


def _named(folder: Path) -> None:
    try:
        (folder / "a").write_bytes(b"abc")
    except OSError as error:
        raise storage_error(error, folder / "a") from error


@pytest.mark.parametrize(
    ("call", "fault", "expected"),
    [
        (_careful, "kill", ["same", "same", "same", "same"]),
        (_in_place, "kill", ["same", "silent"]),
        (_over_itself, "kill", ["same", "silent"]),
        (_unfinished, "kill", ["same", "unnamed", "unnamed"]),
        (_careful, "full disk", ["named", "named", "named", "named"]),
        (_named, "full disk", ["named", "silent"]),
        (_without_a_word, "full disk", ["unnamed", "unnamed", "unnamed", "unnamed"]),
        (_in_place, "full disk", ["traceback", "traceback"]),
    ],
)
def test_the_harness_sees_careless_writers(tmp_path, call, fault, expected):
    faults = Faults(Work(call), tmp_path / "work")
    assert [faults.verdict(at, fault)[0] for at in range(len(faults.operations))] == expected
