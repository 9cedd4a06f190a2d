"""Is the carry needed for the transition of 16-bit addition? Forks that train without it: docs/forks.md.

    python scripts/study_forks.py runs/forks [--seeds 0 1 2] [--write]

For each seed a parent, and from a step before its plateau forks under an intervention at every block: the carry's probe
directions taken out (probes fitted again every 25 steps), as many random directions, and the first operand's. Every
training is resumed where it stopped, so that the command can be repeated. `--write` fills docs/forks.csv, the table of
docs/forks.md and the figure (needs `pip install kaleido` and a Chromium).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
from figures.forks import forks_figure
from pages import DOCS, fill, markdown, save

import qfl_interp as qfl

ROWS, PAGE, CURVES = DOCS / "forks.csv", DOCS / "forks.md", DOCS / "forks_curves.csv"
MODEL = qfl.ModelConfig(d_model=64, n_layers=4, n_heads=4)
N_STEPS, FORKED_BEFORE, REFIT_EVERY = 560, 12, 25
CONDITIONS = {
    "carry": qfl.Intervene("carry", refit_every=REFIT_EVERY),
    "random": qfl.Intervene("carry", kind="random", refit_every=REFIT_EVERY),
    "first_operand": qfl.Intervene("first_operand", refit_every=REFIT_EVERY),
}


def train_all(folder: Path, seed: int) -> dict[str, qfl.Run]:
    """The parent of a seed and its forks, those that are not there yet trained."""
    config = qfl.TrainConfig(
        n_steps=N_STEPS, lr=1e-3, batch_size=64, seed=seed, schedule="constant", save_optimizer=True, n_checkpoints=24,
        n_val=256,
    )  # fmt: skip
    out = folder / f"seed{seed}"
    runs = {"parent": qfl.train(qfl.load_task("addition", length=16), MODEL, config, out / "parent", resume=True)}
    step = max(step for step in runs["parent"].steps if step <= FORKED_BEFORE)
    for name, spec in CONDITIONS.items():
        runs[name] = qfl.fork(runs["parent"], step, out / name, intervene=spec, resume=True)
    return runs


def curve(parent: qfl.Run, run: qfl.Run) -> pd.DataFrame:
    """Validations of a run behind those of its parent up to the fork."""
    own = run.metrics.dropna(subset=["val_loss"])
    before = parent.metrics.dropna(subset=["val_loss"])
    before = before[before["step"] < own["step"].iloc[0]] if run is not parent else before[:0]
    names = ["step", "flops", "val_loss", "val_exact_answer", "val_free_loss"]
    return pd.concat([before, own], ignore_index=True).reindex(columns=names)


def halfway(rows: pd.DataFrame, level: float, name: str = "val_loss") -> float:
    """The compute at which a loss is first below a level; NaN where it never is."""
    below = rows[rows[name].fillna(rows["val_loss"]) < level]
    return float(below["flops"].iloc[0]) if len(below) else math.nan


def rows_of(seed: int, runs: dict[str, qfl.Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a training, and its curve."""
    found, curves = [], []
    parent = curve(runs["parent"], runs["parent"])
    plateau = runs["parent"].task.baselines["paper"]  # knowing nothing but which tokens occur where
    normal = halfway(parent, plateau / 2)
    for name, run in runs.items():
        rows = curve(runs["parent"], run)
        last, at = rows.iloc[-1], halfway(rows, plateau / 2)
        free = halfway(rows, plateau / 2, "val_free_loss")
        found.append({
            "seed": seed, "condition": name, "fork_step": run.config.first_step, "n_steps": run.config.last_step,
            "plateau_loss": plateau, "halfway_flops": at, "delay_decades": math.log10(at / normal),
            "free_halfway_flops": free, "free_delay_decades": math.log10(free / normal),
            "final_loss": last["val_loss"], "final_exact_answer": last["val_exact_answer"],
            "final_free_loss": last["val_free_loss"], "longest_delay": math.log10(last["flops"] / normal),
        })  # fmt: skip
        curves.append(rows.assign(seed=seed, condition=name))
    return pd.DataFrame(found), pd.concat(curves, ignore_index=True)


def table(rows: pd.DataFrame) -> str:
    """What the page shows: a row a condition, seeds side by side."""
    shown = []
    for name, part in rows.groupby("condition", sort=False):
        delays = [f"{d:+.2f}" if np.isfinite(d) else f"none by +{m:.2f}" for d, m in
                  zip(part["delay_decades"], part["longest_delay"], strict=True)]  # fmt: skip
        free = [f"{d:+.2f}" if np.isfinite(d) else "none" for d in part["free_delay_decades"]]
        shown.append({
            "taken out": name, "delay (decades)": ", ".join(delays), "delay, nothing installed": ", ".join(free),
            "loss at the end": ", ".join(f"{v:.2g}" for v in part["final_loss"]),
            "exact match at the end": ", ".join(f"{v:.2f}" for v in part["final_exact_answer"]),
        })  # fmt: skip
    return markdown(pd.DataFrame(shown))


def main() -> None:
    """Train, and write if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="fill docs/forks.csv, docs/forks.md and the figure")
    arguments = parser.parse_args()
    parts = [rows_of(seed, train_all(arguments.folder, seed)) for seed in arguments.seeds]
    rows, curves = (pd.concat(column_of, ignore_index=True) for column_of in zip(*parts, strict=True))
    print(rows.to_string())
    if arguments.write:
        rows.to_csv(ROWS, index=False, float_format="%.6g")
        curves.to_csv(CURVES, index=False, float_format="%.6g")
        fill(PAGE, {"forks": table(rows)})
        save(forks_figure(curves), "forks", width=760)


if __name__ == "__main__":
    main()
