"""One page on a run: timeline, probe maps, ablation, the run's card; needs no other file and no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analyses.ablation import ablate
from analyses.emerging import emergence_tables
from analyses.probing import probe
from qfl_interp.config import ProbeConfig
from qfl_interp.report import findings, standard_sections, write_report
from qfl_interp.run import Run
from qfl_interp.series import Steps


def report(
    run: Run,
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
    """Write the report of a run; analyses that are missing are computed first.

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
    config = config or ProbeConfig()
    last = run.resolve_steps(steps)[-1]
    how: dict[str, Any] = {"config": config, "jobs": jobs, "device": device, "progress": progress}
    rows = probe(run, features, steps, **how).to_dataframe()
    emerged = emergence_tables(run, features, steps, **how)
    ablated = ablate(run, features, last, n_trials=n_trials, **how).to_dataframe()
    sections = standard_sections(
        run.metrics,
        probe=rows,
        emergence_curve=emerged.curves,
        emergence=emerged.verdicts,
        ablate=ablated,
    )
    return write_report(out or run.path / "report.html", card(run), sections, findings=findings(emerged.verdicts))


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
