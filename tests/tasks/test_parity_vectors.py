"""Parities of vectors against plain Python."""

from __future__ import annotations

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.data.examples import in_split


def test_vectors_parities_and_labels_by_hand():
    task = qfl.load_task("parity_vectors", 8, k=4, n_samples=1000)
    assert task.bits.relevant == qfl.load_task("sparse_parity", 7, k=4).relevant
    numbers = task.problems()
    batch, vectors = task.encode(numbers), task.samples
    bits, parities = (task.features[name].labels(numbers) for name in ("relevant_bit", "partial_parity"))
    assert vectors.shape == (1000, 8)
    for i, vector in enumerate(vectors.tolist()):
        assert set(vector) <= {-1.0, 1.0}
        assert vector[-1] == 1
        chosen = [int(vector[place] > 0) for place in task.bits.relevant]
        assert bits[i].tolist() == chosen
        assert parities[i].tolist() == [sum(chosen[: r + 2]) % 2 for r in range(3)]
        assert batch.tokens[i].tolist() == [i, sum(chosen) % 2]
    assert batch.loss_mask.tolist() == [[False, True]] * 1000
    assert not batch.prompt_end
    assert task.str_tokens(batch.tokens[7])[0] == "#7"


def test_bits_are_fair_and_the_same_every_time():
    task, again = (qfl.load_task("parity_vectors", 21) for _ in range(2))
    assert (task.samples == again.samples).all()
    n, mean = task.n_samples, task.samples[:, :-1].mean(dim=0)
    assert float(mean.abs().max()) < 4.5 / n**0.5
    assert (qfl.load_task("parity_vectors", 21, n_samples=2000).samples != task.samples[:2000]).any()


def test_the_first_samples_are_trained_on():
    task = qfl.load_task("parity_vectors", 11, n_samples=1000, train_fraction=0.9)
    belongs = in_split(task, task.problems(), "train")
    assert belongs.tolist() == [i < 900 for i in range(1000)]


def test_more_relevant_bits_than_there_are():
    with pytest.raises(ValueError, match="k of task 'parity_vectors' must be at most the 5 bits, got 6"):
        qfl.load_task("parity_vectors", 6, k=6)
    with pytest.raises(ValueError, match="must be rows of a sample's number"):
        qfl.load_task("parity_vectors", 6, n_samples=1000).encode(np.array([[1000]]))
