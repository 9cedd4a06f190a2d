"""One sweep at a time on a remote folder: a lock file that its owner renews, so that a dead owner's goes stale."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import uuid
import warnings
from typing import Any

from qfl_interp.errors import QflError, StorageError
from qfl_interp.sweep.remote import RemoteFolder

LOCK_FILE = "lock.json"
HEARTBEAT_SECONDS = 30.0
# A lock this many heartbeats old is its owner's no more.
STALE_AFTER = 3
# Heartbeats for which a lock from the future is watched.
_WATCHED = 1.5


class RemoteLock:
    """The lock of a remote folder; use as a context manager.

    The machines' clocks must agree to within a heartbeat or two. A lock that is dated later than that in the future is
    watched for a heartbeat and a half, and taken if nobody renews it.

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
            self._require_stale(found)
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

    def _require_stale(self, found: dict[str, Any]) -> None:
        """Raise unless the owner of a lock is gone."""
        age, limit = _age(found), STALE_AFTER * self._seconds
        if abs(age) < limit:
            raise self._busy(found)
        if age < 0:
            warnings.warn(
                f"{LOCK_FILE} of {self._folder.url} is dated {-age:.0f} s in the future: this machine's clock or its "
                "owner's is wrong. It is taken if nobody renews it.",
                stacklevel=4,
            )
            time.sleep(_WATCHED * self._seconds)
            again = self._read()
            if again is not None and again != found:
                raise self._busy(again)

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
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _contents(self) -> bytes:
        return json.dumps({"id": self._id, "heartbeat": time.time()}).encode()

    def _busy(self, found: dict[str, Any] | None) -> QflError:
        """The error for a lock that another sweep holds."""
        wait, age = STALE_AFTER * self._seconds, _age(found or {})
        when = f"{age:.0f} s ago" if abs(age) < wait else "a moment ago, by a clock that is not this machine's"
        return QflError(
            f"another sweep is running on {self._folder.url}: its {LOCK_FILE} was renewed {when}. Wait for it or use "
            "another folder; nothing was changed. If it was killed, its lock is free "
            f"{wait:.0f} s after the last renewal."
        )


def _age(found: dict[str, Any]) -> float:
    """Seconds since a lock was renewed, below 0 where a clock is wrong; infinite where it does not say."""
    heartbeat = found.get("heartbeat")
    if isinstance(heartbeat, (int, float)) and math.isfinite(heartbeat):
        return time.time() - heartbeat
    return float("inf")
