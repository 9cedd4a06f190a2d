"""Soft ranks of the residual stream: after each layer, over all scored positions together and at every position."""

from __future__ import annotations

import math

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from qfl_interp.activations.spans import site_spans
from qfl_interp.curvature.soft_rank import soft_ranks
from qfl_interp.data.task import Batch
from qfl_interp.models.build import HookedModel, layer_count
from qfl_interp.models.metrics import scored_span
from qfl_interp.shapes import Tokens

# The position of the rows over all scored positions.
ALL_SCORED = -1
_SITE = "resid_post"


def rank_rows(model: HookedModel, batch: Batch) -> pd.DataFrame:
    """One row a layer and position, and one a layer for all positions that predict a scored token (position -1).

    A position counts the examples whose last predicting position it is or comes before; below 2 of them it has no row.
    Centred ranks are NaN where all those examples have the same tokens so far: a causal model's stream is then the
    same in each. Columns: layer, position, n_samples, stable_rank, participation_ratio, entropy_rank,
    stable_rank_centred, participation_ratio_centred.

    Args:
        model: Any hooked causal model.
        batch: Encoded examples.

    Raises:
        ValueError: An activation is not finite, or a stream is zero in all examples.
    """
    last = scored_span(batch.loss_mask).stop - 1
    # [example, position]: whether the position predicts a scored token, and whether it is within the example.
    predicts = batch.loss_mask[:, 1 : last + 2]
    within = predicts.flip(1).cumsum(dim=1).flip(1) > 0
    rows = []
    for layer in range(layer_count(model)):
        # A layer at a time: all of them would be the whole stream in memory.
        (span,) = site_spans(model, batch.tokens, 0, last, names=[_SITE], layers=[layer]).values()
        stream = span.values[0]
        rows.append({"layer": layer, "position": ALL_SCORED} | _ranks(stream[predicts.mT], varies=True))
        for position in range(last + 1):
            kept = within[:, position]
            if int(kept.sum()) >= 2:
                found = _ranks(stream[position, kept], varies=_vary(batch.tokens[kept, : position + 1]))
                rows.append({"layer": layer, "position": position} | found)
    return pd.DataFrame(rows)


def _vary(tokens: Tokens) -> bool:
    """Whether any example has other tokens than the first."""
    return bool((tokens != tokens[0]).any())


def _ranks(stream: Float[Tensor, "sample d_model"], *, varies: bool) -> dict[str, float]:
    plain = soft_ranks(stream)
    centred = soft_ranks(stream, centre=True) if varies else None
    return {
        "n_samples": len(stream),
        **plain._asdict(),
        "stable_rank_centred": math.nan if centred is None else centred.stable_rank,
        "participation_ratio_centred": math.nan if centred is None else centred.participation_ratio,
    }
