"""The online code against a plain loop over blocks with scikit-learn, and on cases whose length is known."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from qfl_interp import ProbeConfig
from qfl_interp.probes import online_code, shuffle_labels
from qfl_interp.probes.online_code import FRACTIONS

N, D, K = 300, 6, 3
COARSE = (0.02, 0.1, 0.3, 1.0)
CONFIG = ProbeConfig(c=5.0)


def draw(kind: str, seed: int = 0, strength: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers, two labels; the label is written in layer 0 alone."""
    rng = np.random.default_rng(seed)
    n_classes = K if kind == "categorical" else 2
    y = rng.integers(0, n_classes, (1 if kind == "binary" else 2, 2, N))
    x = rng.standard_normal((2, 2, N, D))
    for output in range(len(y)):
        x[0] += strength * rng.standard_normal((n_classes, D))[y[output]]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def by_hand(x: np.ndarray, y: np.ndarray, n_classes: int, ends: list[int], kept: np.ndarray) -> list[float]:
    """Bits of every block of one problem; a class the model does not know has probability 0 before the mixing."""
    bits, start = [], 0
    for end in ends:
        before, now = kept[:start].nonzero()[0], start + kept[start:end].nonzero()[0]
        n = len(before)
        probability = np.zeros((len(now), n_classes))
        classes = np.unique(y[before])
        if len(classes) == 1:
            probability[:, classes[0]] = 1
        elif len(classes) and len(now):
            model = LogisticRegression(C=5.0, tol=1e-10, max_iter=1000, solver="newton-cholesky")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(x[before].astype(np.float64), y[before])
            probability[:, model.classes_] = model.predict_proba(x[now].astype(np.float64))
        mixed = (n * probability + 1) / (n + n_classes)
        bits.append(float(-np.log2(mixed[np.arange(len(now)), y[now]]).sum()))
        start = end
    return bits


@pytest.mark.parametrize("kind", ["binary", "multilabel", "categorical"])
@pytest.mark.parametrize("masked", [False, True])
def test_code_length_is_a_plain_loops(kind, masked):
    x, y = draw(kind)
    n_classes = K if kind == "categorical" else 2
    mask = torch.from_numpy(np.random.default_rng(1).random((2, N)) < 0.7) if masked else None
    spoilt = y if mask is None else torch.where(mask, y, 9)
    code = online_code(kind, x, spoilt, CONFIG, fractions=COARSE, example_mask=mask)
    ends = [6, 30, 90, 300]
    assert code.block_ends.tolist() == ends
    kept = np.ones((2, N), dtype=bool) if mask is None else mask.numpy()
    for layer, label, output in np.ndindex(2, 2, len(y)):
        expected = by_hand(x[layer, label].numpy(), y[output, label].numpy(), n_classes, ends, kept[label])
        found = code.block_bits[:, layer, label, output]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
        at = (layer, label, output)
        assert float(code.codelength[at]) == pytest.approx(sum(expected), rel=1e-3)
        uniform = kept[label].sum() * math.log2(n_classes)
        assert float(code.uniform[at]) == pytest.approx(uniform)
        assert float(code.compression[at]) == pytest.approx(uniform / sum(expected), rel=1e-3)


def test_first_block_takes_the_uniform_code():
    x, y = draw("categorical")
    code = online_code("categorical", x, y, CONFIG, fractions=COARSE)
    torch.testing.assert_close(code.block_bits[0], torch.full((2, 2, 2), 6 * math.log2(K)).double())
    four = online_code("categorical", x, y, CONFIG, fractions=COARSE, n_classes=4)
    torch.testing.assert_close(four.uniform, torch.full((2, 2, 2), 2.0 * N).double())


def test_what_is_written_compresses_and_what_is_not_does_not():
    x, y = draw("binary", strength=3.0)
    both = torch.cat([y, shuffle_labels(y, np.random.default_rng(0))])
    code = online_code("binary", x, both, CONFIG)
    assert (code.compression[0, :, 0] > 2).all()
    assert (code.compression[1] < 1).all()
    assert (code.compression[:, :, 1] < 1).all()
    assert code.block_ends.tolist() == sorted({math.ceil(f * N) for f in FRACTIONS})


def test_a_constant_label_takes_laplaces_code():
    """One class only: no probe is ever fitted, and the length is the rule of succession's, block by block."""
    x, y = draw("binary")
    code = online_code("binary", x, torch.ones_like(y), CONFIG, fractions=COARSE)
    expected = 6 + sum((b - a) * math.log2((a + 2) / (a + 1)) for a, b in ((6, 30), (30, 90), (90, 300)))
    torch.testing.assert_close(code.codelength, torch.full((2, 2, 1), expected).double())


def test_a_class_that_comes_late_costs_a_finite_length():
    x, y = draw("categorical")
    y = torch.where(y == 2, 0, y)
    y[..., 200] = 2
    plain, late = (online_code("categorical", x, labels, CONFIG, fractions=COARSE, n_classes=K)
                   for labels in (torch.where(y == 2, 0, y), y))  # fmt: skip
    assert late.codelength.isfinite().all()
    extra = late.block_bits[-1] - plain.block_bits[-1]
    # one label of 93 classes' worth of counts, instead of a likelier one
    assert (extra > 0).all()
    assert (extra <= math.log2(90 + K)).all()
    torch.testing.assert_close(late.block_bits[:-1], plain.block_bits[:-1])


def test_a_label_without_examples_has_no_code():
    x, y = draw("binary")
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[1] = False
    code = online_code("binary", x, y, CONFIG, fractions=COARSE, example_mask=mask)
    assert code.codelength[:, 1].isnan().all()
    assert code.compression[:, 1].isnan().all()
    assert code.codelength[:, 0].isfinite().all()
    assert "4 blocks, 300 examples" in repr(code)


def test_same_input_gives_the_same_bits_and_a_path_is_not_used():
    x, y = draw("categorical")
    first, again = (online_code("categorical", x, y, CONFIG, fractions=COARSE) for _ in range(2))
    assert torch.equal(first.codelength, again.codelength)
    path = online_code("categorical", x, y, ProbeConfig(c=5.0, path=(1e-3, 1e3)), fractions=COARSE)
    assert torch.equal(first.codelength, path.codelength)
    other = online_code("categorical", x, y, ProbeConfig(c=0.01), fractions=COARSE)
    assert not torch.equal(first.codelength, other.codelength)


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 0.2, 1.0), (0.5, 1.5)])
def test_bad_fractions_are_refused(fractions):
    x, y = draw("binary")
    with pytest.raises(ValueError, match="fractions must rise strictly from above 0 to 1"):
        online_code("binary", x, y, CONFIG, fractions=fractions)


def test_numbers_are_refused_with_the_reason():
    x, y = draw("binary")
    with pytest.raises(ValueError, match="noise model"):
        online_code("scalar", x, y, CONFIG)
