"""One page on several runs: their curves over each other, what their settings do otherwise, verdicts side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from qfl_interp.analyses.pages.compare import Comparison, compare
from qfl_interp.analyses.pages.compare_figure import LOSS
from qfl_interp.analyses.pages.known import known_page
from qfl_interp.analyses.pages.shown import Shown
from qfl_interp.report.markup import shown as shown_value
from qfl_interp.report.page import anchor_of, write_report
from qfl_interp.report.section import Finding, Link, Section, Verdict
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import distinct, select

# What differs between any two runs, or follows from other settings.
_NAMES: Final = ("run_id", "format", "version", "start.run_id")
_NO_VERDICT: Final = "not computed"


def comparison(
    runs: Sequence[Checkpoints], features: str | Sequence[str] | None = None, *, out: str | Path | None = None
) -> Path:
    """Write one page that lays runs beside each other; it shows what tables hold and computes nothing.

    Args:
        runs: At least two, of one task.
        features: Whose probes are drawn; by default those that some run has probes of.
        out: The page; `comparison.html` in the first run's directory by default.

    Returns:
        Where the page is.

    Raises:
        QflError: As `compare`, or the page cannot be written.
    """
    target = Path(out) if out else runs[0].page("comparison.html")
    found = compare(runs, features)
    names = _names(runs)
    verdicts, missing = {}, []
    for name, run in zip(names, runs, strict=True):
        verdicts[name], faults = _verdicts(run, features)
        missing += [*_lacking(run, found), *(f"{run.path}: {fault}" for fault in faults)]
        if not verdicts[name]:
            missing.append(f"{run.path} has no verdicts: `qfl emergence {run.path}` computes them.")
    sections = [
        Section("Runs", table=_overview(runs, names, target)),
        Section(
            "Curves",
            figure=found.plot(),
            note="Loss and exact match on validation examples, and the probes of each feature. Runs that differ by "
            "seed alone are one line: their mean, with a band from the lowest to the highest seed. The band is a "
            "range, no interval of confidence.",
            downloads={"compare": found.rows, **({} if found.bands.empty else {"compare_bands": found.bands})},
        ),
        Section("Verdicts", table=_side_by_side(verdicts), note="A lead is told in decades of compute."),
        _differences(runs, names),
        *(_run_section(run, name, verdicts[name]) for name, run in zip(names, runs, strict=True)),
    ]
    if missing:
        sections.append(Section("Not computed", text="\n".join(f"- {line}" for line in missing)))
    title = f"{len(runs)} runs of {_task(runs[0])}"
    return write_report(target, {}, sections, title=title)


def _task(run: Checkpoints) -> str:
    """What they learned, in words."""
    card = run.card()
    return f"{card['task']}, length {card['length']}"


def _names(runs: Sequence[Checkpoints]) -> list[str]:
    """Each run's folder, with as many of those above it as tell the runs apart."""
    places = [run.path.resolve().parts for run in runs]
    deepest = max(map(len, places))
    tried = (["/".join(parts[-n:]) for parts in places] for n in range(1, deepest + 1))
    return next(names for names in tried if len({*names}) == len(names))


def _anchor(name: str) -> str:
    return f"Run {name}"


def _verdicts(run: Checkpoints, features: str | Sequence[str] | None) -> tuple[list[Finding], list[str]]:
    """The verdicts that were computed on a run before, and what cannot be shown of it."""
    page = known_page(run, features)
    found = Shown(page)
    return found.ask(lambda lens: lens.findings(found.page), Finding), found.faults


def _lacking(run: Checkpoints, found: Comparison) -> Iterator[str]:
    """What of the curves a run has not, and the command that computes it."""
    own = select(found.rows, path=str(run.path))
    if own.empty or LOSS not in distinct(own, "quantity"):
        yield f"{run.path} has no validation loss: `qfl validate {run.path}` measures it."
    for feature in distinct(found.rows, "feature"):
        if feature and feature not in distinct(own, "feature"):
            yield found.probes.lacking(run, feature, command=True)


def _overview(runs: Sequence[Checkpoints], names: Sequence[str], target: Path) -> pd.DataFrame:
    """One row a run, with links to its section and to its own page."""
    rows = []
    for name, run in zip(names, runs, strict=True):
        card, page = run.card(), run.workplace / "report.html"
        last = run.config.last_step if isinstance(run, Run) else card["n_steps"]
        there = Link("report.html", os.path.relpath(page.resolve(), target.resolve().parent))
        rows.append(
            {
                "run": Link(name, f"#{anchor_of(_anchor(name))}"),
                "seed": card["seed"],
                "steps": f"{run.steps[-1] if run.steps else 0:,} of {last:,}",
                "exact match": card.get("val_exact_answer", float("nan")),
                "validation loss": card.get("val_loss_answer", float("nan")),
                "page": there if page.exists() else f"qfl report {run.path}",
            }
        )
    return pd.DataFrame(rows)


def _side_by_side(verdicts: Mapping[str, Sequence[Finding]]) -> pd.DataFrame:
    """One row a feature, one column a run."""
    features = dict.fromkeys(finding.feature for own in verdicts.values() for finding in own)
    rows = []
    for feature in features:
        cells = {name: [one for one in own if one.feature == feature] for name, own in verdicts.items()}
        shown = {n: tuple(Verdict(one.verdict, one.sentence) for one in own) for n, own in cells.items()}
        rows.append({"feature": feature.replace("_", " "), **{n: cell or _NO_VERDICT for n, cell in shown.items()}})
    return pd.DataFrame(rows, columns=["feature", *verdicts])


def _differences(runs: Sequence[Checkpoints], names: Sequence[str]) -> Section:
    """The settings that are not the same in all runs."""
    flat = [dict(_flat(_settings(run))) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in _NAMES]
    differing = [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]
    rows = [
        {"setting": key, **{name: shown_value(one.get(key)) for name, one in zip(names, flat, strict=True)}}
        for key in differing
    ]
    said = f"The other {len(keys) - len(differing)} settings are the same in all runs."
    return Section("What differs", text=said, table=pd.DataFrame(rows, columns=["setting", *names]))


def _settings(run: Checkpoints) -> dict[str, Any]:
    """What made a run: its configuration, then its environment."""
    card = run.card()
    session = {name: card[name] for name in ("versions", "device", "git_commit") if card.get(name) is not None}
    return (run.config.to_dict() if isinstance(run, Run) else card) | session


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by the path to each: "train.lr"."""
    for name, value in values.items():
        path = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, value


def _run_section(run: Checkpoints, name: str, findings: Sequence[Finding]) -> Section:
    """One run: where it is, and its verdicts as sentences."""
    said = [f"**{one.feature.replace('_', ' ')}**: {one.verdict}, {one.sentence}" for one in findings]
    where = f"`{run.path}`, {run.run_id}" + (f", {run.does_otherwise}" if run.does_otherwise else "")
    card = run.card()
    session = {"started": "Started {}", "device": "on {}", "git_commit": "at commit {}"}
    made = ", ".join(text.format(card[key]) for key, text in session.items() if card.get(key))
    return Section(_anchor(name), text="\n\n".join([where, made, "\n".join(f"- {line}" for line in said)]))
