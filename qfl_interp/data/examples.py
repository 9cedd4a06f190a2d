"""An endless stream of fresh examples and fixed held-out sets; the splits cannot overlap.

An example belongs to exactly one split, decided by a hash of its canonical form: equivalent examples (operands
swapped, ...) share a split by construction, at any scale and without stored filter sets. The hash does not depend on
the run's seed, so that no run trains on what another is tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt64

from qfl_interp.data.task import Batch, Pairs, Task
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples

SPLITS = ("train", "val", "test")
# Rounds without one new example after which a split counts as exhausted.
_PATIENCE = 20
# Examples drawn at a time at least, of a set that is larger.
_ROUND = 1 << 18
# Times the examples of a split that are drawn of a small one before it counts as a round.
_OVER_FEW = 32
# Raw integers and token ids, 8 each, and the loss mask.
_BYTES_A_TOKEN = 17


def _mix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def split_hash(words: UInt64[np.ndarray, "batch word"]) -> UInt64[np.ndarray, " batch"]:
    """A 64-bit hash of each row of canonical words."""
    state = np.full(len(words), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in words.T:
        state = _mix(state ^ column) + np.uint64(0x9E3779B97F4A7C15)
    return _mix(state)


def _bounds(task: Task, split: str) -> tuple[float, float]:
    """The stretch of [0, 1) in which the hashes of a split lie."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    train = task.train_fraction
    edges = (0.0, train, (1 + train) / 2, 1.0)
    at = SPLITS.index(split)
    if edges[at] == edges[at + 1]:
        raise QflError(
            f"the {split} split of {task!r} is empty: its train_fraction is {train}. Give the task another share."
        )
    return edges[at], edges[at + 1]


def fitted_split(task: Task) -> str:
    """The split that the loss of a lens is taken over: "train"; "val" of a dataset that nothing was trained on."""
    return "train" if task.train_fraction > 0 else "val"


def in_split(task: Task, examples: Examples, split: str) -> Bool[np.ndarray, " batch"]:
    """Which examples belong to `split`."""
    low, high = _bounds(task, split)
    share = task.split_share(examples)
    if share is None:
        # The top 53 bits are a float64 in [0, 1) without rounding.
        share = (split_hash(task.canonical(examples)) >> np.uint64(11)) * 2.0**-53
    return (share >= low) & (share < high)


def require_room(task: Task, n: int, what: str, remedy: str) -> None:
    """Raise `QflError` where the rows, tokens and masks of `n` examples do not fit into memory, before one is drawn.

    `what` they are, behind their number; `remedy` is what to do.
    """
    width = 1 if task.d_out is None else task.d_vocab
    require_memory(n * task.n_ctx * width * _BYTES_A_TOKEN, available_bytes(), f"{n:,} {what} of {task.name}", remedy)


def _proposals(task: Task, rng: np.random.Generator, n: int, split: str) -> Examples:
    """Examples of all splits, enough that about `n` are of one."""
    low, high = _bounds(task, split)
    return task.sample(rng, int(n / (high - low) * 1.1) + 16)


def _draw(task: Task, rng: np.random.Generator, n: int, split: str) -> Examples:
    """About `n` examples of one split: one round of rejection sampling."""
    drawn = _proposals(task, rng, n, split)
    return drawn[in_split(task, drawn, split)]


@dataclass(frozen=True)
class ExampleStream:
    """Endless batches of fresh examples; the position in the data is the step, so nothing needs storing to resume.

    Args:
        task: Where examples come from.
        seed: The run's seed.
        batch_size: Examples per step.
        split: Which split they belong to.

    Raises:
        QflError: One batch does not fit into memory.
    """

    task: Task
    seed: int
    batch_size: int
    split: str = "train"

    def __post_init__(self) -> None:
        require_room(self.task, self.batch_size, "examples of a batch", "Take a smaller batch_size.")

    def examples(self, step: int) -> Examples:
        """The raw examples of one step, the same at every call.

        Raises:
            QflError: The task has no example in this split (its length is too small).
        """
        rng = self._generator(step)
        parts, found = [], 0
        for _ in range(_PATIENCE):
            part = _draw(self.task, rng, self.batch_size - found, self.split)
            parts.append(part)
            found += len(part)
            if found >= self.batch_size:
                return np.concatenate(parts)[: self.batch_size]
        raise QflError(
            f"the {self.split} split of {self.task!r} gave {found} of {self.batch_size} examples in {_PATIENCE} "
            "rounds. The task has too few different problems at this length: use a larger length."
        )

    def batch(self, step: int) -> Batch:
        """The encoded examples of one step."""
        return self.task.encode(self.examples(step))

    def _generator(self, step: int) -> np.random.Generator:
        """What a step's examples are drawn with."""
        return generator(self.seed, f"data/{self.split}", step)


def examples_of_all(streams: Sequence[ExampleStream], step: int) -> Examples:
    """Every stream's examples of one step one after the other, each the stream's own, sorted into splits together.

    The streams are of one task, split and batch size.

    Raises:
        QflError: As `ExampleStream.examples`.
    """
    task, split, size = streams[0].task, streams[0].split, streams[0].batch_size
    drawn = [_proposals(task, stream._generator(step), size, split) for stream in streams]
    kept = np.split(in_split(task, np.concatenate(drawn), split), np.cumsum([len(d) for d in drawn])[:-1])
    # A stream whose first round gave too few goes on alone.
    firsts = [own[keep][:size] for own, keep in zip(drawn, kept, strict=True)]
    return np.concatenate(
        [own if len(own) == size else s.examples(step) for own, s in zip(firsts, streams, strict=True)]
    )


def _at_most(n_drawn: int, n_different: int) -> int:
    """About how many problems there are, rather too many, by how often draws repeated: `n_drawn^2 / 2` pairs can."""
    return n_drawn**2 // (2 * (n_drawn - n_different + 1)) + n_different


def held_out(task: Task, split: str, n: int, *, seed: int, stream: str) -> Examples:
    """A fixed set of at most `n` different examples of one split, in the order they were drawn.

    Fewer come back where the split holds fewer: a short length has few problems.

    Args:
        task: Where examples come from.
        split: "val" or "test", which training never touches ("train" is for checks on training data).
        n: Examples wanted.
        seed: The run's seed.
        stream: What the set is for; another use draws another set.

    Raises:
        QflError: The split holds no example at all, or so many examples do not fit into memory.
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n, the number of {split} examples, must be at least 1, got {n}.")
    rng = generator(seed, f"held_out/{stream}/{split}")
    kept = task.sample(rng, 0)
    idle = 0
    while len(kept) < n and idle < _PATIENCE:
        # Not all that are asked for at once: there may be far fewer.
        round_size = min(n - len(kept), max(_ROUND, len(kept)))
        if n > _ROUND and len(kept):
            round_size = min(round_size, _OVER_FEW * len(kept))
        both = np.concatenate([kept, _draw(task, rng, max(round_size, 256), split)])
        _, first = np.unique(both, axis=0, return_index=True)
        if len(kept) == 0:
            require_room(task, min(n, _at_most(len(both), len(first))), f"{split} examples", "Take fewer.")
        idle = idle + 1 if len(first) == len(kept) else 0
        kept = both[np.sort(first)]
    if len(kept) == 0:
        raise QflError(f"the {split} split of {task!r} holds no example. Use a larger length.")
    return kept[:n]


def validation_examples(task: Task, n: int, seed: int) -> Examples:
    """The validation set of a training of this seed: the same at every step. As `held_out`."""
    return held_out(task, "val", n, seed=seed, stream="validation")


def held_out_pairs(task: Task, split: str, n: int, feature: str, label: int, *, seed: int, stream: str) -> Pairs:
    """`n` clean and corrupted examples that differ in one label, the clean ones of one split.

    Args:
        task: Draws the pairs (`Task.sample_pairs`).
        split: "val" or "test" ("train" is for checks on training data).
        n: Pairs wanted; fewer come back where the split holds few such examples, and never none.
        feature: Whose label differs.
        label: Which one.
        seed: The run's seed.
        stream: What the pairs are for; another use draws others.

    Raises:
        QflError: Unknown feature, no pair was found whose clean example is of this split, or so many pairs do not fit
            into memory.
        ValueError: The feature has no such label, nothing changes it, or `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n, the number of pairs, must be at least 1, got {n}.")
    require_room(task, 2 * n, f"examples of {n:,} pairs", "Take fewer pairs.")
    rng = generator(seed, f"held_out_pairs/{stream}/{split}/{feature}/{label}")
    low, high = _bounds(task, split)
    parts, found = [], 0
    for _ in range(_PATIENCE):
        drawn = task.sample_pairs(rng, int((n - found) / (high - low) * 1.1) + 16, feature, label)
        kept = in_split(task, drawn.clean, split)
        parts.append(Pairs(drawn.clean[kept], drawn.corrupted[kept]))
        found += int(kept.sum())
        if found >= n:
            break
    if found == 0:
        raise QflError(
            f"no pair that differs in label {label} of {feature!r} has its clean example in the {split} split of "
            f"{task!r}. Use a larger length or another label."
        )
    clean, corrupted = (np.concatenate(column)[:n] for column in zip(*parts, strict=True))
    return Pairs(clean, corrupted)
