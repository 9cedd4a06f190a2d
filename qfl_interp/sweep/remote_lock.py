"""One sweep at a time on a remote folder: a lock file that its owner renews, so that a dead owner's goes stale."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from typing import Any

from qfl_interp.errors import QflError, StorageError
from qfl_interp.sweep.remote import RemoteFolder

LOCK_FILE = "lock.json"
HEARTBEAT_SECONDS = 30.0
# A lock this many heartbeats old is its owner's no more.
STALE_AFTER = 3


class RemoteLock:
    """The lock of a remote folder; use as a context manager.

    The machines' clocks must agree to within a heartbeat or two.

    `seconds` pass between two heartbeats, and `settle_seconds` before it reads back who won where two asked at once.

    Raises:
        QflError: Another sweep holds it.
        StorageError: The storage cannot be reached or written.
    """

    def __init__(
        self, folder: RemoteFolder, *, seconds: float = HEARTBEAT_SECONDS, settle_seconds: float = 1.0
    ) -> None:
        self._folder, self._seconds, self._settle_seconds = folder, seconds, settle_seconds
        self._id = uuid.uuid4().hex
        self._confirmed = time.monotonic()
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="qfl-sweep-lock")

    def __enter__(self) -> RemoteLock:
        found = self._read()
        if found is None:
            if not self._folder.create(LOCK_FILE, self._contents()):
                raise self._busy(self._read())
        else:
            if _age(found) < STALE_AFTER * self._seconds:
                raise self._busy(found)
            self._folder.write(LOCK_FILE, self._contents())
        time.sleep(self._settle_seconds)
        if not self._is_ours():
            raise self._busy(self._read())
        self._confirmed = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # what stays goes stale
            if self._is_ours():
                self._folder.remove(LOCK_FILE)

    def check(self) -> None:
        """Raise if the lock may be another's by now.

        Raises:
            QflError: Another sweep took the lock, or it was deleted.
            StorageError: It has not been renewed for so long that another sweep may take it, and cannot be now.
        """
        if not self._lost and time.monotonic() - self._confirmed > STALE_AFTER * self._seconds:
            self._renew()
        if self._lost:
            raise QflError(
                f"the lock of the sweep in {self._folder.url} was lost: another sweep took it, or {LOCK_FILE} was "
                "deleted. This one stops; what it saved is intact. Start it again when the other has ended."
            )

    def _beat(self) -> None:
        """Renew the lock until the end, or until it is another's."""
        while not self._lost and not self._stop.wait(self._seconds):
            with contextlib.suppress(StorageError):  # tried again at the next heartbeat
                self._renew()

    def _renew(self) -> None:
        """One heartbeat: nothing is written over another's lock."""
        if self._is_ours():
            self._folder.write(LOCK_FILE, self._contents())
            self._confirmed = time.monotonic()
        else:
            self._lost = True

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and found.get("id") == self._id

    def _read(self) -> dict[str, Any] | None:
        """The lock file, None where there is none; one that is no JSON is nobody's and stale."""
        try:
            found = json.loads(self._folder.read(LOCK_FILE))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _contents(self) -> bytes:
        return json.dumps({"id": self._id, "heartbeat": time.time()}).encode()

    def _busy(self, found: dict[str, Any] | None) -> QflError:
        """The error for a lock that another sweep holds."""
        wait = STALE_AFTER * self._seconds
        return QflError(
            f"another sweep is running on {self._folder.url}: its {LOCK_FILE} was renewed {_age(found or {}):.0f} s "
            "ago. Wait for it or use another folder; nothing was changed. If it was killed, its lock is free "
            f"{wait:.0f} s after the last renewal."
        )


def _age(found: dict[str, Any]) -> float:
    """Seconds since a lock was renewed; infinite where it does not say."""
    heartbeat = found.get("heartbeat")
    return time.time() - heartbeat if isinstance(heartbeat, (int, float)) else float("inf")
