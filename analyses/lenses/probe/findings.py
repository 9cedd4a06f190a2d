"""What the last step's probes read, and after which layer, as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from qfl_interp.analyses.lenses.probe.views import SCORES
from qfl_interp.plots.maps import place_words
from qfl_interp.report.page import Finding
from qfl_interp.sites import site_words
from qfl_interp.tables import distinct, groups, records, select

# A feature is decodable where its probes lose less than this fraction of each control, partly where less than each.
_RATIO: Final = 0.5
_LOSSES: Final = ["train_loss", "test_loss", "shuffled_test_loss", "majority_test_loss"]


def findings(rows: pd.DataFrame) -> list[Finding]:
    """One finding a feature: where its probes read it best at the last step, beside the controls there.

    Labels that the very next token gives away are left out where a feature has others. The place is chosen by training
    loss; the untrained models' probes each stand at their own best place.

    Args:
        rows: Table "probe".
    """
    found = []
    for feature, own in groups(rows, "feature"):
        fitted = select(own, fitted=True)
        kept = select(fitted, next_token=False) if "next_token" in fitted else fitted
        kept = fitted if kept.empty else kept
        trained = select(kept, source="trained")
        if trained.empty:
            continue
        step = max(distinct(trained, "step"))
        first, *others = _places(select(trained, step=step))
        best = min([first, *others], key=lambda place: place["train_loss"])
        untrained = groups(select(kept, source="untrained"), "model_seed")
        blind = [min(place["test_loss"] for place in _places(part)) for _, part in untrained]
        metric = SCORES[str(kept["metric"].iloc[0])]
        controls = {"untrained models": min(blind)} if blind else {}
        controls |= {"shuffled labels": best["shuffled_test_loss"], "best constant": best["majority_test_loss"]}
        controls = {name: value for name, value in controls.items() if math.isfinite(value)}  # some were not asked for
        verdict = _verdict(best["test_loss"], list(controls.values()))
        beside = ", ".join(f"{name} {value:.2g}" for name, value in controls.items())
        site = site_words(str(kept["site"].iloc[0]))
        sentence = (
            f"at step {step:,} probes read it best at {place_words(*_place(best))} ({site}): "
            f"{metric.loss} {best['test_loss']:.2g} ({beside})"
        )
        if _place(first) != _place(best):
            sentence += f"; at {place_words(*_place(first))} it is {first['test_loss']:.2g}"
        found.append(Finding(f"{feature}, probed", verdict, sentence))
    return found


def _verdict(loss: float, controls: Sequence[float]) -> str:
    """Decodable below half of every control, not decodable where it is no better than one of them."""
    if not controls:
        return "no control"
    if all(loss < _RATIO * value for value in controls):
        return "decodable"
    return "partly decodable" if loss < min(controls) else "not decodable"


def _places(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Losses by place, means over the labels."""
    return records(pd.DataFrame(rows.groupby(["layer", "head"], as_index=False)[_LOSSES].mean()))


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    """Layer and head of a row."""
    return int(row["layer"]), int(row["head"])
