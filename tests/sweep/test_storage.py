"""A sweep's folder, local, in memory and on a real S3 server: what is written is whole, locked, and can be resumed."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import boto3
import pandas as pd
import pyarrow.parquet as pq
import pytest
import s3_server
import torch
from fsspec.implementations.memory import MemoryFileSystem

import qfl_interp as qfl
from qfl_interp import files
from qfl_interp.errors import StorageError
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs import folder_lock
from qfl_interp.runs.writer import RunWriter
from qfl_interp.sweep import mirror, remote
from qfl_interp.sweep.remote_lock import LOCK_FILE, RemoteLock
from qfl_interp.sweep.storage import Storage
from qfl_interp.training.train import plan_run

RUN = "runs/addition/one"
# Botocore still asks for the time in a way that newer Pythons deprecate; moto's server leaves sockets to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning"),
]


@pytest.fixture(scope="module")
def s3_bucket():
    """A bucket on an S3 server of this machine."""
    with s3_server.s3_bucket("sweeps") as url:
        yield url


@pytest.fixture(params=["memory", "s3"])
def remote_url(request) -> str:
    """A new folder on each kind of remote storage."""
    name = uuid.uuid4().hex[:8]
    return f"memory://{name}" if request.param == "memory" else f"{request.getfixturevalue('s3_bucket')}/{name}/deep"


@pytest.fixture(params=["local", "file-url", "memory", "s3"])
def folder(request, tmp_path) -> str:
    """A new folder on each kind of storage."""
    if request.param in ("local", "file-url"):
        return f"{'file://' if request.param == 'file-url' else ''}{tmp_path / 'sweep [1]'}"
    name = uuid.uuid4().hex[:8]
    return f"memory://{name}" if request.param == "memory" else f"{request.getfixturevalue('s3_bucket')}/{name}"


def test_files_come_back(folder):
    storage = Storage(folder)
    assert storage.is_local == ("memory" not in folder and "s3:" not in folder)
    assert storage.names() == []
    storage.require_writable()
    assert storage.names() == []
    storage.write_bytes("a.json", b"old")
    storage.write_bytes("a.json", b"new")
    storage.write_bytes("results/task=x/part-2.parquet", b"2")
    storage.write_bytes("results/task=y/part-1.parquet", b"1")
    storage.write_bytes("results/task=y/other", b"")
    assert storage.read_bytes("a.json") == b"new"
    assert storage.read_bytes("results/task=y/other") == b""
    assert storage.names() == ["a.json", "results"]
    both = ["results/task=x/part-2.parquet", "results/task=y/part-1.parquet"]
    assert storage.glob("results/task=*/part-*.parquet") == both
    assert storage.glob("nothing/*") == []
    assert [storage.exists(p) for p in ("a.json", "results/task=x", "b.json")] == [True, True, False]
    storage.remove(both[0])
    storage.remove(both[0])
    assert storage.glob("results/task=*/part-*.parquet") == both[1:]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("b.json")


def test_readers_of_parquet_reach_it(folder):
    storage = Storage(folder)
    for task, values in {"x": [1, 2], "y": [3]}.items():
        data = io.BytesIO()
        pd.DataFrame({"value": values}).to_parquet(data)
        storage.write_bytes(f"results/task={task}/part-0.parquet", data.getvalue())
    found = pq.ParquetDataset(f"{storage.root}/results", filesystem=storage.filesystem).read().to_pandas()
    assert sorted(zip(found["task"].astype(str), found["value"], strict=True)) == [("x", 1), ("x", 2), ("y", 3)]


def test_what_another_machine_wrote_is_seen(s3_bucket):
    """Listings are not kept: the file comes by another client than fsspec's."""
    storage = Storage(f"{s3_bucket}/{uuid.uuid4().hex}")
    storage.write_bytes("a/one", b"")
    assert storage.glob("a/*") == ["a/one"]
    assert not storage.exists("a/two")
    prefix = storage.root.removeprefix("sweeps/")
    boto3.client("s3").put_object(Bucket="sweeps", Key=f"{prefix}/a/two", Body=b"x")
    assert storage.glob("a/*") == ["a/one", "a/two"]
    assert storage.exists("a/two")


def test_storage_out_of_reach_is_named():
    with pytest.raises(StorageError, match=r"storage ftp://\*\*\*@127.0.0.1:1/x cannot be reached: .*refused"):
        Storage("ftp://user:hunter2@127.0.0.1:1/x")


def test_unknown_protocol_and_missing_package(monkeypatch):
    with pytest.raises(qfl.QflError, match=r"storage nosuch://b/c cannot be opened: .*nosuch.* Give a local path"):
        Storage("nosuch://b/c")
    # What an earlier test imported; the package hides its module `registry` behind a view of that name.
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(qfl.QflError, match=r"s3://b/c needs a package .*pip install 'qfl-interp\[s3\]'"):
        Storage("s3://b/c")


def test_storage_that_cannot_be_written_says_why(tmp_path, s3_bucket):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"writing .*file/sweep.* failed: .*Not a directory"):
        Storage(str(tmp_path / "file" / "sweep")).require_writable()
    with pytest.raises(StorageError, match=r"writing s3://no-such-bucket/sweep/\.tmp-probe-.* failed: .*bucket"):
        Storage("s3://no-such-bucket/sweep").require_writable()
    assert "no-such-bucket" not in [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]]


def test_a_full_disk_stops_with_the_old_file_intact(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.write_bytes("sweep.json", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_flushed", full)
    with pytest.raises(StorageError, match=r"the disk is full: writing .*sweep\.json"):
        storage.write_bytes("sweep.json", b"new")
    with pytest.raises(StorageError, match="the disk is full"):
        storage.require_writable()
    assert storage.read_bytes("sweep.json") == b"old"
    assert storage.names() == ["sweep.json"]


def test_one_sweep_at_a_time(folder):
    storage = Storage(folder)
    with storage.lock() as check:
        check()
        assert storage.names() == []
        with pytest.raises(qfl.QflError, match="another sweep is running on"), Storage(folder).lock():
            pytest.fail("the lock was given twice")
        check()
    with Storage(folder).lock():
        pass


def test_a_local_lock_goes_with_its_process(tmp_path):
    code = (
        "import sys, time, filelock\nwith filelock.FileLock(sys.argv[1]): print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(qfl.QflError, match="another sweep is running"), Storage(str(tmp_path)).lock():
            pass
        process.kill()
    with Storage(str(tmp_path)).lock():
        pass


@pytest.fixture
def remote_folder(remote_url) -> remote.RemoteFolder:
    storage = Storage(remote_url)
    return remote.RemoteFolder(storage.filesystem, storage.root, remote_url)


def test_a_lock_whose_file_is_deleted_is_seen_by_its_holder_and_by_the_next(tmp_path):
    with Storage(str(tmp_path)).lock() as check:
        check()
        (tmp_path / ".lock").unlink()
        with pytest.raises(
            qfl.QflError, match=rf"another sweep is running on .*: process {os.getpid()} of this machine"
        ):
            with Storage(str(tmp_path)).lock():
                pytest.fail("two hold the lock")
        with pytest.raises(qfl.QflError, match=r"was lost: its file \.lock was deleted or replaced.*This one stops"):
            check()
    assert not (tmp_path / ".owner.json").exists()
    with Storage(str(tmp_path)).lock() as check:
        check()
        assert Storage(str(tmp_path)).names() == []


@pytest.mark.parametrize(
    "owner",
    [
        {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "1"},
        {"host": socket.gethostname(), "pid": os.getpid(), "started": "1"},
        {"host": "elsewhere", "pid": os.getpid(), "started": folder_lock._started(os.getpid())},
        {"host": socket.gethostname(), "pid": os.getpid(), "started": None},
        {"pid": "x"},
        [],
    ],
    ids=["dead", "its number used again", "elsewhere", "unknown", "damaged", "no owner"],
)
def test_what_a_killed_owner_left_blocks_nobody(tmp_path, owner):
    (tmp_path / ".owner.json").write_text(json.dumps(owner))
    with Storage(str(tmp_path)).lock() as check:
        check()
    assert not (tmp_path / ".owner.json").exists()


def test_a_heartbeat_from_the_future_blocks_only_while_it_is_renewed(remote_folder):
    def lock() -> RemoteLock:
        return RemoteLock(remote_folder, seconds=0.2, settle_seconds=0.0)

    def beat(ahead: float) -> None:
        remote_folder.write(LOCK_FILE, json.dumps({"id": "ahead", "heartbeat": time.time() + ahead}).encode())

    beat(1000)
    with pytest.warns(UserWarning, match=r"is dated \d+ s in the future: this machine's clock or its owner's is wrong"):
        with lock() as held:
            held.check()
    beat(1000)
    owner = threading.Timer(0.1, beat, [1000])
    owner.start()
    with pytest.warns(UserWarning, match="in the future"), pytest.raises(qfl.QflError, match="by a clock that is not"):
        with lock():
            pytest.fail("a living owner lost its lock")
    owner.join()
    remote_folder.write(LOCK_FILE, b"[" * 100_000)
    with lock():
        pass


@pytest.mark.slow
def test_a_remote_lock_is_renewed_and_a_stale_one_taken_over(remote_folder):
    def lock() -> RemoteLock:
        return RemoteLock(remote_folder, seconds=0.2, settle_seconds=0.0)

    with lock() as held:
        time.sleep(0.9)  # longer than the 0.6 s after which an owner that does not renew has lost it
        with pytest.raises(qfl.QflError, match=r"lock\.json was renewed 0 s ago"), lock():
            pass
        held.check()
    assert not remote_folder.exists(LOCK_FILE)
    for age, is_stale in ((60, False), (120, True)):  # of a lock that is renewed every 30 s
        dead = {"id": "dead", "heartbeat": time.time() - age}
        remote_folder.write(LOCK_FILE, json.dumps(dead).encode())
        if not is_stale:
            with pytest.raises(qfl.QflError, match=r"another sweep is running on .* renewed 60 s ago"):
                RemoteLock(remote_folder).__enter__()
    with RemoteLock(remote_folder, settle_seconds=0.0) as held:
        held.check()
        assert json.loads(remote_folder.read(LOCK_FILE))["id"] != "dead"
    remote_folder.write(LOCK_FILE, b"{cut o")
    with lock():
        pass


def test_the_owner_of_a_lost_remote_lock_leaves_the_new_one_alone(remote_folder):
    thief = json.dumps({"id": "thief", "heartbeat": time.time() + 60}).encode()
    with RemoteLock(remote_folder, seconds=0.1, settle_seconds=0.0) as held:
        held.check()
        remote_folder.write(LOCK_FILE, thief)
        time.sleep(0.4)
        with pytest.raises(qfl.QflError, match="was lost: another sweep took it"):
            held.check()
    assert remote_folder.read(LOCK_FILE) == thief


@pytest.mark.slow
def test_of_two_that_ask_at_once_one_gets_the_remote_lock(remote_folder):
    remote_folder.write(LOCK_FILE, json.dumps({"id": "dead", "heartbeat": 0}).encode())
    start, won, end = threading.Barrier(4), [], threading.Event()

    def ask() -> None:
        start.wait()
        try:
            with RemoteLock(remote_folder, settle_seconds=0.5):
                won.append(1)
                end.wait(10)
        except qfl.QflError:
            pass

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    end.set()
    for thread in threads:
        thread.join()
    assert len(won) == 1


# Runs on remote storage.


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that belongs to a run."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if name not in (".lock", ".owner.json")}


def pulled(storage: Storage, into: Path) -> dict[str, bytes]:
    """The remote run's files."""
    storage.pull_run(RUN, into)
    return tree(into)


def test_a_run_goes_there_and_comes_back(remote_url, tiny_run, tmp_path):
    storage = Storage(remote_url)
    assert pulled(storage, tmp_path / "none") == {}
    source = tmp_path / "source"
    shutil.copytree(tiny_run.path, source)
    (source / ".tmp-half").mkdir()
    (source / ".tmp-half" / "x").write_text("")
    (source / "checkpoints" / ".tmp-step").mkdir()
    (source / "checkpoints" / ".tmp-step" / "checkpoint.json").write_text("{}")
    mirror.Pusher(storage._remote, RUN, source).push()
    assert pulled(storage, tmp_path / "back") == tree(tiny_run.path)
    assert qfl.Run.open(tmp_path / "back").verify().good == tuple(tiny_run.steps)


class _KilledError(BaseException):
    """Stands for kill -9 between two writes."""


@pytest.mark.parametrize("survive", [0, 1, 2, 3, 4, 5, 8, 16, 17])
def test_a_push_killed_anywhere_leaves_only_whole_checkpoints(survive, tiny_run, tmp_path, monkeypatch):
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    write, left = remote.RemoteFolder.write, [survive]

    def until_killed(self, path, data):
        if left[0] == 0:
            raise _KilledError
        left[0] -= 1
        write(self, path, data)

    monkeypatch.setattr(remote.RemoteFolder, "write", until_killed)
    try:
        mirror.Pusher(storage._remote, RUN, tiny_run.path).push()
        assert survive == 17  # three files and seven checkpoints of two
    except _KilledError:
        pass
    there = pulled(storage, tmp_path / "there")
    if survive == 0:
        assert there == {}
        return
    found = qfl.Run.open(tmp_path / "there")
    # Those that are there are whole, and the first ones; the metrics hold their rows.
    assert list(found.verify().good) == found.steps == tiny_run.steps[: len(found.steps)]
    assert sum(name.startswith("checkpoints") for name in there) == 2 * len(found.steps)
    if found.steps:
        assert found.metrics["step"].max() >= found.steps[-1]
    monkeypatch.undo()
    mirror.Pusher(storage._remote, RUN, tiny_run.path).push()
    assert pulled(storage, tmp_path / "all") == tree(tiny_run.path)


@pytest.fixture
def writer(addition, model_config, tmp_path):
    """A run directory in the making: 40 updates, nothing saved yet."""
    config = plan_run(addition, model_config, qfl.TrainConfig(n_steps=40, batch_size=16, n_val=32))
    with RunWriter(tmp_path / "source", config, addition, resume=True) as opened:
        yield opened


def state(writer: RunWriter, step: int, *, optimizer: bool = True) -> ckpt.Checkpoint:
    """A small checkpoint of a step."""
    weights = {"w": torch.full((3,), float(step))}
    return ckpt.Checkpoint(step, writer.config.digest, weights, weights if optimizer else None)


def test_resume_points_are_replaced_and_a_complete_run_drops_what_is_gone(remote_url, writer, tmp_path):
    storage = Storage(remote_url)

    def there(name: str) -> list[str]:
        mirror.Pusher(storage._remote, RUN, writer.path).push()
        files = pulled(storage, tmp_path / name)
        return sorted(n.removesuffix("/checkpoint.json") for n in files if n.endswith("/checkpoint.json"))

    writer.save(state(writer, 0), keep_optimizer=False)
    writer.save_resume_point(state(writer, 10))
    assert there("a") == ["checkpoints/step_00000000", "resume/step_00000010"]
    writer.save_resume_point(state(writer, 20))
    assert there("b") == ["checkpoints/step_00000000", "resume/step_00000020"]
    # Nothing newer is here: the only state to continue from stays there.
    shutil.rmtree(writer.path / "resume")
    assert there("c") == ["checkpoints/step_00000000", "resume/step_00000020"]
    writer.save(state(writer, 40), keep_optimizer=False)
    writer.finish()
    shutil.rmtree(writer.path / "checkpoints" / "step_00000000")
    assert there("d") == ["checkpoints/step_00000040"]


def test_a_resume_point_is_deleted_only_after_its_successor_is_there(writer, monkeypatch):
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    writer.save_resume_point(state(writer, 10))
    mirror.Pusher(storage._remote, RUN, writer.path).push()
    writer.save_resume_point(state(writer, 20))
    done: list[str] = []
    write, remove = remote.RemoteFolder.write, remote.RemoteFolder.remove
    monkeypatch.setattr(
        remote.RemoteFolder, "write", lambda self, p, d: (done.append(f"+ {p.removeprefix(RUN)}"), write(self, p, d))[1]
    )
    monkeypatch.setattr(
        remote.RemoteFolder, "remove", lambda self, p: (done.append(f"- {p.removeprefix(RUN)}"), remove(self, p))[1]
    )
    mirror.Pusher(storage._remote, RUN, writer.path).push()
    manifest = "+ /resume/step_00000020/checkpoint.json"
    deleted = [line for line in done if line.startswith("-")]
    assert done.index(manifest) < done.index(deleted[0])
    assert deleted[0] == "- /resume/step_00000010/checkpoint.json"
    assert len(deleted) == 3


def test_a_checkpoint_made_again_replaces_the_one_there(remote_url, writer, tmp_path):
    storage = Storage(remote_url)
    writer.save(state(writer, 5), keep_optimizer=True)
    mirror.Pusher(storage._remote, RUN, writer.path).push()
    changed = state(writer, 5)
    changed.model["w"][0] = 7.0  # same size, other contents
    writer.save(changed, keep_optimizer=True)
    mirror.Pusher(storage._remote, RUN, writer.path).push()
    assert pulled(storage, tmp_path / "there") == tree(writer.path)


def test_only_what_is_new_is_uploaded_again(writer, monkeypatch):
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    pusher = mirror.Pusher(remote.RemoteFolder(storage.filesystem, storage.root, storage.folder), RUN, writer.path)
    written: list[str] = []
    write = remote.RemoteFolder.write
    monkeypatch.setattr(remote.RemoteFolder, "write", lambda self, p, d: (written.append(p), write(self, p, d))[1])
    writer.append_metrics([{"step": 0}])
    writer.save(state(writer, 5), keep_optimizer=False)
    pusher.push()
    assert len(written) == 5  # configuration, task, metrics, and a checkpoint of two files
    written.clear()
    pusher.push()
    assert written == []
    writer.append_metrics([{"step": 5}])
    writer.save(state(writer, 6), keep_optimizer=False)
    pusher.push()
    names = [
        "metrics.jsonl",
        "checkpoints/step_00000006/model.safetensors",
        "checkpoints/step_00000006/checkpoint.json",
    ]
    assert written == [f"{RUN}/{name}" for name in names]
    # A process that starts anew reads what is there instead of sending it again.
    written.clear()
    mirror.Pusher(storage._remote, RUN, writer.path).push()
    assert [name for name in written if "checkpoints" in name] == []


def test_local_runs_are_trained_in_place(tmp_path):
    storage = Storage(str(tmp_path / "sweep"))
    with storage.mirrored(RUN, tmp_path / "scratch") as folder:
        assert folder == tmp_path / "sweep" / RUN
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("end", ["finishes", "raises"])
def test_a_mirrored_run_is_pulled_pushed_meanwhile_and_pushed_at_the_end(remote_url, tmp_path, tiny_run, end):
    storage, scratch = Storage(remote_url), tmp_path / "scratch"
    storage.write_bytes(f"{RUN}/config.json", b"{}")
    source = tiny_run.path

    def body() -> None:
        with storage.mirrored(RUN, scratch, seconds=0.1) as folder:
            assert tree(folder) == {"config.json": b"{}"}
            shutil.copy(source / "config.json", folder)
            deadline = time.monotonic() + 10
            while storage.read_bytes(f"{RUN}/config.json") == b"{}":
                assert time.monotonic() < deadline, "nothing was pushed meanwhile"
                time.sleep(0.05)
            shutil.copytree(source, folder, dirs_exist_ok=True)
            if end == "raises":
                raise RuntimeError("the body's own")

    if end == "raises":
        with pytest.raises(RuntimeError, match="the body's own"):
            body()
    else:
        body()
    assert pulled(storage, tmp_path / "back") == tree(source)
    assert not [p for p in scratch.rglob("*") if not p.is_dir() and p.suffix != ".lock"]


def test_a_copy_left_by_a_killed_process_does_not_count(remote_url, tmp_path):
    storage = Storage(remote_url)
    with storage.mirrored(RUN, tmp_path, seconds=60) as folder:
        (folder / "config.json").write_text("{}")
        with (
            pytest.raises(qfl.QflError, match="another process trains in"),
            Storage(remote_url).mirrored(RUN, tmp_path),
        ):
            pass
        assert (folder / "config.json").exists()
    folder.mkdir()
    (folder / "left").write_text("by a killed process")
    with storage.mirrored(RUN, tmp_path, seconds=60) as folder:
        assert tree(folder) == {"config.json": b"{}"}
    assert pulled(storage, tmp_path / "back") == {"config.json": b"{}"}


def test_storage_that_fills_up_is_told_at_the_end(tmp_path, monkeypatch):
    storage = Storage(f"memory://{uuid.uuid4().hex}")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "quota")

    def body(seconds: float, error: BaseException | None) -> None:
        with storage.mirrored(RUN, tmp_path, seconds) as folder:
            monkeypatch.setattr(MemoryFileSystem, "pipe_file", full)
            (folder / "config.json").write_text("{}")
            time.sleep(0.2)  # a push in between may fail; the last one counts
            if error is not None:
                raise error

    for error in (None, RuntimeError("the body's own")):
        with pytest.raises(StorageError, match=r"writing memory://.*config\.json failed: .*quota"):
            body(0.05, error)
    with pytest.raises(KeyboardInterrupt):
        body(60, KeyboardInterrupt())


@pytest.mark.parametrize("path", ["a.json", "results/task=x/part-1.parquet"])
def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder(tmp_path, path):
    storage = Storage(str(tmp_path))
    (tmp_path / path).mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"{path} cannot be read: Is a directory"):
        storage.read_bytes(path)
    (tmp_path / "other").write_text("")
    with pytest.raises(StorageError, match="other cannot be read: Not a directory"):
        storage.glob("other/task=*/part-*")


def test_what_may_not_be_read_is_told(tmp_path, monkeypatch):
    """Of the superuser nothing can be kept: the operating system's answer is made up."""
    storage = Storage(str(tmp_path))
    (tmp_path / "results").mkdir()

    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(
        StorageError, match=r"cannot be read: Permission denied\. Check what is there and its permissions"
    ):
        storage.glob("results/task=*/part-*.parquet")
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(StorageError, match=r"sweep\.json cannot be read: Permission denied"):
        qfl.Sweep.open(tmp_path)
