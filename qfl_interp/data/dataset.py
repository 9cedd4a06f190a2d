"""A user's dataset as arrays, checked: tokens, scored tokens, labels of every row and where they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Int64
from torch import Tensor

from qfl_interp.data.examples import SPLITS, split_hash
from qfl_interp.data.task import NO_POSITION, FeatureKind

Array = np.ndarray | Tensor
# Strings of ids: a string for each id, or what makes a list of strings of a list of ids.
StrTokens = Sequence[str] | Callable[[list[int]], Sequence[str]]


@dataclass(frozen=True)
class FixedFeature:
    """Labels of every row of a dataset, and where they are read.

    Args:
        kind: As in `Feature`: "binary", "categorical", "multilabel" or "scalar".
        labels: `[row, label]`, with one more axis `[output]` for "multilabel"; integers but for "scalar".
        positions: `[row, label]`: the token index where each is read, `NO_POSITION` (-1) where a row has no such label.
        description: One sentence a person reads.
        by_default: Whether analyses look at it when no feature is named.
    """

    kind: FeatureKind
    labels: Array
    positions: Array
    description: str = ""
    by_default: bool = True


@dataclass(frozen=True)
class CheckedFeature(FixedFeature):
    """A feature whose arrays were checked: NumPy, positions int64, labels int64 but for "scalar"."""

    labels: np.ndarray
    positions: np.ndarray


def as_numpy(values: Array) -> np.ndarray:
    """A NumPy array with memory of its own."""
    return np.array(values.numpy(force=True) if isinstance(values, Tensor) else values)


def checked_tokens(tokens: Array) -> Int64[np.ndarray, "row pos"]:
    """The tokens, if they are ids.

    Raises:
        ValueError: They are not integers from 0 of shape [row, pos], or there are none.
    """
    ids = as_numpy(tokens)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0 or ids.min() < 0:
        low = f" with {ids.min()} among them" if ids.size and ids.dtype.kind in "iu" else ""
        raise ValueError(
            f"tokens must be token ids from 0, integers [row, pos], got {ids.dtype} of shape {ids.shape}{low}. "
            "Pad rows of different length on the right."
        )
    return ids.astype(np.int64)


def checked_mask(loss_mask: Array, shape: tuple[int, ...], prompt_end: bool) -> Bool[np.ndarray, "row pos"]:
    """The mask of scored tokens, if every row can be scored.

    Raises:
        ValueError: It is not boolean of the tokens' shape; or a row's scored tokens hold the first token, are not one
            stretch, or are none behind the prompt.
    """
    mask = as_numpy(loss_mask)
    if mask.dtype != bool or mask.shape != shape:
        raise ValueError(
            f"loss_mask must be boolean of the tokens' shape {shape}, got {mask.dtype} of shape {mask.shape}."
        )
    stretches = np.diff(mask.astype(np.int8), axis=1, prepend=0) == 1
    bad = mask[:, 0] | (mask.sum(axis=1) < 1 + prompt_end) | (stretches.sum(axis=1) != 1)
    if bad.any():
        row = int(bad.argmax())
        first = "the last token of its prompt" if prompt_end else "the first token of its answer"
        raise ValueError(
            f"loss_mask must keep one stretch of each row: {first}, never the first of the "
            f"sequence, through its answer; got tokens {np.flatnonzero(mask[row]).tolist()} in row {row}, one of "
            f"{int(bad.sum())} such rows." + (" Give prompt_end=False to score the answer alone." if prompt_end else "")
        )
    return mask


def checked_feature(name: str, feature: FixedFeature, shape: tuple[int, ...]) -> CheckedFeature:
    """The feature with NumPy arrays, if they fit its kind and the dataset of this shape.

    Raises:
        ValueError: The kind is unknown, or the labels or positions are of another shape, type or range.
    """
    if feature.kind not in get_args(FeatureKind):
        raise ValueError(f"kind of feature {name!r} must be one of {get_args(FeatureKind)}, got {feature.kind!r}.")
    n_rows, n_ctx = shape
    labels, positions = as_numpy(feature.labels), as_numpy(feature.positions)
    n_axes = 3 if feature.kind == "multilabel" else 2
    if labels.ndim != n_axes or len(labels) != n_rows or 0 in labels.shape:
        axes = "[row, label, output]" if n_axes == 3 else "[row, label]"
        raise ValueError(
            f"labels of {feature.kind} feature {name!r} must be {axes} for {n_rows} rows, got shape {labels.shape}."
        )
    if positions.shape != labels.shape[:2] or positions.dtype.kind not in "iu":
        raise ValueError(
            f"positions of feature {name!r} must be integers [row, label] as its labels are, {labels.shape[:2]}, "
            f"got {positions.dtype} of shape {positions.shape}."
        )
    positions = positions.astype(np.int64)
    outside = (positions != NO_POSITION) & ((positions < 0) | (positions >= n_ctx))
    if outside.any():
        row, label = (int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"positions of feature {name!r} must lie in [0, {n_ctx}), or be {NO_POSITION} where a row has no such "
            f"label, got {positions[row, label]} in row {row}, label {label}."
        )
    return CheckedFeature(
        feature.kind, _checked_labels(name, feature.kind, labels), positions, feature.description, feature.by_default
    )


def _checked_labels(name: str, kind: FeatureKind, labels: np.ndarray) -> np.ndarray:
    """The labels, if their values fit the kind."""
    if kind == "scalar":
        if labels.dtype.kind not in "iuf" or not np.isfinite(labels).all():
            raise ValueError(f"labels of scalar feature {name!r} must be finite numbers, got {_found(labels)}.")
        return labels
    high = None if kind == "categorical" else 1
    if labels.dtype.kind not in "iub" or labels.min() < 0 or (high is not None and labels.max() > high):
        rule = "class ids from 0" if high is None else "0 or 1"
        raise ValueError(f"labels of {kind} feature {name!r} must be integers, {rule}, got {_found(labels)}.")
    return labels.astype(np.int64)


def _found(labels: np.ndarray) -> str:
    """Type and range of labels, as an error says them."""
    return f"{labels.dtype}" + (f" from {labels.min()} to {labels.max()}" if labels.dtype.kind in "iuf" else "")


class SplitShares(NamedTuple):
    """A split that was given, row by row.

    Attributes:
        names: "train", "val" or "test" of each row.
        shares: Where each stands in [0, 1) of all, as `Task.split_share` says.
        train_fraction: Share of the rows that are for training.
    """

    names: np.ndarray
    shares: np.ndarray
    train_fraction: float


def split_shares(split: Sequence[str] | Sequence[int] | Array, tokens: Int64[np.ndarray, "row pos"]) -> SplitShares:
    """The split that was given for rows of these tokens: as names, as booleans, or as the numbers of training's rows.

    Rows that are not training's, where nothing says more, are halved by a hash of their tokens.

    Raises:
        ValueError: It is none of these, a row is out of range, validation or test has none, or equal rows are in
            different splits.
    """
    given, n = np.array(split.numpy(force=True) if isinstance(split, Tensor) else split), len(tokens)
    names = np.full(n, "val", dtype="<U5")
    hashed = split_hash(tokens.astype(np.uint64)) >> np.uint64(11)
    if given.dtype.kind in "US" and given.shape == (n,):
        if unknown := sorted({*given.tolist()} - {*SPLITS}):
            raise ValueError(f"split must say {', '.join(SPLITS)} of each row, got {unknown[0]!r}.")
        names = given.astype(names.dtype)
    elif given.ndim == 1 and ((given.dtype == bool and len(given) == n) or given.dtype.kind in "iu" or given.size == 0):
        names[hashed * 2.0**-53 >= 0.5] = "test"
        if given.dtype != bool and given.size and not 0 <= given.min() <= given.max() < n:
            raise ValueError(f"split must name rows in [0, {n}), got numbers from {given.min()} to {given.max()}.")
        names[given if given.size else []] = "train"
    else:
        raise ValueError(
            f"split must be the numbers of training's rows, or a boolean or a name for each of the {n} rows, got "
            f"{given.dtype} of shape {given.shape}."
        )
    _, group = np.unique(tokens, axis=0, return_inverse=True)
    of_group = names[np.unique(group.ravel(), return_index=True)[1]][group.ravel()]
    if (of_group != names).any():
        row = int((of_group != names).argmax())
        first = int((group.ravel() == group.ravel()[row]).argmax())
        raise ValueError(
            f"rows of equal tokens must be in one split, got row {first} in {names[first]} and row {row} in "
            f"{names[row]}. What was trained on would be tested."
        )
    fraction = float((names == "train").mean())
    if empty := [name for name in SPLITS[1:] if name not in names]:
        raise ValueError(
            f"split must leave rows for {' and '.join(empty)}, got {int((names == 'train').sum())} of {n} in train and "
            "none there. Probes are fitted on validation rows and scored on test rows."
        )
    edges = {"train": (0.0, fraction), "val": (fraction, (1 + fraction) / 2), "test": ((1 + fraction) / 2, 1.0)}
    middle = {name: (low + high) / 2 for name, (low, high) in edges.items()}
    return SplitShares(names, np.array([middle[name] for name in names.tolist()]), fraction)


def vocabulary_of(str_tokens: StrTokens | None, d_vocab: int) -> tuple[str, ...]:
    """A string for each id, at least `d_vocab` of them.

    Raises:
        ValueError: Fewer strings than the dataset has ids, or something else than strings.
    """
    if str_tokens is None:
        return tuple(str(token) for token in range(d_vocab))
    strings = tuple(str_tokens(list(range(d_vocab))) if callable(str_tokens) else str_tokens)
    if len(strings) < d_vocab or not all(isinstance(s, str) for s in strings):
        kinds = sorted({type(s).__name__ for s in strings})
        raise ValueError(
            f"str_tokens must give a string for each of the {d_vocab} ids of the dataset, got {len(strings)} of type "
            f"{', '.join(kinds) or 'none'}. Give a list, or a tokenizer's convert_ids_to_tokens."
        )
    return strings
