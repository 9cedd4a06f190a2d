"""New weights in an old place: no table, store or verdict of the old ones is taken for theirs."""

from __future__ import annotations

import os
import shutil

import pandas as pd
import pytest

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.runs.table import Table
from tests.helpers_suite import neox_config, save_model, save_tiny_neox, tiny_text_task

CONFIG = qfl.ProbeConfig(n_train=60, n_test=40)
KEYS = ["step", "feature", "layer", "label", "source", "model_seed"]


def probe(suite, **how):
    return analyses.probe(suite, "odd", config=CONFIG, n_untrained=1, progress=False, **how).rows


@pytest.fixture
def folder(tmp_path):
    return save_tiny_neox(tmp_path / "tiny", (0, 10))


def replace(folder, *, keep_times=False):
    """Other weights of the same shape in place of step 10's, perhaps with the old file's dates."""
    file = folder / "step10/model.safetensors"
    before = file.stat()
    save_model(neox_config(), folder / "step10", seed=7)
    assert file.stat().st_size == before.st_size
    if keep_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_suite_is_probed_again_where_its_weights_changed(folder, tmp_path, keep_times, monkeypatch):
    before = probe(qfl.Suite.open(folder, tiny_text_task()))
    replace(folder, keep_times=keep_times)
    suite = qfl.Suite.open(folder, tiny_text_task())
    (problem,) = [p for p in suite.table("probe").verify() if "other weights of step 10" in p]
    assert "Lenses compute it anew" in problem
    loaded = []
    true = qfl.Suite.load_model

    def load(self, step="last", **how):
        loaded.append(step)
        return true(self, step, **how)

    monkeypatch.setattr(qfl.Suite, "load_model", load)
    after = probe(suite)
    assert loaded == [10], "step 0 and the untrained model are as they were"
    fresh = probe(qfl.Suite.open(folder, tiny_text_task(), out=tmp_path / "elsewhere"))
    pd.testing.assert_frame_equal(after, fresh)
    old, new = (rows[(rows["step"] == 10) & (rows["source"] == "trained")] for rows in (before, after))
    assert (old["test_loss"].to_numpy() != new["test_loss"].to_numpy()).all()
    assert suite.table("probe").verify() == []


def test_what_was_computed_from_several_checkpoints_is_computed_again(folder):
    how = {"steps": "all", "config": CONFIG, "progress": False}
    before = analyses.transfer(qfl.Suite.open(folder, tiny_text_task()), "odd", **how).rows
    replace(folder)
    after = analyses.transfer(qfl.Suite.open(folder, tiny_text_task()), "odd", **how).rows
    changed = before.merge(after, on=["fit_step", "eval_step"], suffixes=("_before", "_after"))
    same = changed["test_loss_before"] == changed["test_loss_after"]
    assert same.tolist() == ((changed["fit_step"] == 0) & (changed["eval_step"] == 0)).tolist()


def test_stored_activations_of_other_weights_are_refused(folder):
    probe(qfl.Suite.open(folder, tiny_text_task()), store=True)
    replace(folder)
    with pytest.raises(qfl.QflError, match=r"holds activations of other weights of this step.*Delete the folder"):
        probe(qfl.Suite.open(folder, tiny_text_task()), store=True)


def test_weights_that_are_not_there_any_more_leave_tables_as_they_are(folder):
    before = probe(qfl.Suite.open(folder, tiny_text_task()))
    suite = qfl.Suite.open(folder, tiny_text_task())
    (folder / "step10/model.safetensors").unlink()
    assert suite.weights(10) is None
    pd.testing.assert_frame_equal(probe(suite), before)


def test_a_table_of_another_run_is_not_this_runs(run_copy, tmp_path, addition, model_config):
    train = qfl.TrainConfig(n_steps=4, batch_size=8, n_val=16, n_checkpoints=2, seed=5)
    other = qfl.train(addition, model_config, train, tmp_path / "other", progress=False)
    config = qfl.ProbeConfig(n_train=100, n_test=50)
    theirs = analyses.probe(other, "carry", 0, config=config, n_untrained=0, progress=False).rows
    shutil.copytree(other.path / "analyses", run_copy.path / "analyses", dirs_exist_ok=True)
    (part,) = [path.stem for path in (other.path / "analyses/probe").glob("*.parquet")]
    table = run_copy.table("probe")
    assert not table.has(part)
    assert part not in table.parts()
    assert any(f"is of the run {other.run_id}, not of" in problem for problem in run_copy.verify().problems)
    with pytest.raises(qfl.QflError, match="Run the analysis again"):
        table.read([part])
    ours = analyses.probe(run_copy, "carry", 0, config=config, n_untrained=0, progress=False).rows
    assert set(ours["run_id"]) == {run_copy.run_id}
    assert (ours["test_loss"].to_numpy() != theirs["test_loss"].to_numpy()).any()
    assert run_copy.verify()


def test_parts_of_before_count_as_they_are(tmp_path):
    Table(tmp_path).write("a", pd.DataFrame({"step": [1]}))
    assert Table(tmp_path, "run", lambda step: "digest").has("a")
    Table(tmp_path, "run", lambda step: "digest").write("b", pd.DataFrame({"step": [1]}), steps=[1])
    assert Table(tmp_path, "run", lambda step: "digest").parts() == ["a", "b"]
    assert Table(tmp_path, "run", lambda step: "another").parts() == ["a"]
    assert Table(tmp_path, "other", lambda step: "digest").parts() == ["a"]
