"""How much a model's activations shorten the description of a feature's labels: minimum description length probing."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from analyses.checkpoints import over_checkpoints
from analyses.lenses.mdl.figure import mdl_figure
from analyses.lenses.probe.lens import (
    ProbeData,
    feature_data,
    not_rare,
    part_name,
    place_columns,
    probe_data,
    read_span,
)
from analyses.models_at import ModelAt, models_at
from analyses.result import Result, chosen_features
from qfl_interp.activations.spans import site_span
from qfl_interp.config import ProbeConfig
from qfl_interp.errors import QflError
from qfl_interp.probes import PROBE_LOSS, online_code
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import select

LENS = "mdl"


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

    The code is the online code of Voita and Titov (2020). A probe's accuracy says whether a feature can be read; the
    code length says also how easily: from how few examples the probe learns it. The compression is the uniform code's
    length over the online code's: 1 says nothing is gained.

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
        raise QflError(f"task {run.task.name!r} has no feature of classes; description length needs one.")
    wanted, table = models_at(run, steps, n_untrained), run.table(LENS)
    missing = [at for at in wanted if not all(table.has(part_name(str(at), name, config)) for name in names)]
    work = functools.partial(_describe_at, run, names, config, device)
    over_checkpoints(
        missing, functools.partial(probe_data, run, config), work, label="coding", jobs=jobs, progress=progress
    )
    rows = table.read([part_name(str(at), name, config) for at in wanted for name in names])
    return Result(
        f"Description length in {run.run_id}: compression at each label's best layer, mean over labels",
        _summary(rows),
        rows,
        lambda: mdl_figure(select(rows, feature=names[0])),
    )


def _describe_at(
    run: Checkpoints,
    features: Sequence[str],
    config: ProbeConfig,
    device: str | torch.device,
    data: ProbeData,
    at: ModelAt,
) -> None:
    """Code the labels at one model and write what is missing."""
    model = at.load(run, device)
    tokens = run.task.encode(data.train).tokens
    span = site_span(model, tokens, *read_span(run.task, data.train), name=config.site)
    table = run.table(LENS)
    for name in features:
        if table.has(part_name(str(at), name, config)):
            continue
        feature = run.task.feature(name)
        train = not_rare(feature_data(feature, span, data.train))
        code = online_code(feature.kind, train.x, train.y, config, example_mask=train.kept)
        values = {"codelength_bits": code.codelength, "uniform_bits": code.uniform, "compression": code.compression}
        places = place_columns(span.places, train.x.shape[1])
        rows = pd.DataFrame(
            {
                "source": at.source,
                "model_seed": at.seed(run),
                "step": at.step,
                "flops": run.flops(at.step),
                "feature": name,
                **places,
                **{key: value.nanmean(dim=2).flatten().numpy() for key, value in values.items()},
                "n_train": np.tile(train.kept.sum(dim=1).numpy(), len(span.places)),
            }
        )
        table.write(
            part_name(str(at), name, config),
            rows.assign(**run.identity(), site=config.site, settings=config.digest(), analysis=config.digest()),
        )


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a feature and model: the mean over labels of the highest compression among layers."""
    keys = ["feature", "source", "model_seed", "step"]
    best = pd.DataFrame(rows.groupby([*keys, "label"], as_index=False)["compression"].max())
    means = pd.DataFrame(best.groupby(keys, as_index=False)["compression"].mean())
    return means.filter(["feature", "source", "step", "compression"])
