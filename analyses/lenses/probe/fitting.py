"""Probes of one feature of one model: fitted, scored, beside their controls; as rows and as tensors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qfl_interp.config import ProbeConfig
from qfl_interp.data.task import Feature
from qfl_interp.emergence.aggregation import select_layer
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
from qfl_interp.probes.feature_data import FeatureData, not_rare
from qfl_interp.seeding import generator


def fit_feature(
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
