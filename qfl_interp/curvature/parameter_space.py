"""A model's trained parameters as one vector: the space in which directions, Hessians and training steps live."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qfl_interp.models.build import parameters_to_save


@dataclass(frozen=True)
class ParameterSpace:
    """Names and shapes of trained parameters, in the order in which they lie in a vector.

    Example:
        >>> space = ParameterSpace({"W": (2, 2), "b": (1,)})
        >>> {name: part.tolist() for name, part in space.unflatten(torch.arange(5.0)).items()}
        {'W': [[0.0, 1.0], [2.0, 3.0]], 'b': [4.0]}
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> ParameterSpace:
        """The space of a model's trained parameters; frozen biases are not in it."""
        return cls({name: tuple(tensor.shape) for name, tensor in parameters_to_save(model).items()})

    @property
    def sizes(self) -> dict[str, int]:
        """How many coordinates each parameter has."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    def __len__(self) -> int:
        """How many coordinates a vector has."""
        return sum(self.sizes.values())

    def __repr__(self) -> str:
        return f"ParameterSpace({len(self.shapes)} parameters, {len(self):,} coordinates)"

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " parameter"]:
        """The vector of tensors by name, a copy.

        Raises:
            ValueError: A name or a shape does not fit; the first few that do not are listed.
        """
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        faults = [
            f"{name} is {found.get(name, 'missing')} instead of {self.shapes.get(name, 'absent')}"
            for name in sorted(found.keys() | self.shapes.keys())
            if found.get(name) != self.shapes.get(name)
        ]
        if faults:
            raise ValueError(
                f"tensors must have the names and shapes of {self!r}, got {len(faults)} that differ: "
                f"{'; '.join(faults[:5])}. Are they of a model of another shape?"
            )
        return torch.cat([tensors[name].flatten() for name in self.shapes])

    def unflatten(self, vectors: Float[Tensor, "*rows parameter"]) -> dict[str, Tensor]:
        """The parts of one or several vectors by name, each a view `[*rows, *shape]`.

        Raises:
            ValueError: The last axis does not have as many entries as there are coordinates.
        """
        if vectors.shape[-1] != len(self):
            raise ValueError(f"vectors must have {len(self)} coordinates, got shape {tuple(vectors.shape)}.")
        parts = vectors.split(list(self.sizes.values()), dim=-1)
        rows = vectors.shape[:-1]
        return {
            name: part.reshape((*rows, *shape)) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
