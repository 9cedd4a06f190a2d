"""Labels that the next token gives away: those the tasks' definitions say, and none by chance."""

from __future__ import annotations

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.data.next_token import next_token_labels


@pytest.mark.parametrize(
    ("task", "length", "feature", "labels"),
    [
        ("addition", 4, "carry", (3,)),
        ("addition", 4, "first_operand", ()),
        ("addition", 4, "xor", (0,)),
        ("decimal_addition", 3, "carry", (0,)),
        ("decimal_addition", 3, "digit", (0, 1, 2, 3)),
        ("decimal_addition", 3, "digit_sum", (2,)),
        ("modular_addition", 11, "cos_sum", (0, 1, 2, 3, 4)),
        ("modular_addition", 11, "cos_first", ()),
        ("sparse_parity", 8, "relevant_bit", ()),
        ("sparse_parity", 8, "partial_parity", (1,)),
    ],
)
def test_labels_of_tasks(task, length, feature, labels):
    assert next_token_labels(qfl.load_task(task, length), feature) == labels


def dataset(label, *, n=400, d_vocab=5):
    """Prompts `x y`, answers drawn at random; `label(prompt, answer)` is read at y, which predicts the answer."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(d_vocab, size=(n, 3))
    mask = np.tile([False, True, True], (n, 1))
    values, at = label(tokens[:, 0], tokens[:, 2])[:, None], np.ones((n, 1), dtype=int)
    return qfl.FixedTask("random", tokens, mask, {"f": qfl.FixedFeature("categorical", values, at)})


def test_a_function_of_the_answer_is_found_whatever_the_function():
    assert next_token_labels(dataset(lambda prompt, answer: answer), "f") == (0,)
    assert next_token_labels(dataset(lambda prompt, answer: answer // 2), "f") == (0,)
    assert next_token_labels(dataset(lambda prompt, answer: prompt), "f") == ()
    assert next_token_labels(dataset(lambda prompt, answer: (prompt + answer) % 2), "f") == ()
    one_exception = dataset(lambda prompt, answer: np.where(np.arange(len(answer)) == 7, 1 - answer // 4, answer // 4))
    assert next_token_labels(one_exception, "f") == ()


def test_a_label_that_does_not_vary_and_one_with_too_few_examples_are_none():
    assert next_token_labels(dataset(lambda prompt, answer: 0 * answer), "f") == ()
    every_token_once = dataset(lambda prompt, answer: answer % 2, n=2_000, d_vocab=400)
    assert next_token_labels(every_token_once, "f") == ()
