"""How a model is trained, and what can be installed meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qfl_interp.checked import Options, _Config, _require, _require_word
from qfl_interp.errors import unknown_name
from qfl_interp.recipes import (
    DECAYS,
    OPTIMIZERS,
    SCHEDULES,
    checked_settings,
    register_loss,
    require_loss,
    setting_values,
)


@dataclass(frozen=True)
class TrainConfig(_Config):
    """How a model is trained. Exactly one of `budget_flops` and `n_steps` sets the length.

    Args:
        budget_flops: Nominal training FLOPs, turned into steps by `qfl_interp.runs.flops`.
        n_steps: Number of optimiser updates, instead of a budget.
        lr: Peak learning rate.
        batch_size: Examples per update, or "all": every problem of the training split at once, in a fixed order (of
            tasks that can list their problems).
        seed: Names the result: initial weights, data and evaluation sets all derive from it.
        schedule: How the learning rate moves after the warm-up: "cosine" (to `min_lr_fraction`), "linear" (likewise),
            "constant", "ramp" (constant behind a linear warm-up from 0), "wsd" (stable stage, decay), "wsd_s" (several
            of both: after a decay the rate returns to its peak and training goes on), or "cdat" (set at each update by
            the curvature along it); `qfl_interp.training.schedule` has the formulas.
        warmup_fraction: Part of the steps spent warming up.
        min_lr_fraction: Final over peak learning rate.
        decay_fraction: Part of the steps spent decaying ("wsd"; of each of the stages of "wsd_s").
        weight_decay: On all parameters; decoupled in "adamw" and "muon" (0.1 by default), added to the gradient in
            "adam" and "sgd" (0 by default).
        betas: Adam's and AdamW's, and of what Muon leaves to AdamW.
        adam_eps: Likewise.
        clip_norm: Gradients are scaled down to this global norm, by default 1; infinite: never, as in "depthwise".
        eval_fraction: A validation every `max(1, int(eval_fraction * n_steps))` steps; the paper uses 0.005. None:
            about 100 of them, at the first steps and then log-spaced.
        n_val: Examples in the fixed validation set. None: as many as cost about a tenth of training, 128 to 1,000.
        n_checkpoints: About how many checkpoints are kept, half of them log-spaced and half evenly spaced; the
            initial and the final model always are.
        save_every: Keep one every so many steps instead, beside the initial and the final one.
        save_optimizer: Keep the optimiser's state beside every checkpoint (AdamW's moments: twice the weights in size).
            Needed for forks and for preconditioned sharpness.
        divergence_loss: A training loss above this, in its own unit, counts as diverged.
        compile: Train through `torch.compile` (about 30 s to start); falls back with a message.
        optimizer: "adamw", "adam", "sgd" or "muon" (torch's own; `qfl_interp.training.optimizers`), or "depthwise" (of
            homogeneous networks; `qfl_interp.homogeneous`).
        optimizer_options: Further settings of the optimiser by name, such as `{"momentum": 0.9}`;
            `qfl_interp.recipes.OPTIMIZERS` declares them.
        schedule_options: Those of the schedule, such as `{"sigma": 1.0}` of "cdat"; `recipes.SCHEDULES`.
        loss: What is minimised, a mean over scored tokens: "cross_entropy" (nats), "squared_error" (half the squared
            distance from the unit vector), "hinge", or a function `(logits, targets) -> losses` of single tokens, which
            the run keeps the name of.
        draw: Where a batch comes from. "fresh": drawn anew from the task at every step, so that few problems come again
            (with replacement). "batch" and "epoch" draw from the fixed training set of a task that can list its
            problems: "batch" each batch without replacement, whatever the last one was; "epoch" each problem once an
            epoch, in an order of its own. All follow from the seed and the step alone.

    Raises:
        ValueError: A value is out of its range.
        QflError: An optimiser, schedule, loss or one of their settings is unknown.
    """

    _unlimited = ("clip_norm", "divergence_loss")
    _later = ("optimizer", "optimizer_options", "schedule_options", "loss", "draw", "save_every")

    budget_flops: float | None = None
    n_steps: int | None = None
    lr: float = 1e-3
    batch_size: int | Literal["all"] = 64
    seed: int = 0
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    min_lr_fraction: float = 0.1
    decay_fraction: float = 0.2
    weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-8
    clip_norm: float | None = None
    eval_fraction: float | None = None
    n_val: int | None = None
    n_checkpoints: int = 40
    save_optimizer: bool = False
    divergence_loss: float = 100.0
    compile: bool = False
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] = Options()
    schedule_options: Mapping[str, Any] = Options()
    loss: str | Callable[..., Any] = "cross_entropy"
    draw: Literal["fresh", "batch", "epoch"] = "fresh"
    save_every: int | None = None

    def __post_init__(self) -> None:
        if callable(self.loss):
            object.__setattr__(self, "loss", register_loss(self.loss))
        super().__post_init__()
        self._check_recipe()
        _require(
            (self.budget_flops is None) != (self.n_steps is None),
            "exactly one of budget_flops and n_steps must be given",
            (self.budget_flops, self.n_steps),
            "A budget in FLOPs is turned into steps by the model's and the task's size.",
        )
        if self.n_steps is not None:
            _require(self.n_steps >= 1, "n_steps must be at least 1", self.n_steps, "")
        if self.budget_flops is not None:
            finite = math.isfinite(self.budget_flops) and self.budget_flops > 0
            _require(finite, "budget_flops must be positive and finite", self.budget_flops, "Try 3e12.")
        _require(math.isfinite(self.lr) and self.lr > 0, "lr must be positive and finite", self.lr, "Try 1e-3.")
        whole = self.batch_size == "all"
        _require(self.batch_size == "all" or self.batch_size >= 1, "batch_size must be at least 1", self.batch_size, "")
        _require(self.draw in ("fresh", "batch", "epoch"), "draw must be 'fresh', 'batch' or 'epoch'", self.draw, "")
        _require(
            not whole or self.draw == "fresh",
            "draw must be left out with batch_size 'all', which takes every training problem at every step",
            self.draw,
            "",
        )
        _require(self.n_val is None or self.n_val >= 1, "n_val must be at least 1", self.n_val, "")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
        for name in ("warmup_fraction", "min_lr_fraction", "decay_fraction", "eval_fraction"):
            value = getattr(self, name)
            fits = value is None or 0 <= value <= 1
            _require(fits, f"{name} must lie in [0, 1]", value, "It is a fraction, not a percentage.")
        _require(
            self.schedule != "wsd_s" or self.min_lr_fraction > 0,
            "min_lr_fraction must be above 0 with 'wsd_s'",
            self.min_lr_fraction,
            "Its decays raise the rate's inverse.",
        )
        stages = self.warmup_fraction + self.decay_fraction
        _require(self.schedule != "wsd" or stages <= 1, "warmup_fraction + decay_fraction must not pass 1", stages, "")
        assert self.weight_decay is not None
        _require(self.weight_decay >= 0, "weight_decay must not be negative", self.weight_decay, "")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "betas must be two numbers in [0, 1)",
            self.betas,
            "The paper uses (0.9, 0.95).",
        )
        _require(0 < self.adam_eps <= 1, "adam_eps must lie in (0, 1]", self.adam_eps, "Above, nothing is trained.")
        for name in ("clip_norm", "divergence_loss"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name), "")
        _require(self.n_checkpoints >= 2, "n_checkpoints must be at least 2", self.n_checkpoints, "First and last.")
        often = self.save_every is None or self.save_every >= 1
        _require(often, "save_every must be at least 1 step", self.save_every, "")

    @property
    def max_norm(self) -> float:
        """`clip_norm` with its default filled in."""
        assert self.clip_norm is not None
        return self.clip_norm

    @property
    def loss_name(self) -> str:
        """The loss's name, a function's too."""
        return str(self.loss)

    def _check_recipe(self) -> None:
        """Check the names of optimiser, schedule and loss and their settings, and fill in what depends on them."""
        for kind, name, known in (("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES)):
            if name not in known:
                raise unknown_name(kind, name, known)
            given = getattr(self, f"{kind}_options")
            object.__setattr__(self, f"{kind}_options", Options(checked_settings(kind, name, given, known[name])))
        require_loss(self.loss_name)
        own = setting_values(self.optimizer_options, OPTIMIZERS[self.optimizer])
        looks_ahead = own.get("nesterov", False) and not own["momentum"]
        _require(not looks_ahead, "nesterov needs a momentum above 0", own.get("momentum"), "Give momentum=0.9.")
        if self.weight_decay is None:
            object.__setattr__(self, "weight_decay", DECAYS.get(self.optimizer, 0.0))
        scaled = self.optimizer == "depthwise"
        if self.clip_norm is None:
            object.__setattr__(self, "clip_norm", math.inf if scaled else 1.0)
        if scaled:
            _require(self.weight_decay == 0, "weight_decay must be 0 with 'depthwise'", self.weight_decay, "")
            advice = "Its steps are not clipped; cap them by the setting max_u."
            _require(self.clip_norm == math.inf, "clip_norm must be left out with 'depthwise'", self.clip_norm, advice)
            fits = self.loss in ("cross_entropy", "squared_error")
            advice = "Its formulas hold for these two."
            _require(fits, "loss must be cross_entropy or squared_error with 'depthwise'", self.loss, advice)


@dataclass(frozen=True)
class Intervene(_Config):
    """An intervention that is installed while a model trains, at the tokens where a feature is read.

    Args:
        feature: The feature's name.
        kind: "project_out": its directions are taken out of the activation. "random": as many random directions at the
            same places, the control. "resample": the whole activation is another example's of the batch.
        labels: Which of its labels; empty: all.
        site: What is changed: "resid_post", "resid_mid", "attn_out", "mlp_out" or "resid_pre".
        layers: In which blocks; empty: all.
        directions: "probe": of probes fitted for each label and block. "written": along which the mean activation moves
            with the label.
        refit_every: Fit the directions anew every so many steps; 0: once, at the fork's first step.
        n_fit: Examples of the split "val" they are fitted on.
        seed: Draws those examples, random directions and donors.

    Raises:
        ValueError: A value is out of its range.
    """

    feature: str
    kind: Literal["project_out", "random", "resample"] = "project_out"
    labels: tuple[int, ...] = ()
    site: str = "resid_post"
    layers: tuple[int, ...] = ()
    directions: Literal["probe", "written"] = "probe"
    refit_every: int = 0
    n_fit: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_word("kind", self.kind, ("project_out", "random", "resample"))
        _require_word("directions", self.directions, ("probe", "written"))
        _require_word("site", self.site, ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"))
        _require(self.refit_every >= 0, "refit_every must not be negative", self.refit_every, "0 fits once.")
        _require(self.n_fit >= 20, "n_fit must be at least 20 examples", self.n_fit, "")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
