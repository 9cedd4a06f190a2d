"""Minimum description length of a feature's labels given the activations, by the online (prequential) code."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from qfl_interp.config import ProbeConfig
from qfl_interp.data.task import FeatureKind
from qfl_interp.probes.kinds import count_classes, fit_probes
from qfl_interp.probes.result import Activations, ExampleMask, ProbeMetric, Probes

# The shares of the examples after which a probe is fitted anew; Voita and Titov's.
FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class OnlineCode:
    """How many bits the labels take, sent block by block with probes fitted on the blocks before.

    Attributes:
        codelength: Bits of all labels by the online code; NaN where a label has no example.
        uniform: Bits by the uniform code, `n log2 K`.
        compression: `uniform / codelength`; 1: the activations say nothing the probe finds.
        block_bits: Bits of each block; they sum to `codelength`.
        block_ends: Examples sent when each block ends.
    """

    codelength: ProbeMetric
    uniform: ProbeMetric
    compression: ProbeMetric
    block_bits: Float[Tensor, "block layer label output"]
    block_ends: Int[Tensor, " block"]

    def __repr__(self) -> str:
        return (
            f"OnlineCode({' x '.join(map(str, self.codelength.shape))} layers x labels x outputs, "
            f"{len(self.block_ends)} blocks, {int(self.block_ends[-1])} examples)"
        )


def _ends(n_examples: int, fractions: Sequence[float]) -> list[int]:
    """Where blocks end, in examples."""
    rising = all(a < b for a, b in itertools.pairwise(fractions))
    if not fractions or not rising or fractions[0] <= 0 or fractions[-1] != 1:
        raise ValueError(
            f"fractions must rise strictly from above 0 to 1.0, got {tuple(fractions)}. They are the shares of the "
            "examples after which a probe is fitted anew."
        )
    return sorted({math.ceil(f * n_examples) for f in fractions})


def _probability(
    probes: Probes, x: Activations, y: Tensor, seen: Tensor, n_seen: Tensor
) -> Float[Tensor, "layer label output example"]:
    """What the probe gives each example's class; 0 for one it never saw, and the base rate's 0 or 1 if not fitted."""
    probability = torch.exp(-probes.example_loss(x, y)).nan_to_num(nan=0.0)
    sole = (seen.gather(2, y.long().transpose(0, 1)) == n_seen[..., None]).to(probability.dtype)
    return torch.where(probes.fitted[..., None], probability, sole)


def online_code(
    kind: FeatureKind,
    x: Activations,
    y: Shaped[Tensor, "output label example"],
    config: ProbeConfig,
    *,
    fractions: Sequence[float] = FRACTIONS,
    example_mask: ExampleMask | None = None,
    n_classes: int | None = None,
) -> OnlineCode:
    """Bits to send a feature's labels to someone who has the activations: probe quality and effort in one number.

    The examples are sent in their order, which must be random (that of `held_out` is), in blocks. The first takes the
    uniform code, every other one `-log2 q(label)` with a probe of strength `config.c` fitted on all blocks before it.
    So that an unseen class has a finite length, `q = (n p + 1) / (n + K)` mixes the probe's probability p with the
    uniform one after n examples: Laplace's rule where the probe knows base rates alone. While one class has been seen
    there is nothing to fit and p is 1 for that class; with none seen, q is uniform. The mixing costs at most
    `log2(1 + K / n)` bits an example.

    Args:
        kind: "binary", "multilabel" or "categorical".
        x: Activations in random order.
        y: Labels.
        config: `c` and `max_iter` are used; a `path` is not, as the code has no validation examples.
        fractions: Ends of the blocks as shares of the examples, masked ones included.
        example_mask: True where an example has this label; the others are not sent.
        n_classes: K; by default 2, or one more than the largest class id.

    Raises:
        ValueError: The kind is "scalar", the fractions do not rise to 1, or what `fit_probes` raises.

    References:
        Voita and Titov 2020 (arXiv 2003.12298): the online (prequential) code, there without the mixing.
    """
    if kind == "scalar":
        raise ValueError(
            "kind must be one of 'binary', 'multilabel', 'categorical', got 'scalar'. Numbers have a code length only "
            "under a noise model; compare their mean squared errors instead."
        )
    n_classes = (count_classes(y, example_mask) if n_classes is None else n_classes) if kind == "categorical" else 2
    ends = _ends(x.shape[2], fractions)
    kept = torch.ones(x.shape[1:3], dtype=torch.bool, device=x.device) if example_mask is None else example_mask
    ids = torch.where(kept, y.long(), 0)
    seen = torch.zeros(x.shape[1], len(y), n_classes, dtype=torch.int64, device=x.device)
    plain = dataclasses.replace(config, path=())
    probes, start, bits = None, 0, []
    for end in ends:
        block = slice(start, end)
        sent = kept[:, None, block].expand(-1, len(y), -1)
        n_seen = seen.sum(2)
        if start == 0:
            code = torch.full((*x.shape[:2], len(y), end), math.log2(n_classes), dtype=torch.float64, device=x.device)
        else:
            before = slice(start)
            probes = fit_probes(
                kind, x[:, :, before], ids[:, :, before], plain, example_mask=kept[:, before], init=probes,
                n_classes=n_classes,
            )  # fmt: skip
            probability = _probability(probes, x[:, :, block], ids[:, :, block], seen, n_seen)
            n = n_seen[..., None]
            code = -torch.log2((n * probability + 1) / (n + n_classes))
        bits.append(torch.where(sent, code, 0).sum(-1))
        seen = seen.scatter_add(2, ids[:, :, block].transpose(0, 1), sent.long())
        start = end
    block_bits = torch.stack(bits)
    n_sent = kept.sum(1)[:, None].double()
    uniform = (n_sent * math.log2(n_classes)).expand_as(block_bits[0])
    codelength = block_bits.sum(0).masked_fill(uniform == 0, torch.nan)
    return OnlineCode(codelength, uniform, uniform / codelength, block_bits, torch.tensor(ends))
