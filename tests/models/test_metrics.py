"""Loss and exact match against loops, golden vectors and real greedy decoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qfl_interp.config import ModelConfig
from qfl_interp.data.task import Batch
from qfl_interp.interventions.planes import project_out
from qfl_interp.models.build import build_hooked
from qfl_interp.models.fast_forward import fast_logits
from qfl_interp.models.generate import generate_greedy
from qfl_interp.models.hooks import Site, interventions_on
from qfl_interp.models.losses import IGNORED
from qfl_interp.models.metrics import evaluate, masked_loss, score_logits, scored_span, targets
from tests.helpers_golden import golden_forward, hooked_from_golden

D_VOCAB, N_CTX, EQUALS = 4, 12, 5


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(d_model=16, n_layers=2)
    return build_hooked(config, d_vocab=D_VOCAB, n_ctx=N_CTX, seed=2)


def ragged(n=40, seed=0):
    """Examples whose scored spans begin and end at different places."""
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(0, D_VOCAB, (n, N_CTX)))
    first, length = rng.integers(2, 6, n), rng.integers(2, 6, n)
    place = np.arange(N_CTX)
    mask = (place >= first[:, None]) & (place < (first + length)[:, None])
    return Batch(tokens, torch.from_numpy(mask))


def by_hand(logits, batch):
    """Every score by a loop over tokens, in Python floats."""
    rows = []
    for tokens, mask, row in zip(
        batch.tokens.tolist(), batch.loss_mask.tolist(), logits.double().tolist(), strict=True
    ):
        losses, right = [], []
        for place in range(1, len(tokens)):
            if mask[place]:
                before = row[place - 1]
                total = sum(math.exp(v - max(before)) for v in before)
                losses.append(math.log(total) + max(before) - before[tokens[place]])
                right.append(before.index(max(before)) == tokens[place])
        rows.append((losses, right))
    return rows


def logits_of(model):
    return lambda tokens, positions, _rows: model(tokens)[:, positions]


# Spans, targets, losses


def test_span_and_targets_by_hand():
    mask = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    tokens = torch.tensor([[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6]])
    span = scored_span(mask)
    assert span == slice(1, 4)  # tokens 2, 3, 4 are predicted at 1, 2, 3
    target = targets(tokens, mask, span)
    assert target.tolist() == [[7, 6, IGNORED], [IGNORED, 4, 5]]
    assert targets(tokens, Batch(tokens, mask).answer_mask, span).tolist() == [
        [IGNORED, 6, IGNORED], [IGNORED, IGNORED, 5]
    ]  # fmt: skip
    assert Batch(tokens, mask, prompt_end=False).answer_mask is mask


@pytest.mark.parametrize("kept", [[], [0], [0, 3]], ids=["nothing", "first", "first-too"])
def test_what_cannot_be_scored_is_refused(kept):
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, kept] = True
    with pytest.raises(ValueError, match=f"and not the first.*got {len(kept)} kept tokens"):
        scored_span(mask)


@pytest.mark.parametrize("n_kept", [0, 1])
def test_an_example_without_an_answer_is_refused(model, n_kept):
    """Its mean loss would be NaN and count as an exact match."""
    batch = ragged(6)
    mask = batch.loss_mask.clone()
    mask[4] = False
    mask[4, 3 : 3 + n_kept] = True
    with pytest.raises(ValueError, match=f"got {n_kept} kept tokens in example 4"):
        evaluate(logits_of(model), Batch(batch.tokens, mask))


@pytest.mark.parametrize("case", golden_forward(), ids=lambda case: f"{case['config']['n_layers']}-layers")
def test_golden(case):
    golden = hooked_from_golden(case)
    batch = Batch(torch.tensor(case["ids"]), torch.tensor(case["loss_mask"]).bool())
    span = scored_span(batch.loss_mask)
    target = targets(batch.tokens, batch.loss_mask, span)
    # The file has 7 digits of a float32 computation.
    assert masked_loss(golden(batch.tokens)[:, span], target).item() == pytest.approx(case["loss"], abs=1e-4)
    per_token = torch.tensor(case["per_token_losses"]).view(2, -1).double()
    scores = evaluate(logits_of(golden), batch)
    assert scores.means()["loss"] == pytest.approx(case["loss"], abs=1e-4)
    np.testing.assert_allclose(scores.loss, per_token.mean(1), atol=1e-4)
    np.testing.assert_allclose(scores.loss_answer, per_token[:, 1:].mean(1), atol=1e-4)
    greedy = case["greedy"]
    prompt = torch.tensor([greedy["prompt"]])
    n_new = len(greedy["completed"]) - prompt.shape[1]
    assert generate_greedy(golden, prompt, n_new=n_new)[0].tolist() == greedy["completed"]


def test_scores_of_ragged_examples_against_a_loop(model):
    batch = ragged()
    found, logits = evaluate(logits_of(model), batch), model(batch.tokens)
    rows = by_hand(logits, batch)
    np.testing.assert_allclose(found.loss, [np.mean(losses) for losses, _ in rows], rtol=1e-5)
    np.testing.assert_allclose(found.loss_answer, [np.mean(losses[1:]) for losses, _ in rows], rtol=1e-5)
    assert found.exact.tolist() == [all(right) for _, right in rows]
    assert found.exact_answer.tolist() == [all(right[1:]) for _, right in rows]
    assert found.n_scored.tolist() == [len(losses) for losses, _ in rows]
    assert 0 < found.exact_answer.sum() < len(rows)
    # Means over tokens, not over examples.
    tokens = [loss for losses, _ in rows for loss in losses]
    answers = [loss for losses, _ in rows for loss in losses[1:]]
    means = found.means()
    assert means["loss"] == pytest.approx(np.mean(tokens), rel=1e-5)
    assert means["loss_answer"] == pytest.approx(np.mean(answers), rel=1e-5)
    assert means["exact_answer"] == found.exact_answer.mean()
    assert abs(means["loss"] - found.loss.mean()) > 1e-4
    # The chance of a whole example: the product of its tokens' probabilities, averaged over examples of other lengths.
    success = [np.prod(np.exp(-np.array(losses))) for losses, _ in rows]
    success_answer = [np.prod(np.exp(-np.array(losses[1:]))) for losses, _ in rows]
    np.testing.assert_allclose(found.success, success, rtol=1e-4)
    np.testing.assert_allclose(found.success_answer, success_answer, rtol=1e-4)
    assert means["pass"] == pytest.approx(np.mean(success), rel=1e-4)
    assert means["pass_answer"] == pytest.approx(np.mean(success_answer), rel=1e-4)
    span = scored_span(batch.loss_mask)
    trained = masked_loss(logits[:, span], targets(batch.tokens, batch.loss_mask, span)).item()
    assert trained == pytest.approx(np.mean(tokens), rel=1e-5)


def test_scored_alone_the_answer_is_all_there_is(model):
    batch = patterns(np.random.default_rng(3), 20)
    both = evaluate(logits_of(model), batch)
    alone = evaluate(logits_of(model), Batch(batch.tokens, batch.answer_mask, prompt_end=False))
    np.testing.assert_allclose(alone.loss, both.loss_answer, rtol=1e-6)
    assert not np.allclose(alone.loss, both.loss)
    np.testing.assert_array_equal(alone.loss, alone.loss_answer)
    np.testing.assert_array_equal(alone.exact, both.exact_answer)
    np.testing.assert_array_equal(alone.n_scored, both.n_scored - 1)
    np.testing.assert_allclose(alone.success, both.success_answer, rtol=1e-5)
    assert alone.means()["loss"] == pytest.approx(both.means()["loss_answer"], rel=1e-6)


def test_a_tie_counts_for_the_lowest_id_as_in_decoding():
    logits = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]]])
    for target, exact in (([0, 1], True), ([1, 1], False), ([0, 2], False)):
        assert score_logits(logits, *[torch.tensor([target])] * 2).exact.tolist() == [exact]
    fixed = logits[:, -1:].expand(1, 3, 3)
    assert generate_greedy(lambda tokens: fixed[:, : tokens.shape[1]], torch.tensor([[0]]), n_new=2).tolist() == [
        [0, 1, 1]
    ]


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_do_not_change_scores(model, chunk):
    batch = ragged()
    whole = evaluate(logits_of(model), batch, chunk=40)
    seen = []

    def forward(tokens, positions, rows):
        seen.append(rows)
        assert torch.equal(tokens, batch.tokens[rows])
        return model(tokens)[:, positions]

    found = evaluate(forward, batch, chunk=chunk)
    # Another batch size rounds otherwise in float32.
    np.testing.assert_allclose(found.loss, whole.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.exact, whole.exact)
    assert [i for rows in seen for i in range(rows.start, rows.stop)] == list(range(40))


# Exact match needs no decoding


def trained_a_little(seed):
    """A model that often continues a constant sequence rightly, and often does not."""
    model = build_hooked(ModelConfig(d_model=16, n_layers=2), d_vocab=D_VOCAB, n_ctx=N_CTX, seed=seed)
    rng = np.random.default_rng(seed)
    batch = patterns(rng, 64)
    span = scored_span(batch.loss_mask)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        optimiser.zero_grad()
        masked_loss(fast_logits(model, batch.tokens, span), targets(batch.tokens, batch.loss_mask, span)).backward()
        optimiser.step()
    return model


def patterns(rng, n):
    """Prompt, `=` (id 3), then a copy of the prompt and the prompt's first token."""
    prompt = torch.from_numpy(rng.integers(0, 3, (n, EQUALS)))
    tokens = torch.cat([prompt, torch.full((n, 1), 3), prompt, prompt[:, :1]], dim=1)
    return Batch(tokens, (torch.arange(N_CTX) >= EQUALS).repeat(n, 1))


@pytest.mark.parametrize("ablate", [False, True], ids=["intact", "ablated"])
def test_exact_match_equals_greedy_decoding(ablate):
    """Predictions under teacher forcing are all right exactly where real decoding gives the reference."""
    model = trained_a_little(0)
    rng = np.random.default_rng(1)
    batch = patterns(rng, 300)
    changes = []
    if ablate:
        draw = torch.from_numpy(rng.standard_normal((3, 1, 16)))
        changes = [project_out(Site(0), draw, positions=torch.tensor([[EQUALS, EQUALS + 2, 9]]))]
    with torch.no_grad(), interventions_on(model, changes):
        scores = evaluate(logits_of(model), batch)
        from_equals = generate_greedy(model, batch.tokens[:, : EQUALS + 1], n_new=N_CTX - EQUALS - 1)
        from_prompt = generate_greedy(model, batch.tokens[:, :EQUALS], n_new=N_CTX - EQUALS)
    matched = (from_equals == batch.tokens).all(dim=1)
    assert scores.exact_answer.tolist() == matched.tolist()
    assert scores.exact.tolist() == (from_prompt == batch.tokens).all(dim=1).tolist()
    assert 0 < matched.sum() < len(matched)
