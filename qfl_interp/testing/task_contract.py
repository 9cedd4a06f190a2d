"""What every task must satisfy; the tests of this library run it on each registered one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from qfl_interp.data.examples import SPLITS, ExampleStream, held_out, in_split
from qfl_interp.data.task import NO_POSITION, Batch, Task
from qfl_interp.errors import QflError
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples

_N = 500


def check_task(task: Task) -> None:
    """Raise unless a task keeps the contract: call it in a test of a task of your own, at several lengths.

    Each of `CHECKS` draws some hundred examples and looks at one thing: that encoding and decoding are inverse, labels
    follow from examples alone and stand where their positions say, splits do not overlap, everything drawn follows from
    the generator, pairs differ in the feature, an empty batch is one, and the class says what it has to. It cannot know
    whether labels are right: compare them with a brute-force answer too.

    Raises:
        QflError: It does not; every rule that is broken is listed with what was found.
        TypeError: It is no task.
    """
    if not isinstance(task, Task):
        raise TypeError(f"check_task takes a task, as MyTask(length), got {task!r}.")
    faults: list[str] = []
    for check in CHECKS:
        try:
            check(task)
        except AssertionError as error:
            faults.append(f"{check.__name__}: {error}")
        except Exception as error:  # the task's own, whatever it is
            faults.append(f"{check.__name__}: {type(error).__name__}: {error}")
    if faults:
        listed = "\n  ".join(faults)
        raise QflError(f"{task!r} breaks {len(faults)} of the {len(CHECKS)} rules of a task:\n  {listed}")


def _require(holds: object, rule: str) -> None:
    """Raise AssertionError with a rule that does not hold."""
    if not holds:
        raise AssertionError(rule)


def _equal(found: object, wanted: object, rule: str) -> None:
    """Raise AssertionError unless two arrays hold the same; says in which row they differ first."""
    one, other = np.asarray(found), np.asarray(wanted)
    if one.shape != other.shape:
        raise AssertionError(f"{rule}; got shapes {one.shape} and {other.shape}")
    if not np.array_equal(one, other):
        row = int(np.argwhere(one != other)[0][0]) if one.ndim else 0
        shown = (one[row].tolist(), other[row].tolist()) if one.ndim else (one, other)
        raise AssertionError(f"{rule}; got {shown[0]} and {shown[1]} in row {row}")


def check_encoding(task: Task) -> None:
    """Tokens and scored tokens have their shapes, types and ranges; `decode` reads the prompts back."""
    examples = task.sample(generator(0, "contract"), _N)
    batch = task.encode(examples)
    shapes = (tuple(batch.tokens.shape[:2]), tuple(batch.loss_mask.shape))
    _require(shapes == ((_N, task.n_ctx),) * 2, f"tokens and loss_mask are [batch, n_ctx={task.n_ctx}], got {shapes}")
    _require(batch.loss_mask.dtype == torch.bool, f"loss_mask is boolean, got {batch.loss_mask.dtype}")
    _require(not batch.loss_mask[:, 0].any(), "the first token is not scored: nothing predicts it")
    if task.d_out is not None:
        _check_vectors(task, examples, batch)
        return
    _require(batch.tokens.ndim == 2 and batch.tokens.dtype == torch.int64, f"ids are int64, got {batch.tokens.dtype}")
    # The first token of a task of vectors is a sample's number.
    low, high = int(batch.tokens.min()), int(batch.tokens[:, task.samples is not None :].max())
    _require(0 <= low and high < task.d_vocab, f"ids lie in [0, d_vocab={task.d_vocab}), got {low} to {high}")
    least = 1 + batch.prompt_end
    fewest = int(batch.loss_mask.sum(dim=1).min())
    what = "the prompt's last token and one of the answer" if batch.prompt_end else "one token of the answer"
    _require(fewest >= least, f"every example scores {what} at least (prompt_end={batch.prompt_end}), got {fewest}")
    scored = batch.loss_mask.int()
    _require((scored.diff(dim=1).abs().sum(dim=1) <= 2).all(), "scored tokens are one stretch of each example")
    _equal(task.decode(batch.tokens), examples, "decode gives back the examples that were encoded")
    prompt_only = batch.tokens.clone()
    prompt_only[:, 1:][scored[:, :-1].cumsum(dim=1) > 0] = task.d_vocab - 1
    _equal(task.decode(prompt_only), examples, "decode reads the prompt alone, not the answer")
    _check_words(task, batch)


def _check_vectors(task: Task, examples: Examples, batch: Batch) -> None:
    """The encoding of a real-valued task."""
    _require(batch.tokens.shape[2:] == (task.d_vocab,), f"a token is a vector of d_vocab={task.d_vocab} entries")
    _require(batch.tokens.dtype == torch.float32, f"vectors are float32, got {batch.tokens.dtype}")
    wanted = (_N, task.n_ctx, task.d_out)
    found = None if batch.targets is None else tuple(batch.targets.shape)
    _require(found == wanted, f"targets of a real-valued task are [batch, n_ctx, d_out] = {wanted}, got {found}")
    _require(batch.loss_mask.any(dim=1).all(), "every example scores a token")
    _equal(task.decode(batch.tokens), examples, "decode gives back the examples that were encoded")
    _check_words(task, batch)


def _check_words(task: Task, batch: Batch) -> None:
    """A person can read a sequence."""
    words = task.str_tokens(batch.tokens[0].tolist())
    _require(len("".join(words)) > 0, "str_tokens gives text")


def check_features(task: Task) -> None:
    """Labels and positions have their shapes, kinds and ranges, and follow from the example alone."""
    examples = task.sample(generator(1, "contract"), _N)
    for name, feature in task.features.items():
        labels, positions = feature.labels(examples), feature.positions(examples)
        shapes, wanted = (labels.shape[:2], positions.shape), (_N, feature.n_labels)
        _require(shapes == (wanted, wanted), f"labels and positions of {name!r} are [batch, n_labels], got {shapes}")
        axes = 3 if feature.kind == "multilabel" else 2
        _require(labels.ndim == axes, f"labels of the {feature.kind} feature {name!r} have {axes} axes")
        inside = (positions == NO_POSITION) | ((positions >= 0) & (positions < task.n_ctx))
        _require(inside.all(), f"positions of {name!r} lie in [0, n_ctx={task.n_ctx}), or are {NO_POSITION}")
        if feature.kind in ("binary", "multilabel"):
            _require(np.isin(labels, (0, 1)).all(), f"labels of the {feature.kind} feature {name!r} are 0 or 1")
        _require(np.isfinite(labels).all(), f"labels of {name!r} are finite")
        integers = np.issubdtype(labels.dtype, np.integer)
        _require(feature.kind == "scalar" or integers, f"labels of {name!r} are integers, got {labels.dtype}")
        _equal(feature.labels(examples[:7]), labels[:7], f"a label of {name!r} depends on its example alone")
        _equal(feature.positions(examples[:7]), positions[:7], f"a position of {name!r} depends on its example alone")
        _require(len(np.unique(labels)) > 1, f"labels of {name!r} vary, got one value in {_N} examples")


def check_splits(task: Task) -> None:
    """Every example is in one split, equivalent ones in the same; training never draws what is held out."""
    examples = task.sample(generator(2, "contract"), 4000)
    membership = np.stack([in_split(task, examples, split) for split in SPLITS])
    _equal(membership.sum(axis=0), np.ones(len(examples)), "every example is in exactly one split")
    words = task.canonical(examples)
    _, group = np.unique(words, axis=0, return_inverse=True)
    for row in membership:
        share = np.bincount(group.ravel(), weights=row) / np.bincount(group.ravel())
        _require(np.isin(share, (0.0, 1.0)).all(), "examples of one canonical form are in one split")
    stream = ExampleStream(task, seed=0, batch_size=256)
    trained = {row.tobytes() for step in range(4) for row in task.canonical(stream.examples(step))}
    for split in SPLITS[1:]:
        kept = held_out(task, split, 200, seed=0, stream="contract")
        both = trained & {row.tobytes() for row in task.canonical(kept)}
        _require(not both, f"no canonical form is both trained on and in {split}, got {len(both)} that are")
        _require(len(np.unique(kept, axis=0)) == len(kept), f"examples held out for {split} are different ones")


def check_determinism(task: Task) -> None:
    """What is drawn follows from the generator alone."""
    one, same, other = (task.sample(generator(s, "contract"), 50) for s in (5, 5, 6))
    _equal(one, same, "sample draws from the generator it is given alone")
    _require((one != other).any(), "another generator draws other examples")
    stream = ExampleStream(task, seed=4, batch_size=8)
    again = ExampleStream(task, seed=4, batch_size=8)
    _equal(stream.examples(3), again.examples(3), "a step's examples are the same at every call")
    _require((stream.examples(3) != stream.examples(4)).any(), "another step has other examples")


def check_pairs(task: Task) -> None:
    """Pairs differ in the label, are read at the same token, and have equally long prompts."""
    for name, feature in task.features.items():
        label = feature.n_labels // 2 if feature.n_labels > 2 else 0
        pairs = task.sample_pairs(generator(7, "contract"), 40, name, label)
        clean, corrupted = feature.labels(pairs.clean)[:, label], feature.labels(pairs.corrupted)[:, label]
        differ = (clean != corrupted).reshape(len(clean), -1).any(axis=1)
        _require(len(clean) == 40, f"sample_pairs of {name!r} gives as many pairs as asked for, got {len(clean)} of 40")
        _require(differ.all(), f"both of a pair differ in label {label} of {name!r}, got {int((~differ).sum())} equal")
        one, other = (feature.positions(examples)[:, label] for examples in pairs)
        _equal(one, other, f"label {label} of {name!r} is read at the same token of both of a pair")
        one, other = (task.encode(examples).loss_mask.int().argmax(dim=1) for examples in pairs)
        _equal(one, other, f"both prompts of a pair of {name!r} are equally long")
        again = task.sample_pairs(generator(7, "contract"), 40, name, label)
        _equal(pairs.clean, again.clean, f"pairs of {name!r} follow from the generator")
        _equal(pairs.corrupted, again.corrupted, f"pairs of {name!r} follow from the generator")


def check_no_examples(task: Task) -> None:
    """None are drawn, encoded and labelled as none."""
    none = task.sample(generator(8, "contract"), 0)
    batch = task.encode(none)
    shapes = (tuple(batch.tokens.shape[:2]), tuple(batch.loss_mask.shape))
    _require(shapes == ((0, task.n_ctx),) * 2, f"no examples encode to [0, n_ctx={task.n_ctx}], got {shapes}")
    _equal(task.decode(batch.tokens), none, "no tokens decode to no examples")
    _require(len(task.canonical(none)) == 0, "no examples have no canonical forms")
    for name, feature in task.features.items():
        found = (feature.labels(none).shape[:2], feature.positions(none).shape)
        _require(found == ((0, feature.n_labels),) * 2, f"no examples have labels [0, n_labels] of {name!r}")


def check_description(task: Task) -> None:
    """The class says its lengths, its vocabulary, its features, and how much is for training."""
    low, high = task.lengths
    _require(low <= task.default_length <= high, f"default_length {task.default_length} lies in lengths {task.lengths}")
    _require(0 < task.train_fraction < 1, f"train_fraction lies in (0, 1), got {task.train_fraction}")
    _require(len(set(task.vocabulary)) == task.d_vocab, "the words of the vocabulary are different ones")
    for name, feature in task.features.items():
        _require(feature.description and feature.name == name, f"feature {name!r} has its name and a description")
    _require(any(f.by_default for f in task.features.values()), "a feature is looked at by default")
    for length in (low - 1, high + 1):
        try:
            type(task)(length)
        except ValueError as error:
            said = f"length of task {task.name!r} must be an integer in"
            _require(said in str(error), f"length {length} outside lengths {task.lengths} is refused by Task.__init__")
        else:
            raise AssertionError(f"length {length} outside lengths {task.lengths} is refused")


def check_baselines(task: Task) -> None:
    """The losses of answering at random are there, and no worse than a guess among all tokens."""
    if task.d_out is not None:  # rules that are known, none worse than a constant
        worst = task.baselines["base_rate"]
        _require(all(0 <= loss <= worst for loss in task.baselines.values()), "no rule is worse than a constant")
        return
    found, most = dict(task.baselines), float(np.log(task.d_vocab))
    _require({"base_rate"} <= {*found} <= {"paper", "base_rate"}, f"baselines are base_rate and paper, got {[*found]}")
    inside = all(0 < loss < most + 1e-9 for loss in found.values())
    _require(inside, f"baselines lie in (0, ln d_vocab = {most:.3g}], got {found}")


def check_problems(task: Task) -> None:
    """Where all problems are listed, each is once, and no other is drawn."""
    problems = task.problems()
    if problems is None:
        return
    _require(len(np.unique(problems, axis=0)) == len(problems), "problems lists each once")
    drawn = task.sample(generator(9, "contract"), _N)
    _require(drawn.dtype == problems.dtype, f"problems are of sample's type, got {problems.dtype} and {drawn.dtype}")
    together = len(np.unique(np.concatenate([problems, drawn]), axis=0))
    _require(together == len(problems), f"sample draws of problems alone, got {together - len(problems)} others")
    _equal(task.decode(task.encode(problems).tokens), problems, "decode gives back every problem")


CHECKS: tuple[Callable[[Task], None], ...] = (
    check_problems,
    check_description,
    check_encoding,
    check_features,
    check_splits,
    check_determinism,
    check_pairs,
    check_no_examples,
    check_baselines,
)
