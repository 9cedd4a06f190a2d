"""The checkpoints in a folder, by the steps that their names say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.runs.hub.names import REVISION, Named, read_name, tokens_at, tokens_per_step
from qfl_interp.runs.sources.builders import Builder
from qfl_interp.runs.sources.hugging_face import HuggingFace, lacks
from qfl_interp.runs.sources.source import Source
from qfl_interp.runs.sources.state_dicts import StateDict
from qfl_interp.runs.sources.tensors import PICKLED, SAFE, is_other, weight_files

# Names with a number alone, as nanochat's model_000650.pt.
_NUMBERED = r"(?:model|weights)[-_](?P<step>\d+)"


class Found(NamedTuple):
    """The checkpoints of a folder.

    Attributes:
        sources: By step.
        tokens_per_step: As the names have it, where they say tokens in proportion to steps.
        tokens_at: What the names say, where they say tokens of every step and not in proportion.
    """

    sources: dict[int, Source]
    tokens_per_step: int | None
    tokens_at: dict[int, int] | None


def find_checkpoints(folder: Path, pattern: str | None, builder: Builder | None) -> Found:
    """The checkpoints in a folder: sub-folders and files whose names say a step; others are passed over.

    Args:
        folder: Where to look.
        pattern: Regular expression of the whole name, a file's with or without its ending. Its group `step` (or else
            its first) is the step, its group `tokens` the tokens ("4B").
        builder: Makes the model of state dicts; None for folders that `save_pretrained` wrote.

    Raises:
        QflError: There is none, two have the same step, some are half-written, or they are of several series.
        ValueError: The pattern has no group, or one that matches no number.
    """
    if not folder.is_dir():
        raise QflError(f"{folder} is no folder. Give the one that holds the step folders.")
    named = {path: said for path in sorted(folder.iterdir()) if (said := _read(path, pattern)) is not None}
    plain = {path: said for path, said in named.items() if not said.series}
    sizes = Counter(said.series for said in named.values())
    if not plain and len(sizes) > 1:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(sizes.items()))
        raise QflError(f"{folder} has checkpoints of several series: {listed}. Give a pattern= that matches one.")
    by_step: dict[int, Path] = {}
    for path, said in (plain or named).items():
        if said.step in by_step:
            raise QflError(
                f"{folder} has step {said.step} twice: {by_step[said.step].name} and {path.name}. Move one away."
            )
        by_step[said.step] = path
    if not by_step:
        raise QflError(
            f"{folder} has no step folder. Expected names like step0, step_1000, step-1000, checkpoint-500 or iter_10, "
            "or files like step300.pt and model_step_300.safetensors; give pattern= for others."
        )
    if builder is None and (files := [path.name for path in by_step.values() if not path.is_dir()]):
        raise QflError(
            f"{folder} has state dicts: {', '.join(files[:3])}. Say what their model is: build=, a function that "
            "returns it, or config=, a HookedTransformerConfig or its JSON file."
        )
    _require_whole(folder, by_step, builder)
    names = [named[path] for _, path in sorted(by_step.items())]
    rate = tokens_per_step(names)
    sources = {step: _source(path, builder) for step, path in sorted(by_step.items())}
    return Found(sources, rate, tokens_at(names) if rate is None else None)


def _source(path: Path, builder: Builder | None) -> Source:
    """The checkpoint in a file or folder."""
    return HuggingFace(str(path)) if builder is None else StateDict(path, builder)


def _read(path: Path, pattern: str | None) -> Named | None:
    """What a name says; None where it says no step, or the file is none of weights."""
    is_file = not path.is_dir()
    if is_file and path.suffix not in (*SAFE, *PICKLED):
        return None
    if pattern is None:
        name = path.stem if is_file else path.name
        return None if is_other(name) else read_name(name) or read_name(name, _NUMBERED)
    for name in dict.fromkeys((path.name, path.stem if is_file else path.name)):
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        if "step" in match.re.groupindex:
            said = read_name(name, pattern)
            return said and said._replace(series="")
        if not match.groups() or not str(match.group(1)).isdecimal():
            raise ValueError(
                f"pattern must have a group named step, or a first group that matches the step's digits, got "
                f"{pattern!r}, which matches {name!r}. For example: {REVISION!r}."
            )
        return Named(int(match.group(1)), None, "")
    return None


def _require_whole(folder: Path, by_step: dict[int, Path], builder: Builder | None) -> None:
    """Raise `QflError` where some are half-written, all of them named."""
    broken = [f"{path.name} ({why})" for path in by_step.values() if (why := _lacking(path, builder))]
    if broken:
        raise QflError(
            f"step folders of {folder} are half-written: {', '.join(broken)}. Save them again or delete them."
        )


def _lacking(path: Path, builder: Builder | None) -> str:
    """What a checkpoint lacks; empty where it is whole."""
    if builder is None:
        return lacks(path)
    try:
        return "" if weight_files(path) else "no weights"
    except QflError as error:
        return str(error)
