"""`make demo`: train 16-bit addition and tell how it adds: when it has the carry, what moves it, what it needs.

    python scripts/demo.py [RUN] [--device cuda] [--quick]

Killed at any moment, it goes on where it was. Two to four minutes on two cores.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import qfl_interp as qfl
from qfl_interp.analyses import ablate, ablate_units, emergence, patch, report
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.pages.shown import Shown
from qfl_interp.report.page import Finding

MODEL = qfl.ModelConfig(d_model=64, n_layers=4, n_heads=4)
TRAIN = qfl.TrainConfig(budget_flops=3e12, lr=1e-3, batch_size=64, seed=0, n_checkpoints=40)
PROBE = qfl.ProbeConfig(n_train=4_000, n_test=1_000)
# The same in seconds, to see that it runs.
QUICK_LENGTH = 4
QUICK_TRAIN = qfl.TrainConfig(n_steps=40, lr=1e-3, batch_size=32, seed=0, n_checkpoints=4, n_val=64)
QUICK_PROBE = qfl.ProbeConfig(n_train=400, n_test=100)
# What is patched: the residual stream, place by place, says where; each head as a whole says which.
COMPONENTS = ("resid_pre", "heads")
N_PAIRS = 64
WIDTH = 120


def main(out: Path, *, device: str = "cpu", quick: bool = False) -> None:
    """Train; probe and classify; patch; ablate heads; ablate; report. Each stage is skipped where it is done."""
    length, train, probes = (QUICK_LENGTH, QUICK_TRAIN, QUICK_PROBE) if quick else (16, TRAIN, PROBE)
    how: dict[str, Any] = {"config": probes, "device": device}
    # The middle carry decides the sum's next bit, which lies inside the answer. The last would not do: it is that bit.
    label = length // 2
    console = Console(stderr=True)
    started = time.monotonic()

    def stage(title: str) -> None:
        console.print(f"[bold]{title}[/]  [dim]{time.monotonic() - started:.0f} s[/]", soft_wrap=True)

    stage(f"1/6  training on {length}-bit addition")
    run = qfl.train(qfl.load_task("addition", length=length), MODEL, train, out, device=device, resume=True)
    stage(
        f"2/6  quiet or loud? Probes of the untrained controls and of those of {len(run.steps)} checkpoints that matter"
    )
    emergence(run, steps="auto", **how)
    stage(f"3/6  where does carry {label} flow? Clean activations into corrupted runs")
    patch(run, "carry", components=COMPONENTS, labels=label, n_pairs=N_PAIRS, attribution=False, device=device)
    stage("4/6  which heads does the answer need? Each one out on its own")
    ablate_units(run, device=device)
    stage("5/6  taking the features out of the final model")
    ablate(run, **how)
    stage("6/6  writing the report")
    page = report(run, steps="auto", **how)
    stage("done")
    print(story(run, label, how))
    print(f"\nOpen {page.resolve().as_uri()}")


def story(run: qfl.Run, label: int, how: dict[str, Any]) -> str:
    """What every lens found, as the report's head has it, with what stands at the positions it names."""
    features = tuple(name for name, feature in run.task.features.items() if feature.by_default)
    shown = Shown(Page(run, features, "auto", n_trials=32, progress=False, **how))
    last = run.metrics["val_exact_answer"].dropna().iloc[-1]
    length = run.task.length
    lines = [
        f"One run, seed {run.config.train.seed}: {length}-bit addition, low bits first. It ends with "
        f"{last:.1%} of the held-out sums right.",
        *told(shown.ask(lambda lens: lens.findings(shown.page), Finding)),
        f"The patched pairs differ in bit {label} of the second operand, at position {length + 1 + label}. Carry "
        f"{label} decides bit {label + 1} of the sum, which is predicted at position {2 * length + 2 + label}.",
    ]
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def told(findings: Sequence[Finding]) -> list[str]:
    """Findings as lines of text."""
    return [
        f"{one.feature.replace('_', ' ')}: {one.verdict}. {one.sentence[:1].upper()}{one.sentence[1:]}."
        for one in findings
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/demo"), metavar="RUN", help="its directory")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a small run of seconds, to see that it runs")
    arguments = parser.parse_args()
    try:
        main(arguments.run, device=arguments.device, quick=arguments.quick)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. The same command goes on where it was.") from None
