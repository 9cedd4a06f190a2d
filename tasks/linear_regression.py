"""Linear regression in context: pairs (x, y) of one unknown linear map, each y to be predicted from those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int, UInt64

from qfl_interp.data.task import Batch, Feature, Pairs, Task
from qfl_interp.data.task_options import TaskOption
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._layout import check_array, feature_at
from qfl_interp.tasks._pairs import pairs_by_edit
from qfl_interp.tasks._regression import best_rate, gradient_step, gradient_step_error, least_squares, ridge

# A raw example holds multiples of this: float32 has all of them below 256, so that tokens are exact.
UNIT = 2.0**-16
_MOST = 2**24 - 1


class LinearRegression(Task):
    """Each y_r = w . x_r + noise from x_r and the pairs before it: a real-valued task, its loss the squared error.

    The entries of x are standard normal, those of w normal of variance 1 / d, drawn anew for every example, so that y
    has variance 1 and no w is in the prompt. A raw example is x_0, y_0, x_1, y_1, ... in units of 2**-16; its numbers
    are rounded to them, and exact from there on.

    Tokens are vectors. By default token r is (x_r, x_(r-1), y_(r-1)): the query beside the pair before it, so that one
    layer can learn from the pairs, and a last one carries the last pair. With `alternating` they are (x_0, 0), (0,
    y_0), (x_1, 0), ... and a model has to bring pairs together first. The model predicts y_r where it reads x_r; y_0,
    of which nothing is known, is not scored.

    Features, scalar, label r - 1 at the token of x_r:
        gradient_step: the prediction of a linear model after one step of gradient descent from 0 on the pairs so far,
            at the rate with the least expected error.
        least_squares: the prediction of the least-squares fit of least norm.
        ridge: that of the posterior mean, ridge regression with penalty d noise^2; only where there is noise, without
            which it is the former.

    Attributes:
        d: Entries of x.
        noise: Standard deviation of the noise on y.
        alternating: Whether x and y have tokens of their own.

    References:
        von Oswald et al., arXiv 2309.05858: autoregressive prediction, tokens that carry what came before, and both
        layouts; arXiv 2212.07677: one layer of linear attention is one step of gradient descent. He et al., arXiv
        2503.12734: x ~ N(0, I), w ~ N(0, I / d), softmax attention.

    Example:
        >>> task = LinearRegression(length=3, d=1)
        >>> batch = task.encode(np.array([[2, 1, 4, 2, 6, 3]]) * 2**15)
        >>> batch.tokens[0].tolist()
        [[1.0, 0.0, 0.0], [2.0, 1.0, 0.5], [3.0, 2.0, 1.0], [0.0, 3.0, 1.5]]
        >>> task.str_tokens(batch.tokens[0])
        ['1.00', '2.00|1.00:0.50', '3.00|2.00:1.00', '|3.00:1.50']
    """

    name = "linear_regression"
    lengths = (2, 256)
    default_length = 20
    own_options = (
        TaskOption("d", "entries of x", low=1, high=32),
        TaskOption("noise", "standard deviation of the noise on y", low=0, high=8),
        TaskOption("alternating", "x and y have tokens of their own, one after the other"),
    )
    d: int = 5
    noise: float = 0.0
    alternating: bool = False

    def __init__(self, length: int | None = None, **options: Any) -> None:
        super().__init__(length, **options)
        names = [f"x{i}" for i in range(self.d)]
        before = [] if self.alternating else [f"before_x{i}" for i in range(self.d)]
        self.vocabulary = (*names, *before, "y" if self.alternating else "before_y")

    @property
    def d_out(self) -> int:
        """The prediction of y."""
        return 1

    @property
    def n_ctx(self) -> int:
        """A token for each pair and the last one, or two for each pair."""
        return 2 * self.length if self.alternating else self.length + 1

    @property
    def baselines(self) -> Mapping[str, float]:
        """Expected half squared errors: of predicting 0, and of one step of gradient descent."""
        steps = [gradient_step_error(r, self.d, self.noise) for r in range(1, self.length)]
        return {"base_rate": (1 + self.noise**2) / 2, "gradient_step": float(np.mean(steps)) / 2}

    def _features(self) -> Sequence[Feature]:
        """The predictions of the rules that are known in closed form."""
        reads = np.arange(1, self.length) * (2 if self.alternating else 1)
        step = "the prediction after one step of gradient descent on the pairs so far"
        fit = "the prediction of the least-squares fit of least norm to the pairs so far"
        found = [
            feature_at("gradient_step", "scalar", reads, lambda e: gradient_step(*self.pairs(e), self.noise), step),
            feature_at("least_squares", "scalar", reads, lambda e: least_squares(*self.pairs(e)), fit),
        ]
        if self.noise > 0:
            penalty, mean = self.d * self.noise**2, "the prediction of the posterior mean: ridge regression"
            found.append(feature_at("ridge", "scalar", reads, lambda e: ridge(*self.pairs(e), penalty), mean))
        return found

    def step_rate(self, n_pairs: int) -> float:
        """The learning rate of "gradient_step" after so many pairs, of the gradient of their summed half squares."""
        return best_rate(n_pairs, self.d, self.noise)

    def pairs(
        self, examples: Examples
    ) -> tuple[Float64[np.ndarray, "batch pair d"], Float64[np.ndarray, "batch pair"]]:
        """The numbers of raw examples: x and y."""
        rows = examples.reshape(len(examples), self.length, self.d + 1) * UNIT
        return rows[..., :-1], rows[..., -1]

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` examples, each of a w of its own."""
        return self._answered(rng, _rounded(rng.standard_normal((n, self.length, self.d))))

    def _answered(self, rng: np.random.Generator, x: Int[np.ndarray, "batch pair d"]) -> Examples:
        """Examples with these inputs and a fresh w."""
        w = rng.standard_normal((len(x), self.d)) / np.sqrt(self.d)
        y = np.einsum("bnd,bd->bn", x * UNIT, w) + self.noise * rng.standard_normal(x.shape[:2])
        return np.concatenate([x, _rounded(y)[..., None]], axis=2).reshape(len(x), self.length * (self.d + 1))

    def encode(self, examples: Examples) -> Batch:
        """Tokens, scored tokens and targets: token i holds what is to be predicted at the one before it.

        Raises:
            ValueError: The rows are not pairs of numbers.
        """
        check_array(self, examples)
        least, most = examples.min(initial=0), examples.max(initial=0)
        if examples.shape[1] != self.length * (self.d + 1) or max(-int(least), int(most)) > _MOST:
            raise ValueError(
                f"examples of {self!r} must be rows of {self.length} pairs of {self.d} + 1 numbers within 256, in "
                f"units of 2**-16, got shape {examples.shape} with values in [{least}, {most}]."
            )
        x, y = self.pairs(examples)
        tokens = np.zeros((len(x), self.n_ctx, self.d_vocab), dtype=np.float32)
        if self.alternating:
            tokens[:, ::2, :-1] = x
            tokens[:, 1::2, -1] = y
        else:
            tokens[:, :-1, : self.d] = x
            tokens[:, 1:, self.d : -1] = x
            tokens[:, 1:, -1] = y
        scored = np.zeros(self.n_ctx, dtype=bool)
        scored[3 if self.alternating else 2 :: 2 if self.alternating else 1] = True
        found = torch.from_numpy(tokens)
        mask = torch.from_numpy(scored).repeat(len(x), 1)
        return Batch(found, mask, prompt_end=False, targets=found[..., -1:])

    def decode(self, tokens: Tokens) -> Examples:
        """The pairs that the tokens hold.

        Raises:
            ValueError: They are not tokens of this task.
        """
        wanted = (self.n_ctx, self.d_vocab)
        if tokens.shape[1:] != wanted or not tokens.is_floating_point():
            raise ValueError(
                f"tokens of {self!r} must be vectors of shape [batch, {wanted[0]}, {wanted[1]}], got "
                f"{list(tokens.shape)} of {tokens.dtype}."
            )
        rows = tokens.detach().cpu().double().numpy() / UNIT
        held = rows[:, ::2, :-1], rows[:, 1::2, -1:]
        pairs = np.concatenate(held, axis=2) if self.alternating else rows[:, 1:, self.d :]
        examples = np.rint(pairs).reshape(len(pairs), self.length * (self.d + 1)).astype(np.int32)
        if not torch.equal(self.encode(examples).tokens, tokens.detach().cpu().float()):
            raise ValueError(f"tokens of {self!r} must be what `encode` gives: pairs of multiples of 2**-16.")
        return examples

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The numbers themselves."""
        return examples.astype(np.int64).view(np.uint64)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs with the same inputs and another w, so that every y is another one.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """

        def edit(rng: np.random.Generator, clean: Examples) -> Examples:
            return self._answered(rng, clean.reshape(len(clean), self.length, self.d + 1)[..., :-1])

        return pairs_by_edit(self, rng, n, feature, label, edit)

    def str_tokens(self, tokens: Any) -> list[str]:
        """Numbers to two decimals: an x, a y behind `:`, and behind `|` the pair before."""
        rows = np.asarray(tokens, dtype=np.float64)
        if self.alternating:
            return [_text(row[:-1]) if i % 2 == 0 else f":{row[-1]:.2f}" for i, row in enumerate(rows)]
        pairs = ["" if i == 0 else f"|{_text(row[self.d : -1])}:{row[-1]:.2f}" for i, row in enumerate(rows)]
        return [("" if i == self.length else _text(row[: self.d])) + pairs[i] for i, row in enumerate(rows)]


def _rounded(values: Float64[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Numbers in units."""
    return np.clip(np.rint(values / UNIT), -_MOST, _MOST).astype(np.int32)


def _text(numbers: Float64[np.ndarray, " n"]) -> str:
    """Numbers to two decimals."""
    return " ".join(f"{number:.2f}" for number in numbers)
