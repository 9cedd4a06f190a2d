"""What the viewer draws of a run: what is there and nothing else, again only where a file changed."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest
import synthetic_sweep

import qfl_interp as qfl
from qfl_interp.analyses.view import drawn
from qfl_interp.analyses.view.address import Address
from qfl_interp.analyses.view.index import Index
from qfl_interp.analyses.view.opened import Kept, Opened
from qfl_interp.tables import select


@pytest.fixture
def opened(run_copy) -> Opened:
    return Opened(Index(run_copy.path.parent))


KEY = "copy"


def test_a_page_computes_nothing(opened, run_copy):
    found = opened.timeline(KEY)
    # Loss and exact match.
    assert {axis for axis in found.figure.layout if axis.startswith("yaxis")} == {"yaxis", "yaxis2"}
    assert found.faults == ()
    assert found.steps == run_copy.steps
    assert found.places == [run_copy.flops(step) for step in run_copy.steps]
    loss = select(found.table(), panel="Validation loss", curve="over the answer alone")
    logged = run_copy.metrics.dropna(subset=["val_loss_answer"]).query("step > 0")
    assert loss["value"].tolist() == logged["val_loss_answer"].tolist()
    assert loss["flops"].tolist() == logged["flops"].tolist()
    assert set(loss["unit"]) == {"nats per token"}
    assert not (run_copy.path / "analyses").exists()


def test_a_damaged_table_is_named_and_the_rest_is_shown(opened, run_copy):
    folder = run_copy.path / "analyses" / "ablate"
    folder.mkdir(parents=True)
    (folder / "_step_00000000-carry-x.json").write_text("{")
    found = opened.timeline(KEY)
    (fault,) = found.faults
    assert "lens 'ablate'" in fault
    assert "_step_00000000-carry-x.json" in fault
    assert len(found.figure.data) >= 4


def test_a_view_says_which_part_is_damaged(opened, run_copy):
    qfl.analyses.probe(run_copy, "carry", "0", config=qfl.ProbeConfig(n_train=64, n_test=64), progress=False)
    for path in (run_copy.path / "analyses" / "probe").glob("*.parquet"):
        path.write_bytes(b"no parquet")
    with pytest.raises(qfl.QflError, match=r"probe/step_0+-carry-\w+\.parquet does not match its checksum"):
        drawn.at_step(opened, Address((KEY,), view="probe"))


def test_a_part_that_was_read_once_is_read_again_where_its_file_changed(opened, run_copy):
    qfl.analyses.probe(run_copy, "carry", "0", config=qfl.ProbeConfig(n_train=64, n_test=64), progress=False)
    address = Address((KEY,), view="probe")
    drawn.at_step(opened, address)
    for path in (run_copy.path / "analyses" / "probe").glob("*.parquet"):
        path.write_bytes(b"no parquet")
    with pytest.raises(qfl.QflError, match="does not match its checksum"):
        drawn.rows_of(opened, "view", address)


def test_every_figure_names_its_run(opened, run_copy):
    for payload in (
        drawn.over_training(opened, Address((KEY,))),
        drawn.at_step(opened, Address((KEY,), view="predictions")),
    ):
        texts = [one["text"] for one in json.loads(payload["figure"])["layout"]["annotations"]]
        assert run_copy.label in texts


def test_a_sweep_is_shown_over_its_budgets(tmp_path):
    sweep = synthetic_sweep.write(
        tmp_path / "runs" / "grid", synthetic_sweep.records({("addition", 16): synthetic_sweep.falling}, seeds=2)
    )
    opened = Opened(Index(tmp_path / "runs"))
    assert opened.is_sweep("grid")
    assert not opened.is_sweep("gone")
    address = Address(("grid",))
    payload = drawn.over_training(opened, address)
    assert payload["title"] == "Over budgets"
    assert "validation loss (nats)" in payload["figure"]
    assert set(drawn.rows_of(opened, "timeline", address)["task"]) == set(sweep.table()["task"])
    first = drawn.stamps(opened, "grid")
    os.utime(tmp_path / "runs" / "grid" / "sweep.json", ns=(5, 5))
    assert drawn.stamps(opened, "grid") != first


def test_figures_are_drawn_again_only_where_a_file_changed(opened, run_copy):
    first = opened.timeline(KEY)
    assert opened.timeline(KEY) is first
    before = opened.stamp(KEY)
    os.utime(run_copy.path / "metrics.jsonl", ns=(5, 5))
    assert opened.timeline(KEY) is not first
    assert opened.stamp(KEY) == before  # of views, which show no logged row
    (run_copy.path / "analyses" / "probe").mkdir(parents=True)
    assert opened.stamp(KEY) != before


def test_a_run_that_is_gone_is_said_to_be(opened, run_copy):
    opened.timeline(KEY)
    shutil.rmtree(run_copy.path)
    for call in (opened.timeline, opened.run, opened.stamp):
        with pytest.raises(qfl.QflError, match=r"copy is not below .* moved or deleted"):
            call(KEY)
    with pytest.raises(qfl.QflError, match="moved or deleted"):
        opened.run("../other")


def test_runs_over_each_other_lack_none_but_the_one_that_is_gone(opened, run_copy):
    found, faults = drawn.compared(opened, [KEY, "gone"])
    assert set(found.rows["path"]) == {str(run_copy.path)}
    (fault,) = (fault for fault in faults if "gone" in fault)
    assert "moved or deleted" in fault
    with pytest.raises(qfl.QflError, match="moved or deleted"):
        drawn.compared(opened, ["gone"])


def test_views_and_tables_follow_the_address(opened, run_copy):
    tabs = drawn.tabs(opened, KEY)
    names = [tab["name"] for tab in tabs["tabs"]]
    assert tabs["first"] in names
    steps = run_copy.steps
    found = drawn.at_step(
        opened, Address((KEY,), view="predictions", step=steps[2], choices={"example": "1", "x": "y"})
    )
    assert found["name"] == "predictions"
    assert found["choices"]["example"]["value"] == "1"
    rows = drawn.rows_of(opened, "view", Address((KEY,), view="predictions", step=steps[2]))
    assert set(rows["step"]) == {steps[2]}
    assert drawn.at_step(opened, Address((KEY,), view="no such view"))["name"] == tabs["first"]
    nearest = drawn.rows_of(opened, "view", Address((KEY,), view="predictions", step=10**9))
    assert set(nearest["step"]) == {steps[-1]}


def test_what_one_viewer_waits_for_holds_up_no_other():
    kept, started, go = Kept(), threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        assert go.wait(20)
        return "slow"

    waiting = threading.Thread(target=lambda: kept.get("a", 1, slow))
    waiting.start()
    assert started.wait(20)
    assert kept.get("b", 1, lambda: "quick") == "quick"
    go.set()
    waiting.join()
    assert kept.get("a", 1, lambda: "again") == "slow"
    assert kept.get("a", 2, lambda: "again") == "again"
