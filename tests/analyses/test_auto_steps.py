"""`steps="auto"`: fewer checkpoints, the same verdicts."""

from __future__ import annotations

import math

import lens_contract as contract
import numpy as np
import pandas as pd
import pytest

import qfl_interp as qfl
from qfl_interp.analyses import emergence, report
from qfl_interp.analyses.lenses.emergence.auto import _places, steps_at_onsets
from qfl_interp.analyses.lenses.emergence.lens import Emergence
from qfl_interp.emergence.onset import find_onset
from qfl_interp.plots.axes import FLOPS
from qfl_interp.runs.series import Checkpoints

CONFIG = qfl.ProbeConfig(n_train=300, n_test=60, shuffled_control=False)
SAVED = sorted({0, *np.unique(np.geomspace(1, 5000, 90).round().astype(int)).tolist()})


class Saved(Checkpoints):
    """What `steps_at_onsets` asks of a series."""

    steps = SAVED

    def flops(self, step):
        return 3.0 * step


Saved.__abstractmethods__ = frozenset()


@pytest.mark.parametrize("seed", range(20))
def test_every_place_is_between_two_neighbouring_checkpoints(seed):
    """Onsets and ends of curves that fall once, wherever that is, are those of all checkpoints."""
    rng = np.random.default_rng(seed)
    middles, widths = 10 ** rng.uniform(0.3, 3.6, 3), rng.uniform(0.05, 1, 3)
    start = 3 * 10 ** rng.uniform(0.5, 3.5)
    ends = rng.uniform(-0.2, 0.2, (3, 2))
    asked = []

    def verdicts(steps, with_bootstrap):
        asked.append(list(steps))
        rows = []
        for middle, width, (low, high) in zip(middles, widths, ends, strict=True):
            metric = 1 / (1 + (np.maximum(steps, 1e-9) / middle) ** (1 / width))
            onset = find_onset(3.0 * np.array(steps), metric, 1.0).onset_flops
            lead = np.log10(start / onset)
            bounds = {"bootstrap_low": lead + low, "bootstrap_high": lead + high} if with_bootstrap else {}
            none = {"bootstrap_low": np.nan, "bootstrap_high": np.nan}
            rows.append({"onset_flops": onset, "transition_start_flops": start} | none | bounds)
        return pd.DataFrame(rows)

    chosen = steps_at_onsets(Saved(), FLOPS, verdicts)
    assert len(chosen) < len(SAVED) / 2
    columns = ["onset_flops", "transition_start_flops", "bootstrap_low", "bootstrap_high"]
    found, wanted = verdicts(chosen, True), verdicts(SAVED, True)
    pd.testing.assert_frame_equal(found[columns], wanted[columns])
    for row in found.to_dict("records"):
        places = [row["onset_flops"], start, *(start / 10 ** row[f"bootstrap_{end}"] for end in ("low", "high"))]
        for at in (place / 3 for place in places if 3 < place < 3 * 5000):
            after = int(np.searchsorted(SAVED, at))
            assert {SAVED[after - 1], SAVED[after]} <= {*chosen}


def test_the_verdicts_are_those_of_all_checkpoints(run_copy):
    everything = emergence(run_copy, config=CONFIG, progress=False).rows
    auto = emergence(run_copy, steps="auto", config=CONFIG, progress=False).rows
    # The best of the checkpoints that were probed is another number; the name of the call too.
    pd.testing.assert_frame_equal(*(rows.drop(columns=["best", "analysis"]) for rows in (auto, everything)))
    contract.check_tables(run_copy, Emergence, emergence(run_copy, steps="auto", config=CONFIG, progress=False))
    assert run_copy.table("emergence_steps").parts()
    parts = len(run_copy.table("emergence").parts())
    again = emergence(run_copy, steps="auto", config=CONFIG, progress=False).rows
    pd.testing.assert_frame_equal(again, auto)
    assert len(run_copy.table("emergence").parts()) == parts


def test_pages_take_the_checkpoints_that_verdicts_need(run_copy, tmp_path):
    page = report(run_copy, steps="auto", out=tmp_path / "a.html", config=CONFIG, n_trials=2, progress=False)
    assert "Verdicts" in page.read_text()


def test_an_interval_without_an_end_has_no_place_there():
    """Resamples that never learn the feature have a lead of minus infinity."""
    rows = {"transition_start_flops": 1e12, "onset_flops": 2e12, "bootstrap_low": -math.inf, "bootstrap_high": 1.0}
    unknown = rows | {"onset_flops": math.nan, "bootstrap_low": math.nan, "bootstrap_high": math.inf}
    assert [*_places(pd.DataFrame([rows, unknown]), "flops")] == [2e12, 1e12, 1e11, 1e12]
