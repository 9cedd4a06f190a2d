"""`qfl tasks`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qfl_interp.cli.output import AsJson, print_json, print_rows

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def tasks(
    name: Annotated[str | None, typer.Argument(help="One task, in detail.", show_default=False)] = None,
    length: Annotated[int, typer.Option(help="Length to describe it at.")] = 16,
    examples: Annotated[int, typer.Option(help="Examples to show, features aligned under the tokens.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws the examples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List the tasks, or show one: its features, its baselines, examples as the model sees them.

    Example: `qfl tasks addition --length 6 --examples 2`
    """
    from qfl_interp.registry import load_task, task_class, task_names

    if name is None:
        rows = [
            _summary(load_task(n, min(max(length, task_class(n).lengths[0]), task_class(n).lengths[1])))
            for n in task_names()
        ]
        print_rows(rows, title="tasks", as_json=as_json)
        return
    task = load_task(name, length)
    features = [
        {"feature": f.name, "kind": f.kind, "labels": f.n_labels, "description": f.description}
        for f in task.features.values()
    ]
    shown = _examples(task, examples, seed)
    if as_json:
        print_json({**_summary(task), "features": features, "examples": shown})
        return
    print_rows([_summary(task)], title=name, as_json=False)
    print_rows(features, title="features", as_json=False)
    for example in shown:
        Console().print(_aligned(example))


def _summary(task: Any) -> dict[str, Any]:
    """One line on a task."""
    return {
        "task": task.name,
        "length": task.length,
        "lengths": f"{task.lengths[0]}-{task.lengths[1]}",
        "vocabulary": " ".join(task.vocabulary),
        "n_ctx": task.n_ctx,
        "features": ", ".join(task.features),
        "baseline (paper)": task.baselines["paper"],
        "base rate": task.baselines["base_rate"],
    }


def _examples(task: Any, n: int, seed: int) -> list[dict[str, Any]]:
    """Examples as tokens, and each feature's label at the token where it is read."""
    from qfl_interp.seeding import generator

    raw = task.sample(generator(seed, "show"), n)
    batch = task.encode(raw)
    shown = []
    for row in range(n):
        tokens = task.str_tokens(batch.tokens[row].tolist())
        features = {}
        for feature in task.features.values():
            labels, positions = feature.labels(raw)[row], feature.positions(raw)[row]
            features[feature.name] = {int(p): str(v) for p, v in zip(positions, labels, strict=True) if p >= 0}
        shown.append({"tokens": tokens, "features": features})
    return shown


def _aligned(example: dict[str, Any]) -> Table:
    """Tokens in a row, each feature's labels below the tokens they are read at."""
    table = Table(show_header=False, box=None, padding=(0, 0, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    tokens = example["tokens"]
    width = max(len(name) for name in ("tokens", *example["features"])) + 2
    cells = [len(token) for token in tokens]
    table.add_row("[bold]" + "tokens".ljust(width) + "[/]" + escape("".join(tokens)))
    for (name, labels), colour in zip(example["features"].items(), _COLOURS * 4, strict=False):
        text = "".join(labels.get(i, "·").ljust(cell) if i in labels else " " * cell for i, cell in enumerate(cells))
        table.add_row(f"[{colour}]{escape(name.ljust(width) + text)}[/]")
    table.add_row("")
    return table
