"""What the columns of a comparison of runs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import COUNT, RUN, STEP, Column, Columns
from qfl_interp.plots.axes import TRAINING_AXES

_AXIS: Final = {
    axis.column: Column(f"how far training was: {axis.title}", axis.unit, "where all is drawn over it")
    for axis in TRAINING_AXES
}
_WHAT: Final[Columns] = {
    "group": Column("runs that differ by seed alone: what one line of the figure shows"),
    "quantity": Column('"val_loss_answer", "val_exact_answer" (as of metrics) or "probe_loss"'),
    "feature": Column("whose probes; empty of loss and exact match"),
}
RESULT: Final[Mapping[str, Columns]] = {
    "rows": {
        **_WHAT,
        "run_id": RUN["run_id"],
        "path": Column("where the run is"),
        "seed": RUN["seed"],
        "metric": Column('what probe losses are: "log_loss" in nats, "mse" of numbers; else empty'),
        **_AXIS,
        **STEP,
        "value": Column(
            "what was measured; of probes the geometric mean over labels of the test loss, as of emergence"
        ),
        "baseline": Column("that of the untrained models; NaN of what is no probe, and without them"),
    },
    "bands": {
        **_WHAT,
        **_AXIS,
        "mean": Column("mean over seeds; a seed without a value there is interpolated in the logarithm of the place"),
        "low": Column("the lowest seed's value"),
        "high": Column("the highest seed's value"),
        "n_seeds": Column("seeds that have values", COUNT),
    },
}
