"""Which features can be read off the model, at which step, layer and position; with the controls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.checkpoints import over_checkpoints
from analyses.lenses.probe.figure import probe_heatmap
from analyses.models_at import ModelAt, models_at
from analyses.result import Result, chosen_features
from qfl_interp.activations.spans import Place, SiteSpan, site_span
from qfl_interp.activations.store import ActivationStore
from qfl_interp.activations.store_entry import StoreKey
from qfl_interp.config import ProbeConfig
from qfl_interp.data.examples import held_out
from qfl_interp.data.task import NO_POSITION, Feature, Task
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

# A label that a smaller share of the training examples has is not fitted: there would be more weights than data.
_MIN_SHARE = 0.05
LENS = "probe"


class ProbeData(NamedTuple):
    """The fixed examples of all probes of one run; disjoint from its training stream and from each other.

    Attributes:
        train: What probes are fitted on.
        test: What they are scored on.
        validation: What a penalty is chosen on; no rows where none is chosen.
    """

    train: Examples
    test: Examples
    validation: Examples


def probe_data(run: Checkpoints, config: ProbeConfig) -> ProbeData:
    """Examples to fit and choose on, from the split "val", and to score on, from "test"; fewer where it holds fewer."""
    n_val = config.n_val if config.path else 0
    drawn = held_out(run.task, "val", config.n_train + n_val, seed=config.seed, stream="probe")
    n_train = len(drawn) * config.n_train // (config.n_train + n_val)
    test = held_out(run.task, "test", config.n_test, seed=config.seed, stream="probe")
    return ProbeData(drawn[:n_train], test, drawn[n_train:])


def part_name(at: str, feature: str, config: ProbeConfig) -> str:
    """The table part of one model and feature under one configuration."""
    return f"{at}-{feature}-{config.digest()}"


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
    chosen = chosen_features(run, features)
    wanted = models_at(run, steps, n_untrained)
    table = run.table(LENS)
    names = [f.name for f in chosen]
    missing = [at for at in wanted if not all(table.has(part_name(str(at), name, config)) for name in names)]
    work = functools.partial(_probe_at, run, names, config, store, device)
    over_checkpoints(
        missing, functools.partial(probe_data, run, config), work, label="probing", jobs=jobs, progress=progress
    )
    rows = table.read([part_name(str(at), name, config) for at in wanted for name in names])
    return Result(
        f"Probes of {run.run_id} ({config.site}): test loss of each label's best layer, mean over labels",
        _summary(rows),
        rows,
        lambda: probe_heatmap(rows, names[0]),
    )


def _probe_at(
    run: Checkpoints,
    features: Sequence[str],
    config: ProbeConfig,
    store: bool,
    device: str | torch.device,
    data: ProbeData,
    at: ModelAt,
) -> None:
    """Fit and write what is missing of one model."""
    table = run.table(LENS)
    lacking = [run.task.feature(name) for name in features if not table.has(part_name(str(at), name, config))]
    # Loaded when activations are computed, not when they are read from the store.
    load = functools.cache(lambda: at.load(run, device))
    kept = ActivationStore(run.path / "activations") if store and at.untrained < 0 else None
    read = functools.partial(_span, run, load, at, config=config, kept=kept)
    train, test = read("train", data.train), read("test", data.test)
    validation = read("validation", data.validation) if len(data.validation) else None
    where = {
        "source": at.source,
        "model_seed": at.seed(run),
        "step": at.step,
        "flops": run.flops(at.step),
        "site": config.site,
        "settings": config.digest(),
    }
    for feature in lacking:
        fit_on, score_on = feature_data(feature, train, data.train), feature_data(feature, test, data.test)
        choose_on = None if validation is None else feature_data(feature, validation, data.validation)
        rows, tensors = _fit(feature, fit_on, score_on, choose_on, config)
        placed = rows.assign(**place_columns(train.places, fit_on.x.shape[1]))
        table.write(part_name(str(at), feature.name, config), placed.assign(**run.identity(), **where), tensors)


def _span(
    run: Checkpoints,
    load: Callable[[], HookedModel],
    at: ModelAt,
    part: str,
    examples: Examples,
    *,
    config: ProbeConfig,
    kept: ActivationStore | None,
) -> SiteSpan:
    """The activations over all positions that some feature of the task reads.

    Not only the features asked for: another span rounds otherwise, and a part must not depend on its company.
    """
    first, last = read_span(run.task, examples)
    tokens = run.task.encode(examples).tokens
    if kept is None:
        return site_span(load(), tokens, first, last, name=config.site)
    key = StoreKey(run.run_id, at.step, dataset_name(part, examples, config))
    return kept.spans(key, load, tokens, first, last, names=[config.site], progress=False)[config.site]


def dataset_name(part: str, examples: Examples, config: ProbeConfig) -> str:
    """What the activation store calls one of the probes' sets of examples."""
    # Examples to choose on are drawn with those to fit on, which are then others.
    drawn = f"_of_{config.n_train + config.n_val}" if config.path and part != "test" else ""
    return f"probe_{part}_{len(examples)}{drawn}_seed{config.seed}"


def read_span(task: Task, examples: Examples) -> tuple[int, int]:
    """The first and the last position that some feature of the task reads in some example."""
    positions = np.concatenate([f.positions(examples).ravel() for f in task.features.values()])
    read = positions[positions != NO_POSITION]
    return int(read.min()), int(read.max())


def labels_of(feature: Feature, examples: Examples) -> Tensor:
    """Labels as probes want them: [output, label, example]."""
    # A copy: a task may hand out an array that must not be written to.
    labels = torch.from_numpy(np.array(feature.labels(examples), order="C"))
    return labels[..., None].movedim(0, 2).movedim(1, 0) if labels.ndim == 2 else labels.permute(2, 1, 0)


class FeatureData(NamedTuple):
    """One feature's activations and labels on some examples.

    Attributes:
        x: [place, label, example, d].
        y: [output, label, example].
        kept: Which examples have the label; none of those of a label that is too rare to fit.
    """

    x: Tensor
    y: Tensor
    kept: Tensor


def feature_data(feature: Feature, span: SiteSpan, examples: Examples) -> FeatureData:
    """What a feature's probes see of some examples."""
    x, present = span.read(feature.positions(examples))
    return FeatureData(x, labels_of(feature, examples), present)


def not_rare(data: FeatureData) -> FeatureData:
    """The data without labels that fewer than 5 % of the examples have."""
    return data._replace(kept=data.kept & (data.kept.double().mean(dim=1, keepdim=True) >= _MIN_SHARE))


def place_columns(places: Sequence[Place], n_labels: int) -> dict[str, np.ndarray]:
    """Columns of a table with one row a place and label."""
    return {
        "layer": np.repeat([place.layer for place in places], n_labels),
        "head": np.repeat([place.head for place in places], n_labels),
        "label": np.tile(np.arange(n_labels), len(places)),
    }


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
