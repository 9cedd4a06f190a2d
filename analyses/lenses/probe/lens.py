"""Which features probes read in the model, at which step, layer and position; with the controls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import torch
from plotly.graph_objects import Figure
from torch import Tensor

from qfl_interp.activations.spans import SiteSpan, site_span
from qfl_interp.activations.store import ActivationStore, store_of
from qfl_interp.analyses.choose import chosen_features, next_token_note
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.lenses.probe.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.probe.data import (
    TABLE,
    ProbeData,
    part_name,
    place_columns,
    probe_data,
    read_span,
    store_key,
)
from qfl_interp.analyses.lenses.probe.figure import probe_heatmap
from qfl_interp.analyses.lenses.probe.findings import findings
from qfl_interp.analyses.lenses.probe.fitting import fit_feature
from qfl_interp.analyses.models_at import ModelAt, models_at
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.config import ProbeConfig
from qfl_interp.data.next_token import next_token_labels
from qfl_interp.models.build import HookedModel
from qfl_interp.probes.feature_data import feature_data
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.shapes import Examples
from qfl_interp.tables import distinct, select


class _Spans(NamedTuple):
    """One model's activations on the probes' examples; None where no penalty is chosen."""

    train: SiteSpan
    test: SiteSpan
    validation: SiteSpan | None


@dataclass(frozen=True)
class Probe(PartLens[ProbeData, _Spans]):
    """A part a model and feature."""

    config: ProbeConfig = field(default_factory=ProbeConfig)
    store: bool = False

    name = TABLE
    question = "Which features do probes read in the model, where, and when?"
    tables, result = TABLES, RESULT
    order = 20
    by = ("feature", "site")
    call_column = "settings"
    of_probes = True
    methods = """
    - **Probes** are linear read-outs of the residual stream after each layer, at the position the feature
      belongs to. They are fitted on fresh examples and scored on other fresh examples. For each label the layer
      with the lowest training loss is taken and its test loss reported.
    - **Probe losses** are log losses in nats for binary and multilabel features, mean squared errors for numbers.
    - **Controls**: dotted lines are the same probes on an untrained model of the same shape; thin lines are
      probes trained on shuffled labels.
    """
    limits = """
    - A label that the very next token gives away (the titles name them) is decodable in the last layers of any model
      that predicts well; that it is found there says nothing of how the model gets there.
    - A linear probe finds what is linearly decodable at one position; it neither shows that the model uses the
      feature (ablation and interchange ask that) nor that a feature it misses is absent.
    - A probe's direction is one that the label can be read along; it need not be the one that the model itself
      writes or reads. Removing or swapping it may then do little although the model uses the feature.
    """

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return probe_heatmap(rows, str(rows["feature"].iloc[0]), step=step, slider=False)

    def part(self, piece: Piece) -> str:
        return part_name(piece.at, piece.key["feature"], self.config)

    def share(self) -> ProbeData:
        return probe_data(self.run, self.config)

    def view(self, shared: ProbeData, at: ModelAt) -> _Spans:
        # Loaded when activations are computed, not when they are read from the store.
        load = functools.cache(lambda: at.load(self.run, self.device))
        kept = store_of(self.run) if self.store and at.untrained < 0 else None
        read = functools.partial(self._span, load, at, kept)
        validation = read("validation", shared.validation) if len(shared.validation) else None
        return _Spans(read("train", shared.train), read("test", shared.test), validation)

    def rows(self, shared: ProbeData, view: _Spans, piece: Piece) -> tuple[pd.DataFrame, dict[str, Tensor]]:
        feature = self.run.task.feature(piece.key["feature"])
        fit_on = feature_data(feature, view.train, shared.train)
        score_on = feature_data(feature, view.test, shared.test)
        choose_on = None if view.validation is None else feature_data(feature, view.validation, shared.validation)
        rows, tensors = fit_feature(feature, fit_on, score_on, choose_on, self.config)
        rows = rows.assign(**place_columns(view.train.places, fit_on.x.shape[1]))
        return rows.assign(next_token=rows["label"].isin(next_token_labels(self.run.task, feature.name))), tensors

    def columns(self, piece: Piece) -> dict[str, Any]:
        of_model = {"source": piece.at.source, "model_seed": piece.at.seed(self.run), **self.where(piece)}
        return of_model | {"site": self.config.site, "settings": self.config.digest()}

    def _span(
        self, load: Callable[[], HookedModel], at: ModelAt, kept: ActivationStore | None, part: str, examples: Examples
    ) -> SiteSpan:
        """The activations over all positions that some feature of the task reads.

        Not only the features asked for: another span rounds otherwise, and a part must not depend on its company.
        """
        first, last = read_span(self.run.task, examples)
        tokens, site = self.run.task.encode(examples).tokens, self.config.site
        if kept is None:
            return site_span(load(), tokens, first, last, name=site)
        key = store_key(self.run, at.step, part, examples, self.config)
        return kept.spans(key, load, tokens, first, last, names=[site], progress=False)[site]

    @classmethod
    def _rows(cls, page: Page) -> pd.DataFrame:
        """Those of the page's features and steps; on a page that computes nothing, those that are there."""
        if not page.compute:
            return cls.stored(page)
        return page.once(cls.name, lambda: probe(page.run, page.features, page.steps, **page.how).rows)

    @classmethod
    def findings(cls, page: Page) -> list[Finding]:
        rows = cls._rows(page)
        return [] if rows.empty else findings(rows)

    @classmethod
    def sections(cls, page: Page) -> list[Section]:
        rows = cls._rows(page)
        if rows.empty:
            return []
        note = (
            "Probes on the residual stream after each layer; brighter is better, and colours mean the same at "
            "every step. Move the slider or press play to go through training. A cross: no probe, the label "
            "does not vary or few examples have it."
        )
        return [
            Section(
                f"Probes: {feature.replace('_', ' ')}",
                figure=probe_heatmap(rows, feature),
                note=note,
                downloads={f"probe_{feature}": select(rows, feature=feature)},
            )
            for feature in distinct(rows, "feature")
        ]


def probe(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig | None = None,
    n_untrained: int = 2,
    store: bool = False,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Fit linear probes: which features do they read, where, and when?

    A call skips what the run's table has already. Binary and multilabel features get logistic probes,
    categorical ones softmax probes (loss: log loss in nats; score: accuracy), scalar ones least squares (loss: mean
    squared error; score: R2); column `metric` says which. One probe a layer (and head, where the site has heads) and
    label, at the token where the feature says its label is read; several outputs of a label enter the table by their
    mean. A label that fewer than 5 % of the examples have is not fitted. Controls: the same probes on shuffled labels,
    on untrained models with other initial weights, and the best constant answer. `selectivity` is the score less that
    on shuffled labels (Hewitt and Liang, arXiv 1909.03368).

    Examples:
        `qfl probe runs/add16 carry --steps log:20`,
        `qfl probe runs/add16 --site z --steps last`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: "all", "last", "log:20", "1000,2000", a step or several.
        config: Site, penalty, numbers of examples, seed.
        n_untrained: Untrained models to probe as a control.
        store: Keep the checkpoints' activations in the run's folder `activations`, for the next analysis of them.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature, layer, head (-1 where the site has none) and label. `next_token`: the label is a
        function of the token that the model writes next where it is read, so whoever predicts well has it.

    Raises:
        QflError: Unknown feature or step, or the model has no such site.
    """
    config = config or ProbeConfig()
    names = [feature.name for feature in chosen_features(run, features)]
    lens = Probe(run, device, config, store)
    pieces = [Piece(at, {"feature": name}) for at in models_at(run, steps, n_untrained) for name in names]
    rows = lens.compute(pieces, label="probing", jobs=jobs, progress=progress)
    return Result(
        f"Probes of {run.run_id} ({config.site}): test loss of each label's best layer, mean over labels"
        + next_token_note(run, names),
        _summary(rows),
        rows,
        probe_heatmap,
        one_of=("feature",),
        columns=RESULT,
        cube=Cube(("step", "layer", "head", "label"), {"source": "trained"}),
        of=run.label,
    )


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a feature and model: the mean over labels of the best place's scores; NaN where no label was fitted."""
    fitted = rows[rows["fitted"]]
    keys = ["feature", "source", "model_seed", "step", "label"]
    best = fitted.loc[fitted.groupby(keys)["train_loss"].idxmin()]
    columns = ["test_loss", "test_score", "selectivity", "majority_test_loss"]
    means = best.groupby(keys[:-1], as_index=False)[columns].mean()
    n_places = len(rows[["layer", "head"]].drop_duplicates())
    skipped = rows.groupby(keys[:-1], as_index=False).agg(
        one_class=("fitted", lambda f: int((~f).sum()) // n_places),
        not_converged=("converged", lambda c: int((~c).sum())),
    )
    merged = skipped.merge(means, how="left")
    return merged.reindex(columns=["feature", "source", "step", *columns, "one_class", "not_converged"])
