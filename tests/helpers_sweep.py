"""A pool that trains in the process of the test, for tests of sweeps that need no process of their own."""

from __future__ import annotations

from qfl_interp.sweep.jobs import Job, JobSettings
from qfl_interp.sweep.local_pool import attempt
from qfl_interp.sweep.pool import Outcome

# A sweep of six runs, as a user writes it.
TOML = """
[[grid]]
task = "addition"
length = 3
budget_flops = [1e7, 2e7, 4e7]
d_model = 8
n_layers = 1
batch_size = 8
seed = [0, 1]
n_val = 32
"""


class InlinePool:
    """Trains in this process: no start of a worker to wait for."""

    n_slots, where, notes = 1, "here", ()

    def __init__(self, settings: JobSettings, n_slots: int | None = None) -> None:
        self.settings = settings
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        jobs, self.jobs = self.jobs, []
        return [Outcome(job, *attempt(job, self.settings)) for job in jobs]

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        pass
