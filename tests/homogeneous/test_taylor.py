"""Taylor coefficients, rules and identities of homogeneous networks, against autograd, by hand and brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from qfl_interp.curvature.soft_rank import _of_spectrum, gradient_weighted
from qfl_interp.homogeneous import depthwise, taylor
from qfl_interp.homogeneous.config import RULES
from qfl_interp.homogeneous.depthwise import (
    DepthwiseRule,
    alignments,
    capped,
    layer_stats,
    preconditioner,
    relative_updates,
    scales,
)
from qfl_interp.homogeneous.losses import require_targets
from qfl_interp.homogeneous.minibatch import minibatch_of, run_minibatch
from qfl_interp.homogeneous.sharpness import MLPHessian, top_sharpness
from qfl_interp.homogeneous.taylor import taylor_coefficients
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.mlp import HomogeneousMLP

ACTIVATIONS = ("abs", "relu", (0.6, 0.8), (-0.28, 0.96))
RULE = {name: DepthwiseRule(**fields) for name, fields in RULES.items()}


def case(seed, depth=3, r=1, loss="squared_error", activation="abs", width=4, n=6, d_in=5, d_out=3):
    """A random network and minibatch in float64."""
    model = HomogeneousMLP(MLPConfig(d_in, d_out, width, depth, r, activation), seed=seed).double()
    g = torch.Generator().manual_seed(seed + 1000)
    x = torch.randn(n, d_in, generator=g, dtype=torch.float64)
    y = (
        torch.randint(d_out, (n,), generator=g)
        if loss == "cross_entropy"
        else torch.randn(n, d_out, generator=g, dtype=torch.float64)
    )
    return model, x, y


def loss_of(model, x, y, loss):
    """The loss as torch has it, as a function of parameters by name."""

    def at(theta):
        outputs = functional_call(model, theta, (x,))
        if loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(outputs, y)
        return (outputs - y).square().sum(dim=1).mean() / 2

    return at


def by_autograd(model, x, y, loss, xi):
    """c0, c1 and c2 by a Hessian-vector product, and the gradients."""
    weights = list(model.parameters())
    value = loss_of(model, x, y, loss)(dict(model.named_parameters()))
    gradients = torch.autograd.grad(value, weights, create_graph=True)
    step = [-scale * g.detach() for g, scale in zip(gradients, xi, strict=True)]
    bent = torch.autograd.grad(gradients, weights, step)
    c1 = sum(float((g.detach() * d).sum()) for g, d in zip(gradients, step, strict=True))
    c2 = sum(float((d * h).sum()) for d, h in zip(step, bent, strict=True)) / 2
    return float(value.detach()), c1, c2, [g.detach() for g in gradients]


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("depth", [2, 3, *(pytest.param(deep, marks=pytest.mark.slow) for deep in (5, 9))])
def test_coefficients_equal_autograd(loss, depth):
    """72 of the 576 cases in each test: activation x width pattern x scales x two seeds."""
    random = np.random.default_rng(depth)
    count = 0
    for activation, r, kind, seed in itertools.product(ACTIVATIONS, (0, 1, 2), ("none", "s=2", "random"), (0, 1)):
        # Both ways through the products: small batches go through Gram matrices, large ones through gradients.
        width, n = ((3, 9), (6, 3))[seed] if r < 2 else ((2, 9), (3, 3))[seed]
        model, x, y = case(seed, depth, r, loss, activation, width, n)
        batch = run_minibatch(model, x, y, loss)
        xi = tuple(random.lognormal(size=depth)) if kind == "random" else scales(RULE[kind], batch)
        found = taylor_coefficients(batch, xi)
        c0, c1, c2, gradients = by_autograd(model, x, y, loss, xi)
        for mine, theirs in zip(batch.gradients(), gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))
        assert found.c0 == pytest.approx(c0, rel=1e-9)
        assert found.c1 == pytest.approx(c1, rel=1e-9)
        scale = abs(found.gauss_newton) + abs(found.feature_motion)
        assert abs(found.c2 - c2) <= 1e-9 * scale, (activation, r, kind, seed)
        count += 1
    assert count == 72


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_both_routes_agree(loss, monkeypatch):
    """Through Gram matrices, and through gradients."""
    model, x, y = case(3, 4, 1, loss, "relu")
    batch = run_minibatch(model, x, y, loss)
    found = []
    for gram in (False, True):
        for module in (taylor, depthwise):
            monkeypatch.setattr(module, "gram_is_cheaper", lambda *_, gram=gram: gram)
        found.append(taylor_coefficients(batch, (0.3, 1.7, 0.9, 2.1)))
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_gauss_newton_is_the_change_of_the_outputs_and_feature_motion_the_rest():
    """The parts alone: the outputs' change along the step by autograd, through the Hessian of the loss by outputs."""
    model, x, y = case(4, 3, 0, "cross_entropy")
    batch = run_minibatch(model, x, y, "cross_entropy")
    xi = (0.5, 1.5, 0.8)
    found = taylor_coefficients(batch, xi)
    theta = dict(model.named_parameters())
    step = {name: -k * g for name, k, g in zip(theta, xi, batch.gradients(), strict=True)}
    _, df = torch.func.jvp(lambda at: functional_call(model, at, (x,)), (theta,), (step,))
    df, p = df.detach(), model(x).detach().softmax(1)
    bent = p * df * df, (p * df).sum(1).square()
    assert found.gauss_newton == pytest.approx(float(bent[0].sum() - bent[1].sum()) / 12, rel=1e-12)
    _, _, c2, _ = by_autograd(model, x, y, "cross_entropy", xi)
    assert found.feature_motion == pytest.approx(c2 - found.gauss_newton, rel=1e-9)


FIXED = {
    "none": ((1.0, 1.0), 1.25, -19.5, 92.25, -1.75),
    "s=2": ((1 / 14, 1 / 13), 1.25, -41 / 28, 0.5201741939379302, -0.009615384615384614),
    "s=1": ((0.0451753951, 0.0486504255), 1.25, -0.9260956004778826, 0.20806967757517209, -0.003846153846153845),
}


@pytest.mark.parametrize("name", FIXED)
def test_the_fixed_vector(name):
    """Two layers, |.|, multipliers 1: worked out by hand."""
    tensor = lambda rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    weights = (tensor([[1, 0], [0, 2]]), tensor([[1, -1]]))
    x, y = tensor([[1, 1], [2, -1]]), tensor([[1], [1]])
    batch = minibatch_of(weights, (1.0, 1.0), (0.0, 1.0), x, y, "squared_error")
    assert batch.outputs.tolist() == [[-1], [0]]
    torch.testing.assert_close(batch.residual_norm * batch.unit_backward[1], tensor([[-1], [-0.5]]), rtol=1e-15, atol=0)
    b1 = tensor([[-1, 1], [-0.5, -0.5]])
    torch.testing.assert_close(batch.residual_norm * batch.unit_backward[0], b1, rtol=1e-15, atol=1e-16)
    assert batch.features[1].tolist() == [[1, 2], [2, 2]]
    for mine, by_hand in zip(batch.gradients(), ([[-2, -0.5], [0, 1.5]], [[-2, -3]]), strict=True):
        torch.testing.assert_close(mine, tensor(by_hand), rtol=1e-14, atol=1e-15)
    xi, *expected = FIXED[name]
    used = scales(RULE[name], batch)
    np.testing.assert_allclose(used, xi, rtol=1e-12 if name != "s=1" else 2e-9)  # ten digits were printed
    np.testing.assert_allclose(taylor_coefficients(batch, used), expected, rtol=1e-12)
    a1 = batch.features[1] @ batch.features[1].T
    c2 = batch.unit_backward[1] @ batch.unit_backward[1].T
    assert _of_spectrum(torch.linalg.eigvalsh(a1)).stable_rank == pytest.approx(1.0248600751, rel=1e-9)
    assert _of_spectrum(torch.linalg.eigvalsh(a1)).participation_ratio == pytest.approx(1.0496894410, rel=1e-9)
    assert gradient_weighted(a1, c2) == pytest.approx(1.0304878049, rel=1e-9)


# Identities


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_eulers_identity(loss):
    """<G_k, W_k> = <B_k, Z_k> is one number for all layers, and for each sample."""
    model, x, y = case(5, 5, 1, loss, "relu")
    batch = run_minibatch(model, x, y, loss)
    per_sample = [(b * z).sum(1) for b, z in zip(batch.unit_backward, batch.preactivations, strict=True)]
    for one in per_sample:
        torch.testing.assert_close(one, per_sample[-1], rtol=1e-10, atol=1e-13)
    tau = [float((g * w).sum()) for g, w in zip(batch.gradients(), batch.weights, strict=True)]
    np.testing.assert_allclose(tau, batch.residual_norm * float(per_sample[-1].sum()), rtol=1e-10)


def rescaled(model, factors):
    with torch.no_grad():
        for weight, factor in zip(model.weights, factors, strict=True):
            weight *= factor
    return model


@pytest.mark.parametrize("rule", ["s=0", "s=1", "s=2"])
def test_rescaling_changes_nothing_under_the_rule(rule):
    """The step commutes with it; c0, c1, c2, u, rho and lambda_P stay; plain gradient descent is another matter."""
    factors = (3.0, 0.2, 1 / 0.6)
    model, x, y = case(6, 3, 1, "cross_entropy")
    before = run_minibatch(model, x, y, "cross_entropy")
    xi = scales(RULE[rule], before)
    sharpness = top_sharpness(model, x, y, "cross_entropy", xi, tol=1e-10)
    plain = top_sharpness(model, x, y, "cross_entropy", tol=1e-10)
    # A minibatch shares the model's weights: its numbers are taken before they change.
    expected = taylor_coefficients(before, xi), relative_updates(before, xi, 0.3), alignments(before)
    plain_c1 = taylor_coefficients(before, (1.0, 1.0, 1.0)).c1
    rescaled(model, factors)
    after = run_minibatch(model, x, y, "cross_entropy")
    other = scales(RULE[rule], after)
    for a, b, g, h, c in zip(xi, other, before.gradients(), after.gradients(), factors, strict=True):
        assert b == pytest.approx(c**2 * a, rel=1e-10)
        torch.testing.assert_close(b * h, c * a * g, rtol=1e-9, atol=1e-14)
    found = taylor_coefficients(after, other), relative_updates(after, other, 0.3), alignments(after)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10)
    again = top_sharpness(model, x, y, "cross_entropy", other, tol=1e-10)
    assert again.value == pytest.approx(sharpness.value, rel=1e-7)
    assert abs(top_sharpness(model, x, y, "cross_entropy", tol=1e-10).value / plain.value - 1) > 0.1
    assert abs(taylor_coefficients(after, (1.0, 1.0, 1.0)).c1 / plain_c1 - 1) > 0.1


def test_the_multipliers_do_not_matter_under_the_rule():
    """alpha -> alpha / c with W -> c W: the same function, the same coefficients, the same relative steps."""
    model, x, y = case(7, 3, 1, "squared_error")
    batch = run_minibatch(model, x, y, "squared_error")
    c = (2.0, 0.5, 7.0)
    weights = tuple(w * f for w, f in zip(batch.weights, c, strict=True))
    other = minibatch_of(
        weights, tuple(a / f for a, f in zip(batch.alphas, c, strict=True)), (0.0, 1.0), x, y, "squared_error"
    )
    torch.testing.assert_close(other.outputs, batch.outputs, rtol=1e-12, atol=1e-14)
    mine, theirs = (taylor_coefficients(b, scales(RULE["s=1"], b)) for b in (batch, other))
    np.testing.assert_allclose(mine, theirs, rtol=1e-10)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_the_slope_is_the_mean_alignment(loss, s):
    model, x, y = case(8, 5, 2, loss, "relu", width=3)
    batch = run_minibatch(model, x, y, loss)
    rho = alignments(batch)
    for value, x_k, b in zip(rho, batch.features, batch.unit_backward, strict=True):
        a, c = x_k @ x_k.T, b @ b.T
        assert value == pytest.approx(float((a * c).sum() / (a.trace() * c.trace())), rel=1e-12)
        assert 0 <= value <= 1
    c1 = taylor_coefficients(batch, scales(RULE[f"s={s}"], batch)).c1
    rms = float((batch.outputs.detach() - y).square().sum(1).mean().sqrt()) if loss == "squared_error" else batch.rms
    assert batch.rms == pytest.approx(rms, rel=1e-12)
    assert c1 == pytest.approx(-(rms**s) / 5 * sum(rho), rel=1e-12)


@pytest.mark.parametrize("s", [1, 2])
def test_relative_steps_are_bounded(s):
    """|eta Delta_k|_F / |W_k|_op <= (eta / l) sqrt(rho_k) rms^s / |tau|, over many networks."""
    for seed in range(20):
        model, x, y = case(seed, 4, 1, "squared_error", ACTIVATIONS[seed % 4])
        batch = run_minibatch(model, x, 10 * y, "squared_error")
        tau = abs(float((batch.gradients()[0] * batch.weights[0]).sum()))
        for xi, g, w, rho in zip(
            scales(RULE[f"s={s}"], batch), batch.gradients(), batch.weights, alignments(batch), strict=True
        ):
            step = xi * float(g.norm()) / float(torch.linalg.matrix_norm(w, 2))
            assert step <= math.sqrt(rho) * batch.rms**s / tau / 4 * (1 + 1e-12)


def test_last_layer_sharpness_times_its_soft_rank_is_one():
    """Squared error, the last layer alone, forward norm cancelled: xi alpha^2 = n / tr K."""
    model, x, y = case(9, 3, 1, "squared_error")
    batch = run_minibatch(model, x, y, "squared_error")
    k = batch.features[-1] @ batch.features[-1].T
    xi = 6 / float(k.trace()) / batch.alphas[-1] ** 2
    gradient = batch.gradients()[-1].flatten()
    c1 = xi * float(gradient.square().sum())
    hessian = MLPHessian(model, x, y, "squared_error")
    step = torch.cat([torch.zeros(len(hessian) - len(gradient), dtype=torch.float64), -xi * gradient])
    alone = float(step @ hessian.product(step)) / 2
    last = batch.unit_backward[-1]
    assert 2 * alone / c1 * gradient_weighted(k, last @ last.T) == pytest.approx(1, rel=1e-12)


def test_the_last_diagonal_block_of_the_preconditioned_hessian():
    """With s=2 its top eigenvalue is 1 / (l stable rank)."""
    model, x, y = case(10, 3, 1, "squared_error")
    batch = run_minibatch(model, x, y, "squared_error")
    xi = scales(RULE["s=2"], batch)
    hessian = MLPHessian(model, x, y, "squared_error")
    size = batch.weights[-1].numel()
    unit = torch.eye(len(hessian), dtype=torch.float64)[-size:]
    block = torch.stack([hessian.product(u)[-size:] for u in unit])
    top = float(torch.linalg.eigvalsh(xi[-1] * block)[-1])
    k = batch.features[-1] @ batch.features[-1].T
    assert top * 3 * _of_spectrum(torch.linalg.eigvalsh(k)).stable_rank == pytest.approx(1, rel=1e-10)


# Rules, updates and sharpness


def test_built_in_rules_by_hand():
    stats = depthwise.LayerStats(4, 3.0, (0.5, 2.0), (2.0, 4.0), (1.0, 0.25))
    assert RULE["none"](stats) == (1.0, 1.0)
    assert RULE["norm_power=1"](stats) == (1.0, 0.5)
    assert RULE["s=0"](stats) == (0.5, 0.125)
    assert RULE["s=1"](stats) == (1.5, 0.375)
    assert RULE["s=2"](stats) == (4.5, 1.125)


def test_layer_stats_are_true_norms():
    model, x, y = case(11, 3, 0, "squared_error")
    batch = run_minibatch(model, x, y, "squared_error")
    stats = layer_stats(batch)
    at = loss_of(model, x, y, "squared_error")
    assert stats.n == 6
    np.testing.assert_allclose(stats.feature_norms, [float(f.norm()) for f in batch.features], rtol=1e-12)
    # |B_1| from autograd: dL/dZ_1 = dL/dX of the first layer's own output shift.
    shift = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    model.blocks[0].mlp.hook_pre.add_hook(lambda z, hook: z + shift)
    value = at(dict(model.named_parameters()))
    model.reset_hooks()
    assert stats.backward_norms[0] == pytest.approx(float(torch.autograd.grad(value, shift)[0].norm()), rel=1e-10)
    norms = [float(g.norm()) for g in batch.gradients()]
    assert all(g <= a * f * b * (1 + 1e-12) for g, a, f, b in zip(norms, *stats[2:], strict=True))


def test_bad_rules_are_refused():
    model, x, y = case(12)
    batch = run_minibatch(model, x, y, "squared_error")
    for rule in (
        lambda _: (1.0, 1.0),
        lambda _: (1.0, 0.0, 1.0),
        lambda _: (1.0, math.nan, 1.0),
        lambda _: (1, -1, 1),
        lambda _: None,
    ):
        with pytest.raises(ValueError, match="must give 3 positive finite numbers"):
            scales(rule, batch)
    assert scales(lambda stats: [stats.n] * 3, batch) == (6.0, 6.0, 6.0)
    with pytest.raises(ValueError, match="A layer is dead"):
        scales(RULE["s=1"], replace(batch, features=(torch.zeros(6, 5).double(), *batch.features[1:])))
    with pytest.raises(ValueError, match="xi must have 3 entries, one a layer, got 2"):
        taylor_coefficients(batch, (1.0, 1.0))


def test_relative_updates_are_those_of_the_layer_alone():
    """Move one layer, run its preactivations again; then the cap, which leaves the last layer."""
    model, x, y = case(13, 3, 1, "cross_entropy")
    batch = run_minibatch(model, x, y, "cross_entropy")
    xi, lr = scales(RULE["s=1"], batch), 0.7
    found = relative_updates(batch, xi, lr)
    for k, (w, g) in enumerate(zip(batch.weights, batch.gradients(), strict=True)):
        moved = batch.alphas[k] * batch.features[k] @ (w - lr * xi[k] * g).T
        assert found[k] == pytest.approx(
            float((moved - batch.preactivations[k]).norm() / batch.preactivations[k].norm())
        )
    limit = sorted(found[:2])[0] * 1.01
    held = capped(batch, xi, lr, limit)
    after = relative_updates(batch, held, lr)
    assert max(after[:2]) == pytest.approx(limit)
    assert min(after[:2]) == pytest.approx(min(found[:2]))
    assert held[2] == xi[2]


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_sharpness_is_that_of_the_full_hessian(loss):
    """Against the Hessian that autograd forms whole; the largest eigenvalue, not the largest in size."""
    model, x, y = case(14, 3, 0, loss, width=3)
    batch = run_minibatch(model, x, y, loss)
    xi = scales(RULE["s=1"], batch)
    names = [name for name, _ in model.named_parameters()]
    shapes = [w.shape for w in model.weights]

    def at(flat):
        parts = flat.split([s.numel() for s in shapes])
        return loss_of(model, x, y, loss)({n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)})

    flat = torch.cat([w.detach().flatten() for w in model.weights])
    whole = torch.func.hessian(at)(flat)
    operator = MLPHessian(model, x, y, loss)
    torch.testing.assert_close(operator.gradient(), torch.func.grad(at)(flat), rtol=1e-10, atol=1e-13)
    v = torch.randn(len(flat), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(operator.product(v), whole @ v, rtol=1e-9, atol=1e-11)
    found = top_sharpness(model, x, y, loss, tol=1e-8)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-8)
    assert (found.converged, found.n) == (True, 6)
    root = torch.cat(
        [torch.full((s.numel(),), math.sqrt(k), dtype=torch.float64) for s, k in zip(shapes, xi, strict=True)]
    )
    assert top_sharpness(model, x, y, loss, xi, tol=1e-8).value == pytest.approx(
        float(torch.linalg.eigvalsh(root[:, None] * whole * root)[-1]), rel=1e-8
    )
    torch.testing.assert_close(preconditioner(xi, [s.numel() for s in shapes]).sqrt(), root, rtol=1e-12, atol=0)
    c1, c2 = taylor_coefficients(batch, xi).c1, taylor_coefficients(batch, xi).c2
    assert 2 * c2 / abs(c1) <= top_sharpness(model, x, y, loss, xi, tol=1e-8).value * (1 + 1e-8)
    assert taylor_coefficients(batch, xi).sharpness == 2 * c2 / abs(c1)


def test_small_residuals_keep_their_step_in_float32():
    """Residuals of norm 1e-30, whose squares float32 cannot hold: the scale-free rule's step is that of larger ones."""
    model, x, y = case(15, 3, 1, "squared_error")
    batch = run_minibatch(model.float(), x.float(), y.float(), "squared_error")
    found = []
    for norm in (batch.residual_norm, 1e-30):
        scaled = replace(batch, residual_norm=norm)
        xi = scales(RULE["s=1"], scaled)
        found.append([k * norm * float(g.norm()) for k, g in zip(xi, scaled.unit_gradients, strict=True)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_tiny_cross_entropy_residuals_go_back_through_the_network():
    """Logits so far apart that the residuals are near 1e-30: backward vectors in float32 are those of float64."""
    model, x, _ = case(15, 3, 1, "cross_entropy")
    with torch.no_grad():
        model.weights[-1].mul_(60 / float(model(x).std()))
    y = model(x).argmax(dim=1)
    weights = [tuple(w.detach().to(dtype) for w in model.weights) for dtype in (torch.float32, torch.float64)]
    small, exact = (minibatch_of(w, model.cfg.multipliers, (0.0, 1.0), x.to(w[0]), y, "cross_entropy") for w in weights)
    assert exact.residual_norm < 1e-3
    torch.testing.assert_close(small.unit_backward[0].double(), exact.unit_backward[0], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_a_minibatch_is_refused():
    model, x, y = case(16)
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        run_minibatch(model, x[:1], y[:1], "squared_error")
    classes = torch.zeros(len(x), dtype=torch.long)
    for targets, loss, message in (
        (y[:, :1], "squared_error", r"a vector of 3 numbers for each of 6 examples, got shape \(6, 1\)"),
        (y[:-1], "squared_error", r"got shape \(5, 3\)"),
        (classes[:-1], "cross_entropy", r"a class for each of 6 examples, got shape \(5,\)"),
        (classes + 3, "cross_entropy", "classes from 0 to 2, .* got 3 to 3"),
        (classes - 1, "cross_entropy", "classes from 0 to 2, .* got -1 to -1"),
    ):
        with pytest.raises(ValueError, match=message):
            require_targets(loss, model(x), targets)
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        run_minibatch(model, x, classes + 3, "cross_entropy")
    with pytest.raises((ValueError, TypeError), match="huber"):
        run_minibatch(model, x, y, "huber")


def test_without_a_slope_there_is_no_sharpness():
    assert math.isnan(taylor.Coefficients(0.0, 0.0, 1.0, 0.0).sharpness)
