"""Checks for what others write: `check_task` says whether a task keeps what lenses and training rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.testing.task_contract import check_task as check_task

__getattr__, __dir__ = lazy_names(__name__)
