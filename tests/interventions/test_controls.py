"""Controls of an ablation: random directions, other features' directions, random vectors of the same length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qfl_interp.config import ModelConfig
from qfl_interp.data.task import NO_POSITION
from qfl_interp.errors import QflError
from qfl_interp.interventions.controls import (
    feature_planes,
    moves_made,
    plane_controls,
    plane_means,
    random_planes,
    same_norm,
)
from qfl_interp.interventions.planes import Planes, plane_ablation
from qfl_interp.interventions.replace import zero
from qfl_interp.models.build import build_hooked
from qfl_interp.models.hooks import Intervention, Site, interventions_on, read_activations

D_MODEL, N_LAYERS, N_CTX, N_EXAMPLES = 24, 3, 9, 15


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS, n_heads=4)
    return build_hooked(config, d_vocab=6, n_ctx=N_CTX, seed=4)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 6, (N_EXAMPLES, N_CTX), generator=torch.Generator().manual_seed(0))


def draw_planes(layers, positions, k=1, seed=0):
    """Planes through drawn directions; positions are [row] for every example or [example, row, token]."""
    rng = np.random.default_rng(seed)
    shape = (len(layers), k, D_MODEL)
    positions = torch.as_tensor(positions)
    if positions.ndim == 1:
        positions = positions.repeat(N_EXAMPLES, 1)[..., None]
    return Planes(
        torch.from_numpy(rng.standard_normal(shape)).float(),
        torch.from_numpy(rng.standard_normal(shape[:2])).float(),
        np.array(layers),
        positions,
        torch.ones(shape[:2], dtype=torch.bool),
    )


def drawn_means(n):
    return torch.randn(n, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def drawn_stream():
    return torch.randn(N_EXAMPLES, N_CTX, D_MODEL, generator=torch.Generator().manual_seed(1))


# Mean activations


@pytest.mark.parametrize("chunk", [4, 256])
@pytest.mark.parametrize("name", ["resid_post", "mlp_out"])
def test_plane_means_against_a_loop(model, tokens, chunk, name):
    """Several layers, missing labels, a pooled row of many tokens, and a row no example has."""
    rng = np.random.default_rng(0)
    positions = rng.integers(0, N_CTX, (N_EXAMPLES, 4, 3))
    positions[rng.random(positions.shape) < 0.4] = NO_POSITION
    positions[:, 3] = NO_POSITION
    planes = draw_planes([2, 0, 2, 1], positions)._replace(name=name)
    found = plane_means(model, tokens, planes, chunk=chunk)
    _, cache = model.run_with_cache(tokens)
    for row, layer in enumerate((2, 0, 2)):
        seen = [
            cache[name, layer][example, place].detach().double()
            for example in range(N_EXAMPLES)
            for place in positions[example, row]
            if place != NO_POSITION
        ]
        torch.testing.assert_close(found[row], torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)
    assert not found[3].any()


def test_planes_of_a_block_the_model_lacks_are_refused(model, tokens):
    planes = draw_planes([7], [5])
    for name in ("resid_post", "mlp_out"):
        with pytest.raises(QflError, match="7"):
            plane_means(model, tokens, planes._replace(name=name))
        with pytest.raises(QflError, match="7"):
            moves_made(model, tokens, plane_ablation(planes._replace(name=name)))


# Random directions


def test_random_planes_pass_through_the_mean_in_random_directions():
    planes, means = draw_planes([0, 2], [5, 6], k=3), drawn_means(2)
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
    assert cosines.abs().max() < 4.5 / math.sqrt(D_MODEL)
    assert flat.mean(0).abs().max() < 5 / math.sqrt(len(flat) * D_MODEL)


# Another feature's directions


def test_feature_planes_take_others_directions_at_the_same_places():
    """Rows 0 and 2 are projected out jointly and must not get one direction twice; row 1 lies elsewhere."""
    planes = draw_planes([1, 1, 1], [5, 6, 5], k=2)
    planes = planes._replace(kept=torch.tensor([[True, True], [True, False], [False, True]]))
    means = drawn_means(3)
    pool = {1: 3 * torch.eye(D_MODEL)[:4], 0: torch.full((9, D_MODEL), torch.nan)}
    used = set()
    for seed in range(30):
        found = feature_planes(planes, pool, means, np.random.default_rng(seed))
        drawn = found.directions[planes.kept]
        assert ((drawn == 1).sum(-1) == 1).all()
        assert (drawn.sum(-1) == 1).all(), "of unit norm, from this layer's pool"
        which = drawn.argmax(-1).tolist()
        used.update(which)
        assert len({which[0], which[1], which[3]}) == 3, "two of row 0 and one of row 2"
        torch.testing.assert_close(found.offsets[0], -means[0, which[:2]], rtol=1e-12, atol=0)
        plane_ablation(found)
    assert used == {0, 1, 2, 3}
    assert torch.equal(found.positions, planes.positions)
    again, other = (feature_planes(planes, pool, means, np.random.default_rng(seed)) for seed in (29, 0))
    assert torch.equal(again.directions, found.directions)
    assert not torch.equal(other.directions, found.directions)


@pytest.mark.parametrize("pool", [{}, {1: torch.eye(D_MODEL)[:2]}], ids=["none", "too-few"])
def test_a_pool_that_is_too_small_is_refused(pool):
    planes = draw_planes([1], [5], k=3)
    with pytest.raises(ValueError, match=rf"at least 3 directions of layer 1.*got {len(pool.get(1, []))}\. Add"):
        feature_planes(planes, pool, drawn_means(1), np.random.default_rng(0))


# Random vectors of the same length


def deltas(model, tokens, made):
    """How far each intervention moves each token when all are installed: [intervention][example, pos, ...]."""
    changes = []

    def watched(intervention):
        def fn(x):
            after = intervention.fn(x)
            changes.append(after - x)
            return after

        return Intervention(intervention.site, fn)

    with torch.no_grad(), interventions_on(model, [watched(i) for i in made]):
        model(tokens)
    return changes


def test_same_norm_moves_every_example_exactly_as_far(model, tokens):
    """Two layers: the second projection acts on a stream that the first has changed, and so does its control."""
    positions = torch.tensor([[[4], [6]], [[7], [NO_POSITION]], [[2], [2]]]).repeat(5, 1, 1)
    make = plane_ablation(draw_planes([0, 2], positions, k=2), epsilon=0.7)
    moves = moves_made(model, tokens, make, chunk=4)
    assert [move.site for move in moves] == [Site(0), Site(2)]
    assert moves[0].positions[:3].tolist() == [[4], [7], [2]]
    assert moves[1].positions[:3].tolist() == [[6], [-1], [2]]
    control = same_norm(moves, np.random.default_rng(0))
    rows = torch.tensor([3, 0, 1, 14])
    for which in (slice(5, 11), rows):
        real, drawn = (deltas(model, tokens[which], made(which)) for made in (make, control))
        for a, b in zip(real, drawn, strict=True):
            torch.testing.assert_close(a.norm(dim=-1), b.norm(dim=-1), rtol=1e-4, atol=1e-5)
            assert a.norm(dim=-1).max() > 0.1
            moved = a.norm(dim=-1) > 1e-3
            cosines = torch.cosine_similarity(a[moved], b[moved])
            assert cosines.abs().max() < 0.9
    # Every example has a direction of its own.
    unit = torch.nn.functional.normalize(control(slice(0, N_EXAMPLES))[0].fn(torch.zeros(N_EXAMPLES, N_CTX, D_MODEL)))
    flat = unit.sum(dim=1)
    assert torch.cosine_similarity(flat[0], flat[3], dim=0) < 0.9


def test_same_norm_directions_are_uniform(model, tokens):
    make = plane_ablation(draw_planes([1], [5]))
    moves = moves_made(model, tokens, make)
    zeros = torch.zeros(N_EXAMPLES, N_CTX, D_MODEL)
    drawn = torch.cat(
        [same_norm(moves, np.random.default_rng(seed))(slice(None))[0].fn(zeros)[:, 5] for seed in range(40)]
    )
    unit = drawn / drawn.norm(dim=-1, keepdim=True)
    # Means of 600 vectors whose entries have variance 1 / d_model, four and a half standard errors.
    assert unit.mean(0).abs().max() < 4.5 / math.sqrt(len(unit) * D_MODEL)
    np.testing.assert_allclose((unit**2).mean(0), 1 / D_MODEL, atol=4.5 * math.sqrt(2 / len(unit)) / D_MODEL)
    first, again = (same_norm(moves, np.random.default_rng(3))(slice(None))[0].fn(zeros) for _ in range(2))
    assert torch.equal(first, again)


def test_same_norm_of_a_head(model, tokens):
    """At z a token holds [head, d_head]; the control moves all heads together as far as the one head was moved."""
    made = [zero(Site(1, "z"), torch.tensor([[3, 5]]), units=[2])]
    (move,) = moves_made(model, tokens, lambda _: made)
    assert move.shape == (4, D_MODEL // 4)
    z = read_activations(model, tokens, [Site(1, "z")])[Site(1, "z")]
    torch.testing.assert_close(move.size, z[:, [3, 5], 2].norm(dim=-1), rtol=1e-5, atol=0)
    (control,) = same_norm([move], np.random.default_rng(0))(slice(None))
    moved = control.fn(z) - z
    torch.testing.assert_close(moved.flatten(2).norm(dim=-1)[:, [3, 5]], move.size, rtol=1e-4, atol=1e-5)
    assert (moved[:, [3, 5]].norm(dim=-1) > 0).all()
    assert not moved[:, [0, 1, 2, 4, 6, 7, 8]].any()


def test_where_nothing_moves_nothing_is_added(model, tokens):
    moves = moves_made(model, tokens, plane_ablation(draw_planes([1], [5]), epsilon=0.0))
    assert moves[0].positions.shape == (N_EXAMPLES, 0)
    (control,) = same_norm(moves, np.random.default_rng(0))(slice(None))
    x = drawn_stream()
    assert torch.equal(control.fn(x), x)


def test_controls_by_name(model, tokens):
    """Each acts at the planes' places with the ablation's strength."""
    planes, means = draw_planes([1], [5]), drawn_means(1).float()
    moves = moves_made(model, tokens, plane_ablation(planes, epsilon=0.5))
    pool = {1: torch.eye(D_MODEL)[:1]}
    assert list(plane_controls(planes, means)) == ["random"]
    found = plane_controls(planes, means, moves=moves, pool=pool, epsilon=0.5)
    assert list(found) == ["random", "feature", "same_norm"]
    x = drawn_stream()
    for name, draw in found.items():
        (change,) = draw(np.random.default_rng(0))(slice(0, N_EXAMPLES))
        moved = change.fn(x) - x
        assert change.site == Site(1), name
        assert (moved[:, 5].norm(dim=-1) > 1e-4).all(), name
        assert not moved[:, [0, 1, 2, 3, 4, 6, 7, 8]].any(), name
    (half,) = found["feature"](np.random.default_rng(0))(slice(0, N_EXAMPLES))
    want = x[:, 5, 0] - 0.5 * (x[:, 5, 0] - means[0, 0])
    torch.testing.assert_close(half.fn(x)[:, 5, 0], want, rtol=1e-5, atol=1e-6)
