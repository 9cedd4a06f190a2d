"""Sweeps that really train, in this process or, where it is killed or stopped, in others: skipped, resumed, failed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from helpers_sweep import InlinePool

from qfl_interp.data import registry
from qfl_interp.data.registry import load_task, task_class
from qfl_interp.errors import QflError, StorageError
from qfl_interp.runs.run import Run
from qfl_interp.runs.steps import checkpoint_steps
from qfl_interp.sealed import sealed_json
from qfl_interp.sweep import Execution, SweepConfig, estimate_sweep, run_sweep, sweep_status
from qfl_interp.sweep.folder import DEFINITION, definition_json, read_rows
from qfl_interp.sweep.jobs import Job, JobSettings, run_job
from qfl_interp.sweep.local_pool import LocalPool, worker_cores
from qfl_interp.sweep.parts import COLUMNS
from qfl_interp.sweep.plan import plan_sweep
from qfl_interp.sweep.records import configuration_digest
from qfl_interp.sweep.state import read_state
from qfl_interp.sweep.storage import Storage
from qfl_interp.training.train import train

GRID = {
    "task": "addition", "length": 4, "budget_flops": [2e7, 4e7], "d_model": 8, "n_layers": 1, "batch_size": 8,
    "seed": [0, 1], "n_val": 32,
}  # fmt: skip
ONE_PROCESS = Execution(workers=1)


def config(name: str = "test", **grid: object) -> SweepConfig:
    return SweepConfig.from_dict({"name": name, "grid": [{**GRID, **grid}]})


def rows(folder: Path, *columns: str) -> dict[str, dict[str, object]]:
    table = read_rows(Storage(str(folder)), ["run_id", "finished_at", *columns])
    return {str(row["run_id"]): {str(k): v for k, v in row.items()} for row in table.to_dict("records")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of four runs."""
    folder = tmp_path_factory.mktemp("sweep") / "swept"
    run_sweep(config(), str(folder), progress=False, pool=InlinePool)
    return folder


def test_every_run_equals_the_same_run_trained_alone(swept: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    planned = plan_sweep(config()).runs[-1]
    alone = train(
        load_task("addition", 4), planned.config.model, planned.config.train, tmp_path / "alone", progress=False
    )
    run = Run.open(swept / planned.path)
    for name, tensor in alone.load_checkpoint(alone.config.last_step).model.items():
        assert torch.equal(tensor, run.load_checkpoint(run.config.last_step).model[name]), name
    row = rows(swept, "val_loss", "val_exact", "val_pass", "n_steps", "flops", "status")[planned.run_id]
    last = alone.metrics.iloc[-1]
    assert row["status"] == "finished"
    assert row["n_steps"] == last["step"]
    for name in ("val_loss", "val_exact", "val_pass", "flops"):
        assert row[name] == pytest.approx(last[name], rel=1e-12)


def test_only_the_final_model_and_the_validations_are_kept(swept: Path) -> None:
    for planned in plan_sweep(config()).runs:
        run = Run.open(swept / planned.path)
        assert run.steps == [run.config.last_step]
        assert run.finished
        assert run.verify()
        assert run.metrics["val_loss"].notna().all()
        assert run.metrics["step"].iloc[-1] == run.config.last_step
        assert 10 <= len(run.metrics) <= 13


def test_all_is_kept_where_asked_for(tmp_path: Path) -> None:
    everything = SweepConfig.from_dict(
        {"name": "all", "keep": "all", "grid": [{**GRID, "seed": 0, "budget_flops": 2e7}]}
    )
    (planned,) = plan_sweep(everything).runs
    run_job(Job((planned,)), JobSettings(str(tmp_path), keep=everything.keep))
    run = Run.open(tmp_path / planned.path)
    assert run.steps == checkpoint_steps(run.config.n_steps, 2)
    assert len(run.metrics) == run.config.n_steps + 1


def test_a_second_call_trains_nothing(swept: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*.safetensors")}
    found = rows(swept, "attempts")

    def no_pool(settings: JobSettings) -> LocalPool:
        raise AssertionError("nothing is left to train")

    run_sweep(config(), str(swept), progress=False, pool=no_pool)
    assert {path: path.stat().st_mtime_ns for path in swept.rglob("*.safetensors")} == before
    assert rows(swept, "attempts") == found


def test_lost_rows_are_made_again_without_training(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    shutil.rmtree(copy / "results")
    weights = {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors")}
    for planned in plan_sweep(config()).runs:
        (record,) = run_job(Job((planned,)), JobSettings(str(copy)))
        assert record["val_loss"] == rows(swept, "val_loss")[planned.run_id]["val_loss"]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors")} == weights


def test_rows_have_the_columns_and_types_of_the_schema(swept: Path) -> None:
    table = read_rows(Storage(str(swept)), list(COLUMNS))
    assert set(table["seed"]) == {0, 1}
    assert set(table["status"]) == {"finished"}
    for name, kind in COLUMNS.items():
        assert table[name].dtype.kind == {"int64": "i", "float64": "f", "str": table[name].dtype.kind}[kind], name
    assert np.allclose(table["flops"], table["budget_flops"], rtol=0.05)


@pytest.mark.slow
def test_a_bad_run_does_not_stop_the_others(tmp_path: Path) -> None:
    plan = plan_sweep(config())
    bad = tmp_path / plan.runs[0].path
    bad.mkdir(parents=True)
    (bad / "notes.txt").write_text("somebody else's")
    (tmp_path / DEFINITION).write_bytes(definition_json(config()))
    run_sweep(config(), str(tmp_path), Execution(attempts=2), progress=False, pool=InlinePool)
    found = rows(tmp_path, "status", "error", "attempts")
    assert found[plan.runs[0].run_id]["status"] == "failed"
    assert "is not empty and is no run" in str(found[plan.runs[0].run_id]["error"])
    assert found[plan.runs[0].run_id]["attempts"] == 2
    assert {found[run.run_id]["status"] for run in plan.runs[1:]} == {"finished"}
    assert (bad / "notes.txt").read_text() == "somebody else's"
    status = sweep_status(str(tmp_path))
    assert (status.rows[0]["finished"], status.rows[0]["failed"], status.rows[0]["remaining"]) == (3, 1, 0)
    assert [row["run_id"] for row in status.failures] == [plan.runs[0].run_id]
    # Once the cause is gone, the next call tries it again.
    (bad / "notes.txt").unlink()
    run_sweep(config(), str(tmp_path), progress=False, pool=InlinePool)
    assert {row["status"] for row in rows(tmp_path, "status").values()} == {"finished"}


def test_a_diverging_run_is_a_result(tmp_path: Path) -> None:
    wild = config(lr=1e3, seed=0, divergence_loss=3.0)
    run_sweep(wild, str(tmp_path), progress=False, pool=InlinePool)
    found = rows(tmp_path, "status", "error", "attempts", "val_loss")
    assert {row["status"] for row in found.values()} == {"diverged"}
    assert all("training diverged at step" in str(row["error"]) for row in found.values())
    assert all(np.isnan(row["val_loss"]) and row["attempts"] == 1 for row in found.values())  # type: ignore[call-overload]


def test_workers_are_pinned_only_where_they_fill_the_machine() -> None:
    cores = [0, 2, 4, 6]
    assert [worker_cores(cores, number, 4, 1) for number in range(4)] == [[0], [2], [4], [6]]
    assert [worker_cores(cores, number, 2, 2) for number in range(2)] == [[0, 2], [4, 6]]
    # Of two such pools at once every first worker would be on core 0.
    assert worker_cores(cores, 0, 1, 1) == worker_cores(cores, 0, 1, 2) == worker_cores(cores, 2, 3, 1) == cores
    assert worker_cores([5], 0, 1, 1) == [5]
    assert worker_cores(cores, 1, 2, 3) == [6, 0, 2]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_run_resumed(tmp_path: Path) -> None:
    longer = config(budget_flops=5e8, seed=[0, 1])
    pools: list[LocalPool] = []

    def keep(settings: JobSettings) -> LocalPool:
        pools.append(LocalPool(settings, n_slots))
        return pools[0]

    killed: list[int] = []
    cores: list[set[int]] = []
    here = sorted(os.sched_getaffinity(0))
    n_slots = max(2, len(here))  # all cores, so that workers are pinned

    def kill() -> None:
        first = plan_sweep(longer).runs[0]
        metrics = tmp_path / first.path / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 30:
            time.sleep(0.02)
        while len(pools[0]._workers) < 2:
            time.sleep(0.02)
        pid, other = (worker.process.pid for worker in pools[0]._workers)
        killed.append(pid)
        cores.append(os.sched_getaffinity(killed[0]))
        os.kill(killed[0], signal.SIGKILL)
        # It may still be starting, and pins itself to its core first thing.
        for _ in range(3000):
            if len(os.sched_getaffinity(other)) == 1:
                break
            time.sleep(0.02)
        cores.append(os.sched_getaffinity(other))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run_sweep(longer, str(tmp_path), progress=False, pool=keep)
    thread.join()
    assert killed
    assert [len(own) for own in cores] == [1, 1]
    assert len(set.union(*cores)) == 2
    found = rows(tmp_path, "status", "attempts")
    assert {row["status"] for row in found.values()} == {"finished"}
    assert sorted(int(str(row["attempts"])) for row in found.values()) == [1, 2]
    for planned in plan_sweep(longer).runs:
        sessions = len(Run.open(tmp_path / planned.path).provenance)
        assert sessions == found[planned.run_id]["attempts"]


def start(folder: Path, toml: Path) -> subprocess.Popen[str]:
    """`qfl sweep` in a process group of its own."""
    code = "from qfl_interp.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "sweep", str(toml), "--out", str(folder), "--workers", "2", "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def until(condition: object, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_stops_at_resume_points_and_the_next_call_goes_on(tmp_path: Path) -> None:
    toml, folder = tmp_path / "long.toml", tmp_path / "out"
    toml.write_text(
        '[[grid]]\ntask = "addition"\nlength = 4\nbudget_flops = 3e9\nd_model = 8\nn_layers = 1\nbatch_size = 8\n'
        "seed = [0, 1]\nn_val = 32\n"
    )
    planned = plan_sweep(SweepConfig.from_toml(toml)).runs
    sweep = start(folder, toml)
    metrics = [folder / run.path / "metrics.jsonl" for run in planned]
    until(lambda: all(path.exists() and path.read_bytes().count(b"\n") > 30 for path in metrics))

    with pytest.raises(QflError, match="another sweep is running"):
        run_sweep(SweepConfig.from_toml(toml), str(folder), progress=False)
    until(lambda: (folder / "state.json").exists())
    assert sweep_status(str(folder)).running

    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, errors
    assert "call the same command again to go on" in errors
    assert not sweep_status(str(folder)).running
    reached = [int(next((folder / run.path / "resume").glob("step_*")).name[5:]) for run in planned]
    assert all(0 < step < run.config.last_step for step, run in zip(reached, planned, strict=True))

    run_sweep(SweepConfig.from_toml(toml), str(folder), Execution(workers=2), progress=False)
    for run, step in zip(planned, reached, strict=True):
        found = Run.open(folder / run.path)
        assert found.finished
        assert len(found.provenance) == 2
        assert step > 30
    assert {row["status"] for row in rows(folder, "status").values()} == {"finished"}


def test_another_definition_or_a_foreign_folder_is_refused(swept: Path, tmp_path: Path) -> None:
    other = config(seed=[0, 1, 2])
    before = (swept / "sweep.json").read_bytes()
    with pytest.raises(QflError, match=r"another definition.*extend=True"):
        run_sweep(other, str(swept), progress=False)
    with pytest.raises(QflError, match="another definition"):
        run_sweep(config("renamed"), str(swept), extend=True, progress=False)
    assert (swept / "sweep.json").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(QflError, match=r"is not empty and is no sweep \(it holds thesis.tex\)"):
        run_sweep(config(), str(tmp_path), progress=False)
    with pytest.raises(QflError, match="is no sweep"):
        sweep_status(str(tmp_path))


def test_an_extended_sweep_keeps_its_runs(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    first = rows(copy, "attempts")
    run_sweep(config(seed=[0, 1, 2]), str(copy), extend=True, progress=False, pool=InlinePool)
    found = rows(copy, "attempts")
    assert len(found) == 6
    assert first.items() <= found.items()


def test_storage_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="file"):
        run_sweep(config(), str(tmp_path / "file" / "sweep"), progress=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"attempts": 0}, "attempts"),
        ({"stack": 0}, "stack"),
        ({"threads": -1}, "threads"),
    ],
)
def test_impossible_executions_are_refused(wrong: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_sweep(config(), str(tmp_path / "x"), Execution(**wrong), progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_more_workers_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QflError, match="workers must be between 1 and the"):
        run_sweep(config(), str(tmp_path / "x"), Execution(workers=10_000), progress=False)


@pytest.mark.slow
def test_estimate_counts_what_is_left_and_changes_nothing(swept: Path, tmp_path: Path) -> None:
    before = sorted(path.relative_to(swept) for path in swept.rglob("*"))
    found = estimate_sweep(config(seed=[0, 1, 2]), str(swept), ONE_PROCESS)
    assert sorted(path.relative_to(swept) for path in swept.rglob("*")) == before
    assert found.done == {"finished": 4}
    assert len(found.remaining) == 2
    assert found.flops == pytest.approx(2e7 + 4e7, rel=0.05)
    assert found.cost is not None
    seconds = sum(found.cost.run_seconds(run) for run in found.remaining)
    assert found.hours == pytest.approx(seconds / 3600)
    assert 0 < found.disk_bytes < 1e6
    fresh = tmp_path / "none"
    assert len(estimate_sweep(config(), str(fresh), ONE_PROCESS).remaining) == 4
    assert not fresh.exists()


@pytest.mark.slow
def test_disk_estimate_is_near_what_a_run_keeps(swept: Path, tmp_path: Path) -> None:
    found = estimate_sweep(config(), str(tmp_path / "none"), ONE_PROCESS)
    kept = sum(path.stat().st_size for path in (swept / "runs").rglob("*") if path.is_file())
    assert 0.5 < found.disk_bytes / kept < 2


def test_listing_survives_damaged_helpers_and_names_damaged_rows(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    (copy / "plan.json").write_text("{")
    (copy / "state.json").write_text("{")
    assert sweep_status(str(copy)).rows[0]["finished"] == 4
    assert sweep_status(str(copy)).state is None
    assert "state.json is damaged" in sweep_status(str(copy)).sentence
    (part,) = copy.glob("results/task=addition/part-*.parquet")
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(QflError, match=r"part-.*parquet is damaged"):
        sweep_status(str(copy))


@pytest.mark.slow
def test_a_file_in_the_place_of_a_run_fails_that_run_alone(tmp_path: Path) -> None:
    plan = plan_sweep(config())
    bad = tmp_path / plan.runs[0].path
    bad.parent.mkdir(parents=True)
    bad.write_text("no folder")
    (tmp_path / DEFINITION).write_bytes(definition_json(config()))
    run_sweep(config(), str(tmp_path), Execution(attempts=1), progress=False, pool=InlinePool)
    found = rows(tmp_path, "status")
    assert [found[run.run_id]["status"] for run in plan.runs] == ["failed", "finished", "finished", "finished"]


@pytest.mark.parametrize("keep", ["final", "all"])
def test_a_finished_run_that_lost_its_last_row_is_trained_again(tmp_path: Path, keep: Literal["final", "all"]) -> None:
    """Of one that kept its final model alone it is no result: what is left of the rows is not what was logged."""
    planned = plan_sweep(config()).runs[0]
    settings = JobSettings(str(tmp_path), keep=keep)
    (first,) = run_job(Job((planned,)), settings)
    assert first["status"] == "finished"
    metrics = tmp_path / planned.path / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(True)[:-1]))
    (record,) = run_job(Job((planned,)), settings)
    if keep == "all":
        assert (record["status"], record["val_loss"]) == ("finished", first["val_loss"])
    else:
        assert record["status"] == "failed"
        assert "must have a row for every step" in record["error"]
        assert np.isnan(record["val_loss"])


def test_runs_of_one_configuration_differ_in_their_seed_alone() -> None:
    runs = plan_sweep(config(seed=[0, 1, 2])).runs
    digests = {
        run.budget_flops: {configuration_digest(r.config) for r in runs if r.budget_flops == run.budget_flops}
        for run in runs
    }
    assert [len(found) for found in digests.values()] == [1, 1]
    assert len(set.union(*digests.values())) == 2
    (clipped,) = plan_sweep(config(seed=0, budget_flops=4e7, clip_norm=0.5)).runs
    assert configuration_digest(clipped.config) not in set.union(*digests.values())


@pytest.mark.slow
def test_a_share_of_a_gpu_on_ray_asks_nothing_of_the_drivers_own(tmp_path: Path) -> None:
    made: list[JobSettings] = []
    sizes: list[int] = []

    class Cluster(InlinePool):
        def __init__(self, settings: JobSettings) -> None:
            made.append(settings)
            super().__init__(settings._replace(device="cpu"))

        def submit(self, job: Job) -> None:
            sizes.append(len(job.runs))
            super().submit(job)

    execution = Execution(ray="auto", gpus_per_run=0.25, workers=1)
    run_sweep(config(), str(tmp_path), execution, progress=False, pool=Cluster)
    assert [(settings.device, settings.gpu_share) for settings in made] == [("cuda", 0.25)]
    assert sizes == [2, 2], "the two seeds of each budget as one program"
    assert {row["status"] for row in rows(tmp_path, "status").values()} == {"finished"}


def test_state_that_a_killed_sweep_left_says_so(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    state = read_state(Storage(str(copy))).values | {"running": ["addition4-abc"]}
    cases = [
        ("2020-01-01T00:00:00+00:00", "killed perhaps"),
        ("2220-01-01T00:00:00+00:00", "in the future: this machine"),
    ]
    for updated, words in cases:
        (copy / "state.json").write_bytes(sealed_json(state | {"updated": updated}))
        status = sweep_status(str(copy))
        assert not status.running
        assert words in status.sentence
    (copy / "state.json").write_bytes(sealed_json(state | {"updated": datetime.now(UTC).isoformat()}))
    assert sweep_status(str(copy)).running


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus_per_run": 0.5}, r"are Ray's, got 1 and 0\.5 without"),
        ({"cpus_per_run": 3.0}, r"are Ray's, got 3 and 0 without"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
    ids=["gpus", "cpus", "threads"],
)
def test_settings_that_would_do_nothing_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Execution(**changes).check()
    Execution(ray="local", gpus_per_run=0.5, cpus_per_run=3.0).check()


def test_ray_is_refused_a_task_of_this_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its workers start by themselves: each run of it would fail there."""
    own = type("Own", (task_class("addition"),), {"name": "own_addition"})
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry.register_task(own)
    with pytest.raises(QflError, match=r"own_addition is registered in this process alone\. Name its class"):
        run_sweep(config(task="own_addition"), str(tmp_path / "own"), Execution(ray="local"), progress=False)
    assert not (tmp_path / "own").exists()
