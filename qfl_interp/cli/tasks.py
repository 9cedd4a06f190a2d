"""`qfl tasks`."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qfl_interp.cli.aligned import draw
from qfl_interp.cli.named_values import TaskOptions, named_values
from qfl_interp.cli.output import AsJson, print_json
from qfl_interp.errors import QflError

if TYPE_CHECKING:
    from qfl_interp.data.task import Task

# A page at least this wide has room for a column of features.
_WIDE = 120
# Characters of a vocabulary that the list of tasks shows.
_VOCABULARY = 20


def tasks(
    name: Annotated[str | None, typer.Argument(help="One task, in detail.", show_default=False)] = None,
    length: Annotated[
        int | None, typer.Option(help="Length to describe them at; the paper's by default.", show_default=False)
    ] = None,
    task_option: TaskOptions = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples to show, labels under the tokens.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Draws the examples.")] = 0,
    every: Annotated[
        bool, typer.Option("--all", help="In examples, show the features not looked at by default.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the tasks, or show one: its options, features and baselines, examples as the model sees them.

    Example: `qfl tasks addition --length 6 --examples 2`
    """
    from qfl_interp.data.registry import load_task

    if name is None:
        if examples:
            raise QflError("--examples needs a task: name one, as in qfl tasks addition --examples 2.")
        if task_option:
            raise QflError("--task-option needs a task: name one, as in qfl tasks sparse_parity --task-option k=4.")
        _list(length, as_json)
        return
    task = load_task(name, length, **named_values(task_option))
    with Console(stderr=True).status(f"measuring the baselines of {name}"):
        about = _about(task)
    shown = _examples(task, examples, seed)
    if as_json:
        print_json({**about, "examples": shown})
        return
    console = Console()
    _print_about(console, task, about)
    for number, example in enumerate(shown, start=1):
        kept = {f: x for f, x in example["features"].items() if every or task.features[f].by_default}
        console.rule(f"example {number} of {len(shown)}", align="left", style="dim")
        for line in draw({**example, "features": kept}, task.vocabulary, console.width):
            console.print(line, no_wrap=True, crop=False, overflow="ignore")


def _list(length: int | None, as_json: bool) -> None:
    """Every task on a line; those that cannot have `length` at their own."""
    from qfl_interp.data.registry import load_task, task_names
    from qfl_interp.threads import on_every_core

    found: list[tuple[Task, bool]] = []
    console, errors = Console(), Console(stderr=True, soft_wrap=True)
    # Seen on terminals only, and gone at the end.
    with errors.status("loading the tasks") as status:
        for name in task_names():
            try:
                default = load_task(name)
            except QflError as error:  # another package's fault must not hide every task
                errors.print(f"warning: {error}", markup=False, highlight=False)
                continue
            task = _at_length(default, length)
            found.append((task or default, task is not None))
        status.update("measuring their baselines")
        abouts = on_every_core(_about, [task for task, _ in found])
        rows = [{**about, "has_length": has} for about, (_, has) in zip(abouts, found, strict=True)]
    if as_json:
        print_json(rows)
        return
    console.print(_table(rows, wide=console.width >= _WIDE))
    if not all(row["has_length"] for row in rows):
        console.print(f"* cannot have length {length}: shown at its own", style="dim")
    console.print(
        "baselines in nats (real-valued: half squared errors): paper with '=' scored, base rate over the answer alone",
        style="dim",
    )
    console.print("(+2): further features, not looked at by default", style="dim")


def _at_length(task: Task, length: int | None) -> Task | None:
    """The task at `length`; None where it cannot have it."""
    try:
        return task if length is None else type(task)(length)
    except ValueError:
        return None


def _about(task: Task) -> dict[str, Any]:
    """All there is to say about a task, as JSON has it."""
    return {
        "task": task.name,
        "length": task.length,
        "default_length": task.default_length,
        "lengths": list(task.lengths),
        "length_step": task.length_step,
        "n_ctx": task.n_ctx,
        "d_vocab": task.d_vocab,
        "vocabulary": list(task.vocabulary),
        "train_fraction": task.train_fraction,
        "length_name": task.length_name,
        "options": [_about_option(task, name) for name in task.declared_options()],
        "baselines": dict(task.baselines),
        **({} if task.d_out is None else {"d_out": task.d_out}),
        "features": [
            {"feature": f.name, "kind": f.kind, "labels": f.n_labels, "by_default": f.by_default,
             "description": f.description}
            for f in task.features.values()
        ],
    }  # fmt: skip


def _about_option(task: Task, name: str) -> dict[str, Any]:
    """One of the options it can be made with, its value here and its range at this length."""
    option, default = task.declared_options()[name], getattr(type(task), name)
    return {
        "option": name,
        "value": getattr(task, name),
        "default": default,
        "rule": option.rule(default, task.length),
        "range": list(option.range_at(task.length)),
        "help": option.help,
    }


def _table(rows: Sequence[dict[str, Any]], *, wide: bool) -> Table:
    """The list of tasks; on a narrow page the features stand below the name."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("task", overflow="fold")
    for title in ("length", "context"):
        table.add_column(title, justify="right", no_wrap=True)
    # One task's long one must not push the names off the page.
    table.add_column("vocabulary", no_wrap=True, max_width=_VOCABULARY)
    for title in ("paper", "base rate"):
        table.add_column(title, justify="right", no_wrap=True)
    if wide:
        table.add_column("features", overflow="fold")
    for row in rows:
        features = Text(_feature_names(row["features"]), style="dim")
        name = Text(row["task"], style="cyan")
        table.add_row(
            name if wide else Group(name, Padding(features, (0, 0, 0, 2))),
            f"{row['length']}{' ' if row['has_length'] else '*'}",
            str(row["n_ctx"]),
            escape(short_vocabulary(row["vocabulary"])),
            *(f"{row['baselines'][key]:.4f}" if key in row["baselines"] else "–" for key in ("paper", "base_rate")),
            *([features] if wide else []),
        )
    return table


def _feature_names(features: Sequence[dict[str, Any]]) -> str:
    """Those looked at by default, and how many more there are."""
    usual = [f["feature"] for f in features if f["by_default"]]
    more = len(features) - len(usual)
    return ", ".join(usual) + (f" (+{more})" if more else "")


def short_vocabulary(vocabulary: Sequence[str]) -> str:
    """The tokens, runs of letters or numbers elided, and how many there are: `A..Z = <EOS> (28)`."""
    runs: list[list[str]] = []
    for token in vocabulary:
        if runs and _follows(runs[-1][-1], token):
            runs[-1].append(token)
        else:
            runs.append([token])
    parts = [[f"{run[0]}..{run[-1]}"] if len(run) > 2 else run for run in runs]
    return " ".join(itertools.chain(*parts)) + f" ({len(vocabulary)})"


def _follows(one: str, other: str) -> bool:
    """Whether they are a letter and the next letter, or a number and the next number."""
    if one.isdecimal() and other.isdecimal():
        return int(other) == int(one) + 1
    return len(one) == len(other) == 1 and one.isalpha() and other.isalpha() and ord(other) == ord(one) + 1


def _print_about(console: Console, task: Task, about: dict[str, Any]) -> None:
    low, high = task.lengths
    step = f", a multiple of {task.length_step}" if task.length_step > 1 else ""
    paragraph = inspect.cleandoc(type(task).__doc__ or "").split("\n\n")[0]
    console.print(f"[bold cyan]{escape(task.name)}[/]  {escape(' '.join(paragraph.split()))}", highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    title = "length" if task.length_name == "length" else f"length, {task.length_name}"
    facts.add_row(title, f"{task.length}  ({low} to {high}{step}; default {task.default_length})")
    for option in about["options"]:
        text = f"{option['value']}  ({option['rule']}; default {option['default']}): {option['help']}"
        facts.add_row(escape(option["option"]), escape(text))
    facts.add_row("context", f"{task.n_ctx} tokens")
    facts.add_row("vocabulary", escape(short_vocabulary(task.vocabulary)))
    facts.add_row(
        "baselines", "  ".join(f"{escape(k)} {v:.4f}" for k, v in task.baselines.items()) + f" {task.loss_unit}"
    )
    console.print(facts, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("feature", "kind", "labels", "default", "description"):
        table.add_column(title, justify="right" if title == "labels" else "left", overflow="fold")
    for _, group in itertools.groupby(about["features"], key=_alike):
        first, *others = group
        name, description = first["feature"], first["description"]
        if others:
            name, description = f"{name} .. {others[-1]['feature']}", f"{description}; and so on"
        usual = "yes" if first["by_default"] else "no"
        style = None if first["by_default"] else "dim"
        table.add_row(name, first["kind"], str(first["labels"]), usual, escape(description), style=style)
    console.print()
    console.print(table)
    console.print()


def _alike(feature: dict[str, Any]) -> tuple[str, ...]:
    """Equal for features that differ in a number at the end of their names."""
    return (feature["feature"].rstrip("0123456789"), *(str(feature[key]) for key in ("kind", "labels", "by_default")))


def _examples(task: Task, n: int, seed: int) -> list[dict[str, Any]]:
    """Examples as tokens, and each feature's labels with the token index where each is read (-1: no such label)."""
    from qfl_interp.data.examples import require_room
    from qfl_interp.seeding import generator

    require_room(task, n, "examples", "Show fewer.")
    raw = task.sample(generator(seed, "show"), n)
    batch = task.encode(raw)
    features = {f.name: (f.kind, f.positions(raw).tolist(), f.labels(raw).tolist()) for f in task.features.values()}
    return [
        {
            "raw": raw[row].tolist(),
            "tokens": task.str_tokens(batch.tokens[row]),
            "loss_mask": batch.loss_mask[row].tolist(),
            "prompt_end": batch.prompt_end,
            "features": {
                name: {"kind": kind, "positions": positions[row], "labels": labels[row]}
                for name, (kind, positions, labels) in features.items()
            },
        }
        for row in range(n)
    ]
