"""The queue of runs at the paper's lengths: what is done next, what is kept, and what the page says of it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import paper_carry
import paper_lengths
import paper_work
import pytest
from helpers_sweep import InlinePool
from pages import DOCS
from paper_carry import KINDS
from paper_kept import CSV, MOST_BYTES, Kept
from paper_page import NOTHING, Pages
from paper_queue import Entry, Queue, budget_name, verdict_budget
from paper_words import (
    agreement,
    between_of,
    carry_place,
    drop_agrees,
    label_drops,
    said_across,
    said_label,
    said_verdicts,
    spanned,
    window_verdict,
)
from paper_work import label_groups

import qfl_interp as qfl
from qfl_interp.emergence.transition import find_transition
from qfl_interp.tables import select

TINY = """
[defaults]
n_layers = 1
n_heads = 2
[rates]
budget_flops = 4e6
d_model = 8
batch_size = [4, 8]
lr = [1e-3]
[widths]
budget_flops = 1e7
d_model = [4, 8]
[run]
n_checkpoints = 3
[probes]
n_train = 40
n_test = 40
shuffled_control = false
[[stage]]
budgets = [1e7]
seeds = [0]
[[stage]]
budgets = [1e8]
seeds = [0]
when = "not solved"
[[stage]]
budgets = [2e6, 5e6]
seeds = [0]
across = true
[[task]]
name = "addition"
length = 6
interchanged = "carry"
interchange = [1]
carries = [2]
paper = { carry = "quiet" }
"""

# The runs of addition that are taken apart: three seeds of 16 bits, then of 64.
SUMS = [f"addition-{length}-s{seed}" for length in ("16-3e12", "64-1e13") for seed in (0, 1, 2)]


def plateau_and_fall(end=0.01):
    """Validations with a plateau at 0.65 up to 1e11 FLOPs, a fall within a decade, and what follows."""
    flops = np.geomspace(1e9, 1e13, 81)
    share = np.clip(np.log10(flops / 1e11), 0, 1)
    return pd.DataFrame(
        {"flops": flops, "val_loss_answer": 0.65 ** (1 - share) * end**share, "val_exact_answer": share}
    )


def put(kept, item, *, budget, seed=0, metrics=None, task="breadth_first_search", length=11, across=False, lr=3e-3):
    """A kept run of these metrics."""
    about = {"kind": "run", "task": task, "length": length, "seed": seed, "across": across, "d_model": 64,
             "n_layers": 4,
             "batch_size": 8, "lr": lr, "budget_flops": budget, "n_val": 128, "run_id": item, "base_rate": 0.65,
             "train_seconds": 60.0, "seconds": 90.0}  # fmt: skip
    kept.write(item, about, {"metrics": plateau_and_fall() if metrics is None else metrics})


def names(queue):
    return [item.name for item in queue.items() if item.entry.name == "breadth_first_search" and item.kind == "run"]


def test_the_queue_follows_what_is_kept(tmp_path):
    kept = Kept(tmp_path)
    queue = Queue(kept)
    bfs = "breadth_first_search-11-{}".format
    assert names(queue)[:2] == [bfs("1e13-s0"), bfs("1e14-s0")]
    assert not any(name.endswith("s1") for name in names(queue)), "seeds wait for seed 0"
    flat = plateau_and_fall().assign(val_loss_answer=0.65, val_exact_answer=0.0)
    put(kept, bfs("1e13-s0"), budget=1e13, metrics=flat)
    assert bfs("1e14-s0") in names(queue)
    assert not {bfs("1e13-s1"), bfs("3e14-s0")} & set(names(queue)), "what the largest budget shows is not known yet"
    put(kept, bfs("1e14-s0"), budget=1e14, metrics=flat)
    assert bfs("3e14-s0") not in names(queue), "a flat loss has not begun to fall"
    assert {bfs("1e14-s1"), bfs("1e14-s2")} < set(names(queue)), "the paper names its features"
    assert bfs("1e12-s1") not in names(queue), "but there is no transition across budgets to find"
    for loss, begun in ((0.5, True), (0.3, False)):
        put(kept, bfs("1e14-s0"), budget=1e14, metrics=flat.assign(val_loss_answer=loss))
        assert (bfs("3e14-s0") in names(queue)) == begun
    put(kept, bfs("1e13-s0"), budget=1e13)
    solved = names(queue)
    assert bfs("1e14-s0") not in solved
    assert {bfs("1e13-s1"), bfs("1e13-s2"), bfs("1e12-s2")} < set(solved)


def test_verdicts_are_of_the_smallest_budget_whose_fall_came_to_rest():
    flat, falling = {"transition_start": math.nan, "complete_transition": False}, {"transition_start": 1.0}
    ended, whole = falling | {"complete_transition": False}, falling | {"complete_transition": True}
    assert verdict_budget({1e12: flat, 1e13: whole, 1e14: whole}) == 1e13
    assert verdict_budget({1e12: ended, 1e13: flat, 1e14: whole}) == 1e14
    assert verdict_budget({1e12: ended, 1e13: ended, 1e14: flat}) == 1e13
    assert verdict_budget({1e12: flat, 1e13: flat}) == 1e13


def test_a_run_of_another_shape_is_made_again(tmp_path):
    kept = Kept(tmp_path)
    queue = Queue(kept)
    items = {item.name: item for item in queue.items()}
    item = items["addition-16-3e12-s0"]  # its shape is in the queue's definition
    put(kept, item.name, budget=3e12, task="addition", length=16)
    assert queue.done(item)
    put(kept, item.name, budget=3e12, task="addition", length=16, lr=1e-3)
    assert not queue.done(item)
    assert not queue.seen(kept.rows(), item.entry), "nor is anything said of it"
    put(kept, item.name, budget=3e12, task="addition", length=16, across=True)
    assert not queue.done(item), "one that was probed at its end alone is not enough"
    assert queue.done(item._replace(across=True))
    search = next(item for item in items.values() if item.kind == "widths")
    for budget in (search.budget, search.budget / 3):
        kept.write(search.name, {"kind": "widths", "budget_flops": budget}, {})
        assert queue.done(search) == (budget == search.budget)


def test_every_task_of_the_queue_can_be_planned():
    """Unique names, features that are there, and shapes that a search gives before a run needs them."""
    queue = Queue(Kept())
    items = queue.items()
    assert len({item.name for item in items}) == len(items)
    for entry in queue.entries:
        features = entry.task.features
        assert set(entry.paper) | set(entry.drops) | ({entry.interchanged} - {""}) <= set(features)
        assert all(label < features[entry.interchanged].n_labels for label in entry.interchange)
    assert {entry[:2] for entry in queue.entries} == {
        ("addition", 16), ("addition", 64), ("multiplication", 16), ("majority_of_majorities", 32),
        ("activity_selection", 16), ("maximum_subarray", 64), ("breadth_first_search", 11), ("depth_first_search", 11),
        ("topological_sort", 11), ("shortest_path", 11), ("min_spanning_tree", 11),
    }  # fmt: skip


def test_a_search_over_seeds_chooses_by_their_mean(tmp_path):
    kept = Kept(tmp_path)
    queue = Queue(kept)
    (entry,) = [entry for entry in queue.entries if entry.lucky]
    search = pd.DataFrame({
        "d_model": 64, "batch_size": 8, "lr": [1e-3, 1e-3, 3e-3, 3e-3], "val_loss_answer": [0.02, 0.04, 0.0001, 0.68],
    })  # fmt: skip
    kept.write(f"{entry.label}-widths", {"kind": "widths"}, {"search": search.assign(d_model=32)})
    assert queue.shape(entry) is None, "one seed does not choose"
    kept.write(f"{entry.label}-seeds", {"kind": "seeds"}, {"search": search})
    assert queue.shape(entry) == {"d_model": 64, "batch_size": 8, "lr": 1e-3}
    seeds = [item for item in queue.items() if item.kind == "seeds"]
    assert [item.entry for item in seeds] == [entry]
    assert len({config.train.seed for config in queue.planned(seeds[0])}) > 1


def test_budgets_have_short_names():
    assert [budget_name(b) for b in (1e13, 3e14, 1e9)] == ["1e13", "3e14", "1e9"]


def test_rows_have_the_transition_and_the_last_validation(tmp_path):
    kept = Kept(tmp_path)
    put(kept, "a", budget=1e13)
    put(kept, "b", budget=1e14, metrics=plateau_and_fall().assign(val_loss_answer=0.65))
    found, flat = kept.rows()
    # 5 % and 95 % of the fall from 0.65 to 0.01, within a step of the grid of 20 validations a decade.
    for name, loss in (("transition_start", 0.618), ("transition_end", 0.042)):
        expected = 11 + math.log(0.65 / loss) / math.log(65)
        assert abs(math.log10(found[name]) - expected) <= 1 / 20
    assert (found["final_loss"], found["exact_match"]) == (pytest.approx(0.01), 1.0)
    assert math.isnan(flat["transition_start"])
    line = kept.csv().splitlines()[-1]
    assert line.startswith("breadth_first_search,11,0,64,4,8,0.003,1e+14,0.65,1")
    assert line.endswith(",,")


def test_an_item_is_kept_whole_or_not_at_all(tmp_path):
    kept = Kept(tmp_path)
    put(kept, "a", budget=1e13)
    with pytest.raises(TypeError):
        kept.write("a", {"bad": object()}, {"metrics": plateau_and_fall()})
    assert kept.rows()[0]["budget_flops"] == 1e13
    assert kept.names() == ["a"]


def test_the_csv_and_the_page_are_what_the_kept_tables_give():
    kept = Kept()
    assert CSV.read_text() == kept.csv()
    page = (DOCS / "tasks.md").read_text()
    for name, text in Pages(Queue(kept), kept).parts().items():
        assert f"<!-- {name} -->\n{text}<!-- /{name} -->" in page, name
    assert kept.n_bytes() < MOST_BYTES


def test_what_the_page_says_of_the_carry_is_what_is_kept():
    """The sentences about where the ablation's drop comes from, made again from the tables."""
    kept, said = Kept(), " ".join((DOCS / "tasks.md").read_text().split())
    whole = []
    for item in SUMS:
        table = kept.table(item, "ablate")
        assert table is not None
        rows = select(select(table, method="project_out", top_k=1), condition="ablated").set_index("feature")
        whole.append(f"{100 * (1 - rows.loc['carry', 'exact_answer']):.1f}")
        assert rows.loc["carry_without_next_token", "exact_answer"] == 1.0, item
    short, long = (f"{a}, {b} and {c}" for a, b, c in (whole[:3], whole[3:]))
    assert f"costs {short} points at 16 bits, {long} at 64" in said
    labels = kept.table("addition-64-1e13-s0", "ablate_labels")
    assert labels is not None
    as_the_paper = label_drops(select(labels, feature="carry", method="project_out", top_k=1)).set_index("labels")[
        "drop"
    ]
    assert f"the last costs {100 * as_the_paper['63']:.1f} and each of the 63 others 0.0" in said
    assert as_the_paper.drop("63").abs().max() == 0


def test_what_the_page_says_of_inner_carries_is_what_is_kept():
    kept, said = Kept(), " ".join((DOCS / "tasks.md").read_text().split())
    shares, reads, early, means = [], [], [], []
    for item in SUMS:
        table = kept.table(item, "carries")
        assert table is not None
        last = select(table, step=table["step"].max())
        layer, site = carry_place(last)
        there = select(last, layer=layer, site=site)
        shares.append(100 * there.pivot_table(index="swapped", columns="pairs", values="changed"))
        reads.append(100 * there[["carry_read", "next_read"]].mean())
        before = table[table["flops"] < kept.transition(item).start_flops]
        early.append(100 * select(before, swapped="whole")["changed"].max())
        means.append(100 * select(select(last, swapped="mean", pairs="neither"), layer=0)["changed"].max())

    def span(condition, *kinds):
        return spanned((of.loc[condition, list(kinds)].mean() for of in shares), ".0f")

    spread, _ = shares.pop(1), reads.pop(1)  # seed 1 at 16 bits
    assert f"its best swap changes {spread.loc['own', 'carry']:.0f} %" in said

    assert f"changes {span('own', 'carry')} % of the next bits where the carry differs" in said
    assert f"{span('own', 'neither')} % where neither it nor a bit above does" in said
    assert f"a bit above alone differs it changes {span('own', 'bit')} %" in said
    assert f"where both do {span('own', 'both')} %" in said
    assert f"all but that line changes {span('rest', *KINDS)} %" in said
    assert f"cut of that line changes {span('cut own', *KINDS)} %" in said
    assert f"one of the probe's direction at the same place {span('cut probe', *KINDS)} %" in said
    assert f"the carry reads {spanned((r['carry_read'] for r in reads), '.0f')} %" in said
    assert f"and the next bit {spanned((r['next_read'] for r in reads), '.0f')} %" in said
    assert f"swap of everything changes at most {max(early):.0f} % of the next bits" in said
    assert f"up to {max(means):.0f} % of the next bits where the carry is the same" in said


def test_what_the_page_says_of_searches_and_others_is_what_is_kept():
    kept, said = Kept(), " ".join((DOCS / "tasks.md").read_text().split())
    rows = {row["item"].removesuffix("-1e13-s0"): row for row in kept.rows() if row["item"].endswith("-1e13-s0")}
    reasons = {name: kept.transition(row["item"]).reason for name, row in rows.items()}
    right = {name: f"{100 * row['exact_match']:.0f} %" for name, row in rows.items()}
    dfs, bfs, activity = "depth_first_search-11", "breadth_first_search-11", "activity_selection-16"

    def costs(item, feature):
        table = kept.table(f"{item}-1e13-s0", "ablate")
        assert table is not None
        at = select(table, feature=feature, method="project_out", top_k=1).set_index("condition")["exact_answer"]
        return {name: f"{100 * (at['intact'] - value):.1f}" for name, value in at.items()}, 100 * at["intact"]

    assert f"first plateau, at 0.91 nats, at 7.7e11 FLOPs; at 1e13 {right[bfs]} are right" in said
    assert "plateau at 0.913" in reasons[bfs]
    queue, intact = costs(bfs, "queue")
    assert queue["ablated"] == f"{intact:.1f}"
    assert f"does costs {queue['ablated']} points, all that is right" in said
    assert f"random directions cost {queue['random']} there, changes of the same size {queue['same_norm']}." in said
    assert (
        f"At 1e13 they have {right[dfs].removesuffix(' %')} and {right[activity]} right on the validation set" in said
    )
    assert all("falls from the start" in reasons[name] for name in (dfs, activity))
    stack, intact = costs(dfs, "stack")
    assert stack["ablated"] == f"{intact:.1f}"
    costly = (
        f"the true stack costs {stack['ablated']} points, all that is right on the test set, where random directions"
    )
    assert f"{costly} cost {stack['random']}, those of the adjacency list {stack['random_feature']} and changes" in said
    assert f"of the same size {stack['same_norm']}. Start times" in said
    assert costs(activity, "start_times")[0]["ablated"] == "0.0"
    assert f"**Shortest path** has {right['shortest_path-11']} right at 1e13." in said
    assert not math.isfinite(rows["shortest_path-11"]["transition_start"])
    tree, order = "min_spanning_tree-11", "topological_sort-11"
    assert f"**Minimum spanning tree** has {right[tree]} right at 1e13, without a plateau." in said
    assert "falls from the start" in reasons[tree]
    assert float(costs(tree, "is_tree_edge")[0]["ablated"]) <= 0, "costs nothing"
    fall = kept.transition(rows[order]["item"])
    assert f"plateau, at {fall.plateau_loss:.2f} nats, at {fall.start_flops / 1e12:.1f}e12 FLOPs" in said
    assert f"at 1e13 {right[order]} are right, and it still falls." in said
    random, intact = costs(order, "adjacency_list")
    assert f"nearly all of the {intact:.1f} points there are to lose" in said
    assert 0.9 * intact < float(random["random"]) < intact
    majority = rows["majority_of_majorities-32"]
    product = next(row for row in kept.rows() if row["item"] == "multiplication-16-1e14-s0")
    assert (product["exact_match"], f"{product['final_loss']:.2f}", f"{product['base_rate']:.2f}") == (
        0,
        "0.40",
        "0.65",
    )
    assert "none is right at 1e14, with a loss of 0.40 where the base rate is 0.65" in said
    assert f"The first has {100 * majority['exact_match']:.0f} % right at 1e13" in said
    bits = qfl.load_task("majority_of_majorities", 32)
    answers = bits.encode(bits.sample(np.random.default_rng(0), 20_000)).tokens[:, -2]
    share = (answers == bits.vocabulary.index("0")).float().mean()
    assert f"where {100 * float(share):.0f} % of the answers are 0" in said


def test_what_the_page_says_across_budgets_is_what_is_kept():
    kept, said = Kept(), " ".join((DOCS / "tasks.md").read_text().split())
    curves = Pages(Queue(kept), kept).curves
    sums, subarray, order, long = (
        curves[name] for name in ("addition-16", "maximum_subarray-64", "topological_sort-11", "addition-64")
    )
    assert sums is not None
    assert subarray is not None
    assert order is not None
    assert long is not None
    spans = [between_of(of.transitions.mean, 7).replace("→", "and") for of in (sums, subarray, order)]
    assert f"addition at 16 bits falls between {spans[0]} FLOPs" in said
    leads = [sums.verdicts[name, "all"]["lead_log10"] for name in ("carry", "first_operand")]
    assert "with the carry {:.2f} and the first operand {:.2f} decades ahead".format(*leads) in said
    assert f"maximum subarray between {spans[1]} with both features behind" in said
    wholes = [row for (_, third), row in subarray.verdicts.items() if third == "all"]
    assert [(row["verdict"], row["lead_log10"] < 0) for row in wholes] == [("loud", True)] * 2
    assert f"topological sort between {spans[2]}." in said
    assert not long.transitions.mean.found
    ends = select(pd.DataFrame(kept.rows()), task="addition", length=64, seed=0).set_index("budget_flops")["final_loss"]
    base = next(row["base_rate"] for row in kept.rows() if (row["task"], row["length"]) == ("addition", 64))
    assert f"at {ends[3e11]:.3f} nats at 3e11, above the base rate of {base:.3f}, at {ends[1e12]:.3f} at 1e12" in said
    assert f"at {ends[3e12]:.3f} at 3e12." in said


def test_what_the_page_says_of_luck_is_what_is_kept():
    kept, said = Kept(), " ".join((DOCS / "tasks.md").read_text().split())
    seeds, rates, widths = (kept.search(f"addition-64-{kind}") for kind in ("seeds", "rates", "widths"))
    assert seeds is not None
    assert rates is not None
    assert widths is not None
    left = {lr: int((part["val_loss_answer"] < 0.1).sum()) for lr, part in seeds.groupby("lr")}
    assert left == {1e-3: 4, 2e-3: 3, 3e-3: 2}
    assert "all of four seeds have left the plateau of 64 bits at 1e-3, three at 2e-3, two at 3e-3" in said
    stacked, alone = (select(table, d_model=64, batch_size=8, lr=3e-3) for table in (rates, widths))
    assert stacked["run_id"].tolist() == alone["run_id"].tolist()
    assert (stacked["group_size"].tolist(), alone["group_size"].tolist()) == ([4], [1])
    assert float(stacked["val_exact_answer"].iloc[0]) == 1
    assert float(alone["val_exact_answer"].iloc[0]) == 0


def verdicts(*kinds, certain=True, leads=()):
    return pd.DataFrame({"verdict": kinds, "certain": certain, "lead_log10": leads or math.nan})


def test_agreement_is_with_every_seed():
    assert agreement("quiet", verdicts("quiet", "quiet")) == "agrees within a run"
    assert agreement("quiet", verdicts("quiet", certain=False)) == "agrees within a run, uncertain"
    assert agreement("quiet", verdicts("loud", "loud")) == "disagrees within a run"
    assert agreement("quiet", verdicts("loud", "quiet")) == "seeds differ"
    assert agreement("quiet", verdicts("quiet", "not learned")) == "seeds differ"
    assert agreement("quiet", verdicts("no transition")) == "no verdict"
    assert agreement("quiet", verdicts()) == "–"
    assert said_verdicts(verdicts("quiet", "quiet", leads=(0.2, 0.4))) == "quiet (+0.30, -0.97 to +1.57)"


def test_a_verdict_across_budgets_counts_more_than_those_of_runs():
    across = {"verdict": "loud", "certain": True, "lead_log10": -0.2, "lead_seed_low": -0.3, "lead_seed_high": -0.1}
    assert agreement("quiet", verdicts("quiet"), across) == "disagrees"
    assert agreement("loud", verdicts("quiet"), across | {"certain": False}) == "agrees, uncertain"
    assert agreement("quiet", verdicts("quiet"), across | {"verdict": "no transition"}) == "agrees within a run"
    assert said_across(across) == "loud (-0.20, -0.30 to -0.10)"
    assert said_across(across | {"lead_seed_low": math.nan, "certain": False}) == "loud (?) (-0.20)"


def test_a_cut_agrees_to_ten_points():
    assert drop_agrees(43.6, [50.0, 40.0, math.nan]) == "agrees"
    assert drop_agrees(43.6, [60.0, 0.0]) == "larger, smaller"
    assert drop_agrees(43.6, [math.nan]) == "–"


def test_a_transition_agrees_where_it_overlaps_the_papers():
    entry = Entry("addition", 16, window=(1e11, 1e12))
    run = {"budget_flops": 1e13, "transition_start": 5e11, "transition_end": 2e12}
    late, none = run | {"transition_start": 2e12}, run | {"transition_start": math.nan}
    assert window_verdict(entry, [run]) == "agrees within a run"
    assert window_verdict(entry, [run, late]) == "agrees in some seeds within a run"
    assert window_verdict(entry, [late]) == "disagrees within a run"
    assert window_verdict(entry, [none]) == "disagrees at this budget"
    assert window_verdict(entry, [none | {"budget_flops": 1e11}]) == "not reached"
    assert window_verdict(entry, []) == "–"
    flops, share = np.geomspace(1e9, 1e15, 61), np.linspace(0, 1, 61) > 0.8
    across = find_transition(flops, np.where(share, 0.01, 0.65), chance_loss=0.65)
    assert across.start_flops > 1e12, "the case"
    assert window_verdict(entry, [run], across) == "disagrees"
    assert window_verdict(entry._replace(window=(1e13, 1e14)), [run], across) == "agrees"
    assert window_verdict(entry._replace(window=()), [run], across) == "–"


def test_a_labels_cost_is_its_own():
    rows = pd.DataFrame({
        "labels": ["0"] * 3 + ["14,15"] * 3, "condition": ["intact", "ablated", "random"] * 2,
        "exact_answer": [0.9, 0.8, 0.9, 0.9, 0.1, 0.85],
    })  # fmt: skip
    found = label_drops(rows)
    np.testing.assert_allclose(found["drop"], [0.1, 0.8])
    np.testing.assert_allclose(found["random"], [0.0, 0.05])
    assert said_label({"labels": "14,15", "drop": 0.8}, {14, 15}) == "14 to 15 (next token): 80.0"
    assert said_label({"labels": "3", "drop": 0.8}, {15}) == "3: 80.0"


def test_many_labels_are_cut_in_groups(tmp_path):
    class Of:
        task = qfl.load_task("maximum_subarray", 64)

    cuts = label_groups(Of(), {"is_prev_negative": list(range(63))})
    assert len(cuts) == 8
    assert [label for _, labels in cuts for label in labels] == list(range(63))

    class Short:
        task = qfl.load_task("addition", 4)

    assert label_groups(Short(), {"carry": [0, 2, 3]}) == [("carry", [0]), ("carry", [2]), ("carry", [3])]

    class Long:
        task = qfl.load_task("addition", 64)

    carries = [labels for _, labels in label_groups(Long(), {"carry": list(range(64))})]
    assert carries[-1] == [63], "the last carry is the next token"
    assert carries[0] == list(range(8))
    assert [part for _, part in label_groups(Long(), {"carry": [0, 5, 63]}, "carry")] == [[0], [5], [63]]


@pytest.mark.slow
def test_a_small_queue_is_worked_off_and_described(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_work, "LEAST_RIGHT", 0.0)  # so little training gives no right answer
    for name, few in (("TRIALS", 1), ("PAIRS", 8), ("CARRY_PAIRS", 4)):
        monkeypatch.setattr(paper_work, name, few)
    for name in ("N_FITTED", "N_OTHERS"):
        monkeypatch.setattr(paper_carry, name, 200)
    definition = tmp_path / "tiny.toml"
    definition.write_text(TINY)
    kept = Kept(tmp_path / "kept")
    queue = Queue(kept, definition)
    assert Pages(queue, kept).parts()["paper claims"] != NOTHING
    assert paper_lengths.next_item(queue, ["addition-6-1e7-s0"], set()) is None, "its search comes first"
    paper_lengths.go_on(queue, kept, [], tmp_path / "runs", math.inf, InlinePool)
    assert {"addition-6-rates", "addition-6-widths", "addition-6-1e7-s0", "addition-6-5e6-s0"} <= set(kept.names())
    assert all(kept.about(name)["predicted_minutes"] > 0 for name in kept.names())
    best = kept.search("addition-6-widths")
    assert best is not None
    row = best.loc[best["val_loss_answer"].idxmin()]
    about = kept.about("addition-6-1e7-s0")
    assert (about["d_model"], about["batch_size"]) == (row["d_model"], row["batch_size"])
    assert about["run_id"] == row["run_id"], "the search has trained it"
    parts = Pages(queue, kept).parts()
    said = {name for name, text in parts.items() if text != NOTHING}
    assert said == set(parts)
    before = {path: path.stat().st_mtime_ns for path in kept.folder.rglob("*.parquet")}
    paper_lengths.go_on(queue, kept, [], tmp_path / "elsewhere", math.inf, InlinePool)
    assert before == {path: path.stat().st_mtime_ns for path in kept.folder.rglob("*.parquet")}, "nothing is done twice"
    assert not list((tmp_path / "kept").rglob("*.safetensors"))
