"""What the page draws, as plain values that become JSON: figures with what the page needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View
from qfl_interp.analyses.pages.compare import Comparison, compare
from qfl_interp.analyses.registered import lenses
from qfl_interp.analyses.view import jobs
from qfl_interp.analyses.view.address import Address
from qfl_interp.analyses.view.opened import Opened
from qfl_interp.analyses.view.panels import view, views
from qfl_interp.errors import QflError
from qfl_interp.plots.paper import name_figure
from qfl_interp.plots.theme import figure_json, plain
from qfl_interp.runs.series import Checkpoints


def stamps(opened: Opened, key: str) -> list[Any]:
    """What changes when training logs a row of a run, and when a checkpoint or a table of it changes.

    Raises:
        QflError: It is not there any more, or damaged.
    """
    return [opened.stamp(key, rows=True), opened.stamp(key)]


def over_training(opened: Opened, address: Address) -> dict[str, Any]:
    """The figure over training: of one run with all its lenses, of several over each other; of a sweep over budgets.

    Raises:
        QflError: A run cannot be opened, or nothing is known of it yet.
    """
    if len(address.runs) != 1:
        found, faults = compared(opened, address.runs)
        features = list(dict.fromkeys(name for name in found.rows["feature"] if name))
        feature = address.feature if address.feature in features else ""
        choices = {"feature": _choice(feature, ["", *features], {"": "loss and every feature"})} if features else {}
        return _payload(found.plot(feature or None)) | {"choices": choices, "faults": faults}
    if opened.is_sweep(address.runs[0]):
        return _payload(opened.scaling(address.runs[0]).plot()) | {"title": "Over budgets", "choices": {}, "faults": []}
    shown = opened.timeline(address.runs[0])
    steps = {"steps": shown.steps, "places": shown.places, "texts": shown.texts}
    return _payload(shown.figure) | steps | {"choices": {}, "faults": list(shown.faults)}


def tabs(opened: Opened, key: str) -> dict[str, Any]:
    """The views of a run, name, title and question of each, and the one that is open where the address names none."""
    found = _views(opened, key)
    listed = [{"name": one.name, "title": one.title, "question": one.question} for one in found]
    return {"tabs": listed, "first": _first(found) if found else ""}


def at_step(opened: Opened, address: Address) -> dict[str, Any]:
    """The open view of a run at the step of the address.

    Raises:
        QflError: The run cannot be opened, or the view not be drawn.
    """
    (key,) = address.runs
    run, name = opened.run(key), _open_view(opened, address)
    step, shown = _step(run, address.step), view(run, name)
    choices = _known_choices(shown.choices, address)
    stamp = (opened.stamp(key), step, tuple(choices.items()))
    figure = opened.kept.get(
        ("view", key, name, step, *choices.items()), stamp, lambda: _drawn(run, shown, step, choices)
    )
    values, options = shown.chosen(**choices), shown.options(**choices)
    named = {one: _choice(str(values[one]), list(map(str, options[one])), {}) for one in options}
    at = shown.at(step, **choices)
    return _payload(figure) | {"choices": named, "faults": [], "name": name, "question": shown.question, "step": at}


def rows_of(opened: Opened, of: str, address: Address) -> pd.DataFrame:
    """The table of a figure: `of` is "timeline" or "view". Raises as that figure does."""
    if of == "view":
        (key,) = address.runs
        run, name = opened.run(key), _open_view(opened, address)
        shown = view(run, name)
        return shown.table(_step(run, address.step), **_known_choices(shown.choices, address))
    if len(address.runs) == 1:
        key = address.runs[0]
        return opened.scaling(key).rows if opened.is_sweep(key) else opened.timeline(key).table()
    return compared(opened, address.runs)[0].rows


def compared(opened: Opened, keys: Sequence[str]) -> tuple[Comparison, list[str]]:
    """Runs over each other, and a line on each that cannot be opened or lacks something.

    Raises:
        QflError: None of them can be opened, or there is nothing to compare.
    """
    stamps, faults = {}, []
    for key in keys:
        try:
            stamps[key] = opened.stamp(key, rows=True)
        except QflError as error:  # it was deleted meanwhile, or is damaged: the others are shown
            faults.append(str(error))
    if not stamps:
        raise QflError(" ".join(faults))
    found = opened.kept.get(("compare", *keys), tuple(stamps.items()), lambda: compare([*map(opened.run, stamps)]))
    return found, [*faults, *found.missing]


def startable(opened: Opened, key: str) -> list[dict[str, Any]]:
    """The lenses that can be started on a run: name, question and options of each, those of other packages too."""
    questions = {lens.name: lens.question for lens in lenses()}
    return [
        {"name": name, "question": questions.get(name, ""), "options": [one._asdict() for one in options]}
        for name, options in jobs.startable(opened.run(key)).items()
    ]


def working(opened: Opened, key: str) -> list[dict[str, Any]]:
    """The last job of each lens on a run."""
    found = []
    for job in jobs.jobs(opened.run(key)):
        progress = None if job.progress is None else job.progress._asdict()
        found.append(job._asdict() | {"progress": progress, "command": " ".join(["qfl", *job.command])})
    return found


def ask(opened: Opened, asked: dict[str, Any]) -> str:
    """Start or stop a lens as a button asks; what was done, in words. Raises `QflError` where it cannot be."""
    key, lens = str(asked.get("run")), str(asked.get("lens"))
    run = opened.run(key)
    if asked.get("what") == "stop":
        jobs.stop(run, lens)
        return f"{lens} is asked to stop."
    jobs.start(run, lens, dict(asked.get("options") or {}), path=opened.path(key))
    return f"{lens} is started."


def _views(opened: Opened, key: str) -> list[View]:
    return opened.kept.get(("views", key), opened.stamp(key), lambda: views(opened.run(key)))


def _open_view(opened: Opened, address: Address) -> str:
    """The view of the address, or the first one. Raises `QflError` where the run has none."""
    found = _views(opened, address.runs[0])
    known = [one.name for one in found]
    if not known:
        raise QflError("nothing of this run was computed yet. Start a lens below.")
    return address.view if address.view in known else _first(found)


def _first(found: Sequence[View]) -> str:
    """The first view of a step: what shows the whole training is like the figure above it."""
    return next((one for one in found if not one.over_training), found[0]).name


def _drawn(run: Checkpoints, shown: View, step: int, choices: dict[str, str]) -> Figure:
    try:
        return name_figure(shown.draw(step, **choices), plain(run.label))
    except QflError:
        raise
    except Exception as error:  # a lens' fault, perhaps another package's, takes its own card away
        raise QflError(f"{shown.title} cannot be drawn at step {step:,}: {type(error).__name__}: {error}") from error


def _step(run: Checkpoints, step: int | None) -> int:
    """The step of an address, or the nearest there is a checkpoint of."""
    steps = run.steps
    if not steps:
        raise QflError(f"{run.path} has no checkpoint yet.")
    return steps[-1] if step is None else min(steps, key=lambda one: abs(one - step))


def _known_choices(known: dict[str, list[Any]], address: Address) -> dict[str, str]:
    """The choices of an address that a view has: an old link may name others."""
    return {name: value for name, value in address.choices.items() if value in map(str, known.get(name, []))}


def _choice(value: str, options: list[str], names: dict[str, str]) -> dict[str, Any]:
    return {"value": value, "options": [{"value": one, "name": names.get(one, one)} for one in options]}


def _payload(figure: Figure) -> dict[str, Any]:
    layout: Any = figure.layout
    return {"figure": figure_json(figure), "height": int(layout.height or 450)}
