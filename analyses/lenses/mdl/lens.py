"""How much a model's activations shorten the description of a feature's labels: minimum description length probing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure

from qfl_interp.activations.spans import SiteSpan, site_span
from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lenses.mdl.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.mdl.figure import mdl_figure, mdl_panel
from qfl_interp.analyses.lenses.probe.data import ProbeData, part_name, place_columns, probe_data, read_span
from qfl_interp.analyses.models_at import ModelAt, models_at
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.config import ProbeConfig
from qfl_interp.errors import QflError
from qfl_interp.plots.panels import Panel
from qfl_interp.probes import PROBE_LOSS, online_code
from qfl_interp.probes.feature_data import feature_data, not_rare
from qfl_interp.report.page import Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import column, groups


@dataclass(frozen=True)
class Mdl(PartLens[ProbeData, SiteSpan]):
    """A part a model and feature."""

    config: ProbeConfig = field(default_factory=ProbeConfig)

    name = "mdl"
    question = "How much do activations shorten a code for the labels?"
    tables, result = TABLES, RESULT
    order = 40
    methods = """
    - **Description length** is that of a label's values in the online code: a probe fitted on what was sent so far
      predicts the next examples. The compression is the uniform code's length over it, so it also says from how
      few examples the label can be learned (Voita and Titov, https://arxiv.org/abs/2003.12298).
    """
    by = ("feature",)
    of_probes = True

    def part(self, piece: Piece) -> str:
        return part_name(piece.at, piece.key["feature"], self.config)

    def share(self) -> ProbeData:
        return probe_data(self.run, self.config)

    def view(self, shared: ProbeData, at: ModelAt) -> SiteSpan:
        tokens, span = self.run.task.encode(shared.train).tokens, read_span(self.run.task, shared.train)
        return site_span(at.load(self.run, self.device), tokens, *span, name=self.config.site)

    def rows(self, shared: ProbeData, view: SiteSpan, piece: Piece) -> pd.DataFrame:
        feature = self.run.task.feature(piece.key["feature"])
        train = not_rare(feature_data(feature, view, shared.train))
        code = online_code(feature.kind, train.x, train.y, self.config, example_mask=train.kept)
        values = {"codelength_bits": code.codelength, "uniform_bits": code.uniform, "compression": code.compression}
        return pd.DataFrame(
            {
                "source": piece.at.source,
                "model_seed": piece.at.seed(self.run),
                **self.where(piece),
                **piece.key,
                **place_columns(view.places, train.x.shape[1]),
                **{key: value.nanmean(dim=2).flatten().numpy() for key, value in values.items()},
                "n_train": np.tile(train.kept.sum(dim=1).numpy(), len(view.places)),
            }
        )

    def columns(self, piece: Piece) -> dict[str, Any]:
        settings = self.config.digest()
        return {"site": self.config.site, "settings": settings, "analysis": settings}

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return mdl_figure(rows, step=step)

    @staticmethod
    def panels_of(rows: pd.DataFrame) -> list[Panel]:
        return [mdl_panel(part, feature) for feature, part in groups(rows, "feature")]

    @classmethod
    def sections_of(cls, rows: pd.DataFrame) -> list[Section]:
        """Of features with a coded label at a step after the first."""
        note = (
            "How many times shorter the activations make a code for the feature's labels: 1 is no gain. The more, and "
            "the fewer examples a probe needs to learn a label, the shorter the code."
        )
        return [
            cls.section_of("Description length: {}", feature, part, mdl_figure, note)
            for feature, part in cls.parts_of(rows)
            if (np.isfinite(column(part, "compression")) & (column(part, "step") > 0)).any()
        ]


def mdl(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "log:20",
    *,
    config: ProbeConfig | None = None,
    n_untrained: int = 1,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Measure description lengths: how much do activations shorten a code for the labels?

    The code is the online code of Voita and Titov (2020). A probe's accuracy says whether the probe reads a feature;
    the code length also says how easily: from how few examples the probe learns it. The compression is the uniform
    code's length over the online code's: 1 says that nothing is gained.

    Example:
        `qfl mdl runs/add16 carry --steps log:10`

    Args:
        run: What to look at.
        features: Names of features whose labels are classes; by default all such with `by_default`.
        steps: As in `probe`.
        config: The probes'; `n_train` labels are sent.
        n_untrained: Untrained models as a control.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature, layer (and head) and label; lengths in bits, means over a label's outputs.

    Raises:
        QflError: Unknown feature or step, a feature of numbers, or none that is of classes.

    References:
        Voita and Titov, arXiv 2003.12298.
    """
    config = config or ProbeConfig()
    chosen = chosen_features(run, features)
    scalar = [f.name for f in chosen if PROBE_LOSS[f.kind] == "mse"]
    if features is not None and scalar:
        raise QflError(
            f"description length is defined for features that are classes, and {scalar[0]!r} is a scalar: a code for "
            "numbers needs a noise model. Use `probe`, which reports its R2."
        )
    names = [f.name for f in chosen if f.name not in scalar]
    if not names:
        raise QflError(
            f"task {run.task.name!r} has no feature of classes; description length needs one. "
            "`probe` takes features of numbers too."
        )
    pieces = [Piece(at, {"feature": name}) for at in models_at(run, steps, n_untrained) for name in names]
    rows = Mdl(run, device, config).compute(pieces, label="coding", jobs=jobs, progress=progress)
    return Result(
        f"Description length in {run.run_id}: compression at each label's best layer, mean over labels",
        _summary(rows),
        rows,
        mdl_figure,
        columns=RESULT,
        cube=Cube(("step", "layer", "head", "label"), {"source": "trained"}),
    )


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a feature and model: the mean over labels of the highest compression among layers."""
    keys = ["feature", "source", "model_seed", "step"]
    best = pd.DataFrame(rows.groupby([*keys, "label"], as_index=False)["compression"].max())
    means = pd.DataFrame(best.groupby(keys, as_index=False)["compression"].mean())
    return means.filter(["feature", "source", "step", "compression"])
