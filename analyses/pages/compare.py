"""Several runs, forks or seeds over each other on one axis of training."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.analyses.lenses.emergence.tables import emergence_curve
from qfl_interp.analyses.lenses.probe.data import TABLE
from qfl_interp.analyses.loss_curve import known_loss_curve
from qfl_interp.analyses.pages.compare_columns import RESULT
from qfl_interp.analyses.pages.compare_figure import EXACT, LOSS, PROBE_LOSS, compare_figure
from qfl_interp.analyses.pages.compare_groups import Group, grouped, task_of
from qfl_interp.analyses.pages.compare_probes import ComparedProbes
from qfl_interp.analyses.pages.seed_band import SeedCurve, over_seeds
from qfl_interp.analyses.result import Result
from qfl_interp.config import ProbeConfig
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.plots.axes import TRAINING_AXES, TrainingAxis, training_axis
from qfl_interp.plots.theme import plain
from qfl_interp.report.drawing import Drawing
from qfl_interp.runs.opening import open_checkpoints
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import column, distinct, groups, select

_COLUMNS: Final = ["group", "run_id", "path", "seed", "quantity", "feature", "metric", "step"]
# A legend lists at most so many seeds.
_MOST_LISTED: Final = 5


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Runs over each other; `rows` has one row a run, quantity, feature and step at which it was measured.

    Attributes:
        bands: One row a group of several seeds, quantity, feature and place: mean, lowest and highest seed.
        groups: What is drawn as one line, in the order of the legend.
        missing: A line on each run that lacks something of what is compared.
        probes: Which probes are compared.
    """

    bands: pd.DataFrame = field(repr=False)
    groups: tuple[Group, ...] = field(repr=False)
    missing: tuple[str, ...] = field(repr=False)
    probes: ComparedProbes = field(repr=False)

    @property
    def figure(self) -> Figure:
        """As `plot()`."""
        return self.plot()

    def plot(self, feature: str | None = None, **options: Any) -> Figure:
        """The figure: loss and exact match, and the probes of every feature that is compared, or of one.

        Args:
            feature: Whose probes alone.
            **options: `log_loss=False` draws losses on a linear axis.

        Raises:
            QflError: This feature is not compared; lists those that are.
            TypeError: The figure has no such option.
        """
        if unknown := set(options) - {"log_loss"}:
            raise TypeError(
                f"plot() of a comparison has no option {min(unknown)!r}. Beside a feature it has: log_loss."
            )
        known = [name for name in distinct(self.rows, "feature") if name]
        if feature is not None and feature not in known:
            raise unknown_name("feature of this result", feature, known)
        shown = self.rows if feature is None else self.rows.loc[self.rows["feature"].isin(["", feature])]
        return Drawing.of(functools.partial(self.draw, pd.DataFrame(shown), **options), self.of)

    def _not_drawn(self) -> str:
        return "\n".join(self.missing)


def compare(
    runs: Sequence[Checkpoints | str | Path],
    feature: str | Sequence[str] | None = None,
    *,
    config: ProbeConfig | None = None,
) -> Comparison:
    """Lay runs, forks or seeds over each other: loss, exact match and probe losses on one axis of training.

    Nothing is computed but what is shown: the loss that training logged (of a suite, that `validate` measured), and
    probes where `probe` has fitted them. What a run lacks is named. The axis is FLOPs where those of all runs are
    known, else tokens, else steps.

    Runs whose configuration differs by the seed alone are one group, drawn as the mean over seeds with a band from the
    lowest to the highest seed, over the stretch of training that all of them have. A seed that was not measured at a
    place of the mean is interpolated, linearly over the logarithm of the place; nothing is extrapolated
    (`qfl_interp.analyses.pages.seed_band`). The band is a range, no interval of confidence.

    Probe losses are those of `emergence`: the test loss of each label's best layer, geometric mean over the labels.

    Args:
        runs: Runs or suites, or their paths; all of one task.
        feature: Names, () for none; by default those that some run has probes of.
        config: The probes'; by default the configuration that most runs have probes of.

    Returns:
        One row a run, quantity ("val_loss_answer", "val_exact_answer", "probe_loss"), feature and step, with `value`
        and, of probes, the untrained model's `baseline`. `.plot()` draws them, `.bands` are means and ranges.

    Raises:
        QflError: No run has a loss after step 0 or probes of a named feature, runs are of several tasks or have losses
            in several units, or one is given twice.
    """
    opened = [run if isinstance(run, Checkpoints) else open_checkpoints(run) for run in runs]
    found = grouped(opened)
    missing: list[str] = []
    losses = [table for group in found for run in group.runs for table in _losses(run, group, missing)]
    compared = ComparedProbes.of(opened, feature, config)
    probes = []
    for name in compared.features(feature):
        for group in found:
            for run in group.runs:
                wanted = compared.of_run(run, name)
                probes += [_probes(run, group, name, wanted)] if wanted else []
                missing += [] if wanted else [compared.lacking(run, name)]
    measured = [*losses, *probes]
    if not measured:
        raise QflError("no run has anything to compare.\n" + "\n".join(missing))
    rows, axis = _on_one_axis(measured)
    if rows.empty:
        raise QflError("no run was measured after step 0, which has no place on a logarithmic axis. Train for longer.")
    bands = _bands(rows, axis)
    several = [group for group in found if len(group.runs) > 1]
    said = task_of(opened)
    note = f"{said} · mean over seeds, band from lowest to highest" if several else said
    names = {group.name: _legend(group) for group in found}
    draw = functools.partial(
        compare_figure, bands=bands, axis=axis, names=names, unit=opened[0].loss_unit, note=plain(note)
    )
    title = f"{len(opened)} runs of {said} over {axis.words}" + (", mean (lowest to highest seed)" if several else "")
    summary = _summary(found, rows, bands, axis)
    return Comparison(title, summary, rows, draw, bands, tuple(found), tuple(missing), compared, columns=RESULT)


def _losses(run: Checkpoints, group: Group, missing: list[str]) -> list[pd.DataFrame]:
    """The loss and exact match over the answer alone, as far as they are known; what is not is added to `missing`."""
    curve = known_loss_curve(run) if run.steps else None
    if curve is None:
        how = "validate(run) measures it" if run.metrics is None else "training has not validated yet"
        missing.append(f"{run.path} has no validation loss: {how}.")
        return []
    tables = []
    for name in (LOSS, EXACT):
        if name in curve.validated:
            table = _tidy(run, group, curve.validated, name, name)
            finite = np.isfinite(column(table, "value"))
            if not finite.all():
                missing.append(f"{run.path}: {int((~finite).sum())} values of {name} are not finite and left out.")
            tables.append(pd.DataFrame(table.loc[finite]))
    return tables


def _tidy(run: Checkpoints, group: Group, table: pd.DataFrame, name: str, quantity: str, **more: Any) -> pd.DataFrame:
    """One column of a run's table as rows of a comparison."""
    places = [axis.column for axis in TRAINING_AXES if axis.column in table]
    whose = {"group": group.name, "run_id": run.run_id, "path": str(run.path), "seed": int(run.identity()["seed"])}
    what = {"quantity": quantity, "feature": "", "metric": "", "baseline": math.nan} | more
    return pd.DataFrame(table.loc[:, places]).assign(value=column(table, name), **whose, **what)


def _probes(run: Checkpoints, group: Group, feature: str, parts: Sequence[str]) -> pd.DataFrame:
    """The probes' curve of one feature, all labels together."""
    curve = select(emergence_curve(run.table(TABLE).read(parts)), third="all")
    more = {"feature": feature, "metric": curve["metric"], "baseline": curve["baseline_geometric"]}
    return _tidy(run, group, curve, "geometric", PROBE_LOSS, **more)


def _on_one_axis(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, TrainingAxis]:
    """All rows after step 0 in the order of training, with what says how far it was in all of them."""
    rows = pd.concat(tables, ignore_index=True)
    axis = training_axis(rows)
    names = list(dict.fromkeys([*_COLUMNS, axis.column, "value", "baseline"]))
    rows = rows.loc[rows[axis.column] > 0].sort_values(axis.column, kind="stable")
    order = {name: list(dict.fromkeys(pd.concat(tables)[name])) for name in ("quantity", "feature", "group", "path")}
    for name, values in reversed(order.items()):
        rows = rows.sort_values(name, key=lambda own, values=values: own.map(values.index), kind="stable")
    return rows.reindex(columns=names).reset_index(drop=True), axis


def _each(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """What stands in one panel as one group's, with the columns that say so."""
    for quantity, of_quantity in groups(rows, "quantity"):
        for feature, of_feature in groups(of_quantity, "feature"):
            for group, part in groups(of_feature, "group"):
                yield {"group": group, "quantity": quantity, "feature": feature}, part


def _bands(rows: pd.DataFrame, axis: TrainingAxis) -> pd.DataFrame:
    """Mean and range of each group that has values of several seeds."""
    names = ["group", "quantity", "feature", axis.column, "mean", "low", "high", "n_seeds"]
    tables = []
    for what, part in _each(rows):
        seeds = [SeedCurve(column(own, axis.column), column(own, "value")) for _, own in groups(part, "path")]
        if len(seeds) > 1:
            places, mean, low, high = over_seeds(seeds)
            of = {axis.column: places, "mean": mean, "low": low, "high": high, "n_seeds": len(seeds)}
            tables.append(pd.DataFrame(of).assign(**what))
    return pd.concat(tables, ignore_index=True).reindex(columns=names) if tables else pd.DataFrame(columns=names)


def _legend(group: Group) -> str:
    """What the legend calls a group: its name and its seeds."""
    seeds = ", ".join(map(str, group.seeds))
    many = f"{len(group.runs)} seeds" if len(group.runs) > _MOST_LISTED else f"seeds {seeds}"
    return f"{group.name} ({many if len(group.runs) > 1 else f'seed {seeds}'})"


def _summary(found: Sequence[Group], rows: pd.DataFrame, bands: pd.DataFrame, axis: TrainingAxis) -> pd.DataFrame:
    """One line a group: how far its seeds have come together, and the values there."""
    lines = {group.name: {"group": group.name, "n_seeds": len(group.runs)} for group in found}
    for what, part in _each(rows):
        band = select(bands, **what)
        last = band.iloc[-1] if len(band) else part.iloc[-1]
        line, short = lines[what["group"]], {LOSS: "loss", EXACT: "exact"}
        name = short.get(what["quantity"], f"probe {what['feature']}")
        if what["quantity"] == LOSS:
            line[axis.unit] = last[axis.column]
        line[name] = last["mean" if len(band) else "value"]
        if len(band):
            line |= {f"{name}_low": last["low"], f"{name}_high": last["high"]}
    return pd.DataFrame(list(lines.values()))
