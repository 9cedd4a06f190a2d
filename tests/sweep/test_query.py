"""A sweep's table, best and matched configurations against brute force over made-up records of 20,000 runs."""

from __future__ import annotations

import hashlib
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qfl_interp.errors import QflError
from qfl_interp.runs.run import Run
from qfl_interp.sweep import query
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import definition_json, recorded
from qfl_interp.sweep.mirror import Pusher
from qfl_interp.sweep.parts import COLUMNS, write_part
from qfl_interp.sweep.records import RecordWriter
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
            "attempts": 1, "task_options": "", "n_parameters": 1000, "n_val": 1000, "seconds": 1.0, "group_size": 1,
            "device": "cpu", "finished_at": "2026-01-01T00:00:00+00:00"}  # fmt: skip
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


@pytest.mark.slow
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


# A query reaches the rows and nothing else.


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small", few([(1e-3, 0, 0.5), (1e-2, 0, 0.7)]))


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('{file}')",
        "select * from read_csv('{file}')",
        "select * from '{file}'",
        "select * from glob('/*')",
        "copy runs to '{new}'",
        "copy (select 1) to '{results}/part-new.parquet' (format parquet)",
        "attach '{new}'",
        "export database '{new}'",
        "install httpfs",
        "load httpfs",
    ],
)
def test_files_and_extensions_are_out_of_reach(small, tmp_path, sql):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    results = tmp_path / "small" / "results" / "task=addition"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(QflError, match=r"reads the view `runs` and nothing else, .*--unrestricted") as raised:
        small.query(sql.format(file=tmp_path / "secret.csv", new=tmp_path / "new", results=results))
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("", "must be one SQL statement, got nothing"),
        ("  -- a remark", "must be one SQL statement, got nothing"),
        ("select 1; select 2", "must be one SQL statement, got 2 statements"),
        ("selec 1", 'DuckDB refuses the query on `runs`: .*syntax error at or near "selec"'),
        ("insert into runs values (1)", "DuckDB refuses the query on `runs`: .*runs is not an table"),
        ("set memory_limit = '100GB'", "configuration has been locked"),
        ("select * from outside", "outside does not exist"),
        ("select * from runs where lr = $lr", "Values were not provided for the following parameters: lr"),
        ("create table many as select * from range(3000000000)", "may take 1 GB of memory, and this one needs more"),
    ],
)
def test_refused_queries_are_told_in_one_line(small, sql, words):
    outside = pd.DataFrame({"a": [1]})  # a variable that DuckDB would find
    with pytest.raises(QflError, match=words) as raised:
        small.query(sql)
    assert "\n" not in str(raised.value)
    assert len(outside) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) from range(1000000000000) a where a.range % 7 = 3",
        "with recursive t(n) as (select 1 union all select n + 1 from t) select count(*) from t",
    ],
    ids=["work", "recursion"],
)
def test_a_query_without_end_is_stopped(small, sql):
    start = time.monotonic()
    with pytest.raises(QflError, match=r"may take 0\.3 s, and this one was stopped .*--timeout 600"):
        small.query(sql, timeout_seconds=0.3)
    assert time.monotonic() - start < 20
    with pytest.raises(ValueError, match="timeout_seconds must be positive, got 0"):
        small.query("select 1", timeout_seconds=0)


def test_an_answer_without_end_is_stopped(small, monkeypatch):
    """Outside DuckDB, whose own limit does not count it: in pieces, and too large as a whole."""
    assert len(small.query("select range from range(100000)")) == 100_000
    assert small.query("select case when range % 3000 > 0 then 1 end as a from range(6000)")["a"].isna().sum() == 2
    monkeypatch.setattr(query, "_MEMORY_BYTES", 2_000_000)
    with pytest.raises(QflError, match=r"must stay below 0\.002 GB"):
        small.query("select range from range(1000000000000)")


def test_unrestricted_is_duckdb_itself(small, tmp_path):
    small.query(f"copy (select lr from runs order by lr) to '{tmp_path / 'lr.csv'}'", unrestricted=True)
    assert (tmp_path / "lr.csv").read_text().split() == ["lr", "0.001", "0.01"]
    read = small.query(f"select content from read_text('{tmp_path / 'lr.csv'}')", unrestricted=True)
    assert read["content"].tolist() == ["lr\n0.001\n0.01\n"]
    with pytest.raises(QflError, match="got nothing"):
        small.query("", unrestricted=True)


# Which row of a run counts.


@pytest.mark.parametrize("status", ["failed", "diverged"])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_clock_hides_no_finished_run(tmp_path, status, compacted):
    """The failed attempt's machine was a century ahead."""
    finished = few([(1e-3, 0, 0.5), (1e-3, 1, 0.4)])
    sweep = write(tmp_path, finished)
    late = finished.iloc[:1].assign(status=status, val_loss=np.nan, finished_at="2126-01-01T00:00:00.000000+00:00")
    write(tmp_path, late)
    if compacted:
        RecordWriter(sweep.storage).compact()
    assert sweep.table()["val_loss"].tolist() == [0.5, 0.4]
    assert set(sweep.table()["status"]) == {"finished"}
    assert recorded(sweep.storage) == dict.fromkeys(finished["run_id"], "finished")


def test_among_equal_outcomes_the_last_counts_and_a_divergence_is_no_failure(tmp_path):
    diverged = few([(1e-3, 0, None)])
    sweep = write(tmp_path, diverged.assign(error="first"))
    write(tmp_path, diverged.assign(error="second", finished_at="2026-01-02T00:00:00+00:00"))
    write(tmp_path, diverged.assign(error="third", status="failed", finished_at="2026-01-03T00:00:00+00:00"))
    assert sweep.table()[["status", "error"]].to_numpy().tolist() == [["diverged", "second"]]


# Damaged parts of an earlier version, which had no checksum.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="status"), r"its columns are not those that were written \(status\)"),
        (lambda t: t.assign(extra=1), r"its columns are not those that were written \(extra\)"),
        (lambda t: t.assign(seed=t["seed"].astype("float64")), "its column seed must hold int64, got double"),
        (lambda t: t.assign(lr="0.1"), "its column lr must hold float64, got large_string"),
        (
            lambda t: t.assign(status="done"),
            "its column status must hold one of finished, diverged, failed, got 'done'",
        ),
        (lambda t: t.assign(run_id=None), "its column run_id must hold str, got null"),
        (lambda t: t.assign(run_id="parity4-1"), "it holds run 'parity4-1', which is not of the task 'addition'"),
        (lambda t: t.assign(error=[None, *t["error"][1:]]), "its column error has rows without a value"),
    ],
    ids=["lost", "added", "float", "text", "outcome", "nothing", "task", "null"],
)
def test_a_part_with_other_columns_is_named(small, change, words):
    (part,) = (Path(small.path) / "results" / "task=addition").iterdir()
    change(pd.read_parquet(part, partitioning=None)).to_parquet(part.with_name("part-0123.parquet"), index=False)
    part.unlink()
    with pytest.raises(QflError, match=rf"part-0123\.parquet is damaged: {words}"):
        small.table()


def test_parts_are_one_plain_dataset_named_by_their_checksums(small):
    results = Path(small.path) / "results"
    (part,) = results.rglob("part-*.parquet")
    assert part.stem.split("-")[2] == hashlib.sha256(part.read_bytes()).hexdigest()[:16]
    plain = pd.read_parquet(results).sort_values("lr")
    assert plain["val_loss"].tolist() == small.table()["val_loss"].tolist()
