"""`make demo`: train 16-bit addition, find its quiet features, test whether they matter, write a report.

    python scripts/demo.py [RUN] [--device cuda] [--quick]

Killed at any moment, it goes on where it was. Two to four minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import qfl_interp as qfl
from qfl_interp.analyses import ablate, emergence, report

MODEL = qfl.ModelConfig(d_model=64, n_layers=4, n_heads=4)
TRAIN = qfl.TrainConfig(budget_flops=3e12, lr=1e-3, batch_size=64, seed=0, n_checkpoints=40)
PROBE = qfl.ProbeConfig(n_train=4_000, n_test=1_000)
# The same in seconds, to see that it runs.
QUICK_LENGTH = 4
QUICK_TRAIN = qfl.TrainConfig(n_steps=60, lr=1e-3, batch_size=64, seed=0, n_checkpoints=6, n_val=64)
QUICK_PROBE = qfl.ProbeConfig(n_train=400, n_test=100)


def main(out: Path, *, device: str = "cpu", quick: bool = False) -> None:
    """Train, probe and classify, ablate, report; each stage is skipped where it is done."""
    length, train, probes = (QUICK_LENGTH, QUICK_TRAIN, QUICK_PROBE) if quick else (16, TRAIN, PROBE)
    how: dict[str, Any] = {"config": probes, "device": device}
    console = Console(stderr=True)
    started = time.monotonic()

    def stage(title: str) -> None:
        console.print(f"[bold]{title}[/]  [dim]{time.monotonic() - started:.0f} s[/]")

    stage(f"1/4  training on {length}-bit addition")
    run = qfl.train(qfl.load_task("addition", length=length), MODEL, train, out, device=device, resume=True)
    stage(
        f"2/4  quiet or loud? Probes of the untrained controls and of those of {len(run.steps)} checkpoints that matter"
    )
    emerged = emergence(run, steps="auto", **how)
    stage("3/4  taking the features out of the final model")
    ablated = ablate(run, **how)
    stage("4/4  writing the report")
    page = report(run, steps="auto", **how)
    console.print(run, highlight=False)
    print(emerged, ablated, sep="\n\n")
    stage("done")
    print(f"\nOpen {page.resolve().as_uri()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/demo"), metavar="RUN", help="its directory")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a small run of seconds, to see that it runs")
    arguments = parser.parse_args()
    main(arguments.run, device=arguments.device, quick=arguments.quick)
