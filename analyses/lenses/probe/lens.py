"""Which features can be read off the model, at which step, layer and position; with the controls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.choose import chosen_features
from analyses.lenses.probe.data import (
    TABLE,
    FeatureData,
    ProbeData,
    dataset_name,
    feature_data,
    not_rare,
    part_name,
    place_columns,
    probe_data,
    read_span,
)
from analyses.lenses.probe.figure import probe_heatmap
from analyses.models_at import ModelAt, models_at
from analyses.part_lens import PartLens, Piece
from analyses.result import Result
from qfl_interp.activations.spans import SiteSpan, site_span
from qfl_interp.activations.store import ActivationStore
from qfl_interp.activations.store_entry import StoreKey
from qfl_interp.config import ProbeConfig
from qfl_interp.data.task import Feature
from qfl_interp.emergence.aggregation import select_layer
from qfl_interp.models.build import HookedModel
from qfl_interp.probes import (
    PROBE_LOSS,
    Probes,
    ProbeScores,
    Validation,
    fit_probes,
    majority_scores,
    mean_shift,
    pool_labels,
    share_labels,
    shuffle_labels,
)
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples


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
    question = "Which features can be read off the model, where, and when?"
    order = 20

    def part(self, piece: Piece) -> str:
        return part_name(piece.at, piece.key["feature"], self.config)

    def share(self) -> ProbeData:
        return probe_data(self.run, self.config)

    def view(self, shared: ProbeData, at: ModelAt) -> _Spans:
        # Loaded when activations are computed, not when they are read from the store.
        load = functools.cache(lambda: at.load(self.run, self.device))
        kept = ActivationStore(self.run.path / "activations") if self.store and at.untrained < 0 else None
        read = functools.partial(self._span, load, at, kept)
        validation = read("validation", shared.validation) if len(shared.validation) else None
        return _Spans(read("train", shared.train), read("test", shared.test), validation)

    def rows(self, shared: ProbeData, view: _Spans, piece: Piece) -> tuple[pd.DataFrame, dict[str, Tensor]]:
        feature = self.run.task.feature(piece.key["feature"])
        fit_on, score_on = (
            feature_data(feature, view.train, shared.train),
            feature_data(feature, view.test, shared.test),
        )
        choose_on = None if view.validation is None else feature_data(feature, view.validation, shared.validation)
        rows, tensors = _fit(feature, fit_on, score_on, choose_on, self.config)
        return rows.assign(**place_columns(view.train.places, fit_on.x.shape[1])), tensors

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
        key = StoreKey(self.run.run_id, at.step, dataset_name(part, examples, self.config))
        return kept.spans(key, load, tokens, first, last, names=[site], progress=False)[site]


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
    """Fit linear probes: which features can be read off the model, where, and when.

    What is in the run's table already is not fitted again. Binary and multilabel features get logistic probes,
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
        One row a step, feature, layer, head (-1 where the site has none) and label.

    Raises:
        QflError: Unknown feature or step, or the model has no such site.
    """
    config = config or ProbeConfig()
    names = [feature.name for feature in chosen_features(run, features)]
    lens = Probe(run, device, config, store)
    pieces = [Piece(at, {"feature": name}) for at in models_at(run, steps, n_untrained) for name in names]
    rows = lens.compute(pieces, label="probing", jobs=jobs, progress=progress)
    return Result(
        f"Probes of {run.run_id} ({config.site}): test loss of each label's best layer, mean over labels",
        _summary(rows),
        rows,
        lambda: probe_heatmap(rows, names[0]),
    )


def _fit(
    feature: Feature, train: FeatureData, test: FeatureData, validation: FeatureData | None, config: ProbeConfig
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Probes of one feature, fitted and scored, with the shuffled control beside the true labels as further outputs.

    The tensors: what `load_probes` needs; `mean_shift`; and `test_loss`, the loss of each test example under the probe
    of the label's best place (`place`) by training loss.
    """
    n_outputs = len(train.y)
    control = generator(config.seed, f"probe/shuffle/{feature.name}") if config.shuffled_control else None
    common = not_rare(train)
    fitted_on = _with_control(common, control)
    chosen_on = None if validation is None else Validation(*_with_control(validation, control))
    probes = _probes(feature, fitted_on, chosen_on, config)
    scored = FeatureData(test.x, torch.cat([test.y] * (len(fitted_on.y) // n_outputs)), test.kept)
    scores = probes.score(*scored)
    train_scores = probes.score(*fitted_on) if config.pooled else probes.train
    rows = _rows(feature, probes, train_scores, scores, train, scored)
    place = select_layer(_over_outputs(train_scores.loss, slice(n_outputs)).numpy())
    losses = probes.example_loss(*scored)[:, :, :n_outputs].nanmean(dim=2)
    tensors = {
        **probes.tensors(slice(n_outputs)),
        "mean_shift": mean_shift(feature.kind, train.x, train.y, example_mask=common.kept).float(),
        # NaN where the example has no such label.
        "test_loss": losses[np.maximum(place, 0), np.arange(len(place))].float(),
        "place": torch.from_numpy(place.astype(np.int64)),
    }
    return rows, tensors


def _with_control(data: FeatureData, rng: np.random.Generator | None) -> FeatureData:
    """The labels with shuffled copies of them as further outputs."""
    return data if rng is None else data._replace(y=torch.cat([data.y, shuffle_labels(data.y, rng, data.kept)]))


def _probes(feature: Feature, train: FeatureData, validation: Validation | None, config: ProbeConfig) -> Probes:
    """The probes, one a label, or one for all where they are pooled."""
    if not config.pooled:
        return fit_probes(feature.kind, train.x, train.y, config, example_mask=train.kept, validation=validation)
    pooled = pool_labels(*train)
    chosen_on = None if validation is None else Validation(*pool_labels(*validation))
    probes = fit_probes(
        feature.kind, pooled.x, pooled.y, config, example_mask=pooled.example_mask, validation=chosen_on
    )
    return share_labels(probes, train.x.shape[1])


def _over_outputs(metric: Tensor, outputs: slice) -> Tensor:
    """The mean over a label's fitted outputs; NaN where none was fitted."""
    return metric[:, :, outputs].nanmean(dim=2)


def _rows(
    feature: Feature,
    probes: Probes,
    train_scores: ProbeScores,
    scores: ProbeScores,
    train: FeatureData,
    test: FeatureData,
) -> pd.DataFrame:
    """One row a place and label; several outputs enter by their mean."""
    real, control = slice(len(train.y)), slice(len(train.y), None)
    n_places, n_labels = probes.fitted.shape[:2]
    present = train.kept.sum(dim=1)
    mean_label = (train.y * train.kept).sum(dim=(0, 2)) / (present * len(train.y))
    majority = majority_scores(feature.kind, train.y, test.y[real], not_rare(train).kept, test.kept)
    missing = torch.full((n_places, n_labels), torch.nan)
    shuffled = [_over_outputs(s, control) if probes.fitted.shape[2] > len(train.y) else missing for s in scores]

    def by_site(values: Tensor) -> np.ndarray:
        return values.expand(n_places, n_labels).reshape(-1).numpy()

    test_score = _over_outputs(scores.score, real)
    return pd.DataFrame(
        {
            "feature": feature.name,
            "kind": feature.kind,
            "metric": PROBE_LOSS[feature.kind],
            "fitted": by_site(probes.fitted[:, :, real].any(dim=2)),
            "converged": by_site((probes.converged | ~probes.fitted).all(dim=2)),
            "strength": by_site(probes.strength[:, :, real].log().nanmean(dim=2).exp()),
            "n_train": by_site(present),
            "n_test": by_site(test.kept.sum(dim=1)),
            "n_unseen": by_site(probes.n_unseen(test.y, test.kept)[:, real].sum(dim=1)),
            "label_mean": by_site(mean_label),
            "train_loss": by_site(_over_outputs(train_scores.loss, real)),
            "test_loss": by_site(_over_outputs(scores.loss, real)),
            "train_score": by_site(_over_outputs(train_scores.score, real)),
            "test_score": by_site(test_score),
            "shuffled_test_loss": by_site(shuffled[0]),
            "shuffled_test_score": by_site(shuffled[1]),
            "selectivity": by_site(test_score - shuffled[1]),
            "majority_test_loss": by_site(majority.loss.nanmean(dim=1)),
            "majority_test_score": by_site(majority.score.nanmean(dim=1)),
        }
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
