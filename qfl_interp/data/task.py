"""What a task is. `tasks/` uses this module, and of the rest only shapes, errors, seeding and baselines.

A task is a family of problems of one length whose every intermediate quantity is known. It samples raw integers,
encodes them as tokens, and names features: quantities that a model solving the task may compute on the way.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Integer, Num, UInt64
from torch import Tensor

from qfl_interp.config import Options
from qfl_interp.data.task_options import OptionValue, TaskOption, checked_options
from qfl_interp.errors import unknown_name
from qfl_interp.shapes import Examples, LossMask, Tokens

FeatureKind = Literal["binary", "categorical", "multilabel", "scalar"]

# Where an example has no such label.
NO_POSITION = -1
# Problems that a task lists at most.
MOST_PROBLEMS = 2**20


class Batch(NamedTuple):
    """Encoded examples.

    Attributes:
        tokens: Token ids, or the vectors of a real-valued task (`Task.d_out`); row i is one padded sequence.
        loss_mask: True on every token that is scored: from `=` through the first end-of-sequence token, or the last
            answer token where a task has no such token. The prediction at position i is scored where
            `loss_mask[:, i + 1]`.
        prompt_end: Whether the first scored token of each row is the last of its prompt (`=`), as in the quiet-features
            paper. False where the answer alone is scored: then every loss is one over the answer.
        targets: Of a real-valued task: the numbers that stand for each token where it is predicted, one position
            before. None: its id does.
    """

    tokens: Tokens
    loss_mask: LossMask
    prompt_end: bool = True
    targets: Float[Tensor, "batch pos d_out"] | None = None

    @property
    def wanted(self) -> Tensor:
        """What stands for each token where it is predicted: its id, or its targets."""
        return self.tokens if self.targets is None else self.targets

    @property
    def answer_mask(self) -> LossMask:
        """True on the scored tokens of the answer."""
        if not self.prompt_end:
            return self.loss_mask
        return self.loss_mask & (self.loss_mask.cumsum(dim=1) > 1)

    def rows(self, index: slice | Tensor) -> Batch:
        """Some of the examples."""
        targets = None if self.targets is None else self.targets[index]
        return self._replace(tokens=self.tokens[index], loss_mask=self.loss_mask[index], targets=targets)


class Pairs(NamedTuple):
    """Clean and corrupted examples for patching: equal in length, different in one feature's value."""

    clean: Examples
    corrupted: Examples


@dataclass(frozen=True)
class Feature:
    """A named intermediate quantity of a task.

    Args:
        name: As in the paper's figures.
        kind: What the labels are; never guessed from their values. "binary": 0 or 1; "categorical": class ids from
            0; "multilabel": a last axis of 0 or 1; "scalar": numbers on a linear scale.
        n_labels: Labels per example at most; the label axis has this length.
        labels: Examples to labels `[batch, label]`, with one more axis `[output]` for "multilabel".
        positions: Examples to the token index `[batch, label]` where the model's activation is read for each label;
            `NO_POSITION` where the example has no such label.
        description: One sentence a person reads.
        by_default: Whether analyses look at it when no feature is named. False for features the paper defines but does
            not probe, and for ones with very many outputs.
    """

    name: str
    kind: FeatureKind
    n_labels: int
    labels: Callable[[Examples], Num[np.ndarray, "batch label *output"]]
    positions: Callable[[Examples], Integer[np.ndarray, "batch label"]]
    description: str
    by_default: bool = True


class Task(abc.ABC):
    """A family of problems of one `length`.

    A subclass sets the class attributes and writes the abstract methods; `registry` finds it through the entry-point
    group "qfl_interp.tasks". Everything random takes a `numpy.random.Generator`.

    Attributes:
        name: As the registry knows it.
        vocabulary: The tokens as a person reads them, in the order of their ids.
        lengths: The smallest and the largest length the task can have.
        length_step: Every length is a multiple of it.
        default_length: The paper's, or a common one where papers differ.
        length_name: Another name for the length, by which it may be given too ("p" of modular addition).
        own_options: What else the task can be made with, on top of what its base class declares. Each has its default
            in the class attribute of its name.
        train_fraction: Share of all problems that training may see; the rest is halved into validation and test.
            Where the problems are so many that none is seen twice it hardly matters; where they are few it is the
            fixed training set of a grokking experiment.
        length: This task's length.
        options: The options that differ from their defaults, as a run keeps them.
        features: The features by name.
    """

    name: ClassVar[str]
    vocabulary: tuple[str, ...]
    lengths: ClassVar[tuple[int, int]]
    length_step: ClassVar[int] = 1
    default_length: ClassVar[int]
    length_name: ClassVar[str] = "length"
    # Beyond 0.99 thousands of problems are drawn for one that is held out.
    own_options: ClassVar[tuple[TaskOption, ...]] = (
        TaskOption("train_fraction", "the share of all problems that training may see", low=0, high=0.99),
    )
    train_fraction: float = 0.75

    def __init__(self, length: int | None = None, **options: Any) -> None:
        wanted: Any = self._one_length(length, options)
        (low, high), step = self.lengths, self.length_step
        fits = isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool) and low <= wanted <= high
        if not fits or wanted % step:
            multiple = f" and a multiple of {step}" if step > 1 else ""
            raise ValueError(
                f"length of task {self.name!r} must be an integer in [{low}, {high}]{multiple}, got {wanted!r}."
            )
        self.length = int(wanted)
        self.options: Options = checked_options(
            self.declared_options(), self._defaults(), options, task=self.name, length=self.length
        )
        for name, value in self.options.items():
            setattr(self, name, value)
        self.features: Mapping[str, Feature] = MappingProxyType({f.name: f for f in self._features()})

    def __repr__(self) -> str:
        shown = [f.name for f in self.features.values() if f.by_default]
        more = f" and {len(self.features) - len(shown)} more" if len(shown) < len(self.features) else ""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}(length={self.length}{options}, features={shown}{more})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Features hold functions, which do not travel.
        make = functools.partial(type(self), **self.options) if self.options else type(self)
        return make, (self.length,)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What decides the problems beside the class, as a run keeps it: values that JSON can hold, by name."""
        return {"length": self.length, "train_fraction": self.train_fraction, **self.options}

    @classmethod
    def declared_options(cls) -> dict[str, TaskOption]:
        """What the task can be made with beside its length, by name: what its classes declare, the base's first."""
        return {option.name: option for base in reversed(cls.__mro__) for option in vars(base).get("own_options", ())}

    @classmethod
    def _defaults(cls) -> dict[str, OptionValue]:
        """What the declared options are where they are not given."""
        return {name: getattr(cls, name) for name in cls.declared_options()}

    def _one_length(self, length: int | None, options: dict[str, Any]) -> Any:
        """The length, by whichever of its names it was given; the other name is taken out of the options."""
        other = options.pop(self.length_name, None) if self.length_name != "length" else None
        if other is not None and length is not None and length != other:
            raise ValueError(
                f"{self.length_name} of task {self.name!r} is its length: give one of them, got {self.length_name} "
                f"{other!r} and length {length!r}."
            )
        given = length if other is None else other
        return self.default_length if given is None else given

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return len(self.vocabulary)

    @property
    @abc.abstractmethod
    def n_ctx(self) -> int:
        """Tokens in one padded sequence."""

    @property
    @abc.abstractmethod
    def baselines(self) -> Mapping[str, float]:
        """Losses of answering at random, in nats per scored token (half squared error, of a real-valued task), by name.

        "base_rate" is what the best constant guess for each token would score, over the answer alone (`=` given).
        "paper", where a paper draws one, is the dashed line of its scaling plot (`=` scored). A real-valued task may
        name rules that it knows in closed form.
        """

    @abc.abstractmethod
    def _features(self) -> Sequence[Feature]:
        """The task's features, in the order they are listed."""

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` examples from the task's distribution, one row of raw integers each."""

    @property
    def samples(self) -> Float[Tensor, "sample d_in"] | None:
        """The vectors that token ids stand for, of a task whose inputs are vectors; None where ids are words."""
        return None

    @property
    def d_out(self) -> int | None:
        """How many numbers are predicted at a position, of a real-valued task; None where ids are.

        Its tokens are vectors; `vocabulary` names their entries, so that `d_vocab` is their width.
        """
        return None

    @property
    def loss_unit(self) -> str:
        """What a loss is counted in: nats, or half the squared error of a real-valued task."""
        return "nats" if self.d_out is None else "half squared error"

    def split_share(self, examples: Examples) -> Float64[np.ndarray, " batch"] | None:
        """Where each example stands in [0, 1) of all, the first `train_fraction` of which is for training.

        NaN is in no split. None, by default: a hash of the canonical form decides.
        """
        return None

    def problems(self) -> Examples | None:
        """Every problem once, in a fixed order, where `sample` draws them all alike and they are few; else None.

        Few are at most `MOST_PROBLEMS`. What is drawn of them makes a fixed training set (`data.training_stream`).
        """
        return None

    @abc.abstractmethod
    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples, answer included."""

    @abc.abstractmethod
    def decode(self, tokens: Tokens) -> Examples:
        """The raw examples whose prompts these tokens hold: `decode(encode(x).tokens) == x`.

        Raises:
            ValueError: A prompt is not one of this task.
        """

    @abc.abstractmethod
    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """Words that are equal for equivalent examples (operands swapped, ...); they decide the split."""

    @abc.abstractmethod
    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """`n` pairs of examples that differ in the value of `feature` at index `label`.

        Raises:
            QflError: The task has no such feature.
            ValueError: The feature has no such label.
        """

    def feature(self, name: str) -> Feature:
        """The feature of this name.

        Raises:
            QflError: There is none; the nearest names are suggested.
        """
        if name not in self.features:
            raise unknown_name(f"feature of {self.name}", name, self.features)
        return self.features[name]

    def str_tokens(self, tokens: Int[Tensor, " pos"] | Integer[np.ndarray, " pos"] | Sequence[int] | Any) -> list[str]:
        """One sequence of ids (or vectors) as a person reads it, a string a token."""
        return [self.vocabulary[int(token)] for token in tokens]
