"""Optional mirrors of a run's metrics: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from qfl_interp.errors import QflError


class Logger(Protocol):
    """What `train` calls; the run's own metrics are written whatever a logger does."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one step."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


def _require(module: str, package: str) -> Any:
    """The optional module, or the error that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise QflError(f"{package} is not installed. Run: pip install 'qfl-interp[loggers]'.") from error


class TensorBoardLogger:
    """Scalars as TensorBoard event files.

    Raises:
        QflError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        _require("tensorboard", "tensorboard")
        self._writer = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar a value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WandbLogger:
    """Scalars to Weights & Biases.

    `mode` is wandb's: "online", "offline" or "disabled".

    Raises:
        QflError: wandb is not installed, or starts no run (no login, no network).
    """

    def __init__(self, project: str, *, config: Mapping[str, Any] | None = None, mode: str = "online") -> None:
        init = _require("wandb", "wandb").init
        try:
            self._run = init(project=project, config=dict(config or {}), mode=mode)
        except Exception as error:  # its own, of many kinds: no login, no network, a bad name
            raise QflError(
                f"Weights & Biases cannot start a run of project {project!r}: {error} Log in, or leave the mirror out."
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()
