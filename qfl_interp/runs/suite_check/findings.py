"""What a check finds, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

# Names of tensors that a sentence lists.
_SHOWN = 3


class Finding(NamedTuple):
    """Something about a checkpoint that should not be so.

    Attributes:
        step: Which one.
        kind: "unreadable", "not finite", "dtype", "tensors", "identical", "shard", "jump", "order", "break",
            "not fresh", "loss", "gap".
        severity: "fault", or "note" where it may well be meant so.
        tensors: Their names; empty where it is the whole checkpoint.
        text: What was found, and what to do.
    """

    step: int
    kind: str
    severity: Literal["fault", "note"]
    tensors: tuple[str, ...]
    text: str


def named(tensors: Sequence[str]) -> str:
    """Some names in words."""
    more = f" and {len(tensors) - _SHOWN} more" if len(tensors) > _SHOWN else ""
    return ", ".join(tensors[:_SHOWN]) + more
