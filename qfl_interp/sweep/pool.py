"""What the scheduler asks of whatever trains: processes here, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from qfl_interp.sweep.jobs import Job
from qfl_interp.sweep.records import Record


class Outcome(NamedTuple):
    """How a job ended.

    `records` holds one row a run, or None where the worker could not say, for the reason `error`. With `storage_error`
    the storage is at fault, so that no other job could end better.
    """

    job: Job
    records: list[Record] | None
    error: str = ""
    storage_error: bool = False


@runtime_checkable
class Pool(Protocol):
    """Workers that train jobs; a context manager that ends them.

    Attributes:
        n_slots: Jobs at a time.
        where: What a person reads about where jobs run.
        notes: What a person should know about it, a sentence each.
    """

    n_slots: int
    where: str
    notes: Sequence[str]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, job: Job) -> None:
        """Hand over a job; at most `n_slots` at a time."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Jobs that ended within `timeout` seconds, perhaps none."""
        ...

    def close(self) -> None:
        """End the workers; what runs is stopped and can be resumed. Safe to call twice."""
        ...
