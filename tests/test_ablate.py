"""Activations where features are read, and projecting probe planes out against random controls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qfl_interp.ablate import Planes, plane_interventions, random_planes, score_ablation
from qfl_interp.activations import resid_span
from qfl_interp.config import ModelConfig
from qfl_interp.generate import generate_greedy
from qfl_interp.hooks import Site, capture, interventions_on
from qfl_interp.metrics import evaluate
from qfl_interp.model import build_hooked
from qfl_interp.task import NO_POSITION, Batch

D_MODEL, N_LAYERS, N_CTX, EQUALS = 48, 3, 11, 4
N_EXAMPLES = 20


@pytest.fixture(scope="module")
def model():
    """Two tokens: what is scored is one logit difference."""
    return build_hooked(ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS), d_vocab=2, n_ctx=N_CTX, seed=4)


@pytest.fixture(scope="module")
def batch(model):
    """Prompts that the model itself has continued, so that every answer is right."""
    prompts = torch.randint(0, 2, (N_EXAMPLES, EQUALS + 1), generator=torch.Generator().manual_seed(0))
    tokens = generate_greedy(model, prompts, n_new=N_CTX - EQUALS - 1)
    return Batch(tokens, (torch.arange(N_CTX) >= EQUALS).repeat(N_EXAMPLES, 1))


def cached(model, tokens):
    """[layer, example, pos, d_model]"""
    _, cache = model.run_with_cache(tokens)
    return torch.stack([cache["resid_post", layer] for layer in range(N_LAYERS)]).detach()


# The residual stream at a feature's positions


@pytest.mark.parametrize("chunk", [7, 500])
def test_resid_span_equals_the_cache(model, batch, chunk):
    found = resid_span(model, batch.tokens, 3, 8, chunk=chunk)
    want = cached(model, batch.tokens)[:, :, 3:9].transpose(1, 2)
    assert found.first == 3
    # The fast path sums in another order, in float32.
    torch.testing.assert_close(found.resid, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("span", [(-1, 3), (4, 3), (0, N_CTX)], ids=str)
def test_a_span_outside_the_sequence_is_refused(model, batch, span):
    with pytest.raises(ValueError, match=rf"0 <= first <= last < {N_CTX}, got"):
        resid_span(model, batch.tokens, *span)


POSITIONS = {
    "consecutive": np.tile([4, 5, 6], (N_EXAMPLES, 1)),
    "apart": np.tile([8, 3, 5], (N_EXAMPLES, 1)),
    "by-example": np.random.default_rng(0).integers(3, 9, (N_EXAMPLES, 3)),
    "missing": np.where(
        np.random.default_rng(1).random((N_EXAMPLES, 3)) < 0.4,
        NO_POSITION,
        np.random.default_rng(2).integers(3, 9, (N_EXAMPLES, 3)),
    ),
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_read_against_a_loop(model, batch, positions):
    found = resid_span(model, batch.tokens, 3, 8).read(positions)
    want = cached(model, batch.tokens)
    assert found.present.tolist() == (positions != NO_POSITION).T.tolist()
    assert found.x.shape == (N_LAYERS, 3, N_EXAMPLES, D_MODEL)
    for example in range(N_EXAMPLES):
        for label in range(3):
            place = positions[example, label]
            expected = want[:, example, place] if place != NO_POSITION else torch.zeros(N_LAYERS, D_MODEL)
            torch.testing.assert_close(found.x[:, label, example], expected, rtol=1e-5, atol=1e-5)


def test_labels_read_at_one_place_share_its_activations(model, batch):
    span = resid_span(model, batch.tokens, 3, 8)
    x, kept = span.read(np.full((N_EXAMPLES, 4), 6))
    assert kept.all()
    assert x.untyped_storage().data_ptr() == span.resid.untyped_storage().data_ptr()
    torch.testing.assert_close(x, span.resid[:, [3, 3, 3, 3]], rtol=0, atol=0)


def test_read_copies_nothing_where_all_examples_read_the_same_stretch(model, batch):
    span = resid_span(model, batch.tokens, 3, 8)
    storage = span.resid.untyped_storage().data_ptr()
    assert span.read(POSITIONS["consecutive"]).x.untyped_storage().data_ptr() == storage
    assert span.read(POSITIONS["by-example"]).x.untyped_storage().data_ptr() != storage


@pytest.mark.parametrize("place", [2, 9])
def test_read_outside_the_span_is_refused(model, batch, place):
    positions = POSITIONS["consecutive"].copy()
    positions[3, 1] = place
    low, high = min(place, 4), max(place, 6)
    with pytest.raises(ValueError, match=rf"the span \[3, 8\], got \[{low}, {high}\]. Capture"):
        resid_span(model, batch.tokens, 3, 8).read(positions)


# Planes


def draw_planes(layers, positions, k=1, seed=0):
    rng = np.random.default_rng(seed)
    shape = (len(layers), k, D_MODEL)
    return Planes(
        torch.from_numpy(rng.standard_normal(shape)).float(),
        torch.from_numpy(rng.standard_normal(shape[:2])).float(),
        np.array(layers),
        torch.as_tensor(positions),
        torch.ones(shape[:2], dtype=torch.bool),
    )


def test_random_planes_pass_through_the_mean_in_random_directions():
    planes = draw_planes([0, 2], [[5, 6]], k=3)
    means = torch.randn(2, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, again, other = (random_planes(planes, means, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.directions.shape == planes.directions.shape
    torch.testing.assert_close(first.directions.norm(dim=-1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-12, atol=0)
    through = (first.directions * means[:, None]).sum(-1) + first.offsets
    torch.testing.assert_close(through, torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert first.offsets.abs().min() > 1e-3
    assert first.layers is planes.layers
    assert first.positions is planes.positions
    assert torch.equal(first.directions, again.directions)
    assert not torch.equal(first.directions, other.directions)
    # Directions of the sphere: independent ones are nearly orthogonal, |cos| < 4.5 standard errors.
    flat = torch.cat(
        [random_planes(planes, means, np.random.default_rng(s)).directions.flatten(0, 1) for s in range(20)]
    )
    cosines = (flat @ flat.mT).triu(1)
    assert cosines.abs().max() < 5.5 / math.sqrt(D_MODEL)
    assert flat.mean(0).abs().max() < 5 / math.sqrt(len(flat) * D_MODEL)


def test_one_intervention_a_layer_with_its_labels_only(model, batch):
    """Afterwards every label's activation lies on its own plane, at its own layer and position."""
    positions = torch.tensor([[5, 6, 7, 8], [6, 5, NO_POSITION, 7], [4, 8, 9, 5]])
    planes = draw_planes([2, 0, 2, 1], positions)
    changes = plane_interventions(planes, slice(1, 3))
    assert [c.site for c in changes] == [Site(0), Site(1), Site(2)]
    tokens = batch.tokens[1:3]
    with interventions_on(model, changes):
        after = capture(model, tokens, [Site(layer) for layer in range(N_LAYERS)])
    for label, layer in enumerate(planes.layers):
        for example, place in enumerate(positions[1:3, label].tolist()):
            if place == NO_POSITION:
                continue
            x = after[Site(int(layer))][example, place]
            distance = x @ planes.directions[label, 0] + planes.offsets[label, 0]
            assert abs(distance) < 1e-4, (label, example)
    # Nothing else of the first changed layer moved.
    before = capture(model, tokens, [Site(0)])[Site(0)]
    changed = (after[Site(0)] != before).any(dim=2)
    assert changed.nonzero().tolist() == [[0, 5], [1, 8]]


def test_labels_at_one_place_and_outputs_without_a_probe(model, batch):
    """Two labels read at one position are projected out jointly; rows that do not count are left alone."""
    positions = torch.tensor([[5, 6, 5], [7, 4, 7], [4, 8, 4]])
    drawn = draw_planes([1, 1, 1], positions, k=3)
    kept = torch.tensor([[True, True, False], [False, False, True], [False, True, True]])
    planes = drawn._replace(kept=kept, directions=drawn.directions * kept[..., None], offsets=drawn.offsets * kept)
    changes = plane_interventions(planes, slice(0, 3))
    assert [c.site for c in changes] == [Site(1)] * 2, "four directions at one place, one at the other"
    before = capture(model, batch.tokens[:3], [Site(1)])[Site(1)]
    with interventions_on(model, changes):
        after = capture(model, batch.tokens[:3], [Site(1)])[Site(1)]
    for example in range(3):
        for label, place in enumerate(positions[example].tolist()):
            x = after[example, place]
            distance = planes.directions[label] @ x + planes.offsets[label]
            assert distance[kept[label]].abs().max() < 1e-4
        joint = torch.cat([planes.directions[label][kept[label]] for label in (0, 2)])
        change = (after - before)[example, positions[example, 0]]
        coefficients = torch.linalg.lstsq(joint.mT, change[:, None]).solution
        torch.testing.assert_close(joint.mT @ coefficients, change[:, None], rtol=1e-4, atol=1e-4)


def test_labels_of_one_layer_may_have_different_numbers_of_directions(model, batch):
    positions = torch.tensor([[4, 6, 8]])
    drawn = draw_planes([2, 2, 2], positions.expand(2, -1), k=3)
    kept = torch.tensor([[True, False, False], [True, True, True], [False, False, True]])
    planes = drawn._replace(kept=kept)
    with interventions_on(model, plane_interventions(planes, slice(0, 2))):
        after = capture(model, batch.tokens[:2], [Site(2)])[Site(2)]
    before = capture(model, batch.tokens[:2], [Site(2)])[Site(2)]
    for label, place in enumerate(positions[0].tolist()):
        x = after[:, place]
        distance = (x @ planes.directions[label].mT + planes.offsets[label]).abs()
        assert distance[:, kept[label]].max() < 1e-4
        if not kept[label].all():
            assert distance[:, ~kept[label]].min() > 1e-3, "a direction that does not count is left alone"
        rank = torch.linalg.matrix_rank((after - before)[:, place], rtol=1e-4)
        assert int(rank) <= int(kept[label].sum())


# Scores


def means_of(model, batch, planes):
    """Mean activation at each label's layer and position."""
    resid = cached(model, batch.tokens)
    rows = torch.arange(N_EXAMPLES)
    return torch.stack(
        [resid[layer][rows, planes.positions[:, label]].mean(0) for label, layer in enumerate(planes.layers)]
    )


def planted(model, examples=None):
    """The direction that decides between both tokens, at every position that predicts an answer token.

    The final norm only rescales: the logit difference is `(gain * (U_1 - U_0)) . x / rms(x)`.
    """
    used = model.ln_final.w.detach() * (model.unembed.W_U[:, 1] - model.unembed.W_U[:, 0]).detach()
    places = torch.arange(EQUALS, N_CTX - 1)
    positions = places.repeat(N_EXAMPLES, 1)
    if examples is not None:
        positions[~examples] = NO_POSITION
    n = len(places)
    return Planes(
        3 * used.repeat(n, 1, 1), torch.zeros(n, 1), np.full(n, N_LAYERS - 1), positions, torch.ones(n, 1).bool()
    )


def test_a_direction_the_model_uses_shows_and_random_ones_do_not(model, batch):
    planes = planted(model)
    found = score_ablation(
        model, batch, planes, means_of(model, batch, planes), n_trials=6, rng=np.random.default_rng(0)
    )
    assert found.intact.exact_answer.all()
    # Both tokens are equally likely wherever the direction is gone.
    np.testing.assert_allclose(found.ablated.loss_answer, math.log(2), rtol=1e-5)
    assert found.intact.loss_answer.mean() < 0.6 * math.log(2)
    for trial in found.random:
        assert abs(trial.loss_answer.mean() - found.intact.loss_answer.mean()) < 0.05
        assert trial.exact_answer.mean() > 0.7
        assert not np.array_equal(trial.loss, found.intact.loss)


@pytest.mark.parametrize("chunk", [3, 256])
def test_positions_go_with_their_examples(model, batch, chunk):
    """Only the odd examples have the label; chunks must not shift the rows."""
    odd = torch.arange(N_EXAMPLES) % 2 == 1
    planes = planted(model, odd)
    means = means_of(model, batch, planted(model))
    found = score_ablation(model, batch, planes, means, n_trials=1, rng=np.random.default_rng(0), chunk=chunk)
    np.testing.assert_allclose(found.ablated.loss_answer[odd], math.log(2), rtol=1e-5)
    for scores in (found.ablated, found.random[0]):
        # The hooked pass and the fused one sum in another order, in float32.
        np.testing.assert_allclose(scores.loss[~odd], found.intact.loss[~odd], rtol=1e-5, atol=1e-6)


def test_strength_zero_is_the_intact_model(model, batch):
    planes = draw_planes([0, 2], [[5, 6]] * N_EXAMPLES)
    means = means_of(model, batch, planes)
    found = score_ablation(model, batch, planes, means, n_trials=1, rng=np.random.default_rng(0), epsilon=0.0)
    plain = evaluate(lambda tokens, positions, _: model(tokens)[:, positions], batch)
    for scores in (found.ablated, found.random[0]):
        for value, hooked, intact in zip(scores, plain, found.intact, strict=True):
            np.testing.assert_array_equal(value, hooked)  # the very same computation
            np.testing.assert_allclose(value, intact, rtol=1e-5, atol=1e-6)  # another order of sums
    full = score_ablation(model, batch, planes, means, n_trials=1, rng=np.random.default_rng(0))
    assert np.abs(full.ablated.loss - plain.loss).max() > 1e-3


def test_trials_follow_the_generator(model, batch):
    planes = draw_planes([1], [[5]] * N_EXAMPLES)
    means = means_of(model, batch, planes)
    calls = []

    def losses(seed):
        rng = np.random.default_rng(seed)
        found = score_ablation(model, batch, planes, means, n_trials=3, rng=rng, on_trial=lambda: calls.append(seed))
        return np.stack([trial.loss for trial in found.random])

    first, again, other = losses(0), losses(0), losses(1)
    assert calls == [0] * 6 + [1] * 3
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).all(axis=1).any()
    assert not np.array_equal(first[0], first[1])
