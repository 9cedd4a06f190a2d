"""A task over a fixed dataset that the user brings: tokens of any tokenizer, labels and positions as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Integer, Num, UInt64

from qfl_interp.data.baselines import measured_base_rate
from qfl_interp.data.dataset import (
    Array,
    FixedFeature,
    StrTokens,
    as_numpy,
    checked_feature,
    checked_mask,
    checked_tokens,
    split_shares,
    vocabulary_of,
)
from qfl_interp.data.dataset_file import DatasetFile
from qfl_interp.data.task import NO_POSITION, Batch, Feature, Pairs, Task
from qfl_interp.data.task_options import TaskOption
from qfl_interp.digests import digest
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.shapes import Examples, Tokens


class FixedTask(DatasetFile, Task):
    """A task whose problems are the rows of one dataset; an example is a row number.

    The splits follow from the tokens of a row, so that equal rows are in the same one. By default all of it is
    validation and test, half each, as where nothing was trained on it; `split` says which rows were.

    Args:
        name: What tables and figures call it.
        tokens: `[row, pos]`, integers from 0, padded on the right to one length.
        loss_mask: `[row, pos]`, True where a token is scored: in one stretch, from the last token of the prompt (the
            `=` of the registered tasks, scored in `loss` but not in `loss_answer`) through the end of the answer, one
            answer token at least; never the first token of a row, which nothing predicts.
        features: By name.
        str_tokens: The vocabulary as a person reads it: a string for each id, or what makes a list of strings of a list
            of ids (a tokenizer's `convert_ids_to_tokens`). Without it, the ids themselves.
        pairs: For each feature the rows `[pair, 2]` of clean and corrupted examples that differ in it. Without it, or
            for features not in it, pairs are searched: rows that differ in the label.
        baselines: Losses of answering at random by name, nats per token; by default "base_rate", measured.
        train_fraction: Share of the rows kept out of validation and test, drawn by a hash of their tokens.
        split: Which rows the models were trained on, in place of `train_fraction`: their numbers; or for every row
            whether it is one (boolean), the others being halved into validation and test; or "train", "val" or "test"
            for every row.
        prompt_end: Whether `loss_mask` begins with the prompt's last token. False: it begins with the answer, nothing
            else is scored, and a prompt may be one token.

    Raises:
        ValueError: Something is not of the shape, type or range said above; names it, the row and the value.

    Example:
        >>> tokens = np.array([[0, 3, 1], [1, 3, 2], [2, 3, 0]])
        >>> scored = np.array([[False, True, True]] * 3)
        >>> parity = FixedFeature("binary", tokens[:, :1] % 2, np.zeros((3, 1), int))
        >>> task = FixedTask("successor", tokens, scored, {"parity": parity})
        >>> task.decode(task.encode(np.array([[2], [0]])).tokens).tolist()
        [[2], [0]]
    """

    # Each dataset has its own.
    name: str
    lengths: tuple[int, int]
    default_length: int
    train_fraction: float

    def __init__(
        self,
        name: str,
        tokens: Array,
        loss_mask: Array,
        features: Mapping[str, FixedFeature],
        *,
        str_tokens: StrTokens | None = None,
        pairs: Mapping[str, Array] | None = None,
        baselines: Mapping[str, float] | None = None,
        train_fraction: float = 0.0,
        prompt_end: bool = True,
        split: Sequence[str] | Sequence[int] | Array | None = None,
    ) -> None:
        self.name = name
        self._prompt_end = prompt_end
        self._tokens = checked_tokens(tokens)
        self._loss_mask = checked_mask(loss_mask, self._tokens.shape, prompt_end)
        self._prompt_length = self._loss_mask.argmax(axis=1) + prompt_end
        self._fixed = {key: checked_feature(key, f, self._tokens.shape) for key, f in features.items()}
        self._pairs = {key: self._checked_pairs(key, rows) for key, rows in (pairs or {}).items()}
        self._baselines = baselines
        self.vocabulary = vocabulary_of(str_tokens, int(self._tokens.max()) + 1)
        if not 0 <= train_fraction < 1:
            raise ValueError(f"train_fraction must lie in [0, 1), got {train_fraction!r}.")
        if split is not None and train_fraction:
            raise ValueError(f"give train_fraction or split, got both: {train_fraction!r} and a split.")
        self._share = None if split is None else split_shares(split, self._tokens)
        self.train_fraction = train_fraction if self._share is None else self._share.train_fraction
        n_ctx = self._tokens.shape[1]
        self.lengths, self.default_length = (n_ctx, n_ctx), n_ctx
        super().__init__(n_ctx)
        self._by_row, self._by_prompt = self._row_index()

    @classmethod
    def declared_options(cls) -> dict[str, TaskOption]:
        """None: all that a dataset is made of is in its digest."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        keywords = {"str_tokens": self.vocabulary, "pairs": self._pairs, "baselines": self._baselines}
        keywords |= {"prompt_end": self._prompt_end}
        keywords |= {"train_fraction": self.train_fraction} if self._share is None else {"split": self._share.names}
        return partial(type(self), **keywords), (self.name, self._tokens, self._loss_mask, self._fixed)

    def __repr__(self) -> str:
        return f"FixedTask({self.name!r}, rows={len(self._tokens)}, pos={self.n_ctx}, features={list(self.features)})"

    def __len__(self) -> int:
        """How many rows the dataset has."""
        return len(self._tokens)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the dataset: of the SHA-256 of all that decides a number."""
        parts = [self._tokens, self._loss_mask, np.float64(self.train_fraction)]
        names = [] if self._prompt_end else ["the answer alone"]
        if self._share is not None:
            names.append("split\0" + " ".join(self._share.names.tolist()))
        for name, feature in sorted(self._fixed.items()):
            names.append(f"{name}\0{feature.kind}\0")
            parts += [feature.labels, feature.positions]
        for name, rows in sorted(self._pairs.items()):
            names.append(f"{name}\0pairs\0")
            parts.append(rows)
        return digest(*names, *(x for p in parts for x in (f"{p.dtype}{p.shape}", np.ascontiguousarray(p).data)))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """As for every task, and the digest of the dataset."""
        return {**super().parameters, "digest": self.digest}

    @property
    def n_ctx(self) -> int:
        """Tokens in one padded sequence."""
        return self._tokens.shape[1]

    @property
    def baselines(self) -> Mapping[str, float]:
        """Losses of answering at random, nats per scored token."""
        if self._baselines is None:
            self._baselines = {"base_rate": measured_base_rate(self, len(self))}
        return MappingProxyType(dict(self._baselines))

    def _features(self) -> Sequence[Feature]:
        return [
            Feature(
                name,
                feature.kind,
                feature.labels.shape[1],
                partial(_rows_of, feature.labels),
                partial(_rows_of, feature.positions),
                feature.description or f"{name} of {self.name}.",
                feature.by_default,
            )
            for name, feature in self._fixed.items()
        ]

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` row numbers, every row once before any comes again."""
        rounds = [rng.permutation(len(self)) for _ in range(-(-n // len(self)))]
        return np.concatenate([np.empty(0, np.int64), *rounds])[:n, None]

    def problems(self) -> Examples:
        """Every row."""
        return np.arange(len(self))[:, None]

    def split_share(self, examples: Examples) -> Float64[np.ndarray, " batch"] | None:
        """Where the rows stand in [0, 1) of all, where their split was given."""
        return None if self._share is None else self._share.shares[examples[:, 0]]

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of the rows."""
        rows = examples[:, 0]
        return Batch(torch.from_numpy(self._tokens[rows]), torch.from_numpy(self._loss_mask[rows]), self._prompt_end)

    def decode(self, tokens: Tokens) -> Examples:
        """The rows that hold these tokens, else those with the same prompt; the first where several do.

        Raises:
            ValueError: No row has this prompt.
        """
        found = np.empty((len(tokens), 1), dtype=np.int64)
        for index, row in enumerate(tokens.cpu().numpy()):
            match = self._by_row.get(row.tobytes())
            prompts = (self._by_prompt.get((n, row[:n].tobytes())) for n in self._prompt_lengths)
            match = next((p for p in prompts if p is not None), None) if match is None else match
            if match is None:
                raise ValueError(
                    f"tokens must begin with the prompt of a row of {self.name!r}, got {row.tolist()} in row {index}. "
                    "Only sequences of the dataset can be decoded."
                )
            found[index] = match
        return found

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The tokens of the rows."""
        return self._tokens[examples[:, 0]].astype(np.uint64)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """`n` pairs of rows that differ in the value of `feature` at index `label`, read at the same token of both.

        From the pairs given for the feature, where there are any; else from all rows whose prompts are equally long.

        Raises:
            QflError: There is no such feature, or no such pair.
            ValueError: The feature has no such label.
        """
        count = self.feature(feature).n_labels
        if not 0 <= label < count:
            raise ValueError(f"label of {feature!r} must lie in [0, {count}), got {label}.")
        if feature in self._pairs:
            given = self._pairs[feature]
            usable = given[self._differ(given[:, 0], given[:, 1], feature, label)]
            chosen = usable[rng.integers(len(usable), size=n)] if len(usable) else usable
        else:
            chosen = self._searched_pairs(rng, n, feature, label)
        if n and not len(chosen):
            source = "the pairs given for it" if feature in self._pairs else "rows with equally long prompts"
            raise QflError(
                f"no two rows of {self.name!r} differ in {feature!r} at label {label} and have it at the same token, "
                f"among {source}. Give such rows in pairs={{{feature!r}: [[clean, corrupted], ...]}}."
            )
        return Pairs(chosen[:, :1], chosen[:, 1:])

    def _searched_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> np.ndarray:
        """Pairs of rows, the clean one equally often each row that has a partner, its partner any of those."""
        fixed = self._fixed[feature]
        position = fixed.positions[:, label]
        _, value = np.unique(fixed.labels[:, label].reshape(len(self), -1), axis=0, return_inverse=True)
        _, place = np.unique(np.stack([position, self._prompt_length]), axis=1, return_inverse=True)
        value, place = value.ravel(), place.ravel()
        # A row has a partner where its place holds another value too.
        n_values = np.bincount(np.unique(np.stack([place, value]), axis=1)[0])
        clean = np.flatnonzero((position != NO_POSITION) & (n_values[place] > 1))
        if len(clean) == 0:
            return np.empty((0, 2), dtype=np.int64)
        drawn = clean[rng.integers(len(clean), size=n)]
        partners = [rng.choice(np.flatnonzero((place == place[r]) & (value != value[r]))) for r in drawn]
        return np.stack([drawn, np.array(partners, dtype=np.int64)], axis=1)

    def _differ(self, one: np.ndarray, other: np.ndarray, feature: str, label: int) -> np.ndarray:
        """Which pairs of rows differ in a label that both have at the same token."""
        fixed = self._fixed[feature]
        values = [fixed.labels[rows, label].reshape(len(rows), -1) for rows in (one, other)]
        places = [fixed.positions[rows, label] for rows in (one, other)]
        return (values[0] != values[1]).any(axis=1) & (places[0] == places[1]) & (places[0] != NO_POSITION)

    def _checked_pairs(self, feature: str, pairs: Array) -> Integer[np.ndarray, "pair 2"]:
        """The row pairs given for a feature, if they can be patched into each other."""
        if feature not in self._fixed:
            raise unknown_name(f"feature of {self.name} (in pairs)", feature, self._fixed)
        rows = as_numpy(pairs)
        n = len(self._tokens)
        if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu" or ((rows < 0) | (rows >= n)).any():
            raise ValueError(
                f"pairs[{feature!r}] must be row numbers [pair, 2] in [0, {n}), got {rows.dtype} of shape {rows.shape}."
            )
        lengths = self._prompt_length[rows]
        if (lengths[:, 0] != lengths[:, 1]).any():
            pair = int((lengths[:, 0] != lengths[:, 1]).argmax())
            raise ValueError(
                f"both rows of a pair must have equally long prompts, got {lengths[pair].tolist()} tokens in "
                f"pairs[{feature!r}][{pair}]. Patching writes a token's activation at the same token of the other row."
            )
        return rows.astype(np.int64)

    @property
    def _prompt_lengths(self) -> list[int]:
        """The lengths that prompts have, longest first."""
        return sorted({length for length, _ in self._by_prompt}, reverse=True)

    def _row_index(self) -> tuple[dict[bytes, int], dict[tuple[int, bytes], int]]:
        """Row numbers by their whole tokens and by their prompts; the first of several."""
        by_row: dict[bytes, int] = {}
        by_prompt: dict[tuple[int, bytes], int] = {}
        for number, (row, length) in enumerate(zip(self._tokens, self._prompt_length.tolist(), strict=True)):
            by_row.setdefault(row.tobytes(), number)
            by_prompt.setdefault((length, row[:length].tobytes()), number)
        return by_row, by_prompt


def _rows_of(
    values: Num[np.ndarray, "row label *output"], examples: Examples
) -> Num[np.ndarray, "batch label *output"]:
    """What the rows named by the examples hold."""
    return values[examples[:, 0]]
