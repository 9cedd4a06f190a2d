"""The carry-forward test: does the probe fitted at one checkpoint still work at another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure
from torch import Tensor

from qfl_interp.activations.spans import SiteSpan, site_span
from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lenses.probe.data import ProbeData, part_name, probe_data, probe_tensors, read_span
from qfl_interp.analyses.lenses.probe.lens import probe
from qfl_interp.analyses.lenses.transfer.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.transfer.figure import transfer_figure
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.config import ProbeConfig
from qfl_interp.digests import digest
from qfl_interp.emergence.aggregation import NOT_FITTED
from qfl_interp.probes import PROBE_LOSS, load_probes
from qfl_interp.probes.feature_data import feature_data
from qfl_interp.report.page import Section
from qfl_interp.runs.series import Checkpoints, Steps


@dataclass(frozen=True)
class Transfer(PartLens[ProbeData, SiteSpan]):
    """A part a step whose activations are read and feature; `steps` are those of the probes."""

    config: ProbeConfig = field(default_factory=ProbeConfig)
    steps: tuple[int, ...] = ()

    name = "transfer"
    question = "Does the probe of one checkpoint still work at another?"
    tables, result = TABLES, RESULT
    order = 30
    methods = """
    - **Probes carried over** are fitted at one checkpoint and scored on the activations of another. A feature that
      only grows keeps its old probes; one whose directions turn loses them, although a fresh probe reads it as
      well as ever.
    """
    by = ("feature",)
    of_probes = True
    step_column = "eval_step"

    def part(self, piece: Piece) -> str:
        return f"{part_name(piece.at, piece.key['feature'], self.config)}-{digest(repr(list(self.steps)))}"

    def fetch(self, missing: Mapping[ModelAt, Sequence[Piece]], *, jobs: int, progress: bool) -> None:
        names = list(dict.fromkeys(piece.key["feature"] for pieces in missing.values() for piece in pieces))
        how: dict[str, Any] = {"config": self.config, "n_untrained": 0, "device": self.device}
        probe(self.run, names, list(self.steps), **how, jobs=jobs, progress=progress)

    def share(self) -> ProbeData:
        return probe_data(self.run, self.config)

    def view(self, shared: ProbeData, at: ModelAt) -> SiteSpan:
        tokens, span = self.run.task.encode(shared.test).tokens, read_span(self.run.task, shared.test)
        return site_span(at.load(self.run, self.device), tokens, *span, name=self.config.site)

    def rows(self, shared: ProbeData, view: SiteSpan, piece: Piece) -> pd.DataFrame:
        run, step, feature = self.run, piece.at.step, self.run.task.feature(piece.key["feature"])
        test = feature_data(feature, view, shared.test)
        here = probe_tensors(run, step, feature.name, self.config)
        rows = []
        for fit_step in self.steps:
            there = probe_tensors(run, fit_step, feature.name, self.config)
            place = there["place"].numpy()
            labels = np.flatnonzero(place != NOT_FITTED)
            scores = load_probes(feature.kind, there).score(test.x, test.y, test.kept)
            loss, score = (values.nanmean(dim=2).numpy()[place[labels], labels] for values in scores)
            rows.append(
                {
                    "feature": feature.name,
                    "metric": PROBE_LOSS[feature.kind],
                    "fit_step": fit_step,
                    "eval_step": step,
                    **{f"fit_{name}": value for name, value in run.how_far(fit_step).items()},
                    **{f"eval_{name}": value for name, value in run.how_far(step).items()},
                    "test_loss": float(np.nanmean(loss)),
                    "test_score": float(np.nanmean(score)),
                    "cosine": float(np.nanmean(_cosines(there["weight"], here["weight"], place, labels))),
                    "n_labels": len(labels),
                }
            )
        found = pd.DataFrame(rows)
        return found.assign(refit_loss=found.loc[found["fit_step"] == step, "test_loss"].iloc[0])

    def sources(self, piece: Piece) -> Sequence[int]:
        return (piece.at.step, *self.steps)

    def columns(self, piece: Piece) -> dict[str, Any]:
        return {"settings": self.config.digest(), "analysis": self.analysis(piece)}

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return transfer_figure(rows, step=step)

    @classmethod
    def sections_of(cls, rows: pd.DataFrame) -> list[Section]:
        note = (
            "Probes fitted at one step (rows) read the activations of another (columns); the outlined diagonal is each "
            "probe at its own step. Brighter is better: where a row stays bright to the right, the feature keeps its "
            "directions. Buttons change what the colours mean."
        )
        return [
            cls.section_of("Probes carried over: {}", feature, part, transfer_figure, note)
            for feature, part in cls.parts_of(rows)
        ]


def transfer(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "log:20",
    *,
    config: ProbeConfig | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Carry probes forward: does the probe of one checkpoint still work at another?

    The lens scores the probes of every checkpoint on the activations of every other. A feature whose representation
    only grows keeps its old probes. One that is built anew, or whose direction turns, loses them, although a fresh
    probe reads it as well as ever. Each label has the layer with the lowest training loss at the step its probe was
    fitted at. The call fits missing probes first.

    Example:
        `qfl transfer runs/add16 carry --steps log:12`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: Both axes, as in `probe`; n steps are n^2 rows a feature.
        config: The probes'.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a feature and pair of steps: loss and score on test examples at `eval_step` of the probes fitted at
        `fit_step`, means over labels; `refit_loss`, that of the probes of `eval_step` itself; `cosine`, the mean
        absolute cosine between the two probes' directions at the same place.

    Raises:
        QflError: Unknown feature or step, or the model has no such site.
    """
    config = config or ProbeConfig()
    names = [f.name for f in chosen_features(run, features)]
    saved = run.resolve_steps(steps)
    pieces = [Piece(ModelAt(step), {"feature": name}) for step in saved for name in names]
    lens = Transfer(run, device, config, tuple(saved))
    rows = lens.compute(pieces, label="transferring", jobs=jobs, progress=progress)
    return Result(
        f"Carry-forward of the probes of {run.run_id}: test loss, fitted and evaluated at",
        _summary(rows),
        rows,
        transfer_figure,
        one_of=("feature",),
        columns=RESULT,
        cube=Cube(("fit_step", "eval_step")),
        of=run.label,
    )


def _cosines(one: Tensor, other: Tensor, place: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """|cosine| between two probes' directions at each label's place, a mean over its rows; NaN for a zero row."""
    first, second = (weight[place[labels], labels].double().flatten(1, -2) for weight in (one, other))
    along = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    return along.abs().nanmean(dim=-1).numpy()


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Each feature's loss by fit step (rows) and evaluation step (columns), at most eight of each."""
    steps = sorted(set(rows["eval_step"]))
    shown = [steps[i] for i in sorted({round(k) for k in np.linspace(0, len(steps) - 1, min(8, len(steps)))})]
    part = rows[rows["fit_step"].isin(shown) & rows["eval_step"].isin(shown)]
    table = part.pivot_table(index=["feature", "fit_step"], columns="eval_step", values="test_loss", sort=True)
    return table.rename(columns=lambda step: f"at {step}").rename_axis(columns=None).reset_index()
