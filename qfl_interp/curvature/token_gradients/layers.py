"""Per-token weight gradients matrix by matrix, projected on all directions as they are formed.

A token at position p is the end of a sequence of p + 1 tokens: tokens of one position make a batch, with a forward and
a backward pass of their own. Then, tile by tile of every weight matrix (a few thousand entries), the gradients of a
batch are formed by one batched product of what the matrix read and the gradient of what it wrote, and multiplied with
the same tile of all directions while they are in cache. No gradient of a whole matrix ever exists. With P parameters, n
positions and K directions this takes about `(6 n + 2 K) P` operations a token; where all directions are 0 in a tile,
as those of single parameters are in most, nothing is formed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.token_gradients.directional import TokenProjections
from qfl_interp.curvature.token_gradients.tapped import Product, Tapped, tapped
from qfl_interp.curvature.token_losses import TokenLoss

# Tokens of a batch and entries of a tile. On a CPU a thread's share of both, 512 KiB in float32, stays in its own
# second-level cache, beside the directions' tile; a GPU wants few large products.
_TOKENS, _TOKENS_GPU = 64, 1024
_ENTRIES, _ENTRIES_GPU = 2048, 16384
_COLUMNS = 128

_Blocks = Float[Tensor, "direction block d_in d_out"]
# Where bases of several lengths are together.
_Basis = Float[Tensor, "_direction parameter"]
_Tile = Float[Tensor, "_entry _direction"]


def layer_projections(
    loss: TokenLoss,
    parameters: Mapping[str, Tensor],
    bases: Sequence[_Basis],
    *,
    max_bytes: int,
) -> list[TokenProjections]:
    """Losses and derivatives along the directions of each basis; arguments as for `project_on_each`, checked."""
    by_name = [loss.space.unflatten(directions) for directions in bases]
    gradients = [directions.new_zeros(len(loss), len(directions)) for directions in bases]
    losses = bases[0].new_empty(len(loss))
    # Most of it for what is kept of many batches, so that a tile of the directions is copied once for all of them.
    for tokens, parts in _groups(loss, parameters, max_bytes // 4 * 3, max_bytes // 4):
        for whole, found in zip(gradients, _projected(parts, by_name), strict=True):
            whole[tokens] = found
        losses[tokens] = torch.cat([part.losses for part in parts])
        # Or it would live on while the next group is formed.
        del parts
    return [TokenProjections(found, losses) for found in gradients]


def _groups(
    loss: TokenLoss, parameters: Mapping[str, Tensor], kept_bytes: int, batch_bytes: int
) -> Iterator[tuple[Tensor, list[Tapped]]]:
    """Batches of tokens until they hold `kept_bytes`, with the tokens' indices."""
    model: Any = loss.model
    scored = loss.scored
    indices, parts, n_bytes = [], [], 0
    for position in scored.position.unique().tolist():
        at_position = torch.nonzero(scored.position == position).flatten()
        most = _TOKENS_GPU if at_position.is_cuda else _TOKENS
        affordable = batch_bytes // _bytes_per_token(model.cfg, position + 1, loss.dtype)
        for tokens in at_position.split(max(1, min(most, affordable))):
            if n_bytes > kept_bytes:
                yield torch.cat(indices), parts
                indices, parts, n_bytes = [], [], 0
            sequences = scored.tokens[scored.example[tokens], : position + 1]
            indices.append(tokens)
            parts.append(tapped(model, parameters, sequences, scored.target[tokens]))
            n_bytes += sum(product.inputs.nbytes + product.gradient.nbytes for product in parts[-1].products)
    yield torch.cat(indices), parts


def _bytes_per_token(cfg: Any, n_pos: int, dtype: torch.dtype) -> int:
    """Working memory of a batch's forward and backward pass for each token: what autograd keeps, and the gradients."""
    layer = 20 * cfg.d_model + 6 * cfg.d_mlp + 4 * cfg.n_heads * n_pos
    return dtype.itemsize * n_pos * (cfg.n_layers * layer + 2 * cfg.d_vocab)


def _projected(parts: list[Tapped], bases: Sequence[Mapping[str, Tensor]]) -> list[Float[Tensor, "token _direction"]]:
    """The derivatives along each basis's directions, given by name as `[direction, *shape]`, of all batches' tokens."""
    sizes = [len(part.losses) for part in parts]
    every = [next(iter(basis.values())) for basis in bases]
    found = [some.new_zeros(sum(sizes), len(some)) for some in every]
    totals = [total.split(sizes) for total in found]
    for own, basis in zip(totals, bases, strict=True):
        for total, part in zip(own, parts, strict=True):
            for name, gradient in part.whole.items():
                total.addmm_(gradient, basis[name].flatten(1)[:, : gradient.shape[1]].t())
    for products in zip(*(part.products for part in parts), strict=True):
        # Queries, keys and values are stored head by head, [head, d_model, d_head]; other matrices are one block.
        of_matrix = [basis[products[0].weight] for basis in bases]
        d_in = products[0].inputs.shape[-1]
        blocks = [matrix.reshape(len(matrix), -1, d_in, matrix.shape[-1]) for matrix in of_matrix]
        if all(product.inputs.shape[1] == 1 for product in products):
            for total, own in zip(found, blocks, strict=True):
                _add_outer(total, products, own)
        else:
            _add_product(totals, products, blocks)
    return found


def _add_outer(total: Float[Tensor, "token direction"], products: tuple[Product, ...], blocks: _Blocks) -> None:
    """Add the part of a matrix that was read at one position: `inputs' b gradient`, with nothing to form."""
    inputs = torch.cat([product.inputs[:, 0] for product in products])
    gradient = torch.cat([product.gradient[:, 0] for product in products])
    for column, heads in enumerate(blocks):
        total[:, column] += torch.linalg.vecdot(inputs @ heads.transpose(0, 1).flatten(1), gradient)


def _add_product(
    totals: Sequence[Sequence[Tensor]],
    products: tuple[Product, ...],
    bases: Sequence[Float[Tensor, "_direction block d_in d_out"]],
) -> None:
    """Add a matrix's part: every token's `inputs' gradient`, entry by entry times the directions', tile by tile.

    `totals` holds a tensor `[token, direction]` for each basis and batch of tokens.
    """
    formed = bases[0].new_empty(max(map(len, totals[0])) * _entries(bases[0].device))
    for rows, columns, tiles in _tiles(bases):
        for index, product in enumerate(products):
            read, written = product.inputs[..., rows], product.gradient[..., columns]
            entries = read.shape[2] * written.shape[2]
            gradients = formed[: len(read) * entries].view(len(read), read.shape[2], written.shape[2])
            torch.bmm(read.transpose(1, 2), written, out=gradients)
            for own, tile in zip(totals, tiles, strict=True):
                if tile is not None:
                    own[index].addmm_(gradients.flatten(1), tile)


def _entries(device: torch.device) -> int:
    """Entries of a tile."""
    return _ENTRIES_GPU if device.type == "cuda" else _ENTRIES * torch.get_num_threads()


def _tiles(
    bases: Sequence[Float[Tensor, "_direction block d_in d_out"]],
) -> Iterator[tuple[slice, slice, list[_Tile | None]]]:
    """Rows and columns of a matrix, heads side by side, and each basis's directions there, an entry a row.

    None for a basis of which all directions are 0 there; where all bases are, the tile is left out.
    """
    _, n_blocks, d_in, d_out = bases[0].shape
    width = min(_COLUMNS, d_out)
    height = max(1, _entries(bases[0].device) // width)
    copied = [blocks.new_empty(width * height * len(blocks)) for blocks in bases]
    for block, left, top in itertools.product(range(n_blocks), range(0, d_out, width), range(0, d_in, height)):
        parts = [blocks[:, block, top : top + height, left : left + width].permute(1, 2, 0) for blocks in bases]
        tiles = [
            buffer[: part.numel()].view(part.shape).copy_(part).flatten(0, 1) if part.any() else None
            for buffer, part in zip(copied, parts, strict=True)
        ]
        if any(tile is not None for tile in tiles):
            first = block * d_out + left
            yield slice(top, top + len(parts[0])), slice(first, first + parts[0].shape[1]), tiles
