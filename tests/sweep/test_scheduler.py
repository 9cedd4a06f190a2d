"""Who trains what, how often, and what is written: the scheduler on a pool that only pretends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qfl_interp.errors import StorageError
from qfl_interp.sweep import SweepConfig
from qfl_interp.sweep.folder import read_rows, recorded
from qfl_interp.sweep.jobs import Job
from qfl_interp.sweep.plan import PlannedRun, plan_sweep
from qfl_interp.sweep.pool import Outcome
from qfl_interp.sweep.records import RecordWriter, make_record
from qfl_interp.sweep.scheduler import Tally, make_jobs, run_jobs
from qfl_interp.sweep.storage import Storage

CONFIG = SweepConfig.from_dict(
    {
        "name": "fake",
        "min_steps": 1,
        "grid": [
            {
                "task": "addition",
                "length": 4,
                "budget_flops": [1e9, 1e10],
                "d_model": 8,
                "n_layers": 1,
                "seed": [0, 1, 2],
            }
        ],
    }
)
RUNS = plan_sweep(CONFIG).runs


class FakePool:
    """Ends every job at the next `wait`, as `behave` says."""

    where, notes = "nowhere", ()

    def __init__(self, behave: Callable[[Job], Outcome], n_slots: int = 2) -> None:
        self.behave, self.n_slots = behave, n_slots
        self.jobs: list[Job] = []
        self.submitted: list[Job] = []

    def submit(self, job: Job) -> None:
        assert len(self.jobs) < self.n_slots
        self.jobs.append(job)
        self.submitted.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        ended, self.jobs = self.jobs, []
        return [self.behave(job) for job in ended]

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        pass


def rows(job: Job, status: str = "finished") -> Outcome:
    return Outcome(
        job,
        [
            make_record(run, status, device="cpu", attempts=job.attempt, group_size=len(job.runs), error="why")
            for run in job.runs
        ],
    )


def drive(pool: FakePool, folder: Path, runs: Sequence[PlannedRun] = RUNS, size: int = 1, attempts: int = 3) -> Tally:
    jobs = make_jobs(runs, lambda run: run.budget_flops, lambda run: size, pool.n_slots)
    return run_jobs(
        jobs,
        pool,
        Storage(str(folder)),
        device="cpu",
        max_attempts=attempts,
        cost=lambda run: 1.0,
        show=lambda *_: None,
    )


def test_every_run_is_trained_once_and_has_a_row(tmp_path: Path) -> None:
    pool = FakePool(rows)
    tally = drive(pool, tmp_path)
    assert Counter(run.run_id for job in pool.submitted for run in job.runs) == {run.run_id: 1 for run in RUNS}
    assert recorded(Storage(str(tmp_path))) == {run.run_id: "finished" for run in RUNS}
    assert (tally.finished, tally.failed, tally.retried, tally.share) == (6, 0, 0, pytest.approx(1.0))
    assert len(list(tmp_path.glob("results/task=addition/part-*.parquet"))) == 1


def test_a_failed_run_is_tried_again_so_often_and_then_recorded_with_its_error(tmp_path: Path) -> None:
    bad = RUNS[2].run_id
    pool = FakePool(lambda job: rows(job, "failed" if job.runs[0].run_id == bad else "finished"))
    tally = drive(pool, tmp_path, attempts=3)
    assert Counter(run.run_id for job in pool.submitted for run in job.runs)[bad] == 3
    assert (tally.finished, tally.failed, tally.retried) == (5, 1, 2)
    table = read_rows(Storage(str(tmp_path)), ["run_id", "status", "error", "attempts", "finished_at"]).set_index(
        "run_id"
    )
    assert (table.loc[bad, "status"], table.loc[bad, "error"], table.loc[bad, "attempts"]) == ("failed", "why", 3)


def test_a_run_that_fails_once_finishes_at_the_second_attempt(tmp_path: Path) -> None:
    bad = RUNS[0].run_id
    pool = FakePool(lambda job: rows(job, "failed" if job.runs[0].run_id == bad and job.attempt == 1 else "finished"))
    tally = drive(pool, tmp_path)
    assert (tally.finished, tally.failed, tally.retried) == (6, 0, 1)
    table = read_rows(Storage(str(tmp_path)), ["run_id", "attempts", "finished_at"]).set_index("run_id")
    assert table["attempts"].to_dict() == {run.run_id: 2 if run.run_id == bad else 1 for run in RUNS}


def test_a_diverged_run_is_a_result_and_not_tried_again(tmp_path: Path) -> None:
    pool = FakePool(lambda job: rows(job, "diverged"))
    tally = drive(pool, tmp_path)
    assert (tally.diverged, tally.failed, len(pool.submitted)) == (6, 0, 6)


def test_members_of_a_group_whose_worker_died_are_tried_again_alone(tmp_path: Path) -> None:
    pool = FakePool(lambda job: Outcome(job, None, "killed") if len(job.runs) > 1 else rows(job))
    tally = drive(pool, tmp_path, size=3)
    first = [job for job in pool.submitted if job.attempt == 1]
    again = [job for job in pool.submitted if job.attempt == 2]
    assert all(len(job.runs) == 2 for job in first if len(job.runs) > 1)
    assert len(again) == sum(len(job.runs) for job in first if len(job.runs) > 1) > 0
    assert {len(job.runs) for job in again} == {1}
    assert (tally.finished, tally.failed) == (6, 0)


def test_a_worker_that_always_dies_ends_in_a_row_that_says_so(tmp_path: Path) -> None:
    tally = drive(FakePool(lambda job: Outcome(job, None, "killed by SIGKILL")), tmp_path, attempts=2)
    assert (tally.failed, tally.retried) == (6, 6)
    assert set(read_rows(Storage(str(tmp_path)), ["run_id", "error", "finished_at"])["error"]) == {"killed by SIGKILL"}


def test_full_storage_stops_the_sweep_and_keeps_what_finished(tmp_path: Path) -> None:
    def behave(job: Job) -> Outcome:
        last = job.runs[0].run_id == RUNS[-1].run_id
        return Outcome(job, None, "the disk is full", storage_error=True) if last else rows(job)

    pool = FakePool(behave, n_slots=1)
    with pytest.raises(StorageError, match="the sweep stopped: the disk is full"):
        drive(pool, tmp_path)
    assert set(recorded(Storage(str(tmp_path)))) == {run.run_id for run in RUNS[:-1]}


def test_ctrl_c_keeps_what_finished(tmp_path: Path) -> None:
    def behave(job: Job) -> Outcome:
        if job.runs[0].run_id == RUNS[3].run_id:
            raise KeyboardInterrupt
        return rows(job)

    with pytest.raises(KeyboardInterrupt):
        drive(FakePool(behave, n_slots=1), tmp_path)
    assert set(recorded(Storage(str(tmp_path)))) == {run.run_id for run in RUNS[:3]}
    assert json.loads((tmp_path / "state.json").read_bytes())["running"] == []


@pytest.mark.parametrize(
    ("size", "n_slots", "expected"), [(1, 2, [1] * 6), (8, 2, [2, 1, 2, 1]), (8, 1, [3, 3]), (2, 1, [2, 1, 2, 1])]
)
def test_runs_of_one_key_are_grouped_and_spread_over_the_slots(size: int, n_slots: int, expected: list[int]) -> None:
    jobs = make_jobs(RUNS, lambda run: run.budget_flops, lambda run: size, n_slots)
    assert [len(job.runs) for job in jobs] == expected
    assert [run for job in jobs for run in job.runs] == list(RUNS)
    assert all(len({run.budget_flops for run in job.runs}) == 1 for job in jobs)


def test_compacting_keeps_the_latest_row_of_each_run(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    writer = RecordWriter(storage)
    for status in ("failed", "finished"):
        writer.append([make_record(RUNS[0], status, device="cpu", attempts=1, group_size=1)])
        writer.flush()
    assert len(storage.glob("results/task=addition/part-*.parquet")) == 2
    assert recorded(storage) == {RUNS[0].run_id: "finished"}
    writer.compact()
    assert len(storage.glob("results/task=addition/part-*.parquet")) == 1
    assert recorded(storage) == {RUNS[0].run_id: "finished"}


def test_parts_of_a_long_sweep_stay_few(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    writer = RecordWriter(storage)
    for number in range(70):
        writer.append([make_record(RUNS[number % 6], "finished", device="cpu", attempts=number + 1, group_size=1)])
        writer.flush()
        assert len(storage.glob("results/task=addition/part-*.parquet")) <= 32
    table = read_rows(storage, ["run_id", "attempts", "finished_at"])
    assert sorted(table["attempts"]) == list(range(65, 71))


def test_time_to_go_follows_the_share_of_the_work() -> None:
    tally = Tally(4)
    assert tally.eta_seconds is None
    tally.started -= 30
    tally.share = 0.25
    assert tally.eta_seconds == pytest.approx(90, abs=1)
