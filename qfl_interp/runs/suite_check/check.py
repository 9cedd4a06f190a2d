"""`check_suite`: measure every checkpoint once, then hold the rules against all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qfl_interp.data.examples import held_out
from qfl_interp.data.task import Batch, Task
from qfl_interp.errors import QflError
from qfl_interp.models.build import parameters_to_save
from qfl_interp.models.forward import logits_at
from qfl_interp.models.metrics import evaluate
from qfl_interp.progress import progress_bar
from qfl_interp.runs.checkpoint import step_name
from qfl_interp.runs.series import Checkpoints
from qfl_interp.runs.suite_check.findings import Finding
from qfl_interp.runs.suite_check.fresh import fresh_findings
from qfl_interp.runs.suite_check.measure import measured
from qfl_interp.runs.suite_check.rules import Geometry, Kept, alike, as_frame, missing_steps, out_of_place, repeated
from qfl_interp.runs.table import Table

TABLE = "suite_check"
# Examples that the loss is measured on; a small dataset has fewer.
_N_EXAMPLES, _LEAST = 256, 8
# Among the sketches of a checkpoint: the losses of the examples, and those of their answers alone.
_LOSSES, _ANSWERS = "losses of examples", "losses of answers"
# Freshly drawn models that the first checkpoint is compared with.
_N_DRAWN = 3
# Standard errors by which the loss has to fall from the first checkpoint to the last.
_FALLS = 2.0


@dataclass(frozen=True)
class SuiteCheck:
    """What `check_suite` found.

    Attributes:
        name: Of what.
        findings: Faults and notes, by step.
        table: One row a checkpoint: `step`, `readable`, `loss` (nats), `dtype`, `n_nonfinite`, `norm`, `from_previous`
            (the distance in weight space from the checkpoint before), `excess` (how much longer the way from the one
            before to the one behind is through it) and `correlation` (with the one before).
    """

    name: str
    findings: tuple[Finding, ...]
    table: pd.DataFrame

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are no notes."""
        return tuple(finding for finding in self.findings if finding.severity == "fault")

    def __bool__(self) -> bool:
        """True where nothing is wrong."""
        return not self.faults

    def to_dataframe(self) -> pd.DataFrame:
        """One row a finding: `step`, `kind`, `severity`, `tensors`, `text`."""
        return as_frame(self.findings)

    def __repr__(self) -> str:
        head = f"{self.name}: {len(self.table)} checkpoints, {len(self.faults)} faults"
        return "\n".join([head, *(f"step {f.step} [{f.severity}: {f.kind}] {f.text}" for f in self.findings)])


def check_suite(series: Checkpoints, *, device: str | torch.device = "cpu", progress: bool = True) -> SuiteCheck:
    """Check whether checkpoints are what they say they are.

    Each is read once, by itself, and what is kept of it is a row a tensor and a sketch of it, in the table
    `suite_check`; an interrupted call goes on, and a checkpoint whose weights are others is measured again. Then the
    rules: it can be read and matches its checksum; tensors, shapes and types are the others'; every number is finite;
    no two are equal, in whole or in some tensors; none is off the path of the others or in the wrong order
    (`suite_check.geometry`); nothing separates one part of them from the rest; step 0 is freshly drawn; the loss on
    the task falls; no step is missing from a regular series.

    What cannot be found: an exchange of neighbours between which training stood still but for noise; weights of few
    numbers; whether steps count what they say.

    Args:
        series: A `Run` or a `Suite`.
        device: Where the loss is measured.
        progress: Draw a bar on standard error.
    """
    table, findings, kept = series.table(TABLE), [], []
    losses: dict[int, np.ndarray] = {}
    answers: dict[int, np.ndarray] = {}
    batch = _examples(series.task)
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task("checking", total=len(series.steps), detail="")
        for step in series.steps:
            try:
                _measure(series, table, step, batch, device)
                one, losses[step], answers[step] = _read(table, step)
                kept.append(one)
            except QflError as error:
                findings.append(Finding(step, "unreadable", "fault", (), f"{error}"))
            bar.update(shown, advance=1, detail=f"step {step}")
    findings += [*missing_steps(series.steps), *_loss(losses, answers)]
    return _judged(series, kept, losses, findings)


def _judged(
    series: Checkpoints, kept: list[Kept], losses: Mapping[int, np.ndarray], findings: list[Finding]
) -> SuiteCheck:
    """The rules over what was measured, beside what was found before."""
    unlike, good = alike(kept)
    points = Geometry(good)
    equal, wrong = repeated(points)
    findings = [*findings, *unlike, *equal, *out_of_place(points, wrong), *_first(series)]
    findings.sort(key=lambda finding: (finding.step, finding.severity))
    return SuiteCheck(series.run_id, tuple(findings), _table(series, kept, points, losses))


def _measure(series: Checkpoints, table: Table, step: int, batch: Batch, device: str | torch.device) -> None:
    """Measure a checkpoint, unless that is done. Raises `QflError` where it cannot be read."""
    if table.has(step_name(step)):
        next(series.stored(step), None)  # a run's checksum is looked at every time
        return
    found = measured(series.stored(step))
    rows = pd.DataFrame(found.rows).assign(**series.identity(), step=step, load_fault="")
    losses = answers = np.full(len(batch.tokens), math.nan)
    try:
        model = series.load_model(step, device=device)
        scores = evaluate(lambda tokens, at, _: logits_at(model, tokens, at).cpu(), batch)
        losses, answers = scores.loss, scores.loss_answer
    except QflError as error:
        rows["load_fault"] = str(error)
    measures = {_LOSSES: losses, _ANSWERS: answers}
    sketches = found.sketches | {
        name: torch.from_numpy(np.array(values, dtype=np.float64)) for name, values in measures.items()
    }
    table.write(step_name(step), rows, sketches, steps=[step], settings={"n_examples": len(batch.tokens)})


def _read(table: Table, step: int) -> tuple[Kept, np.ndarray, np.ndarray]:
    """What was kept of a checkpoint, the losses of the examples, and those of their answers."""
    frame, sketches = table.read([step_name(step)]), table.read_tensors(step_name(step))
    losses, answers = (sketches.pop(name).numpy() for name in (_LOSSES, _ANSWERS))
    rows = {str(row["tensor"]): {str(k): v for k, v in row.items()} for row in frame.to_dict("records")}
    return Kept(step, rows, sketches), losses, answers


def _examples(task: Task) -> Batch:
    """Validation examples: 256 or, of a small dataset, as many as there are, halved until there are so many."""
    n = _N_EXAMPLES
    while True:
        try:
            return task.encode(held_out(task, "val", n, seed=0, stream="suite_check"))
        except QflError:
            n //= 2
            if n < _LEAST:
                raise


def _first(series: Checkpoints) -> list[Finding]:
    """Whether step 0 is freshly drawn; nothing where there is no step 0, or nothing says how one is drawn."""
    if 0 not in series.steps:
        return []
    try:
        first = parameters_to_save(series.load_model(0))
        drawn: list[Mapping[str, Tensor]] = [
            parameters_to_save(series.untrained_model(index)[0]) for index in range(_N_DRAWN)
        ]
    except QflError:  # what cannot be read is said elsewhere
        return []
    return fresh_findings(0, first, drawn)


def _loss(losses: Mapping[int, np.ndarray], answers: Mapping[int, np.ndarray]) -> list[Finding]:
    """Whether the loss of the same examples is lower at the last checkpoint than at the first.

    Where that of the answers alone is, the training may have scored nothing else: a note, for the models are as
    they should be.
    """
    known = [step for step, values in losses.items() if np.isfinite(values).all()]
    if len(known) < 2:
        return []
    first, last = known[0], known[-1]
    if _falls(losses[first], losses[last]):
        return []
    change = losses[last] - losses[first]
    text = (
        f"the loss on the task does not fall from step {first} ({losses[first].mean():.4g} nats) to step {last} "
        f"({losses[last].mean():.4g}): change {change.mean():+.3g}, standard error {_error(change):.2g} over "
        f"{len(change)} examples. "
    )
    if not _falls(answers[first], answers[last]):
        asked = "Is this what the models were trained on, in their own tokens, and are the steps in order?"
        return [Finding(last, "loss", "fault", (), text + asked)]
    text += (
        f"That of the answers alone does, from {answers[first].mean():.4g} to {answers[last].mean():.4g}: where the "
        "training scored answers only, say so with prompt_end=False in the dataset, or losses and curvatures are of "
        "the prompt's last token too."
    )
    return [Finding(last, "loss", "note", (), text)]


def _falls(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether the mean of the same examples' losses falls by more than chance."""
    change = last - first
    return bool(change.mean() + _FALLS * _error(change) < 0)


def _error(change: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(change.std(ddof=1) / math.sqrt(len(change)))


def _table(series: Checkpoints, kept: list[Kept], points: Geometry, losses: Mapping[int, np.ndarray]) -> pd.DataFrame:
    """One row a checkpoint."""
    at = {step: number for number, step in enumerate(points.steps)}
    common, read = points.correlations(), {one.step: one for one in kept}
    rows = []
    for step in series.steps:
        row = {"step": step, "readable": step in read, "loss": math.nan, "dtype": "", "n_nonfinite": 0}
        row |= dict.fromkeys(("norm", "from_previous", "excess", "correlation"), math.nan)
        if one := read.get(step):
            row["loss"] = float(losses[step].mean())
            row["dtype"] = ", ".join(sorted({str(r["dtype"]) for r in one.rows.values()}))
            row["n_nonfinite"] = sum(int(r["n_nonfinite"]) for r in one.rows.values())
            row["norm"] = math.sqrt(sum(r["size"] * (r["mean"] ** 2 + r["std"] ** 2) for r in _numbers(one)))
        if (i := at.get(step)) is not None:
            if i:
                row |= {"from_previous": points.distances[i - 1, i], "correlation": common[i - 1]}
            if 0 < i < len(points.steps) - 1 and points.distances[i - 1, i + 1] > 0:
                way = points.distances[i - 1, i] + points.distances[i, i + 1]
                row["excess"] = way / points.distances[i - 1, i + 1]
        rows.append(row)
    return pd.DataFrame(rows)


def _numbers(one: Kept) -> list[dict[str, Any]]:
    """The rows of tensors that hold numbers."""
    return [row for row in one.rows.values() if not math.isnan(row["mean"])]
