"""`make demo`: train 16-bit addition, find its quiet features, test whether they matter, write a report.

    python scripts/demo.py [RUN]

Killed at any moment, it goes on where it was. Two to four minutes on two cores.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

import qfl_interp as qfl
from analyses import ablate, emergence, report

MODEL = qfl.ModelConfig(d_model=64, n_layers=4, n_heads=4)
TRAIN = qfl.TrainConfig(budget_flops=3e12, lr=1e-3, batch_size=64, seed=0, n_checkpoints=40)
PROBE = qfl.ProbeConfig(n_train=4_000, n_test=1_000)


def main(out: Path) -> None:
    """Train, probe and classify, ablate, report; each stage is skipped where it is done."""
    console = Console(stderr=True)
    started = time.monotonic()

    def stage(title: str) -> None:
        console.print(f"[bold]{title}[/]  [dim]{time.monotonic() - started:.0f} s[/]")

    stage("1/4  training on 16-bit addition")
    run = qfl.train(qfl.load_task("addition", length=16), MODEL, TRAIN, out, resume=True)
    stage(
        f"2/4  quiet or loud? Probes of the untrained controls and of those of {len(run.steps)} checkpoints that matter"
    )
    emerged = emergence(run, steps="auto", config=PROBE)
    stage("3/4  taking the features out of the final model")
    ablated = ablate(run, config=PROBE)
    stage("4/4  writing the report")
    page = report(run, steps="auto", config=PROBE)
    console.print(run, highlight=False)
    print(emerged, ablated, sep="\n\n")
    stage("done")
    print(f"\nOpen {page.resolve().as_uri()}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
