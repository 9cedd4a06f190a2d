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
