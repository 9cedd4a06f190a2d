"""A run knows its task: no other one is taken for it, whatever its name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.data.examples import in_split
from qfl_interp.data.identity import task_identity
from qfl_interp.runs.config import TASK_FILE
from qfl_interp.sealed import sealed_json
from qfl_interp.tasks.modular_addition import ModularAddition
from qfl_interp.tasks.sparse_parity import SparseParity
from tests.helpers_suite import tiny_text_task

MODEL = qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2)
TRAIN = qfl.TrainConfig(n_steps=2, batch_size=8, n_val=16, n_checkpoints=2)


class TwoBits(SparseParity):
    """The parity of two bits, under the name of the task it is made from."""

    k = 2


class MostlyTrained(ModularAddition):
    """Nine tenths of the problems are for training, under the name of the task it is made from."""

    train_fraction = 0.9


class OtherBits(SparseParity):
    """Draws other examples."""

    def sample(self, rng, n):
        return 1 - super().sample(rng, n)


def train(task, folder):
    return qfl.train(task, MODEL, TRAIN, folder, progress=False)


@pytest.mark.parametrize(
    ("task", "differences"),
    [
        (TwoBits(10), ["class is .*:TwoBits' there and .*:SparseParity' here", "it encodes examples otherwise"]),
        (MostlyTrained(13), ["class is", "train_fraction is 0.9 there and 0.5 here"]),
        (OtherBits(10), ["class is", "it draws other examples"]),
    ],
)
def test_a_subclass_that_inherits_its_name_is_not_taken_for_its_parent(tmp_path, task, differences):
    run = train(task, tmp_path / "run")
    assert type(run.task) is type(task)
    reopened = qfl.Run.open(run.path)
    assert reopened.config.task == type(task).__mro__[1].name, "opens: metrics and checkpoints can be looked at"
    for difference in differences:
        with pytest.raises(qfl.QflError, match=f"was trained on another task than .*{difference}.*Run.open"):
            _ = reopened.task
    with pytest.raises(qfl.QflError, match="was trained on another task"):
        analyses.probe(reopened, progress=False)
    opened = qfl.Run.open(run.path, task=task)
    assert opened.task is task
    assert type(pickle.loads(pickle.dumps(opened)).task) is type(task)


def test_the_examples_that_lenses_hold_out_are_not_those_of_training(tmp_path):
    """The reproduction: 36 of 60 "held-out" examples were training problems."""
    task = MostlyTrained(13)
    run = train(task, tmp_path / "run")
    held = {name: qfl.held_out(run.task, name, 60, seed=0, stream="probe") for name in ("val", "test")}
    assert not any(in_split(task, examples, "train").any() for examples in held.values())


def test_a_given_task_has_to_be_the_runs(tmp_path):
    run = train(TwoBits(10), tmp_path / "run")
    with pytest.raises(qfl.QflError, match="it encodes examples otherwise"):
        qfl.Run.open(run.path, task=SparseParity(10))
    with pytest.raises(qfl.QflError, match="length is 10 there and 12 here"):
        qfl.Run.open(run.path, task=TwoBits(12))

    class Moved(TwoBits):
        """The same task in another module."""

    assert qfl.Run.open(run.path, task=Moved(10)).task.relevant == run.task.relevant

    class Relabelled(TwoBits):
        """The same problems under other labels, whose tables would be those of the first."""

        def _features(self):
            return [dataclasses.replace(f, labels=lambda x, f=f: 1 - f.labels(x)) for f in super()._features()]

    with pytest.raises(qfl.QflError, match=r"another task than .*: its features are others"):
        qfl.Run.open(run.path, task=Relabelled(10))

    class Resplit(TwoBits):
        """The same problems in other splits."""

        def canonical(self, examples):
            return super().canonical(examples) + np.uint64(1)

    with pytest.raises(qfl.QflError, match=r"another task than .*: its splits are others"):
        qfl.Run.open(run.path, task=Resplit(10))


def test_a_lost_record_is_missed(tmp_path, run_copy):
    """Else the subclass would be analysed, and trained on, as the parent whose name it has."""
    run = train(TwoBits(10), tmp_path / "run")
    (run.path / TASK_FILE).unlink()
    for call in (lambda: qfl.Run.open(run.path).task, lambda: qfl.resume(run.path, progress=False)):
        with pytest.raises(qfl.QflError, match=r"task.json is missing: nothing says that .* Restore the file"):
            call()
    assert any("task.json is missing" in problem for problem in run.verify().problems)
    assert isinstance(qfl.Run.open(run.path, task=TwoBits(10)).task, TwoBits)


def test_no_other_task_goes_on_with_a_run(tmp_path):
    run = train(TwoBits(10), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(qfl.QflError, match="was trained on another task"):
        qfl.train(SparseParity(10), MODEL, TRAIN, run.path, resume=True, progress=False)
    with pytest.raises(qfl.QflError, match="was trained on another task"):
        qfl.resume(run.path, progress=False)
    assert qfl.resume(run.path, task=TwoBits(10), progress=False).finished
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_dataset_is_opened_with_the_dataset(tmp_path):
    whole = tiny_text_task()
    task = qfl.FixedTask("tiny text", whole._tokens, whole._loss_mask, {"odd": whole._fixed["odd"]}, train_fraction=0.5)
    run = train(task, tmp_path / "run")
    with pytest.raises(qfl.QflError, match="tiny text"):
        _ = qfl.Run.open(run.path).task
    assert qfl.Run.open(run.path, task=task).task is task
    other = qfl.FixedTask(
        "tiny text", whole._tokens[:-1], whole._loss_mask[:-1], {"odd": _cut(whole._fixed["odd"])}, train_fraction=0.5
    )
    with pytest.raises(qfl.QflError, match="digest is"):
        qfl.Run.open(run.path, task=other)


def _cut(feature):
    return qfl.FixedFeature(feature.kind, feature.labels[:-1], feature.positions[:-1])


def test_a_run_of_before_opens_as_it_did(run_copy):
    (run_copy.path / TASK_FILE).unlink()
    metrics = run_copy.path / "metrics.jsonl"
    metrics.write_text(re.sub(r', "sha256": "\w+"}', "}", metrics.read_text()))
    assert qfl.Run.open(run_copy.path).task.name == "addition"
    assert qfl.resume(run_copy.path, progress=False).finished
    assert not (run_copy.path / TASK_FILE).exists(), "nobody knows what it was trained on"


def test_a_record_of_before_calls_our_tasks_as_they_were_called(run_copy):
    """`tasks.addition:Addition` in a file without a format is `qfl_interp.tasks.addition:Addition`; later, a user's."""
    path = run_copy.path / TASK_FILE
    record = json.loads(path.read_bytes())
    values = {key: value for key, value in record.items() if key not in ("format", "sha256")}
    assert values["class"] == "qfl_interp.tasks.addition:Addition"
    values["class"] = "tasks.addition:Addition"
    path.write_bytes(sealed_json(values, 12))
    assert qfl.Run.open(run_copy.path).task.name == "addition"
    assert qfl.resume(run_copy.path, progress=False).finished
    path.write_bytes(sealed_json({"format": 2} | values, 12))
    with pytest.raises(qfl.QflError, match=r"class is 'tasks\.addition:Addition' there and 'qfl_interp\.tasks\."):
        _ = qfl.Run.open(run_copy.path).task


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"class": 3}'])
def test_a_damaged_record_is_named(run_copy, text):
    (run_copy.path / TASK_FILE).write_bytes(text)
    with pytest.raises(qfl.QflError, match=r"task.json|was trained on another task"):
        _ = qfl.Run.open(run_copy.path).task


def test_identity_is_one_whatever_the_platforms_integers(addition):
    found = task_identity(addition)
    assert json.loads(json.dumps(found)) == found
    assert found == task_identity(type(addition)(addition.length))
