"""Fill the tables and figures of docs/scaling.md from a finished sweep.

    python scripts/study_sweep.py runs/sweeps/small [--within RUN ...] [--jobs 2]

The tables between the markers of docs/scaling.md are replaced, every run's row is written to docs/scaling.csv, and the
figures to docs/figures/ (needs `pip install kaleido` and a Chromium). Probes that are there are not fitted again.
"""

from __future__ import annotations

import argparse

import pandas as pd
from pages import DOCS, fill, markdown, save

import qfl_interp as qfl
from qfl_interp.analyses import across, scaling
from qfl_interp.tables import records

# What a run's row says in docs/scaling.csv.
COLUMNS = (
    "task", "length", "budget_flops", "d_model", "n_layers", "lr", "batch_size", "seed", "n_steps", "flops", "val_loss",
    "val_exact", "val_loss_answer", "val_exact_answer", "val_pass_answer", "status", "group_size", "seconds", "run_id",
)  # fmt: skip
PROBES = qfl.ProbeConfig(n_train=4_000, shuffled_control=False)


def scaling_tables(sweep: qfl.Sweep) -> dict[str, str]:
    """The best configuration at every budget, the fits, and the figure."""
    found = scaling(sweep)
    save(found.plot(), "scaling")
    best = found.to_dataframe()
    size = best["d_model"].astype(str) + " x " + best["n_layers"].astype(str)
    shown = pd.DataFrame(
        {
            "task": best["task"] + " " + best["length"].astype(str),
            "budget": best["budget_flops"].map(lambda b: f"{b:.0e}"),
            "best size": size,
            "batch": best["batch_size"],
            "lr": best["lr"],
            "loss (range over seeds)": [spread(row, "loss") for row in records(best)],
            "exact match": [spread(row, "exact") for row in records(best)],
            "pass probability": best["pass"].map(lambda p: f"{p:.2g}"),
        }
    )
    fits = found.fits
    laws = pd.DataFrame(
        {
            "task": fits["task"] + " " + fits["length"].astype(str),
            "exponent b (95 %)": [interval(row, "exponent") for row in records(fits)],
            "before the transition": [interval(row, "early_exponent") for row in records(fits)],
            "test": fits["test"],
            "p (Holm)": fits["p_holm"],
            "AICc, one power law": fits["power_aicc"],
            "with one break": fits["broken_aicc"],
            "transition (bootstrap over seeds)": [transition(row) for row in records(fits)],
            "half right at (95 %)": [interval(row, "half_exact") for row in records(fits)],
            "pass law exponent": [interval(row, "pass_exponent") for row in records(fits)],
        }
    )
    return {"best": markdown(shown), "laws": markdown(laws)}


def spread(row: dict[str, object], name: str) -> str:
    """A mean and its range."""
    return f"{row[name]:.3g} ({row[f'{name}_low']:.3g} to {row[f'{name}_high']:.3g})"


def interval(row: dict[str, object], name: str) -> str:
    """An estimate and its interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if row[name] != row[name]:
        return "–"
    return f"{row[name]:.3g}" + ("" if low != low else f" ({low:.3g} to {high:.3g})")


def transition(row: dict[str, object]) -> str:
    """Where the loss falls."""
    if not row["transition_found"]:
        return f"none: {row['transition_reason']}"
    start, end = (interval(row, f"transition_{side}") for side in ("start", "end"))
    return f"{start} → {end}, in {row['transition_share']:.0%} of the resamples"


def across_tables(sweep: qfl.Sweep, within: list[qfl.Run], jobs: int) -> dict[str, str]:
    """Quiet and loud across compute beside within runs, and the figures."""
    parts = []
    for task, length in sweep.table()[["task", "length"]].drop_duplicates().itertuples(index=False):
        beside = [run for run in within if (run.config.task, run.config.length) == (task, length)]
        found = across(sweep, task=task, length=int(length), config=PROBES, within=beside, jobs=jobs)
        save(found.plot(), f"across-{task}-{length}")
        parts.append(found.to_dataframe())
    rows = pd.concat(parts, ignore_index=True)
    shown = pd.DataFrame(
        {
            "task": rows["task"] + " " + rows["length"].astype(str),
            "feature": rows["feature"],
            "third": rows["third"],
            "across compute": rows["verdict"] + rows["certain"].map({True: "", False: " (?)"}),
            "each seed": rows["seed_verdicts"],
            "onset": rows["onset_flops"].map(number),
            "lead (range)": [interval({**row, "lead": row["lead_log10"]}, "lead") for row in records(rows)],
            "untrained → best": [f"{row['baseline']:.3g} → {row['best']:.3g}" for row in records(rows)],
            "within a run": rows["within_verdict"] if "within_verdict" in rows else "–",
        }
    )
    return {"across": markdown(shown)}


def main() -> None:
    """Read the sweep, compute, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="the sweep's folder")
    parser.add_argument("--within", nargs="*", default=[], help="runs with many checkpoints of the same tasks")
    parser.add_argument("--jobs", type=int, default=2, help="runs probed at a time")
    arguments = parser.parse_args()
    sweep = qfl.Sweep.open(arguments.sweep)
    sweep.table()[list(COLUMNS)].to_csv(DOCS / "scaling.csv", index=False, float_format="%.6g")
    within = [qfl.Run.open(path) for path in arguments.within]
    fill(DOCS / "scaling.md", scaling_tables(sweep) | across_tables(sweep, within, arguments.jobs))


if __name__ == "__main__":
    main()
