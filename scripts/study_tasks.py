"""Train every task of docs/tasks.toml with several seeds, classify its features, fill the short table of docs/tasks.md.

    python scripts/study_tasks.py [--out runs/tasks] [--jobs 2] [--only TASK ...] [--figures]

Each run is trained on one thread, `--jobs` at a time. Killed at any moment, it goes on where it was; what is there is
not computed again. The table between the markers of docs/tasks.md is replaced, and the numbers behind it written to
docs/tasks.json; with --figures the figures too (docs/figures/*.png; needs `pip install kaleido` and a Chromium).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from figures.overview import leads_figure, losses_figure
from pages import DOCS, fill, markdown, save
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tasks_toml import read_settings, train_as

import qfl_interp as qfl
from qfl_interp.analyses import emergence, timeline
from qfl_interp.runs.provenance import device_name


class Job(NamedTuple):
    """One run of the study."""

    settings: dict[str, Any]
    seed: int
    out: Path

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.out / f"{self.settings['name']}-{self.settings['length']}-s{self.seed}"


def read_jobs(out: Path, only: list[str]) -> list[Job]:
    """The runs of docs/tasks.toml, in its order."""
    entries = [entry for entry in read_settings() if not only or entry["name"] in only]
    return [Job(entry, seed, out) for entry in entries for seed in entry["seeds"]]


def probe_config(settings: dict[str, Any]) -> qfl.ProbeConfig:
    """How the run's features are probed."""
    return qfl.ProbeConfig(n_train=settings["n_train"])


def work(job: Job) -> str:
    """Train and analyse one run; skips what is there."""
    settings = job.settings
    run = train_as(settings, qfl.load_task(settings["name"], settings["length"]), job.seed, job.path)
    emergence(run, settings.get("features"), config=probe_config(settings), progress=False)
    return run.run_id


def run_all(jobs: list[Job], n_jobs: int, console: Console) -> None:
    """Every job, `n_jobs` at a time; one that fails is reported and does not stop the others."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        shown = bar.add_task("runs", total=len(jobs))
        # One thread a job: the jobs fill the cores.
        settings = {"initializer": torch.set_num_threads, "initargs": (1,)}
        with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn"), **settings) as pool:
            futures = {pool.submit(work, job): job for job in jobs}
            for future in as_completed(futures):
                if future.exception() is not None:
                    failed.append(futures[future])
                    console.print(f"[red]{futures[future].path.name}: {future.exception()}[/]")
                bar.advance(shown)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(jobs)} runs failed; the tables are not written.")


def halfway(task: qfl.Task) -> float:
    """Exact match half-way between always giving the most frequent answer, and always the right one."""
    batch = task.encode(qfl.held_out(task, "val", 1000, seed=0, stream="study"))
    # The first scored token is `=`.
    answers = [tuple(row[kept].tolist()[1:]) for row, kept in zip(batch.tokens, batch.loss_mask, strict=True)]
    return (1 + max(Counter(answers).values()) / len(answers)) / 2


def first_at_least(validated: pd.DataFrame, share: float) -> float:
    """FLOPs of the first validation with at least this exact match; NaN if there is none."""
    reached = validated[validated["val_exact_answer"] >= share]
    return float(reached["flops"].iloc[0]) if len(reached) else math.nan


class Study(NamedTuple):
    """What was measured: one row a run, one row a run, feature and third, and the loss curves."""

    runs: pd.DataFrame
    verdicts: pd.DataFrame
    metrics: pd.DataFrame


def gather(jobs: list[Job]) -> Study:
    """The results of finished jobs."""
    runs, verdicts, metrics = [], [], []
    for job in jobs:
        run, settings = qfl.Run.open(job.path), job.settings
        named = {"task": settings["name"], "length": settings["length"], "seed": job.seed}
        found = emergence(run, settings.get("features"), config=probe_config(settings), progress=False).to_dataframe()
        paper = settings.get("paper", {})
        verdicts.append(found.assign(**named, paper=[paper.get(f, "") for f in found["feature"]]))
        validated = run.metrics.dropna(subset=["val_loss"])
        metrics.append(validated[["flops", "val_loss_answer", "val_exact_answer"]].assign(**named))
        first, last = found.iloc[0], validated.iloc[-1]
        runs.append(
            named
            | {name: settings[name] for name in ("d_model", "n_layers", "batch_size", "lr", "weight_decay")}
            | {"budget_flops": settings["budget_flops"], "n_steps": run.steps[-1]}
            | {
                "paper_baseline": run.task.baselines.get("paper", math.nan),
                "base_rate": run.task.baselines["base_rate"],
            }
            | {"val_loss": last["val_loss"], "val_loss_answer": last["val_loss_answer"]}
            | {"exact_answer": last["val_exact_answer"], "halfway_flops": first_at_least(validated, halfway(run.task))}
            | {"transition_found": bool(first["transition_found"])}
            | {"start_flops": first["transition_start_flops"], "end_flops": first["transition_end_flops"]}
            | {"plateau_loss": first["plateau_loss"], "reason": first["transition_reason"]}
        )
    return Study(pd.DataFrame(runs), pd.concat(verdicts, ignore_index=True), pd.concat(metrics, ignore_index=True))


def span(values: pd.Series, pattern: str) -> str:
    """The smallest and the largest value, or the one there is."""
    kept = values.dropna()
    if kept.empty:
        return "–"
    low, high = pattern.format(kept.min()), pattern.format(kept.max())
    return low if low == high else f"{low} to {high}"


def short_table(study: Study) -> str:
    """One line a task: its size, its losses, its transition over the seeds, and when its features were learned."""
    halfway_at = study.runs[["task", "length", "seed", "halfway_flops"]]
    verdicts = study.verdicts[study.verdicts["third"] == "all"].merge(halfway_at, on=["task", "length", "seed"])
    verdicts["over_half"] = np.log10(verdicts["halfway_flops"].astype(float) / verdicts["onset_flops"].astype(float))
    rows = []
    for (task, length), part in study.runs.groupby(["task", "length"], sort=False):
        first, found = part.iloc[0], part[part["transition_found"]]
        between = f"{span(found['start_flops'], '{:.1e}')} → {span(found['end_flops'], '{:.1e}')}"
        where = between if len(found) == len(part) else f"{between} ({len(found)} of {len(part)})"
        own = verdicts[(verdicts["task"] == task) & (verdicts["length"] == length)]
        rows.append({
            "task": f"{task} {length}", "budget": f"{first.budget_flops:.2g}", "seeds": len(part),
            "base rate": f"{first.base_rate:.3f}", "final loss": span(part["val_loss_answer"], "{:.3g}"),
            "exact match": span(part["exact_answer"], "{:.3f}"),
            "transition (FLOPs)": where if len(found) else "none found",
            "features": "; ".join(feature_text(str(name), rows) for name, rows in own.groupby("feature", sort=False)),
        })  # fmt: skip
    return markdown(pd.DataFrame(rows))


def feature_text(name: str, rows: pd.DataFrame) -> str:
    """A feature's verdicts over the seeds, each with its number, and its lead over half-way."""
    kinds = Counter(f"{row.verdict}{'' if row.certain else ' (?)'}" for row in rows.itertuples())
    said = ", ".join(f"{n} {kind}" if len(kinds) > 1 else kind for kind, n in kinds.items())
    lead = mean_and_count(rows["over_half"])
    return f"{name}: {said}" + ("" if lead == "–" else f", {lead}")


def mean_and_count(leads: pd.Series) -> str:
    """The mean lead, and how many seeds have one where not all do."""
    kept = leads.dropna()
    count = "" if len(kept) == len(leads) else f" ({len(kept)}/{len(leads)})"
    return f"{kept.mean():+.2f}{count}" if len(kept) else "–"


def without_nan(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Records that are valid JSON."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows.to_dict("records")
    ]


def draw(study: Study, jobs: list[Job]) -> None:
    """The overview figures, and the timeline of each task's first seed."""
    tasks = study.runs.drop_duplicates(["task", "length"])
    found = study.runs[study.runs["transition_found"]]
    figures = {"losses": losses_figure(study.metrics, tasks, found)}
    figures["leads"] = leads_figure(study.verdicts[study.verdicts["third"] == "all"])
    for job in jobs:
        if job.seed == job.settings["seeds"][0]:
            run = qfl.Run.open(job.path)
            figures[job.path.name.removesuffix(f"-s{job.seed}")] = timeline(
                run, job.settings.get("features"), config=probe_config(job.settings), progress=False
            )
    for name, figure in figures.items():
        save(figure, name, width=760)


def main() -> None:
    """Run what is missing, then write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"), help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="*", default=[], metavar="TASK", help="these tasks; writes no tables")
    parser.add_argument("--figures", action="store_true", help="draw docs/figures/*.png too")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    jobs = read_jobs(arguments.out, arguments.only)
    run_all(jobs, arguments.jobs, console)
    study = gather(jobs)
    table = short_table(study)
    print(table)
    if arguments.only:
        return
    fill(DOCS / "tasks.md", {"short": table})
    columns = ["task", "length", "seed", "feature", "third", "metric", "verdict", "certain", "reason", "lead_log10"]
    columns += ["lead_low", "lead_high", "baseline", "best", "fraction_at_start", "onset_flops", "paper"]
    kept = study.verdicts.filter(columns)
    found = {"machine": device_name("cpu"), "runs": without_nan(study.runs), "verdicts": without_nan(kept)}
    (DOCS / "tasks.json").write_text(json.dumps(found, indent=1) + "\n")
    if arguments.figures:
        draw(study, jobs)


if __name__ == "__main__":
    main()
