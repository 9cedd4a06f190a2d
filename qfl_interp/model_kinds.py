"""The kinds of model configuration that a run can have, and what is asked of each; reads without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from qfl_interp.config import ModelConfig
from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.hf_model_config import HFModelConfig
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.model_sizes import kept_numbers, matrix_flops, nominal_flops
from qfl_interp.sites import block_sites


@runtime_checkable
class AnyModelConfig(Protocol):
    """What a run, its training and its sweeps ask of a model's configuration; it is frozen and hashable.

    A further kind has such a class, an entry in `KINDS`, and one in `models.build.BUILDERS`, which makes its models.

    Attributes:
        kind: What tells it from other kinds in `config.json`.
    """

    kind: ClassVar[str]

    @property
    def d_model(self) -> int:
        """Width of what flows from block to block."""
        ...

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        ...

    @property
    def n_heads(self) -> int:
        """Attention heads of a block."""
        ...

    @property
    def style(self) -> str:
        """A word for tables of runs."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """The places of `qfl_interp.sites` that its blocks have."""
        ...

    @property
    def weights(self) -> str | None:
        """A digest of the initial weights where they were given, else None: then the run's seed decides them."""
        ...

    @property
    def stackable(self) -> bool:
        """Whether `training.stacked` computes its function for several models at once."""
        ...

    def n_parameters(self, *, d_vocab: int, n_ctx: int) -> int:
        """Trainable parameters for a vocabulary and a context length."""
        ...

    def n_weights(self, *, d_vocab: int) -> int:
        """Numbers in matrices, about; what memory is reckoned by."""
        ...

    def kept_numbers(self, *, d_vocab: int) -> int:
        """About how many numbers of one token a forward pass keeps for the backward pass."""
        ...

    def nominal_flops(self, n_ctx: float) -> float:
        """Nominal training FLOPs of a token, which a budget is divided by."""
        ...

    def matrix_flops(self, *, n_ctx: int, d_vocab: int) -> float:
        """FLOPs of the matrix products of a token of an update."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, `kind` among them unless it is "transformer"."""
        ...

    def digest(self) -> str:
        """Twelve hexadecimal digits that name it."""
        ...


@dataclass(frozen=True)
class LensModelConfig:
    """A model that was given as TransformerLens's own configuration or model; `models.given.model_config` makes it.

    Args:
        settings: The JSON of the `HookedTransformerConfig`, keys sorted, without what does not name the model (device,
            seed).
        parameters: Trainable parameters.
        multiplied: Numbers in the matrices that a token is multiplied with. Of a mixture of experts these are all
            experts', so that its FLOPs are an upper bound.
        weights: A digest of the initial weights of a model that was given; None where the run's seed decides them.
        frozen: Names of parameters that are not trained.
        drawn_as: The JSON of the `ModelConfig` whose model it is, where `build_model` made it: fresh models are drawn
            as that one was, not as TransformerLens draws.
    """

    kind: ClassVar[str] = "transformer_lens"

    settings: str
    parameters: int
    multiplied: int
    weights: str | None = None
    frozen: tuple[str, ...] = ()
    drawn_as: str | None = None

    @property
    def cfg(self) -> dict[str, Any]:
        """The fields of the `HookedTransformerConfig`."""
        return json.loads(self.settings)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.cfg["d_model"]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.cfg["n_layers"]

    @property
    def n_heads(self) -> int:
        """Attention heads of a block."""
        return self.cfg["n_heads"]

    @property
    def style(self) -> str:
        """A word for tables of runs."""
        return self.kind

    @property
    def sites(self) -> tuple[str, ...]:
        """The places of `qfl_interp.sites` that its blocks have."""
        return block_sites(attn_only=self.cfg["attn_only"])

    @property
    def stackable(self) -> bool:
        """Never: stacks know two functions."""
        return False

    def n_parameters(self, *, d_vocab: int, n_ctx: int) -> int:
        """Trainable parameters; the model has a vocabulary and a context length of its own."""
        return self.parameters

    def n_weights(self, *, d_vocab: int) -> int:
        """Numbers in the blocks' matrices, the unembedding and the embedding."""
        return self.multiplied + self.cfg["d_vocab"] * self.d_model

    def kept_numbers(self, *, d_vocab: int) -> int:
        """About how many numbers of one token a forward pass keeps (`model_sizes.kept_numbers`)."""
        cfg = self.cfg
        mlp = 0 if cfg["attn_only"] else (3 if cfg["gated_mlp"] else 2) * cfg["d_mlp"]
        return kept_numbers(
            d_model=self.d_model, d_heads=self._d_heads, n_heads=self.n_heads, n_layers=self.n_layers, mlp=mlp,
            d_vocab=cfg["d_vocab"],
        )  # fmt: skip

    def nominal_flops(self, n_ctx: float) -> float:
        """Nominal training FLOPs of a token in sequences of `n_ctx` real tokens (`model_sizes.nominal_flops`)."""
        attn_only = self.cfg["attn_only"]
        return nominal_flops(d_model=self.d_model, n_layers=self.n_layers, n_ctx=n_ctx, attn_only=attn_only)

    def matrix_flops(self, *, n_ctx: int, d_vocab: int) -> float:
        """FLOPs of the matrix products of a token of an update (`model_sizes.matrix_flops`)."""
        return matrix_flops(weights=self.multiplied, n_layers=self.n_layers, d_heads=self._d_heads, n_ctx=n_ctx)

    @property
    def _d_heads(self) -> int:
        return self.n_heads * self.cfg["d_head"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; those of a model that `build_model` did not make are as they were before it was noted."""
        drawn_as = {} if self.drawn_as is None else {"drawn_as": json.loads(self.drawn_as)}
        return {
            "kind": self.kind, "config": self.cfg, "parameters": self.parameters, "multiplied": self.multiplied,
            "weights": self.weights, "frozen": list(self.frozen), **drawn_as,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LensModelConfig:
        """The configuration that `to_dict` wrote. Raises `QflError` where a field is unknown or missing."""
        known = {"config", "parameters", "multiplied", "weights", "frozen"}
        found = values.keys() - {"drawn_as"}
        if found != known:
            raise QflError(
                f"{cls.__name__} does not fit: unknown fields {sorted(found - known)}, missing fields "
                f"{sorted(known - found)}. The file was written by another version of qfl_interp or by another "
                "program."
            )
        settings = json.dumps(values["config"], sort_keys=True)
        drawn_as = json.dumps(values["drawn_as"], sort_keys=True) if "drawn_as" in values else None
        numbers = values["parameters"], values["multiplied"]
        return cls(settings, *numbers, values["weights"], tuple(values["frozen"]), drawn_as)

    def digest(self) -> str:
        """Twelve hexadecimal digits that name it: the SHA-256 of its sorted JSON."""
        return json_digest(self.to_dict())


KINDS: dict[str, Any] = {made.kind: made for made in (ModelConfig, LensModelConfig, MLPConfig, HFModelConfig)}


def model_config_from_dict(values: dict[str, Any]) -> AnyModelConfig:
    """The model configuration that `to_dict` wrote, of the kind it says; a `ModelConfig` says none.

    Raises:
        QflError: The kind is unknown, or its fields do not fit.
    """
    kind = values.get("kind", ModelConfig.kind)
    if kind not in KINDS:
        raise unknown_name("kind of model configuration", kind, KINDS)
    return KINDS[kind].from_dict({name: value for name, value in values.items() if name != "kind"})
