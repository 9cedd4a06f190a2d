"""Sweeps on a real Ray of this machine: a worker is killed, and nothing is lost and nothing run twice."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import filelock
import pytest
import ray
import ray.exceptions
import s3_server

import qfl_interp as qfl
from qfl_interp.errors import StorageError
from qfl_interp.runs.folder_lock import is_held
from qfl_interp.sweep import Execution, SweepConfig, ray_cluster, run_sweep
from qfl_interp.sweep.jobs import Job, JobSettings
from qfl_interp.sweep.plan import PlannedRun, plan_sweep
from qfl_interp.sweep.pool import Outcome, Pool
from qfl_interp.sweep.ray_pool import RayPool, _Held
from qfl_interp.sweep.storage import Storage

# Ray leaves log files, pipes and child processes to the collector, at its start and whenever a worker ends.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*no longer override accelerator visible devices:FutureWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the worker through /proc")


@pytest.fixture(scope="module")
def bucket():
    """An S3 server that Ray's workers find through the environment Ray is started in."""
    with s3_server.s3_bucket("ray") as url:
        yield url


@pytest.fixture(scope="module")
def started(bucket, tmp_path_factory):
    """A Ray with two workers, started from a folder with a tasks.py that shadows ours where it is found."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "tasks.py").write_text("raise RuntimeError('the user\\'s own tasks.py')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pool = RayPool(JobSettings("sweep"), "local", n_slots=2)
        assert Path.cwd() == folder
    with pool:
        yield pool
    assert not ray.is_initialized()


def sweep_config(**changes) -> SweepConfig:
    """Runs of a small addition model that keep everything and can be resumed at any of their checkpoints."""
    grid = {
        "task": "addition", "length": 4, "budget_flops": 1e8, "d_model": 8, "n_layers": 1, "batch_size": 16,
        "n_checkpoints": 30, "save_optimizer": True, "n_val": 32,
    }  # fmt: skip
    return SweepConfig.from_dict({"name": "tiny", "keep": "all", "grid": [grid | changes]})


def one_run(**changes) -> PlannedRun:
    (run,) = plan_sweep(sweep_config(**changes)).runs
    return run


def writer_pid(run: Path) -> int | None:
    """The process that has the lock of a run open."""
    lock = str(run.resolve() / ".lock")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == lock and int(link.parts[2]) != os.getpid():
                return int(link.parts[2])
        except OSError:
            continue
    return None


def wait_until(what, seconds: float = 60.0):
    """The first true value of a function."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return value


def checkpoints(run: Path) -> dict[str, int]:
    """Inode of each checkpoint's weights."""
    return {p.parent.name: p.stat().st_ino for p in run.glob("checkpoints/step_*/model.safetensors")}


def collect(pool: Pool, n: int, seconds: float = 60.0) -> list[Outcome]:
    """The next outcomes."""
    outcomes, deadline = [], time.monotonic() + seconds
    while len(outcomes) < n:
        assert time.monotonic() < deadline, f"only {len(outcomes)} of {n} outcomes came"
        outcomes += pool.wait(1.0)
    return outcomes


def assert_same_weights(a: qfl.Run, b: qfl.Run) -> None:
    """The same bits at the end."""
    left, right = (run.load_checkpoint(run.config.last_step).model for run in (a, b))
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.slow
@needs_proc
def test_a_sweep_whose_worker_is_killed_loses_nothing_and_runs_nothing_twice(started, tmp_path):
    config = sweep_config(budget_flops=[1e8, 6e8], seed=[0, 1])
    plan = plan_sweep(config)
    short, victim = plan.runs[0], plan.runs[2]
    assert victim.config.n_steps > 400
    out = tmp_path / "sweep"
    folder = out / victim.path
    killed = {}

    def kill() -> None:
        wait_until(lambda: len(checkpoints(folder)) > 8, 120)
        killed["pid"] = wait_until(lambda: writer_pid(folder))
        os.kill(killed["pid"], signal.SIGKILL)
        killed["checkpoints"] = checkpoints(folder)

    killer = threading.Thread(target=kill)
    killer.start()
    sweep = run_sweep(config, str(out), Execution(ray="auto", workers=2), progress=False)
    killer.join()

    table = sweep.table()
    assert sorted(table["run_id"]) == sorted(run.run_id for run in plan.runs)
    assert set(table["status"]) == {"finished"}
    assert table.set_index("run_id")["attempts"].to_dict() == {r.run_id: 1 + (r == victim) for r in plan.runs}
    for planned in plan.runs:
        run = qfl.Run.open(out / planned.path)
        assert len(run.provenance) == 1 + (planned == victim)
        assert run.metrics["step"].tolist() == list(range(planned.config.n_steps + 1))
        assert run.verify().finished
        assert not (out / planned.path / "resume").exists()
    # It went on from where it was: what it had saved was not made again.
    before = killed["checkpoints"]
    assert 8 < len(before) < len(qfl.Run.open(folder).steps)
    assert before.items() <= checkpoints(folder).items()
    assert writer_pid(folder) is None
    for planned in (victim, short):
        config = planned.config
        alone = qfl.train(
            qfl.load_task("addition", 4), config.model, config.train, tmp_path / planned.run_id, progress=False
        )
        assert_same_weights(alone, qfl.Run.open(out / planned.path))

    # Nothing is left to do: no worker touches a run again.
    run_sweep(sweep.config, str(out), Execution(ray="auto", workers=2), progress=False)
    assert Counter(len(qfl.Run.open(out / r.path).provenance) for r in plan.runs) == {1: 3, 2: 1}


def test_a_sweep_on_s3_finishes(started, bucket, tmp_path):
    config = sweep_config(seed=[0, 1])
    url = f"{bucket}/sweep"
    # One worker trains both: the start of a worker is most of this test.
    table = run_sweep(config, url, Execution(ray="auto", workers=1, scratch=str(tmp_path)), progress=False).table()
    assert table["status"].tolist() == ["finished"] * 2
    storage = Storage(url)
    for number, planned in enumerate(plan_sweep(config).runs):
        storage.pull_run(planned.path, tmp_path / str(number))
        run = qfl.Run.open(tmp_path / str(number))
        assert run.verify().finished
        assert len(run.provenance) == 1
    assert "lock.json" not in [path for path in storage.glob("*")]


@pytest.mark.slow
def test_workers_that_cannot_go_on_are_outcomes(started, tmp_path):
    (tmp_path / "file").write_text("")
    run = one_run()
    with RayPool(JobSettings(str(tmp_path / "file" / "sweep")), "auto", n_slots=2) as pool:
        assert pool.where.startswith(f"Ray at {ray.get_runtime_context().gcs_address}: 1 machine, ")
        assert pool.notes == ()
        pool.submit(Job((run,)))
        (storage,) = collect(pool, 1)
        pool.submit(Job((run,), attempt="not a number"))  # type: ignore[arg-type]
        assert pool.wait(0.0) == []
        (other,) = collect(pool, 1)
        assert pool.wait(5.0) == []  # nothing runs: at once
    assert (storage.records, storage.storage_error) == (None, True)
    assert "Not a directory" in storage.error
    assert other.records is None
    assert ray.is_initialized()


@pytest.mark.slow
@needs_proc
def test_a_killed_worker_is_an_outcome_and_close_leaves_runs_to_resume(started, tmp_path):
    run = one_run(budget_flops=1e10)  # far longer than this test
    folder = tmp_path / run.path
    with RayPool(JobSettings(str(tmp_path)), "auto", n_slots=2) as pool:
        pool.submit(Job((run,)))
        wait_until(lambda: len(checkpoints(folder)) > 2)
        os.kill(wait_until(lambda: writer_pid(folder)), signal.SIGKILL)
        (outcome,) = collect(pool, 1)
        assert (outcome.job, outcome.records, outcome.storage_error) == (Job((run,)), None, False)
        assert outcome.error.startswith("its worker died (WorkerCrashedError): ")
        assert not is_held(folder)

        pool.submit(Job((run,), 2))
        wait_until(lambda: len(qfl.Run.open(folder).provenance) == 2 and writer_pid(folder))
        rows = len((folder / "metrics.jsonl").read_bytes())
        wait_until(lambda: len((folder / "metrics.jsonl").read_bytes()) > rows)
    assert not is_held(folder)
    # The worker was interrupted, not killed: it saved the very step it was at.
    last = qfl.Run.open(folder).metrics["step"].max()
    assert (folder / "resume" / f"step_{last:08d}" / "checkpoint.json").exists()
    pool.close()


@pytest.mark.slow
def test_a_job_is_held_back_while_a_process_has_its_run_open(started, tmp_path):
    run = one_run()
    folder = tmp_path / run.path
    folder.mkdir(parents=True)
    dead = Outcome(Job((run,)), None, "its worker died")
    with RayPool(JobSettings(str(tmp_path)), "auto", n_slots=2) as pool:
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire()
        pool._held.append(_Held(dead, time.monotonic() + 60))
        assert is_held(folder)
        assert pool.wait(0.3) == []
        lock.release()
        assert not is_held(folder)
        assert pool.wait(5.0) == [dead]
        with lock:  # but not for ever
            pool._held.append(_Held(dead, time.monotonic() + 0.2))
            assert pool.wait(0.1) == []
            assert pool.wait(5.0) == [dead]


def test_what_no_machine_has_room_for_is_refused(started):
    settings = JobSettings("sweep")
    with pytest.raises(qfl.QflError, match=r"asks for 1 CPUs and 0\.5 GPUs, and there are 1 machine, \d+ CPUs in all"):
        RayPool(settings, "auto", gpus_per_run=0.5)
    with pytest.raises(qfl.QflError, match=r"asks for 1000 CPUs and 0 GPUs"):
        RayPool(settings, "auto", cpus_per_run=1000)
    with pytest.raises(qfl.QflError, match="'cuda' needs a share of a GPU for each run, got gpus_per_run 0"):
        RayPool(JobSettings("sweep", device="cuda"), "auto")
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("shares", "match"),
    [
        ({"cpus_per_run": 0.0}, "not be negative, nor both 0"),
        ({"cpus_per_run": -1.0}, "not be negative, nor both 0"),
        ({"gpus_per_run": 1.5}, "a fraction up to 1 or a whole number, got 1.5"),
        ({"n_slots": 0}, "n_slots must be at least 1, got 0"),
    ],
)
def test_shares_out_of_range(shares, match):
    with pytest.raises(ValueError, match=match):
        RayPool(JobSettings("sweep"), "local", **shares)


def node(name: str, **resources: float) -> dict:
    return {"NodeID": name, "Resources": resources}


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (1.0, 0.0, {"a": 8, "b": 4}),
        (3.0, 0.0, {"a": 2, "b": 1}),
        (0.1, 0.0, {"a": 80, "b": 40}),
        (1.0, 0.5, {"a": 4}),
        (1.0, 0.3, {"a": 6}),  # three on each of two GPUs: a run is on one GPU
        (5.0, 0.5, {"a": 1}),
        (1.0, 2.0, {"a": 1}),
        (0.0, 0.1, {"a": 20}),
    ],
)
def test_room_on_machines(cpus, gpus, expected):
    nodes = [node("a", CPU=8.0, GPU=2.0), node("b", CPU=4.0), node("c")]
    assert ray_cluster.room(nodes, cpus, gpus) == expected


def test_several_machines_need_a_shared_folder(started, monkeypatch, tmp_path):
    nodes = [node("a", CPU=2.0), node("b", CPU=1.0), node("c", CPU=9.0)]
    monkeypatch.setattr(ray, "nodes", lambda: [n | {"Alive": n["NodeID"] != "c"} for n in nodes])
    monkeypatch.setattr("qfl_interp.sweep.ray_pool.require_same_code", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    pool = RayPool(JobSettings("sweep"), "auto")
    assert pool.n_slots == 3
    assert "2 machines, 3 CPUs, 3 at a time" in pool.where
    (note,) = pool.notes
    assert note.startswith(f"{tmp_path / 'sweep'} must be the same folder on all 2 machines")
    assert RayPool(JobSettings("memory://sweep"), "auto").notes == ()


@pytest.mark.slow
def test_machines_with_other_code_are_refused(started, monkeypatch):
    here = ray_cluster.code_fingerprint()
    monkeypatch.setattr(ray_cluster, "version", lambda name: "0.0.0")
    assert ray_cluster.code_fingerprint() != here
    with pytest.raises(qfl.QflError, match=r"of the Ray cluster has qfl-interp .*, this one qfl-interp 0\.0\.0 "):
        RayPool(JobSettings("sweep"), "auto")


@pytest.fixture
def not_connected(monkeypatch):
    """As in a program that has not used Ray yet."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_an_address_where_nothing_answers_is_told_at_once(not_connected, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    before = time.monotonic()
    for asked in (address, f"ray://{address}"):
        with pytest.raises(qfl.QflError, match=rf"no Ray answers at {asked}: .*refused.*ray start --head"):
            RayPool(JobSettings("sweep"), asked)
    with pytest.raises(qfl.QflError, match=r"no Ray answers at no-such-host\.invalid:6379"):
        RayPool(JobSettings("sweep"), "no-such-host.invalid:6379")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(qfl.QflError, match=f"no Ray answers at {address}"):
        RayPool(JobSettings("sweep"), "auto")
    assert time.monotonic() - before < 30  # Ray itself would try for minutes
    monkeypatch.chdir(tmp_path)
    with pytest.raises(qfl.QflError, match="no Ray answers"):
        run_sweep(sweep_config(), str(tmp_path / "sweep"), Execution(ray=address), progress=False)
    assert not list((tmp_path / "sweep").glob("runs/*/*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "found"), [(b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is no Ray")]
)
def test_an_address_where_something_else_answers(not_connected, monkeypatch, says, found):
    monkeypatch.setattr(ray_cluster, "_REACH_SECONDS", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(says)
                time.sleep(1.0)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(qfl.QflError, match=rf"no Ray answers at 127\.0\.0\.1:\d+: {found}"):
            RayPool(JobSettings("sweep"), f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_ray_answers_at_its_own_address(started):
    ray_cluster._require_reachable(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "host:port"])
def test_what_is_no_address(not_connected, address):
    with pytest.raises(qfl.QflError, match=r"a Ray address is auto, local, host:port or ray://host:port, got"):
        RayPool(JobSettings("sweep"), address)


def test_a_program_connected_elsewhere(started):
    with pytest.raises(qfl.QflError, match=r"connected to Ray at .* already, but 10\.0\.0\.1:6379 was asked for"):
        RayPool(JobSettings("sweep"), "10.0.0.1:6379")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(qfl.QflError, match=r"needs the package ray: .*pip install 'qfl-interp\[ray\]'"):
        RayPool(JobSettings("sweep"), "local")


@pytest.mark.slow
def test_a_full_storage_stops_the_sweep(started, monkeypatch, tmp_path):
    """The workers can write and the driver's rows cannot: what finished is not trained again."""
    write = Storage.write_bytes

    def full(self, path, data):
        if path.startswith("results/"):
            raise StorageError("the disk is full: writing rows failed")
        write(self, path, data)

    config = sweep_config()
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", full)
        with pytest.raises(StorageError, match="the disk is full"):
            run_sweep(config, str(tmp_path), Execution(ray="auto", workers=2), progress=False)
    (planned,) = plan_sweep(config).runs
    assert len(qfl.Run.open(tmp_path / planned.path).provenance) == 1
    table = run_sweep(config, str(tmp_path), Execution(ray="auto", workers=2), progress=False).table()
    assert table["status"].tolist() == ["finished"]
    assert len(qfl.Run.open(tmp_path / planned.path).provenance) == 1


def test_the_code_compared_is_that_of_tasks_too(tmp_path, monkeypatch):
    """In a checkout they are behind a link."""
    package, outside = tmp_path / "qfl_interp", tmp_path / "tasks"
    package.mkdir()
    outside.mkdir()
    (package / "tasks").symlink_to("../tasks")
    (outside / "addition.py").write_text("x = 1\n")
    monkeypatch.setattr(qfl, "__file__", str(package / "__init__.py"))
    before = ray_cluster.code_fingerprint()
    assert before == ray_cluster.code_fingerprint()
    (outside / "addition.py").write_text("x = 2\n")
    assert before != ray_cluster.code_fingerprint()
