"""The study of the plateau: its control cannot learn, and its table looks at nothing that comes later."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import study_plateau as study
import torch

import qfl_interp as qfl


@pytest.mark.parametrize("name", list(study.TASKS))
def test_the_control_keeps_prompts_and_takes_the_answers_of_others(name):
    task = qfl.load_task(name, 3)
    control = study.with_answers_of_others(task)
    examples = qfl.held_out(task, "val", 16, seed=0, stream="test")
    right, wrong = task.encode(examples), control.encode(examples)
    scored = right.loss_mask[0]
    assert torch.equal(wrong.loss_mask, right.loss_mask)
    assert torch.equal(wrong.tokens[:, ~scored], right.tokens[:, ~scored])
    assert torch.equal(wrong.tokens[1:, scored], right.tokens[:-1, scored])
    assert torch.equal(wrong.tokens[0, scored], right.tokens[-1, scored])
    assert not torch.equal(wrong.tokens, right.tokens)
    assert (control.name, control.length) == (task.name, 3)


def test_measured_steps_are_spread_over_their_logarithm():
    steps = list(range(1, 101))
    assert study.spread(steps, 3) == [1, 10, 100]
    assert study.spread([5, 6], 4) == [5, 6]


def test_a_moment_has_the_value_of_the_last_checkpoint_before_it():
    rows = pd.DataFrame({"flops": [1e10, 2e10, 3e10], "x": [1.0, np.nan, 3.0]})
    assert study.at(rows, "x", 2.9e10) == 1.0
    assert study.at(rows, "x", 3e10) == 3.0
    assert math.isnan(study.at(rows, "x", 5e9))


def test_values_of_the_controls_stand_in_brackets():
    rows = pd.DataFrame([
        {"task": "t", "kind": kind, "seed": seed, "step": 1, "flops": 1e10, **dict.fromkeys(study.QUANTITIES, value)}
        for kind, seed, value in (("trained", 0, 1.0), ("trained", 1, 2.0), ("control", 0, 3.0), ("control", 1, np.nan))
    ])  # fmt: skip
    stage = {"task": "t", "plateau": 5e9, "readable": 2e10, "falls": 3e10, "fallen": 4e10, "verdict": "quiet"}
    table = study.movement_table(rows, pd.DataFrame([stage | {"seed": 0}, stage | {"seed": 1}]))
    assert list(table["quantity"]) == list(study.QUANTITIES.values())
    assert set(table[study.STAGES["falls"]]) == {"1, 2 (3, –)"}
    assert set(table[study.STAGES["plateau"]]) == {""}


def test_every_training_of_the_study_has_a_control_and_a_place_of_its_own(tmp_path):
    jobs = study.jobs_of(tmp_path, list(study.TASKS), [0, 1])
    assert len({job.path for job in jobs}) == len(jobs) == 8
    assert [job.kind for job in jobs[:2]] == ["trained", "control"]


def test_ranks_are_the_mean_of_the_layers_and_layer_1_s():
    ranks = pd.DataFrame([
        {"step": step, "layer": layer, "position": position, "participation_ratio_centred": step + value,
         "stable_rank_centred": 10.0 * layer + step}
        for step in (5, 7) for layer, value in ((0, 1.0), (1, 1.0), (2, 7.0)) for position in (-1, 3)
    ])  # fmt: skip
    ranks.loc[ranks["position"] == 3, ["participation_ratio_centred", "stable_rank_centred"]] = 99.0
    found = study.rank_columns(ranks)
    assert found["participation"].tolist() == [8.0, 10.0]  # means, where the medians are 6 and 8
    assert found["stable_rank_centred_layer_1"].tolist() == [15.0, 17.0]


# What the page says of its rows


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(study.DOCS / "plateau.csv")


def of(rows, task, seed, kind):
    return rows[(rows["task"] == task) & (rows["seed"] == seed) & (rows["kind"] == kind)].set_index("step")


# The last measured step before the loss of 16-bit addition falls, by seed, as the page's stages have it.
LAST = {0: 139, 1: 162}


def test_addition_and_its_control_differ_as_the_page_says(rows):
    expected = {
        0: {"probe": 22, "ends": (34.2, 32.8), "ranks": (2.24, 2.12), "edges": (0.28, 0.11), "peak": 0.71},
        1: {"probe": 13, "ends": (34.5, 31.8), "ranks": (2.11, 1.91), "edges": (0.30, 0.14), "peak": 0.51},
    }
    for seed, said in expected.items():
        right, control = (of(rows, "addition", seed, kind).loc[: LAST[seed]] for kind in ("trained", "control"))
        assert np.abs(right["sharpness"] / control["sharpness"] - 1).max() < 0.1
        assert round(right["probe"].iloc[0] / right["probe"].iloc[-1]) == said["probe"]
        last = [own.iloc[-1] for own in (right, control)]
        assert [round(own["sharpness"], 1) for own in last] == list(said["ends"])
        assert [round(own["participation"], 2) for own in last] == list(said["ranks"])
        assert [own["preconditioned_over_edge"] for own in last] == pytest.approx(said["edges"], abs=0.006)
        assert 0.02 < 1 - last[0]["loss"] / last[1]["loss"] < 0.04
        assert round(control["preconditioned_over_edge"].max(), 2) == said["peak"]
        fallen = of(rows, "addition", seed, "trained")["sharpness"].loc[LAST[seed] :]
        assert fallen.max() > 10 * last[0]["sharpness"]


def test_the_soft_rank_of_layer_1_doubles_in_the_control_too(rows):
    for seed in (0, 1):
        for kind in ("trained", "control"):
            rank = of(rows, "addition", seed, kind)["stable_rank_centred_layer_1"]
            assert rank.loc[56] < 1.25
            assert round(rank.loc[86], 1) in (1.9, 2.0)
    peaks = [of(rows, "addition", 0, kind)["stable_rank_centred_layer_1"].max() for kind in ("trained", "control")]
    assert [round(peak, 1) for peak in peaks] == [2.6, 2.6]


def test_nothing_moves_on_the_plateau_of_decimal_addition(rows):
    said = {0: ((33, 36), (3.1, 3.4), (234, 491), 229, 97), 1: ((60, 65.2), (4.2, 4.3), (234, 701), 300, 75)}
    for seed, (sharpness, rank, (first, last), top, coefficient) in said.items():
        run = of(rows, "decimal_addition", seed, "trained")
        plateau = run.loc[first:last]
        settled = plateau["sharpness"] if seed else plateau["sharpness"].iloc[1:]
        assert (settled >= sharpness[0]).all()
        assert (settled <= sharpness[1]).all()
        assert plateau["participation"].round(1).between(*rank).all()
        assert round(run["sharpness"].max()) == top
        assert round(run["learning_coefficient"].max()) == coefficient
