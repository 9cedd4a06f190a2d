"""What the command line takes: what it took when its commands were written by hand, it takes with the same meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from qfl_interp.cli.main import build_app

# Written by the last version whose commands were written by hand.
BEFORE = json.loads((Path(__file__).parent / "options.json").read_text())


def described(parameter: Any) -> tuple[str, str]:
    """The words of an option (the metavar of an argument), and its type, default and number."""
    is_option = parameter.param_type_name == "option"
    words = (
        sorted([*parameter.opts, *parameter.secondary_opts])
        if is_option
        else [parameter.metavar or parameter.name.upper()]
    )
    annotation = parameter.type_descriptor.annotation
    kind = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    default = parameter.default() if callable(parameter.default) else parameter.default
    several = ", several" if parameter.nargs == -1 or getattr(parameter, "multiple", False) else ""
    rest = ", required" if parameter.required else f" = {default!r}"
    return " ".join(words), kind.replace("typing.", "").replace("pathlib.", "") + several + rest


def walk(command: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Every command below one, with its options and arguments."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from walk(below, (*prefix, name))
    else:
        yield " ".join(prefix), dict(map(described, command.params))


@pytest.fixture(scope="module")
def now() -> dict[str, dict[str, str]]:
    return dict(walk(typer.main.get_command(build_app())))


def test_no_command_is_lost(now):
    assert BEFORE.keys() <= now.keys()


# What was changed since, on purpose.
CHANGED = {
    "ablate": {"--method": "str = 'written'"},
    "polca": {"--accuracy": "Literal['path', 'trapezoid', 'second', 'paper', 'first'] = 'path'"},
    "report": {"[FEATURE]...": None},  # which may be further runs now: [RUN | FEATURE]...
    "train": {
        "--eval-fraction": "float = None",
        "--n-val": "int = None",
        "--weight-decay": "float = None",
        "--schedule": "str = 'cosine'",
        "--batch-size": "str = '64'",
        "--style": "Literal['llama', 'gpt2', 'grokking', 'homogeneous'] = 'llama'",
    },
}


@pytest.mark.parametrize("command", BEFORE)
def test_options_are_only_added(now, command):
    found = {words: now[command].get(words) for words in BEFORE[command]}
    assert found == BEFORE[command] | CHANGED.get(command, {})


def test_only_a_plural_loses_its_s(now):
    assert "--sharpness" in now["edge"]
    assert "--label" in now["ablate"]
