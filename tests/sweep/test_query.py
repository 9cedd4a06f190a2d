"""A sweep's table, best and matched configurations against brute force over made-up records of 20,000 runs."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from qfl_interp.errors import QflError
from qfl_interp.runs.run import Run
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import definition_json
from qfl_interp.sweep.mirror import Pusher
from qfl_interp.sweep.parts import COLUMNS, write_part
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.sweep import CONFIGURATION, Sweep
from qfl_interp.tables import select

CONFIG = SweepConfig.from_dict(
    {
        "name": "made-up",
        "grid": [{"task": "addition", "length": 4, "budget_flops": [1e9], "d_model": 16, "n_layers": 2}],
    }
)
CONFIGURATION_ONLY = [name for name in CONFIGURATION if name not in ("d_model", "n_layers", "lr", "batch_size")]
BUDGETS = [10**x for x in (9.0, 9.5, 10.0, 10.5, 11.0)]
TASKS = [("addition", 8), ("addition", 16), ("maximum_subarray", 64), ("sparse_parity", 40)]


def made_up(tasks=TASKS, n_seeds=4, rng_seed=0):
    """One row a run of every combination; a tenth diverged or failed, at random."""
    rng = np.random.default_rng(rng_seed)
    axes = itertools.product(tasks, BUDGETS, (8, 16, 32, 64, 128), (2, 4, 8), (1e-4, 1e-3, 1e-2, 1e-1), (8, 64, 256))
    grid = [(*task, *rest, seed) for task, *rest in axes for seed in range(n_seeds)]
    columns = ["task", "length", "budget_flops", "d_model", "n_layers", "lr", "batch_size", "seed"]
    rows = pd.DataFrame(grid, columns=columns)
    n = len(rows)
    status = rng.choice(["finished", "diverged", "failed"], n, p=[0.9, 0.07, 0.03])
    loss = np.where(status == "finished", rng.gamma(4.0, 0.1, n) + 0.05 * rows["seed"], np.nan)
    names = zip(rows["task"], rows["length"], strict=True)
    run_id = [f"{task}{length}-{i:012x}" for i, (task, length) in enumerate(names)]
    known = {name: loss for name in COLUMNS if name.startswith("val_")}
    same = {"style": "llama", "n_heads": 4, "schedule": "cosine", "weight_decay": 0.1, "n_steps": 100, "error": "",
            "attempts": 1, "n_parameters": 1000, "n_val": 1000, "seconds": 1.0, "group_size": 1, "device": "cpu",
            "finished_at": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    flops = {"flops": rows["budget_flops"], "actual_flops": rows["budget_flops"]}
    rows = rows.assign(**known, **same, **flops, status=status, run_id=run_id)
    # As the digest of everything but the seed.
    rows["configuration"] = rows.groupby([*columns[:-1], *CONFIGURATION_ONLY]).ngroup().map("{:012x}".format)
    return rows.assign(path="runs/" + rows["task"] + "/" + rows["run_id"])


def write(folder, rows, n_parts=1):
    """A sweep's folder with these rows, in parts."""
    storage = Storage(str(folder))
    storage.write_bytes("sweep.json", definition_json(CONFIG))
    for task, of_task in rows.groupby("task"):
        for part in range(n_parts):
            write_part(storage, str(task), of_task.iloc[part::n_parts])
    return Sweep.open(folder)


@pytest.fixture(scope="module")
def rows():
    found = made_up(n_seeds=6)
    assert len(found) > 20_000
    # Rows arrive in the order in which runs end.
    return found.sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def sweep(rows, tmp_path_factory):
    return write(tmp_path_factory.mktemp("sweep"), rows, n_parts=3)


def by_hand(rows, group):
    """The best configuration of each group, by loops."""
    best = {}
    for key, part in rows.groupby(group):
        scored = []
        for configuration, runs in part.groupby(list(CONFIGURATION)):
            ended = runs[runs["status"] == "finished"]
            if len(ended):
                lost = (runs["status"] == "diverged").any()
                scored.append((-len(ended), lost, ended["val_loss"].mean(), configuration))
        best[key] = min(scored)[3]
    return best


def found_by(table, group):
    """Group -> configuration; each group has one."""
    found = {}
    for key, part in table.groupby(group):
        configurations = part[list(CONFIGURATION)].drop_duplicates()
        assert len(configurations) == 1
        found[key] = tuple(configurations.iloc[0])
    return found


def test_table_is_every_run_once_sorted(sweep, rows):
    table = sweep.table()
    assert list(table.columns) == ["task", *COLUMNS]
    order = ["task", "length", "budget_flops", "d_model", "n_layers", "lr", "batch_size", "seed"]
    expected = rows.sort_values(order)[["task", *COLUMNS]].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert table["length"].dtype.kind == "i"
    assert table["val_loss"].dtype == np.float64
    assert np.isnan(table.loc[table["status"] != "finished", "val_loss"]).all()
    some = sweep.table("addition", 16)
    assert len(some) == np.sum((rows["task"] == "addition") & (rows["length"] == 16))
    assert set(zip(some["task"], some["length"], strict=True)) == {("addition", 16)}
    assert set(sweep.table(length=64)["task"]) == {"maximum_subarray"}


def test_query_sees_the_partition_and_the_types(sweep, rows):
    sql = "select task, count(*) as n, min(val_loss) as loss from runs where status = $s group by task order by task"
    found = sweep.query(sql, {"s": "finished"})
    ended = rows[rows["status"] == "finished"].groupby("task")["val_loss"]
    assert found["task"].tolist() == sorted(ended.groups)
    assert found["n"].tolist() == ended.size().tolist()
    assert found["loss"].tolist() == ended.min().tolist()


@pytest.mark.parametrize("budget", [1e9, 10**10.5])
def test_best_against_loops(sweep, rows, budget):
    found = sweep.best(budget)
    assert found_by(found, ["task", "length"]) == by_hand(rows[rows["budget_flops"] == budget], ["task", "length"])
    assert set(found["status"]) == {"finished"}
    for (task, length), part in found.groupby(["task", "length"]):
        one = part.iloc[0]
        same = rows[(rows["task"] == task) & (rows["length"] == length) & (rows["budget_flops"] == budget)]
        for name in CONFIGURATION:
            same = same[same[name] == one[name]]
        assert sorted(part["seed"]) == sorted(same.loc[same["status"] == "finished", "seed"])
    pd.testing.assert_frame_equal(
        sweep.best(budget, task="addition", length=16),
        found[(found["task"] == "addition") & (found["length"] == 16)].reset_index(drop=True),
    )


def test_the_papers_rule_is_the_single_lowest_run(sweep, rows):
    found = sweep.best(1e9, rule="paper").set_index(["task", "length"])["run_id"]
    at = rows[(rows["budget_flops"] == 1e9) & (rows["status"] == "finished")]
    lowest = at.loc[at.groupby(["task", "length"])["val_loss"].idxmin()].set_index(["task", "length"])["run_id"]
    assert found.to_dict() == lowest.to_dict()
    at_shape = at[(at["d_model"] == 32) & (at["n_layers"] == 4)]
    matched = sweep.matched(32, 4, rule="paper")
    assert len(matched) == len(TASKS) * len(BUDGETS)
    lowest = at_shape.loc[at_shape.groupby(["task", "length"])["val_loss"].idxmin(), "run_id"]
    assert sorted(matched.loc[matched["budget_flops"] == 1e9, "run_id"]) == sorted(lowest)


def test_matched_against_loops(sweep, rows):
    shape = rows[(rows["d_model"] == 16) & (rows["n_layers"] == 8)]
    group = ["task", "length", "budget_flops"]
    found = sweep.matched(16, 8)
    assert found_by(found, group) == by_hand(shape, group)
    assert len(found_by(found, group)) == len(TASKS) * len(BUDGETS)


def few(losses, **other):
    """Rows of addition 8 at 1e9, one a (lr, seed, loss); a loss of None diverged."""
    rows = made_up([("addition", 8)], n_seeds=3)
    rows = select(rows, budget_flops=1e9, d_model=8, n_layers=2, batch_size=8)
    kept = []
    for lr, seed, loss in losses:
        row = rows[(rows["lr"] == lr) & (rows["seed"] == seed)].copy()
        row["status"], row["val_loss"] = ("diverged", np.nan) if loss is None else ("finished", loss)
        kept.append(row.assign(**other))
    return pd.concat(kept)


def test_luck_with_one_seed_does_not_win(tmp_path):
    """lr 1e-2 has the lowest single run, and the lowest mean over what finished; one of its seeds diverged."""
    losses = [(1e-3, 0, 0.50), (1e-3, 1, 0.52), (1e-2, 0, 0.30), (1e-2, 1, None), (1e-4, 0, 0.40), (1e-4, 1, 0.70)]
    sweep = write(tmp_path, few(losses))
    best = sweep.best(1e9)
    assert best["lr"].tolist() == [1e-3, 1e-3]
    assert best["val_loss"].tolist() == [0.50, 0.52]
    assert sweep.best(1e9, rule="paper")["val_loss"].tolist() == [0.30]
    # Where every configuration lost a seed, the mean decides again.
    unlucky = write(tmp_path / "two", few([(1e-3, 0, 0.5), (1e-3, 1, None), (1e-2, 0, 0.3), (1e-2, 1, None)]))
    assert unlucky.best(1e9)["val_loss"].tolist() == [0.30]


def test_the_latest_row_of_a_run_counts(tmp_path):
    """A run that failed and was retried, and a part written twice by a kill between writing and deleting."""
    first = few([(1e-3, 0, None), (1e-3, 1, 0.4)])
    sweep = write(tmp_path, first)
    assert sweep.table()["status"].tolist() == ["diverged", "finished"]
    again = few([(1e-3, 0, 0.6)], finished_at="2026-01-01T00:00:00.5+00:00")
    write(tmp_path, again)
    write(tmp_path, first)
    assert sweep.table()["val_loss"].tolist() == [0.6, 0.4]
    assert sweep.query("select count(*) as n from runs")["n"].tolist() == [2]
    assert repr(sweep) == f"Sweep({str(tmp_path)!r}: addition; 2 finished, 0 diverged, 0 failed)"


def test_a_part_that_goes_while_it_is_read(tmp_path, monkeypatch):
    """A running sweep puts its parts together: the question is asked once more on the new ones."""
    sweep = write(tmp_path, few([(1e-3, 0, 0.5)]))
    parts = sweep.storage.glob("results/task=*/part-*.parquet")
    listings = [[*parts, "results/task=addition/part-gone.parquet"], parts]
    monkeypatch.setattr(sweep.storage, "glob", lambda _: listings.pop(0))
    assert sweep.table()["val_loss"].tolist() == [0.5]
    assert listings == []


def test_remote_storage_is_read_alike(tmp_path):
    """In fsspec's memory file system, as on s3."""
    rows = few([(1e-3, 0, 0.5), (1e-2, 0, 0.7)])
    local, remote = write(tmp_path, rows), write(f"memory://{tmp_path.name}/sweep", rows)
    pd.testing.assert_frame_equal(remote.table(), local.table())
    assert remote.best(1e9)["lr"].tolist() == [1e-3]
    with pytest.raises(QflError, match="say where to download the run"):
        remote.run(rows["run_id"].iloc[0])


def test_run_opens_the_directory(tmp_path, tiny_run):
    rows = few([(1e-3, 0, 0.5)])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(tiny_run.path)
    sweep = write(tmp_path, rows.assign(path="runs/tiny", run_id=tiny_run.run_id))
    found = sweep.run(tiny_run.run_id)
    assert isinstance(found, Run)
    assert found.config == tiny_run.config
    remote = write(f"memory://{tmp_path.name}/run", rows.assign(path="runs/tiny", run_id=tiny_run.run_id))
    Pusher(remote.storage._remote, "runs/tiny", tiny_run.path).push()
    assert remote.run(tiny_run.run_id, into=tmp_path / "copy").config == tiny_run.config


# What is refused


def test_no_sweep_and_no_results(tmp_path):
    with pytest.raises(QflError, match=r"is no sweep: it has no sweep\.json"):
        Sweep.open(tmp_path / "nothing")
    Storage(str(tmp_path)).write_bytes("sweep.json", definition_json(CONFIG))
    sweep = Sweep.open(tmp_path)
    assert sweep.config == CONFIG
    assert "no results yet" in repr(sweep)
    with pytest.raises(QflError, match="has no results yet: no run has ended"):
        sweep.table()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: s.table("adition"), r"no task with a run in .* named 'adition'. Did you mean 'addition'\?"),
        (lambda s: s.table("addition", 9), r"has length 9 of addition. There are 8, 16\."),
        (lambda s: s.table(length=9), r"has length 9. There are 8, 16, 40, 64\."),
        (lambda s: s.best(2e10), r"budget of 2e\+10 FLOPs. The nearest is 3.16228e\+10; there are 1e\+09, "),
        (lambda s: s.best(0.0), r"The nearest is 1e\+09"),
        (lambda s: s.matched(16, 3), r"d_model 16 and n_layers 3. There are \(d_model x n_layers\) 8 x 2, 8 x 4, "),
        (lambda s: s.best(1e9, rule="seeds"), "no rule for the best configuration is named 'seeds'"),
        (lambda s: s.query("select nothing from runs"), "(?s)DuckDB refuses the query .* nothing"),
        (lambda s: s.run("addition8-00000000000"), r"no run .* is named .* Did you mean 'addition8-000000000000'"),
    ],
)
def test_bad_questions(sweep, ask, words):
    with pytest.raises(QflError, match=words):
        ask(sweep)


def test_nothing_finished(tmp_path):
    sweep = write(tmp_path, few([(1e-3, 0, None), (1e-3, 1, None)]))
    for ask in (lambda: sweep.best(1e9), lambda: sweep.matched(8, 2)):
        with pytest.raises(QflError, match="has finished: 0 finished, 2 diverged, 0 failed"):
            ask()
