"""Whether the model uses a feature: its probes' directions projected out, against random directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from analyses.probing import LENS as PROBE_LENS
from analyses.probing import part_name, probe, probe_data, trained_at
from analyses.result import Result, chosen_features, identity
from qfl_interp.ablate import AblationScores, Planes, score_ablation
from qfl_interp.activations import resid_span
from qfl_interp.aggregation import NOT_FITTED
from qfl_interp.config import ProbeConfig
from qfl_interp.errors import QflError
from qfl_interp.metrics import ExampleScores
from qfl_interp.model import HookedTransformer
from qfl_interp.plots import ablation_figure
from qfl_interp.progress import progress_bar
from qfl_interp.run import Run, Steps
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples
from qfl_interp.stats import bootstrap_mean, holm, paired_sign_flip, rank_p_value
from qfl_interp.tables import column, groups, select
from qfl_interp.task import Feature

LENS = "ablate"
_METRICS = ("loss", "loss_answer", "exact", "exact_answer")


def ablate(
    run: Run,
    features: str | Sequence[str] | None = None,
    steps: Steps = "last",
    *,
    config: ProbeConfig | None = None,
    n_trials: int = 32,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Project each label's best probe direction out of the residual stream and score loss and greedy exact match.

    For each label the layer with the lowest training loss is taken (`qfl_interp.aggregation.select_layer`); the
    projection acts after that block at the token where the label is read, in every example. The control takes out
    random directions of the same number at the same places, through the mean activation, `n_trials` times. Examples
    are the probes' test set, which neither the model nor the probes were fitted on. Probes that are missing are
    fitted first.

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: As in `probe`; the last checkpoint by default.
        config: The probes'.
        n_trials: Random controls; 19 is the fewest that can reach p = 0.05 by rank.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        Three rows a step and feature: intact, ablated, random. Intervals are 95 % percentile bootstraps over
        examples; for the random control of each example's mean over trials. p_value_paired: sign-flip test over
        examples, ablated against random mean, on the answer's exact match, two-sided. p_value_trials: rank of the
        ablated model's exact match among the trials', one-sided. p_value_holm: the paired one, Holm-corrected over
        the features of this call, step by step.

    Raises:
        QflError: Unknown feature or step, or a feature none of whose probes could be fitted.
        ValueError: `n_trials` is below 1.
    """
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {n_trials}. The paper uses 32.")
    config = config or ProbeConfig()
    chosen = chosen_features(run, features)
    at = run.resolve_steps(steps)
    table = run.table(LENS)
    parts = {(s, f.name): f"{part_name(trained_at(s), f.name, config)}-{n_trials}" for s in at for f in chosen}
    missing = [(step, f) for step in at for f in chosen if not table.has(parts[step, f.name])]
    if missing:
        lacking = sorted({step for step, _ in missing})
        probe(run, [f.name for f in chosen], lacking, config=config, n_untrained=0, device=device, progress=progress)
        examples = probe_data(run, config).test
        with progress_bar(enabled=progress) as bar:
            shown = bar.add_task("ablating", total=len(missing) * n_trials, detail="")
            for step, feature in missing:
                bar.update(shown, detail=f"{feature.name} at step {step}")
                model = run.load_model(step, device=device)
                scores = _score(run, model, step, feature, examples, config, n_trials, lambda: bar.advance(shown))
                rng = generator(config.seed, f"ablate/bootstrap/{feature.name}", step)
                rows = _rows(scores, rng).assign(
                    **identity(run), step=step, flops=run.flops(step), feature=feature.name, settings=config.digest()
                )
                table.write(parts[step, feature.name], rows)
    rows = _corrected(table.read(list(parts.values())))
    columns = [
        "step",
        "feature",
        "condition",
        "exact_answer",
        "exact_answer_low",
        "exact_answer_high",
        "loss_answer",
        "p_value_holm",
    ]
    return Result(
        f"Ablation in {run.run_id}: exact match and loss (nats) over the answer alone",
        rows.filter(columns),
        rows,
        lambda: ablation_figure(select(rows, step=at[-1])),
    )


def _score(
    run: Run,
    model: HookedTransformer,
    step: int,
    feature: Feature,
    examples: Examples,
    config: ProbeConfig,
    n_trials: int,
    on_trial: Callable[[], object],
) -> AblationScores:
    """Scores with the stored probes of this step."""
    stored = run.table(PROBE_LENS).read_tensors(part_name(trained_at(step), feature.name, config))
    layers = stored["layer"].numpy()
    labels = np.flatnonzero(layers != NOT_FITTED)
    if len(labels) == 0:
        raise QflError(f"no probe of {feature.name!r} could be fitted at step {step}: the labels do not vary.")
    best = layers[labels]
    batch = run.task.encode(examples)
    positions = feature.positions(examples)[:, labels]
    span = resid_span(model, batch.tokens, int(positions[positions >= 0].min()), int(positions.max()))
    x, kept = span.read(positions)
    at_best = x[torch.from_numpy(best), torch.arange(len(labels))]
    means = at_best.sum(dim=1) / kept.sum(dim=1, keepdim=True)
    planes = Planes(
        stored["weight"][best, labels],
        stored["intercept"][best, labels],
        best,
        torch.from_numpy(positions.copy()),
        stored["fitted"][best, labels],
    )
    rng = generator(config.seed, f"ablate/random/{feature.name}", step)
    return score_ablation(model, batch, planes, means, n_trials=n_trials, rng=rng, on_trial=on_trial)


def _columns(scores: Sequence[ExampleScores], name: str) -> np.ndarray:
    """One metric as [trial, example]."""
    return np.stack([getattr(s, name) for s in scores]).astype(float)


def _rows(scores: AblationScores, rng: np.random.Generator) -> pd.DataFrame:
    """Intact, ablated and random, with intervals and tests."""
    rows = []
    trials = {"intact": [scores.intact], "ablated": [scores.ablated], "random": scores.random}
    for condition, found in trials.items():
        row: dict[str, object] = {
            "condition": condition,
            "n_examples": len(scores.intact.loss),
            "n_trials": len(found),
            "p_value_paired": math.nan,
            "p_value_trials": math.nan,
        }
        for name in _METRICS:
            interval = bootstrap_mean(_columns(found, name).mean(axis=0), rng)
            row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row)
    ablated, random = _columns([scores.ablated], "exact_answer")[0], _columns(scores.random, "exact_answer")
    rows[1]["p_value_paired"] = paired_sign_flip(ablated, random.mean(axis=0), rng).p_value
    rows[1]["p_value_trials"] = rank_p_value(float(ablated.mean()), random.mean(axis=1), "less").p_value
    return pd.DataFrame(rows)


def _corrected(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the paired p-values corrected over the features of each step."""
    corrected = rows.assign(p_value_holm=math.nan)
    for _, part in groups(select(rows, condition="ablated"), "step"):
        corrected.loc[part.index, "p_value_holm"] = holm(column(part, "p_value_paired"))
    return corrected
