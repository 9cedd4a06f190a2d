"""The views for which a checkpoint's model is loaded: what it predicts, and where its heads look.

PyTorch is imported once one of them is drawn.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View
from qfl_interp.analyses.view.attention import attention_figure
from qfl_interp.analyses.view.predictions import predictions_figure, predictions_table
from qfl_interp.errors import QflError
from qfl_interp.plots.theme import words
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints

ALL: Final = "all"
# Maps beside each other, and tokens along each: a page has to draw them.
_MOST_MAPS: Final = 64
_MOST_PLACES: Final = 128


def model_views(run: Checkpoints) -> list[View]:
    """Those that apply: to tasks of tokens, and of attention to models that have some. None without a checkpoint."""
    try:
        task, steps = run.task, tuple(run.steps)
    except QflError:  # its task is not registered here: the tables can be seen all the same
        return []
    if not steps or task.d_out is not None or task.samples is not None:
        return []
    found = [
        View(
            "predictions",
            "Predictions",
            "Which tokens of an example does the model get right, and how sure is it?",
            steps,
            lambda step, chosen: _draw_predictions(run, step, **chosen),
            lambda step, chosen: predictions(run, step, **chosen),
            lambda: (("example",), [(number,) for number in range(_n_examples(run))]),
            needs_model=True,
        )
    ]
    if not isinstance(run, Run) or "pattern" in run.config.model.sites:
        found.append(
            View(
                "attention",
                "Attention",
                "Which tokens does each head look at?",
                steps,
                lambda step, chosen: _draw_attention(run, step, **chosen),
                lambda step, chosen: attention(run, step, **chosen),
                lambda: _heads(run),
                needs_model=True,
            )
        )
    return found


def predictions(run: Checkpoints, step: int, example: int) -> pd.DataFrame:
    """One row a place of a test example: what the model of a step predicts there, given the true tokens before it.

    Columns: `position`, `token`, `predicted` (the most likely token), `right`, `probability` (of the predicted one),
    `probability_true`, `loss` (nats), `scored`, `answer` (whether it is a scored token of the answer). Places behind
    the last scored one are left out.
    """
    from qfl_interp.analyses.view.models import predict

    found, task = predict(run, step, example), run.task
    n = scored_end(run, example)
    numbers = {
        "right": (found.predicted == found.token)[:n].tolist(),
        "probability": found.probability[:n].tolist(),
        "probability_true": found.probability_true[:n].tolist(),
        "loss": found.loss[:n].tolist(),
        "scored": found.scored[:n].tolist(),
        "answer": found.answer[:n].tolist(),
    }
    return predictions_table(
        task.str_tokens(found.token[:n]), ["", *task.str_tokens(found.predicted[1:n])], numbers
    ).assign(step=step, example=example)


def attention(run: Checkpoints, step: int, example: int, layer: str, head: str) -> pd.DataFrame:
    """One row a layer, head, place that looks (`query`) and place that it looks at (`key`), with both tokens."""
    values, tokens, first = _patterns(run, step, example)
    shown = [
        (at, number, query, key)
        for at in (range(values.shape[0]) if layer == ALL else [int(layer)])
        for number in (range(values.shape[1]) if head == ALL else [int(head)])
        for query in range(len(tokens))
        for key in range(query + 1)
    ]
    rows = pd.DataFrame(shown, columns=["layer", "head", "query", "key"])
    of = [[tokens[place] for place in rows[name]] for name in ("query", "key")]
    found = [float(values[one]) for one in shown]
    rows = rows.assign(query_token=of[0], key_token=of[1], attention=found, step=step, example=example)
    return rows.assign(query=rows["query"] + first, key=rows["key"] + first)


def _draw_predictions(run: Checkpoints, step: int, example: int) -> Figure:
    rows = predictions(run, step, example)
    title = f"{words(run.task.name)}, test example {example}, step {step:,}"
    return predictions_figure(rows, title)


def _draw_attention(run: Checkpoints, step: int, example: int, layer: str, head: str) -> Figure:
    values, tokens, first = _patterns(run, step, example)
    part = f", the last {len(tokens)} places" if first else ""
    title = f"{words(run.task.name)}, test example {example}, step {step:,}{part}"
    one = [None if name == ALL else int(name) for name in (layer, head)]
    return attention_figure(values, tokens, title, *one, first=first)


def _patterns(run: Checkpoints, step: int, example: int) -> tuple[Any, list[str], int]:
    """The patterns of an example's last places up to the last scored one, their tokens, and the first one's number."""
    from qfl_interp.analyses.view.models import examples_of, patterns

    tokens = examples_of(run).tokens[example, : scored_end(run, example)]
    first = max(len(tokens) - _MOST_PLACES, 0)
    seen = slice(first, len(tokens))
    return patterns(run, step, example)[:, :, seen, seen].numpy(), run.task.str_tokens(tokens[seen]), first


def scored_end(run: Checkpoints, example: int) -> int:
    """How many places an example has up to the last scored one: the rest is padding, or of no concern."""
    from qfl_interp.analyses.view.models import examples_of

    scored = examples_of(run).loss_mask[example].nonzero()
    return int(scored.max()) + 1


def _n_examples(run: Checkpoints) -> int:
    from qfl_interp.analyses.view.models import examples_of

    return len(examples_of(run).tokens)


def _heads(run: Checkpoints) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """What can be chosen of attention: an example, all layers or one, all of its heads or one."""
    if isinstance(run, Run) and hasattr(run.config.model, "n_heads"):
        n_layers, n_heads = run.config.model.n_layers, run.config.model.n_heads  # pyright: ignore
    else:
        from qfl_interp.analyses.view.models import n_layers_and_heads

        n_layers, n_heads = n_layers_and_heads(run)
    places = [(ALL, ALL)] if n_layers * n_heads <= _MOST_MAPS else []
    for layer in range(n_layers):
        places += [(str(layer), ALL), *((str(layer), str(head)) for head in range(n_heads))]
    return ("example", "layer", "head"), [
        (example, *place) for example, place in itertools.product(range(_n_examples(run)), places)
    ]
