"""The tables of emergence: each feature's curve over the checkpoints, and the verdict on it beside the loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.lenses.emergence.auto import steps_at_onsets
from qfl_interp.analyses.lenses.probe.data import probe_tensors
from qfl_interp.analyses.lenses.probe.lens import probe
from qfl_interp.analyses.loss_curve import LossCurve, loss_curve
from qfl_interp.analyses.stored import rows_of_one_call
from qfl_interp.analyses.transition import loss_transition
from qfl_interp.config import ProbeConfig
from qfl_interp.digests import digest
from qfl_interp.emergence.aggregation import THIRDS, label_groups, summarise
from qfl_interp.emergence.onset import RATIO, find_onset, fraction_at
from qfl_interp.emergence.transition import Transition
from qfl_interp.emergence.verdict import LeadBootstrap, classify, lead_interval_bootstrap
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.plots.axes import FLOPS
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.tables import column, distinct, groups, select

VERDICTS, CURVES, STEPS = "emergence", "emergence_curve", "emergence_steps"


class EmergenceTables(NamedTuple):
    """Both tables of the analysis.

    Attributes:
        curves: One row a feature, third and step.
        verdicts: One row a feature and third.
    """

    curves: pd.DataFrame
    verdicts: pd.DataFrame


def emergence_tables(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig | None = None,
    ratio: float = RATIO,
    n_resamples: int = 2_000,
    **how: Any,
) -> EmergenceTables:
    """The tables behind `emergence`, which are written beside the run; arguments as there."""
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}. The paper uses 10,000.")
    require_memory(32 * n_resamples, available_bytes(), f"leads of {n_resamples:,} resamples", "Take fewer.")
    config = config or ProbeConfig()
    names = [feature.name for feature in chosen_features(run, features)]
    losses = loss_curve(run, **how)
    measured = functools.partial(_measured, run, losses, names, config=config, ratio=ratio, how=how)
    saved = (
        _auto(run, losses, f"{config.digest()} {ratio!r} {names} {n_resamples}", measured, n_resamples)
        if steps == "auto"
        else run.resolve_steps(steps)
    )
    part = digest(f"{config.digest()} {ratio!r} {names} {saved} {n_resamples}{losses.key}")
    verdict_table, curve_table = run.table(VERDICTS), run.table(CURVES)
    # An unfinished run's loss curve grows, and its transition with it.
    if losses.final and verdict_table.has(part) and curve_table.has(part):
        return EmergenceTables(curve_table.read([part]), verdict_table.read([part]))
    columns = {**run.identity(), "settings": config.digest(), "analysis": part}
    found = EmergenceTables(*(table.assign(**columns) for table in measured(saved, n_resamples=n_resamples)))
    verdict_table.write(part, found.verdicts, steps=saved)
    curve_table.write(part, found.curves, steps=saved)
    return found


def stored_tables(
    run: Checkpoints, features: Sequence[str] | None = None, config: ProbeConfig | None = None
) -> EmergenceTables:
    """What was computed before, of each feature the call with most steps; both empty where there is nothing.

    Args:
        run: What to look at.
        features: Of which; None for all.
        config: With which probes; None for any.
    """
    verdicts, curves = run.table(VERDICTS).read(), run.table(CURVES).read()
    if config is not None and not verdicts.empty and not curves.empty:
        verdicts = select(verdicts, settings=config.digest())
        curves = pd.DataFrame(curves.loc[curves["analysis"].isin(verdicts["analysis"])])
    if curves.empty or verdicts.empty:
        return EmergenceTables(pd.DataFrame(), pd.DataFrame())
    curves = rows_of_one_call(curves, ["feature"])
    if features is not None:
        curves = pd.DataFrame(curves.loc[curves["feature"].isin(features)])
    shown = curves[["feature", "analysis"]].drop_duplicates()
    return EmergenceTables(curves, verdicts.merge(shown))


def _auto(
    run: Checkpoints, losses: LossCurve, settings: str, measured: Callable[..., EmergenceTables], n_resamples: int
) -> list[int]:
    """The checkpoints of `steps="auto"`, which are kept as a table of their own."""
    table, part = run.table(STEPS), digest(settings + losses.key)
    if losses.final and table.has(part):
        return [int(step) for step in column(table.read([part]), "step")]

    def verdicts(steps: Sequence[int], with_bootstrap: bool) -> pd.DataFrame:
        return measured(steps, n_resamples=n_resamples if with_bootstrap else 0).verdicts

    chosen = steps_at_onsets(run, losses.axis, verdicts)
    table.write(part, pd.DataFrame({"step": chosen}).assign(**run.identity()), steps=chosen)
    return chosen


def _measured(
    run: Checkpoints,
    losses: LossCurve,
    names: Sequence[str],
    steps: Sequence[int],
    *,
    config: ProbeConfig,
    ratio: float,
    n_resamples: int,
    how: Mapping[str, Any],
) -> EmergenceTables:
    """The tables of these checkpoints, which are probed where they are not yet; without resamples no interval."""
    axis = losses.axis.column  # of all steps: fewer may happen to know more
    transition = loss_transition(losses, run.task)  # first: what is wrong with it would be found after all the work
    rows = probe(run, names, list(steps), config=config, **how).rows
    curves, verdicts = [], []
    for name in names:
        of_feature = select(rows, feature=name)
        curve = emergence_curve(of_feature)
        curves.append(curve)
        for third, points in groups(curve, "third"):
            bootstrap = _bootstrap(run, of_feature, points, third, transition, config, ratio, n_resamples, axis)
            row = _verdict(points, transition, bootstrap, ratio, axis)
            verdicts.append(
                {
                    "feature": name,
                    "metric": curve["metric"].iloc[0],
                    "third": third,
                    **row,
                    "n_bootstrap": n_resamples if bootstrap else 0,
                }
            )
    return EmergenceTables(pd.concat(curves, ignore_index=True), pd.DataFrame(verdicts))


def by_site(rows: pd.DataFrame, metric: str) -> Float[np.ndarray, "place label"]:
    """A column of one model's rows by place (layer and head) and label."""
    return rows.pivot(index=["layer", "head"], columns="label", values=metric).to_numpy(dtype=float)


def _summaries(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Thirds of one model's metric; the layer is chosen on the training loss."""
    return summarise(by_site(rows, "train_loss"), by_site(rows, metric))


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN of none."""
    return float(np.mean(values)) if values else math.nan


def emergence_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a third and step: the probes' test loss with the untrained and the shuffled control.

    A third without a fitted label has no rows (fewer than three labels leave the first ones empty).

    Args:
        rows: The probe table's rows of one feature.

    Raises:
        QflError: No label was fitted.
    """
    ((feature,), (metric,)) = distinct(rows, "feature"), distinct(rows, "metric")
    if not any(rows["fitted"].tolist()):
        raise QflError(
            f"no probe of {feature!r} could be fitted: the labels do not vary or few examples have one. "
            "Name the features to look at, without this one."
        )
    untrained = [_summaries(part, "test_loss") for _, part in groups(select(rows, source="untrained"), "model_seed")]
    points = []
    for step, part in groups(select(rows, source="trained"), "step"):
        shuffled = bool(np.isfinite(column(part, "shuffled_test_loss")).any())
        control = _summaries(part, "shuffled_test_loss") if shuffled else {}
        for third, summary in _summaries(part, "test_loss").items():
            if summary.n == 0:
                continue
            baselines = [models[third] for models in untrained]
            points.append(
                {
                    "feature": feature,
                    "metric": metric,
                    "third": third,
                    "step": step,
                    **{name: column(part, name)[0] for name in ("flops", "tokens") if name in part},
                    "geometric": summary.geometric_mean,
                    "arithmetic": summary.arithmetic_mean,
                    "baseline_geometric": _mean([b.geometric_mean for b in baselines]),
                    "baseline_arithmetic": _mean([b.arithmetic_mean for b in baselines]),
                    "shuffled_geometric": control[third].geometric_mean if shuffled else math.nan,
                    "n_labels": summary.n,
                }
            )
    order = [*THIRDS, "all"]
    return pd.DataFrame(sorted(points, key=lambda point: (order.index(point["third"]), point["step"])))


def _starts_inside(transition: Transition, places: np.ndarray) -> bool:
    """Whether there is a transition and the checkpoints, step 0 aside, enclose its start."""
    return transition.found and bool(places[places > 0].min() <= transition.start_flops <= places.max())


def _bootstrap(
    run: Checkpoints,
    rows: pd.DataFrame,
    curve: pd.DataFrame,
    third: str,
    transition: Transition,
    config: ProbeConfig,
    ratio: float,
    n_resamples: int,
    axis: str = FLOPS.column,
) -> LeadBootstrap | None:
    """The lead's interval over the probes' test examples; None without a transition among the checkpoints."""
    if n_resamples == 0 or not _starts_inside(transition, column(curve, axis)):
        return None
    (feature,) = distinct(rows, "feature")
    fitted = by_site(select(rows, source="trained", step=distinct(curve, "step")[0]), "fitted")
    members = label_groups(np.any(fitted, axis=0, keepdims=False))[third]
    kept = [probe_tensors(run, int(step), feature, config) for step in distinct(curve, "step")]
    losses = [tensors["test_loss"].numpy()[members] for tensors in kept]
    return lead_interval_bootstrap(
        column(curve, axis),
        np.stack(losses).astype(np.float64),
        float(column(curve, "baseline_geometric")[0]),
        transition,
        generator(config.seed, f"emergence/{feature}/{third}"),
        ratio=ratio,
        n_resamples=n_resamples,
    )


def _verdict(
    curve: pd.DataFrame, transition: Transition, bootstrap: LeadBootstrap | None, ratio: float, axis: str = FLOPS.column
) -> dict[str, Any]:
    """The verdict on one feature's third, as a row; columns of places on the axis end in its name."""
    places, metric = column(curve, axis), column(curve, "geometric")
    baseline = float(column(curve, "baseline_geometric")[0])
    onset = find_onset(places, metric, baseline, ratio)
    verdict = classify(onset, transition, bootstrap.lead if bootstrap else None)
    step_at = dict(zip(places, curve["step"].astype(float).tolist(), strict=True)) | {0.0: 0.0}
    inside = _starts_inside(transition, places)
    at_start = fraction_at(places, metric, baseline, transition.start_flops) if inside else math.nan
    return {
        "verdict": verdict.kind,
        "certain": verdict.certain,
        "reason": verdict.reason,
        f"onset_{axis}": onset.onset_flops,
        "onset_step_before": step_at.get(onset.bracket.low, math.nan),
        "onset_step_after": step_at.get(onset.bracket.high, math.nan),
        "lead_log10": verdict.lead,
        "lead_low": verdict.lead_low,
        "lead_high": verdict.lead_high,
        "bootstrap_low": bootstrap.lead.low if bootstrap else math.nan,
        "bootstrap_high": bootstrap.lead.high if bootstrap else math.nan,
        "learned_share": bootstrap.learned_share if bootstrap else math.nan,
        "baseline": baseline,
        "best": float(metric.min()),
        "fraction_at_start": at_start,
        "fraction_low": bootstrap.fraction_at_start.low if bootstrap else math.nan,
        "fraction_high": bootstrap.fraction_at_start.high if bootstrap else math.nan,
        "ratio": ratio,
        "transition_found": transition.found,
        f"transition_start_{axis}": transition.start_flops,
        f"transition_end_{axis}": transition.end_flops,
        f"plateau_start_{axis}": transition.plateau_start_flops,
        "plateau_loss": transition.plateau_loss,
        "final_loss": transition.final_loss,
        "transition_reason": transition.reason,
    }
