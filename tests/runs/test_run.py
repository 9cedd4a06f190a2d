"""Run directories: what is damaged is named and refused, the rest stays usable."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.data.examples import held_out
from qfl_interp.errors import QflError
from qfl_interp.runs.checkpoint import write_atomic
from qfl_interp.runs.config import RunConfig
from qfl_interp.runs.metrics import read_metrics
from qfl_interp.runs.series import Checkpoints
from qfl_interp.runs.writer import RunWriter
from qfl_interp.sealed import sealed_json
from qfl_interp.seeding import generator


def _step_folder(run, step):
    return run.path / "checkpoints" / f"step_{step:08d}"


def _flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_a_whole_run_has_no_problems(tiny_run):
    found = tiny_run.verify()
    assert found
    assert found.problems == ()
    assert found.finished
    assert list(found.good) == tiny_run.steps
    assert tiny_run.steps[0] == 0
    assert tiny_run.steps[-1] == 40


def test_verify_lists_exactly_what_is_bad(run_copy, tmp_path):
    steps = run_copy.steps
    truncated, flipped, missing, renamed, foreign = steps[:5]
    kept = steps[5:]
    (_step_folder(run_copy, truncated) / "model.safetensors").write_bytes(b"short")
    _flip(_step_folder(run_copy, flipped) / "model.safetensors")
    (_step_folder(run_copy, missing) / "model.safetensors").unlink()
    _step_folder(run_copy, renamed).rename(_step_folder(run_copy, 39))
    manifest = _step_folder(run_copy, foreign) / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"config_digest": "0" * 12}))
    (run_copy.path / "checkpoints" / "pytorch_model.bin").write_bytes(b"x")
    (run_copy.path / "provenance.json").write_text("{")
    found = run_copy.verify()
    assert not found
    assert found.finished, "the last checkpoint is whole"
    assert list(found.good) == kept
    expected = [
        rf"step_{truncated:08d}.model.safetensors has 5 bytes",
        rf"step_{flipped:08d}.model.safetensors does not match its checksum",
        rf"step_{missing:08d}.model.safetensors cannot be read",
        rf"step_{foreign:08d} belongs to a run with another configuration",
        rf"is of step {renamed}, but its directory is named step_00000039",
        r"pytorch_model.bin is not a checkpoint of this run",
        r"provenance.json cannot be read",
        rf"checkpoints has no checkpoint of 1 steps that were saved: {renamed}\.",
    ]
    assert len(found.problems) == len(expected)
    for pattern, problem in zip(expected, found.problems, strict=True):
        assert re.search(pattern, problem), (pattern, problem)
    for step in kept:
        run_copy.load_model(step)
    for step in (truncated, flipped, missing, 39, foreign):
        with pytest.raises(qfl.QflError, match=f"step_{step:08d}"):
            run_copy.load_model(step)


def test_another_runs_checkpoint_is_refused(run_copy, tmp_path, addition, model_config):
    """Same shapes, other seed: nothing but the digest tells them apart."""
    from conftest import tiny_train_config

    other = qfl.train(addition, model_config, tiny_train_config(seed=4, n_steps=1), tmp_path / "other", progress=False)
    shutil.rmtree(_step_folder(run_copy, 1))
    shutil.copytree(_step_folder(other, 1), _step_folder(run_copy, 1))
    with pytest.raises(
        qfl.QflError,
        match=rf"step_00000001 belongs to a run .*{other.config.digest}, this run {run_copy.config.digest}",
    ):
        run_copy.load_model(1)
    assert len(run_copy.verify().problems) == 1
    run_copy.load_model("last")


def test_load_model_gives_the_trained_weights(tiny_run, addition):
    """Its validation loss through the hooked model is the logged one; step 0 is the initial model."""
    examples = held_out(
        addition, "val", tiny_run.config.train.n_val, seed=tiny_run.config.train.seed, stream="validation"
    )
    batch = addition.encode(examples)
    logged = tiny_run.metrics.dropna(subset=["val_loss"]).set_index("step")
    assert list(logged.index) == list(range(0, 41, 4))
    for step in (0, 40):
        model = tiny_run.load_model(step)
        with torch.no_grad():
            logits = model(batch.tokens)[:, :-1].double()
        loss = -logits.log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0][batch.loss_mask[:, 1:]].mean()
        right = (logits.argmax(-1) == batch.tokens[:, 1:]) | ~batch.loss_mask[:, 1:]
        np.testing.assert_allclose(logged.val_loss[step], loss.item(), rtol=1e-5)
        assert logged.val_exact[step] == right.all(dim=1).double().mean().item()
    initial = qfl.build_model(tiny_run.config.model, addition, seed=tiny_run.config.train.seed)
    for name, parameter in tiny_run.load_model(0).named_parameters():
        assert torch.equal(parameter, dict(initial.named_parameters())[name]), name
    assert tiny_run.n_parameters == sum(p.numel() for p in initial.parameters())


def test_step_not_saved_names_the_nearest(tiny_run):
    saved = tiny_run.steps
    gap = next(s for s in range(40) if s not in saved)
    nearest = min(saved, key=lambda s: abs(s - gap))
    with pytest.raises(qfl.QflError, match=rf"step {gap} of .* was not saved. The nearest saved step is {nearest};"):
        tiny_run.load_model(gap)
    with pytest.raises(qfl.QflError, match="nearest saved step is 40"):
        tiny_run.resolve_steps("0,1000")


def test_a_checkpoint_is_loaded_without_listing_all(tiny_run, monkeypatch):
    """A pass over n checkpoints would list n names n times."""
    step = tiny_run.steps[1]
    wanted = tiny_run.load_checkpoint(step).model

    def refuse(_):
        raise AssertionError("the folder was listed")

    monkeypatch.setattr(os, "listdir", refuse)
    found = tiny_run.load_checkpoint(step).model
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    tiny_run.load_model(step)
    with pytest.raises(AssertionError, match="listed"):
        tiny_run.load_model("last")


def test_resolve_steps(tiny_run):
    saved = tiny_run.steps
    assert tiny_run.resolve_steps("all") == saved
    assert tiny_run.resolve_steps("last") == [40]
    assert tiny_run.resolve_steps("40, 0,40") == [0, 40]
    assert tiny_run.resolve_steps(40) == [40]
    assert tiny_run.resolve_steps([40, 1]) == tiny_run.resolve_steps((1, 40)) == [1, 40]
    assert tiny_run.resolve_steps("log:1") == [0]
    assert tiny_run.resolve_steps("log:2") == [0, 40]
    assert tiny_run.resolve_steps("every:20") == [step for step in saved if step % 20 == 0]
    assert tiny_run.resolve_steps("log:1000") == saved
    thinned = tiny_run.resolve_steps("log:4")
    assert set(thinned) < set(saved)
    assert {0, 40} < set(thinned)
    for garbage in ("", "some", "log:", "log:-1", "log:0", "every:0", "1;2", "1.5", "last,1"):
        with pytest.raises(
            ValueError, match=f"steps must be 'all', 'last', 'log:20', 'every:100' or '1000,2000', got {garbage!r}"
        ):
            tiny_run.resolve_steps(garbage)


def test_a_run_is_a_series(tiny_run, addition, model_config):
    assert isinstance(tiny_run, Checkpoints)
    assert tiny_run.identity() == {"run_id": tiny_run.run_id, "config_hash": tiny_run.config.digest, "seed": 3}
    assert tiny_run.table("probe").folder == tiny_run.path / "analyses" / "probe"
    seeds = [int(generator(3, f"probe/untrained_0{index}").integers(2**31)) for index in range(2)]
    for index, seed in enumerate(seeds):
        model, used = tiny_run.untrained_model(index)
        assert used == seed == tiny_run.untrained_seed(index)
        same = qfl.build_model(model_config, addition, seed=seed)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert seeds[0] != seeds[1]


def test_a_pickled_run_opens_its_directory_again(tiny_run, monkeypatch):
    assert tiny_run.task is tiny_run.task  # its features hold functions, which do not pickle
    monkeypatch.chdir(tiny_run.path.parent)
    text = pickle.dumps(qfl.Run.open(tiny_run.path.name))
    monkeypatch.chdir("/")
    other = pickle.loads(text)
    assert (other.config, other.path) == (tiny_run.config, tiny_run.path)
    assert other.load_model(40).cfg.d_model == 16
    with pytest.raises(qfl.QflError, match="is no run"):
        pickle.loads(text.replace(b"tiny", b"tinY"))


def test_no_checkpoint_yet(run_copy):
    shutil.rmtree(run_copy.path / "checkpoints")
    with pytest.raises(qfl.QflError, match="has no checkpoint yet"):
        run_copy.load_model()
    assert run_copy.steps == []
    assert not run_copy.verify().finished
    assert "unfinished, 0 checkpoints to step 0 of 40" in repr(run_copy)


def test_metrics_with_a_torn_last_line(run_copy):
    """What a killed writer leaves: the whole rows count, the half one does not."""
    file = run_copy.path / "metrics.jsonl"
    whole = file.read_bytes()
    n_rows = len(run_copy.metrics)
    assert n_rows == 41
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (last, last + 1, last + 30, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert [row["step"] for row in read_metrics(file, run_copy.config.digest).rows] == list(range(40))
        with pytest.raises(qfl.QflError, match="ends at step 39, but there is a checkpoint of step 40"):
            _ = run_copy.metrics
    shutil.rmtree(run_copy.path / "checkpoints" / "step_00000040")
    assert len(run_copy.metrics) == 40
    file.unlink()
    assert read_metrics(file, run_copy.config.digest).rows == []


def test_a_corrupted_metrics_line_is_named(run_copy):
    file = run_copy.path / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[4] = b'{"step": 4, \xff'
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(qfl.QflError, match=r"line 5 of .*metrics.jsonl"):
        _ = run_copy.metrics
    assert len(run_copy.verify().problems) == 1


def test_no_flipped_bit_of_the_configuration_goes_unseen(run_copy):
    file = run_copy.path / "config.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 7
        file.write_bytes(changed)
        try:
            read = RunConfig.read(run_copy.path)
        except qfl.QflError as error:
            assert "config.json" in str(error)  # noqa: PT017  # most bits raise, some need not
        else:
            assert read == run_copy.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["train"].update(lr=0.1), "was edited: it is named addition6-"),
        (lambda v: v["train"].update(lr=-1.0), "is corrupted: lr must be positive"),
        (lambda v: v["model"].pop("n_layers"), r"is corrupted: ModelConfig .*missing fields \['n_layers'\]"),
        (lambda v: v["model"].update(hidden=1), r"is corrupted: ModelConfig .* unknown fields \['hidden'\]"),
        (lambda v: v.pop("run_id"), "is corrupted: 'run_id'"),
        (lambda v: v.pop("last_step"), "is corrupted: .*last_step"),
        (lambda v: v.update(model=3), "is corrupted"),
        (lambda v: v.update(version=2), r"not written by this version of qfl_interp \(run format 1\)"),
        (lambda v: v.clear(), "not written by this version"),
    ],
)  # fmt: skip
def test_an_edited_configuration_is_refused(run_copy, change, message):
    file = run_copy.path / "config.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(qfl.QflError, match=message) as caught:
        qfl.Run.open(run_copy.path)
    assert str(file) in str(caught.value)


def test_what_is_no_run(tmp_path):
    with pytest.raises(qfl.QflError, match=r"is no run: it has no config\.json"):
        qfl.Run.open(tmp_path)
    with pytest.raises(qfl.QflError, match="is no run: it does not exist"):
        qfl.Run.open(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(qfl.QflError, match=r"config.json (cannot be read|is corrupted)"):
        qfl.Run.open(tmp_path)


def test_provenance_says_versions_and_device(tiny_run):
    (record,) = tiny_run.provenance
    assert record["versions"]["torch"] == str(torch.__version__)
    assert {"python", "numpy", "transformer-lens", "qfl-interp"} <= set(record["versions"])
    assert "cores" in record["device"]
    assert record["threads"] == 1
    assert record["command"]
    assert "/" not in record["command"][0]


def _resealed(path, run):
    """The sessions of a run with a checksum that fits, of the configuration of another."""
    path.write_bytes(sealed_json({"config_digest": "0" * 12, "sessions": run.provenance}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path, _: path.write_text(path.read_text().replace('"numpy": "', '"numpy": "9')), "match its checksum"),
        (lambda path, _: path.write_text(path.read_text().replace('"sha256"', '"sha257"')), "match its checksum"),
        (lambda path, _: path.write_text("[]"), "must hold a list of records"),
        (lambda path, _: path.write_text('[{"a": 1}]'), "must hold a list of records"),
        (_resealed, "is of another run"),
    ],
    ids=["value", "key", "empty list", "other list", "other run"],
)
def test_changed_provenance_is_named(run_copy, damage, words):
    path = run_copy.path / "provenance.json"
    damage(path, run_copy)
    with pytest.raises(qfl.QflError, match=f"provenance.json.* {words}"):
        _ = run_copy.provenance
    (problem,) = run_copy.verify().problems
    assert words in problem
    assert run_copy.verify().unchecked == ()


def test_provenance_of_an_earlier_version_is_read_and_said_to_be_unchecked(run_copy):
    """It was a list; the next session seals it."""
    path, before = run_copy.path / "provenance.json", run_copy.provenance
    path.write_text(json.dumps(before, indent=1))
    assert run_copy.provenance == before
    found = run_copy.verify()
    assert found
    assert found.unchecked == (f"{path} was written by an earlier version: no checksum.",)
    with RunWriter(run_copy.path, run_copy.config, run_copy.task, resume=True) as writer:
        writer.record_session("cpu")
    assert run_copy.provenance[:-1] == before
    assert len(run_copy.provenance) == 2
    assert run_copy.verify().unchecked == ()


def test_repr_says_what_it_is(tiny_run):
    assert repr(tiny_run) == (
        f"Run({str(tiny_run.path)!r}: addition length 6, 2 layers, d_model 16, seed 3, finished, "
        f"{len(tiny_run.steps)} checkpoints to step 40 of 40)"
    )
    assert tiny_run.run_id == f"addition6-{tiny_run.config.digest}"


def test_flops_columns(tiny_run):
    """By hand: 6 (12 n_layers d^2 + n_layers n_ctx d) a token; six a multiply-add of the real widths."""
    n_ctx, batch, d, layers, d_mlp, d_vocab = 22, 16, 16, 2, 42, 5
    nominal = 6 * (12 * layers * d**2 + layers * n_ctx * d) * batch * n_ctx
    actual = 6 * (layers * (4 * d**2 + 3 * d * d_mlp + 2 * n_ctx * d) + d * d_vocab) * batch * n_ctx
    metrics = tiny_run.metrics
    np.testing.assert_allclose(metrics.flops, metrics.step * nominal, rtol=1e-12)
    np.testing.assert_allclose(metrics.actual_flops, metrics.step * actual, rtol=1e-12)
    assert tiny_run.flops(40) == metrics.flops.iloc[-1]
    assert tiny_run.actual_flops(40) == metrics.actual_flops.iloc[-1]


def test_missing_metrics_are_said_so(run_copy):
    (run_copy.path / "metrics.jsonl").unlink()
    with pytest.raises(qfl.QflError, match=r"metrics.jsonl is missing"):
        run_copy.metrics  # noqa: B018  # reading it raises
    assert any("metrics.jsonl is missing" in problem for problem in run_copy.verify().problems)


def test_series_is_checkpoints_by_its_old_name():
    with pytest.warns(DeprecationWarning, match="Series is called Checkpoints now"):
        from qfl_interp.runs.series import Series
    assert Series is Checkpoints


def test_a_deleted_lock_lets_no_second_trainer_in_and_stops_the_first(run_copy):
    shutil.rmtree(run_copy.path / "checkpoints" / "step_00000040")
    with RunWriter(run_copy.path, run_copy.config, run_copy.task, resume=True) as writer:
        (run_copy.path / ".lock").unlink()
        with pytest.raises(qfl.QflError, match=r"another process is training into .*though its file .lock was deleted"):
            qfl.resume(run_copy.path, progress=False)
        with pytest.raises(qfl.QflError, match=r"the lock of .* was lost"):
            writer.append_metrics([{"step": 41}])
        with pytest.raises(qfl.QflError, match=r"the lock of .* was lost"):
            writer.save(run_copy.load_checkpoint(27), keep_optimizer=False)
    assert qfl.resume(run_copy.path, progress=False).finished


def test_a_changed_record_of_the_task_is_named(run_copy):
    file = run_copy.path / "task.json"
    whole = file.read_bytes()
    for place in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 7
        file.write_bytes(changed)
        assert [problem for problem in run_copy.verify().problems if "task.json" in problem]
        with pytest.raises(qfl.QflError, match=r"task\.json"):
            _ = qfl.Run.open(run_copy.path).task


def test_verify_misses_the_last_checkpoint(run_copy):
    shutil.rmtree(run_copy.path / "checkpoints" / "step_00000040")
    (problem,) = run_copy.verify().problems
    assert "has no checkpoint of 1 steps that were saved: 40." in problem


def test_verify_misses_every_checkpoint(run_copy):
    shutil.rmtree(run_copy.path / "checkpoints")
    (problem,) = run_copy.verify().problems
    assert f"has no checkpoint of {len(run_copy.config.steps_to_save)} steps" in problem


def test_verify_misses_the_record_of_sessions(run_copy):
    (run_copy.path / "provenance.json").unlink()
    assert any("provenance.json is missing" in problem for problem in run_copy.verify().problems)


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(QflError, match="pipe must be a file, and it is a device or a pipe: nothing was written"):
        write_atomic(pipe, b"x")
    assert pipe.is_fifo()
    assert [*tmp_path.iterdir()] == [pipe]
