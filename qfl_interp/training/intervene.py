"""Interventions that are installed while a model trains: a feature's directions taken out, random ones, or patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.activations.spans import site_span
from qfl_interp.config import Intervene, ProbeConfig
from qfl_interp.data.examples import held_out
from qfl_interp.data.task import NO_POSITION, Batch, Feature, Task
from qfl_interp.errors import QflError
from qfl_interp.interventions.controls import random_planes, through_means
from qfl_interp.interventions.edits import BatchRows, RowInterventions, edit_at
from qfl_interp.interventions.planes import Planes, independent_planes, plane_ablation
from qfl_interp.models.build import HookedModel, layer_count
from qfl_interp.models.hooks import Intervention, Site
from qfl_interp.probes.feature_data import feature_data, not_rare
from qfl_interp.probes.kinds import fit_probes
from qfl_interp.probes.mean_shift import mean_shift
from qfl_interp.seeding import generator

_STATE = "intervention"


def without_directions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimiser's saved state without the directions that a fork keeps beside it."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{_STATE}/")}


class TrainingInterventions:
    """What `Intervene` says, on the model that is trained; its state is the directions it holds.

    Directions are fitted on held-out examples at the fork's first step, and again every `refit_every` steps. A plane
    goes through the mean activation of those examples, so that what is taken out is the variation along it.

    Args:
        model: The model, as it trains.
        task: Has the feature.
        spec: What is done.
        first_step: The fork's, from which refits are counted.

    Raises:
        QflError: No such feature or block, or a label that is asked for does not exist.
    """

    def __init__(self, model: HookedModel, task: Task, spec: Intervene, first_step: int) -> None:
        self.model, self.task, self.spec, self.first_step = model, task, spec, first_step
        self.feature: Feature = task.feature(spec.feature)
        n_layers = layer_count(model)
        self.layers = spec.layers or tuple(range(n_layers))
        for name, values, n in (("layers", self.layers, n_layers), ("labels", spec.labels, self.feature.n_labels)):
            wrong = [value for value in values if not 0 <= value < n]
            if wrong:
                raise QflError(f"{name} of an intervention must lie in [0, {n}), got {wrong}.")
        self.labels = np.array(spec.labels or range(self.feature.n_labels))
        self.planes: Planes | None = None
        self._fitted_at = -1

    def refit(self, step: int) -> None:
        """Fit the directions anew where they are due before the update of a step.

        Raises:
            QflError: Nothing can be taken out: the labels do not vary, or the feature is nowhere read.
        """
        spec = self.spec
        due = spec.refit_every and (step - self.first_step) % spec.refit_every == 0
        if spec.kind == "resample" or (self.planes is not None and (not due or self._fitted_at == step)):
            return
        examples = held_out(self.task, "val", spec.n_fit, seed=spec.seed, stream="intervene")
        positions = self.feature.positions(examples)[:, self.labels]
        there = positions[positions != NO_POSITION]
        if len(there) == 0:
            raise QflError(
                f"an intervention on {spec.feature!r} would never act: no example has a label of it. "
                "Choose another feature."
            )
        tokens, read = self.task.encode(examples).tokens, (int(there.min()), int(there.max()))
        with torch.no_grad():
            span = site_span(self.model, tokens, *read, name=spec.site, layers=self.layers)
        data = not_rare(feature_data(self._chosen_labels(), span, examples))
        weight, fitted = self._directions(data.x, data.y, data.kept)
        if not bool(fitted.any()):
            raise QflError(
                f"an intervention on {spec.feature!r} would never act: none of its labels varies. "
                "Choose another feature."
            )
        # Rows of the planes run over labels, and within a label over the layers.
        planes = Planes(
            weight.transpose(0, 1).flatten(0, 1), torch.zeros(weight.shape[:3]).transpose(0, 1).flatten(0, 1).double(),
            np.tile(np.array(self.layers), len(self.labels)), self._at(torch.from_numpy(positions.astype(np.int64))),
            fitted.transpose(0, 1).flatten(0, 1), spec.site,
        )  # fmt: skip
        means = _means(data.x, data.kept).transpose(0, 1).flatten(0, 1)
        planes = independent_planes(planes)
        if spec.kind == "random":
            planes = random_planes(planes, means, generator(spec.seed, "intervene/random", step))
        else:
            planes = through_means(planes, planes.directions, means)
        self.planes, self._fitted_at = planes._replace(positions=planes.positions[:0]), step

    def _at(self, positions: Int[Tensor, "example label"]) -> Int[Tensor, "example row 1"]:
        """The positions of each row of the planes."""
        return positions.repeat_interleave(len(self.layers), dim=1)[:, :, None]

    def _chosen_labels(self) -> Feature:
        """The feature with the labels that are looked at alone."""
        of, labels = self.feature, self.labels
        return dataclasses.replace(
            of, n_labels=len(labels), labels=lambda x: of.labels(x)[:, labels],
            positions=lambda x: of.positions(x)[:, labels],
        )  # fmt: skip

    def _directions(self, x: Tensor, y: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Directions `[place, label, k, d]` of the probes, or of the class means, and which of them exist."""
        if self.spec.directions == "written":
            shift = mean_shift(self.feature.kind, x, y, example_mask=kept)
            return shift, (shift != 0).any(dim=3)
        probes = fit_probes(self.feature.kind, x, y, ProbeConfig(n_train=self.spec.n_fit), example_mask=kept)
        directions, _, there = probes.all_planes()
        return directions.double(), there

    def on(self, batch: Batch, step: int) -> RowInterventions:
        """What is installed for passes over a batch; `step` decides which examples lend their activations."""
        examples = self.task.decode(batch.tokens)
        positions = torch.from_numpy(self.feature.positions(examples)[:, self.labels].astype(np.int64))
        if self.spec.kind == "resample":
            return self._resampled(positions, step)
        assert self.planes is not None, "refit comes first"
        return plane_ablation(self.planes._replace(positions=self._at(positions)))

    def _resampled(self, positions: Int[Tensor, "example label"], step: int) -> RowInterventions:
        """Each activation replaced by that of another example of the pass at the same label."""

        def make(rows: BatchRows) -> list[Intervention]:
            where = positions[rows]
            if bool((where < 0).any()):
                raise QflError(
                    f"'resample' needs a label that every example has; some have none of {self.feature.name!r}."
                )
            order = generator(self.spec.seed, "intervene/donors", step).permutation(len(where))
            donors = torch.from_numpy(np.roll(order, 1)[np.argsort(order)])
            return [
                edit_at(Site(layer, self.spec.site), lambda x: x[donors.to(x.device)], where, label="resample")
                for layer in self.layers
            ]

        return make

    def tensors(self) -> dict[str, Tensor]:
        """The directions that are held."""
        if self.planes is None:
            return {}
        held = {"directions": self.planes.directions, "offsets": self.planes.offsets, "kept": self.planes.kept}
        layers = torch.from_numpy(np.asarray(self.planes.layers, dtype=np.int64))
        return {f"{_STATE}/{name}": value for name, value in (held | {"layers": layers}).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        found = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{_STATE}/")}
        if found:
            nowhere = torch.zeros(0, len(found["layers"]), 1, dtype=torch.int64)
            layers = found["layers"].numpy()
            self.planes = Planes(
                found["directions"], found["offsets"], layers, nowhere, found["kept"].bool(), self.spec.site
            )


def _means(x: Float[Tensor, "place label example d"], kept: Bool[Tensor, "label example"]) -> Tensor:
    """Mean activation at each place and label, over the examples that have it, float64."""
    return torch.stack(
        [x[:, label, there].double().mean(dim=1) for label, there in enumerate(kept)], dim=1
    ).nan_to_num()
