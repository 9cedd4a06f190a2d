"""The index of a site: a row a run with the curve of its loss, its size, how far it is, and its verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from qfl_interp.analyses.loss_curve import LOSS
from qfl_interp.analyses.pages.run_page import RunPage
from qfl_interp.plots.lines import LOSS_FLOOR
from qfl_interp.report.section import Link, Section, Sparkline, Verdict
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import column

# Points of a small curve.
_MOST_POINTS: Final = 48


def index_row(run: Checkpoints, page: RunPage) -> dict[str, Any]:
    """What the index says of a run, as JSON holds it."""
    card, losses = page.card, column(page.losses.validated, LOSS)
    losses = losses[np.isfinite(losses)]
    at = np.unique(np.linspace(0, len(losses) - 1, _MOST_POINTS).round().astype(int)) if len(losses) else []
    model = card.get("model", {})
    return {
        "task": card["task"],
        "length": card["length"],
        "seed": card["seed"],
        "parameters": card.get("n_parameters"),
        "shape": f"{model['n_layers']} × {model['d_model']}" if {"n_layers", "d_model"} <= {*model} else "",
        "step": run.steps[-1] if run.steps else 0,
        "last_step": run.config.last_step if isinstance(run, Run) else None,
        "exact": _finite(card.get("val_exact_answer")),
        "loss": _finite(card.get("val_loss_answer")),
        "curve": [math.log10(max(float(losses[i]), LOSS_FLOOR)) for i in at],
        "verdicts": [[one.feature, one.verdict] for one in page.findings],
        "faults": len(page.faults),
    }


def index_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    """The table over all runs; of one that cannot be read, the reason."""
    damaged = [f"- `{row['path']}`: {row['damaged']}" for row in rows if "damaged" in row]
    text = "\n\n".join(filter(None, [f"{len(rows)} runs. A click on a header sorts.", "\n".join(damaged)]))
    return Section("Runs", text=text, table=pd.DataFrame([_shown(row) for row in rows]))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row as the table has it."""
    if "damaged" in row:
        return {"run": row["path"], **dict.fromkeys(_COLUMNS), "state": Verdict("damaged")}
    return {
        "run": Link(row["path"], row["page"]),
        "loss curve": Sparkline(row["curve"], "validation loss, logarithmic, over training"),
        "task": f"{row['task']} {row['length']}".replace("_", " "),
        "layers × d_model": row["shape"],
        "parameters": None if row["parameters"] is None else float(row["parameters"]),
        "seed": row["seed"],
        "state": _state(row),
        "step": row["step"],
        "exact match": row["exact"],
        "validation loss": row["loss"],
        "verdicts": tuple(Verdict(verdict, feature.replace("_", " ")) for feature, verdict in row["verdicts"]),
    }


_COLUMNS: Final = (
    "loss curve", "task", "layers × d_model", "parameters", "seed", "state", "step", "exact match", "validation loss",
    "verdicts",
)  # fmt: skip


def _state(row: Mapping[str, Any]) -> str:
    """How far a run is."""
    step, last = row["step"], row["last_step"]
    said = "finished" if last is None or step >= last else f"{step:,} of {last:,} steps"
    return said if not row["faults"] else f"{said}, {row['faults']} not shown"


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
