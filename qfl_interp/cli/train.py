"""`qfl train` and `qfl resume`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qfl_interp.cli.named_values import TaskOptions, named_values
from qfl_interp.cli.output import AsJson, Device, RunPath, print_json
from qfl_interp.config import ModelConfig, TrainConfig
from qfl_interp.mlp_config import homogeneous_config
from qfl_interp.recipes import LOSSES, OPTIMIZERS, SCHEDULES

if TYPE_CHECKING:
    from qfl_interp.model_kinds import AnyModelConfig
    from qfl_interp.runs.run import Run
    from qfl_interp.training.loggers import Logger

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def _part(text: str) -> Any:
    """An option that is a part of the architecture; without a default it is the style's."""
    return typer.Option(help=text, rich_help_panel="Architecture", show_default=False)


def train(
    task: Annotated[str, typer.Argument(help="A registered task; `qfl tasks` lists them.", show_default=False)],
    length: Annotated[
        int | None, typer.Option(help="The task's length (bits of an operand, nodes, ...); the paper's by default.")
    ] = None,
    task_option: TaskOptions = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to make; runs/<run id> by default.")] = None,
    budget: Annotated[float | None, typer.Option(help="Nominal training FLOPs, for example 3e12.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser updates, instead of a budget.")] = None,
    d_model: Annotated[int, typer.Option(help="Width of the residual stream.")] = 64,
    n_layers: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    n_heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    style: Annotated[
        Literal["llama", "gpt2", "grokking", "homogeneous"],
        typer.Option(
            help="Architecture: the preset that the options under Architecture depart from; homogeneous: a network "
            "of vectors, for tasks such as digits."
        ),
    ] = "llama",
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[
        str, typer.Option(metavar="INTEGER|all", help="Examples an update; all: every training problem at each.")
    ] = "64",
    draw: Annotated[
        Literal["fresh", "batch", "epoch"],
        typer.Option(
            help="Batches of fresh examples; or of a fixed training set, each batch without replacement (batch) or "
            "every problem once an epoch (epoch)."
        ),
    ] = "fresh",
    weight_decay: Annotated[
        float | None, typer.Option(help="By default 0.1 for adamw and muon, otherwise 0; grokking wants about 1.")
    ] = None,
    betas: Annotated[tuple[float, float], typer.Option(help="Adam's and AdamW's; grokking papers take 0.9 0.98.")] = (
        0.9,
        0.95,
    ),
    clip_norm: Annotated[
        float | None, typer.Option(help="Gradients are scaled down to this norm, by default 1; inf for never.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help=f"Optimiser: {', '.join(OPTIMIZERS)}.")] = "adamw",
    optimizer_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the optimiser, such as momentum=0.9.")
    ] = None,
    schedule: Annotated[str, typer.Option(help=f"Learning-rate schedule: {', '.join(SCHEDULES)}.")] = "cosine",
    schedule_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the schedule, such as n_decays=3.")
    ] = None,
    loss: Annotated[str, typer.Option(help=f"What is minimised: {', '.join(LOSSES)}.")] = "cross_entropy",
    warmup: Annotated[float, typer.Option(help="Part of the steps spent warming up.")] = 0.1,
    decay: Annotated[
        float, typer.Option(help="Part of the steps spent decaying, of wsd, and of each stage of wsd_s; 0 for none.")
    ] = 0.2,
    min_lr_fraction: Annotated[float, typer.Option(help="What a decay ends at, as a part of the peak --lr.")] = 0.1,
    divergence_loss: Annotated[
        float, typer.Option(help="A training loss above this counts as diverged; inf for never.")
    ] = 100.0,
    seed: Annotated[int, typer.Option(help="Names the result: weights, data, evaluation sets.")] = 0,
    checkpoints: Annotated[int, typer.Option(help="About how many checkpoints, half of them log-spaced.")] = 40,
    save_every: Annotated[
        int | None, typer.Option(help="A checkpoint every so many steps instead, and the last.")
    ] = None,
    eval_fraction: Annotated[
        float | None, typer.Option(help="A validation every this part of the steps; by default about 100, log-spaced.")
    ] = None,
    n_val: Annotated[
        int | None, typer.Option(help="Validation examples; by default what a tenth of training pays for.")
    ] = None,
    save_optimizer: Annotated[
        bool,
        typer.Option(
            help="Keep the optimiser's state with every checkpoint, which forks need; AdamW's: three times the space."
        ),
    ] = False,
    compile: Annotated[bool, typer.Option(help="Train through torch.compile.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out if there is one.")] = False,
    norm: Annotated[Literal["rms", "ln", "none"] | None, _part("Norm of what a block reads.")] = None,
    act: Annotated[
        Literal["silu", "gelu", "gelu_new", "relu", "relu2", "solu"] | None, _part("Nonlinearity of the MLP.")
    ] = None,
    gated: Annotated[bool | None, _part("Whether the MLP has a gate, as SwiGLU.")] = None,
    positions: Annotated[Literal["rotary", "learned", "none"] | None, _part("How the model knows positions.")] = None,
    biases: Annotated[Literal["all", "mlp", "none"] | None, _part("Which biases there are.")] = None,
    attn_only: Annotated[bool, _part("Blocks without an MLP.")] = False,
    d_head: Annotated[int | None, _part("Width of a head; d_model / n_heads by default.")] = None,
    d_mlp: Annotated[
        int | None, _part("Hidden width of the MLP; by default 8/3 d_model with a gate, 4 d_model without.")
    ] = None,
    tied: Annotated[bool, _part("The unembedding is the transposed embedding.")] = False,
    init: Annotated[
        Literal["llama", "gpt2", "grokking"] | None, _part("Initial matrices: those of this style.")
    ] = None,
    init_scale: Annotated[float, _part("Multiplies every initial matrix.")] = 1.0,
    mup_base: Annotated[
        int | None, _part("Maximal-update parametrisation: the width at which --lr was chosen.")
    ] = None,
    width_exponent: Annotated[
        float | None, _part("Of style homogeneous: layer k is k to this power times --d-model wide; 2 by default.")
    ] = None,
    attention: Annotated[Literal["softmax", "linear"], _part("Linear: scores as they are, no softmax.")] = "softmax",
    tensorboard: Annotated[bool, typer.Option(help="Mirror the metrics to TensorBoard in the run.")] = False,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Mirror the metrics to W&B.")] = None,
    lens: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A lens that looks at checkpoints as they appear: probe.")
    ] = None,
    lens_at: Annotated[
        str, typer.Option(metavar="STEPS", help="At which of them: all, last, log:N, 10,20.")
    ] = "log:20",
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on a task and keep its checkpoints.

    Give a length by `--budget` (nominal FLOPs as the quiet-features paper counts them) or `--steps`. A killed run
    goes on with `qfl resume RUN`, to the same bits.

    Example: `qfl train addition --length 16 --budget 3e12 --out runs/add16`
    """
    sizes = {"d_model": d_model, "n_layers": n_layers}
    parts = {
        "n_heads": n_heads, "norm": norm, "act": act, "gated": gated, "positions": positions, "biases": biases,
        "attn_only": attn_only, "d_head": d_head, "d_mlp": d_mlp, "tied": tied, "init": init,
        "init_scale": init_scale, "mup_base": mup_base, "attention": attention,
    }  # fmt: skip
    _require_own(style == "homogeneous", parts, width_exponent)
    model: AnyModelConfig | None = None
    if style != "homogeneous":
        model = ModelConfig(style=style, **sizes, **parts)
    config = TrainConfig(
        budget_flops=budget, n_steps=steps, lr=lr, batch_size=_batch_size(batch_size), draw=draw,
        weight_decay=weight_decay, betas=betas, clip_norm=clip_norm, schedule=schedule,
        warmup_fraction=warmup, decay_fraction=decay, min_lr_fraction=min_lr_fraction,
        divergence_loss=divergence_loss, seed=seed, n_checkpoints=checkpoints,
        save_every=save_every,
        eval_fraction=eval_fraction, n_val=n_val, save_optimizer=save_optimizer, compile=compile, loss=loss,
        optimizer=optimizer, optimizer_options=named_values(optimizer_option, "--optimizer-option"),
        schedule_options=named_values(schedule_option, "--schedule-option"),
    )  # fmt: skip
    from qfl_interp.data.registry import load_task
    from qfl_interp.training.train import plan_run
    from qfl_interp.training.train import train as run_training

    loaded = load_task(task, length, **named_values(task_option))
    if model is None:
        exponent = 2.0 if width_exponent is None else width_exponent
        model = homogeneous_config(d_in=loaded.length, d_out=loaded.d_vocab, width_exponent=exponent, **sizes)
    plan = plan_run(loaded, model, config)
    target = out or Path("runs") / plan.run_id
    finished = run_training(
        loaded, model, config, target, resume=resume, device=device, progress=not quiet,
        make_loggers=lambda run: _loggers(run, tensorboard, wandb),
        lenses={name.replace("-", "_"): {} for name in lens or ()}, at=lens_at,
    )  # fmt: skip
    print_run(finished, as_json)


def resume(run: RunPath, device: Device = "cpu", quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Continue a run that was stopped or killed, to the same bits as if it never had been.

    Example: `qfl resume runs/add16`
    """
    from qfl_interp.training.train import resume as continue_run

    print_run(continue_run(run, device=device, progress=not quiet), as_json)


def _require_own(of_vectors: bool, parts: dict[str, Any], width_exponent: float | None) -> None:
    """Raise ValueError with the options that the other kind of style has, where one was given."""
    others = {field.name: field.default for field in fields(ModelConfig)}
    foreign = [name for name, value in parts.items() if of_vectors and value != others[name]]
    if foreign:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ValueError(f"--style homogeneous has no transformer's parts, got {given}. Leave them out.")
    if width_exponent is not None and not of_vectors:
        raise ValueError("--width-exponent is of --style homogeneous alone. Leave it out.")


def _batch_size(text: str) -> int | Literal["all"]:
    """The option's number, or its word."""
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--batch-size must be an integer or 'all', got {text[:80]!r}. Try 64.") from error


def _loggers(run: Run, tensorboard: bool, wandb: str | None) -> list[Logger]:
    """The mirrors that were asked for."""
    from qfl_interp.training.loggers import TensorBoardLogger, WandbLogger

    made: list[Logger] = [TensorBoardLogger(run.path / "tensorboard")] if tensorboard else []
    return made + ([WandbLogger(wandb, config=run.config.train.to_dict())] if wandb else [])


def print_run(run: Run, as_json: bool) -> None:
    """The run in a line, or its last metrics as JSON."""
    last = run.metrics.iloc[-1].to_dict()
    if as_json:
        model, moments = run.checkpoint_bytes()
        sizes = {"model_bytes": model, "optimizer_bytes": moments}
        print_json({"path": run.path, "run_id": run.run_id, "steps": run.steps, **sizes, **last})
    else:
        print(run)
        model, moments = run.checkpoint_bytes()
        print(f"checkpoints: {model / 1e6:,.1f} MB of parameters, {moments / 1e6:,.1f} MB of the optimiser's state")
        loss = f"final validation: loss {last['val_loss']:.4g} ({run.loss_unit})"
        if "val_exact" not in last:
            print(loss)
            return
        print(
            f"{loss}, exact match {last['val_exact']:.1%} "
            f"(answer alone: {last['val_loss_answer']:.4g}, {last['val_exact_answer']:.1%})"
        )
