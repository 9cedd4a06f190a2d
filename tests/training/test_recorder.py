"""A recorder: the run it writes is that of the loop, the loop does not notice, and no recording is overwritten."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import qfl_interp as qfl
from qfl_interp.analyses import curvature, probe
from qfl_interp.models.metrics import evaluate
from qfl_interp.runs.config import Recorded
from qfl_interp.seeding import generator

N_STEPS, BATCH = 30, 16
TASK = qfl.load_task("addition", 4)
HOW = {"n_steps": N_STEPS, "n_val": 64, "n_checkpoints": 6}


def new_model(seed: int = 0):
    return qfl.build_model(qfl.ModelConfig(d_model=8, n_layers=1, n_heads=2), TASK, seed=seed)


def new_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))


def update(model, optimizer, step: int) -> torch.Tensor:
    """One update of a loop as anybody writes it."""
    batch = qfl.ExampleStream(TASK, batch_size=BATCH, seed=0).batch(step - 1)
    output = model(batch.tokens)
    logits, kept = getattr(output, "logits", output)[:, :-1], batch.loss_mask[:, 1:]
    loss = functional.cross_entropy(logits[kept], batch.tokens[:, 1:][kept])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def record(out, model, optimizer, steps, **settings):
    with qfl.Recorder(out, model, TASK, **HOW | settings) as recorder:
        for step in steps:
            recorder.step(step, optimizer, loss=update(model, optimizer, step))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A finished recording, the loop's model and the directory."""
    out = tmp_path_factory.mktemp("recorded") / "run"
    model = new_model()
    record(out, model, new_optimizer(model), range(1, N_STEPS + 1), tokens_per_step=100, save_optimizer=True)
    return qfl.Run.open(out), model


def test_the_directory_is_a_whole_run(recorded):
    run, model = recorded
    assert run.finished
    assert run.verify()
    assert run.steps == run.config.steps_to_save
    assert run.metrics["step"].tolist() == list(range(N_STEPS + 1))
    assert run.metrics["lr"].dropna().unique().tolist() == [1e-2]
    again = run.load_model()
    tokens = TASK.encode(TASK.sample(generator(0, "test"), 8)).tokens
    torch.testing.assert_close(again(tokens), model(tokens), rtol=0, atol=0)
    assert json.loads((run.path / "config.json").read_text())["recorded"] == {"tokens_per_step": 100}


def test_losses_are_those_of_the_loop_and_of_the_checkpoints(recorded):
    """The loss of an update is the loop's own, the validation is what `evaluate` gives of the reopened model."""
    run, _ = recorded
    model = new_model()
    optimizer = new_optimizer(model)
    own = [float(update(model, optimizer, step)) for step in range(1, N_STEPS + 1)]
    assert run.metrics["train_loss"].dropna().tolist() == own
    batch = TASK.encode(qfl.held_out(TASK, "val", 64, seed=0, stream="validation"))
    rows = run.metrics.set_index("step")
    for step in (0, run.steps[2], N_STEPS):
        at = run.load_model(step)
        means = evaluate(lambda tokens, span, _, at=at: at(tokens)[:, span], batch).means()
        assert rows.loc[step, "val_loss"] == pytest.approx(means["loss"], rel=1e-6)
        assert rows.loc[step, "val_exact_answer"] == means["exact_answer"]


def test_flops_follow_from_the_tokens_of_a_step(recorded):
    run, _ = recorded
    per_token = run.config.model.nominal_flops(run.config.n_ctx_real)
    assert run.metrics["flops"].tolist() == pytest.approx([100 * per_token * step for step in range(N_STEPS + 1)])
    assert run.flops(10) == pytest.approx(1000 * per_token)


@pytest.mark.slow
def test_lenses_take_it(recorded):
    run, _ = recorded
    config = qfl.ProbeConfig(n_train=100, n_test=50)
    found = probe(run, "carry", steps="0,30", config=config, progress=False).to_dataframe()
    assert set(found["step"]) >= {0, N_STEPS}
    curved = curvature(run, steps="last", config=qfl.CurvatureConfig(n_examples=8, max_products=20), progress=False)
    row = curved.to_dataframe().iloc[0]
    assert row["moments"] == "unknown"
    assert row["lr"] == 1e-2
    assert math.isnan(row["edge"])


class TestTheLoopDoesNotNotice:
    @pytest.mark.parametrize("kind", ["hooked", "hugging_face"])
    def test_bits_modes_gradients_and_generators(self, tmp_path, kind):
        """With dropout, whose masks come from the global generator; a module in evaluation mode stays in it."""

        def trained(out):
            torch.manual_seed(3)
            np.random.seed(3)  # noqa: NPY002 -- the loop's own global state
            model = new_model() if kind == "hooked" else GPT2LMHeadModel(tiny_gpt2(resid_pdrop=0.3))
            next(model.children()).eval()
            optimizer = new_optimizer(model)
            recorder = out and qfl.Recorder(out, model, TASK, **HOW | {"n_steps": 6})
            seen = []
            for step in range(1, 7):
                loss = update(model, optimizer, step)
                if recorder:
                    recorder.step(step, optimizer, loss=loss)
                seen.append((float(loss), float(torch.rand(1)), np.random.rand()))  # noqa: NPY002
            tensors = [t for p in model.parameters() for t in (p.detach(), p.grad)]
            return seen, tensors, [module.training for module in model.modules()]

        alone, watched = trained(None), trained(tmp_path / "run")
        assert alone[0] == watched[0]
        assert alone[2] == watched[2]
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(alone[1], watched[1], strict=True))

    def test_automatic_casts_do_not_reach_the_validation(self, tmp_path):
        model = new_model()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            qfl.Recorder(tmp_path / "cast", model, TASK, **HOW).close()
            assert torch.is_autocast_enabled("cpu")
        qfl.Recorder(tmp_path / "plain", model, TASK, **HOW).close()
        rows = [qfl.Run.open(tmp_path / name).metrics["val_loss"][0] for name in ("cast", "plain")]
        assert rows[0] == rows[1]


class TestResuming:
    def test_a_stopped_loop_goes_on_to_the_same_recording(self, tmp_path, recorded):
        """From the loop's own checkpoint of step 12, before the recording's end: what came after is dropped."""
        model = new_model()
        optimizer = new_optimizer(model)
        how = {"tokens_per_step": 100, "save_optimizer": True}
        with qfl.Recorder(tmp_path / "run", model, TASK, **HOW, **how) as recorder:
            for step in range(1, 21):
                recorder.step(step, optimizer, loss=update(model, optimizer, step))
                if step == 12:
                    own = {k: v.clone() for k, v in model.state_dict().items()}, json_free(optimizer.state_dict())
        model, optimizer = reopened(own)
        record(tmp_path / "run", model, optimizer, range(13, N_STEPS + 1), step=12, resume=True, **how)
        run, whole = qfl.Run.open(tmp_path / "run"), recorded[0]
        assert run.verify()
        assert run.run_id == whole.run_id
        assert run.steps == whole.steps
        assert all(run.weights(step) == whole.weights(step) for step in run.steps)
        timed = ["seconds", "tokens_per_s"]
        assert run.metrics.drop(columns=timed).equals(whole.metrics.drop(columns=timed))
        assert len(run.provenance) == 2

    def test_rows_that_a_kill_has_lost_are_there_without_a_loss(self, tmp_path):
        model = new_model()
        how = HOW | {"n_steps": 4000, "n_val": 4, "n_checkpoints": 2}
        recorder = qfl.Recorder(tmp_path / "run", model, TASK, **how)
        stop = 200
        while recorder._session.evaluates_at(stop) or recorder._session.evaluates_at(stop - 1):
            stop += 1
        for step in range(1, stop + 1):
            recorder.step(step, loss=1.0)
        assert recorder._pending
        recorder._pending.clear()  # as a killed process does
        recorder.close()
        last = int(qfl.Run.open(tmp_path / "run").metrics["step"].iloc[-1])
        assert last < stop
        with qfl.Recorder(tmp_path / "run", model, TASK, **how, step=stop, resume=True) as again:
            again.step(stop + 1, loss=1.0)
        rows = qfl.Run.open(tmp_path / "run").metrics
        assert rows["step"].tolist() == list(range(stop + 2))
        assert np.flatnonzero(rows["train_loss"].isna()).tolist() == [0, *range(last + 1, stop + 1)]

    def test_a_lost_checkpoint_is_said(self, tmp_path):
        model = new_model()
        qfl.Recorder(tmp_path / "run", model, TASK, **HOW).close()
        with pytest.raises(
            qfl.QflError, match="recorded to step 0, and the loop goes on after step 20: the checkpoint"
        ):
            qfl.Recorder(tmp_path / "run", model, TASK, **HOW, step=20, resume=True)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({}, "already holds a run"),
            ({"resume": True, "model": 1}, "does not have the weights that .* recorded at step 0"),
            ({"resume": True, "n_steps": 31}, "another configuration: train.n_steps is 30 there and 31 here"),
            ({"resume": True, "tokens_per_step": 7}, "tokens_per_step is 100 there and 7 here"),
            ({"resume": True, "step": 30, "model": 1}, "weights that .* recorded at step 30"),
        ],
        ids=["exists", "other weights", "other length", "other tokens", "other step"],
    )
    def test_another_recording_is_refused_and_left_alone(self, recorded, change, says):
        run, _ = recorded
        before = {
            path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and "analyses" not in str(path)
        }
        how = HOW | {"tokens_per_step": 100, "save_optimizer": True} | change
        with pytest.raises(qfl.QflError, match=says):
            qfl.Recorder(run.path, new_model(how.pop("model", 0)), TASK, **how)
        assert {path: path.read_bytes() for path in before} == before

    def test_an_ordinary_run_is_not_recorded_into(self, tmp_path):
        qfl.train(
            TASK, qfl.ModelConfig(d_model=8, n_layers=1, n_heads=2), qfl.TrainConfig(n_steps=2), tmp_path / "run",
            progress=False,
        )  # fmt: skip
        with pytest.raises(qfl.QflError, match=r"another configuration: .*recorded is None there"):
            qfl.Recorder(tmp_path / "run", new_model(), TASK, n_steps=2, resume=True)


def json_free(state):
    """A copy of an optimiser's state."""
    return torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)


def reopened(own):
    model = new_model(seed=5)
    model.load_state_dict(own[0])
    optimizer = new_optimizer(model)
    optimizer.load_state_dict(own[1])
    return model, optimizer


class TestForks:
    @pytest.mark.slow
    def test_a_fork_goes_on_with_the_loops_own_bits(self, tmp_path, recorded):
        """The loop reads `train`'s stream: with its optimiser's state a fork takes the same steps."""
        run, _ = recorded
        at = run.steps[2]
        forked = qfl.fork(
            run, at, tmp_path / "fork", optimizer="adamw", lr=1e-2, schedule="constant", batch_size=BATCH,
            warmup_fraction=0.0, clip_norm=math.inf, progress=False,
        )  # fmt: skip
        for name, tensor in forked.load_checkpoint("last").model.items():
            torch.testing.assert_close(tensor, run.load_checkpoint("last").model[name], rtol=1e-4, atol=1e-5)
        fresh = qfl.fork(
            run, at, tmp_path / "sgd", optimizer="sgd", lr=1e-2, schedule="constant", batch_size=BATCH, n_steps=1,
            progress=False,
        )  # fmt: skip
        assert fresh.finished

    def test_what_nobody_said_has_to_be_given(self, tmp_path, recorded):
        with pytest.raises(qfl.QflError, match=r"of which nothing says optimizer, schedule, batch_size"):
            qfl.fork(recorded[0], 0, tmp_path / "fork", lr=1e-3)
        with pytest.raises(qfl.QflError, match="only that can go on"):
            qfl.resume(recorded[0].path)

    def test_without_the_state_it_is_refused(self, tmp_path):
        model = new_model()
        record(tmp_path / "run", model, new_optimizer(model), range(1, 4), n_steps=3)
        said = {"optimizer": "adamw", "lr": 1e-3, "schedule": "constant", "batch_size": 8}
        with pytest.raises(qfl.QflError, match=r"no optimiser state\. Train or record"):
            qfl.fork(qfl.Run.open(tmp_path / "run"), 2, tmp_path / "fork", **said)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((0,), r"step must be 1, .* got 0. It counts updates done: call step\(1\)"),
        ((1, 3), "must be 2"),
        ((1, 1), "got 1"),
    ],
    ids=["from zero", "gap", "twice"],
)
def test_steps_count_updates_done(tmp_path, steps, says):
    recorder = qfl.Recorder(tmp_path / "run", new_model(), TASK, **HOW)
    with recorder:
        for step in steps[:-1]:
            recorder.step(step)
        with pytest.raises(ValueError, match=says):
            recorder.step(steps[-1])


def test_unknown_tokens_are_nan_and_a_closed_recorder_says_so(tmp_path):
    model = new_model()
    record(tmp_path / "run", model, new_optimizer(model), [1, 2], n_steps=2)
    run = qfl.Run.open(tmp_path / "run")
    assert run.config.recorded == Recorded(None)
    assert run.metrics[["flops", "actual_flops", "tokens_per_s"]].isna().all(axis=None)
    assert math.isnan(run.flops(2))
    recorder = qfl.Recorder(tmp_path / "run", model, TASK, **HOW | {"n_steps": 2}, step=2, resume=True)
    with pytest.raises(qfl.QflError, match="is closed after step 2 of 2"):
        recorder.step(3)


def test_bad_arguments_are_named(tmp_path):
    for change in ({"n_steps": 0}, {"step": 30}, {"step": -1}, {"tokens_per_step": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must"):
            qfl.Recorder(tmp_path / "run", new_model(), TASK, **HOW | change)
    with pytest.raises(qfl.QflError, match=r"got a Linear\. Save state dicts"):
        qfl.Recorder(tmp_path / "run", torch.nn.Linear(2, 2), TASK, **HOW)
    model = new_model()
    with qfl.Recorder(tmp_path / "run", model, TASK, **HOW, save_optimizer=True) as recorder:
        other = torch.optim.Adadelta(model.parameters())
        with pytest.raises(qfl.QflError, match="got Adadelta"):
            recorder.step(1, other)


def tiny_gpt2(**changes) -> GPT2Config:
    sizes = {"vocab_size": TASK.d_vocab, "n_positions": TASK.n_ctx, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2Config(**sizes | {"bos_token_id": 0, "eos_token_id": 0} | changes)


class TestHuggingFace:
    @pytest.mark.slow
    def test_a_trainer_is_recorded_and_goes_on(self, tmp_path):
        """Stopped after 6 of 12 steps and resumed from the Trainer's own checkpoint; the run opens in a bridge."""
        examples = TASK.encode(TASK.sample(generator(0, "test"), 32))
        rows = [
            {"input_ids": tokens, "labels": tokens.masked_fill(~mask, -100)}
            for tokens, mask in zip(examples.tokens, examples.loss_mask, strict=True)
        ]

        class Stop(qfl.RecorderCallback.__mro__[1]):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 6

        def train(callbacks, resume=None):
            torch.manual_seed(0)
            model = GPT2LMHeadModel(tiny_gpt2())
            args = TrainingArguments(
                str(tmp_path / "hf"), max_steps=12, per_device_train_batch_size=8, save_steps=6, learning_rate=1e-2,
                report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
            )  # fmt: skip
            Trainer(model, args, train_dataset=rows, callbacks=callbacks).train(resume_from_checkpoint=resume)
            return model

        def recorder():
            return qfl.RecorderCallback(tmp_path / "run", TASK, n_val=16, n_checkpoints=6, tokens_per_step=8)

        train([recorder(), Stop()])
        assert qfl.Run.open(tmp_path / "run").steps[-1] == 6 or not qfl.Run.open(tmp_path / "run").finished
        model = train([recorder()], resume=True)
        run = qfl.Run.open(tmp_path / "run")
        assert run.finished
        assert run.verify()
        assert run.metrics["step"].tolist() == list(range(13))
        # The Trainer's schedule falls linearly to 0; an update has the rate from before the scheduler moves it.
        assert run.metrics["lr"].dropna().tolist() == pytest.approx([1e-2 * (12 - k) / 12 for k in range(12)])
        tokens = examples.tokens[:4]
        torch.testing.assert_close(run.load_model()(tokens), model.eval()(tokens).logits, rtol=1e-5, atol=1e-5)
        assert run.config.model.kind == "hugging_face"
        assert run.n_parameters == sum(p.numel() for p in model.parameters())
        assert run.flops(2) == 6 * run.n_parameters * 8 * 2
        found = probe(run, "carry", steps="0,12", config=qfl.ProbeConfig(n_train=40, n_test=20), progress=False)
        assert set(found.to_dataframe()["step"]) >= {0, 12}
        with pytest.raises(qfl.QflError, match="of a Hugging Face model, which no fork trains"):
            qfl.fork(run, 12, tmp_path / "fork")

    def test_half_precision_is_kept_number_for_number(self, tmp_path):
        model = GPT2LMHeadModel(tiny_gpt2()).to(torch.bfloat16)
        qfl.Recorder(tmp_path / "run", model, TASK, **HOW).close()
        saved = qfl.Run.open(tmp_path / "run").load_checkpoint(0).model
        for name, tensor in saved.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor.bfloat16(), model.state_dict()[name])

    def test_a_model_that_is_not_its_configuration_is_refused(self, tmp_path):
        model = GPT2LMHeadModel(tiny_gpt2())
        model.transformer.h[0].mlp.act = torch.nn.Tanh()
        model.transformer.h[0].mlp.c_proj.weight.data *= 50
        with pytest.raises(qfl.QflError, match="computes other logits"):
            qfl.Recorder(tmp_path / "run", model, TASK, **HOW)
        with pytest.raises(qfl.QflError, match="token ids, but the model takes 2"):
            qfl.Recorder(tmp_path / "run", GPT2LMHeadModel(tiny_gpt2(vocab_size=2)), TASK, **HOW)
        assert not (tmp_path / "run").exists()
