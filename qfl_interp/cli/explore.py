"""`qfl explore`."""

from __future__ import annotations

import textwrap
from types import MethodType
from typing import Annotated, Any

import typer

from qfl_interp.cli.output import Device, RunPath

_BANNER = """qfl explore: {run!r}
  run, task, model (step {step})      the open run, its task, its HookedTransformer
  examples, batch, tokens, logits     {n} test examples: raw, encoded, the model's answers
  cache                               every activation on them: cache["resid_post", 2]
  qfl                                 the library: qfl.interventions_on, qfl.project_out, ...
Analyses of this run, as probe("carry"); probe? says what one does:
{analyses}
"""


def explore(
    run: RunPath,
    step: Annotated[str, typer.Option(help="Which checkpoint to load.")] = "last",
    n: Annotated[int, typer.Option(help="Examples in `batch` and `cache`.")] = 64,
    command: Annotated[str | None, typer.Option("--command", "-c", help="Run this code and leave.")] = None,
    device: Device = "cpu",
) -> None:
    """Open IPython with a run, its model, an activation cache and the analyses ready.

    Example: `qfl explore runs/add16 --step 130`
    """
    import IPython

    namespace = _namespace(run, step, n, device)
    if command is not None:
        exec(compile(command, "<command>", "exec"), namespace)  # the user's own code, like python -c
        return
    banner = namespace.pop("banner")
    print(banner)
    IPython.start_ipython(argv=["--no-banner"], user_ns=namespace)


def _namespace(path: Any, step: str, n: int, device: str) -> dict[str, Any]:
    """What the shell has ready."""
    import torch

    import qfl_interp as qfl
    from qfl_interp.memory import available_bytes, require_memory
    from qfl_interp.runs.analyses import loaded_analyses
    from qfl_interp.runs.opening import open_checkpoints

    run = open_checkpoints(path)
    (at,) = run.resolve_steps(step)
    model, task = run.load_model(at, device=device), run.task
    examples = qfl.held_out(task, "test", n, seed=run.identity()["seed"], stream="explore")
    batch = task.encode(examples)
    # A cache has about 15 vectors of a token, 3 of its MLP, and every score and weight of attention.
    cfg: Any = model.cfg
    a_token = cfg.n_layers * (15 * cfg.d_model + 3 * (cfg.d_mlp or 0) + 2 * cfg.n_heads * task.n_ctx) + cfg.d_vocab
    what = f"activations of {len(examples):,} examples"
    require_memory(4 * len(examples) * task.n_ctx * a_token, available_bytes(device), what, "Take a smaller --n.")
    with torch.no_grad():
        logits, cache = model.run_with_cache(batch.tokens.to(device))
    # Bound as methods are: what IPython shows of `probe?` is the function's own.
    found = {name: MethodType(function, run) for name, function in loaded_analyses().items()}
    listed = textwrap.fill(", ".join(found), 78, initial_indent="  ", subsequent_indent="  ")
    banner = _BANNER.format(run=run, step=at, n=len(examples), analyses=listed)
    return {
        "qfl": qfl, "torch": torch, "run": run, "task": task, "model": model, "examples": examples, "batch": batch,
        "tokens": batch.tokens, "logits": logits, "cache": cache, "banner": banner, **found,
    }  # fmt: skip
