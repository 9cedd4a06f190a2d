"""Modular addition against Python's integers and the roots of unity; its fixed training set."""

from __future__ import annotations

import cmath
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

import qfl_interp as qfl
from qfl_interp.data.examples import ExampleStream, held_out, in_split


def check_against_roots_of_unity(task, pairs) -> None:
    """Tokens, mask, labels and positions of problems (a, b)."""
    p, examples = task.length, np.array(pairs)
    batch = task.encode(examples)
    labels = {name: f.labels(examples) for name, f in task.features.items()}
    for i, (a, b) in enumerate(pairs):
        assert task.str_tokens(batch.tokens[i]) == [str(a), "+", str(b), "=", str((a + b) % p)]
        for name, number in (("sum", a + b), ("first", a)):
            # Powers of the p-th root of unity, exact integers up to the last step.
            roots = [cmath.exp(2j * cmath.pi * (k * number % p) / p) for k in range(1, (p - 1) // 2 + 1)]
            assert labels[f"cos_{name}"][i] == pytest.approx([z.real for z in roots], abs=1e-12)
            assert labels[f"sin_{name}"][i] == pytest.approx([z.imag for z in roots], abs=1e-12)
    np.testing.assert_array_equal(batch.loss_mask, np.tile([False, False, False, True, True], (len(pairs), 1)))
    for feature in task.features.values():
        np.testing.assert_array_equal(feature.positions(examples), np.full((len(pairs), (p - 1) // 2), 3))
        assert feature.labels(examples).dtype == np.float64
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)


@pytest.mark.parametrize("p", [3, 4, 7, 12])
def test_all_problems(p):
    check_against_roots_of_unity(qfl.load_task("modular_addition", p), list(itertools.product(range(p), repeat=2)))


@pytest.mark.parametrize(("p", "n"), [(113, 1000), (1000, 20)])
def test_random_problems(p, n):
    task = qfl.load_task("modular_addition", p)
    check_against_roots_of_unity(task, task.sample(np.random.default_rng(p), n).tolist())


def test_every_sum_of_the_papers_modulus():
    task = qfl.load_task("modular_addition")
    every = np.array(list(itertools.product(range(113), repeat=2)))
    tokens = task.encode(every).tokens.tolist()
    assert [row[4] for row in tokens] == [(a + b) % 113 for a, b in every.tolist()]
    assert (task.n_ctx, task.d_vocab, task.vocabulary[112:]) == (5, 115, ("112", "+", "="))
    assert [name for name, f in task.features.items() if f.by_default] == ["cos_sum", "sin_sum"]


@pytest.mark.parametrize("p", [3, 7, 12, 113, 1000])
def test_equal_waves_are_equal_to_the_last_bit(p):
    """A wave of frequency k takes n = p / gcd(k, p) values, of which cosine has n // 2 + 1 different ones."""
    task = qfl.load_task("modular_addition", p)
    residues = np.stack([np.arange(p), np.zeros(p, dtype=int)], axis=1)
    cos, sin = (task.features[name].labels(residues) for name in ("cos_sum", "sin_sum"))
    np.testing.assert_array_equal(cos, task.features["cos_first"].labels(residues))
    for k in range(1, (p - 1) // 2 + 1):
        values = p // math.gcd(k, p)
        # The angles x with x <= 1/2 - x modulo 1, in exact fractions of a turn: one for each different sine.
        sines = {min(4 * j % (4 * values), (2 * values - 4 * j) % (4 * values)) for j in range(values)}
        assert len(np.unique(cos[:, k - 1])) == values // 2 + 1
        assert len(np.unique(sin[:, k - 1])) == len(sines)


@given(p=st.integers(3, 1000), data=st.data())
def test_swapped_operands_are_the_same_problem(p, data):
    task = qfl.load_task("modular_addition", p)
    a, b, c, d = (data.draw(st.integers(0, p - 1)) for _ in range(4))
    words = task.canonical(np.array([(a, b), (b, a), (c, d)]))
    np.testing.assert_array_equal(words[0], words[1])
    assert (words[0] == words[2]).all() == ({a, b} == {c, d})


def test_the_training_set_is_a_fixed_half():
    task = qfl.load_task("modular_addition")
    unordered = np.array(list(itertools.combinations_with_replacement(range(113), 2)))
    n = len(unordered)
    for split, share in (("train", 0.5), ("val", 0.25), ("test", 0.25)):
        belongs = in_split(task, unordered, split)
        assert abs(belongs.mean() - share) < 4 * math.sqrt(share * (1 - share) / n)
        np.testing.assert_array_equal(belongs, in_split(task, unordered[:, ::-1], split))


def test_training_and_held_out_problems_never_overlap():
    task = qfl.load_task("modular_addition", 31)
    every = np.array(list(itertools.product(range(31), repeat=2)))
    seen = {}
    for seed in (0, 1):
        stream = ExampleStream(task, seed=seed, batch_size=512)
        seen["train"] = {tuple(row) for step in range(20) for row in stream.examples(step).tolist()}
        for split in ("val", "test"):
            seen[split] = {tuple(row) for row in held_out(task, split, 1000, seed=seed, stream="x").tolist()}
        # All of each split is found, whatever the seed: the three are disjoint and leave nothing out.
        for split, found in seen.items():
            assert found == {tuple(row) for row in every[in_split(task, every, split)].tolist()}
        assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 31**2


@pytest.mark.parametrize("p", [3, 4, 113])
@pytest.mark.parametrize("feature", ["cos_sum", "sin_sum", "cos_first", "sin_first"])
def test_pairs(p, feature):
    task = qfl.load_task("modular_addition", p)
    for label in {0, (p - 1) // 2 - 1}:
        pairs = task.sample_pairs(np.random.default_rng(label), 300, feature, label)
        clean, corrupted = (task.features[feature].labels(x)[:, label] for x in pairs)
        assert len(clean) == 300
        assert (np.abs(clean - corrupted) > 1e-6).all()
        kept = "first" if feature.endswith("sum") else "sum"
        for name in (f"cos_{kept}", f"sin_{kept}"):
            np.testing.assert_array_equal(*(task.features[name].labels(x) for x in pairs))
        if kept == "first":
            np.testing.assert_array_equal(pairs.clean[:, 0], pairs.corrupted[:, 0])
        assert pairs.corrupted.min() >= 0
        assert pairs.corrupted.max() < p


def test_sampling_is_uniform():
    examples = qfl.load_task("modular_addition", 13).sample(np.random.default_rng(0), 169 * 200)
    counts = np.bincount(examples @ [13, 1], minlength=169)
    assert ((counts - 200) ** 2 / 200).sum() < chi2.ppf(0.999, 168)


@pytest.mark.parametrize("p", [7, 12])
def test_baselines(p):
    task = qfl.load_task("modular_addition", p)
    answers = [(a + b) % p for a, b in itertools.product(range(p), repeat=2)]
    shares = [answers.count(c) / p**2 for c in range(p)]
    assert task.baselines["base_rate"] == pytest.approx(-sum(s * math.log(s) for s in shares), rel=1e-12)


def test_no_examples():
    task = qfl.load_task("modular_addition")
    none = task.sample(np.random.default_rng(0), 0)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, 5)
    assert task.decode(batch.tokens).shape == (0, 2)
    assert task.canonical(none).shape == (0, 2)
    for feature in task.features.values():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, 56)


def test_bad_examples_and_prompts():
    task = qfl.load_task("modular_addition", 7)
    with pytest.raises(ValueError, match=r"length of task 'modular_addition' must be an integer in \[3, 1000\], got 2"):
        qfl.load_task("modular_addition", 2)
    with pytest.raises(ValueError, match=r"two numbers in \[0, 7\), got shape \(1, 2\) with values in \[0, 7\]"):
        task.encode(np.array([[0, 7]]))
    with pytest.raises(ValueError, match=r"got shape \(1, 3\)"):
        task.encode(np.array([[0, 1, 2]]))
    tokens = task.encode(np.array([[1, 2], [5, 6]])).tokens
    with pytest.raises(ValueError, match="4 tokens, got 3"):
        task.decode(tokens[:, :3])
    for at, wrong in ((0, 7), (1, 8), (2, -1), (3, 7)):
        bad = tokens.clone()
        bad[1, at] = wrong
        with pytest.raises(ValueError, match=r"'\+' \(id 7\), a number in \[0, 7\), '=' \(id 8\); row 1 holds"):
            task.decode(bad)
    with pytest.raises(ValueError, match=r"label of cos_sum must lie in \[0, 3\), got 3"):
        task.sample_pairs(np.random.default_rng(0), 1, "cos_sum", 3)


def test_ordered_pairs_are_problems_of_their_own():
    every = np.array(list(itertools.product(range(113), repeat=2)))
    task, plain = (qfl.load_task("modular_addition", train_fraction=0.3, ordered=o) for o in (True, False))
    trained, mirrored = in_split(task, every, "train"), in_split(task, every[:, ::-1], "train")
    n = len(every)
    assert abs(trained.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    # Independent of each other where a differs from b, so that a held-out problem's mirror image is often trained on.
    off = every[:, 0] != every[:, 1]
    assert abs((trained & mirrored)[off].mean() - 0.09) < 4 * math.sqrt(0.09 * 0.91 / (off.sum() / 2))
    np.testing.assert_array_equal(in_split(plain, every, "train"), in_split(plain, every[:, ::-1], "train"))


def test_the_answer_alone_is_scored():
    task, plain = (qfl.load_task("modular_addition", 7, answer_only=o) for o in (True, False))
    examples = np.array([[1, 2], [5, 6]])
    batch, before = task.encode(examples), plain.encode(examples)
    assert batch.loss_mask.tolist() == batch.answer_mask.tolist() == [[False, False, False, False, True]] * 2
    assert before.answer_mask.tolist() == batch.loss_mask.tolist()
    assert (batch.tokens == before.tokens).all()
    assert (batch.prompt_end, before.prompt_end) == (False, True)
