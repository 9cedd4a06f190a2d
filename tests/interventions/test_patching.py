"""Pairs, their scores, and activation patching against a loop of single patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.activations.spans import Place
from qfl_interp.data.task import Batch, Pairs
from qfl_interp.errors import QflError
from qfl_interp.interventions import patching
from qfl_interp.interventions.pairs import MIN_GAP, PairScores, PatchPairs, normalise, patch_pairs, score_pairs
from qfl_interp.interventions.patching import ALL_POSITIONS, NO_HEAD, PatchScores, patch_sweep
from qfl_interp.models import forward
from qfl_interp.models.build import build_model
from qfl_interp.models.forward import rows_logits

HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "z": "blocks.{}.attn.hook_z",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
}
HEADED = ("z", "q", "k", "v")


@pytest.fixture(scope="module")
def task():
    return qfl.load_task("addition", length=3)


@pytest.fixture(scope="module")
def pairs(task):
    """Carries out of bit 1 that differ: tokens 5 (bit 1 of b) in the prompt, sum bits 1 and 2 in the answer."""
    return patch_pairs(task, task.sample_pairs(np.random.default_rng(0), 3, "carry", 1))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, task):
    """Random weights in float64."""
    config = qfl.ModelConfig(d_model=16, n_layers=2, n_heads=2, style=request.param)
    return build_model(config, task, seed=1).to(torch.float64, print_details=False)


@torch.no_grad()
def naive_scores(model, pairs, pair, hooks):
    """Scores of one pair from one plain forward pass, written out token by token."""
    logits = model.run_with_hooks(pairs.corrupted[pair : pair + 1], fwd_hooks=hooks)[0]
    log_p = logits.log_softmax(-1)
    scored = pairs.loss_mask[pair].nonzero().flatten().tolist()
    wanted = pairs.clean[pair]
    at = next(i for i in scored if pairs.clean[pair, i] != pairs.corrupted_answer[pair, i])
    return (
        float(logits[at - 1, wanted[at]] - logits[at - 1, pairs.corrupted_answer[pair, at]]),
        float(-np.mean([float(log_p[i - 1, wanted[i]]) for i in scored])),
        all(int(logits[i - 1].argmax()) == int(wanted[i]) for i in scored),
    )


def writer(source, positions, head):
    def hook(activation, hook):
        for p in positions:
            if head is None:
                activation[0, p] = source[p]
            else:
                activation[0, p, head] = source[p, head]
        return activation

    return hook


def naive_sweep(model, pairs, component, layers, position_sets, heads):
    """A forward pass for every single patch."""
    found = []
    for layer in layers:
        name = HOOKS[component].format(layer)
        for head in heads:
            for positions in position_sets:
                for pair in range(len(pairs)):
                    source = model.run_with_cache(pairs.clean[pair : pair + 1])[1][name][0]
                    found.append(naive_scores(model, pairs, pair, [(name, writer(source, positions, head))]))
    shape = (len(layers) * len(heads), len(position_sets), len(pairs))
    return [np.array(column).reshape(shape) for column in zip(*found, strict=True)]


def assert_same(scores: PatchScores, expected):
    for metric, values in zip(("logit_diff", "loss", "exact"), expected, strict=True):
        np.testing.assert_allclose(getattr(scores, metric), values, rtol=1e-9, atol=1e-9, err_msg=metric)


# Pairs


def test_pairs_are_forced_to_read_the_clean_answer():
    task = qfl.load_task("addition", length=2)
    # 01 + 00 = 1 and 01 + 01 = 2: bits most significant first in the raw rows, least first in the tokens.
    pairs = patch_pairs(task, Pairs(np.array([[0, 1, 0, 0]]), np.array([[0, 1, 0, 1]])))
    text = ["".join(task.str_tokens(t[0])) for t in (pairs.clean, pairs.corrupted, pairs.corrupted_answer)]
    assert text == ["10+00=100<EOS>", "10+10=100<EOS>", "10+10=010<EOS>"]
    assert pairs.contrast.tolist() == [5]  # `=` predicts the first sum bit, where the answers part
    assert pairs.span == slice(5, 9)
    assert len(pairs) == 1
    assert pairs.n_dropped == 0


def test_pairs_are_decided_where_the_label_is():
    """A flipped bit of b changes its own column and the carry out of it: 01 + 01 = 010, 01 + 00 = 100 (low bits first).

    Tokens, low bits first: 1 0 + 1 0 = 0 1 0 and 1 0 + 0 0 = 1 0 0, `=` at 5. The carry out of bit 0 is read at 6.
    """
    task = qfl.load_task("addition", length=2)
    examples = Pairs(np.array([[0, 1, 0, 1]]), np.array([[0, 1, 0, 0]]))
    plain, decided = patch_pairs(task, examples), patch_pairs(task, examples, np.array([6]))
    assert plain.contrast.tolist() == [5]
    assert decided.contrast.tolist() == [6]
    assert "".join(task.str_tokens(plain.corrupted[0])) == "10+00=010<EOS>"
    # Up to the contrast the corrupted run reads its own sum bit.
    assert "".join(task.str_tokens(decided.corrupted[0])) == "10+00=110<EOS>"
    assert decided.loss_mask.nonzero()[:, 1].tolist() == [7, 8, 9]
    assert decided.target[0].tolist() == decided.clean[0, 7:].tolist()
    with pytest.raises(ValueError, match="1 with equal answers from the label's position on"):
        patch_pairs(task, examples, np.array([8]))
    with pytest.raises(ValueError, match="from the label's position on"):
        patch_pairs(task, examples, np.array([-1]))


def test_pairs_without_a_difference_are_dropped_and_counted():
    task = qfl.load_task("addition", length=2)
    clean = np.array([[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    corrupted = np.array([[0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    pairs = patch_pairs(task, Pairs(clean, corrupted))
    assert pairs.n_dropped == 1  # 1 + 2 = 2 + 1
    assert task.decode(pairs.clean).tolist() == clean[[0, 2]].tolist()
    with pytest.raises(ValueError, match="1 pairs: 0 of unequal length, 1 with equal answers"):
        patch_pairs(task, Pairs(clean[1:2], corrupted[1:2]))


def fake_task(clean: Batch, corrupted: Batch):
    """A task whose encodings are given; the raw examples are 0 and 1."""

    class Fake(type(qfl.load_task("addition", length=2))):
        def encode(self, examples):
            return clean if examples[0, 0] == 0 else corrupted

    return Fake(2), Pairs(np.array([[0]]), np.array([[1]]))


def batch(tokens, scored):
    mask = torch.zeros(len(tokens), len(tokens[0]), dtype=torch.bool)
    for row, indices in enumerate(scored):
        mask[row, indices] = True
    return Batch(torch.tensor(tokens), mask)


def test_prompts_of_unequal_length_are_dropped_and_padding_is_no_difference():
    # 9 is `=`, 8 ends the answer, 0 pads. Pair 0: lengths differ. Pair 1: answers 3 8 and 3 4 8. Pair 2: equal
    # answers behind which the padding differs. Pair 3: where the clean answer goes on, the corrupted one has padding.
    clean = batch([[1, 9, 3, 8, 0], [1, 9, 3, 8, 0], [1, 9, 3, 8, 0], [1, 9, 3, 8, 0]], [[1, 2, 3]] * 4)
    corrupted = batch(
        [[1, 2, 9, 4, 8], [2, 9, 3, 4, 8], [2, 9, 3, 8, 5], [2, 9, 3, 0, 0]],
        [[2, 3, 4], [1, 2, 3, 4], [1, 2, 3], [1, 2]],
    )
    pairs = patch_pairs(*fake_task(clean, corrupted))
    assert pairs.n_dropped == 3
    assert pairs.corrupted.tolist() == [[2, 9, 3, 8, 0]]
    assert pairs.contrast.tolist() == [2]
    assert pairs.loss_mask.tolist() == [[False, False, True, True, False]]
    with pytest.raises(ValueError, match="1 of unequal length"):
        patch_pairs(*fake_task(clean.rows(slice(1)), corrupted.rows(slice(1))))


def test_scores_by_hand_with_answers_of_different_length():
    tokens = torch.tensor([[1, 4, 2, 3, 0], [1, 4, 2, 2, 3]])
    own = torch.tensor([[0, 4, 2, 1, 3], [0, 4, 1, 2, 3]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()
    pairs = PatchPairs(tokens, tokens, own, mask, torch.tensor([2, 1]), 0)
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[1, 1, 2] = logits[1, 2, 3] = 9.0  # pair 0's answer 2 3, right
    rows = torch.tensor([1, 0, 0])
    found = score_pairs(logits[:, pairs.span], pairs, rows)
    log_p = logits.double().log_softmax(-1)
    expected = [-(log_p[0, 1, 2] + log_p[0, 2, 2] + log_p[0, 3, 3]) / 3]
    expected += [-(log_p[r, 1, 2] + log_p[r, 2, 3]) / 2 for r in (1, 2)]
    np.testing.assert_allclose(found.loss, expected, rtol=1e-12)
    differences = [logits[0, 1, 2] - logits[0, 1, 1], *(logits[r, 2, 3] - logits[r, 2, 1] for r in (1, 2))]
    np.testing.assert_allclose(found.logit_diff, differences, rtol=1e-6)
    assert found.logit_diff.dtype == np.float64
    assert found.exact.tolist() == [False, True, False]


def test_normalise_is_nan_where_the_runs_cannot_be_told_apart():
    found = normalise(np.array([1.0, -3.0, 1.0]), np.array([2.0, -2.0, MIN_GAP / 2]))
    np.testing.assert_array_equal(found, [0.5, 1.5, np.nan])


# The sweep


@pytest.mark.parametrize("component", HOOKS)
def test_sweep_equals_a_loop_of_single_patches(model, pairs, component):
    positions = [2, 5, 8, 9]
    heads = [0, 1] if component in HEADED else [None]
    found = patch_sweep(model, pairs, component=component, positions=positions, chunk_rows=5)
    assert_same(found, naive_sweep(model, pairs, component, [0, 1], [[p] for p in positions], heads))
    assert found.places == tuple(Place(i, NO_HEAD if h is None else h) for i in (0, 1) for h in heads)
    assert found.positions == tuple(positions)
    # A constant map would pass for a bug that patches nothing.
    assert np.ptp(found.loss - found.corrupted.loss) > 1e-3


@pytest.mark.parametrize("component", ["mlp_out", "z"])
def test_every_position_at_once(model, pairs, component):
    heads = [1] if component == "z" else [None]
    options = {"heads": [1]} if component == "z" else {}
    found = patch_sweep(model, pairs, component=component, positions="all", layers=[1], **options)
    every = list(range(pairs.span.stop))
    assert_same(found, naive_sweep(model, pairs, component, [1], [every], heads))
    assert found.positions == (ALL_POSITIONS,)


def test_the_ends_of_the_scale(model, pairs):
    scores = patch_sweep(model, pairs, component="resid_pre")
    whole = patch_sweep(model, pairs, component="resid_pre", positions="all", layers=[0])
    for metric in ("logit_diff", "loss"):
        np.testing.assert_allclose(whole.normalised(metric), 1, rtol=1e-9)
        # Bit 1 of b is at index 5: nothing before it can matter, and it is all there is at layer 0.
        np.testing.assert_array_equal(scores.normalised(metric)[:, :5], 0)
        np.testing.assert_allclose(scores.normalised(metric)[0, 5], 1, rtol=1e-9)
    clean = [naive_scores(model, replace(pairs, corrupted=pairs.clean), pair, []) for pair in range(3)]
    np.testing.assert_allclose(scores.clean.logit_diff, [c[0] for c in clean], rtol=1e-9)
    np.testing.assert_allclose(scores.clean.loss, [c[1] for c in clean], rtol=1e-9)


def test_default_positions_reach_the_last_that_matters(model, pairs):
    scores = patch_sweep(model, pairs, component="resid_post")
    assert scores.positions == tuple(range(pairs.span.stop))
    assert np.any(scores.loss[-1, -1] != scores.corrupted.loss)  # the last one predicts the end of the sequence


def test_chunks_and_models_that_cannot_start_in_the_middle_change_nothing(model, pairs, monkeypatch):
    options = {"component": "z", "positions": [5, 7, 9]}
    whole = patch_sweep(model, pairs, **options)
    for chunk_rows in (1, 4):
        found = patch_sweep(model, pairs, **options, chunk_rows=chunk_rows)
        assert_same(found, (whole.logit_diff, whole.loss, whole.exact))
        np.testing.assert_allclose(found.clean.loss, whole.clean.loss, rtol=1e-12)
    for module in (patching, forward):
        monkeypatch.setattr(module, "resumable", lambda model: False)
    assert_same(patch_sweep(model, pairs, **options), (whole.logit_diff, whole.loss, whole.exact))


def test_patches_share_forward_passes_and_skip_what_cannot_act(model, pairs):
    rows = []
    handle = model.blocks[1].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        patch_sweep(model, pairs, layers=[1], chunk_rows=8)
    finally:
        handle.remove()
    acting = 3 * (pairs.span.stop - 5)
    # Clean and corrupted baselines, both captures, then the patches that act, 8 at a time.
    assert rows == [3, 3, 3, 3] + [8] * (acting // 8) + [acting % 8] * bool(acting % 8)


def test_logits_asked_for_are_the_models(model, pairs):
    expected = model(pairs.clean)[:, pairs.span]
    torch.testing.assert_close(rows_logits(model, pairs.clean, pairs.span), expected, rtol=1e-12, atol=1e-12)
    resid = model(pairs.clean, stop_at_layer=1)
    started = rows_logits(model, pairs.clean, pairs.span, start=(1, resid))
    torch.testing.assert_close(started, expected, rtol=1e-12, atol=1e-12)
    model.cfg.output_logits_soft_cap = 0.5
    try:
        capped = rows_logits(model, pairs.clean, pairs.span)
        torch.testing.assert_close(capped, model(pairs.clean)[:, pairs.span], rtol=1e-12, atol=1e-12)
    finally:
        model.cfg.output_logits_soft_cap = 0.0
    assert not torch.equal(capped, expected)


def made_up(logit_diff, clean, corrupted):
    """Scores with one place and one position."""
    ends = [PairScores(np.array(v, float), np.array(v, float), np.array(v) > 0) for v in (clean, corrupted)]
    values = np.array(logit_diff, float)[None, None]
    return PatchScores("z", (Place(0, 0),), (4,), values, values, values > 0, *ends)


def test_normalised_is_a_ratio_of_means():
    scores = made_up([1, 2, 3], clean=[4, 4, 7], corrupted=[-2, 0, -1])
    np.testing.assert_allclose(scores.normalised(), [[(2 - -1) / (5 - -1)]])
    np.testing.assert_allclose(scores.normalised("exact"), [[1.0]])
    assert np.isnan(made_up([1, 2], clean=[3, 0], corrupted=[0, 3]).normalised()).all()


def test_intervals_resample_pairs():
    rng = np.random.default_rng(0)
    corrupted = rng.normal(size=40)
    clean = corrupted + 4 + rng.normal(size=40)
    patched = (corrupted + clean) / 2 + rng.normal(size=40)
    scores = made_up(patched, clean, corrupted)
    low, high = scores.intervals("logit_diff", np.random.default_rng(1), n_resamples=2000, level=0.9)
    drawn = np.random.default_rng(2).integers(40, size=(2000, 40))
    ratio = (patched - corrupted)[drawn].mean(1) / (clean - corrupted)[drawn].mean(1)
    # Ends of two sets of 2,000 resamples: each within a few hundredths of the spread.
    spread = ratio.std()
    np.testing.assert_allclose([low[0, 0], high[0, 0]], np.quantile(ratio, [0.05, 0.95]), atol=0.15 * spread)
    again = scores.intervals("logit_diff", np.random.default_rng(1), n_resamples=2000, level=0.9)
    np.testing.assert_array_equal(again[0], low)
    other = scores.intervals("logit_diff", np.random.default_rng(3), n_resamples=2000, level=0.9)
    assert not np.array_equal(other[0], low)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"component": "resid"}, "component must be one of"),
        ({"layers": [0, 2]}, r"layers must be different numbers in \[0, 2\)"),
        ({"layers": []}, "at least one"),
        ({"heads": [0]}, "heads go with one of"),
        ({"component": "z", "heads": [2]}, r"heads must be different numbers in \[0, 2\)"),
        ({"positions": [5, 5]}, "positions must be different"),
        ({"positions": [12]}, "positions must be different"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_sweeps_are_refused(model, pairs, options, words):
    with pytest.raises(ValueError, match=words):
        patch_sweep(model, pairs, **options)


def test_a_missing_hook_point_is_named(pairs, task):
    model = build_model(qfl.ModelConfig(d_model=16, n_layers=1), task)
    del model.hook_dict["blocks.0.hook_mlp_out"]
    with pytest.raises(QflError, match=r"no hook point 'blocks\.0\.hook_mlp_out'"):
        patch_sweep(model, pairs, component="mlp_out")
