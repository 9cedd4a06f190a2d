"""The carry-forward test: does the probe fitted at one checkpoint still work at another?"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.checkpoints import over_checkpoints
from analyses.lenses.probe.lens import LENS as PROBE_LENS
from analyses.lenses.probe.lens import ProbeData, feature_data, part_name, probe, probe_data, read_span
from analyses.lenses.transfer.figure import transfer_figure
from analyses.models_at import trained_at
from analyses.result import Result, chosen_features
from qfl_interp.activations.spans import site_span
from qfl_interp.config import ProbeConfig
from qfl_interp.digests import digest
from qfl_interp.emergence.aggregation import NOT_FITTED
from qfl_interp.probes import PROBE_LOSS, load_probes
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import select

LENS = "transfer"


def transfer(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "log:20",
    *,
    config: ProbeConfig | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Carry probes forward: does the probe of one checkpoint still work at another?

    The probes of every checkpoint are scored on the activations of every other. A feature whose representation only
    grows keeps its old probes; one that is built anew, or whose direction turns, loses them, although a probe fitted
    afresh reads it as well as ever. For each label the layer is the one with the lowest training loss at the step the
    probe was fitted at. Probes that are missing are fitted first.

    Example:
        `qfl transfer runs/add16 carry --steps log:12`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: Both axes, as in `probe`; n steps are n^2 rows a feature.
        config: The probes'.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a feature and pair of steps: loss and score on test examples at `eval_step` of the probes fitted at
        `fit_step`, means over labels; `refit_loss`, that of the probes of `eval_step` itself; `cosine`, the mean
        absolute cosine between the two probes' directions at the same place.

    Raises:
        QflError: Unknown feature or step, or the model has no such site.
    """
    config = config or ProbeConfig()
    names = [f.name for f in chosen_features(run, features)]
    saved = run.resolve_steps(steps)
    table = run.table(LENS)
    of_steps = digest(repr(saved))

    def part(step: int, name: str) -> str:
        return f"{part_name(trained_at(step), name, config)}-{of_steps}"

    probe(run, names, saved, config=config, n_untrained=0, jobs=jobs, device=device, progress=progress)
    missing = [step for step in saved if not all(table.has(part(step, name)) for name in names)]
    parts = {step: {name: part(step, name) for name in names} for step in missing}
    work = functools.partial(_score_at, run, saved, parts, config, device)
    over_checkpoints(
        missing, functools.partial(probe_data, run, config), work, label="transferring", jobs=jobs, progress=progress
    )
    rows = table.read([part(step, name) for step in saved for name in names])
    return Result(
        f"Carry-forward of the probes of {run.run_id}: test loss, fitted and evaluated at",
        _summary(rows),
        rows,
        lambda: transfer_figure(select(rows, feature=names[0])),
    )


def _score_at(
    run: Checkpoints,
    fit_steps: Sequence[int],
    parts: dict[int, dict[str, str]],
    config: ProbeConfig,
    device: str | torch.device,
    data: ProbeData,
    step: int,
) -> None:
    """Score every step's probes on the activations of one, and write what was missing."""
    tokens = run.task.encode(data.test).tokens
    span = site_span(run.load_model(step, device=device), tokens, *read_span(run.task, data.test), name=config.site)
    probes, table = run.table(PROBE_LENS), run.table(LENS)
    for name, part in parts[step].items():
        if table.has(part):
            continue
        feature = run.task.feature(name)
        test = feature_data(feature, span, data.test)
        here = probes.read_tensors(part_name(trained_at(step), name, config))
        rows = []
        for fit_step in fit_steps:
            there = probes.read_tensors(part_name(trained_at(fit_step), name, config))
            place = there["place"].numpy()
            labels = np.flatnonzero(place != NOT_FITTED)
            scores = load_probes(feature.kind, there).score(test.x, test.y, test.kept)
            loss, score = (values.nanmean(dim=2).numpy()[place[labels], labels] for values in scores)
            rows.append(
                {
                    "feature": name,
                    "metric": PROBE_LOSS[feature.kind],
                    "fit_step": fit_step,
                    "eval_step": step,
                    "fit_flops": run.flops(fit_step),
                    "eval_flops": run.flops(step),
                    "test_loss": float(np.nanmean(loss)),
                    "test_score": float(np.nanmean(score)),
                    "cosine": float(np.nanmean(_cosines(there["weight"], here["weight"], place, labels))),
                    "n_labels": len(labels),
                }
            )
        found = pd.DataFrame(rows)
        own = found.loc[found["fit_step"] == step, "test_loss"].iloc[0]
        columns = {"settings": config.digest(), "analysis": part.rpartition("-")[2]}
        table.write(part, found.assign(refit_loss=own, **run.identity(), **columns))


def _cosines(one: Tensor, other: Tensor, place: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """|cosine| between two probes' directions at each label's place, a mean over its rows; NaN for a zero row."""
    first, second = (weight[place[labels], labels].double().flatten(1, -2) for weight in (one, other))
    along = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    return along.abs().nanmean(dim=-1).numpy()


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Each feature's loss by fit step (rows) and evaluation step (columns), at most eight of each."""
    steps = sorted(set(rows["eval_step"]))
    shown = [steps[i] for i in sorted({round(k) for k in np.linspace(0, len(steps) - 1, min(8, len(steps)))})]
    part = rows[rows["fit_step"].isin(shown) & rows["eval_step"].isin(shown)]
    table = part.pivot_table(index=["feature", "fit_step"], columns="eval_step", values="test_loss", sort=True)
    return table.rename(columns=lambda step: f"at {step}").rename_axis(columns=None).reset_index()
