"""Attribution patching against finite differences, exact patching of linear models, and the axioms of the integral."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.activations.spans import Place
from qfl_interp.interventions.attribution import attribution_error, attribution_patch
from qfl_interp.interventions.pairs import patch_pairs
from qfl_interp.interventions.patching import patch_sweep
from qfl_interp.models.build import build_model
from qfl_interp.sites import SITES

METRICS = ("logit_diff", "loss")


@pytest.fixture(scope="module")
def task():
    return qfl.load_task("addition", length=3)


@pytest.fixture(scope="module")
def pairs(task):
    return patch_pairs(task, task.sample_pairs(np.random.default_rng(0), 3, "carry", 1))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, task):
    config = qfl.ModelConfig(d_model=16, n_layers=2, n_heads=2, style=request.param)
    return build_model(config, task, seed=1).to(torch.float64, print_details=False)


def linear_model(task, *, mlp=True):
    """No norm before the unembedding: all that the last block writes reaches the logits linearly.

    Its heads also feed its MLP, which can be made to write nothing.
    """
    model = build_model(qfl.ModelConfig(d_model=16, n_layers=2, n_heads=2), task).to(torch.float64, print_details=False)
    model.ln_final = torch.nn.Identity()
    if not mlp:
        with torch.no_grad():
            model.blocks[1].mlp.W_out.zero_()
    return model


@torch.no_grad()
def metrics_under(model, pairs, pair, hooks):
    logits = model.run_with_hooks(pairs.corrupted[pair : pair + 1], fwd_hooks=hooks)[0]
    scored = pairs.loss_mask[pair].nonzero().flatten()
    wanted, own = pairs.clean[pair], pairs.corrupted_answer[pair]
    at = next(int(i) for i in scored if wanted[i] != own[i])
    loss = -logits.log_softmax(-1)[scored - 1, wanted[scored]].mean()
    return {"logit_diff": float(logits[at - 1, wanted[at]] - logits[at - 1, own[at]]), "loss": float(loss)}


def slope(model, pairs, pair, component, layer, position, head):
    """Central difference of the metrics along the straight line from the corrupted to the clean activation."""
    name = f"blocks.{layer}.{SITES[component].hook}"
    with torch.no_grad():
        clean, corrupted = (model.run_with_cache(t[pair : pair + 1])[1][name] for t in (pairs.clean, pairs.corrupted))
    index = (0, position) if head is None else (0, position, head)

    def at(share):
        def hook(activation, hook):
            activation[index] = corrupted[index] + share * (clean[index] - corrupted[index])
            return activation

        return metrics_under(model, pairs, pair, [(name, hook)])

    high, low = at(1e-4), at(-1e-4)
    return {metric: (high[metric] - low[metric]) / 2e-4 for metric in METRICS}


@pytest.mark.parametrize(
    "component", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v"]
)
def test_effects_are_the_slopes_towards_the_clean_activation(model, pairs, component):
    headed = component in ("z", "q", "k", "v")
    found = {metric: attribution_patch(model, pairs, component=component, metric=metric) for metric in METRICS}
    for layer, head, position, pair in [(0, 1, 5, 0), (1, 0, 8, 1), (1, 1, 5, 2), (0, 0, 9, 1)]:
        expected = slope(model, pairs, pair, component, layer, position, head if headed else None)
        for metric in METRICS:
            row = found[metric].places.index(Place(layer, head) if headed else Place(layer))
            effect = found[metric].effect[row, position, pair]
            # The truncation error of the difference is of order 1e-8 of the metric.
            np.testing.assert_allclose(effect, expected[metric], rtol=1e-5, atol=1e-8, err_msg=metric)
    assert np.abs(found["loss"].effect).max() > 1e-4


@pytest.mark.parametrize("component", ["resid_post", "mlp_out", "z"])
def test_it_is_exact_where_the_metric_is_linear(task, pairs, component):
    model = linear_model(task, mlp=component != "z")
    found = attribution_patch(model, pairs, component=component, layers=[1])
    exact = patch_sweep(model, pairs, component=component, layers=[1])
    assert found.places == exact.places
    np.testing.assert_allclose(found.normalised(), exact.normalised(), rtol=1e-9, atol=1e-9)
    assert np.ptp(exact.normalised()) > 0.1


@pytest.mark.parametrize("metric", METRICS)
def test_the_integral_is_complete(model, pairs, metric):
    """Over all positions of the first residual stream the integrated effects add up to the whole difference.

    Midpoints leave an error that falls with the square of the number of steps; right ends would leave one that falls
    with the number itself, a single gradient one that does not fall.
    """

    def error(steps):
        found = attribution_patch(model, pairs, layers=[0], metric=metric, integrated=steps)
        gap = getattr(found.clean, metric) - getattr(found.corrupted, metric)
        return np.abs(found.effect.sum(axis=(0, 1)) - gap).max()

    errors = [error(steps) for steps in (8, 16, 32)]
    assert errors[2] < 1e-3
    assert 3.5 < errors[1] / errors[2] < 4.5
    plain = attribution_patch(model, pairs, layers=[0], metric=metric)
    gap = getattr(plain.clean, metric) - getattr(plain.corrupted, metric)
    assert np.abs(plain.effect.sum(axis=(0, 1)) - gap).max() > 10 * errors[0]


def test_chunks_heads_and_frozen_parameters_change_nothing(model, pairs):
    whole = attribution_patch(model, pairs, component="z", integrated=2)
    np.testing.assert_allclose(
        attribution_patch(model, pairs, component="z", integrated=2, chunk=2).effect,
        whole.effect,
        rtol=1e-9,
        atol=1e-12,
    )
    one = attribution_patch(model, pairs, component="z", integrated=2, layers=[1], heads=[1])
    np.testing.assert_allclose(one.effect, whole.effect[3:], rtol=1e-9, atol=1e-12)
    model.requires_grad_(False)
    try:
        with torch.no_grad():
            frozen = attribution_patch(model, pairs, component="z", integrated=2)
    finally:
        model.requires_grad_(True)
    np.testing.assert_array_equal(frozen.effect, whole.effect)
    assert all(p.grad is None for p in model.parameters())


def test_normalised_is_the_mean_effect_over_the_gap(model, pairs):
    found = attribution_patch(model, pairs, metric="loss")
    gap = found.clean.loss.mean() - found.corrupted.loss.mean()
    np.testing.assert_allclose(found.normalised(), found.effect.mean(-1) / gap, rtol=1e-12)


def test_error_by_hand():
    exact = np.array([[0.0, 1.0, 0.5], [-0.2, 0.001, np.nan]])
    approx = np.array([[0.0, 0.8, -0.1], [-0.4, -0.5, 3.0]])
    error = attribution_error(exact, approx)
    x, y = [1.0, 0.5, -0.2, 0.001], [0.8, -0.1, -0.4, -0.5]
    np.testing.assert_allclose(error.pearson_r, np.corrcoef(x, y)[0, 1])
    np.testing.assert_allclose(error.max_abs_error, 0.6)
    np.testing.assert_allclose(error.sign_agreement, 2 / 3)  # 0.001 is too small to ask about
    assert error.n == 4
    assert np.isnan(attribution_error(np.ones((2, 2)), np.eye(2)).pearson_r)


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2, 3\)"):
        attribution_error(np.ones((2, 2)), np.ones((2, 3)))


def test_where_no_patch_changes_anything_there_is_no_error():
    for nothing in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        error = attribution_error(nothing, nothing)
        assert np.isnan([error.pearson_r, error.max_abs_error, error.sign_agreement]).all()
        assert error.n == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "exact"}, "which have a gradient, got 'exact'"),
        ({"integrated": -1}, "integrated must be at least 0"),
        ({"chunk": 0}, "chunk at least 1"),
        ({"component": "mlp"}, "component must be one of"),
    ],
    ids=["metric", "integrated", "chunk", "component"],
)
def test_bad_arguments_are_refused(model, pairs, options, words):
    with pytest.raises(ValueError, match=words):
        attribution_patch(model, pairs, **options)
