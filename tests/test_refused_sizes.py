"""What needs more memory than is free is refused before it is taken: what needs how much, and what to lower."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.activations.spans import site_span
from qfl_interp.analyses import curvature
from qfl_interp.analyses.models_at import models_at
from qfl_interp.config import TrainConfig
from qfl_interp.curvature import SgldConfig, estimate_learning_coefficient
from qfl_interp.data.examples import ExampleStream, held_out, held_out_pairs
from qfl_interp.errors import QflError
from qfl_interp.homogeneous.depthwise import DepthwiseRule
from qfl_interp.interventions.scoring import intact, score_ablation
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.training.footprint import bytes_per_member, require_room
from qfl_interp.training.train import plan_run, train

BYTES = 17  # of a token: its raw integer, its id, its mask


@pytest.fixture
def free(monkeypatch):
    """Say how many bytes are free to a module."""

    def set_free(module: str, n_bytes: int) -> None:
        monkeypatch.setattr(importlib.import_module(module), "available_bytes", lambda device="cpu": n_bytes)

    return set_free


def test_a_batch_has_room_or_is_refused(addition, free):
    needed = 100 * addition.n_ctx * BYTES
    free("qfl_interp.data.examples", needed)
    assert len(ExampleStream(addition, 0, 100).examples(0)) == 100
    with pytest.raises(QflError, match=r"101 examples of a batch of addition need .* smaller batch_size"):
        ExampleStream(addition, 0, 101)


def test_pairs_have_room_or_are_refused(addition, free):
    free("qfl_interp.data.examples", 2 * 8 * addition.n_ctx * BYTES)
    held_out_pairs(addition, "test", 8, "carry", 2, seed=0, stream="x")
    with pytest.raises(QflError, match=r"examples of 9 pairs of addition need .* Take fewer pairs"):
        held_out_pairs(addition, "test", 9, "carry", 2, seed=0, stream="x")
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        held_out_pairs(addition, "test", 0, "carry", 2, seed=0, stream="x")


def test_examples_of_many_problems_are_refused_and_those_of_few_are_all_there_are(free):
    many, few = qfl.load_task("addition", length=16), qfl.load_task("addition", length=3)
    free("qfl_interp.data.examples", 2**31)
    with pytest.raises(QflError, match=r"test examples of addition need .* Take fewer"):
        held_out(many, "test", 10**12, seed=0, stream="x")
    assert len(held_out(few, "test", 10**12, seed=0, stream="x")) < 64
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        held_out(few, "test", 0, seed=0, stream="x")


def test_training_has_room_or_makes_no_folder(addition, model_config, free, tmp_path):
    config = TrainConfig(n_steps=2, batch_size=4, n_val=8)
    run = plan_run(addition, model_config, config)
    needed = bytes_per_member(model_config, batch_size=4, n_ctx=run.n_ctx, d_vocab=run.d_vocab)
    free("qfl_interp.training.footprint", needed)
    require_room(run, "cpu")
    free("qfl_interp.training.footprint", needed - 1)
    with pytest.raises(QflError, match=r"updates on batch_size 4 of d_model 16 .* smaller batch_size or model"):
        train(addition, model_config, config, tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_before_the_first_checkpoint_leaves_no_folder(addition, model_config, tmp_path):
    def refuse(run):
        raise QflError("no mirror")

    config = TrainConfig(n_steps=2, batch_size=4, n_val=8)
    (tmp_path / "mine").mkdir()
    for name in ("run", "mine"):
        with pytest.raises(QflError, match="no mirror"):
            train(addition, model_config, config, tmp_path / name, progress=False, make_loggers=refuse)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    train(addition, model_config, config, tmp_path / "run", progress=False)
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(QflError, match="already holds a run"):
        train(addition, model_config, config, tmp_path / "run", progress=False)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_vectors_of_curvature_have_room_or_are_refused(tiny_run, free):
    free("qfl_interp.analyses.lenses.curvature.lens", 8 * 30 * 1000)
    with pytest.raises(QflError, match=r"vectors of 6,[0-9]* parameters in each of 1 processes need .* fewer jobs"):
        curvature(tiny_run, "last", progress=False)


def test_losses_of_chains_have_room_or_are_refused(free):
    start = torch.zeros(2, dtype=torch.float64)
    config = SgldConfig(n_chains=2, n_draws=6, n_burn_in=4)

    def mean_loss(w, rows):
        return (w**2).sum()

    free("qfl_interp.curvature.learning_coefficient", 8 * 2 * 10 + 40 * 2)
    estimate_learning_coefficient(mean_loss, start, 10, config)
    free("qfl_interp.curvature.learning_coefficient", 8 * 2 * 10 + 40 * 2 - 1)
    with pytest.raises(QflError, match=r"losses of 2 chains of 10 steps need .* fewer n_chains or n_draws"):
        estimate_learning_coefficient(mean_loss, start, 10, config)


def test_activations_have_room_or_are_refused(tiny_run, free):
    model = tiny_run.load_model()
    tokens = tiny_run.task.encode(held_out(tiny_run.task, "test", 10, seed=0, stream="x")).tokens
    free("qfl_interp.activations.spans", 2 * 3 * 10 * 16 * 4)
    site_span(model, tokens, 0, 2)
    free("qfl_interp.activations.spans", 2 * 3 * 10 * 16 * 4 - 1)
    with pytest.raises(QflError, match=r"'resid_post' of 2 layers at 3 positions of 10 examples need .* fewer ex"):
        site_span(model, tokens, 0, 2)


def test_scores_of_trials_have_room_or_are_refused(tiny_run, free):
    batch = tiny_run.task.encode(held_out(tiny_run.task, "test", 10, seed=0, stream="x"))
    how = {"controls": {"same": lambda rng: intact}, "rng": np.random.default_rng(0)}
    free("qfl_interp.interventions.scoring", 2 * 10 * 34)
    score_ablation(tiny_run.load_model(), batch, intact, n_trials=2, **how)
    with pytest.raises(QflError, match=r"scores of 3 trials of 1 controls on 10 examples need .* fewer trials"):
        score_ablation(tiny_run.load_model(), batch, intact, n_trials=3, **how)


def test_untrained_models_have_room_or_are_refused(tiny_run, free):
    free("qfl_interp.analyses.models_at", 3 * 2**10)
    assert len(models_at(tiny_run, "last", 3)) == 4
    with pytest.raises(QflError, match=r"results of 4 untrained models need .* Take fewer"):
        models_at(tiny_run, "last", 4)
    with pytest.raises(ValueError, match="n_untrained must be at least 0, got -1"):
        models_at(tiny_run, "last", -1)


def test_training_a_homogeneous_network_has_room_or_makes_no_folder(free, tmp_path):
    task, model = qfl.load_task("digits"), MLPConfig(d_in=64, d_out=10, width=4, depth=2)
    config = TrainConfig(n_steps=1, batch_size=4, draw="batch", optimizer="depthwise", n_val=8)
    run = plan_run(task, model, config)
    needed = bytes_per_member(model, batch_size=4, n_ctx=run.n_ctx, d_vocab=run.d_vocab)
    free("qfl_interp.training.footprint", needed)
    require_room(run, "cpu")
    free("qfl_interp.training.footprint", needed - 1)
    with pytest.raises(QflError, match=r"updates on batch_size 4 of d_model 4 .* smaller batch_size or model"):
        train(task, model, config, tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm_power": 3}, "norm_power must be 0, 1 or 2, got 3"),
        ({"norm_power": -1}, "norm_power must be 0, 1 or 2, got -1"),
        ({"residual_power": 3}, "residual_power must be 0, 1 or 2, got 3"),
    ],
)
def test_a_depthwise_rule_checks_its_powers(fields, message):
    assert DepthwiseRule(norm_power=1, residual_power=0).norm_power == 1
    with pytest.raises(ValueError, match=message):
        DepthwiseRule(**fields)
