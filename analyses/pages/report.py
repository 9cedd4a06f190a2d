"""One page on a run: every lens that was computed, and the run's card; needs no other file and no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analyses.choose import chosen_features
from analyses.lenses.ablate.lens import ablate
from analyses.lenses.curvature.tables import stored as stored_curvature
from analyses.lenses.emergence.lens import emergence_tables, with_loss_curve
from analyses.lenses.polca.tables import stored as stored_polca
from analyses.lenses.probe.lens import probe
from analyses.pages.sections import standard_sections
from analyses.pages.timeline import lens_panels
from analyses.pages.words import findings
from analyses.stored import stored_rows, with_holm
from qfl_interp.config import ProbeConfig
from qfl_interp.plots.panels import Panel
from qfl_interp.report.page import write_report
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import distinct, select


def report(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    out: str | Path | None = None,
    config: ProbeConfig | None = None,
    n_trials: int = 32,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Path:
    """Write one self-contained page on a run; analyses that are missing are computed first.

    Probes, verdicts and the ablation of the last checkpoint are computed where they are missing. Whatever else was
    computed before for these features is shown too, at whatever steps: carry-forward and description length (of these
    probes), ablation over steps, interchange, patching, single heads and neurons, POLCA, curvature. Where a lens
    was called with several settings, the call with most steps is shown.

    Example:
        `qfl report runs/add16`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: The checkpoints of the curves; ablation is of the last of them.
        out: The page; `report.html` in the run directory by default.
        config: The probes'.
        n_trials: Random controls of the ablation.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.

    Returns:
        Where the page is.
    """
    run, config = with_loss_curve(run), config or ProbeConfig()
    last = run.resolve_steps(steps)[-1]
    how: dict[str, Any] = {"config": config, "jobs": jobs, "device": device, "progress": progress}
    names = [feature.name for feature in chosen_features(run, features)]
    rows = probe(run, features, steps, **how).to_dataframe()
    emerged = emergence_tables(run, features, steps, **how)
    ablated = ablate(run, features, last, n_trials=n_trials, **how).to_dataframe()
    sections = standard_sections(
        run.metrics,
        probe=rows,
        emergence_curve=emerged.curves,
        emergence=emerged.verdicts,
        ablate=ablated,
        **stored_tables(run, names, config),
        polca=stored_polca(run),
        curvature=stored_curvature(run),
        # A lens of a single step is no curve, and has a section of its own.
        panels=[panel for panel in lens_panels(run, names, config) if _is_curve(panel)],
    )
    return write_report(out or run.path / "report.html", card(run), sections, findings=findings(emerged.verdicts))


def stored_tables(run: Run, features: Sequence[str], config: ProbeConfig) -> dict[str, pd.DataFrame]:
    """What a report shows of the lenses that it does not compute, by argument of `standard_sections`.

    Args:
        run: Whose tables.
        features: Names.
        config: The probes', for the lenses that use them.
    """
    of_probes = {"settings": config.digest()}

    def of_features(lens: str, by: Sequence[str], **how: Any) -> pd.DataFrame:
        rows = stored_rows(run, lens, ["feature", *by], **how)
        parts = [select(rows, feature=name) for name in features if name in distinct(rows, "feature")]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    swapped = of_features("interchange", ["label"], **of_probes)
    return {
        "transfer": of_features("transfer", [], step="eval_step", **of_probes),
        "mdl": of_features("mdl", [], **of_probes),
        "ablate_over_steps": of_features("ablate", ["method"], **of_probes),
        "interchange": swapped if swapped.empty else with_holm(swapped),
        "patch": of_features("patch", ["label"]),
        "ablate_units": stored_rows(run, "ablate_units", ["name", "method"]),
    }


def _is_curve(panel: Panel) -> bool:
    """Whether a panel has more than one step."""
    columns: list[Any] = [trace["x"] for trace in panel.traces]
    return len({float(x) for column in columns for x in column}) > 1


def card(run: Run) -> dict[str, Any]:
    """What the run is and where it comes from."""
    metrics, config = run.metrics, run.config
    last = metrics.dropna(subset=["val_loss"]).iloc[-1]
    session = run.provenance[-1] if run.provenance else {}
    return {
        "run_id": run.run_id,
        "task": config.task,
        "length": config.length,
        "n_parameters": run.n_parameters,
        "n_steps": config.n_steps,
        "step": int(last["step"]),
        "budget_flops": config.train.budget_flops or math.nan,
        "nominal_flops": float(last["flops"]),
        "actual_flops": float(last["actual_flops"]),
        "seconds": float(last["seconds"]),
        **{name: float(last[name]) for name in ("val_loss", "val_exact", "val_loss_answer", "val_exact_answer")},
        "seed": config.train.seed,
        "model": config.model.to_dict(),
        "train": config.train.to_dict(),
        **{name: session.get(name) for name in ("started", "device", "threads", "git_commit", "versions", "command")},
    }
