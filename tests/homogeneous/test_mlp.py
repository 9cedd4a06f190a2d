"""The homogeneous network: its function, its hook points under the library's own lenses, data sets, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.activations.spans import site_span
from qfl_interp.errors import QflError
from qfl_interp.homogeneous.config import RULES
from qfl_interp.homogeneous.minibatch import run_minibatch
from qfl_interp.interventions.pairs import patch_pairs
from qfl_interp.interventions.patching import patch_sweep
from qfl_interp.interventions.replace import mean as mean_ablation
from qfl_interp.interventions.replace import zero
from qfl_interp.interventions.scoring import score_interventions, score_units
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.model_kinds import model_config_from_dict
from qfl_interp.models.hooks import Intervention
from qfl_interp.models.mlp import HomogeneousMLP, SampleReader, sample_tokens
from qfl_interp.probes import fit_logistic

CONFIG = MLPConfig(d_in=3, d_out=4, width=5, depth=3, width_exponent=1)


@pytest.fixture(scope="module")
def samples():
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def mlp():
    return HomogeneousMLP(CONFIG, seed=1).double()


@pytest.fixture(scope="module")
def labels(mlp, samples):
    """The network's own answers for the first half, others for the second."""
    right = mlp(samples).argmax(1)
    return torch.where(torch.arange(12) < 6, right, (right + 1) % 4)


# The function


@pytest.mark.parametrize(
    ("activation", "slopes"), [("abs", (0, 1)), ("relu", (0.5**0.5, 0.5**0.5)), ((0.6, -0.8), None)]
)
def test_the_function_in_numpy(samples, activation, slopes):
    config = MLPConfig(3, 4, 5, 3, 1, activation, output_scale=0.5)
    model = HomogeneousMLP(config, seed=2).double()
    w = [p.detach().numpy() for p in model.parameters()]
    assert [m.shape for m in w] == [(5, 3), (10, 5), (4, 10)]
    a, b = slopes or activation
    x = samples.numpy()
    for weight, fan_in in zip(w[:2], (3, 5), strict=True):
        z = x @ weight.T / math.sqrt(fan_in)
        x = a * z + b * np.abs(z)
    expected = 0.5 * x @ w[2].T / math.sqrt(10)
    np.testing.assert_allclose(model(samples).detach(), expected, rtol=1e-12)
    batch = run_minibatch(model, samples, torch.zeros(12, 4, dtype=torch.float64), "squared_error")
    np.testing.assert_allclose(batch.outputs, expected, rtol=1e-12)
    assert batch.value == pytest.approx((expected**2).sum() / 24)
    if activation == "relu":
        relu = torch.relu(samples @ model.weights[0].T / math.sqrt(3)) * math.sqrt(2)
        torch.testing.assert_close(batch.features[1], relu.detach(), rtol=1e-12, atol=1e-14)


def test_widths_multipliers_and_size():
    config = MLPConfig(64, 10, 20, 5, 2)
    assert config.widths == (64, 20, 80, 180, 320, 10)
    assert config.multipliers == tuple(1 / math.sqrt(m) for m in (64, 20, 80, 180, 320))
    assert config.size == 64 * 20 + 20 * 80 + 80 * 180 + 180 * 320 + 3200
    assert MLPConfig(4, 2, 10, 4, 0.5).widths == (4, 10, 14, 17, 2)
    assert model_config_from_dict(config.to_dict()) == config
    assert model_config_from_dict(MLPConfig(4, 2, 3, activation=(0.6, 0.8)).to_dict()).slopes == (0.6, 0.8)


def test_weights_are_standard_normal_and_follow_the_seed():
    one, same, other = (HomogeneousMLP(MLPConfig(50, 10, 100, 3, 0), seed=s) for s in (0, 0, 1))
    for a, b, c in zip(one.weights, same.weights, other.weights, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    flat = torch.cat([w.detach().flatten() for w in one.weights])  # 16,000 numbers: four standard errors
    assert abs(float(flat.mean())) < 4 / math.sqrt(len(flat))
    assert abs(float(flat.var()) - 1) < 4 * math.sqrt(2 / len(flat))


def test_edge_of_chaos(mlp):
    """E phi(g)^2 = E phi'(g)^2 = 1: the mean squared entry stays that of the input on average."""
    x = torch.randn(200, 50, generator=torch.Generator().manual_seed(3))
    for activation in ("abs", "relu"):
        batch = run_minibatch(
            HomogeneousMLP(MLPConfig(50, 10, 2000, 4, 0, activation)), x, torch.zeros(200, 10), "squared_error"
        )
        for features in batch.features[1:]:
            assert float(features.square().mean()) == pytest.approx(1, abs=0.15)
    assert all(float(d.square().mean()) == pytest.approx(1, abs=0.05) for d in batch.slopes)


# The library's lenses


def test_capture_reads_every_layer_of_vectors(mlp, samples):
    """`run_with_cache` and `interventions_on` take the vectors themselves."""
    batch = run_minibatch(mlp, samples, torch.zeros(12, 4, dtype=torch.float64), "squared_error")
    _, cache = mlp.run_with_cache(samples)
    for layer in (0, 1):
        for name, expected in (
            ("hook_resid_pre", batch.features[layer]),
            ("mlp.hook_pre", batch.preactivations[layer]),
            ("mlp.hook_post", batch.features[layer + 1]),
            ("hook_resid_post", batch.features[layer + 1]),
        ):
            torch.testing.assert_close(cache[f"blocks.{layer}.{name}"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(cache["hook_logits"], batch.outputs, rtol=1e-12, atol=0)
    halve = Intervention(qfl.Site(1, "resid_pre"), lambda x: x / 2)
    with qfl.interventions_on(mlp, [halve]):
        torch.testing.assert_close(mlp(samples), batch.outputs / 2, rtol=1e-12, atol=0)  # homogeneous
    torch.testing.assert_close(mlp(samples), batch.outputs, rtol=1e-12, atol=0)


def test_capture_through_token_ids(mlp, samples, labels):
    reader = SampleReader(mlp, samples)
    tokens = sample_tokens(labels).tokens
    found = qfl.read_activations(reader, tokens, [qfl.Site(0), qfl.Site(1, "mlp_pre", (1,))])
    batch = run_minibatch(mlp, samples, torch.zeros(12, 4, dtype=torch.float64), "squared_error")
    assert found[qfl.Site(0)].shape == (12, 2, 5)
    for position in range(2):
        torch.testing.assert_close(found[qfl.Site(0)][:, position], batch.features[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[qfl.Site(1, "mlp_pre", (1,))][:, 0], batch.preactivations[1], rtol=1e-12, atol=0)
    assert dict(reader.named_parameters()).keys() == dict(mlp.named_parameters()).keys()
    torch.testing.assert_close(mlp(samples), batch.outputs, rtol=1e-12, atol=0)  # still reads vectors


def test_probes_find_a_planted_sign(mlp):
    """The sign of an input is linear at the input; |.| of preactivations hides it from the first layer on."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    reader = SampleReader(mlp, x)
    tokens = sample_tokens(torch.zeros(400, dtype=torch.long)).tokens
    sign = (x[:, 0] > 0).long()
    scores = []
    for layer, name in ((0, "resid_pre"), (0, "resid_post")):
        read = site_span(reader, tokens, 1, 1, name=name, layers=[layer]).values
        probes = fit_logistic(read[:, :, :300], sign[None, None, :300], c=100.0, max_iter=100)
        scores.append(float(probes.accuracy(read[:, :, 300:], sign[None, None, 300:]).flatten()[0]))
    assert scores[0] > 0.97
    assert scores[1] < 0.65


def test_ablation_scores_are_those_of_classification(mlp, samples, labels):
    reader, batch = SampleReader(mlp, samples), sample_tokens(labels)
    logits = mlp(samples).detach()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    intact = score_interventions(reader, batch)
    np.testing.assert_allclose(intact.loss, expected, rtol=1e-10)
    np.testing.assert_allclose(intact.loss_answer, expected, rtol=1e-10)
    assert intact.exact.tolist() == [True] * 6 + [False] * 6
    # Everything zero: every class equally likely.
    dead = score_interventions(reader, batch, lambda _: [zero(qfl.Site(0))])
    np.testing.assert_allclose(dead.loss, math.log(4), rtol=1e-12)
    # One neuron at its mean, by hand.
    w = [p.detach() for p in mlp.weights]
    x = (samples @ w[0].T / math.sqrt(3)).abs()
    average = x.mean(0)
    x[:, 2] = average[2]
    by_hand = (x @ w[1].T / math.sqrt(5)).abs() @ w[2].T / math.sqrt(10)
    site = qfl.Site(0, "mlp_post")
    found = score_interventions(reader, batch, lambda _: [mean_ablation(site, average.expand(2, -1), units=[2])])
    np.testing.assert_allclose(
        found.loss, torch.nn.functional.cross_entropy(by_hand, labels, reduction="none"), rtol=1e-10
    )
    units = score_units(reader, batch, name="mlp_post", layers=[0])
    assert units.loss.shape == (1, 5, 12)
    np.testing.assert_allclose(units.loss[0, 2], found.loss, rtol=1e-10)


def test_project_out_at_the_input_removes_a_direction(mlp, samples, labels):
    direction = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    reader, batch = SampleReader(mlp, samples), sample_tokens(labels)
    found = score_interventions(reader, batch, lambda _: [qfl.project_out(qfl.Site(0, "resid_pre"), direction)])
    without = samples.clone()
    without[:, 0] = 0
    expected = torch.nn.functional.cross_entropy(mlp(without).detach(), labels, reduction="none")
    np.testing.assert_allclose(found.loss, expected, rtol=1e-10)


def test_patching_a_layer_whole_restores_the_clean_run(mlp, samples, labels):
    """A `FixedTask` of samples gives pairs; every position carries the sample, so all are patched at once."""
    reader, batch = SampleReader(mlp, samples), sample_tokens(labels)
    task = qfl.FixedTask(
        "samples", batch.tokens.numpy(), batch.loss_mask.numpy(),
        {"class": qfl.FixedFeature("categorical", labels[:, None].numpy(), np.zeros((12, 1), int))}, prompt_end=False,
    )  # fmt: skip
    differing = next(j for j in range(1, 12) if labels[j] != labels[0])
    pairs = patch_pairs(task, qfl.Pairs(np.array([[0]]), np.array([[differing]])))
    sweep = patch_sweep(reader, pairs, component="resid_post", positions="all")
    np.testing.assert_allclose(sweep.normalised(), [[1.0], [1.0]], rtol=1e-10)
    logits = mlp(samples).detach()
    gap = logits[:, labels[0]] - logits[:, labels[differing]]
    assert float(sweep.clean.logit_diff[0]) == pytest.approx(float(gap[0]))
    assert float(sweep.corrupted.logit_diff[0]) == pytest.approx(float(gap[differing]))
    one = patch_sweep(reader, pairs, component="resid_pre", layers=[1], positions=[0])
    np.testing.assert_allclose(one.normalised(), [[1.0]], atol=1e-12)


def test_a_reader_refuses_samples_of_another_width(mlp):
    with pytest.raises(ValueError, match="must have d_in = 3 columns, got 4"):
        SampleReader(mlp, torch.zeros(2, 4))


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "tanh"}, "positively homogeneous functions alone"),
        ({"activation": (1.0, 0.0, 0.0)}, r"\(1.0, 0.0, 0.0\)"),
        ({"activation": (float("nan"), 1.0)}, r"activation must be a finite number, got \(nan, 1.0\)"),
        ({"width_exponent": 40}, r"must stay below e\^40, got 'e\^.*Take a smaller width"),
        ({"activation": (0.6, 0.6)}, r"must have a\^2 \+ b\^2 = 1, got \(0.6, 0.6\)"),
        ({"depth": 1}, "depth must be at least 2"),
        ({"width": 0}, "width must be at least 1"),
        ({"output_scale": 0.0}, "output_scale must be positive"),
        ({"width_exponent": -1.0}, "width_exponent must be finite and not negative"),
        ({"width_exponent": 1e6}, "must stay below"),
    ],
)
def test_bad_shapes_are_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MLPConfig(**{"d_in": 3, "d_out": 2, "width": 4} | changes)


def test_widths_beyond_memory_are_refused_before_anything_is_allocated():
    with pytest.raises(QflError, match=r"[\d,]+ weights of widths \(64, 1000000, .* need about .* GiB"):
        HomogeneousMLP(MLPConfig(64, 10, 1_000_000, 4, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_multiple": 0}, "edge_multiple .* must be .* got 0"),
        ({"n_sharpness": 1}, "n_sharpness .* must be .* got 1"),
        ({"norm_power": 3}, "norm_power .* must be .* got 3"),
        ({"residual_power": -1}, "residual_power .* must be .* got -1"),
        ({"max_u": 0.0}, "max_u .* must be .* got 0"),
        ({"max_v": 0.1}, "max_v.*max_u"),
    ],
)
def test_bad_settings_of_the_rule_are_refused(changes, message):
    with pytest.raises((ValueError, QflError), match=message):
        qfl.TrainConfig(n_steps=1, optimizer="depthwise", optimizer_options=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay must be 0 with 'depthwise', got 0.1"),
        ({"clip_norm": 1.0}, "clip_norm must be left out with 'depthwise', got 1.0"),
        ({"loss": "hinge"}, "loss must be cross_entropy or squared_error with 'depthwise', got 'hinge'"),
    ],
)
def test_what_the_rule_does_not_know_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        qfl.TrainConfig(n_steps=1, optimizer="depthwise", **changes)


def test_rules_name_settings_of_the_optimiser():
    for settings in RULES.values():
        made = qfl.TrainConfig(n_steps=1, optimizer="depthwise", optimizer_options=settings)
        assert made.optimizer_options.items() >= settings.items()


def test_only_a_homogeneous_network_has_the_formulas():
    with pytest.raises((ValueError, TypeError), match="HomogeneousMLP"):
        run_minibatch(torch.nn.Linear(3, 2), torch.ones(2, 3), torch.ones(2, 2), "squared_error")


def test_inputs_that_do_not_fit_are_refused(mlp, samples):
    targets = torch.zeros(12, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="inputs must have d_in = 3 columns, got 2"):
        run_minibatch(mlp, samples[:, :2], targets, "squared_error")
    hurt = samples.clone()
    hurt[5, 1] = torch.nan
    with pytest.raises(ValueError, match="inputs must be finite, got a NaN or an infinity in row 5"):
        run_minibatch(mlp, hurt, targets, "squared_error")
