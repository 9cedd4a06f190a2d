"""Repeated sequences against plain Python; what is an example of them and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import qfl_interp as qfl


def oracle(row: list[int], n: int) -> list[int]:
    """All 2 n tokens: those before the first one's return, over and over."""
    period = row.index(row[0], 1)
    return [row[i % period] for i in range(2 * n)]


@pytest.mark.parametrize("n", [4, 5, 32])
def test_tokens_and_labels_by_hand(n):
    task = qfl.load_task("repeated_sequences", n)
    examples = task.sample(np.random.default_rng(n), 300)
    batch, labels = task.encode(examples), {k: f.labels(examples) for k, f in task.features.items()}
    for i, row in enumerate(examples.tolist()):
        whole = oracle(row, n)
        assert batch.tokens[i].tolist() == whole
        for r in range(n - 1):
            # The latest earlier place of the token that is read at n + r; what followed it.
            place = max(j for j in range(n + r) if whole[j] == whole[n + r])
            assert labels["next_token"][i, r] == whole[place + 1] == whole[n + r + 1]
        assert labels["previous_token"][i].tolist() == whole[:n]
        low = math.ceil(n / 2)
        assert labels["seen_before"][i].tolist() == [whole[j] in whole[:j] for j in range(low, n)]
    reads = {name: f.positions(examples)[0].tolist() for name, f in task.features.items()}
    assert reads["next_token"] == list(range(n, 2 * n - 1))
    assert reads["previous_token"] == list(range(1, n + 1))
    assert reads["seen_before"] == list(range(math.ceil(n / 2), n))


def test_the_second_half_is_scored_but_for_its_first_token():
    task = qfl.load_task("repeated_sequences", 6)
    batch = task.encode(task.sample(np.random.default_rng(0), 3))
    assert batch.loss_mask.tolist() == [[i > 6 for i in range(12)]] * 3
    assert torch.equal(batch.answer_mask, batch.loss_mask)
    assert (task.n_ctx, task.d_vocab, task.baselines["base_rate"]) == (12, 12, math.log(12))
    assert qfl.load_task("repeated_sequences", 6, vocab=7).d_vocab == 7


def test_periods_and_tokens_are_uniform():
    task = qfl.load_task("repeated_sequences", 8, vocab=10)
    rows = task.sample(np.random.default_rng(1), 12_000)
    periods = [row.index(row[0], 1) for row in rows.tolist()]
    assert all(len(set(row[:p])) == p for row, p in zip(rows.tolist(), periods, strict=True))
    for values, n_kinds in ((np.array(periods) - 4, 5), (rows[:, 0], 10), (rows[:, 3], 10)):
        counts = np.bincount(values, minlength=n_kinds)
        expected = len(rows) / n_kinds
        assert len(counts) == n_kinds
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-5, n_kinds - 1)


def test_pairs_change_what_they_say():
    task = qfl.load_task("repeated_sequences", 7)
    for feature, n_different in (("next_token", 1), ("previous_token", 1), ("seen_before", None)):
        for label in (0, 2):
            clean, corrupted = task.sample_pairs(np.random.default_rng(label), 100, feature, label)
            for one, other in zip(clean.tolist(), corrupted.tolist(), strict=True):
                p, q = one.index(one[0], 1), other.index(other[0], 1)
                if n_different is None:
                    assert p != q
                    assert one[: min(p, q)] == other[: min(p, q)]
                else:
                    assert p == q
                    assert sum(a != b for a, b in zip(one[:p], other[:p], strict=True)) == n_different


@pytest.mark.parametrize(
    "row",
    [
        [0, 1, 2, 3, 4],  # does not start again
        [0, 0, 0, 0, 0],  # too short a period
        [0, 1, 1, 0, 1],  # a token twice within the period
        [0, 1, 2, 0, 2],  # does not go on as it began
        [0, 1, 2, 3],
        [0, 1, 2, 8, 0],
        [0, 1, -2, 3, 0],
    ],
)
def test_no_example(row):
    task = qfl.load_task("repeated_sequences", 4)
    with pytest.raises(ValueError, match=r"must be 5 tokens in \[0, 8\), of which the first 2 to 4 are different"):
        task.encode(np.array([row]))
    with pytest.raises(ValueError, match="different and then start again"):
        task.decode(torch.tensor([row]))


def test_too_few_tokens():
    assert qfl.load_task("repeated_sequences", 4, vocab=5).d_vocab == 5
    with pytest.raises(ValueError, match=r"vocab of task 'repeated_sequences' must be above the length 4, got 4"):
        qfl.load_task("repeated_sequences", 4, vocab=4)
