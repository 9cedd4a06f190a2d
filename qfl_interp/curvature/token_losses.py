"""The loss of every single scored token as a function of a model's parameters, differentiable to any order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.data.task import Batch
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel, model_device, model_in_dtype, parameters_to_save
from qfl_interp.models.fast_forward import fast_logits
from qfl_interp.models.forward import is_fast
from qfl_interp.models.fused_ops import plain_operations
from qfl_interp.models.losses import Target, is_scored, token_losses_of
from qfl_interp.models.metrics import scored_span, targets
from qfl_interp.models.plain_modules import plain_modules
from qfl_interp.shapes import Tokens


@dataclass(frozen=True)
class ScoredTokens:
    """Sequences, and which of their tokens are scored one by one; ordered by example, then by position.

    A token's `position` is the one that *predicts* it, one before its own, in the row `example` of `tokens`; the last
    scored token, and what follows it, is cut off.
    """

    tokens: Tokens
    example: Int[Tensor, " token"]
    position: Int[Tensor, " token"]
    target: Target

    def __len__(self) -> int:
        """How many tokens are scored."""
        return len(self.target)

    def of_examples(self, rows: slice) -> ScoredTokens:
        """The scored tokens of some of the sequences, whose rows count from 0 again."""
        start, stop, _ = rows.indices(len(self.tokens))
        kept = (self.example >= start) & (self.example < stop)
        return ScoredTokens(self.tokens[start:stop], self.example[kept] - start, self.position[kept], self.target[kept])

    def to(self, device: str | torch.device) -> ScoredTokens:
        """The same on another device."""
        fields = (self.tokens, self.example, self.position, self.target)
        return ScoredTokens(*(field.to(device) for field in fields))


def scored_tokens(batch: Batch, *, prompt_end: bool = False, prompt: bool = False) -> ScoredTokens:
    """The tokens of a batch that are scored.

    With `prompt_end` the last token of the prompt (`=`) is too where the batch scores it, as in the quiet-features
    paper's loss. With `prompt` every token of the prompt is as well, but the first, which nothing predicts. By default
    the answer alone.

    Raises:
        ValueError: Nothing is scored.
    """
    mask = batch.loss_mask if prompt_end else batch.answer_mask
    if prompt:
        mask = batch.loss_mask.flip(1).cummax(dim=1).values.flip(1)
        mask[:, 0] = False
    span = scored_span(mask | batch.loss_mask)
    target = targets(batch.wanted, mask, span)
    example, place = torch.nonzero(is_scored(target), as_tuple=True)
    if len(example) == 0:
        raise ValueError("batch must score at least one token of an answer, got none: loss_mask keeps the prompt only.")
    return ScoredTokens(batch.tokens[:, : span.stop], example, span.start + place, target[example, place])


# What torch says of an operation without a derivative in forward mode or under its function transforms.
_NO_DERIVATIVE = ("forward AD", "functorch")


class TokenLoss:
    """The loss of each scored token as a function of the parameters, `theta -> [token]`: cross-entropy, in nats.

    Computed with other tensors in the parameters' place (`torch.func.functional_call`), from operations that have
    derivatives of every order in both modes: by `fast_logits`, at the positions that predict a scored token, where it
    knows the model and nothing is hooked, else by the model itself with the hooks it has. The model is not changed.

    `dtype` is the precision of everything; a model in another one is copied first. The model is in evaluation mode.
    `loss` names another one, as `TrainConfig.loss` does; of real-valued targets it is half the squared error.
    """

    def __init__(
        self,
        model: HookedModel,
        scored: ScoredTokens,
        *,
        dtype: torch.dtype = torch.float32,
        loss: str | None = None,
    ) -> None:
        self.model = model_in_dtype(model, dtype)
        self.scored = scored.to(model_device(self.model))
        self.dtype = dtype
        self.loss = loss or ("squared_error" if scored.target.is_floating_point() else "cross_entropy")
        # Outside of any transformed call, whose tensors must not be remembered: the positions that predict scored
        # tokens, which of them predicts each token, and what `is_fast` keeps of a model.
        asked, self._place = self.scored.position.unique(return_inverse=True)
        self._asked = asked.cpu()
        is_fast(self.model)

    def __len__(self) -> int:
        """How many tokens are scored."""
        return len(self.scored)

    def __repr__(self) -> str:
        return f"TokenLoss({len(self)} tokens of {len(self.scored.tokens)} examples, {self.space!r}, {self.dtype})"

    @cached_property
    def space(self) -> ParameterSpace:
        """The parameters as a vector."""
        return ParameterSpace.of(self.model)

    def parameters(self) -> dict[str, Tensor]:
        """The model's own parameters by name, detached; they share its memory."""
        return parameters_to_save(self.model)

    def own(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of parameters, detached, on the loss's device and in its precision.

        Raises:
            ValueError: They are not those of the loss.
        """
        vector = self.space.flatten(parameters).detach().to(self.scored.tokens.device, self.dtype)
        # Tensors of their own: of a view, forward mode would hold a tangent as large as the whole vector.
        return {name: part.clone() for name, part in self.space.unflatten(vector).items()}

    def chunks(self, n_examples: int) -> Iterator[TokenLoss]:
        """The same loss on `n_examples` sequences at a time, in order: what bounds memory."""
        for start in range(0, len(self.scored.tokens), n_examples):
            part = self.scored.of_examples(slice(start, start + n_examples))
            if len(part):
                yield TokenLoss(self.model, part, dtype=self.dtype, loss=self.loss)

    def __call__(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, " token"]:
        """The loss of each scored token at these parameters; differentiable.

        Raises:
            QflError: The model computes something that torch has no such derivative of.
        """
        scored = self.scored
        try:
            # Of torch's kernels of attention, the one with derivatives of every order.
            with sdpa_kernel(SDPBackend.MATH), plain_operations(), plain_modules(self.model):
                logits = self._logits(parameters)
        except RuntimeError as error:  # NotImplementedError is one
            if not any(word in str(error) for word in _NO_DERIVATIVE):
                raise
            why = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
            raise QflError(
                f"{_model_name(self.model)} has no forward-mode derivatives, which curvature and POLCA need: {why}. "
                "Replace that operation by one of plain tensors, or take other lenses."
            ) from error
        return token_losses_of(self.loss)(logits, scored.target)

    def _logits(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, "token d_vocab"]:
        """What predicts each scored token."""
        scored = self.scored
        if not is_fast(self.model):
            logits = functional_call(self.model, dict(parameters), (scored.tokens,))
            return logits[scored.example, scored.position]
        inside = {f"model.{name}": tensor for name, tensor in parameters.items()}
        return functional_call(_At(self.model), inside, (scored.tokens, self._asked))[scored.example, self._place]

    @torch.no_grad()
    def values(self, parameters: Mapping[str, Tensor], *, chunk: int = 256) -> Float[Tensor, " token"]:
        """The losses without derivatives, `chunk` sequences at a time.

        Raises:
            ValueError: A loss is not finite; names the token.
        """
        losses = torch.cat([part(parameters) for part in self.chunks(chunk)])
        require_finite(losses, "loss of the tokens")
        return losses


class _At(nn.Module):
    """`fast_logits` of a model as a module, in which other parameters can be put."""

    def __init__(self, model: HookedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tokens, positions: Int[Tensor, " asked"]) -> Float[Tensor, "batch asked d_vocab"]:
        return fast_logits(self.model, tokens, positions)  # pyright: ignore[reportArgumentType]  # `is_fast` said so


def _model_name(model: HookedModel) -> str:
    """The class of the model, or of the one that a bridge wraps."""
    return type(getattr(model, "original_model", model)).__name__


def require_finite_parameters(parameters: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` with the first parameter that has a NaN or an infinity: fused attention can hide one."""
    for name, tensor in parameters.items():
        require_finite(tensor, f"parameter {name}")


def require_finite(values: Tensor, what: str) -> None:
    """Raise `ValueError` with the first entry that is NaN or infinite."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        where = tuple(int(i) for i in torch.nonzero(~finite)[0])
        count = math.prod(values.shape) - int(finite.sum())
        raise ValueError(
            f"{what} must be finite, got {float(values[where])} at {list(where)} and in {count} of {values.numel()} "
            "entries. Did the run diverge?"
        )
