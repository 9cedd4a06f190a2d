"""The measured base rate against a count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.data.baselines import measured_base_rate
from qfl_interp.data.task import Batch
from qfl_interp.seeding import generator


class _Answers(qfl.Task):
    """The answer to 0 is `1 0`, to 1 it is `1 1 1`, to 2 `0 1`; the base class demands the rest."""

    name, vocabulary, lengths, default_length = "answers", ("0", "1", "2", "="), (1, 1), 1
    n_ctx, baselines = 5, {}
    _ANSWERS = ((1, 0), (1, 1, 1), (0, 1))

    def _features(self):
        return []

    def sample(self, rng, n):
        return rng.integers(0, 3, (n, 1))

    def encode(self, examples):
        tokens = torch.zeros(len(examples), 5, dtype=torch.int64)
        mask = torch.zeros(len(examples), 5, dtype=torch.bool)
        for row, (value,) in enumerate(examples.tolist()):
            answer = self._ANSWERS[value]
            tokens[row, : 2 + len(answer)] = torch.tensor([value, 3, *answer])
            mask[row, 1 : 2 + len(answer)] = True
        return Batch(tokens, mask)

    def decode(self, tokens):
        raise NotImplementedError

    def canonical(self, examples):
        raise NotImplementedError

    def sample_pairs(self, rng, n, feature, label):
        raise NotImplementedError


def test_base_rate_is_the_entropy_of_each_answer_place():
    task, n = _Answers(), 3000
    counts = np.bincount(task.sample(generator(0, "base_rate/answers"), n).ravel(), minlength=3)
    places = [(counts[0] + counts[1], counts[2]), (counts[0], counts[1] + counts[2]), (counts[1],)]
    nats = -sum(c * math.log(c / sum(place)) for place in places for c in place)
    assert measured_base_rate(task, n) == pytest.approx(nats / sum(map(sum, places)), rel=1e-12)
    assert measured_base_rate(task, n) == measured_base_rate(task, n)


def test_every_example_counts_whatever_their_number():
    task, n = _Answers(), 10_001
    counts = np.bincount(task.sample(generator(0, "base_rate/answers"), n).ravel(), minlength=3)
    places = [(counts[0] + counts[1], counts[2]), (counts[0], counts[1] + counts[2]), (counts[1],)]
    nats = -sum(c * math.log(c / sum(place)) for place in places for c in place)
    assert measured_base_rate(task, n) == pytest.approx(nats / sum(map(sum, places)), rel=1e-12)
