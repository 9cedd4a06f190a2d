"""The model's forward pass written out, each token at the end of a sequence of its own: what its gradients are made of.

A weight matrix's gradient is `inputs' gradient`: what the matrix read, and the gradient of what it wrote. Both come
from one forward and one backward pass for many tokens, and no weight gradient is formed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from qfl_interp.models.fast_support import require_supported
from qfl_interp.models.fused_ops import ACTIVATIONS

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedTransformer


class Product(NamedTuple):
    """A weight matrix's part: a token's gradient of it is the sum over positions of `inputs[i] gradient[j]`.

    Attributes:
        weight: The parameter's name.
        inputs: What the matrix multiplied.
        gradient: Of the token's loss, with respect to what came out, heads side by side.
    """

    weight: str
    inputs: Float[Tensor, "token pos d_in"]
    gradient: Float[Tensor, "token pos d_out"]


class Tapped(NamedTuple):
    """What every token's gradient of every parameter consists of.

    Attributes:
        losses: Of each token, nats.
        products: The weight matrices.
        whole: The gradients themselves of the small parameters (biases, gains, positions), by name; of the position
            embeddings, those before the sequences' end.
    """

    losses: Float[Tensor, " token"]
    products: list[Product]
    whole: dict[str, Float[Tensor, "token size"]]


class _Op(NamedTuple):
    """An output that parameters had a part in, with what they multiplied and their names."""

    output: Tensor
    inputs: Tensor
    weight: str | None = None
    gain: str | None = None
    bias: str | None = None
    positions: str | None = None


class _Tape:
    """Runs the parameterised operations and remembers them."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.ops: list[_Op] = []

    def _name(self, name: str) -> str | None:
        return name if name in self.parameters else None

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings, plus position embeddings where the model has them. Autograd starts here."""
        matrix = self.parameters["embed.W_E"]
        x = functional.embedding(tokens, matrix)
        positions = self._name("pos_embed.W_pos")
        if positions:
            x = x + self.parameters[positions][: tokens.shape[1]]
        one_hot = functional.one_hot(tokens, len(matrix)).to(matrix.dtype)
        self.ops.append(_Op(x.requires_grad_(), one_hot, weight="embed.W_E", positions=positions))
        return x

    def linear(self, x: Tensor, module: str, which: str) -> Tensor:
        """`x W + b`; of a matrix by heads, the heads side by side."""
        weight, bias = f"{module}.W_{which}", self._name(f"{module}.b_{which}")
        matrix = self.parameters[weight]
        if which in "QKV":
            matrix = matrix.transpose(0, 1).flatten(1)
        elif which == "O":
            matrix = matrix.flatten(0, 1)
        y = functional.linear(x, matrix.t(), self.parameters[bias].flatten() if bias else None)
        self.ops.append(_Op(y, x.detach(), weight=weight, bias=bias))
        return y

    def norm(self, x: Tensor, module: str, eps: float) -> Tensor:
        """LayerNorm, RMS norm where there is no bias, or nothing where there is no norm."""
        gain, bias = f"{module}.w", self._name(f"{module}.b")
        if gain not in self.parameters:
            return x
        shape = (x.shape[-1],)
        if bias:
            normal = functional.layer_norm(x, shape, eps=eps)
            y = torch.addcmul(self.parameters[bias], normal, self.parameters[gain])
        else:
            normal = functional.rms_norm(x, shape, eps=eps)
            y = normal * self.parameters[gain]
        self.ops.append(_Op(y, normal.detach(), gain=gain, bias=bias))
        return y


def tapped(
    model: HookedTransformer,
    parameters: Mapping[str, Tensor],
    tokens: Int[Tensor, "token pos"],
    target: Int[Tensor, " token"],
) -> Tapped:
    """What enters the gradients of the losses of `target`, each predicted by its own sequence's last position.

    `model` gives the shape and the rotary angles alone; `tokens` holds for each target the sequence up to the position
    that predicts it.

    Raises:
        QflError: The model's function is not the one computed here, or hooks are attached.
    """
    tape = _Tape(parameters)
    with torch.enable_grad():
        losses = functional.cross_entropy(_last_logits(tape, model, tokens), target, reduction="none")
        gradients = torch.autograd.grad(losses.sum(), [op.output for op in tape.ops])
    products, whole = [], {}
    for op, gradient in zip(tape.ops, gradients, strict=True):
        if op.weight:
            products.append(Product(op.weight, op.inputs, gradient))
        if op.gain:
            whole[op.gain] = (op.inputs * gradient).sum(1)
        if op.bias:
            whole[op.bias] = gradient.sum(1)
        if op.positions:
            whole[op.positions] = gradient.flatten(1)
    return Tapped(losses.detach(), products, whole)


def _last_logits(tape: _Tape, model: HookedTransformer, tokens: Tensor) -> Tensor:
    """Logits at the last position; the last block asks, and writes, there alone."""
    turn = require_supported(model)
    n_layers, n_heads, eps = model.cfg.n_layers, model.cfg.n_heads, model.cfg.eps
    n_pos = tokens.shape[1]
    x = tape.embed(tokens)
    turn = None if turn is None else turn[:n_pos].to(x.dtype)
    for layer in range(n_layers):
        block = f"blocks.{layer}"
        asked = slice(n_pos - 1 if layer == n_layers - 1 else 0, n_pos)
        z = _attention(tape, tape.norm(x, f"{block}.ln1", eps), f"{block}.attn", n_heads, asked, turn)
        x = x[:, asked] + tape.linear(z, f"{block}.attn", "O")
        if not model.cfg.attn_only:
            x = x + _mlp(tape, tape.norm(x, f"{block}.ln2", eps), f"{block}.mlp", ACTIVATIONS[model.cfg.act_fn])
    return tape.linear(tape.norm(x, "ln_final", eps), "unembed", "U")[:, -1]


def _attention(tape: _Tape, x: Tensor, module: str, n_heads: int, asked: slice, turn: Tensor | None) -> Tensor:
    """The heads' outputs side by side, before W_O, at the positions that ask: all of them, or the last."""
    q, k, v = (
        tape.linear(source, module, which).unflatten(-1, (n_heads, -1)).transpose(1, 2)
        for source, which in ((x[:, asked], "Q"), (x, "K"), (x, "V"))
    )
    if turn is not None:
        q, k = _turned(q, turn[asked]), _turned(k, turn)
    # The last position sees everything: there is nothing to mask.
    z = functional.scaled_dot_product_attention(q, k, v, is_causal=asked.start == 0)
    return z.transpose(1, 2).flatten(2)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Adjacent pairs of the last axis turned by their position's angles."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.view_as_complex(turn.contiguous())).flatten(-2)


def _mlp(tape: _Tape, x: Tensor, module: str, act: Callable[[Tensor], Tensor]) -> Tensor:
    """What the MLP writes: gated where the model has a gate."""
    hidden = tape.linear(x, module, "in")
    if f"{module}.W_gate" in tape.parameters:
        hidden = act(tape.linear(x, module, "gate")) * hidden
    else:
        hidden = act(hidden)
    return tape.linear(hidden, module, "out")
