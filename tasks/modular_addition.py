"""Modular addition: two residues to their sum modulo p, a fixed share of all problems for training (grokking)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from qfl_interp.data.task import Batch, Feature, Pairs, Task
from qfl_interp.data.task_options import TaskOption
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._layout import FREE, check_rows, checked_prompt, feature_at, scored_from
from qfl_interp.tasks._pairs import check_label, pairs_by_edit

# Token indices of a, `+`, b, `=`, c.
_A, _PLUS, _B, _EQUALS, _C = range(5)


class _Waves(NamedTuple):
    """Entry (x, r) is the cosine (sine) of 2 pi (r + 1) x / p."""

    cos: Float64[np.ndarray, "residue frequency"]
    sin: Float64[np.ndarray, "residue frequency"]


@functools.lru_cache(maxsize=8)
def _waves(p: int) -> _Waves:
    """One period of every wave that a number modulo p can have.

    Angles are folded by the symmetries of both functions, so that values that are equal are equal to the last bit and
    zeros are exact: a pair of examples differs in a label only where the numbers do.
    """
    quarters = 4 * (np.arange(p)[:, None] * np.arange(1, (p - 1) // 2 + 1) % p)  # a turn is 4 p of these

    def sine(x: Int64[np.ndarray, "residue frequency"]) -> Float64[np.ndarray, "residue frequency"]:
        x = (x + 2 * p) % (4 * p) - 2 * p
        size = np.minimum(np.abs(x), 2 * p - np.abs(x))
        return np.sign(x) * np.sin(math.pi / (2 * p) * size)

    return _Waves(cos=sine(quarters + p), sin=sine(quarters))


class ModularAddition(Task):
    """`a + b` modulo p, the problem of the grokking papers; the task's length is p.

    A raw example is (a, b). The tokens are a, `+`, b, `=`, c with c = (a + b) mod p, five in all, whatever p is: the
    residue x is one token, with id x; `+` has id p and `=` has p + 1. There is no `<EOS>`: the answer is one token.
    `=` is scored too; it is certain, so the loss over the answer alone is the literature's. With `answer_only` that is
    what is trained on.

    Training sees a fixed half of all p^2 problems, which the hash of the unordered pair of operands chooses, so that
    (a, b) and (b, a) are both trained on or both held out; the rest is halved into validation and test. The progress
    measures paper trains on 30 % of the ordered pairs, which hold 1 - 0.7^2 = 51 % of the unordered ones: as much to
    learn from, but 30 % of its test problems are mirrored training problems. With `ordered` the pairs are split as
    there. Batches are drawn from the training problems with replacement, so that an epoch is no more than an average;
    that paper takes the whole set at every step, which is `TrainConfig(batch_size="all")` here.

    Features, all read at `=`:
        cos_sum, sin_sum: label r is the cosine (sine) of 2 pi (r + 1) (a + b) / p, frequency r + 1 = 1 .. (p - 1) // 2:
            what a network that grokked by the Fourier algorithm computes, for a few of the frequencies.
        cos_first, sin_first: the same of a alone, what that algorithm starts from. Not looked at by default.

    Attributes:
        ordered: Whether (a, b) and (b, a) are two problems of which one may be held out.
        answer_only: Whether c alone is scored.

    References:
        arXiv 2201.02177 (grokking); arXiv 2301.05217 (the Fourier algorithm, p = 113).

    Example:
        >>> task = ModularAddition(length=7)
        >>> task.str_tokens(task.encode(np.array([[5, 6]])).tokens[0])
        ['5', '+', '6', '=', '4']
        >>> task.features["cos_sum"].labels(np.array([[5, 6]])).round(2).tolist()  # of 4, 8 and 12 sevenths of a turn
        [[-0.9, 0.62, -0.22]]
    """

    name = "modular_addition"
    lengths = (3, 1000)
    default_length = 113
    length_name = "p"
    train_fraction = 0.5
    own_options = (
        TaskOption("ordered", "whether (a, b) and (b, a) are split as two problems, as the grokking papers do"),
        TaskOption("answer_only", "whether the answer alone is scored, `=` not"),
    )
    ordered: bool = False
    answer_only: bool = False

    def __init__(self, length: int | None = None, **options: Any) -> None:
        super().__init__(length, **options)
        self.vocabulary = (*map(str, range(self.length)), "+", "=")

    @property
    def n_ctx(self) -> int:
        """a, `+`, b, `=`, c: 5 tokens."""
        return _C + 1

    @property
    def baselines(self) -> Mapping[str, float]:
        """One residue in p: the sum of uniform residues is uniform. The papers draw no line."""
        return {"base_rate": math.log(self.length)}

    def _features(self) -> Sequence[Feature]:
        """Waves of the sum and of the first operand, at every frequency."""

        def wave(kind: str, of: str, name: str, number: Callable[[Examples], Int64[np.ndarray, " batch"]]) -> Feature:
            return feature_at(
                f"{kind}_{name}",
                "scalar",
                np.full((self.length - 1) // 2, _EQUALS),
                lambda examples: np.take(getattr(_waves(self.length), kind), number(examples), axis=0),
                f"{kind} of 2 pi (r + 1) {of} / p, at '='",
                by_default=name == "sum",
            )

        return [
            wave("cos", "(a + b)", "sum", self._sums),
            wave("sin", "(a + b)", "sum", self._sums),
            wave("cos", "a", "first", lambda examples: examples[:, 0].astype(np.int64)),
            wave("sin", "a", "first", lambda examples: examples[:, 0].astype(np.int64)),
        ]

    def _sums(self, examples: Examples) -> Int64[np.ndarray, " batch"]:
        """(a + b) mod p."""
        return examples.sum(axis=1, dtype=np.int64) % self.length

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` pairs of independent uniform residues."""
        return rng.integers(0, self.length, size=(n, 2), dtype=np.int32)

    def problems(self) -> Examples:
        """All p^2 pairs, by a and then by b."""
        return np.stack(np.divmod(np.arange(self.length**2, dtype=np.int32), self.length), axis=1)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not two residues modulo p.
        """
        p = self.length
        check_rows(self, examples, 2, p - 1, f"two numbers in [0, {p})")
        rows = np.empty((len(examples), self.n_ctx), dtype=np.int64)
        rows[:, [_A, _B]] = examples
        rows[:, _PLUS] = p
        rows[:, _EQUALS] = p + 1
        rows[:, _C] = self._sums(examples)
        if self.answer_only:
            return scored_from(_C, rows)._replace(prompt_end=False)
        return scored_from(_EQUALS, rows)

    def decode(self, tokens: Tokens) -> Examples:
        """The operands that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not a residue, `+`, a residue, `=`.
        """
        p = self.length
        rule = f"a number in [0, {p}), '+' (id {p}), a number in [0, {p}), '=' (id {p + 1})"
        ids = checked_prompt(self, tokens, np.array([FREE, p, FREE, p + 1]), p - 1, rule)
        return ids[:, [_A, _B]].astype(np.int32)

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """Both operands, the smaller first unless the order tells problems apart."""
        return (examples if self.ordered else np.sort(examples, axis=1)).astype(np.uint64)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in b, or in both operands.

        - cos_sum, sin_sum: b is changed; a and its waves stay. Waves of the sum at other frequencies change too.
        - cos_first, sin_first: a is changed, and b so that the sum, hence its waves and the answer, stay.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """
        check_label(self, feature, label)
        directions = np.array((0, 1) if feature.endswith("_sum") else (1, -1), dtype=np.int32)

        def moved(rng: np.random.Generator, clean: Examples) -> Examples:
            """Operands moved along `directions` by any amount but none."""
            return (
                clean + rng.integers(1, self.length, size=(len(clean), 1), dtype=np.int32) * directions
            ) % self.length

        return pairs_by_edit(self, rng, n, feature, label, moved)
