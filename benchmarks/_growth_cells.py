"""The cells of `growth`: one work of one size, in a process that is forked when all imports are done."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import qfl_interp as qfl
from benchmarks._measuring import wait
from benchmarks._memory import held_mib, peak_mib
from qfl_interp.analyses import ablate, curvature, patch, polca, probe, timeline
from qfl_interp.analyses.lenses.polca.plan import Plan
from qfl_interp.analyses.lenses.polca.trajectories import follow

FEATURE = "relevant_bit"


class Size(NamedTuple):
    """What a cell works on: a run on sparse parity, and how many of its examples a lens looks at.

    `checkpoints` of 0: every update has one.
    """

    n_steps: int = 30
    checkpoints: int = 4
    examples: int = 256
    d_model: int = 16
    n_layers: int = 1
    context: int = 32


WARM = Size(n_steps=4, examples=32, context=16)


class Cell(NamedTuple):
    """One number of the table: the work, its size, and the run that it is done on or that it trains."""

    work: str
    axis: str
    value: int
    size: Size
    run: str


class Found(NamedTuple):
    """What a cell took: processor and wall seconds, and growth of peak memory; `x` is the size along its axis."""

    x: int
    cpu_s: float
    wall_s: float
    grown_mib: float


def _train(size: Size, path: Path, device: str, every: bool) -> int:
    """A run, with batches of 64."""
    wanted = size.checkpoints or 2 * size.n_steps + 2
    model = qfl.ModelConfig(d_model=size.d_model, n_layers=size.n_layers)
    config = qfl.TrainConfig(n_steps=size.n_steps, n_checkpoints=wanted, save_optimizer=False)
    task = qfl.load_task("sparse_parity", length=size.context - 2)
    return len(qfl.train(task, model, config, path, device=device, progress=False).steps)


def _lens(call: Callable[[qfl.Run, Size, str, str], object]) -> Callable[[Size, Path, str, bool], int]:
    """A lens on a run, at all its checkpoints or at the last."""

    def work(size: Size, path: Path, device: str, every: bool) -> int:
        run = qfl.Run.open(path)
        call(run, size, device, "all" if every else "last")
        return len(run.steps)

    return work


def _probes(size: Size) -> qfl.ProbeConfig:
    return qfl.ProbeConfig(n_train=size.examples, n_test=min(size.examples, 1000))


def _tested(size: Size) -> qfl.ProbeConfig:
    """An ablation changes the test examples' loss."""
    return qfl.ProbeConfig(n_train=256, n_test=size.examples)


def _directions(size: Size, seed: int = 0) -> qfl.PolcaConfig:
    """Two basis checkpoints of as many products each, whatever they find: how well is not what grows here."""
    return qfl.PolcaConfig(
        basis_steps="log:2", n_examples=size.examples, n_hessian=256, tol=1e-9, max_products=10, seed=seed
    )


WORKS: dict[str, Callable[[Size, Path, str, bool], int]] = {
    "train": _train,
    "probe": _lens(
        lambda run, size, device, steps: probe(
            run, FEATURE, steps, config=_probes(size), n_untrained=0, device=device, progress=False
        )
    ),
    "patch": _lens(
        lambda run, size, device, steps: patch(
            run, FEATURE, steps, labels=0, components="resid_pre", n_pairs=size.examples, device=device, progress=False
        )
    ),
    "ablate": _lens(
        lambda run, size, device, steps: ablate(
            run, FEATURE, steps, labels=0, n_trials=2, config=_tested(size), device=device, progress=False
        )
    ),
    "polca": _lens(
        lambda run, size, device, _: polca(run, config=_directions(size), resamples=0, device=device, progress=False)
    ),
    "polca, curves": _lens(
        lambda run, size, device, _: follow(
            Plan.of(run, config=_directions(size, seed=1), device=device), progress=False
        )
    ),
    "curvature": _lens(
        lambda run, size, device, steps: curvature(
            run, steps, device=device, progress=False,
            config=qfl.CurvatureConfig(
                n_examples=size.examples, n_rank_examples=size.examples, tol=1e-9, max_products=6
            ),
        )
    ),
    "timeline": _lens(
        lambda run, size, device, _: timeline(
            run, FEATURE, "all", config=_probes(size), device=device, progress=False
        )
    ),
}  # fmt: skip
# What is done once before, not measured: drawing is measured on tables that are there.
PREPARED = ("timeline",)


def measure_all(cells: Sequence[Cell], folder: Path, device: str, log: Path) -> list[Found]:
    """Every cell in turn, one thread each; the first error ends it.

    Args:
        cells: What is measured.
        folder: Where the runs are; one that is not there is trained.
        device: Where to compute.
        log: Gets a line a cell, whose cells are not measured again.
    """
    done = read_log(log)
    torch.set_num_threads(1)
    for name in (
        WORKS if set(cells) - set(done) else ()
    ):  # what is imported and compiled at the first call is imported and compiled here
        _quietly(name, WARM, folder / "warm", "cpu")
    for cell in cells:
        if cell in done:
            continue
        if cell.work != "train" and not (folder / cell.run).exists():
            _forked(cell._replace(work="train"), folder / cell.run, device)
        if cell.work in PREPARED:
            _forked(cell, folder / cell.run, device)
        done[cell] = _forked(cell, folder / cell.run, device)
        with log.open("a") as file:
            print(json.dumps([cell, done[cell]]), file=file)
    return [done[cell] for cell in cells]


def read_log(log: Path) -> dict[Cell, Found]:
    """The cells of a log, with what each took."""
    lines = log.read_text().splitlines() if log.is_file() else []
    pairs = [json.loads(line) for line in lines]
    return {Cell(work, axis, value, Size(*size), run): Found(*found) for (work, axis, value, size, run), found in pairs}


def _quietly(name: str, size: Size, path: Path, device: str, every: bool = True) -> int:
    """Do a work; the number of checkpoints of its run."""
    with contextlib.redirect_stderr(io.StringIO()):
        return WORKS[name](size, path, device, every)


def _forked(cell: Cell, path: Path, device: str) -> Found:
    """A cell in a child of this process."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            json.dump(_answer(cell, path, device), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text or '{"error": "killed"}')
    if "error" in answer:
        raise RuntimeError(f"{cell} failed: {answer['error']}")
    return Found(**answer)


def _answer(cell: Cell, path: Path, device: str) -> dict[str, Any]:
    try:
        # A forked process maps the libraries anew as it uses them: that is no growth.
        with tempfile.TemporaryDirectory() as warm:
            _quietly("train", WARM, Path(warm) / "run", device)
            if cell.work != "train":
                _quietly(cell.work, WARM, Path(warm) / "run", device)
        gc.collect()
        before = held_mib(device)
        wall, cpu = time.perf_counter(), time.process_time()
        n_checkpoints = _quietly(cell.work, cell.size, path, device, cell.axis == "checkpoints")
        wait()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        x = n_checkpoints if cell.axis == "checkpoints" else cell.value
        return Found(x, cpu, wall, peak_mib(device) - before)._asdict()
    except BaseException:
        return {"error": traceback.format_exc()}
