"""What a run is, as a page says it: its main numbers large, then configuration and environment in readable tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from qfl_interp.report.markup import escape, shown

_TILES: Final = {
    "val_exact_answer": "exact match, answer",
    "val_exact": "exact match, paper count",
    "val_loss_answer": "validation loss, answer",
    "val_loss": "validation loss, paper count",
    "n_parameters": "parameters",
    "n_steps": "steps",
    "nominal_flops": "FLOPs, nominal",
    "seconds": "training time",
}
# Where and by what it was made, in words.
_ENVIRONMENT: Final = {
    "started": "started",
    "command": "command",
    "git_commit": "commit",
    "device": "device",
    "threads": "threads",
    "versions": "versions",
}


def tiles(card: Mapping[str, Any]) -> str:
    """The card's main numbers, large."""
    found = [
        f"<div><dd>{escape(number(key, card[key]))}</dd><dt>{name}</dt></div>"
        for key, name in _TILES.items()
        if card.get(key) is not None
    ]
    return f'<dl class="tiles">{"".join(found)}</dl>' if found else ""


def number(key: str, value: Any) -> str:
    """A value of the card as its key asks for."""
    if isinstance(value, (list, tuple)):
        return ", ".join(number(key, one) for one in value) or "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return shown(value)
    if key.startswith("val_exact"):
        return f"{value:.1%}"
    if key == "seconds":
        return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
    if isinstance(value, int):
        return f"{value:,}" if key != "seed" else str(value)
    return shown(value)


def configuration(card: Mapping[str, Any]) -> str:
    """Everything the card says, one table a subject."""
    plain = {k: v for k, v in card.items() if not isinstance(v, Mapping) and k not in _ENVIRONMENT}
    groups = {k: v for k, v in card.items() if isinstance(v, Mapping) and k not in _ENVIRONMENT}
    made = {_ENVIRONMENT[k]: _made(k, card[k]) for k in _ENVIRONMENT if card.get(k) is not None}
    tables = {"run": plain, "environment": made, **groups}
    listed = "".join(_table(title, values) for title, values in tables.items() if values)
    title = "Configuration and environment"
    return (
        f'<section id="configuration" data-title="{title}"><h2>{title}</h2><div class="card">{listed}</div></section>'
    )


def _made(key: str, value: Any) -> Any:
    """What made the run: a command as a shell takes it, versions in one line."""
    if key == "command" and isinstance(value, (list, tuple)):
        return shlex.join(map(str, value))
    return ", ".join(f"{name} {said}" for name, said in value.items()) if isinstance(value, Mapping) else value


def _table(title: str, values: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(number(str(key), value))}</td></tr>'
        for key, value in values.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>"
