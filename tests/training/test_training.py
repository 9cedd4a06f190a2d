"""Training: same seed same bits, through kills and full disks; divergence, branches, refusals."""

from __future__ import annotations

import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from conftest import tiny_train_config
from helpers import FullDisk

import qfl_interp as qfl
from benchmarks import kill_resume
from benchmarks.kill_resume import fingerprint
from qfl_interp.runs.config import RunConfig
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training import train as training
from qfl_interp.training import updates


def _weights(run, step="last"):
    return {name: p.detach().clone() for name, p in run.load_model(step).named_parameters()}


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class _At:
    """A logger that calls `do` once, when it is told of a step."""

    def __init__(self, step, do):
        self.step, self.do, self.closed = step, do, False

    def log(self, step, values):
        if step == self.step:
            self.step = -1
            self.do()

    def close(self):
        self.closed = True


@pytest.fixture
def train_tiny(tmp_path, addition, model_config):
    """Train the tiny run again, with changes; keyword arguments of `train` pass through."""

    def train(name="again", config=None, **arguments):
        return qfl.train(
            addition, model_config, config or tiny_train_config(), tmp_path / name,
            **{"progress": False, "resume_seconds": 0.0} | arguments,
        )  # fmt: skip

    return train


def test_same_seed_same_bits(tiny_run, train_tiny):
    torch.manual_seed(99)  # global generators take no part
    np.random.seed(99)  # noqa: NPY002
    assert fingerprint(train_tiny().path) == fingerprint(tiny_run.path)


def test_other_seed_other_weights(tiny_run, train_tiny):
    other = train_tiny(config=tiny_train_config(seed=4))
    for step in (0, 40):
        assert not _same(_weights(other, step), _weights(tiny_run, step))
    assert (other.metrics.train_loss.dropna() != tiny_run.metrics.train_loss.dropna()).all()


def test_metrics_and_evaluation_cadence(tiny_run):
    metrics = tiny_run.metrics
    assert list(metrics.step) == list(range(41))
    assert list(metrics.step[metrics.val_loss.notna()]) == list(range(0, 41, 4))
    assert metrics.train_loss.notna().sum() == 40
    expected = {"step", "flops", "actual_flops", "lr", "train_loss", "grad_norm", "seconds", "tokens_per_s",
                "val_loss", "val_exact", "val_loss_answer", "val_exact_answer",
                "val_pass", "val_pass_answer"}  # fmt: skip
    assert set(metrics.columns) == expected
    assert (metrics.seconds.diff().dropna() >= 0).all()


def test_cosine_learning_rates_are_those_logged(tiny_run):
    """By hand: 4 updates of warm-up from 1 % of 1e-3, then half a cosine from 1e-3 towards 1e-4."""
    k = np.arange(40)
    warm = 1e-3 * (0.01 + 0.99 * k / 4)
    cosine = 1e-4 + 9e-4 * (1 + np.cos(np.pi * (k - 4) / 36)) / 2
    np.testing.assert_allclose(tiny_run.metrics.lr.dropna(), np.where(k < 4, warm, cosine), rtol=1e-12)


def test_first_update_is_adamw_on_the_clipped_gradient(tiny_run, addition):
    """Step 1 from step 0 by the formulas, through the hooked model: clipping, decoupled decay, step."""
    from qfl_interp.data.examples import ExampleStream

    config = tiny_run.config.train
    batch = ExampleStream(addition, config.seed, config.batch_size).batch(0)
    model = tiny_run.load_model(0).double()
    logits = model(batch.tokens)[:, :-1]
    losses = -logits.log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0][batch.loss_mask[:, 1:]]
    losses.mean().backward()
    row = tiny_run.metrics.set_index("step").loc[1]
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    np.testing.assert_allclose([row.train_loss, row.grad_norm], [losses.mean().item(), norm], rtol=1e-5)
    after = _weights(tiny_run, 1)
    for name, parameter in model.named_parameters():
        clipped = gradients[name] * min(1.0, config.clip_norm / norm)
        wanted = parameter * (1 - row.lr * config.weight_decay) - row.lr * clipped / (clipped.abs() + config.adam_eps)
        torch.testing.assert_close(after[name].double(), wanted.detach(), rtol=0, atol=3e-7)


def test_killed_and_resumed_runs_end_in_the_same_bits(tmp_path):
    """Real SIGKILLs of a real process; the benchmark does twenty."""
    found = kill_resume._measure(tmp_path, n_steps=40, n_kills=3)
    assert found["kills"] == 3
    assert found["checkpoints_identical"]
    assert found["metrics_identical"]


@pytest.mark.parametrize("step", [0, 17, 28, 40], ids=lambda s: f"step{s}")
def test_ctrl_c_leaves_a_resume_point(tiny_run, train_tiny, tmp_path, step):
    """A real SIGINT: whatever was due at that step is done, and resuming gives the same bits."""
    logger = _At(step, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(make_loggers=lambda run: [logger], resume_seconds=1e9)
    assert logger.closed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    points = [p.name for p in (tmp_path / "again" / "resume").iterdir()]
    assert len(points) == 1
    assert int(points[0][5:]) in range(max(1, step), step + 11)
    finished = qfl.resume(tmp_path / "again", progress=False)
    assert fingerprint(finished.path) == fingerprint(tiny_run.path)
    assert not (finished.path / "resume").exists()
    assert len(finished.provenance) == (1 if step == 40 else 2)


def test_a_second_ctrl_c_stops_at_once(train_tiny, tmp_path, tiny_run):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        train_tiny(make_loggers=lambda run: [_At(17, twice)])
    assert fingerprint(qfl.resume(tmp_path / "again", progress=False).path) == fingerprint(tiny_run.path)


def _stop(train_tiny, step, **arguments):
    """Train until an error at `step`, as if the process died there."""

    def die():
        raise RuntimeError("dies here")

    with pytest.raises(RuntimeError, match="dies here"):
        train_tiny(make_loggers=lambda run: [_At(step, die)], **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True], ids=["resume_point", "optimizer_kept"])
def test_a_corrupted_resume_point_is_passed_over(train_tiny, tmp_path, keep, capsys):
    """With the optimiser in every checkpoint an earlier one is taken, else the start; same bits."""
    config = tiny_train_config(save_optimizer=keep)
    whole = train_tiny("whole", config)
    _stop(train_tiny, 30, config=config)
    folder = tmp_path / "again" / ("checkpoints" if keep else "resume")
    latest = max(folder.iterdir())
    file = latest / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    started = []
    finished = train_tiny(
        config=config,
        resume=True,
        make_loggers=lambda run: started.append(len(run.metrics)) or [],
        progress=True,
    )
    error = "".join(capsys.readouterr().err.split())
    assert "passedover:" in error
    assert f"{latest.name}/optimizer.safetensorshas" in error
    assert (started[0] > 5) == keep, "rows that are kept when training goes on"
    assert fingerprint(finished.path) == fingerprint(whole.path)


def test_a_full_disk_in_training_then_resume(tiny_run, train_tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        FullDisk(patched, 25)
        with pytest.raises(qfl.QflError, match=r"the disk is full.*Free some space and resume"):
            train_tiny()
    stopped = qfl.Run.open(tmp_path / "again")
    assert not stopped.finished
    assert len(stopped.steps) >= 2
    assert stopped.verify()
    assert not list(stopped.path.rglob(".tmp-*"))
    finished = qfl.resume(stopped.path, progress=False)
    assert fingerprint(finished.path) == fingerprint(tiny_run.path)


def test_resuming_a_finished_run_changes_nothing(run_copy):
    before = {p: p.read_bytes() for p in run_copy.path.rglob("*") if p.is_file()}
    assert qfl.resume(run_copy.path, progress=False).finished
    assert {p: p.read_bytes() for p in run_copy.path.rglob("*") if p.is_file()} == before


def test_an_existing_run_is_refused_and_untouched(run_copy, addition, model_config):
    before = fingerprint(run_copy.path)
    with pytest.raises(qfl.QflError, match=r"already holds a run. Resume it .* nothing was changed"):
        qfl.train(addition, model_config, tiny_train_config(), run_copy.path, progress=False)
    message = r"configuration: model.d_model is 16 there and 8 here; train.lr is 0.001 there and 0.01 here"
    with pytest.raises(qfl.QflError, match=message):
        qfl.train(
            addition, qfl.ModelConfig(d_model=8, n_layers=2), tiny_train_config(lr=0.01), run_copy.path,
            resume=True, progress=False,
        )  # fmt: skip
    assert fingerprint(run_copy.path) == before


def test_a_folder_that_is_no_run_is_refused(train_tiny, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(qfl.QflError, match=r"is not empty and is no run \(it holds thesis.tex\)"):
            train_tiny(resume=resume)
    assert (tmp_path / "again" / "thesis.tex").read_text() == "precious"
    with pytest.raises(qfl.QflError, match="is no run"):
        qfl.resume(tmp_path / "again")


def test_two_processes_cannot_train_into_one_run(run_copy, addition, model_config):
    """A real second process holds the run; when it is killed the run is free again."""
    process = os.fork()
    if not process:
        with RunWriter(run_copy.path, run_copy.config, run_copy.task, resume=True):
            (run_copy.path / "held").touch()
            time.sleep(60)
    try:
        while not (run_copy.path / "held").exists():
            time.sleep(0.01)
        with pytest.raises(qfl.QflError, match="another process is training into"):
            qfl.resume(run_copy.path, progress=False)
        with pytest.raises(qfl.QflError, match="another process is training into"):
            qfl.train(addition, model_config, tiny_train_config(), run_copy.path, progress=False)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert qfl.resume(run_copy.path, progress=False).finished


def test_budget_below_one_update(addition, model_config, tmp_path):
    one = 6 * (12 * 2 * 16**2 + 2 * 22 * 16) * 16 * 22
    small = tiny_train_config(n_steps=None, budget_flops=0.999 * one)
    with pytest.raises(qfl.QflError, match=r"at least one update of 1.45e\+07 FLOPs, got 1.4[45]e\+07"):
        qfl.train(addition, model_config, small, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    enough = training.plan_run(addition, model_config, tiny_train_config(n_steps=None, budget_flops=float(one)))
    assert enough.n_steps == 1


def test_divergence_names_step_rate_and_last_good_checkpoint(train_tiny, tmp_path):
    """The loss of update 3 is that of the weights after 2: step 2 is saved but bad, step 1 is good."""
    config = tiny_train_config(lr=1e6, warmup_fraction=0.0, divergence_loss=20.0, n_checkpoints=80)
    message = r"diverged at step 3: training loss .*rate 9.94e\+05.*20 nats.*again: step 1. Try a lower"
    with pytest.raises(qfl.DivergedError, match=message):
        train_tiny(config=config)
    stopped = qfl.Run.open(tmp_path / "again")
    assert list(stopped.metrics.step) == [0, 1, 2]
    assert stopped.steps == [0, 1, 2]
    assert stopped.verify()
    assert all(torch.isfinite(p).all() for p in stopped.load_model(1).parameters())


def test_a_loss_that_is_not_a_number_stops_the_run(train_tiny, tmp_path, monkeypatch):
    true_loss, calls = updates.masked_loss, []

    def broken(*arguments):
        calls.append(1)
        return true_loss(*arguments) * (float("nan") if len(calls) == 23 else 1)

    monkeypatch.setattr(updates, "masked_loss", broken)
    with pytest.raises(qfl.DivergedError, match=r"diverged at step 23: training loss nan"):
        train_tiny()
    stopped = qfl.Run.open(tmp_path / "again")
    assert list(stopped.metrics.step) == list(range(23))
    assert stopped.verify()
    assert np.isfinite(stopped.metrics.train_loss.dropna()).all()


def _wsd(n_steps, warmup, decay):
    return tiny_train_config(
        schedule="wsd", n_steps=n_steps, warmup_fraction=warmup / n_steps, decay_fraction=decay / n_steps,
        save_optimizer=True, n_checkpoints=n_steps,
    )  # fmt: skip


@pytest.mark.slow
def test_a_branch_goes_on_where_the_parent_was(train_tiny, tmp_path):
    """A branch of 10 updates from a step equals, bit for bit, a run whose decay starts there and takes 10."""
    parent = train_tiny("parent", _wsd(40, warmup=4, decay=8))
    step = min(s for s in parent.steps if 16 <= s <= 24)
    whole = train_tiny("whole", _wsd(step + 10, warmup=4, decay=10))
    branch = qfl.branch(parent, step, 10, tmp_path / "branch", progress=False)
    assert branch.steps[0] == step
    assert branch.steps[-1] == step + 10
    assert _same(_weights(branch, step), _weights(parent, step))
    assert _same(_weights(branch), _weights(whole))
    ours, theirs = (run.metrics.set_index("step").loc[step + 1 :] for run in (branch, whole))
    for column in ("train_loss", "grad_norm", "lr", "flops", "actual_flops"):
        assert (ours[column] == theirs[column]).all(), column
    assert branch.config.start.run_id == parent.run_id
    assert qfl.branch(parent, step, 10, tmp_path / "branch", resume=True, progress=False).finished
    with pytest.raises(qfl.QflError, match=r"must lie in the parent's stable stage \[4, 32\], got 40"):
        qfl.branch(parent, 40, 10, tmp_path / "late")
    with pytest.raises(qfl.QflError, match=r"must lie in the parent's stable stage \[4, 32\], got 3"):
        qfl.branch(parent, 3, 10, tmp_path / "early")
    assert not (tmp_path / "late").exists()


def test_what_cannot_be_branched(tiny_run, train_tiny, tmp_path):
    with pytest.raises(qfl.QflError, match="needs a parent with schedule 'wsd', got 'cosine'"):
        qfl.branch(tiny_run, 40, 10, tmp_path / "x")
    parent = train_tiny("parent", tiny_train_config(schedule="wsd", n_steps=4))
    with pytest.raises(
        qfl.QflError, match=r"step 1 of .* has no optimiser state. Train or record the parent with save_optimizer=True"
    ):
        qfl.branch(parent, 1, 10, tmp_path / "x")
    with pytest.raises(qfl.QflError, match="was not saved"):
        qfl.branch(train_tiny("gap", _gap_config()), 3, 10, tmp_path / "x")


def _gap_config():
    return tiny_train_config(schedule="wsd", n_steps=6, n_checkpoints=2, save_optimizer=True, warmup_fraction=0.0)


def test_compile_falls_back_with_a_message(tiny_run, train_tiny, monkeypatch):
    def no_compiler(function, **_):
        def compiled(*arguments):
            raise RuntimeError("no C++ compiler found")

        return compiled

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(RuntimeWarning, match="goes on uncompiled: no C\\+\\+ compiler found"):
        run = train_tiny(config=tiny_train_config(compile=True))
    assert _same(_weights(run), _weights(tiny_run))


def test_wsd_learning_rates(train_tiny):
    rates = train_tiny(config=_wsd(20, 2, 5)).metrics.lr.dropna().to_numpy()
    np.testing.assert_allclose(rates[:2], [1e-5, 1e-3 * (0.01 + 0.99 / 2)], rtol=1e-12)
    np.testing.assert_array_equal(rates[2:15], 1e-3)
    np.testing.assert_allclose(rates[15:], 1e-3 * (1 - 0.9 * np.arange(5) / 5), rtol=1e-12)


@pytest.mark.slow
def test_a_tiny_model_learns_to_add(tmp_path):
    """End to end: 4-bit addition, from chance to every held-out sum right."""
    config = qfl.TrainConfig(n_steps=300, lr=5e-3, batch_size=64, n_val=100, n_checkpoints=3, eval_fraction=0.25)
    run = qfl.train(
        qfl.load_task("addition", 4),
        qfl.ModelConfig(d_model=32, n_layers=2),
        config,
        tmp_path / "run",
        progress=False,
    )
    validation = run.metrics.dropna(subset=["val_loss"])
    assert validation.val_exact.iloc[0] == 0
    assert validation.val_exact.iloc[-1] == 1
    assert validation.val_exact_answer.iloc[-1] == 1
    assert validation.val_loss.iloc[-1] < 0.02 < 0.6 < validation.val_loss.iloc[0]


def test_a_copied_run_is_the_same_run(tiny_run, tmp_path):
    """Nothing on disk holds an absolute path."""
    moved = shutil.copytree(tiny_run.path, tmp_path / "elsewhere")
    assert RunConfig.read(moved) == tiny_run.config
    assert qfl.Run.open(moved).verify()


def test_a_damaged_final_checkpoint_is_trained_again(run_copy):
    weights = run_copy.path / "checkpoints" / f"step_{run_copy.steps[-1]:08d}" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert not run_copy.verify()
    qfl.resume(run_copy.path, progress=False)
    assert weights.read_bytes() == whole
    assert run_copy.verify()


def test_a_task_with_nothing_to_test_on_is_refused_before_it_is_trained(tmp_path):
    """Four nodes make six connected graphs: none of them falls into the test set."""
    config = qfl.TrainConfig(n_steps=1, batch_size=2, n_val=2)
    with pytest.raises(qfl.QflError, match=r"the test split of BreadthFirstSearch.* holds no example"):
        qfl.train(qfl.load_task("breadth_first_search", 4), qfl.ModelConfig(16, 1), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
