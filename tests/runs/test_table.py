"""Tables of analyses: parts written whole, checked on every read."""

from __future__ import annotations

import io
import tracemalloc

import pandas as pd
import pytest
import torch
from helpers import FullDisk

import qfl_interp as qfl
from qfl_interp.runs.table import Table


def _rows(n: int) -> pd.DataFrame:
    return pd.DataFrame({"step": range(n), "loss": [0.5 / (i + 1) for i in range(n)], "name": ["é"] * n})


@pytest.fixture
def table(tmp_path) -> Table:
    made = Table(tmp_path / "analyses" / "probe")
    made.write("b", _rows(3), {"w": torch.arange(6.0).reshape(2, 3).T})
    made.write("a", _rows(2))
    return made


def test_rows_and_tensors_round_trip(table):
    pd.testing.assert_frame_equal(table.read(["b"]), _rows(3), check_exact=True)
    assert torch.equal(table.read_tensors("b")["w"], torch.arange(6.0).reshape(2, 3).T)
    assert table.has("a")
    assert not table.has("c")
    assert repr(table) == "Table('probe', parts=2)"


def test_parts_are_sorted_and_read_in_the_order_asked_for(table):
    assert table.parts() == ["a", "b"]
    assert list(table.read().step) == [0, 1, 0, 1, 2]
    assert list(table.read(["b", "a"]).step) == [0, 1, 2, 0, 1]
    assert list(table.read(["b", "a"]).index) == list(range(5))


def test_an_empty_table(tmp_path):
    empty = Table(tmp_path / "none")
    assert empty.parts() == []
    assert empty.read().empty
    assert empty.verify() == []


def test_the_folder_reads_as_one_parquet_dataset(table):
    found = pd.read_parquet(table.folder)
    assert sorted(found.step) == [0, 0, 1, 1, 2]


def test_writing_a_part_again_replaces_it(table):
    table.write("a", _rows(5))
    assert len(table.read(["a"])) == 5
    assert table.parts() == ["a", "b"]


@pytest.mark.parametrize("name", ["b.parquet", "_b.safetensors", "_b.json"])
def test_no_flipped_bit_goes_unseen(table, name):
    """One bit of every seventh byte: an error that names the part, or (in white space) the same content."""
    file = table.folder / name
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            rows, tensors = table.read(["b"]), table.read_tensors("b")
        except qfl.QflError as error:
            assert "b." in str(error)  # noqa: PT017  # most bits raise, some need not
            assert "_b.json and run the analysis again: only this part" in str(error)  # noqa: PT017
        else:
            assert name == "_b.json"
            pd.testing.assert_frame_equal(rows, _rows(3))
            assert list(tensors) == ["w"]
    pd.testing.assert_frame_equal(table.read(["a"]), _rows(2))


def test_verify_names_the_corrupted_part(table):
    assert table.verify() == []
    (table.folder / "b.parquet").write_bytes(b"PAR1")
    (problem,) = table.verify()
    assert "b.parquet does not match its checksum" in problem
    (table.folder / "b.parquet").unlink()
    (problem,) = table.verify()
    assert "b.parquet cannot be read" in problem


def test_a_corrupted_part_is_computed_anew_once_deleted(table):
    (table.folder / "b.parquet").write_bytes(b"PAR1")
    assert table.has("b")
    (table.folder / "_b.json").unlink()
    assert not table.has("b")
    table.write("b", _rows(3))
    assert table.verify() == []


def test_missing_tensors_are_named(table):
    with pytest.raises(qfl.QflError, match=r"_a.safetensors cannot be read"):
        table.read_tensors("a")
    with pytest.raises(qfl.QflError, match=r"_zzz.json cannot be read"):
        table.read(["zzz"])


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_full_disk_leaves_no_half_part(table, monkeypatch, fails_at):
    """Whichever of a part's three files does not fit, the part is not there and the others are."""
    with monkeypatch.context() as patched:
        FullDisk(patched, fails_at)
        with pytest.raises(qfl.QflError, match="the disk is full"):
            table.write("c", _rows(4), {"w": torch.ones(2)})
    assert not table.has("c")
    assert table.parts() == ["a", "b"]
    assert len(table.read()) == 5
    assert not list(table.folder.glob(".tmp-*"))
    table.write("c", _rows(4), {"w": torch.ones(2)})
    assert table.verify() == []


@pytest.mark.parametrize("n", [1, 64, 65, 200])
def test_many_parts_are_read_in_order(tmp_path, n):
    made = Table(tmp_path / "many")
    for number in range(n):
        made.write(f"{number:04d}", _rows(2).assign(step=number, loss=float("nan") if number % 2 else number))
    assert list(made.read().step) == [number for number in range(n) for _ in range(2)]
    assert made.read().loss.isna().sum() == 2 * (n // 2)


def test_reading_many_small_parts_takes_memory_for_their_rows_alone(tmp_path, monkeypatch):
    """A frame of few rows takes 30 times as much: a thousand checkpoints must not hold a thousand frames."""
    wide = pd.DataFrame({f"{kind}_{i}": [kind, kind] for i in range(10) for kind in (0.5, 1, True)})
    part = wide.to_parquet()
    monkeypatch.setattr(Table, "read_part", lambda self, name: pd.read_parquet(io.BytesIO(part)))
    tracemalloc.start()
    try:
        found = Table(tmp_path).read([str(number) for number in range(640)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 1280
    assert peak < 10 * found.memory_usage().sum(), "one frame a part takes 30 times"
