"""What a run keeps of its task: enough to notice that another one is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qfl_interp.digests import digest
from qfl_interp.sealed import sealed_json, unsealed
from qfl_interp.seeding import generator

if TYPE_CHECKING:
    from qfl_interp.data.task import Task
    from qfl_interp.shapes import Examples

# Examples whose tokens and splits are compared.
_N_EXAMPLES = 64
# Of the checksum in a file.
_SEAL_DIGITS = 12
# 2: the library's own tasks are modules of `qfl_interp.tasks`; they were of `tasks` in a file without a format.
_FORMAT = 2


def task_identity(task: Task, *, labels: bool = True) -> dict[str, Any]:
    """A task's class, parameters and, of examples drawn with a fixed seed, digests.

    Keys: "class" as `module:Class`; "parameters" (`Task.parameters`); "sampled", the raw examples; "encoded", their
    tokens and scored tokens; "splits", the hashes that decide their split; "features", names, kinds, labels and where
    they are read, left out without `labels`. Two tasks with equal values draw, encode and label those examples alike
    and hold out the same.
    """
    from qfl_interp.data.examples import split_hash

    examples = task.sample(generator(0, "task/identity"), _N_EXAMPLES)
    batch = task.encode(examples)
    share = task.split_share(examples)
    extra = () if batch.prompt_end else (np.array([True]),)
    tokens = batch.tokens.numpy()
    if batch.targets is not None:
        tokens, extra = _bits(tokens), (*extra, _bits(batch.targets.numpy()))
    identity = {
        # A worker process knows the script that started it by another name.
        "class": f"{type(task).__module__}:{type(task).__qualname__}".replace("__mp_main__:", "__main__:"),
        "parameters": dict(task.parameters),
        "sampled": _digest(examples),
        "encoded": _digest(tokens, batch.loss_mask.numpy(), *extra),
        "splits": _digest(split_hash(task.canonical(examples)) if share is None else share.view(np.uint64)),
    }
    return identity | ({"features": _features_digest(task, examples)} if labels else {})


def identity_json(task: Task) -> bytes:
    """The text of a file that holds a task's identity and its checksum."""
    return sealed_json({"format": _FORMAT} | task_identity(task), _SEAL_DIGITS)


def identity_in(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The identity that such a file holds; None where that is not what was written."""
    found = unsealed(record, _SEAL_DIGITS)
    if found is None or not found.checked:
        return None
    values = dict(found.values)
    if values.pop("format", 1) == 1 and str(values.get("class")).startswith("tasks."):
        values["class"] = f"qfl_interp.{values['class']}"
    return values


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What tells two identities apart, each in words: "length is 10 there and 12 here"."""
    words = {
        "sampled": "it draws other examples",
        "encoded": "it encodes examples otherwise",
        "splits": "its splits are others",
        "features": "its features are others",
    }
    # Runs of before say nothing of features; a registered task's may be mended.
    listed = [text for key, text in words.items() if key in found and key in wanted and found[key] != wanted[key]]
    there, here = ({"class": d["class"], **d["parameters"]} for d in (found, wanted))
    changed = [key for key in there | here if there.get(key) != here.get(key)]
    return [f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in changed] + listed


def _features_digest(task: Task, examples: Examples) -> str:
    """Of the labels of all features and where they are read."""
    parts: list[str | memoryview] = []
    for name, feature in sorted(task.features.items()):
        parts.append(f"{name}\0{feature.kind}")
        for found in (feature.labels(examples), feature.positions(examples)):
            values = np.ascontiguousarray(found, dtype=np.float64)
            parts += [str(values.shape), values.data.cast("B")]
    return digest(*parts)


def _bits(values: np.ndarray) -> np.ndarray:
    """Numbers as integers that tell them apart."""
    return np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)


def _digest(*arrays: np.ndarray) -> str:
    """Of shapes and numbers, whatever their types."""
    return digest(*(x for a in arrays for x in (str(a.shape), np.ascontiguousarray(a, dtype=np.uint64).data.cast("B"))))
