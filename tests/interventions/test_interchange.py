"""Swapping a subspace against projectors from the pseudo-inverse, and its scores against plain hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.interventions.interchange import (
    InterchangeScores,
    SwapScores,
    _deciding,
    interchange_scores,
    swap_subspace,
)
from qfl_interp.interventions.pairs import PairScores, PatchPairs, patch_pairs
from qfl_interp.models.build import build_model
from qfl_interp.models.hooks import Site, interventions_on, read_activations

D_MODEL = 16


@pytest.fixture(scope="module")
def task():
    return qfl.load_task("addition", length=3)


@pytest.fixture(scope="module")
def pairs(task):
    """Carries out of bit 1: sum bits 1 and 2 differ, tokens 9 and 10."""
    return patch_pairs(task, task.sample_pairs(np.random.default_rng(0), 5, "carry", 1))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, task):
    config = qfl.ModelConfig(d_model=D_MODEL, n_layers=2, n_heads=2, style=request.param)
    return build_model(config, task, seed=1).to(torch.float64, print_details=False)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projector(rows):
    """Onto the span of the rows."""
    return torch.linalg.pinv(rows) @ rows


# The intervention


@pytest.mark.parametrize("per_label", [False, True], ids=["shared", "per-label"])
def test_swap_moves_the_component_and_nothing_else(model, pairs, per_label):
    directions = draw(2, 3, D_MODEL) if per_label else draw(3, D_MODEL)
    source, site = draw(5, 2, D_MODEL, seed=1), Site(0)
    positions = torch.tensor([[4, 8], [8, 2], [0, -1], [-1, 11], [5, 6]])
    before = read_activations(model, pairs.clean, [site])[site]
    with interventions_on(model, [swap_subspace(site, directions, source, positions)]):
        after = read_activations(model, pairs.clean, [site])[site]
    expected = before.clone()
    for example, row in enumerate(positions.tolist()):
        for label, position in enumerate(row):
            if position >= 0:
                onto = projector(directions[label] if per_label else directions)
                x, other = before[example, position], source[example, label]
                expected[example, position] = onto @ other + x - onto @ x
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(after, before)


def test_bad_subspaces_are_refused():
    site, source, positions = Site(0), draw(2, 3, D_MODEL), torch.tensor([[1, 2, 3], [1, 2, 3]])
    with pytest.raises(ValueError, match="linearly independent"):
        swap_subspace(site, torch.zeros(1, D_MODEL), source, positions)
    with pytest.raises(ValueError, match=r"\[label, k, d_model\] of source \(2, 3, 16\), got \(2, 1, 16\)"):
        swap_subspace(site, draw(2, 1, D_MODEL).to(source), source, positions)
    with pytest.raises(ValueError, match="must differ between labels"):
        swap_subspace(site, draw(1, D_MODEL), source, torch.tensor([[1, 1, 3]]).expand(2, 3))


# The scores


@torch.no_grad()
def naive(model, tokens, hook_name, position, new, target, other, at):
    """Logit difference and prediction at one position of one run, one activation replaced."""

    def hook(activation, hook):
        activation[0, position] = new
        return activation

    hooks = [] if new is None else [(hook_name, hook)]
    logits = model.run_with_hooks(tokens[None], fwd_hooks=hooks)[0, at]
    return float(logits[target] - logits[other]), int(logits.argmax()) == int(target)


def assert_condition(model, pairs, scores: SwapScores, read, directions):
    """Every pair's score equals that of plain hooks; decided at token 10, the sum bit behind the label at 9."""
    for pair in range(len(pairs)):
        own, clean = pairs.corrupted_answer[pair], pairs.clean[pair]
        with torch.no_grad():
            base, source = (model.run_with_cache(t[None])[1]["blocks.0.hook_resid_post"][0] for t in (own, clean))
        onto = projector(directions)
        new = base[9] + onto @ (source[read] - base[9])
        expected = naive(model, own, "blocks.0.hook_resid_post", 9, new, clean[10], own[10], 9)
        np.testing.assert_allclose(scores.logit_diff[pair], expected[0], rtol=1e-9, atol=1e-9)
        assert scores.flipped[pair] == expected[1]


@pytest.mark.parametrize("read", [9, 8], ids=["same-position", "other-position"])
def test_scores_equal_plain_hooks(model, pairs, read):
    directions, at = draw(2, D_MODEL), torch.full((5,), 9)
    found = interchange_scores(
        model, pairs, layer=0, positions=at, source_positions=torch.full((5,), read), directions=directions,
        rng=np.random.default_rng(3), n_random=2, chunk=2,
    )  # fmt: skip
    assert_condition(model, pairs, found.feature, read, directions)
    assert_condition(model, pairs, found.whole, read, torch.eye(D_MODEL, dtype=torch.float64))
    drawn = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 2, D_MODEL)))
    for scores, rows in zip(found.random, drawn, strict=True):
        assert_condition(model, pairs, scores, read, rows)
    for pair in range(5):
        own, clean = pairs.corrupted_answer[pair], pairs.clean[pair]
        for scores, tokens in ((found.none, own), (found.clean, clean)):
            expected = naive(model, tokens, "", 0, None, clean[10], own[10], 9)
            np.testing.assert_allclose(scores.logit_diff[pair], expected[0], rtol=1e-9)
            assert scores.flipped[pair] == expected[1]
    assert found.n_undecided == 0
    assert found.pair.tolist() == [0, 1, 2, 3, 4]


def test_the_whole_answer_is_scored_behind_the_clean_one(model, pairs):
    found = interchange_scores(
        model, pairs, layer=1, positions=torch.full((5,), 9), directions=draw(1, D_MODEL),
        rng=np.random.default_rng(0), n_random=0, name="mlp_out",
    )  # fmt: skip
    name = "blocks.1.hook_mlp_out"
    for pair in range(5):
        clean, forced = pairs.clean[pair : pair + 1], pairs.corrupted[pair : pair + 1]
        with torch.no_grad():
            source = model.run_with_cache(clean)[1][name][0, 9]

            def hook(activation, hook, source=source):
                activation[0, 9] = source
                return activation

            log_p = model.run_with_hooks(forced, fwd_hooks=[(name, hook)])[0].log_softmax(-1)
        expected = -np.mean([float(log_p[i - 1, clean[0, i]]) for i in range(8, 13)])
        np.testing.assert_allclose(found.whole.answer.loss[pair], expected, rtol=1e-9)
    assert not np.array_equal(found.whole.answer.loss, found.none.answer.loss)
    assert found.random == ()
    assert np.isnan(found.normalised("random"))


def test_only_what_differs_along_the_directions_is_swapped(model, pairs):
    """One pair: the difference of its runs as the direction swaps all of it, directions across it swap nothing."""
    one = replace(
        pairs, **{n: getattr(pairs, n)[:1] for n in ("clean", "corrupted", "corrupted_answer", "loss_mask", "contrast")}
    )
    site, at = Site(0), torch.tensor([9])
    source, base = (read_activations(model, t, [site])[site][:, 9] for t in (one.clean, one.corrupted_answer))
    along = source - base
    across = torch.linalg.svd(along).Vh[1:4]

    def score(directions):
        rng = np.random.default_rng(0)
        return interchange_scores(model, one, layer=0, positions=at, directions=directions, rng=rng, n_random=1)

    found = score(along)
    np.testing.assert_allclose(found.feature.logit_diff, found.whole.logit_diff, rtol=1e-9)
    np.testing.assert_allclose(score(across).feature.logit_diff, found.none.logit_diff, rtol=1e-9)
    assert abs(found.whole.logit_diff[0] - found.none.logit_diff[0]) > 1e-3
    assert found.random[0].logit_diff[0] not in (found.none.logit_diff[0], found.whole.logit_diff[0])


def test_the_deciding_position_is_the_first_difference_from_the_label_on(model, pairs):
    def decided(positions):
        return interchange_scores(
            model, pairs, layer=0, positions=torch.tensor(positions), directions=draw(1, D_MODEL),
            rng=np.random.default_rng(0), n_random=0,
        )  # fmt: skip

    # The answers differ in tokens 9 and 10. Read in the prompt or at 8 the first decides, at 9 the second, at 10
    # nothing is left; a negative position is no label.
    found = decided([3, 8, 9, 10, -1])
    assert found.pair.tolist() == [0, 1, 2]
    assert found.n_undecided == 2
    for row, pair, at in ((0, 0, 8), (1, 1, 8), (2, 2, 9)):
        own, clean = pairs.corrupted_answer[pair], pairs.clean[pair]
        expected = naive(model, own, "", 0, None, clean[at + 1], own[at + 1], at)
        np.testing.assert_allclose(found.none.logit_diff[row], expected[0], rtol=1e-9)
    with pytest.raises(ValueError, match="got none of 5"):
        decided([10, 10, 11, -1, -1])


def test_only_scored_tokens_decide():
    # Token 1 differs but is prompt; `=` is 9; pair 0's answer then differs at 3, pair 1's only in its padding.
    clean, own = torch.tensor([[0, 1, 9, 3, 4], [0, 1, 9, 3, 4]]), torch.tensor([[0, 2, 9, 5, 4], [0, 2, 9, 3, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 0]]).bool()
    found = _deciding(PatchPairs(clean, own, own, mask, torch.tensor([2, 2]), 0), torch.tensor([0, 0]))
    assert [t.tolist() for t in found] == [[0], [2], [3], [5]]


def test_random_subspaces_come_from_the_generator(model, pairs):
    def drawn(seed):
        found = interchange_scores(
            model, pairs, layer=0, positions=torch.full((5,), 9), directions=draw(1, D_MODEL),
            rng=np.random.default_rng(seed), n_random=3,
        )  # fmt: skip
        return np.array([run.logit_diff for run in found.random])

    np.testing.assert_array_equal(drawn(0), drawn(0))
    assert not np.array_equal(drawn(0), drawn(1))
    assert len(np.unique(drawn(0)[:, 0])) == 3


def test_normalised_by_hand():
    def condition(*logit_diff):
        values = np.array(logit_diff, float)
        return SwapScores(values, values > 0, PairScores(values, values, values > 0))

    none, clean = condition(-2, 0), condition(2, 4)
    scores = InterchangeScores(
        none, condition(0, 2), condition(1, 3), (condition(-2, 0), condition(-1, 3)), clean, clean, np.arange(2), 0
    )
    found = [scores.normalised(name) for name in ("none", "feature", "mean_shift", "random", "whole")]
    np.testing.assert_allclose(found, [0, 0.5, 0.75, 0.25, 1])
    assert np.isnan(replace(scores, mean_shift=None).normalised("mean_shift"))
    assert np.isnan(replace(scores, clean=none).normalised("feature"))
