"""What the columns that `capture` gives are: one row a checkpoint, data set, site and layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import COUNT, RUN, STEP, Column, Columns

CAPTURED: Final[Columns] = {
    **STEP,
    "dataset": Column("which examples: those that probes are fitted on, or scored on, with their number and seed"),
    "site": Column("the activation, by TransformerLens' name"),
    "layer": Column("block, from 0"),
    "first": Column("first token position that is kept"),
    "last": Column("last token position that is kept, inclusive"),
    "n_examples": Column("examples", COUNT),
    "dtype": Column("number format on disk"),
    "mib": Column("size on disk", "MiB"),
    **RUN,
}
RESULT: Final[Mapping[str, Columns]] = {
    "rows": CAPTURED,
    "summary": {"layers": Column("layers that are kept", COUNT)},
}
