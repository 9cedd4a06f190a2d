"""Fill the tables and figures of docs/polca.md from trained runs.

    python scripts/study_polca.py decimal RUN [RUN ...]   # trajectories and bases at a higher rate than the paper's
    python scripts/study_polca.py captured RUN [RUN ...]  # what part of the loss's fall lies along the directions
    python scripts/study_polca.py accuracy RUN            # five accuracies against the true change along a direction
    python scripts/study_polca.py carry RUN               # 16-bit addition: is the carry seen before the loss falls?

The tables between the markers of docs/polca.md are replaced, rows are written to docs/polca_*.csv, figures to
docs/figures/ (needs `pip install kaleido` and a Chromium). What a run's tables hold is not computed again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pages import DOCS, fill, markdown, nearest_saved, save
from polca_recovery import recovery, recovery_panel
from polca_scores import SCORES, captured_share, scores

import qfl_interp as qfl
from qfl_interp.analyses import polca
from qfl_interp.analyses.lenses.emergence.figure import feature_panels, shading
from qfl_interp.analyses.lenses.emergence.tables import emergence_tables
from qfl_interp.analyses.lenses.polca.basis import find_basis, read_basis
from qfl_interp.analyses.lenses.polca.plan import CurveKind, Plan
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.curvature import Hessian, orthonormalise
from qfl_interp.curvature.token_gradients import project_curvature, project_gradients
from qfl_interp.curvature.token_losses import ScoredTokens, TokenLoss, scored_tokens
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.decomposition import (
    directional_change,
    first_order,
    paper_curvature,
    path_integral,
    second_order,
)
from qfl_interp.polca.trajectories import NO_DIRECTION, exact_loss
from qfl_interp.tables import column, records, select

PAGE = DOCS / "polca.md"
# Eq. 9's D in steps, of 10,000.
SPAN = 100
BASIS_EVERY = 200
# Part of the run on 16-bit addition that is looked at, and from where on directions are taken.
UNTIL, FIRST_BASIS = 300, 20
PATH, FIRST_ORDER = "POLCA, path integral", "POLCA, first order"
# HDBSCAN's: the paper's, and a looser one.
MIN_SAMPLES = (None, 5)


def basis_steps(run: qfl.Run) -> str:
    """The saved step nearest each multiple of 200, where the paper takes a basis vector."""
    return ",".join(map(str, nearest_saved(run.steps, range(BASIS_EVERY, run.steps[-1] + 1, BASIS_EVERY))))


def ways(
    run: qfl.Run, n_examples: int, n_hessian: int, *, baselines: bool
) -> Iterator[tuple[str, PolcaConfig, CurveKind]]:
    """What is compared: its name, the directions and accuracy, the curves."""
    how: dict[str, Any] = {"n_examples": n_examples, "n_hessian": n_hessian, "basis_steps": basis_steps(run)}
    hessian = PolcaConfig(**how)
    yield "exact loss", hessian, "exact_loss"
    yield "change in exact loss", hessian, "loss_change"
    yield PATH, hessian, "projected"
    yield FIRST_ORDER, PolcaConfig(accuracy="first", **how), "projected"
    yield "Fisher information on POLCA's directions", PolcaConfig(accuracy="first", **how), "fisher"
    if not baselines:
        return
    fifty: dict[str, Any] = {"n_directions": 50, **how}
    yield "random directions, path integral", PolcaConfig(basis="random", **fifty), "projected"
    yield "trajectory directions, path integral", PolcaConfig(basis="trajectory", **fifty), "projected"
    yield "LCA: 50 largest parameters, path integral", PolcaConfig(basis="parameters", **fifty), "projected"
    largest = PolcaConfig(basis="parameters", accuracy="first", **fifty)
    yield "LCA: 50 largest parameters, first order", largest, "projected"
    yield "Hessian directions, shuffled, path integral", PolcaConfig(basis="shuffled", **how), "projected"


def keep(part: str, table: pd.DataFrame, shown: pd.DataFrame | None = None) -> None:
    """Write a part's rows to a file of their own, and a table of them, or of something else, into the page."""
    table.to_csv(DOCS / f"polca_{part}.csv", index=False)
    fill(PAGE, {part: markdown(table if shown is None else shown)})


def decimal(runs: Sequence[qfl.Run], n_examples: int, n_hessian: int, jobs: int, n_baselines: int) -> None:
    """The paper's Tables 1 and 8-11 on 3-digit addition; the other bases on the first runs."""
    rows = []
    for number, run in enumerate(runs):
        for name, config, curves in ways(run, n_examples, n_hessian, baselines=number < n_baselines):
            for samples in MIN_SAMPLES:
                found = polca(run, config=config, curves=curves, min_samples=samples, span=SPAN, resamples=0, jobs=jobs)
                rows.append(scores(name, run, found, samples))
                print(rows[-1], flush=True)
                if name == FIRST_ORDER and run is runs[0] and samples is None:
                    save(found.plot(), "polca-decimal")
            # After every way: one that is stopped leaves the table of those before.
            table = pd.DataFrame(rows)
            summary = table.groupby(["trajectory", "min_samples"], sort=False).agg(
                **{score: (score, "mean") for score in SCORES}, seeds=("seed", "size")
            )
            keep("decimal", table, summary.reset_index())


def captured(runs: Sequence[qfl.Run], n_examples: int, n_hessian: int, jobs: int) -> None:
    """What the Hessian's directions capture of the loss's fall, and how training moves along them."""
    rows = []
    for run in runs:
        row = {"lr": run.config.train.lr, "seed": run.config.train.seed}
        row["right at the end"] = float(column(run.metrics.dropna(subset=["val_exact_answer"]), "val_exact_answer")[-1])
        for name, config, curves in ways(run, n_examples, n_hessian, baselines=False):
            if name in (PATH, FIRST_ORDER):
                found = polca(run, config=config, curves=curves, span=SPAN, resamples=0, jobs=jobs)
                row[name] = captured_share(found.intervals)
        config = PolcaConfig(n_examples=n_examples, n_hessian=n_hessian, basis_steps=basis_steps(run))
        plan = Plan.of(run, config=config)
        basis = read_basis(plan)
        noise = torch.randn(basis.shape, generator=torch.Generator().manual_seed(0), dtype=basis.dtype)
        both = torch.cat([basis, orthonormalise(noise)]).double()
        ways_along = np.diff([(both @ plan.theta(step).double()).numpy() for step in run.steps], axis=0)
        # The evenly spaced checkpoints, where the loss falls little any more.
        late = ways_along[np.array(run.steps[:-1]) >= run.steps[-1] // 5]
        for kind, steps in (("Hessian", late[:, : len(basis)]), ("random", late[:, len(basis) :])):
            row[f"turns back, {kind}"] = float(np.mean(np.sign(steps[1:]) != np.sign(steps[:-1])))
            row[f"way kept, {kind}"] = float(np.median(np.abs(steps.sum(axis=0)) / np.abs(steps).sum(axis=0)))
        rows.append(row)
        print(row, flush=True)
    table = pd.DataFrame(rows)
    shares = {name: [f"{share:.1%}" for share in table[name]] for name in (PATH, FIRST_ORDER)}
    shares |= {name: [f"{share:.0%}" for share in table[name]] for name in table.columns[5:]}
    keep("captured", table, table.assign(**shares))


def accuracy(run: qfl.Run, n_examples: int) -> None:
    """Errors of the accuracies between neighbouring checkpoints, and between the few of a much sparser run."""
    config = PolcaConfig(n_examples=n_examples, n_hessian=n_examples, basis_steps="log:8", double=True)
    plan = Plan.of(run, config=config)
    find_basis(plan)
    examples = qfl.held_out(run.task, "test", n_examples, seed=0, stream="polca/accuracy")
    scored, basis = scored_tokens(run.task.encode(examples)), read_basis(plan)
    sparse, saved = run.resolve_steps("log:12"), run.steps
    spacings = {
        "next checkpoint": [(step, saved[saved.index(step) + 1]) for step in sparse[:-1]],
        "12 checkpoints in all": list(pairwise(sparse)),
    }
    columns: dict[str, dict[str, float]] = {}
    for spacing, intervals in spacings.items():
        found = [_errors(plan, basis, scored, step, to) for step, to in intervals]
        for name in found[0]:
            alone, whole, path, way = np.sum([errors[name] for errors in found], axis=0)
            columns.setdefault(name, {})[f"{spacing}: alone"] = float(np.sqrt(alone / whole))
            columns[name][f"{spacing}: on the path"] = float(np.sqrt(path / way))
    keep("accuracy", pd.DataFrame([{"accuracy": name, **row} for name, row in columns.items()]))


def _errors(plan: Plan, basis: torch.Tensor, scored: ScoredTokens, step: int, to: int) -> dict[str, np.ndarray]:
    """Of each accuracy the mean squared error and change: of a step along each direction alone, and on the path."""
    loss = TokenLoss(plan.run.load_model(step), scored, dtype=plan.dtype)
    start, end = plan.theta(step), plan.theta(to)
    along, parameters = basis @ (end - start), loss.space.unflatten(start)
    points = [start.lerp(end, share) for share in np.linspace(0, 1, 17)]
    slopes = [project_gradients(loss, loss.space.unflatten(p), basis).gradients for p in points]
    ratio = paper_curvature(slopes[0], slopes[-1], Hessian(loss, parameters).along(basis)).curvature
    estimates = {
        "first order (Eq. 2)": first_order(slopes[0], along),
        "second order, the paper's ratio (Eq. 3-6)": second_order(slopes[0], ratio, along),
        "second order, exact": second_order(slopes[0], project_curvature(loss, parameters, basis), along),
        "path integral, 1 panel (the default)": path_integral([slopes[0], slopes[8], slopes[16]], along),
        "path integral, 2 panels": path_integral(slopes[::4], along),
    }
    alone, path = directional_change(loss, parameters, basis, along), path_integral(slopes, along)
    return {
        name: np.array([float(v.square().mean()) for v in (found - alone, alone, found - path, path)])
        for name, found in estimates.items()
    }


def carry(run: qfl.Run, n_examples: int, n_hessian: int, jobs: int) -> None:
    """16-bit addition: can the carry be told from POLCA's curves before the loss falls, as a probe can?"""
    steps = [step for step in run.steps if step <= UNTIL][::2]
    named = ",".join(str(step) for step in [step for step in steps if step >= FIRST_BASIS][::4])
    config = PolcaConfig(n_examples=n_examples, n_hessian=n_hessian, basis_steps=named)
    found = polca(run, steps, config=config, rule="down", resamples=0, jobs=jobs)
    print(found)
    probes = qfl.ProbeConfig(n_train=4_000, n_test=1_000)
    emerged = emergence_tables(run, "carry", [*steps[::2], run.steps[-1]], config=probes, jobs=jobs)
    print(emerged.verdicts.T)
    tokens, curves = found.tokens, found.data.trajectories
    known = [step for step in steps if step >= FIRST_BASIS][::2]
    labels = {
        "skill": tokens["carry"].fillna(False).to_numpy(dtype=bool),
        "place": column(tokens, "place").astype(np.int64),
        # The answer is written from its lowest bit: the bit before says a lot about the carry.
        "known": pd.factorize(tokens["target"] + tokens["previous"])[0],
    }
    from_start = exact_loss(found.data.losses.double().numpy()[-len(curves.steps) :], curves.steps)
    found_at = {row["direction"]: row["step"] for row in records(found.directions)}
    told = recovery(curves, found_at, **labels, times=known)
    plain = recovery(from_start, {NO_DIRECTION: 0}, **labels, times=known)
    ways = [
        ("POLCA's clusters", told, "clusters"),
        ("a projected loss", told, "losses"),
        ("clusters of the exact loss", plain, "clusters"),
        ("the exact loss", plain, "losses"),
    ]
    columns = ["way", "step", "flops", "score", "chance", "p_value", "n_clusters"]
    parts = []
    for way, table, name in ways:
        named = {name: "score", f"{name}_chance": "chance", f"{name}_p_value": "p_value"}
        flops = [run.flops(step) for step in table["step"]]
        parts.append(table.rename(columns=named).assign(way=way, flops=flops)[columns])
    rows = pd.concat(parts)
    rows.to_csv(DOCS / "polca_carry.csv", index=False)
    losses = run.metrics.dropna(subset=["val_loss_answer"])
    probed = select(emerged.curves, third="all").sort_values("step")
    shown = [known[round(i)] for i in np.linspace(0, len(known) - 1, 12)]
    shown_rows = pd.DataFrame(
        [
            {
                "step": step,
                "loss": float(np.interp(step, losses["step"], losses["val_loss_answer"])),
                "probe loss": float(np.interp(step, column(probed, "step"), column(probed, "geometric"))),
                **{
                    way: f"{row['score']:.2f} ({row['chance']:.2f})"
                    for way, *_ in ways
                    for row in records(select(rows, way=way, step=step))
                },
            }
            for step in shown
        ]
    )
    fill(PAGE, {"carry": markdown(shown_rows)})
    panels = [*feature_panels(emerged.curves, emerged.verdicts), recovery_panel(rows, "the carry")]
    figure = timeline_figure(run.metrics, panels, shading(emerged.verdicts))
    save(figure, "polca-carry")


def main() -> None:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="study_polca.py", description=__doc__)
    parser.add_argument("part", choices=("decimal", "captured", "accuracy", "carry"))
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--n-examples", type=int, default=1250)
    parser.add_argument("--n-hessian", type=int, default=1250)
    parser.add_argument("--baselines", type=int, default=99, help="of the first so many runs: other bases (decimal)")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    runs = [qfl.Run.open(path) for path in asked.runs]
    sizes = (asked.n_examples, asked.n_hessian, asked.jobs)
    if asked.part == "decimal":
        decimal(runs, *sizes, asked.baselines)
    elif asked.part == "captured":
        captured(runs, *sizes)
    elif asked.part == "accuracy":
        accuracy(runs[0], asked.n_examples)
    else:
        carry(runs[0], *sizes)


if __name__ == "__main__":
    main()
