"""The configuration of a Hugging Face model that a run was recorded of; reads without torch and transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
from qfl_interp.model_sizes import kept_numbers, matrix_flops
from qfl_interp.sites import block_sites


@dataclass(frozen=True)
class HFModelConfig:
    """A causal language model of transformers; `models.hugging_face.described` makes it.

    Args:
        settings: The JSON of its `PretrainedConfig`, keys sorted, without what does not name the model (where it was
            loaded from, how attention is computed, versions).
        parameters: Trainable parameters, tied ones once.
        multiplied: Numbers that a token is multiplied with: the parameters without an embedding that is only looked
            up. Of a mixture of experts these are all experts', so that its FLOPs are an upper bound.
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        n_heads: Attention heads of a block; 0 of a model that has none.
        d_head: Width of a head; 0 likewise.
        d_mlp: Width of a block's MLP; 0 where the configuration does not say.
        weights: A digest of the first recorded weights.
    """

    kind: ClassVar[str] = "hugging_face"

    settings: str
    parameters: int
    multiplied: int
    d_model: int
    n_layers: int
    n_heads: int
    d_head: int
    d_mlp: int
    weights: str | None

    @property
    def cfg(self) -> dict[str, Any]:
        """The fields of the `PretrainedConfig`."""
        return json.loads(self.settings)

    @property
    def style(self) -> str:
        """A word for tables of runs: the model's type."""
        return str(self.cfg["model_type"])

    @property
    def sites(self) -> tuple[str, ...]:
        """The places of `qfl_interp.sites` that its blocks have; some architectures lack "resid_mid" or heads."""
        return block_sites(attn_only=False)

    @property
    def stackable(self) -> bool:
        """Never: stacks know two functions."""
        return False

    def n_parameters(self, *, d_vocab: int, n_ctx: int) -> int:
        """Trainable parameters; the model has a vocabulary and a context length of its own."""
        return self.parameters

    def n_weights(self, *, d_vocab: int) -> int:
        """Numbers in matrices, about: all parameters."""
        return self.parameters

    def kept_numbers(self, *, d_vocab: int) -> int:
        """About how many numbers of one token a forward pass keeps (`model_sizes.kept_numbers`)."""
        return kept_numbers(
            d_model=self.d_model, d_heads=self.n_heads * self.d_head, n_heads=self.n_heads, n_layers=self.n_layers,
            mlp=3 * self.d_mlp, d_vocab=d_vocab,
        )  # fmt: skip

    def nominal_flops(self, n_ctx: float) -> float:
        """Nominal training FLOPs of a token: `6 parameters`, as a `Suite` counts them.

        References:
            Scaling Laws for Neural Language Models (arXiv 2001.08361), section 2.1, with embeddings counted.
        """
        return 6.0 * self.parameters

    def matrix_flops(self, *, n_ctx: int, d_vocab: int) -> float:
        """FLOPs of the matrix products of a token of an update (`model_sizes.matrix_flops`)."""
        d_heads = self.n_heads * self.d_head
        return matrix_flops(weights=self.multiplied, n_layers=self.n_layers, d_heads=d_heads, n_ctx=n_ctx)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        sizes = {name: getattr(self, name) for name in _NUMBERS}
        return {"kind": self.kind, "config": self.cfg, **sizes, "weights": self.weights}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HFModelConfig:
        """The configuration that `to_dict` wrote. Raises `QflError` where a field is unknown or missing."""
        known = {"config", "weights", *_NUMBERS}
        if values.keys() != known:
            raise QflError(
                f"{cls.__name__} does not fit: unknown fields {sorted(values.keys() - known)}, missing fields "
                f"{sorted(known - values.keys())}. The file was written by another version of qfl_interp or by another "
                "program."
            )
        settings = json.dumps(values["config"], sort_keys=True)
        return cls(settings, **{name: values[name] for name in _NUMBERS}, weights=values["weights"])

    def digest(self) -> str:
        """Twelve hexadecimal digits that name it: the SHA-256 of its sorted JSON."""
        return json_digest(self.to_dict())


_NUMBERS = ("parameters", "multiplied", "d_model", "n_layers", "n_heads", "d_head", "d_mlp")
