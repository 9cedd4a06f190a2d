"""One component's panel of a patching figure: its places, its columns and what its cells are called."""

from __future__ import annotations

from typing import Final, NamedTuple

import pandas as pd

from qfl_interp.plots.maps import Place, place_words, places
from qfl_interp.plots.theme import visible
from qfl_interp.tables import distinct

COMPONENTS: Final = {
    "resid_pre": "residual stream before a block",
    "resid_mid": "residual stream after attention",
    "resid_post": "residual stream after a block",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
    "z": "attention heads' outputs",
    "q": "attention heads' queries",
    "k": "attention heads' keys",
    "v": "attention heads' values",
}


class PatchMap(NamedTuple):
    """One component's panel.

    Attributes:
        component: Its name in the table.
        rows: Places from the bottom to the top.
        columns: Positions; heads where every position was patched at once.
        across_heads: Whether the columns are heads.
        tokens: What stands at each column.
    """

    component: str
    rows: list[Place]
    columns: list[int]
    across_heads: bool
    tokens: list[str]

    @property
    def keys(self) -> list[tuple[int, int, int]]:
        """Layer, head and position of every cell, row by row."""
        if self.across_heads:
            return [(layer, head, -1) for layer, _ in self.rows for head in self.columns]
        return [(layer, head, position) for layer, head in self.rows for position in self.columns]

    @property
    def height(self) -> int:
        """Pixels of the plot area."""
        per_head = any(head >= 0 for _, head in self.rows)
        return max(min((14 if per_head else 24) * len(self.rows), 420), 72)


def patch_map(rows: pd.DataFrame) -> PatchMap:
    """The panel of one component's rows."""
    positions = sorted(int(position) for position in distinct(rows, "position"))
    found = places(rows)
    component = str(rows["component"].iloc[0])
    if positions == [-1] and any(head >= 0 for _, head in found):
        layers, heads = sorted({layer for layer, _ in found}), sorted({head for _, head in found})
        return PatchMap(component, [(layer, -1) for layer in layers], heads, True, [str(head) for head in heads])
    token_at = dict(zip(rows["position"], rows["token"], strict=True))
    return PatchMap(component, found, positions, False, [visible(token_at[position]) for position in positions])


def cell_name(one: PatchMap, place: Place, number: int) -> str:
    """What a hover text calls a cell."""
    if one.across_heads:
        return f"{place_words((place[0], one.columns[number]))}, at every position"
    return f"“{one.tokens[number]}” at position {one.columns[number]}, {place_words(place)}"
