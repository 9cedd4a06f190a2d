"""Checkpoints on disk: whole or not there, checked on every read, nothing executed."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import FullDisk

import qfl_interp as qfl
from qfl_interp.runs import checkpoint as ckpt

ROOT = Path(__file__).parents[2]
DIGEST = "0123456789ab"


def _checkpoint(step: int = 7, *, optimizer: bool = True) -> ckpt.Checkpoint:
    rng = torch.Generator().manual_seed(step)
    model = {
        "w": torch.randn(3, 4, generator=rng),
        "b": torch.randn(5, generator=rng)[::2],
        "nan": torch.tensor([torch.nan]),
    }
    moments = {"w/exp_avg": torch.randn(3, 4, generator=rng).T, "w/step": torch.tensor(3.0)}
    return ckpt.Checkpoint(step, DIGEST, model, moments if optimizer else None)


def _load(path: Path) -> ckpt.Checkpoint:
    return ckpt.load_checkpoint(path, config_digest=DIGEST, with_optimizer=True)


def _bits(tensors: dict[str, torch.Tensor] | None) -> dict[str, tuple]:
    return {name: (tuple(t.shape), t.dtype, t.contiguous().numpy().tobytes()) for name, t in (tensors or {}).items()}


@pytest.mark.parametrize("optimizer", [True, False])
def test_round_trip_is_bitwise(tmp_path, optimizer):
    written = _checkpoint(optimizer=optimizer)
    path = ckpt.save_checkpoint(tmp_path, written)
    assert path == tmp_path / "step_00000007"
    read = _load(path)
    assert (read.step, read.config_digest) == (7, DIGEST)
    assert _bits(read.model) == _bits(written.model)
    assert (read.optimizer is None) == (not optimizer)
    assert _bits(read.optimizer) == _bits(written.optimizer)
    assert ckpt.load_checkpoint(path, config_digest=DIGEST).optimizer is None, "not read unless asked for"


def test_saving_a_step_again_replaces_it(tmp_path):
    ckpt.save_checkpoint(tmp_path, _checkpoint())
    changed = _checkpoint(optimizer=False)
    changed.model["w"].add_(1)
    read = _load(ckpt.save_checkpoint(tmp_path, changed))
    assert _bits(read.model) == _bits(changed.model)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000007"]


@pytest.mark.parametrize("name", [ckpt.MODEL, ckpt.OPTIMIZER])
def test_a_truncated_changed_or_missing_file_is_named(tmp_path, name):
    path = ckpt.save_checkpoint(tmp_path, _checkpoint())
    file = path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(
        qfl.QflError, match=rf"{name} has {len(whole) - 1} bytes, not the {len(whole)} written: truncated"
    ):
        _load(path)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(qfl.QflError, match=rf"{name} does not match its checksum: corrupted. Use another step"):
        _load(path)
    file.unlink()
    with pytest.raises(qfl.QflError, match=rf"{name} cannot be read"):
        _load(path)
    file.write_bytes(whole)
    _load(path)


def test_no_flipped_bit_of_the_manifest_goes_unseen(tmp_path):
    """Three bits of every byte: an error that names the checkpoint, or (in white space) the same content."""
    path = ckpt.save_checkpoint(tmp_path, _checkpoint())
    manifest = path / ckpt.MANIFEST
    whole = manifest.read_bytes()
    expected = _load(path)
    refused = 0
    for place in range(len(whole)):
        for bit in {0, 5, place % 8}:  # 5 changes the case of a letter
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            manifest.write_bytes(changed)
            try:
                read = _load(path)
            except qfl.QflError as error:
                assert "step_00000007" in str(error)  # noqa: PT017  # most bits raise, some need not
                refused += 1
            else:
                assert json.loads(bytes(changed)) == json.loads(whole)
                assert _bits(read.optimizer) == _bits(expected.optimizer)
    assert refused > 2 * len(whole) * 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "must hold an object, got list"),
        ('{"model_type": "gpt2", "n_layer": 12}', "was not written by this version"),
        (
            '{"format": "qfl_interp checkpoint", "version": 2}',
            r"was not written by this version.*\(format 1\)",
        ),
        (
            '{"format": "qfl_interp checkpoint", "version": 1, "step": 7}',
            "does not have the fields that were written",
        ),
    ],
)
def test_another_programs_json_is_refused(tmp_path, text, message):
    path = ckpt.save_checkpoint(tmp_path, _checkpoint())
    (path / ckpt.MANIFEST).write_text(text)
    with pytest.raises(qfl.QflError, match=message):
        _load(path)


def test_a_foreign_or_renamed_checkpoint_is_refused(tmp_path):
    path = ckpt.save_checkpoint(tmp_path, _checkpoint())
    with pytest.raises(qfl.QflError, match=rf"another configuration \(digest {DIGEST}, this run ffffffffffff\)"):
        ckpt.load_checkpoint(path, config_digest="ffffffffffff")
    renamed = path.rename(tmp_path / "step_00000008")
    with pytest.raises(qfl.QflError, match="is of step 7, but its directory is named step_00000008"):
        _load(renamed)
    (renamed / ckpt.MANIFEST).unlink()
    with pytest.raises(qfl.QflError, match=r"step_00000008 is no checkpoint: it has no checkpoint\.json"):
        _load(renamed)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_00000012", 12), ("step_123456789", 123456789), ("step_12", None), ("step_000000012", None),
        ("step_0000001²", None), ("step_-0000001", None), ("step_", None), ("00000012", None),
    ],
)  # fmt: skip
def test_names_of_steps(name, step):
    assert ckpt.parse_step(name) == step
    assert step is None or ckpt.step_name(step) == name


def test_a_planted_pickle_is_refused_unexecuted(tmp_path):
    """Even with a manifest that vouches for it, a pickle in the place of the weights is not loaded."""

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = ckpt.save_checkpoint(tmp_path, _checkpoint(optimizer=False))
    data = pickle.dumps(Bomb())
    (path / ckpt.MODEL).write_bytes(data)
    with pytest.raises(qfl.QflError, match=r"model.safetensors"):
        _load(path)
    manifest = json.loads((path / ckpt.MANIFEST).read_text())
    manifest["files"][ckpt.MODEL] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / ckpt.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(qfl.QflError, match=r"model.safetensors is no safetensors file"):
        _load(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(data)
    assert (tmp_path / "executed").exists(), "the bomb does go off where something unpickles it"


def test_nothing_in_the_packages_can_unpickle():
    """No module that unpickles but for its error, `torch.load` of tensors alone, no `allow_pickle`."""
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    sources = [path for package in ("qfl_interp", "tasks", "analyses") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 40
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & forbidden, source
            if isinstance(node, ast.ImportFrom):
                named = {alias.name for alias in node.names}
                assert (node.module or "").split(".")[0] not in forbidden or named == {"UnpicklingError"}, source
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("read_pickle", "UntypedStorage"), source
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in map(ast.unparse, node.keywords), source
            # NumPy's own default is False, too.
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", source


@pytest.mark.parametrize("fails_at", [0, 1, 2])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
def test_a_full_disk_keeps_what_was_saved(tmp_path, monkeypatch, fails_at, number):
    """Each of the three files of a checkpoint in turn is the one that does not fit."""
    earlier = _checkpoint(3)
    ckpt.save_checkpoint(tmp_path, earlier)
    same_step = _checkpoint(7)
    ckpt.save_checkpoint(tmp_path, same_step)
    with monkeypatch.context() as patched:
        FullDisk(patched, fails_at, number)
        message = r"the disk is full: writing .*step_00000007 failed with [\d,]+ bytes free. .* is intact"
        with pytest.raises(qfl.QflError, match=message) as caught:
            ckpt.save_checkpoint(tmp_path, _checkpoint(7, optimizer=True))
    said = int(re.search(r"with ([\d,]+) bytes free", str(caught.value))[1].replace(",", ""))
    assert said == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000007"]
    assert _bits(_load(tmp_path / "step_00000003").model) == _bits(earlier.model)
    assert _bits(_load(tmp_path / "step_00000007").model) == _bits(same_step.model)


def test_a_disk_that_fails_otherwise_is_reported_as_it_says(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 0, errno.EIO)
    with pytest.raises(qfl.QflError, match=r"writing .* failed: .*Input/output error"):
        ckpt.save_checkpoint(tmp_path, _checkpoint())
    assert list(tmp_path.iterdir()) == []


def test_write_atomic_keeps_the_old_file_on_a_full_disk(tmp_path, monkeypatch):
    target = tmp_path / "file.json"
    ckpt.write_atomic(target, b"old")
    with monkeypatch.context() as patched:
        FullDisk(patched, 0)
        with pytest.raises(qfl.QflError, match="the disk is full"):
            ckpt.write_atomic(target, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file.json": b"old"}
    ckpt.write_atomic(target, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file.json": b"new"}


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    kept = ckpt.save_checkpoint(tmp_path, _checkpoint())
    (tmp_path / ".tmp-step_00000009-abc").mkdir()
    (tmp_path / ".tmp-step_00000009-abc" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-config.json-abc").write_bytes(b"half")
    ckpt.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
