"""The rules that a series of checkpoints keeps, over what was measured of each."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qfl_interp.runs.suite_check.findings import Finding, named
from qfl_interp.runs.suite_check.geometry import (
    IN_COMMON,
    NOTHING,
    excesses,
    exchanged,
    off_the_path,
    partner_of,
    place_of,
)

# Of fewer numbers a tensor says nothing on its own.
_LARGE = 256
# The excess from which a single tensor is off the path: it has fewer directions than a whole checkpoint.
_TENSOR_EXCESS = 6.0
# Of the entries of a tensor that changes.
_CHANGES = 0.5
_AGAIN = "Fetch or save it again"


class Kept(NamedTuple):
    """What was measured of a checkpoint.

    Attributes:
        step: Which one.
        rows: One a tensor (`measure.Measured`), by name.
        sketches: Some numbers of each.
    """

    step: int
    rows: dict[str, dict[str, Any]]
    sketches: dict[str, Tensor]


def alike(kept: Sequence[Kept]) -> tuple[list[Finding], list[Kept]]:
    """Whether tensors, types and numbers are those of the other checkpoints; and the ones that can be compared."""
    found, good = [], []
    shapes = _usual([{name: row["shape"] for name, row in one.rows.items()} for one in kept])
    types = _usual([{name: row["dtype"] for name, row in one.rows.items()} for one in kept])
    bits = [max((row["bits"] for row in one.rows.values()), default=0) for one in kept]
    usual_bits = Counter(bits).most_common(1)[0][0] if bits else 0
    for one, own in zip(kept, bits, strict=True):
        other = sorted(
            name for name in shapes | one.rows if one.rows.get(name, {}).get("shape") != shapes.get(name, "absent")
        )
        if other:
            text = f"{len(other)} tensors are not those of the other checkpoints ({named(other)}). {_AGAIN}."
            found.append(Finding(one.step, "tensors", "fault", tuple(other), text))
        typed = sorted(name for name, row in one.rows.items() if name in types and row["dtype"] != types[name])
        if typed:
            text = (
                f"{len(typed)} tensors are {one.rows[typed[0]]['dtype']}, and {types[typed[0]]} in the others "
                f"({named(typed)}). {_AGAIN} in their precision."
            )
            found.append(Finding(one.step, "dtype", "fault", tuple(typed), text))
        elif 0 < own < usual_bits:
            text = f"its numbers are all of half precision, those of the other checkpoints are not. {_AGAIN} uncast."
            found.append(Finding(one.step, "dtype", "fault", (), text))
        broken = sorted(name for name, row in one.rows.items() if row["n_nonfinite"])
        if broken:
            n = sum(one.rows[name]["n_nonfinite"] for name in broken)
            text = f"{n} numbers are NaN or infinite ({named(broken)}). {_AGAIN}; else training diverged before it."
            found.append(Finding(one.step, "not finite", "fault", tuple(broken), text))
        if not other and not broken:
            good.append(one)
    return found, good


class Geometry:
    """Checkpoints as points: distances between all of them, tensor by tensor.

    Args:
        kept: Of the same tensors, all finite, by step.
    """

    def __init__(self, kept: Sequence[Kept]) -> None:
        self.kept = kept
        self.steps = [one.step for one in kept]
        names = [name for name in kept[0].sketches if all(name in one.sketches for one in kept)] if kept else []
        self.names = [name for name in names if any(one.rows[name]["n_different"] > 1 for one in kept)]
        n = len(kept)
        squares = np.zeros((len(self.names), n, n))
        for at, name in enumerate(self.names):
            points = torch.stack([one.sketches[name] for one in kept]).double()
            near = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").numpy()
            squares[at] = near**2 * kept[0].rows[name]["size"] / points.shape[1]
        self.squares = squares
        self.distances = np.sqrt(squares.sum(axis=0))

    def of(self, tensors: Sequence[str]) -> np.ndarray:
        """Distances in these tensors alone."""
        return np.sqrt(self.squares[[self.names.index(name) for name in tensors if name in self.names]].sum(axis=0))

    def correlations(self) -> np.ndarray:
        """Of each checkpoint and the next, over their large tensors, each about its own mean; 1 without any."""
        large = [name for name in self.names if self.kept[0].sketches[name].numel() >= _LARGE]
        if not large:
            return np.ones(max(0, len(self.kept) - 1))
        rows = [torch.cat([_centred(one.sketches[name]) for name in large]) for one in self.kept]
        return np.array([float(torch.cosine_similarity(a, b, dim=0)) for a, b in itertools.pairwise(rows)])

    def changed(self, name: str, i: int, j: int) -> float:
        """The share of a tensor's entries that differ between two checkpoints."""
        return float((self.kept[i].sketches[name] != self.kept[j].sketches[name]).double().mean())


def _centred(numbers: Tensor) -> Tensor:
    return numbers.double() - numbers.double().mean()


def repeated(points: Geometry) -> tuple[list[Finding], set[int]]:
    """Checkpoints equal to another one, in whole or in some tensors; and the places of those that are wrong."""
    found: list[Finding] = []
    wrong: set[int] = set()
    kept, steps, order = points.kept, points.steps, list(range(len(points.kept)))
    telling = [n for n in points.names if any(one.rows[n]["digest"] != kept[0].rows[n]["digest"] for one in kept)]
    alike: dict[tuple[int, int], list[str]] = {}
    for i, j in itertools.combinations(order, 2):
        same = [n for n in telling if kept[i].rows[n]["digest"] == kept[j].rows[n]["digest"]]
        if same:
            alike[i, j] = same
    for (i, j), same in alike.items():
        if len(same) == len(telling):
            bad, other = _worse(points.distances, i, j)
            note = steps[i] == 0 and j == 1
            why = (
                "A warm-up that starts at a learning rate of 0 makes it so; otherwise fetch both again."
                if note
                else f"One of the two is a copy, by its neighbours this one: {_AGAIN.lower()}."
            )
            text = f"its weights are those of step {steps[other]}. {why}"
            found.append(Finding(steps[bad], "identical", "note" if note else "fault", (), text))
            wrong |= set() if note else {bad}
            continue
        shard = [name for name in same if _is_copied(points, name, i, j, telling)]
        if shard:
            bad, other = _worse(points.of(shard), i, j)
            text = (
                f"{len(shard)} of {len(telling)} tensors are those of step {steps[other]} ({named(shard)}), the others "
                f"are not: a file of another step. {_AGAIN}, and look at step {steps[other]} too."
            )
            found.append(Finding(steps[bad], "shard", "fault", tuple(shard), text))
            wrong.add(bad)
    return found, wrong


def out_of_place(points: Geometry, wrong: set[int]) -> list[Finding]:
    """Checkpoints off the path of the others, exchanged ones, and breaks."""
    found: list[Finding] = []
    steps = points.steps
    whole = [at for at in range(len(steps)) if at not in wrong]
    off, order = off_the_path(points.distances, whole)
    partners: dict[int, int] = {}
    for at, excess in sorted(off.items()):
        place = place_of(points.distances, order, at)
        partner = partner_of(points.distances, whole, at, place) if place else None
        if partner is not None and partner not in off:
            partners[partner] = at
        fits = (
            f"They fit between steps {steps[place[0]]} and {steps[place[1]]}: was its name exchanged?"
            if place
            else "They fit nowhere: another seed, run or model."
        )
        text = (
            f"its weights are off the path of the others: the way from the step before to the one after is "
            f"{excess:.1f} times as long through them (at most 3 in one training). {fits}"
        )
        found.append(Finding(steps[at], "jump", "fault", (), text))
    for one, other in partners.items():
        text = (
            f"its weights and those of step {steps[other]} fit better in each other's place: the two were exchanged. "
            "Exchange their names, or fetch both again."
        )
        found.append(Finding(steps[one], "order", "fault", (), text))
    order = [at for at in order if at not in partners]
    for pair in exchanged(points.distances, order):
        text = (
            f"steps {steps[pair.first]} and {steps[pair.second]} are in the wrong order: exchanged, the way through "
            f"all is shorter by the factor {pair.ratio:.2f}. Exchange their names, or fetch both again."
        )
        found.append(Finding(steps[pair.first], "order", "fault", (), text))
    found += _breaks(points, {*wrong, *off})
    for at, tensors in _tensors_off(points, order).items():
        text = (
            f"{len(tensors)} of {len(points.names)} tensors are off the path of the other checkpoints "
            f"({named(tensors)}), the others are not: a file of another training. {_AGAIN}."
        )
        found.append(Finding(steps[at], "jump", "fault", tuple(tensors), text))
    return found


def _breaks(points: Geometry, wrong: set[int]) -> list[Finding]:
    """Places from which on the weights have nothing in common with those before."""
    left = [one for at, one in enumerate(points.kept) if at not in wrong]
    common = Geometry(left).correlations() if len(left) > 2 else np.ones(0)
    if not len(common) or np.median(common) < IN_COMMON:
        return []
    found = []
    for at in np.flatnonzero(common < NOTHING):
        before, after = left[at].step, left[at + 1].step
        # A training of any length may forget where it began.
        severity = "note" if at == 0 and after > 0.1 * left[-1].step else "fault"
        text = (
            f"its weights have nothing in common with those of step {before} (correlation {common[at]:.2f}, elsewhere "
            f"{np.median(common):.2f}): another seed or run begins here, or ends with step {before}. Compare sources."
        )
        found.append(Finding(after, "break", severity, (), text))
    return found


def _tensors_off(points: Geometry, order: Sequence[int]) -> dict[int, list[str]]:
    """Of checkpoints on the path, the large tensors that are off it."""
    found: dict[int, list[str]] = {}
    for at, name in enumerate(points.names):
        if points.kept[0].sketches[name].numel() >= _LARGE:
            for bad in off_the_path(np.sqrt(points.squares[at]), order, _TENSOR_EXCESS)[0]:
                found.setdefault(bad, []).append(name)
    return found


def _is_copied(points: Geometry, name: str, i: int, j: int, telling: Sequence[str]) -> bool:
    """Whether equal tensors of two steps are one step's copy, and not one that has stood still.

    It is where the tensor is another one at a step between them; or, of neighbours, where at least half of its entries
    change in the steps before and behind, and half of the entries of most tensors between the two.
    """
    digests = [one.rows[name]["digest"] for one in points.kept]
    if any(digests[k] != digests[i] for k in range(i + 1, j)):
        return True
    if j != i + 1 or points.kept[i].rows[name]["n_different"] < 8:
        return False
    beside = [(a, b) for a, b in ((i - 1, i), (j, j + 1)) if 0 <= a and b < len(points.kept)]
    moving = [points.changed(other, i, j) for other in telling if points.kept[i].rows[other]["n_different"] >= 8]
    return all(points.changed(name, a, b) >= _CHANGES for a, b in beside) and bool(np.median(moving) >= _CHANGES)


def _worse(distances: np.ndarray, i: int, j: int) -> tuple[int, int]:
    """Of two equal checkpoints the one that is farther off the path without the other, and that other."""
    n = len(distances)
    off = []
    for one, other in ((i, j), (j, i)):
        order = [at for at in range(n) if at != other]
        value = excesses(distances, order)[order.index(one)]
        off.append(0.0 if np.isnan(value) else value)
    return (i, j) if off[0] > off[1] else (j, i)


def _usual(values: Sequence[dict[str, str]]) -> dict[str, str]:
    """What most checkpoints say of each name."""
    names = {name for one in values for name in one}
    counts = {name: Counter(one.get(name) for one in values).most_common(1)[0][0] for name in names}
    return {name: value for name, value in counts.items() if value is not None}


def missing_steps(steps: Sequence[int]) -> list[Finding]:
    """Holes in a stretch of steps that are equally far apart but for them.

    The distance is the most common one, found at least three times and more often than any other distance between its
    first and its last place. A distance of 1 says nothing: log-spaced steps begin so.
    """
    apart = np.diff(steps)
    counts = Counter(apart.tolist())
    usual, n = counts.most_common(1)[0] if counts else (0, 0)
    if n < 3 or usual < 2:
        return []
    at = np.flatnonzero(apart == usual)
    stretch = apart[at[0] : at[-1] + 1]
    if 2 * n <= len(stretch):
        return []
    found = []
    for place in at[0] + np.flatnonzero((stretch > usual) & (stretch % usual == 0)):
        before, after = steps[place], steps[place + 1]
        left_out = range(before + usual, after, usual)
        text = (
            f"steps go by {usual} from {steps[at[0]]} to {steps[at[-1] + 1]}, but {len(left_out)} of them "
            f"({named([*map(str, left_out)])}) are missing. Fetch them again, unless they were left out on purpose."
        )
        found.append(Finding(after, "gap", "note", (), text))
    return found


def as_frame(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row a finding."""
    columns = ["step", "kind", "severity", "tensors", "text"]
    return pd.DataFrame([[*f[:3], ", ".join(f.tensors), f.text] for f in findings], columns=columns)
