"""What a run keeps of its task: enough to notice that another one is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from qfl_interp.data.examples import split_hash
from qfl_interp.data.task import Task
from qfl_interp.digests import digest, json_digest
from qfl_interp.seeding import generator

# Examples whose tokens and splits are compared.
_N_EXAMPLES = 64


def task_identity(task: Task) -> dict[str, Any]:
    """A task's class, parameters and, of examples drawn with a fixed seed, digests.

    Keys: "class" as `module:Class`; "parameters" (`Task.parameters`); "sampled", the raw examples; "encoded", their
    tokens and scored tokens; "splits", the hashes that decide their split. Two tasks with equal values draw and encode
    those examples alike and hold out the same.
    """
    examples = task.sample(generator(0, "task/identity"), _N_EXAMPLES)
    batch = task.encode(examples)
    answer_alone = () if batch.prompt_end else (np.array([True]),)
    return {
        "class": f"{type(task).__module__}:{type(task).__qualname__}",
        "parameters": dict(task.parameters),
        "sampled": _digest(examples),
        "encoded": _digest(batch.tokens.numpy(), batch.loss_mask.numpy(), *answer_alone),
        "splits": _digest(split_hash(task.canonical(examples))),
    }


def sealed(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity with `sha256`, a digest of the rest."""
    return identity | {"sha256": json_digest(identity)}


def unsealed(record: dict[str, Any]) -> dict[str, Any] | None:
    """The identity without its digest; None where that is not of what stands there."""
    identity = {key: value for key, value in record.items() if key != "sha256"}
    return identity if record.get("sha256") == json_digest(identity) else None


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What tells two identities apart, each in words: "length is 10 there and 12 here"."""
    words = {
        "sampled": "it draws other examples",
        "encoded": "it encodes examples otherwise",
        "splits": "its splits are others",
    }
    listed = [text for key, text in words.items() if found.get(key) != wanted.get(key)]
    there, here = ({"class": d["class"], **d["parameters"]} for d in (found, wanted))
    changed = [key for key in there | here if there.get(key) != here.get(key)]
    return [f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in changed] + listed


def _digest(*arrays: np.ndarray) -> str:
    """Of shapes and numbers, whatever their types."""
    return digest(*(x for a in arrays for x in (str(a.shape), np.ascontiguousarray(a, dtype=np.uint64).data.cast("B"))))
