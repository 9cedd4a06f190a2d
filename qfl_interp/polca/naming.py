"""What the tokens of a cluster have in common, so that clusters name themselves: features, places, tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Integer

from qfl_interp.curvature.token_losses import ScoredTokens
from qfl_interp.data.task import Feature, Task
from qfl_interp.shapes import Examples
from qfl_interp.stats import holm

UNNAMED = "unnamed"
# A label names a cluster if its Holm-adjusted p-value is below this.
SIGNIFICANT = 0.05
# Columns that say which token it is; the others are labels, and those not of `_GENERAL` features.
_IDENTITY = ("example", "context")
_GENERAL = ("place", "target", "previous")


def token_labels(task: Task, examples: Examples, scored: ScoredTokens) -> pd.DataFrame:
    """What is known of every scored token, one row a token.

    Returns:
        Columns `example`; `place`, the token's index among its example's scored ones; `target` and `previous`, itself
        and the token before it as a person reads them; `context`, the sequence up to it; and one for each binary
        ("boolean") and categorical ("Int64") feature: the label read where the token is *predicted*, missing where
        none is. Where a feature has several labels at one position, `name[j]` is its label j. Features of which no
        label is read where a scored token is predicted have no column.

    Raises:
        ValueError: The examples are not those of the scored tokens.
    """
    if len(examples) != len(scored.tokens):
        raise ValueError(
            f"examples must be the {len(scored.tokens)} rows of scored.tokens, got {len(examples)}. "
            "Pass those that were encoded."
        )
    example, position = scored.example.cpu().numpy(), scored.position.cpu().numpy()
    texts = [task.str_tokens(row) for row in scored.tokens.cpu()]
    at = list(zip(example, position, strict=True))
    table = pd.DataFrame(
        {
            "example": example,
            "place": pd.Series(example).groupby(example).cumcount(),
            "target": task.str_tokens(scored.target.cpu()),
            "previous": [texts[row][before] for row, before in at],
            "context": ["".join(texts[row][: before + 1]) for row, before in at],
        }
    )
    for feature in task.features.values():
        if feature.kind in ("binary", "categorical"):
            name = f"feature {feature.name}" if feature.name in table else feature.name
            for suffix, column in _feature_columns(feature, examples, example, position):
                table[name + suffix] = column
    return table


def _feature_columns(
    feature: Feature, examples: Examples, example: Int[np.ndarray, " token"], position: Int[np.ndarray, " token"]
) -> Iterator[tuple[str, pd.Series]]:
    """A feature's label at each token: one column, or one for each label where several share a position."""
    read = feature.positions(examples)[example] == position[:, None]
    values = feature.labels(examples)[example]
    if read.sum(axis=1).max() <= 1:
        read, values, suffixes = (
            read.any(axis=1, keepdims=True),
            np.where(read, values, 0).sum(axis=1, keepdims=True),
            [""],
        )
    else:
        suffixes = [f"[{j}]" for j in range(feature.n_labels)]
    dtype = "boolean" if feature.kind == "binary" else "Int64"
    for j, suffix in enumerate(suffixes):
        if read[:, j].any():
            yield suffix, pd.Series(values[:, j]).astype("Int64").where(pd.Series(read[:, j])).astype(dtype)


class _Label(NamedTuple):
    """A way to tell tokens apart: the value of each, by number (-1 for none), from the simplest to the richest."""

    label: str
    codes: Int[np.ndarray, " token"]
    values: list[str]
    names: list[str]


class _Row(NamedTuple):
    """How often a value of a label occurs in a cluster and in all."""

    cluster: int
    label: str
    value: str
    name: str
    n_inside: int
    n_cluster: int
    n_all: int


def enrichment(table: pd.DataFrame, labels: Integer[np.ndarray, " token"]) -> pd.DataFrame:
    """Which labels are over-represented in which cluster, one row for each cluster and value of a label.

    The labels are the features, place, target and previous token of `token_labels`, and each binary feature together
    with the place. The background is every evaluated token, outliers and dropped ones too: a cluster is described as
    it stands out from all.

    Tokens with a negative label are in no cluster.

    Returns:
        Columns `cluster`, `label`, `value` (text), `name` (`label=value`); `n_inside`, how many of the cluster's tokens
        have the value; `share`, `share_outside`, `share_all`: their share of the cluster's, of the other and of all
        tokens; `lift`, share over share_all; `f1`, of the label as a description of the cluster,
        `2 n_inside / (|cluster| + |label|)`; `p_value`, of Fisher's exact test that the cluster has no more of them
        than a random set of its size (it takes tokens as independent); `p_value_holm`, adjusted over all rows. Values
        that every token has are left out, as are pairs that say what one of their parts says.
    """
    import scipy.stats  # half a second, and finished tables have their names

    rows = [
        row
        for label in _all_labels(table)
        for cluster in np.unique(labels[labels >= 0])
        for row in _counts(label, int(cluster), labels == cluster)
        if row.n_all < len(table)
    ]
    n_inside, n_cluster, n_all = (np.array([row[i] for row in rows], dtype=np.int64) for i in (4, 5, 6))
    n_tokens, n_outside = len(table), len(table) - n_cluster
    p_value = np.clip(scipy.stats.hypergeom.sf(n_inside - 1, n_tokens, n_all, n_cluster), 0, 1)
    return pd.DataFrame(
        {
            "cluster": [row.cluster for row in rows],
            "label": [row.label for row in rows],
            "value": [row.value for row in rows],
            "name": [row.name for row in rows],
            "n_inside": n_inside,
            "share": n_inside / n_cluster,
            "share_outside": np.divide(
                n_all - n_inside, n_outside, out=np.full(len(rows), np.nan), where=n_outside > 0
            ),
            "share_all": n_all / n_tokens,
            "lift": (n_inside / n_cluster) / (n_all / n_tokens),
            "f1": 2 * n_inside / (n_cluster + n_all),
            "p_value": p_value,
            "p_value_holm": holm(p_value) if rows else p_value,
        }
    )


def cluster_name(rows: pd.DataFrame, cluster: int) -> str:
    """The significant label that describes a cluster best, as `label=value`, or `UNNAMED` where none is significant.

    Best is the largest F1; of equal ones the simplest: a feature before the place, that before the token and the token
    before it, all before pairs.
    """
    counts = ((rows["cluster"] == cluster) & (rows["p_value_holm"] < SIGNIFICANT)).to_numpy()
    if not counts.any():
        return UNNAMED
    # The rows are ordered from the simplest label on, and of equal ones argmax takes the first.
    return str(rows["name"].to_numpy()[np.where(counts, rows["f1"], -1).argmax()])


def _all_labels(table: pd.DataFrame) -> Iterator[_Label]:
    """The labels from the simplest to the richest."""
    features = [str(name) for name in table if name not in (*_IDENTITY, *_GENERAL)]
    for name in (*features, *_GENERAL):
        yield _label(table, name)
    place = _label(table, "place")
    for name in features:
        if table[name].dtype == "boolean":
            yield _pair(place, _label(table, name))


def _label(table: pd.DataFrame, name: str) -> _Label:
    """One column of the table."""
    column = table[name].astype("Int64") if table[name].dtype == "boolean" else table[name]
    codes, found = pd.factorize(column, sort=True)
    values = [str(value) for value in found]
    return _Label(name, codes.astype(np.int64), values, [f"{name}={value}" for value in values])


def _pair(first: _Label, second: _Label) -> _Label:
    """Two labels together, without the values whose tokens are all those of one of its parts."""
    n_second = len(second.values)
    both = np.where((first.codes >= 0) & (second.codes >= 0), first.codes * n_second + second.codes, -1)
    sizes = _sizes(both, len(first.values) * n_second).reshape(-1, n_second)
    alone = (_sizes(first.codes, len(first.values))[:, None], _sizes(second.codes, n_second)[None])
    useful = np.flatnonzero((sizes > 0) & (sizes < alone[0]) & (sizes < alone[1]))
    renumbered = np.full(sizes.size + 1, -1)  # the last one stands for "none", which -1 finds
    renumbered[useful] = np.arange(len(useful))
    places = [divmod(int(i), n_second) for i in useful]
    return _Label(
        f"{first.label} & {second.label}",
        renumbered[both],
        [f"{first.values[i]} & {second.values[j]}" for i, j in places],
        [f"{first.names[i]} & {second.names[j]}" for i, j in places],
    )


def _sizes(codes: Int[np.ndarray, " token"], n_values: int) -> Int[np.ndarray, " value"]:
    """How many tokens have each value."""
    return np.bincount(codes[codes >= 0], minlength=n_values)


def _counts(label: _Label, cluster: int, members: Bool[np.ndarray, " token"]) -> Iterator[_Row]:
    """Each value of a label in one cluster."""
    inside, everywhere = (_sizes(codes, len(label.values)) for codes in (label.codes[members], label.codes))
    n_cluster = int(members.sum())
    for i, (value, name) in enumerate(zip(label.values, label.names, strict=True)):
        yield _Row(cluster, label.label, value, name, int(inside[i]), n_cluster, int(everywhere[i]))
