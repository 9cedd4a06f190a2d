"""Files of a finished run, damaged at random: every reading gives what it gave before, or names the damaged file."""

from __future__ import annotations

import pytest
from faults.run_files import CERTAIN, FORMATS, RunFiles, build

from qfl_interp.activations import store_entry
from qfl_interp.runs import checkpoint
from qfl_interp.runs.table import Table

CHECKS = ("verify", "stored")


@pytest.fixture(scope="module")
def run_files(tmp_path_factory) -> RunFiles:
    return RunFiles(*build(tmp_path_factory.mktemp("run_files")))


@pytest.mark.parametrize(
    ("n", "seed"), [pytest.param(4, 0, id="4"), pytest.param(150, 1, id="150", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", FORMATS)
def test_no_damage_is_read_as_something_else(run_files, name, n, seed):
    counts = run_files.damage(name, n, seed)
    assert sum(m for (_, reading, _), m in counts.items() if reading == "worst") == n
    assert {key: m for key, m in counts.items() if key[2] not in ("same", "named")} == {}
    of_checks = {key[2] for key in counts if key[1] in CHECKS and key[0] in CERTAIN}
    assert of_checks <= {"named"}
    if n > 100:
        assert of_checks == {"named"}


def _unchecked_bytes(_table, path, _part):
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "owner", "check", "without"),
    [
        ("model.safetensors", checkpoint, "_read_checked", lambda path, _entry: path.read_bytes()),
        ("table tensors", Table, "_read_checked", _unchecked_bytes),
        ("activations", store_entry, "_require_sum", lambda *_: None),
    ],
)
def test_damage_is_seen_where_a_checksum_is_not_looked_at(run_files, monkeypatch, name, owner, check, without):
    monkeypatch.setattr(owner, check, without)
    counts = run_files.damage(name, 20, 0)
    assert any(verdict == "silent" for _, _, verdict in counts)
