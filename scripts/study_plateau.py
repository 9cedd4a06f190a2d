"""Does curvature or soft rank move on the loss's plateau, before the loss does? Fill docs/plateau.md.

    python scripts/study_plateau.py runs/plateau [--tasks NAME ...] [--seeds 0 1 2] [--jobs 2] [--write]

Two tasks with a quiet feature are trained as for docs/tasks.md, with Adam's moments at many checkpoints; beside each
run a control is trained that cannot learn: the same prompts with the answers of other prompts, so that its loss stays
on the plateau. Killed at any moment, it goes on where it was. `--write` fills the tables between the markers of the
page and writes docs/plateau.csv and the figures (needs `pip install kaleido` and a Chromium).
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from figures.small_multiples import small_multiples
from pages import DOCS, fill, markdown, nearest_saved, save
from tasks_toml import read_settings, train_as

import qfl_interp as qfl
from qfl_interp.analyses import curvature, emergence, timeline
from qfl_interp.curvature import CurvatureConfig, SgldConfig
from qfl_interp.shapes import Examples
from qfl_interp.tables import column, records, select

PAGE = DOCS / "plateau.md"
FEATURE = "carry"
# Of the tasks of docs/tasks.toml, and the steps between which curvature is measured.
TASKS = {"addition": (20, 330), "decimal_addition": (60, 2_200)}
N_CHECKPOINTS, N_MEASURED, N_SAMPLED = 64, 20, 6
CURVATURE = CurvatureConfig(n_examples=64, n_rank_examples=256, tol=0.02)
# A step size at which chains forget their start within the burn-in: 2 / (step_size localization) = 200 steps.
CHAINS = SgldConfig(step_size=1e-4, n_chains=2, n_burn_in=200, n_draws=100, batch_size=32)
TRAINED, CONTROL = "trained", "control"
# Column of the tables below, what it is called, and its digits.
QUANTITIES = {
    "loss": "validation loss (nats)",
    "probe": "carry's probe loss (nats)",
    "sharpness": "sharpness",
    "preconditioned_over_edge": "preconditioned sharpness / its edge",
    "cos_preconditioned_step": "cos(-P gradient, step)",
    "participation": "soft rank, centred (mean of layers)",
    "learning_coefficient": "learning coefficient",
}


class Job(NamedTuple):
    """One training of the study.

    Attributes:
        task: Settings of docs/tasks.toml.
        kind: With the right answers, or the control's.
        seed: Of the training.
        path: The run's directory.
    """

    task: dict[str, Any]
    kind: str
    seed: int
    path: Path


def with_answers_of_others(task: qfl.Task) -> qfl.Task:
    """The task with each prompt's answer taken from the example before it: the same tokens, and nothing to learn."""
    kind = type(task)

    class Control(kind):  # pyright: ignore[reportGeneralTypeIssues]
        """Answers are rolled by one example within what is encoded."""

        def encode(self, examples: Examples) -> qfl.Batch:
            batch = super().encode(examples)
            tokens = batch.tokens.clone()
            # The prompt's last token, `=`, is scored too, and the same everywhere.
            assert bool((batch.loss_mask == batch.loss_mask[0]).all()), "answers must stand at the same places"
            tokens[:, batch.loss_mask[0]] = batch.tokens.roll(1, dims=0)[:, batch.loss_mask[0]]
            return qfl.Batch(tokens, batch.loss_mask)

    return Control(task.length)


def jobs_of(folder: Path, names: list[str], seeds: list[int]) -> list[Job]:
    """Every training, a seed's control beside it."""
    settings = {entry["name"]: entry for entry in read_settings()}
    return [
        Job(settings[name], kind, seed, folder / f"{name}-{kind}-s{seed}")
        for seed in seeds
        for name in names
        for kind in (TRAINED, CONTROL)
    ]


def trained(job: Job) -> qfl.Run:
    """The finished run."""
    settings = job.task
    task = qfl.load_task(settings["name"], settings["length"])
    if job.kind == CONTROL:
        task = with_answers_of_others(task)
    kept = {"n_checkpoints": N_CHECKPOINTS, "save_optimizer": True}
    run = train_as(settings, task, job.seed, job.path, **kept)
    # A run's directory has its task's name alone, and the control's is in no registry.
    run.task = task
    return run


def spread(steps: list[int], n: int) -> list[int]:
    """`n` of some steps, evenly over their logarithm, the first and the last among them."""
    return nearest_saved(steps, np.geomspace(steps[0], steps[-1], n))


def measured_steps(job: Job, run: qfl.Run) -> list[int]:
    """The checkpoints at which curvature is measured."""
    first, last = TASKS[job.task["name"]]
    return spread([step for step in run.steps if first <= step <= last], N_MEASURED)


def work(job: Job) -> str:
    """Train and measure one run; skips what is there."""
    run = trained(job)
    steps = measured_steps(job, run)
    if job.kind == TRAINED:
        emergence(run, FEATURE, config=probes(job), progress=False)
    curvature(run, steps, config=CURVATURE, progress=False)
    curvature(run, spread(steps, N_SAMPLED), config=CURVATURE, sgld=CHAINS, progress=False)
    return job.path.name


def probes(job: Job) -> qfl.ProbeConfig:
    """How the carry is probed."""
    return qfl.ProbeConfig(n_train=job.task["n_train"], shuffled_control=False)


def run_all(jobs: list[Job], n_jobs: int) -> None:
    """Every job in a process of its own, on one thread."""
    context = get_context("spawn")
    with ProcessPoolExecutor(n_jobs, context, torch.set_num_threads, (1,), max_tasks_per_child=1) as pool:
        for name in pool.map(work, jobs):
            print(name, flush=True)


def measured(job: Job) -> pd.DataFrame:
    """One row a measured checkpoint of a run: the quantities, and where the stages of its trained twin lie."""
    run = trained(job)
    steps = measured_steps(job, run)
    found = curvature(run, steps, config=CURVATURE, progress=False)
    few = curvature(run, spread(steps, N_SAMPLED), config=CURVATURE, sgld=CHAINS, progress=False).to_dataframe()
    coefficients = [name for name in few if str(name).startswith("learning_coefficient")]
    rows = found.to_dataframe().drop(columns=coefficients, errors="ignore")
    rows = rows.merge(few[["step", *coefficients]], on="step", how="left")
    losses = run.metrics.dropna(subset=["val_loss_answer"])
    rows = rows.merge(rank_columns(found.ranks), on="step", how="left")
    rows["loss"] = np.interp(column(rows, "step"), losses["step"], losses["val_loss_answer"])
    rows["probe"] = math.nan
    if job.kind == TRAINED:
        curves = select(run.table("emergence_curve").read(), feature=FEATURE, third="all").sort_values("step")
        rows["probe"] = np.interp(column(rows, "step"), column(curves, "step"), column(curves, "geometric"))
    keep = ["step", "flops", *QUANTITIES, "stable_rank_centred_layer_1", "learning_coefficient_std",
            "learning_coefficient_drift", "lr", "weight_norm", "step_curvature", "cos_gradient_step",
            "cos_step_cumulative", "sharpness_residual"]  # fmt: skip
    return rows[keep].assign(task=job.task["name"], kind=job.kind, seed=job.seed)


def rank_columns(ranks: pd.DataFrame) -> pd.DataFrame:
    """By step, over all scored positions: the mean over layers of the centred participation ratio; layer 1's rank."""
    everywhere = select(ranks, position=-1)
    mean = everywhere.groupby("step", as_index=False).agg(participation=("participation_ratio_centred", "mean"))
    layer_1 = select(everywhere, layer=1)[["step", "stable_rank_centred"]]
    return mean.merge(layer_1.rename(columns={"stable_rank_centred": "stable_rank_centred_layer_1"}), on="step")


def stages_of(job: Job) -> dict[str, Any]:
    """Where the plateau, the carry's onset and the loss's fall lie on a trained run, in FLOPs."""
    verdict = records(select(emergence(trained(job), FEATURE, config=probes(job), progress=False).to_dataframe(),
                             third="all"))[0]  # fmt: skip
    return {
        "task": job.task["name"],
        "seed": job.seed,
        "plateau": verdict["plateau_start_flops"],
        "readable": verdict["onset_flops"],
        "falls": verdict["transition_start_flops"],
        "fallen": verdict["transition_end_flops"],
        "verdict": verdict["verdict"] + ("" if verdict["certain"] else " (?)"),
    }


def at(rows: pd.DataFrame, quantity: str, flops: float) -> float:
    """A quantity's value at the last checkpoint by then that has one: nothing of what comes later."""
    known = rows[np.isfinite(column(rows, quantity)) & (column(rows, "flops") <= flops)]
    return float(column(known, quantity)[-1]) if len(known) else math.nan


def stage_table(stages: pd.DataFrame) -> pd.DataFrame:
    """When what happens, a row a run."""
    return pd.DataFrame([
        {"task": one["task"], "seed": one["seed"], "plateau from": f"{one['plateau']:.2g}", "carry readable from":
         f"{one['readable']:.2g}", "loss falls from": f"{one['falls']:.2g}", "until": f"{one['fallen']:.2g}",
         "carry": one["verdict"]} for one in records(stages)
    ])  # fmt: skip


def movement_table(rows: pd.DataFrame, stages: pd.DataFrame) -> pd.DataFrame:
    """A row a task and quantity: its values at the four stages, the controls' in brackets at the same compute."""
    found = []
    for name in dict.fromkeys(stages["task"]):
        for quantity, title in QUANTITIES.items():
            line: dict[str, Any] = {"task": name, "quantity": title}
            for stage in ("plateau", "readable", "falls", "fallen"):
                values = {kind: [] for kind in (TRAINED, CONTROL)}
                for one in records(select(stages, task=name)):
                    for kind in values:
                        own = select(rows, task=name, seed=one["seed"], kind=kind).sort_values("step")
                        values[kind].append(at(own, quantity, one[stage]))
                # A dash where a seed has no number; nothing where none has.
                known = [own if np.isfinite(own).any() else [] for own in values.values()]
                texts = [", ".join(f"{v:.3g}" if math.isfinite(v) else "–" for v in own) for own in known]
                line[STAGES[stage]] = texts[0] + (f" ({texts[1]})" if texts[1] else "")
            found.append(line)
    return pd.DataFrame(found)


STAGES = {
    "plateau": "plateau's start", "readable": "carry readable", "falls": "loss begins to fall", "fallen": "has fallen",
}  # fmt: skip


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the figure: one a point."""
    long = rows.melt(["task", "kind", "seed", "step", "flops"], list(QUANTITIES), "quantity", "value")
    long = long[np.isfinite(column(long, "value"))]
    return pd.DataFrame({
        "row": long["quantity"].map(QUANTITIES), "column": long["task"], "group": long["kind"],
        "curve": long["kind"] + " " + long["seed"].astype(str), "x": long["flops"], "y": long["value"],
    })  # fmt: skip


def write(jobs: list[Job]) -> None:
    """The rows, tables and figures of the page."""
    rows = pd.concat([measured(job) for job in jobs], ignore_index=True)
    right = [job for job in jobs if job.kind == TRAINED]
    stages = pd.DataFrame([stages_of(job) for job in right])
    rows.to_csv(DOCS / "plateau.csv", index=False, float_format="%.6g")
    fill(PAGE, {"stages": markdown(stage_table(stages)), "moves": markdown(movement_table(rows, stages))})
    means = stages.groupby("task", sort=False)[["plateau", "readable", "falls", "fallen"]].median()
    bands = {str(task): (one["plateau"], one["falls"]) for task, one in means.iterrows()}
    marks = {str(task): one["readable"] for task, one in means.iterrows()}
    figure = small_multiples(
        curves(rows), bands=bands, marks=marks, x="training compute (FLOPs, nominal)", filename="plateau"
    )
    save(figure, "plateau")
    for job in right:
        if job.seed == right[0].seed:
            drawn = timeline(trained(job), FEATURE, config=probes(job), progress=False)
            save(drawn, f"plateau-{job.task['name'].replace('_', '-')}")


def main() -> None:
    """Train and measure, and write if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--write", action="store_true", help="fill docs/plateau.md and its figures")
    arguments = parser.parse_args()
    jobs = jobs_of(arguments.folder, arguments.tasks, arguments.seeds)
    run_all(jobs, arguments.jobs)
    if arguments.write:
        write(jobs)


if __name__ == "__main__":
    main()
