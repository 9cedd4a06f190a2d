"""What probes are fitted on, what their parts are called, and the probes read back: for every lens that uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from qfl_interp.activations.spans import Place
from qfl_interp.activations.store_entry import StoreKey
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.config import ProbeConfig
from qfl_interp.data.examples import held_out
from qfl_interp.data.task import NO_POSITION, Feature, Task
from qfl_interp.probes import load_probes
from qfl_interp.runs.series import Checkpoints
from qfl_interp.shapes import Examples

TABLE = "probe"


class ProbeData(NamedTuple):
    """The fixed examples of all probes of one run; disjoint from its training stream and from each other.

    Attributes:
        train: What probes are fitted on.
        test: What they are scored on.
        validation: What a penalty is chosen on; no rows where none is chosen.
    """

    train: Examples
    test: Examples
    validation: Examples


def probe_data(run: Checkpoints, config: ProbeConfig) -> ProbeData:
    """Examples to fit and choose on, from the split "val", and to score on, from "test"; fewer where it holds fewer."""
    n_val = config.n_val if config.path else 0
    drawn = held_out(run.task, "val", config.n_train + n_val, seed=config.seed, stream="probe")
    n_train = len(drawn) * config.n_train // (config.n_train + n_val)
    test = held_out(run.task, "test", config.n_test, seed=config.seed, stream="probe")
    return ProbeData(drawn[:n_train], test, drawn[n_train:])


def part_name(at: ModelAt | str, feature: str, config: ProbeConfig) -> str:
    """The table part of one model and feature under one configuration."""
    return f"{at}-{feature}-{config.digest()}"


def probe_tensors(run: Checkpoints, step: int, feature: str, config: ProbeConfig) -> dict[str, Tensor]:
    """What is kept with the probes of one feature at one step: see `probe`."""
    return run.table(TABLE).read_tensors(part_name(ModelAt(step), feature, config))


def store_key(run: Checkpoints, step: int, part: str, examples: Examples, config: ProbeConfig) -> StoreKey:
    """What the activation store calls a checkpoint on one of the probes' sets of examples."""
    # Examples to choose on are drawn with those to fit on, which are then others.
    drawn = f"_of_{config.n_train + config.n_val}" if config.path and part != "test" else ""
    dataset = f"probe_{part}_{len(examples)}{drawn}_seed{config.seed}"
    return StoreKey(run.run_id, step, dataset, run.weights(step) or "")


def read_span(task: Task, examples: Examples) -> tuple[int, int]:
    """The first and the last position that some feature of the task reads in some example."""
    positions = np.concatenate([f.positions(examples).ravel() for f in task.features.values()])
    read = positions[positions != NO_POSITION]
    return int(read.min()), int(read.max())


def place_columns(places: Sequence[Place], n_labels: int) -> dict[str, np.ndarray]:
    """Columns of a table with one row a place and label."""
    return {
        "layer": np.repeat([place.layer for place in places], n_labels),
        "head": np.repeat([place.head for place in places], n_labels),
        "label": np.tile(np.arange(n_labels), len(places)),
    }


class StoredProbes(NamedTuple):
    """Probes read back as planes: `[place, label, k, d]`, and the training loss they are chosen by."""

    weight: Tensor
    intercept: Tensor
    fitted: Tensor
    train_loss: np.ndarray


def stored_probes(run: Checkpoints, feature: Feature, step: int, config: ProbeConfig) -> StoredProbes:
    """The planes on which the probes of one feature at one step cannot tell its classes apart (`Probes.planes`)."""
    part, table = part_name(ModelAt(step), feature.name, config), run.table(TABLE)
    probes, rows = load_probes(feature.kind, table.read_tensors(part)), table.read([part])
    weight, intercept, fitted = probes.all_planes()
    loss = rows.pivot(index=["layer", "head"], columns="label", values="train_loss").to_numpy(dtype=float)
    return StoredProbes(weight.float(), intercept.float(), fitted, loss)
