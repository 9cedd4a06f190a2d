"""Which features can be read off the residual stream, at which step, layer and position; with the controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.result import Result, chosen_features, identity
from qfl_interp.activations import ResidSpan, resid_span
from qfl_interp.aggregation import select_layer
from qfl_interp.config import ProbeConfig
from qfl_interp.data import held_out
from qfl_interp.errors import QflError
from qfl_interp.model import HookedTransformer, build_model
from qfl_interp.plots import probe_heatmap
from qfl_interp.probes import LogisticProbes, RegressionProbes, fit_logistic, fit_regression, shuffle_labels
from qfl_interp.progress import progress_bar
from qfl_interp.run import Run, Steps
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples
from qfl_interp.task import NO_POSITION, Feature, Task

# What the probes of each kind minimise and are judged by; a multilabel feature is one probe an output.
PROBE_LOSS = {"binary": "log_loss", "multilabel": "log_loss", "scalar": "mse"}
# A label that a smaller share of the training examples has is not fitted: there would be more weights than data.
_MIN_SHARE = 0.05
LENS = "probe"


class ProbeData(NamedTuple):
    """The fixed examples of all probes of one run; disjoint from its training stream and from each other."""

    train: Examples
    test: Examples


def probe_data(run: Run, config: ProbeConfig) -> ProbeData:
    """Examples to fit on, from the split "val", and to score on, from "test"; fewer where a split holds fewer."""
    return ProbeData(
        held_out(run.task, "val", config.n_train, seed=config.seed, stream="probe"),
        held_out(run.task, "test", config.n_test, seed=config.seed, stream="probe"),
    )


def part_name(at: str, feature: str, config: ProbeConfig) -> str:
    """The table part of one model and feature under one configuration."""
    return f"{at}-{feature}-{config.digest()}"


def trained_at(step: int) -> str:
    """How a part names the trained model at a step."""
    return f"step_{step:08d}"


def probe(
    run: Run,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig | None = None,
    n_untrained: int = 2,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Fit linear probes for features at checkpoints; what is in the run's table already is not fitted again.

    Binary and multilabel features get logistic probes (loss: log loss in nats; score: accuracy), scalar ones least
    squares (loss: mean squared error; score: R2); column `metric` says which. One probe a layer and label, on the
    residual stream after the block (`resid_post`), at the token where the feature says its label is read; several
    outputs of a label enter the table by their mean. A label that fewer than 5 % of the examples have is not fitted.
    Controls: the same probes on shuffled labels, and on untrained models with other initial weights.

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: "all", "last", "log:20", "1000,2000", a step or several.
        config: Penalty, numbers of examples, seed.
        n_untrained: Untrained models to probe.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature, layer and label.

    Raises:
        QflError: Unknown feature or step, or a kind that the probes cannot read.
    """
    config = config or ProbeConfig()
    chosen = chosen_features(run, features)
    for feature in chosen:
        if feature.kind not in PROBE_LOSS:
            raise QflError(f"feature {feature.name!r} is {feature.kind}; probes read {', '.join(PROBE_LOSS)} so far.")
    wanted = [(trained_at(s), s) for s in run.resolve_steps(steps)]
    wanted += [(f"untrained_{i:02d}", None) for i in range(n_untrained)]
    table = run.table(LENS)
    data: ProbeData | None = None
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task("probing", total=len(wanted), detail="")
        for at, step in wanted:
            missing = [f for f in chosen if not table.has(part_name(at, f.name, config))]
            if missing:
                data = data or probe_data(run, config)
                model, seed = _model_at(run, at, step)
                for feature, (rows, tensors) in probe_model(
                    model.to(device, print_details=False), run.task, missing, data, config
                ):
                    where = {
                        "source": "untrained" if step is None else "trained",
                        "model_seed": seed,
                        "step": step or 0,
                        "flops": run.flops(step or 0),
                        "settings": config.digest(),
                    }
                    named = rows.assign(**identity(run), **where)
                    table.write(part_name(at, feature.name, config), named, tensors)
            bar.update(shown, advance=1, detail=at)
    rows = table.read([part_name(at, f.name, config) for at, _ in wanted for f in chosen])
    return Result(
        f"Probes of {run.run_id}: test loss of each label's best layer, mean over labels",
        _summary(rows),
        rows,
        lambda: probe_heatmap(rows, chosen[0].name),
    )


def _model_at(run: Run, at: str, step: int | None) -> tuple[HookedTransformer, int]:
    """The trained model at a step, or a freshly initialised one with a seed of its own; and that seed."""
    if step is not None:
        return run.load_model(step), run.config.train.seed
    seed = int(generator(run.config.train.seed, f"probe/{at}").integers(2**31))
    return build_model(run.config.model, run.task, seed=seed), seed


def probe_model(
    model: HookedTransformer, task: Task, features: Sequence[Feature], data: ProbeData, config: ProbeConfig
) -> Iterator[tuple[Feature, tuple[pd.DataFrame, dict[str, Tensor]]]]:
    """Each feature's rows and tensors on one model; the activations are computed once for all of them.

    The tensors: `weight`, `intercept` and `fitted` of every probe, and `test_loss`, the loss of each test example under
    the probe of the label's best layer (`layer`) by training loss.
    """
    train = _span(model, task, data.train)
    test = _span(model, task, data.test)
    for feature in features:
        yield feature, _fit(feature, train, test, data, config)


def _span(model: HookedTransformer, task: Task, examples: Examples) -> ResidSpan:
    """The residual stream over all positions that some feature of the task reads.

    Not only the features asked for: another span rounds otherwise, and a part must not depend on its company.
    """
    positions = np.concatenate([f.positions(examples).ravel() for f in task.features.values()])
    read = positions[positions != NO_POSITION]
    return resid_span(model, task.encode(examples).tokens, int(read.min()), int(read.max()))


def _labels(feature: Feature, examples: Examples) -> Tensor:
    """Labels as probes want them: [output, label, example]."""
    labels = torch.from_numpy(np.ascontiguousarray(feature.labels(examples)))
    return labels[..., None].movedim(0, 2).movedim(1, 0) if labels.ndim == 2 else labels.permute(2, 1, 0)


def _fit(
    feature: Feature, train: ResidSpan, test: ResidSpan, data: ProbeData, config: ProbeConfig
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Probes of one feature, fitted and scored, with the shuffled control beside the true labels as further outputs."""
    x, present = train.read(feature.positions(data.train))
    x_test, kept_test = test.read(feature.positions(data.test))
    kept = present & (present.double().mean(dim=1, keepdim=True) >= _MIN_SHARE)
    y, y_test = _labels(feature, data.train), _labels(feature, data.test)
    n_outputs = len(y)
    if config.shuffled_control:
        y = torch.cat([y, shuffle_labels(y, generator(config.seed, f"probe/shuffle/{feature.name}"), kept)])
        y_test = torch.cat([y_test, y_test])
    if PROBE_LOSS[feature.kind] == "mse":
        fitted = fit_regression(x, y, example_mask=kept)
    else:
        fitted = fit_logistic(x, y, c=config.c, max_iter=config.max_iter, example_mask=kept)
    scores = fitted.score(x_test, y_test, example_mask=kept_test)
    rows = _rows(feature, fitted, scores, y[:n_outputs], present, kept_test)
    layer = select_layer(_over_outputs(fitted.train[0], slice(n_outputs)).numpy())
    losses = fitted.example_loss(x_test, y_test, kept_test)[:, :, :n_outputs].nanmean(dim=2)
    tensors = {
        "weight": fitted.weight[:, :, :n_outputs].float(),
        "intercept": fitted.intercept[:, :, :n_outputs].float(),
        "fitted": fitted.fitted[:, :, :n_outputs],
        # NaN where the example has no such label.
        "test_loss": losses[np.maximum(layer, 0), np.arange(len(layer))].float(),
        "layer": torch.from_numpy(layer.astype(np.int64)),
    }
    return rows, tensors


def _over_outputs(metric: Tensor, outputs: slice) -> Tensor:
    """The mean over a label's fitted outputs; NaN where none was fitted."""
    return metric[:, :, outputs].nanmean(dim=2)


def _rows(
    feature: Feature,
    probes: LogisticProbes | RegressionProbes,
    scores: tuple[Tensor, Tensor],
    y: Tensor,
    kept: Tensor,
    kept_test: Tensor,
) -> pd.DataFrame:
    """One row a layer and label; several outputs enter by their mean. Scores are pairs (loss, score)."""
    real, control = slice(len(y)), slice(len(y), None)
    n_layers, n_labels = probes.fitted.shape[:2]
    layer, label = (index.ravel() for index in np.indices((n_layers, n_labels)))
    mean_label = (y * kept).sum(dim=(0, 2)) / (kept.sum(dim=1) * len(y))

    def by_site(values: Tensor) -> np.ndarray:
        return values.expand(n_layers, n_labels).reshape(-1).numpy()

    has_control = probes.fitted.shape[2] > len(y)
    missing = torch.full((n_layers, n_labels), torch.nan)
    shuffled = [_over_outputs(s, control) if has_control else missing for s in scores]
    converged = probes.converged | ~probes.fitted if isinstance(probes, LogisticProbes) else probes.fitted | True
    return pd.DataFrame(
        {
            "feature": feature.name,
            "kind": feature.kind,
            "metric": PROBE_LOSS[feature.kind],
            "layer": layer,
            "label": label,
            "fitted": by_site(probes.fitted[:, :, real].any(dim=2)),
            "converged": by_site(converged.all(dim=2)),
            "n_train": by_site(kept.sum(dim=1)),
            "n_test": by_site(kept_test.sum(dim=1)),
            "label_mean": by_site(mean_label),
            "train_loss": by_site(_over_outputs(probes.train[0], real)),
            "test_loss": by_site(_over_outputs(scores[0], real)),
            "train_score": by_site(_over_outputs(probes.train[1], real)),
            "test_score": by_site(_over_outputs(scores[1], real)),
            "shuffled_test_loss": by_site(shuffled[0]),
            "shuffled_test_score": by_site(shuffled[1]),
        }
    )


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a feature and model: the mean over labels of the best layer's scores; NaN where no label was fitted."""
    fitted = rows[rows["fitted"]]
    keys = ["feature", "source", "model_seed", "step", "label"]
    best = fitted.loc[fitted.groupby(keys)["train_loss"].idxmin()]
    columns = ["test_loss", "test_score", "shuffled_test_loss", "shuffled_test_score"]
    means = best.groupby(keys[:-1], as_index=False)[columns].mean()
    n_layers = rows["layer"].nunique()
    skipped = rows.groupby(keys[:-1], as_index=False).agg(
        one_class=("fitted", lambda f: int((~f).sum()) // n_layers),
        not_converged=("converged", lambda c: int((~c).sum())),
    )
    merged = skipped.merge(means, how="left")
    return merged.reindex(columns=["feature", "source", "step", *columns, "one_class", "not_converged"])
