"""What a path on the command line names: a run directory, or a file of a suite."""

from __future__ import annotations

import re
from pathlib import Path

from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.runs.config import CONFIG_FILE, is_foreign_config
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints

# Names of checkpoints of other trainings.
_CHECKPOINT = re.compile(r"(?i).*(step|checkpoint|ckpt|iter)[a-z]*[-_]?\d.*")


def open_checkpoints(path: str | Path) -> Checkpoints:
    """The run in a directory, or the suite that a file names.

    Raises:
        QflError: It is neither; where it holds checkpoints of another training, with the command that opens those.
    """
    place = local_path(path)
    if place.is_file():
        from qfl_interp.runs.suite_file import open_suite_file  # with transformers: seconds

        return open_suite_file(place)
    if found := foreign_checkpoints(place):
        raise QflError(
            f"{place} is no run of this library, but holds checkpoints ({found}). Say once what they are examined on: "
            f"`qfl suite open {place} --dataset FILE --out my.suite` (or `--task NAME`), and give my.suite to this "
            "command."
        )
    return Run.open(place)


def is_checkpoints(path: str | Path) -> bool:
    """Whether a path names what `open_checkpoints` opens, as far as a look at it tells."""
    place = Path(path)
    return place.is_file() or ((place / CONFIG_FILE).is_file() and not is_foreign_config(place / CONFIG_FILE))


def foreign_checkpoints(folder: Path) -> str:
    """Some checkpoints of another training in a folder that is no run, in words; empty where there are none."""
    if is_foreign_config(folder / CONFIG_FILE):
        return "one model; move it into a folder of its step, as step1000"
    if not folder.is_dir() or (folder / CONFIG_FILE).exists():
        return ""
    names = sorted(one.name for one in folder.iterdir() if _CHECKPOINT.fullmatch(one.name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
