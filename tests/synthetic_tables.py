"""Result tables shaped like a 16-bit addition run of 716 steps, for the tests of figures and report.

The values are interpolated through a few known points, so that a test can name what a figure must show.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from qfl_interp.analyses.lenses.ablate.figure import ablation_figure
from qfl_interp.analyses.lenses.emergence.figure import emergence_figure
from qfl_interp.analyses.lenses.probe.figure import probe_heatmap
from qfl_interp.report.page import Section
from qfl_interp.tables import select

N_STEPS = 716
BUDGET_FLOPS = 3e12
FLOPS_PER_STEP = BUDGET_FLOPS / N_STEPS
N_LAYERS = 4
N_LABELS = 16
# The carry into bit 0 is always 0: one class, so no probe can be fitted there.
UNFITTED_LABEL = 0
TRANSITION_STEPS = (131, 232)
PLATEAU_LOSS = 0.651

LOSS_POINTS = {0: 1.6, 5: 1.2, 30: 0.69, 90: 0.657, 130: 0.627, 160: 0.288, 240: 0.002, 716: 0.0004}
FEATURE_POINTS = {
    "first_operand": {0: 0.53, 20: 0.51, 90: 0.44, 130: 0.42, 140: 0.39, 240: 0.37, 716: 0.36},
    "carry": {0: 0.23, 30: 0.205, 90: 0.136, 130: 0.059, 140: 0.016, 240: 0.004, 716: 0.003},
}
THIRDS = {"beginning": 1.12, "middle": 1.0, "end": 0.86}


def checkpoint_steps() -> list[int]:
    """Log-spaced steps below 100, then linear, with step 0 and the last."""
    spaced = np.unique(np.geomspace(1, 100, 14).round().astype(int))
    return [0, *spaced.tolist(), *range(110, N_STEPS, 25), N_STEPS]


def _through(points: dict[int, float], steps: np.ndarray) -> np.ndarray:
    """Interpolates log values linearly in the step."""
    return np.exp(np.interp(steps, list(points), np.log(list(points.values()))))


def metrics() -> pd.DataFrame:
    """One row a step; validation every 10 steps, at step 0 and at the last."""
    steps = np.arange(N_STEPS + 1)
    rng = np.random.default_rng(0)
    loss = _through(LOSS_POINTS, steps)
    exact = 1 / (1 + np.exp(-(steps - 205) / 9.0))
    table = pd.DataFrame(
        {
            "step": steps,
            "flops": steps * FLOPS_PER_STEP,
            "actual_flops": steps * FLOPS_PER_STEP * 1.08,
            "lr": 1e-3 * np.minimum(steps / 72, 1) * (1 + np.cos(np.pi * steps / N_STEPS)) / 2,
            "train_loss": loss * np.exp(0.05 * rng.standard_normal(len(steps))),
            "grad_norm": 0.2 + rng.random(len(steps)),
            "val_loss": loss * 16 / 17,
            "val_loss_answer": loss,
            "val_exact": exact * 0.99,
            "val_exact_answer": exact,
            "val_pass": np.exp(-16 * loss),
            "val_pass_answer": np.exp(-16 * loss),
            "seconds": steps * 0.09,
            "tokens_per_s": 36000.0,
        }
    )
    validated = (steps % 10 == 0) | (steps == N_STEPS)
    columns = [name for name in table if str(name).startswith("val_")] + ["seconds", "tokens_per_s"]
    table.loc[~validated, columns] = np.nan
    return table


def probe(feature: str = "carry") -> pd.DataFrame:
    """Layer x label at each checkpoint, and one untrained model; one label is not fitted."""
    steps = checkpoint_steps()
    rng = np.random.default_rng(1)
    curve = dict(zip(steps, _through(FEATURE_POINTS[feature], np.array(steps)), strict=True))
    rows: list[dict[str, Any]] = []
    for source, at in [("trained", step) for step in steps] + [("untrained", 0)]:
        for layer in range(N_LAYERS):
            for label in range(N_LABELS):
                fitted = label != UNFITTED_LABEL
                depth = 1 + 0.35 * (N_LAYERS - 1 - layer) * (at > 60)
                loss = curve[at] * depth * (0.75 + 0.03 * label) * np.exp(0.05 * rng.standard_normal())
                shuffled = 0.69 + 0.01 * rng.random()
                rows.append(
                    {
                        "run_id": "add16-s0",
                        "config_hash": "c0ffee",
                        "seed": 0,
                        "settings": "5e771465",
                        "source": source,
                        "model_seed": 0,
                        "step": at,
                        "flops": at * FLOPS_PER_STEP,
                        "feature": feature,
                        "kind": "binary",
                        "metric": "log_loss",
                        "layer": layer,
                        "label": label,
                        "fitted": fitted,
                        "n_train": 10000,
                        "n_test": 1000,
                        "label_mean": 0.48 if fitted else 0.0,
                        "train_loss": loss * 0.97 if fitted else np.nan,
                        "test_loss": loss if fitted else np.nan,
                        "train_score": float(np.exp(-loss)) if fitted else np.nan,
                        "test_score": float(np.exp(-loss)) - 0.002 if fitted else np.nan,
                        "shuffled_test_loss": shuffled if fitted else np.nan,
                        "shuffled_test_score": 0.5 if fitted else np.nan,
                        "converged": fitted,
                    }
                )
    return pd.DataFrame(rows)


def emergence_curve(features: tuple[str, ...] = ("first_operand", "carry")) -> pd.DataFrame:
    """Each feature's three thirds at each checkpoint, with both controls."""
    steps = np.array(checkpoint_steps())
    parts = []
    for feature in features:
        points = FEATURE_POINTS[feature]
        for third, factor in THIRDS.items():
            values = _through(points, steps) * factor
            parts.append(
                pd.DataFrame(
                    {
                        "feature": feature,
                        "metric": "log_loss",
                        "third": third,
                        "step": steps,
                        "flops": steps * FLOPS_PER_STEP,
                        "geometric": values,
                        "arithmetic": values * 1.03,
                        "baseline_geometric": points[0] * factor,
                        "baseline_arithmetic": points[0] * factor * 1.03,
                        "shuffled_geometric": 0.695,
                        "n_labels": 5,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def emergence(found: bool = True) -> pd.DataFrame:
    """One verdict a feature and third: the carry is quiet, the first operand is not learned at the end."""
    rows = []
    plans = [
        ("first_operand", "beginning", "loud", 150.0, -0.06, -0.09, -0.02, 0.91),
        ("first_operand", "middle", "loud", 146.0, -0.05, -0.08, 0.01, 0.88),
        ("first_operand", "end", "not learned", np.nan, np.nan, np.nan, np.nan, 0.97),
        ("carry", "beginning", "quiet", 84.0, 0.19, 0.14, 0.26, 0.31),
        ("carry", "middle", "quiet", 81.0, 0.21, 0.15, 0.28, 0.27),
        ("carry", "end", "quiet", 76.0, 0.24, 0.17, 0.30, 0.24),
    ]
    for feature, third, verdict, onset, lead, low, high, fraction in plans:
        timed = found and np.isfinite(onset)
        rows.append(
            {
                "feature": feature,
                "metric": "log_loss",
                "third": third,
                "verdict": verdict if found else "no transition",
                "certain": third != "middle" or feature == "carry",
                "onset_flops": onset * FLOPS_PER_STEP,
                "onset_step_before": onset - 4,
                "onset_step_after": onset + 10,
                "lead_log10": lead if timed else np.nan,
                "lead_low": low if timed else np.nan,
                "lead_high": high if timed else np.nan,
                "n_bootstrap": 1000,
                "baseline": FEATURE_POINTS[feature][0] * THIRDS[third],
                "best": FEATURE_POINTS[feature][716] * THIRDS[third],
                "fraction_at_start": fraction if found else np.nan,
                "transition_found": found,
                "transition_start_flops": TRANSITION_STEPS[0] * FLOPS_PER_STEP if found else np.nan,
                "transition_end_flops": TRANSITION_STEPS[1] * FLOPS_PER_STEP if found else np.nan,
                "plateau_loss": PLATEAU_LOSS if found else np.nan,
                "final_loss": 0.0004,
                "transition_reason": "" if found else "the loss fell by less than half of its plateau",
            }
        )
    return pd.DataFrame(rows)


def ablate() -> pd.DataFrame:
    """Intact, ablated and random for two features at the last step."""
    rows = []
    plans = [
        ("first_operand", "intact", 1, 0.0004, 0.998, np.nan),
        ("first_operand", "ablated", 1, 0.91, 0.082, 0.0002),
        ("first_operand", "random", 20, 0.0021, 0.991, np.nan),
        ("carry", "intact", 1, 0.0004, 0.998, np.nan),
        ("carry", "ablated", 1, 0.42, 0.246, 0.0123),
        ("carry", "random", 20, 0.0017, 0.993, np.nan),
    ]
    for feature, condition, n_trials, loss, exact, p_value in plans:
        row: dict[str, Any] = {
            "step": N_STEPS,
            "flops": BUDGET_FLOPS,
            "feature": feature,
            "condition": condition,
        }
        row |= {"method": "written", "top_k": 1, "epsilon": 1.0, "pooled": False}
        row |= {"n_examples": 1000, "n_trials": n_trials}
        for name, value, half in [
            ("loss", loss, 0.12 * loss),
            ("exact", exact, 0.9 * exact * (1 - exact) + 0.002),
        ]:
            for suffix, factor in [("", 0.97 if name == "loss" else 1.0), ("_answer", 1.0)]:
                row[f"{name}{suffix}"] = value * factor
                row[f"{name}{suffix}_low"] = (value - half) * factor
                row[f"{name}{suffix}_high"] = min((value + half) * factor, 1.0 if name == "exact" else np.inf)
        row |= {"p_value_paired": p_value, "p_value_trials": 1 / 21 if condition == "ablated" else np.nan}
        row["p_value_holm"] = 2 * p_value
        rows.append(row)
    return pd.DataFrame(rows)


def card() -> dict[str, Any]:
    """The run's card."""
    return {
        "run_id": "add16-s0",
        "path": "add16",
        "task": "addition",
        "length": 16,
        "model": {"d_model": 64, "n_layers": 4, "n_heads": 4, "normalization": "RMS", "act_fn": "silu"},
        "train": {
            "budget_flops": BUDGET_FLOPS,
            "lr": 1e-3,
            "batch_size": 64,
            "seed": 0,
            "schedule": "cosine",
        },
        "n_parameters": 198_400,
        "n_steps": N_STEPS,
        "budget_flops": BUDGET_FLOPS,
        "actual_flops": BUDGET_FLOPS * 1.08,
        "val_loss": 0.00038,
        "val_exact": 0.998,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformer_lens": "3.9.0"},
        "device": "cpu",
        "git_commit": "eaeed11",
        "seed": 0,
        "started": "2026-01-31T12:00:00Z",
        "seconds": 64.3,
    }


_RUN: dict[str, Any] = {"run_id": "add16-s0", "config_hash": "c0ffee", "seed": 0, "settings": "5e771465"}
LENS_STEPS = (0, 35, 110, 210, N_STEPS)
# A 3-bit sum: the pairs differ in the bit at position 1 alone.
PATCH_TOKENS = ("0", "·", "1", "+", "·", "·", "·", "=", "·", "·", "·", "·")


def patch(components: tuple[str, ...] = ("resid_pre", "attn_out"), steps: tuple[int, ...] = LENS_STEPS) -> pd.DataFrame:
    """The clean bit moves from where it differs (position 1) to where it is answered (7); nothing at step 0."""
    rng = np.random.default_rng(2)
    rows: list[dict[str, Any]] = []
    for step in steps:
        grown = 1 / (1 + np.exp(-(step - 170) / 30.0))
        for component in components:
            heads = range(2) if component in ("z", "q", "k", "v") else (-1,)
            for layer, head, position in itertools.product(range(N_LAYERS), heads, range(len(PATCH_TOKENS))):
                early, late = (1 - layer / 3, layer / 3) if component == "resid_pre" else (0.1, 0.25 * layer)
                value = (early * (position == 1) + late * (position == 7)) * (0.3 + 0.7 * (head != 0))
                value += 0.05 * rng.standard_normal() * (position > 0)
                defined = step > 0
                rows.append(
                    {
                        **_RUN,
                        "step": step,
                        "flops": step * FLOPS_PER_STEP,
                        "feature": "carry",
                        "label": 2,
                        "component": component,
                        "layer": layer,
                        "head": head,
                        "position": position,
                        "token": PATCH_TOKENS[position],
                        "logit_diff": (-4 + 9 * value) * grown,
                        "loss": (6 - 5.5 * value) * grown,
                        "exact": max(min(value, 1.0), 0.0) * grown,
                        "logit_diff_normalised": value if defined else np.nan,
                        "loss_normalised": 0.9 * value if defined else np.nan,
                        "exact_normalised": value**2 if defined else np.nan,
                        "logit_diff_low": value - 0.04 if defined else np.nan,
                        "logit_diff_high": value + 0.03 if defined else np.nan,
                        "attribution": 1.1 * value + 0.04 * rng.standard_normal() if defined else np.nan,
                        "attribution_r": 0.971 if component == "resid_pre" else 0.893,
                        "n_pairs": 200,
                        "logit_diff_clean": 5 * grown,
                        "logit_diff_corrupted": -4 * grown,
                    }
                )
    return pd.DataFrame(rows)


def interchange(labels: tuple[int, ...] = (1, 2), steps: tuple[int, ...] = LENS_STEPS) -> pd.DataFrame:
    """Swapping the feature's direction flips the answer more the deeper the layer; random directions do not."""
    rows: list[dict[str, Any]] = []
    for step, label, layer in itertools.product(steps, labels, range(N_LAYERS)):
        grown = 1 / (1 + np.exp(-(step - 170) / 30.0))
        levels = {"none": 0.02, "random": 0.04, "feature": 0.25 + 0.2 * layer, "mean_shift": 0.3, "whole": 0.97}
        for condition, level in levels.items():
            flipped = level * grown + 0.001 * label
            rows.append(
                {
                    **_RUN,
                    "step": step,
                    "flops": step * FLOPS_PER_STEP,
                    "feature": "carry",
                    "label": label,
                    "layer": layer,
                    "condition": condition,
                    "n_directions": 1,
                    "flipped": flipped,
                    "flipped_low": max(flipped - 0.05, 0.0),
                    "flipped_high": min(flipped + 0.04, 1.0),
                    "logit_diff_normalised": flipped * 0.9,
                    "logit_diff_low": flipped * 0.9 - 0.03,
                    "logit_diff_high": flipped * 0.9 + 0.03,
                    "n_pairs": 300,
                    "p_value_paired": 0.001 * (1 + layer) if condition == "feature" else np.nan,
                    "p_value_holm": 0.004 * (1 + layer) if condition == "feature" else np.nan,
                }
            )
    return pd.DataFrame(rows)


def transfer(steps: tuple[int, ...] | None = None, metric: str = "log_loss") -> pd.DataFrame:
    """The direction turns once, at step 150: probes from either side fail on the other."""
    chosen = np.array(checkpoint_steps()[::2] if steps is None else steps)
    rows: list[dict[str, Any]] = []
    for fit, at in itertools.product(chosen.tolist(), chosen.tolist()):
        own = float(_through(FEATURE_POINTS["carry"], np.array([at]))[0])
        turned = (fit < 150) != (at < 150)
        distance = abs(np.log1p(fit) - np.log1p(at))
        rows.append(
            {
                **_RUN,
                "feature": "carry",
                "metric": metric,
                "fit_step": fit,
                "eval_step": at,
                "fit_flops": fit * FLOPS_PER_STEP,
                "eval_flops": at * FLOPS_PER_STEP,
                "test_loss": own * (1 + 0.5 * distance) + 2.0 * turned,
                "test_score": 0.5 if turned else float(np.exp(-own * (1 + 0.5 * distance))),
                "refit_loss": own,
                "cosine": float(np.exp(-0.3 * distance)) * (0.2 if turned else 1.0),
                "n_labels": 15,
            }
        )
    return pd.DataFrame(rows)


def mdl(features: tuple[str, ...] = ("carry", "first_operand")) -> pd.DataFrame:
    """Compression grows with training, most in the last layer; two untrained models; one label is not coded."""
    rows: list[dict[str, Any]] = []
    models = [("trained", 0, step) for step in LENS_STEPS] + [("untrained", seed, 0) for seed in (11, 12)]
    for (source, seed, step), feature in itertools.product(models, features):
        for layer, label in itertools.product(range(N_LAYERS), range(8)):
            gained = 12 / (1 + np.exp(-(step - 130) / 25.0)) if source == "trained" else 0.01 * (seed - 10)
            gained *= 1.0 if feature == "carry" else 0.3
            compression = 1.1 + gained * (0.4 + 0.2 * layer) * (1 - 0.03 * label)
            coded = label != UNFITTED_LABEL
            rows.append(
                {
                    **_RUN,
                    "source": source,
                    "model_seed": seed,
                    "step": step,
                    "flops": step * FLOPS_PER_STEP,
                    "feature": feature,
                    "layer": layer,
                    "head": -1,
                    "label": label,
                    "codelength_bits": 10000 / compression if coded else np.nan,
                    "uniform_bits": 10000.0 if coded else np.nan,
                    "compression": compression if coded else np.nan,
                    "n_train": 10000 if coded else 0,
                }
            )
    return pd.DataFrame(rows)


def ablate_over_steps(conditions: tuple[str, ...] = ("intact", "ablated", "random", "random_feature", "same_norm")):
    """The ablation at several steps with every control: the feature's removal bites once the model answers."""
    one = ablate()
    extra = [
        select(one, condition="random").assign(condition=name, p_value_trials=np.nan)
        for name in ("random_feature", "same_norm")
    ]
    rows = pd.concat([one, *extra], ignore_index=True)
    rows = rows[rows["condition"].isin(conditions)]
    columns = [f"exact{ending}{end}" for ending in ("", "_answer") for end in ("", "_low", "_high")]
    parts = []
    for step in LENS_STEPS:
        part = rows.assign(step=step, flops=step * FLOPS_PER_STEP, **_RUN)
        part[columns] *= 1 / (1 + np.exp(-(step - 200) / 15.0))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def ablate_units(name: str = "z", steps: tuple[int, ...] = (210, N_STEPS)) -> pd.DataFrame:
    """Head 1 of layer 2 matters most; neurons fall off with their number."""
    n_units = 4 if name == "z" else 64
    rows: list[dict[str, Any]] = []
    for step, layer, unit in itertools.product(steps, range(N_LAYERS), range(n_units)):
        increase = 0.02 * ((layer * 7 + unit * 3) % 5) - 0.01 + 1.4 * ((layer, unit) == (2, 1))
        if name != "z":
            increase /= 1 + unit
        increase *= step / N_STEPS
        rows.append(
            {
                **_RUN,
                "step": step,
                "flops": step * FLOPS_PER_STEP,
                "name": name,
                "method": "mean",
                "layer": layer,
                "unit": unit,
                "loss_answer": 0.0004 + increase,
                "exact_answer": float(np.exp(-max(increase, 0))),
                "loss_increase": increase,
                "loss_increase_low": increase - 0.01,
                "loss_increase_high": increase + 0.02,
                "p_value_holm": 0.003 if increase > 0.05 else 0.4,
            }
        )
    return pd.DataFrame(rows)


def sections() -> list[Section]:
    """A report's sections of the tables above: three figures, two tables, links."""
    limits = "One run is one seed. https://arxiv.org/abs/2505.03997 (arXiv 2505.03997)"
    return [
        Section(
            "Timeline",
            figure=emergence_figure(metrics(), emergence_curve(), emergence()),
            downloads={"validation": metrics(), "emergence_curve": emergence_curve()},
        ),
        Section("Verdicts", table=emergence(), downloads={"emergence": emergence()}),
        Section("Probes: carry", figure=probe_heatmap(probe(), "carry"), note="A *slider* over steps."),
        Section("Ablation", figure=ablation_figure(ablate()), table=ablate(), downloads={"ablate": ablate()}),
        Section("Limits", text=limits),
    ]
