"""Fixtures: one tiny run, trained once a session, that every test may read and none may change."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from helpers import BuiltOnce
from helpers_browser import launched

import qfl_interp as qfl

torch.set_num_threads(1)
# For the processes that xdist starts, one a core: threads of their linear algebra would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Ctrl-C is ignored in what a shell starts in its background: no test of it, and no child of one, could pass there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The first example of a property may compile a kernel or meet a busy machine: a test's time is no law of the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def tiny_train_config(**changes) -> qfl.TrainConfig:
    """Two seconds of training."""
    values = {"n_steps": 40, "batch_size": 16, "eval_fraction": 0.1, "n_checkpoints": 8, "n_val": 32, "seed": 3}
    return qfl.TrainConfig(**values | changes)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One for all tests of a process: Playwright cannot be started twice in it."""
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def built_once(tmp_path_factory, request) -> BuiltOnce:
    """Builds folders that all processes of this session share."""
    return BuiltOnce(tmp_path_factory.getbasetemp(), hasattr(request.config, "workerinput"))


@pytest.fixture(scope="session")
def addition() -> qfl.Task:
    return qfl.load_task("addition", length=6)


@pytest.fixture(scope="session")
def model_config() -> qfl.ModelConfig:
    return qfl.ModelConfig(d_model=16, n_layers=2)


@pytest.fixture(scope="session")
def tiny_run(built_once, addition, model_config) -> qfl.Run:
    """Read only: tests that write take `run_copy`."""

    def build(folder: Path) -> None:
        qfl.train(addition, model_config, tiny_train_config(), folder, progress=False)

    return qfl.Run.open(built_once("tiny_run", build))


@pytest.fixture
def run_copy(tiny_run, tmp_path) -> qfl.Run:
    """A copy of the tiny run that a test may damage."""
    target = tmp_path / "copy"
    shutil.copytree(tiny_run.path, target)
    return qfl.Run.open(target)


@pytest.fixture
def checkpoint_file(run_copy) -> Path:
    """The weights of one of its middle checkpoints."""
    return run_copy.path / "checkpoints" / f"step_{run_copy.steps[2]:08d}" / "model.safetensors"
