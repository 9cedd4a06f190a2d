"""Zero, mean and resample ablations against plain hooks, and what they take an activation's place with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from qfl_interp.config import ModelConfig
from qfl_interp.data.task import NO_POSITION
from qfl_interp.errors import QflError
from qfl_interp.interventions.edits import edit_at
from qfl_interp.interventions.replace import (
    activations_at,
    derangement,
    donors_of,
    mean,
    mean_of,
    replace,
    replacement_by,
    resample,
    zero,
)
from qfl_interp.models.build import build_hooked
from qfl_interp.models.hooks import Site, interventions_on

D_MODEL, N_HEADS, N_CTX, N_EXAMPLES = 16, 4, 8, 6
POSITIONS = torch.tensor([[2, 5], [3, NO_POSITION], [6, 1], [NO_POSITION, NO_POSITION], [4, 7], [0, 6]])
HOOKS = {"resid_post": "hook_resid_post", "z": "attn.hook_z", "mlp_post": "mlp.hook_post", "attn_out": "hook_attn_out"}


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(d_model=D_MODEL, n_layers=2, n_heads=N_HEADS)
    return build_hooked(config, d_vocab=5, n_ctx=N_CTX, seed=1)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 5, (N_EXAMPLES, N_CTX), generator=torch.Generator().manual_seed(2))


def by_plain_hook(model, tokens, name, layer, new, places, units, epsilon):
    """Logits with `(1 - eps) x + eps new(example, column)` written in by loops."""

    def change(x, hook):
        x = x.clone()
        for example, row in enumerate(places):
            for column, place in enumerate(row):
                if place == NO_POSITION:
                    continue
                value = new(example, column)
                for unit in units if units is not None else range(x.shape[2]):
                    x[example, place, unit] = (1 - epsilon) * x[example, place, unit] + epsilon * value[unit]
        return x

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.{HOOKS[name]}", change)])


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "everywhere"])
@pytest.mark.parametrize(
    ("name", "units", "epsilon"),
    [
        ("resid_post", None, 1.0),
        ("attn_out", [3, 1], 0.25),
        ("z", [2], 1.0),
        ("z", [0, 3], 0.5),
        ("z", None, 1.0),
        ("mlp_post", [7], 1.0),
    ],
    ids=str,
)
def test_against_plain_hooks(model, tokens, kind, aligned, name, units, epsilon):
    site = Site(1, name)
    positions = POSITIONS if aligned else None
    places = POSITIONS.tolist() if aligned else [list(range(N_CTX))] * N_EXAMPLES
    found = activations_at(model, tokens, [site], positions, chunk=4)[site]
    average, donors = mean_of(found, positions), donors_of(found, np.random.default_rng(0), positions)
    settings = {"units": units, "epsilon": epsilon}
    made, new = {
        "zero": (zero(site, positions, **settings), lambda e, c: torch.zeros(found.shape[2:])),
        "mean": (mean(site, average, positions, **settings), lambda e, c: average[c]),
        "resample": (resample(site, donors, positions, **settings), lambda e, c: donors[e, c]),
    }[kind]
    with torch.no_grad(), interventions_on(model, [made]):
        logits = model(tokens)
    want = by_plain_hook(model, tokens, name, 1, new, places, units, epsilon)
    torch.testing.assert_close(logits, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, model(tokens), atol=1e-3)
    assert kind in repr(made)


def test_closed_forms():
    x = torch.arange(24.0).view(2, 3, 4)
    positions = torch.tensor([[2], [0]])
    want = x.clone()
    want[0, 2, 1], want[1, 0, 1] = 9 / 2, 13 / 2
    assert torch.equal(zero(Site(0), positions, units=[1], epsilon=0.5).fn(x), want)
    want[0, 2], want[1, 0] = torch.tensor([0.0, 2, 0, 2]), torch.tensor([0.0, 2, 0, 2])
    assert torch.equal(mean(Site(0), torch.tensor([[0.0, 2, 0, 2]]), positions).fn(x), want)
    assert torch.equal(resample(Site(0), x.flip(0)).fn(x), x.flip(0))
    # Full strength leaves nothing of the old value, not even what no arithmetic removes.
    assert torch.equal(zero(Site(0)).fn(torch.full((1, 1, 2), torch.inf)), torch.zeros(1, 1, 2))
    assert torch.equal(zero(Site(0), epsilon=0.0).fn(x), x)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_each_example_its_own_unit():
    z = draw(3, 2, 4, 5)
    found = replace(Site(0, "z"), torch.zeros_like, units=torch.tensor([1, 3, 0])).fn(z)
    want = z.clone()
    want[0, :, 1] = want[1, :, 3] = want[2, :, 0] = 0
    assert torch.equal(found, want)
    x = draw(3, 2, 5)
    found = replace(Site(0, "mlp_post"), torch.zeros_like, torch.tensor([[1]]), units=torch.tensor([1, 3, 0])).fn(x)
    want = x.clone()
    want[0, 1, 1] = want[1, 1, 3] = want[2, 1, 0] = 0
    assert torch.equal(found, want)


def test_what_cannot_be_ablated_is_refused():
    z = draw(2, 3, 4, 5)
    with pytest.raises(ValueError, match="must hold an entry a token, got 'pattern'"):
        zero(Site(0, "pattern"))
    with pytest.raises(ValueError, match=r"hook_z must lie in \[0, 4\), got \[4\]"):
        zero(Site(0, "z"), units=[4]).fn(z)
    with pytest.raises(ValueError, match=r"must lie in \[0, 5\), got \[-1\]"):
        zero(Site(0, "mlp_post"), units=[-1]).fn(draw(2, 3, 5))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5\), got \(1, 1, 5\)"):
        mean(Site(0, "z"), torch.zeros(1, 5)).fn(z)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5\), got \(3, 3, 4, 5\)"):
        resample(Site(0, "z"), torch.zeros(3, 3, 4, 5)).fn(z)
    with pytest.raises(ValueError, match="differ between labels"):
        zero(Site(0), torch.tensor([[1, 1]]))


# What takes an activation's place


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_activations_and_their_means_against_the_cache(model, tokens, chunk):
    sites = [Site(0), Site(1, "z")]
    found = activations_at(model, tokens, sites, POSITIONS, chunk=chunk)
    whole = activations_at(model, tokens, sites, chunk=chunk)
    _, cache = model.run_with_cache(tokens)
    for site in sites:
        x = cache[site.hook_name].detach()
        torch.testing.assert_close(whole[site], x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mean_of(whole[site]), x.mean(0), rtol=1e-5, atol=1e-6)
        for column in range(2):
            have = [(e, int(p)) for e, p in enumerate(POSITIONS[:, column]) if p != NO_POSITION]
            seen = torch.stack([x[place] for place in have])
            torch.testing.assert_close(found[site][[e for e, _ in have], column], seen, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mean_of(found[site], POSITIONS)[column], seen.mean(0), rtol=1e-5, atol=1e-6)
        assert not found[site][3].any()


def test_donors_are_other_examples_that_have_the_label():
    """Labels 0 and 2 belong to the same examples and share donors; label 1 has its own; label 3 nobody has."""
    ids = torch.arange(N_EXAMPLES)[:, None, None] + 10.0 * torch.arange(4)[:, None] + torch.zeros(1, 1, 2)
    positions = torch.stack([POSITIONS[:, 0], POSITIONS[:, 1], POSITIONS[:, 0], torch.full((6,), NO_POSITION)], 1)
    given = donors_of(ids, np.random.default_rng(0), positions)
    for column in range(3):
        have = torch.nonzero(positions[:, column] >= 0).flatten().tolist()
        donors = (given[have, column, 0] - 10 * column).int().tolist()
        assert sorted(donors) == have
        assert all(donor != example for donor, example in zip(donors, have, strict=True))
    assert torch.equal(given[:, 0] + 20, given[:, 2])
    assert torch.equal(given[3], ids[3])
    assert torch.equal(given[:, 3], ids[:, 3])
    again, other = (donors_of(ids, np.random.default_rng(seed), positions) for seed in (0, 1))
    assert torch.equal(given, again)
    assert not torch.equal(given, other)
    whole = donors_of(ids, np.random.default_rng(0))
    assert torch.equal(whole[:, 0] + 30, whole[:, 3])
    assert not (whole == ids).any()


def test_derangements_are_uniform():
    rng, n_draws = np.random.default_rng(0), 3000
    drawn = [tuple(derangement(4, rng)) for _ in range(n_draws)]
    every = [p for p in itertools.permutations(range(4)) if all(a != i for i, a in enumerate(p))]
    assert set(drawn) == set(every)
    assert len(every) == 9
    counts = np.array([drawn.count(p) for p in every])
    # Four and a half standard errors of a binomial count.
    assert np.abs(counts - n_draws / 9).max() < 4.5 * np.sqrt(n_draws * (1 / 9) * (8 / 9))
    assert derangement(0, rng).tolist() == []
    with pytest.raises(ValueError, match="at least two examples"):
        derangement(1, rng)
    with pytest.raises(ValueError, match="at least two examples"):
        donors_of(torch.zeros(2, 1, 3), rng, torch.tensor([[2], [-1]]))


def test_replacements_by_name():
    x = torch.arange(6.0).view(3, 1, 2)
    examples, current = torch.tensor([2, 0]), torch.ones(2, 1, 2)
    assert not replacement_by("zero", x)(examples, current).any()
    assert replacement_by("mean", x)(examples, current).tolist() == [[[2.0, 3.0]]]
    rng = np.random.default_rng(0)
    assert torch.equal(
        replacement_by("resample", x, rng=rng)(examples, current),
        donors_of(x, np.random.default_rng(0))[examples],
    )
    with pytest.raises(ValueError, match="rng must be given"):
        replacement_by("resample", x)
    # The type checker of the tests would speak first.
    with pytest.raises(ValueError, match="must be 'zero', 'mean' or 'resample', got 'median'"):
        replacement_by.__wrapped__("median", x)


def test_a_position_behind_the_pass_is_named():
    made = edit_at(Site(0, positions=(1000,)), lambda x: x * 0)
    with pytest.raises(QflError, match=r"positions of blocks.0.hook_resid_post must lie in \[0, 22\).*got 1000"):
        made.fn(torch.zeros(2, 22, 4))
