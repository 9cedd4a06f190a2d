"""Whether the model uses a feature: taken out of its activations, beside controls that disturb it as much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.choose import (
    WITHOUT_NEXT_TOKEN,
    chosen_features,
    chosen_labels,
    features_in,
    next_token_note,
    require_one_a_token,
)
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.lenses.ablate.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.ablate.conditions import AblationSettings, ablated_planes, conditions
from qfl_interp.analyses.lenses.ablate.figure import ablation_figure, ablation_over_steps_figure, ablation_panel
from qfl_interp.analyses.lenses.ablate.findings import findings
from qfl_interp.analyses.lenses.probe.data import part_name, probe_data
from qfl_interp.analyses.lenses.probe.lens import probe
from qfl_interp.analyses.models_at import ModelAt, models_at
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.analyses.stored import interval_columns, rows_of_one_call, with_holm
from qfl_interp.config import ProbeConfig
from qfl_interp.data.next_token import next_token_labels
from qfl_interp.digests import digest
from qfl_interp.interventions.scoring import score_ablation
from qfl_interp.models.build import HookedModel
from qfl_interp.models.metrics import ExampleScores
from qfl_interp.plots.conditions import ABLATION
from qfl_interp.plots.panels import Panel
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples
from qfl_interp.stats import bootstrap_mean, paired_sign_flip, rank_p_value
from qfl_interp.tables import column, distinct, groups, select, titled

# What each method takes out, in words.
_TAKEN = {
    "written": "the directions along which the mean activation moves with it (differences of class means)",
    "project_out": "its probe's directions",
    "zero": "the whole activation where it is read (set to zero)",
    "mean": "the whole activation where it is read (set to its mean)",
    "resample": "the whole activation where it is read (another example's)",
}
METHODS = tuple(_TAKEN)
_METRICS = ("loss", "loss_answer", "exact", "exact_answer")


# Columns of the report's table.
_COLUMNS = {
    "feature": "feature",
    "method": "taken out",
    "condition": "condition",
    "exact_answer": "exact match, answer",
    "exact": "exact match, paper",
    "loss_answer": "loss, answer (nats)",
    "loss": "loss, paper (nats)",
    "p_value_paired": "p of the ablation against it, paired",
    "p_value_trials": "p, among its trials",
    "p_value_holm": "p, Holm",
    "n_examples": "examples",
    "n_trials": "trials",
}


@dataclass(frozen=True)
class Ablate(PartLens[Examples, HookedModel]):
    """A part a checkpoint and feature; or a checkpoint, with all features taken out at once.

    A feature some of whose labels the very next token gives away has another part without these labels.

    Attributes:
        config: The probes'.
        settings: What is done.
        features: Those of the call: the others lend directions to a control.
        joint: Take them out as one, named "a+b".
    """

    config: ProbeConfig = field(default_factory=ProbeConfig)
    settings: AblationSettings = field(default_factory=AblationSettings)
    features: tuple[str, ...] = ()
    joint: bool = False

    name = "ablate"
    question = "Does the model use the feature?"
    tables, result = TABLES, RESULT
    order = 50
    methods = """
    - **Ablation** takes a feature out of the activation at the layer of its best probe, where it is read. By default
      it takes out the directions along which the mean activation moves with the feature ("written"); the method
      "project_out" takes the probe's directions, which can be read along but need not be what the model writes. Three
      controls disturb the same places: as many random directions, as many directions of another feature, and random
      changes of the same size. Whiskers are bootstrap 95 % intervals over examples; the p-value compares ablated with
      control for the same examples (sign flips), corrected for the number of features (Holm).
    """
    by = ("feature", "method")
    together = ("feature",)
    of_probes = True

    def part(self, piece: Piece) -> str:
        settings = digest(repr((*self._settings(piece), sorted(self._others(piece)))))
        return f"{part_name(piece.at, piece.key['feature'], self.config)}-{settings}"

    def _taken(self, piece: Piece) -> tuple[str, ...]:
        """The features that a part is without."""
        return self.features if self.joint else (piece.key["feature"].removesuffix(WITHOUT_NEXT_TOKEN),)

    def _settings(self, piece: Piece) -> AblationSettings:
        """The call's, with the labels of the part."""
        if not piece.key["feature"].endswith(WITHOUT_NEXT_TOKEN):
            return self.settings
        return self.settings._replace(labels=without_next_token(self.run, *self._taken(piece)))

    def _others(self, piece: Piece) -> list[str]:
        """The other features of the call."""
        return [name for name in self.features if name not in self._taken(piece)]

    def fetch(self, missing: Mapping[ModelAt, Sequence[Piece]], *, jobs: int, progress: bool) -> None:
        how: dict[str, Any] = {"config": self.config, "n_untrained": 0, "device": self.device}
        probe(self.run, self.features, [at.step for at in missing], **how, jobs=jobs, progress=progress)

    def share(self) -> Examples:
        return probe_data(self.run, self.config).test

    def rows(self, shared: Examples, view: HookedModel, piece: Piece) -> pd.DataFrame:
        run, config, settings, step = self.run, self.config, self._settings(piece), piece.at.step
        name = piece.key["feature"]
        taken, others = ([run.task.feature(n) for n in names] for names in (self._taken(piece), self._others(piece)))
        batch = run.task.encode(shared)
        planes = ablated_planes(run, taken, step, shared, settings, config)
        make, controls = conditions(run, view, batch, planes, others, step, settings, config)
        rng = generator(config.seed, f"ablate/{name}", step)
        first = int(planes.positions[planes.positions >= 0].min())
        scores = score_ablation(view, batch, make, controls, n_trials=settings.n_trials, rng=rng, first=first)
        return _rows(scores, generator(config.seed, f"ablate/bootstrap/{name}", step))

    def columns(self, piece: Piece) -> dict[str, Any]:
        settings = self._settings(piece)._asdict()
        settings["labels"] = ",".join(map(str, settings["labels"])) or "all"
        return {
            **self.where(piece),
            **piece.key,
            "site": self.config.site,
            **{name: settings[name] for name in ("method", "top_k", "epsilon", "labels")},
            "pooled": self.config.pooled,
            "settings": self.config.digest(),
            "analysis": self.analysis(piece),
        }

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return ablation_figure(with_holm(select(rows, step=step)))

    @classmethod
    def prepare(cls, page: Page) -> None:
        if page.n_trials is not None:
            cls._tested(page, page.n_trials)

    @classmethod
    def _tested(cls, page: Page, n_trials: int) -> pd.DataFrame:
        """The rows of the last checkpoint, ablated with this many trials of every control."""
        last = page.run.resolve_steps(page.steps)[-1]
        return page.once(cls.name, lambda: ablate(page.run, page.features, last, n_trials=n_trials, **page.how).rows)

    @staticmethod
    def panels_of(rows: pd.DataFrame) -> list[Panel]:
        """Of one method where a feature was ablated by several."""
        return [ablation_panel(part, name) for name, part in groups(rows_of_one_call(rows, ["feature"]), "feature")]

    @classmethod
    def findings(cls, page: Page) -> list[Finding]:
        """Of the test that the page computes."""
        if page.n_trials is None:
            return []
        given = {name: next_token_labels(page.run.task, name) for name in page.features}
        return findings(cls._tested(page, page.n_trials), given)

    @classmethod
    def sections(cls, page: Page) -> list[Section]:
        if page.n_trials is not None:
            of_last = [_of_one_step(cls._tested(page, page.n_trials))]
        else:
            of_last = [] if page.compute else cls._of_last(page)
        return of_last + super().sections(page)

    @classmethod
    def _of_last(cls, page: Page) -> list[Section]:
        """A section a method, of the last checkpoint at which it was tried before."""
        by_method = groups(cls.stored(page), "method")
        return [_of_one_step(with_holm(select(rows, step=rows["step"].max()))) for _, rows in by_method]

    @classmethod
    def sections_of(cls, rows: pd.DataFrame) -> list[Section]:
        """Exact match over compute of each feature and method that has several steps."""
        title, draw = "Ablation over training: {}, {}", ablation_over_steps_figure
        note = "From when on does the model use the feature? Curves part where it does. Whiskers: 95 % intervals; "
        return [
            cls.section_of(
                title, values, part, draw, f"{note}{int(column(part, 'n_trials').max()):,} trials of every control."
            )
            for values, part in cls.parts_of(rows)
            if (np.unique(column(part, "step")) > 0).sum() > 1
        ]


def ablate(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "last",
    *,
    config: ProbeConfig | None = None,
    method: str = "written",
    joint: bool = False,
    top_k: int = 1,
    epsilon: float = 1.0,
    labels: int | Sequence[int] | None = None,
    n_trials: int = 32,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Take features out of the model: does it need them?

    The ablation takes directions of each label out of the activations and scores loss and greedy exact match. By
    default it takes those along which the model *writes* the label, `Cov(x, t) / Var(t)`: the differences of the class
    means (the slope, for a number). The activation keeps its mean along them, and no linear function of what is left
    follows the label. A probe's directions say how to read a label; they may be nearly orthogonal to what the model
    writes, and the model does without them (Haufe et al. 2014). Class means also hold what goes along with a label in
    the data, so that goes too.

    The ablation acts on every example, at the token where the label is read and at the probes' site, in the layers
    whose probes have the lowest training loss. Controls disturb the same places, `n_trials` times each: "random" takes
    out as many random directions, through the mean activation; "random_feature" as many directions of the call's other
    features (left out where they have too few); "same_norm" adds random vectors exactly as long as the ablation's
    changes, example by example. Examples are the probes' test set, which neither the model nor the probes saw. The
    call fits missing probes first.

    Examples:
        `qfl ablate runs/add16 carry`,
        `qfl ablate runs/add16 --steps log:10 --jobs 2`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`. The Holm correction is over those of one call:
            name all of them together.
        steps: As in `probe`; the last checkpoint by default.
        config: The probes'; `config.site` is what is changed, one without heads.
        method: "written" takes the written directions out, through the mean activation. "project_out" takes the
            probes' directions out, onto the probes' planes, as the quiet-features paper does; with a pooled probe at
            every token from the first label to the last. "zero", "mean" (over examples) and "resample" (another
            example's) replace the whole activation there, with the same-norm control alone.
        joint: Take all features of the call out at once, as one named "a+b": a model may need either of two.
        top_k: Layers, those of the best probes first.
        epsilon: Strength; 1 removes the component, 0 changes nothing.
        labels: Only these labels, all by default. A label that the very next token gives away, such as the last carry
            of a sum, costs that token when it is taken out of the last block, whatever else the model does. Where a
            feature has such labels and others, it has rows without them too, named "..._without_next_token".
        n_trials: Trials of every control; 19 is the fewest that can reach p = 0.05 by rank.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature and condition: intact, ablated, and the controls. Intervals are 95 % percentile
        bootstraps over examples; for a control of each example's mean over trials. difference: the ablated model's
        exact match less this control's, negative where the feature matters more. p_value_paired: sign-flip test over
        examples, ablated against this control's mean, on the answer's exact match, two-sided; the row "ablated" repeats
        that of the first control. p_value_trials: rank of the ablated model's exact match among the control's trials,
        one-sided. p_value_holm: the paired one, Holm-corrected over the features of this call, for each step and
        condition. A real-valued task has no exact match: its loss, negated, takes its place in these four, and the
        columns of exact match are NaN.

    Raises:
        QflError: Unknown feature or step, or a feature none of whose probes could be fitted.
        ValueError: An unknown method or label, a site with heads, `epsilon` outside [0, 1], or `n_trials` or `top_k`
            below 1.

    References:
        arXiv 2505.03997, feature ablation ("project_out"). Haufe et al. 2014, section 2: filters and patterns. Belrose
        et al., arXiv 2306.03819: what is left without the span of the class-mean differences holds no linear trace.
    """
    config = config or ProbeConfig()
    chosen = chosen_features(run, features)
    only = () if labels is None else tuple(sorted({label for f in chosen for label in chosen_labels(f, labels)}))
    settings = AblationSettings(method, top_k, epsilon, n_trials, only)
    _check(settings, config)
    names = [f.name for f in chosen]
    models = models_at(run, steps)
    lens = Ablate(run, device, config, settings, tuple(names), joint)
    rows_of = ["+".join(names)] if joint else names
    if labels is None and not joint:
        rows_of = [row for name in names for row in (name, name + WITHOUT_NEXT_TOKEN)]
        rows_of = [row for row in rows_of if row in names or without_next_token(run, *features_in(row))]
    pieces = [Piece(at, {"feature": name}) for at in models for name in rows_of]
    rows = with_holm(lens.compute(pieces, label="ablating", jobs=jobs, progress=progress))
    exact = [] if run.task.d_out is not None else ["exact_answer"]
    columns = ["step", "feature", "condition", *exact, "loss_answer"]
    return Result(
        f"Ablation in {run.run_id} ({method}{', all at once' if joint else ''}): "
        f"{'exact match and ' if exact else ''}loss ({run.task.loss_unit}) over the answer alone"
        + next_token_note(run, names),
        _own_tests(rows).filter([*columns, "difference", "p_value_holm"]),
        rows,
        ablation_figure if len(models) == 1 else ablation_over_steps_figure,
        columns=RESULT,
        cube=Cube(("step", "feature", "condition")),
    )


def without_next_token(run: Checkpoints, feature: str) -> tuple[int, ...]:
    """The labels that the very next token does not give away; none where it gives away none or all."""
    given = next_token_labels(run.task, feature)
    rest = tuple(label for label in range(run.task.feature(feature).n_labels) if label not in given)
    return rest if given else ()


def _own_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with each comparison once, at the control it is made with: "ablated" repeats that of the first."""
    tests = ["difference", "p_value_paired", "p_value_trials", "p_value_holm"]
    return rows.assign(**{name: rows[name].where(rows["condition"] != "ablated") for name in tests})


def _check(settings: AblationSettings, config: ProbeConfig) -> None:
    """Refuse settings that name nothing that can be done."""
    if settings.method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {settings.method!r}. The first is the default.")
    if settings.n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {settings.n_trials}. The paper uses 32.")
    if not 0 <= settings.epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], got {settings.epsilon}. 1 removes the component.")
    if not 1 <= settings.top_k < 2**63:
        raise ValueError(f"top_k must be at least 1 and below 2**63, got {settings.top_k}. The paper uses 1.")
    require_one_a_token(
        config.site, "a feature's ablation", "Use resid_post, attn_out or mlp_out here, and `ablate_units` for heads."
    )


def _columns(scores: Sequence[ExampleScores], name: str) -> np.ndarray:
    """One metric as [trial, example]."""
    return np.stack([getattr(s, name) for s in scores]).astype(float)


def _rows(scores: Mapping[str, Sequence[ExampleScores]], rng: np.random.Generator) -> pd.DataFrame:
    """One row a condition, with intervals and tests."""
    rows: dict[str, dict[str, object]] = {}
    # Of a real-valued task, which has no exact match, the loss, negated: lower is worse in both.
    real = np.isnan(_columns(scores["intact"], "exact_answer")).all()
    compared, sign = ("loss_answer", -1) if real else ("exact_answer", 1)
    ablated = sign * _columns(scores["ablated"], compared)[0]
    for condition, found in scores.items():
        row: dict[str, object] = {
            "condition": condition,
            "n_examples": len(found[0].loss),
            "n_trials": len(found),
            "difference": math.nan,
            "p_value_paired": math.nan,
            "p_value_trials": math.nan,
        }
        for name in _METRICS:
            if real and name.startswith("exact"):
                row |= {name: math.nan, f"{name}_low": math.nan, f"{name}_high": math.nan}
            else:
                row |= interval_columns(name, bootstrap_mean(_columns(found, name).mean(axis=0), rng))
        if condition not in ("intact", "ablated"):
            control = sign * _columns(found, compared)
            row["difference"] = float(ablated.mean() - control.mean())
            row["p_value_paired"] = paired_sign_flip(ablated, control.mean(axis=0), rng).p_value
            row["p_value_trials"] = rank_p_value(float(ablated.mean()), control.mean(axis=1), "less").p_value
        rows[condition] = row
    first = next(row for condition, row in rows.items() if condition not in ("intact", "ablated"))
    rows["ablated"] |= {name: first[name] for name in ("difference", "p_value_paired", "p_value_trials")}
    return pd.DataFrame(list(rows.values()))


def _of_one_step(rows: pd.DataFrame) -> Section:
    """Ablation bars with the table behind them."""
    (method,) = distinct(rows, "method")
    named = _own_tests(rows).assign(condition=[ABLATION[name].name for name in rows["condition"]])
    return Section(
        "Ablation",
        figure=ablation_figure(rows),
        table=titled(named, _COLUMNS),
        downloads={"ablate": rows},
        note=f"Does the model use the features? Of each one {_TAKEN[method]} are taken out while the model answers. "
        "Hatched: controls that disturb the same places. Whiskers: 95 % intervals.",
    )
