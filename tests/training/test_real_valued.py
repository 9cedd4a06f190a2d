"""A real-valued task from training through the lenses: what is learned, kept, found, and refused by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.analyses import ablate, curvature, emergence, interchange, patch, probe, timeline
from qfl_interp.data.examples import held_out
from qfl_interp.interventions.pairs import contrast_logit_diff, patch_pairs
from qfl_interp.models.losses import token_losses_of
from qfl_interp.models.metrics import evaluate, masked_loss, scored_span, targets
from qfl_interp.seeding import generator

# One layer of linear attention without anything else: all it can learn is steps of gradient descent.
MODEL = qfl.ModelConfig(
    d_model=12, n_layers=1, n_heads=1, attn_only=True, norm="none", positions="none", attention="linear", init_scale=0.5
)
TRAIN = qfl.TrainConfig(
    n_steps=300, lr=0.02, batch_size=128, loss="squared_error", weight_decay=0.0, n_checkpoints=6, n_val=512
)
PROBES = qfl.ProbeConfig(n_train=1500, n_test=500)


@pytest.fixture(scope="module")
def task():
    return qfl.load_task("linear_regression", length=6, d=2)


@pytest.fixture(scope="module")
def run(task, tmp_path_factory):
    return qfl.train(task, MODEL, TRAIN, tmp_path_factory.mktemp("real") / "run", progress=False)


def _mean_loss(task, predict) -> float:
    """Half the squared error of a rule on the run's validation examples."""
    examples = held_out(task, "val", 512, seed=0, stream="validation")
    return float(((predict(examples) - task.pairs(examples)[1][:, 1:]) ** 2).mean() / 2)


def test_it_learns_what_one_step_of_gradient_descent_does(run, task):
    """Below the constant by far, and within 15 % of the step, which a single layer with one rate cannot beat."""
    final = run.metrics.iloc[-1]
    step = _mean_loss(task, task.features["gradient_step"].labels)
    constant = _mean_loss(task, lambda examples: 0)
    assert run.metrics["val_loss"].iloc[0] > 0.8 * constant
    assert final["val_loss"] < 1.15 * step < 0.7 * constant
    assert final["val_loss"] == final["val_loss_answer"]
    assert not {"val_exact", "val_pass", "val_exact_answer"} & set(run.metrics)


def test_the_validation_loss_is_half_the_squared_error(run, task):
    examples = held_out(task, "val", 512, seed=0, stream="validation")
    given = run.load_model()(task.encode(examples).tokens)[:, 1:-1, 0].detach().double().numpy()
    expected = ((given - task.pairs(examples)[1][:, 1:]) ** 2).mean() / 2
    assert run.metrics["val_loss"].iloc[-1] == pytest.approx(expected, rel=1e-5)


def test_a_run_opens_as_it_was_and_resumes_bitwise(run, task, tmp_path):
    reopened = qfl.Run.open(run.path)
    assert reopened.config.d_out == 1
    assert reopened.n_parameters == sum(p.numel() for p in reopened.load_model().parameters())
    stopped = []

    class Stop:
        def log(self, step, values):
            if step > 100:
                stopped.append(step)
                raise KeyboardInterrupt

        def close(self):
            pass

    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        qfl.train(task, MODEL, TRAIN, out, progress=False, make_loggers=lambda run: [Stop()], resume_seconds=0.0)
    again = qfl.resume(out, progress=False)
    assert stopped
    for step in run.steps:
        one, other = (r.load_checkpoint(step).model for r in (run, again))
        assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(run.metrics["val_loss"], again.metrics["val_loss"])


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
def test_a_loss_of_ids_is_refused_by_name(task, tmp_path, loss):
    with pytest.raises(qfl.QflError, match=f"loss must be 'squared_error' .* 'linear_regression', got '{loss}'"):
        qfl.train(task, MODEL, qfl.TrainConfig(n_steps=5, loss=loss), tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()
    with pytest.raises(qfl.QflError, match=f"loss '{loss}' needs token ids"):
        masked_loss(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), loss)


def absolute_errors(given, wanted):
    return (given - wanted).abs().sum(dim=1)


def test_a_loss_of_ones_own_sees_scored_targets_alone(task, tmp_path):
    config = qfl.TrainConfig(n_steps=3, loss=absolute_errors, n_val=128)
    run = qfl.train(task, MODEL, config, tmp_path / "own", progress=False)
    examples = held_out(task, "val", 128, seed=0, stream="validation")
    given = run.load_model()(task.encode(examples).tokens)[:, 1:-1, 0].detach().double().numpy()
    expected = np.abs(given - task.pairs(examples)[1][:, 1:]).mean()
    assert run.metrics["val_loss"].iloc[-1] == pytest.approx(expected, rel=1e-5)


def test_targets_that_are_not_scored_have_no_loss_and_no_gradient(task):
    batch = task.encode(task.sample(generator(0, "mask"), 3))
    mask = batch.loss_mask.clone()
    mask[0, 3] = False
    span = scored_span(mask)
    target = targets(batch.wanted, mask, span)
    given = torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = token_losses_of("squared_error")(given.flatten(0, 1), target.flatten(0, 1)).view(3, 5)
    expected = (given[..., 0] - batch.tokens[:, 2:, -1]) ** 2 / 2 * mask[:, 2:]
    torch.testing.assert_close(losses, expected)
    assert float(losses.detach()[0, 1]) == 0
    masked_loss(given, target, "squared_error").backward()
    assert float(given.grad[0, 1]) == 0
    assert bool(given.grad.isfinite().all())
    given, losses = given.detach(), losses.detach()
    scores = evaluate(lambda tokens, at, rows: given[rows], batch._replace(loss_mask=mask))
    assert scores.n_scored.tolist() == [4, 5, 5]
    assert np.isnan(scores.exact).all()
    assert np.isnan(scores.success).all()
    assert scores.means().keys() == {"loss", "loss_answer"}
    assert scores.means()["loss"] == pytest.approx(float(losses.sum()) / 14, rel=1e-6)


def test_a_probe_finds_the_step(run, task):
    """After training the step is linear in the stream, to nearly all of its variance; before, it is not."""
    rows = probe(run, "gradient_step", [0, 300], config=PROBES, n_untrained=0, progress=False).rows
    score = rows.groupby("step")["test_score"].mean()
    assert score[300] > 0.95
    assert score[0] < 0.7


def test_the_model_needs_it(run, task):
    result = ablate(run, "gradient_step", config=PROBES, n_trials=4, progress=False)
    rows = result.rows.set_index("condition")
    assert rows.loc["ablated", "loss_answer"] > 1.5 * rows.loc["intact", "loss_answer"]
    assert rows.loc["random", "difference"] < 0, "the loss, negated, takes exact match's place"
    assert rows.loc["random", "difference"] == pytest.approx(
        rows.loc["random", "loss_answer"] - rows.loc["ablated", "loss_answer"], rel=1e-6
    )
    assert rows.loc["random", "p_value_paired"] < 0.05
    assert np.isnan(rows["exact_answer"]).all()
    assert "half squared error" in result.title
    result.plot()


def test_patching_brings_the_clean_prediction_back(run, task):
    """Behind the block everything is where the label is read; before it, with the tokens of the pairs so far."""
    label = 2
    how = {"components": ["resid_pre", "resid_post"], "n_pairs": 32, "progress": False}
    rows = patch(run, "gradient_step", labels=label, **how).rows
    at = int(task.features["gradient_step"].positions(task.sample(generator(0, "one"), 1))[0, label])
    behind = rows[(rows["component"] == "resid_post")].set_index("position")["logit_diff_normalised"]
    assert behind[at] == pytest.approx(1.0, abs=1e-6)
    assert behind.drop(at).abs().max() == pytest.approx(0.0, abs=1e-6)
    before = rows[rows["component"] == "resid_pre"].set_index("position")["logit_diff_normalised"]
    assert before.sum() == pytest.approx(1.0, abs=0.1), "linear attention: what the pairs do adds up"
    assert before[1:at].min() > 0.1
    assert before[0] == pytest.approx(0.0, abs=1e-6), "before the first pair both read the same"
    assert np.isnan(rows["exact_normalised"]).all()
    usual = patch(run, "gradient_step", labels=label, n_pairs=4, progress=False).rows
    assert set(usual["component"]) == {"resid_pre", "attn_out"}, "by default what a model without an MLP has"


def test_other_lenses_run_or_say_why_not(run, task, tmp_path):
    found = curvature(run, "last", progress=False).rows
    assert math.isfinite(float(found["sharpness"].iloc[0]))
    assert float(found["loss"].iloc[0]) == pytest.approx(run.metrics["val_loss"].iloc[-1], rel=0.3)
    emergence(run, "gradient_step", config=PROBES, progress=False)
    figure = timeline(run, "gradient_step", config=PROBES, progress=False)
    titles = {axis.title.text for axis in figure.select_yaxes()}
    assert "half squared error" in titles
    assert not {"nats per token", "fraction"} & titles
    with pytest.raises(qfl.QflError, match="interchange decides between two token ids"):
        interchange(run, "gradient_step", progress=False)


def test_the_difference_of_a_pair_is_linear_in_the_prediction(task):
    """`(y - y') (f - (y + y') / 2)` at the label, by hand; only its own target is scored."""
    drawn = task.sample_pairs(generator(1, "linear"), 8, "gradient_step", 2)
    pairs = patch_pairs(task, drawn, np.full(8, 3))
    assert pairs.contrast.tolist() == [3] * 8
    assert pairs.loss_mask.nonzero()[:, 1].tolist() == [4] * 8
    (y, other), f = (torch.from_numpy(task.pairs(e)[1][:, 3]) for e in drawn), torch.arange(8.0).double()
    found = contrast_logit_diff(f[:, None, None], pairs, torch.arange(8))
    torch.testing.assert_close(found, (y - other) * (f - (y + other) / 2), rtol=1e-9, atol=1e-9)
