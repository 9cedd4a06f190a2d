"""Small pieces of work, one a lens: seconds each, and everything that the library writes for a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from faults.driver import Work

import qfl_interp as qfl
from qfl_interp import analyses

PROBES = qfl.ProbeConfig(n_train=64, n_test=32)
CURVATURE = qfl.CurvatureConfig(n_examples=4, n_rank_examples=8, tol=0.5, max_products=12)
POLCA = qfl.PolcaConfig(basis="random", n_directions=2, n_examples=80, n_hessian=40, seed=1)
# The calls of the lenses on a run.
CALLS: dict[str, dict[str, Any]] = {
    "probe": {"features": "carry", "steps": "log:2", "config": PROBES, "n_untrained": 1},
    "patch": {"features": "carry", "n_pairs": 4, "components": "resid_pre"},
    "ablate": {"features": "carry", "config": PROBES, "n_trials": 2},
    "emergence": {"features": "carry", "config": PROBES, "n_resamples": 50},
    "mdl": {"features": "carry", "steps": "last", "config": PROBES},
    "capture": {"n": 24, "n_test": 8},
    "curvature": {"steps": "log:2", "config": CURVATURE},
    "report": {"features": "carry", "steps": "log:3", "config": PROBES, "n_trials": 2},
    "polca": {"config": POLCA, "resamples": 2, "min_cluster_size": 12, "min_samples": 4, "span": 8},
}
TRAIN, REPLAY = "train", "replay"
# The lens that looks at a replay.
REPLAYED = "polca"


def train(folder: Path, *, n_checkpoints: int = 3, **changes: Any) -> qfl.Run:
    """Train a tiny run, or go on with it; a resume point is due at every checkpoint."""
    task = qfl.load_task("addition", length=4)
    values = {"n_steps": 6, "batch_size": 8, "n_val": 16, "eval_fraction": 0.34, "seed": 3}
    config = qfl.TrainConfig(**values | changes, n_checkpoints=n_checkpoints)
    model = qfl.ModelConfig(d_model=8, n_layers=1)
    return qfl.train(task, model, config, folder / "run", resume=True, progress=False, resume_seconds=0.0)


def train_sums(folder: Path) -> qfl.Run:
    """A run that learns the first digit of two-digit sums, which POLCA finds something in."""
    task = qfl.load_task("decimal_addition", length=2)
    config = qfl.TrainConfig(
        n_steps=80, n_checkpoints=12, batch_size=32, lr=1e-2, eval_fraction=0.1, n_val=32, seed=3
    )  # fmt: skip
    model = qfl.ModelConfig(d_model=16, n_layers=1, style="gpt2")
    return qfl.train(task, model, config, folder / "run", progress=False)


def look(folder: Path, lens: str, every: int = 0) -> None:
    """One lens on the run in a folder; with `every`, on a replay of it."""
    run = qfl.Run.open(folder / "run")
    getattr(analyses, lens)(qfl.replay(run, every) if every else run, **CALLS[lens], progress=False)


def make(name: str, bases: Path) -> Work:
    """A piece of work, by name: `TRAIN`, `REPLAY`, or a lens; runs to look at are trained below `bases`, once."""
    if name == TRAIN:
        return Work(train)
    lens = REPLAYED if name == REPLAY else name
    base, trainer = _base(lens, bases)
    if not base.exists():
        trainer(base)
    return Work(partial(look, lens=lens, every=10 if name == REPLAY else 0), base)


def _base(lens: str, bases: Path) -> tuple[Path, Callable[[Path], object]]:
    """Where the run of a lens is, and what trains it."""
    if lens == "polca":
        return bases / "sums", train_sums
    return bases / "addition", partial(train, n_checkpoints=6, n_steps=12)
