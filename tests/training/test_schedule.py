"""Compute accounting and schedules against the golden vectors."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import golden

import qfl_interp as qfl
from qfl_interp.model_sizes import nominal_flops
from qfl_interp.models.build import build_hooked
from qfl_interp.runs.flops import actual_flops_per_step, flops_per_step, steps_for_budget
from qfl_interp.runs.steps import checkpoint_steps, evaluation_steps
from qfl_interp.training.schedule import learning_rate

_GOLDEN = golden("schedules")


@pytest.mark.parametrize("case", _GOLDEN["budget_cases"], ids=lambda c: f"{c['dim']}x{c['n_layers']}-{c['budget']:.0e}")
def test_steps_for_budget(case):
    config = qfl.ModelConfig(d_model=case["dim"], n_layers=case["n_layers"])
    steps = steps_for_budget(config, budget_flops=case["budget"], batch_size=case["batch"], n_ctx=case["ctx"])
    assert steps == case["steps"]
    hundred = 100 * flops_per_step(config, batch_size=case["batch"], n_ctx=case["ctx"])
    assert hundred == pytest.approx(case["compute_of_100_steps"], rel=1e-9)


@pytest.mark.parametrize("case", _GOLDEN["lr_cases"], ids=lambda c: str(c["total_steps"]))
def test_cosine_learning_rate(case):
    n = case["total_steps"]
    config = qfl.TrainConfig(n_steps=n, lr=case["lr"])
    rates = [learning_rate(config, step=k, n_steps=n) for k in range(n)]
    np.testing.assert_allclose(rates, case["lr_at_step"], rtol=1e-7)


def test_wsd_learning_rate_by_hand():
    config = qfl.TrainConfig(n_steps=10, lr=2.0, schedule="wsd", warmup_fraction=0.2, decay_fraction=0.4)
    rates = [learning_rate(config, step=k, n_steps=10) for k in range(10)]
    assert rates == pytest.approx([0.02, 1.01, 2, 2, 2, 2, 2, 1.55, 1.1, 0.65])


def test_learning_rate_outside_the_run():
    config = qfl.TrainConfig(n_steps=10)
    with pytest.raises(ValueError, match=r"step must lie in \[0, 10\), got 10"):
        learning_rate(config, step=10, n_steps=10)


def test_flops_formula_by_hand():
    assert nominal_flops(d_model=64, n_layers=4, n_ctx=52) == 6 * (12 * 4 * 64**2 + 4 * 52 * 64)


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_actual_flops_count_every_matrix(style):
    """Six FLOPs a weight and token for all matrices but the embedding, and the two attention products."""
    config = qfl.ModelConfig(d_model=16, n_layers=3, style=style)
    model = build_hooked(config, d_vocab=5, n_ctx=20)
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if n.rsplit(".", 1)[-1].startswith("W_") and "embed.W_E" not in n
    ) - (20 * 16 if style == "gpt2" else 0)  # learned positions are looked up
    attention = 3 * 2 * 20 * 16
    assert actual_flops_per_step(config, batch_size=7, n_ctx=20, d_vocab=5) == 6 * (matrices + attention) * 7 * 20


@pytest.mark.parametrize(("n_steps", "n"), [(1, 40), (2, 2), (10, 40), (716, 40), (100_000, 1000)])
def test_checkpoint_steps(n_steps, n):
    steps = checkpoint_steps(n_steps, n)
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == n_steps
    assert len(steps) <= n + 1
    if n_steps > 50 * n:
        gaps = np.diff(steps)
        assert gaps.max() <= n_steps / (n // 2 - 1) + 1, "evenly spaced part"
        assert {1, 2, 3} <= set(steps), "log-spaced part"


def test_checkpoints_every_so_many_steps():
    assert checkpoint_steps(10, 40, 4) == [0, 4, 8, 10]
    assert checkpoint_steps(8, 2, 4) == [0, 4, 8], "the number of checkpoints does not matter"
    assert checkpoint_steps(3, 40, 10**12) == [0, 3]


def test_evaluation_steps():
    assert [*evaluation_steps(716, 0.005)] == [*range(0, 716, 3)]
    assert [*evaluation_steps(10, 0.005)] == [*range(10)], "at least every step"
    assert len(evaluation_steps(2**53, 0.0)) == 2**53, "without a list of them"


@pytest.mark.parametrize("n_steps", [1, 2, 110, 111, 112, 716, 50_000, 10**7])
def test_evaluation_steps_by_default(n_steps):
    """Never many, every one of the first steps, and then of one ratio."""
    due = [*evaluation_steps(n_steps, None), n_steps]
    assert due == sorted(set(due))
    assert due[:2] == [0, 1]
    assert min(n_steps, 95) < len(due) <= 111
    late = np.array([step for step in due if step >= 200], dtype=float)
    if len(late) > 2:
        ratios = late[1:] / late[:-1]
        assert ratios.max() / ratios.min() < 1.01
