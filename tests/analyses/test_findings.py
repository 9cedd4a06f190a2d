"""What lenses say of their rows in the report's head: numbers of the rows, and no claim that its test does not bear."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.lenses.ablate.findings import findings as of_ablation
from qfl_interp.analyses.lenses.ablate_units.findings import findings as of_units
from qfl_interp.analyses.lenses.ablate_units.lens import AblateUnits
from qfl_interp.analyses.lenses.patch.findings import findings as of_patches
from qfl_interp.analyses.lenses.probe.findings import findings as of_probes
from qfl_interp.analyses.part_lens import PartLens


def patched(best: dict[tuple[int, int], float], *, width: float = 0.05, component: str = "resid_pre") -> pd.DataFrame:
    """Rows of three layers and three positions (or heads) that restore nothing, but for some."""
    rows = [
        {"layer": layer, "head": -1, "position": at, "value": best.get((layer, at), 0.0)}
        for layer in range(3) for at in (4, 7, 9)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    if component == "heads":
        table = table.assign(head=table["position"], position=-1)
    ends = {"logit_diff_low": table["value"] - width, "logit_diff_high": table["value"] + width}
    table = table.assign(**ends).rename(columns={"value": "logit_diff_normalised"})
    return table.assign(step=10, feature="carry", label=3, component=component)


def one(findings):
    """The one finding's verdict and sentence."""
    (found,) = findings
    return found.verdict, found.sentence


def test_what_moves_is_said_with_block_and_positions():
    rows = patched({(0, 4): 0.9, (1, 4): 0.8, (1, 9): 0.3, (2, 9): 0.97})
    verdict, said = one(of_patches(rows))
    assert verdict == "moves"
    assert said.startswith(
        "before block 1 the clean activation at position 4 alone restores 0.80 (0.75 to 0.85) of the"
    )
    assert "any other at most 0.30; before block 2 the clean activation at position 9 alone restores 0.97" in said
    assert said.endswith("moves in block 1")
    # Of the last step alone.
    earlier = patched({(0, 7): 1.0}).assign(step=5)
    assert one(of_patches(pd.concat([earlier, rows]))) == (verdict, said)
    # Where no single position holds it in between, it moves over several blocks.
    assert one(of_patches(patched({(0, 4): 0.9, (2, 9): 0.9})))[1].endswith("moves in blocks 0 to 1")
    back = patched({(0, 4): 0.9, (1, 9): 0.9, (2, 4): 0.9})
    assert one(of_patches(back))[1].endswith("moves in block 0")


def test_what_moves_nowhere_is_not_said_to_move():
    assert one(of_patches(patched({(layer, 4): 0.9 for layer in range(3)})))[0] == "stays"
    low = one(of_patches(patched({(0, 4): 0.4, (2, 9): 0.4})))
    assert low[0] == "spread"
    assert "0.40" in low[1]
    # Above half, but the interval does not say so; or another position does as well.
    assert one(of_patches(patched({(0, 4): 0.6, (2, 9): 0.6}, width=0.2)))[0] == "spread"
    assert one(of_patches(patched({(0, 4): 0.9, (0, 7): 0.88, (2, 9): 0.9, (2, 7): 0.88})))[0] == "spread"
    assert of_patches(patched({}).assign(logit_diff_normalised=math.nan)) == []


def test_a_head_stands_out_where_its_interval_does():
    verdict, said = one(of_patches(patched({(1, 9): 0.5, (0, 4): 0.1}, component="heads")))
    assert verdict == "one head"
    assert "L1H9" in said
    assert "0.50 (0.45 to 0.55)" in said
    assert "0.10 (L0H4)" in said
    assert one(of_patches(patched({(1, 9): 0.5, (0, 4): 0.45}, component="heads")))[0] == "no one head"
    assert one(of_patches(patched({(1, 9): 0.2}, component="heads")))[0] == "no one head", "below a quarter"


def units(*rows: tuple[float, float, float, float]) -> pd.DataFrame:
    """Heads of layer 1: rise of the loss, lower end, p, exact match."""
    columns = ["loss_increase", "loss_increase_low", "p_value_holm", "exact_answer"]
    table = pd.DataFrame(rows, columns=columns).assign(loss_increase_high=lambda t: t["loss_increase"] + 0.1)
    fixed = {"layer": 1, "step": 10, "name": "z", "method": "mean", "intact_exact_answer": 1.0}
    return table.assign(unit=range(len(rows)), intact_loss_answer=0.1, **fixed)


def test_a_head_is_needed_where_it_costs_answers_and_is_told_from_none():
    verdict, said = one(of_units(units((0.2, 0.1, 0.01, 0.9), (3.0, 2.9, 0.01, 0.25), (1e-6, 1e-7, 0.01, 1.0))))
    assert verdict == "needed"
    assert said.startswith("L1H1, replaced by its mean, raises the answer's loss by 3 (2.9 to 3.1)")
    assert "from 1.000 to 0.250" in said
    assert "Of the 2 others 1 is shown to cost more than one answer in a hundred (L1H0)" in said
    nothing = (1e-6, 1e-7, 0.01, 1.0)
    assert "None of the 1 others" in one(of_units(units((3.0, 2.9, 0.01, 0.25), nothing)))[1]
    assert one(of_units(units((3.0, 2.9, 0.2, 0.25), nothing)))[0] == "none shown to be needed", "by chance"
    assert one(of_units(units((0.01, 0.005, 0.001, 0.995), nothing)))[0] == "none shown to be needed", (
        "it costs nothing"
    )


def test_a_real_valued_task_counts_by_its_error():
    rows = units((0.05, 0.04, 0.01, math.nan), (0.3, 0.2, 0.01, math.nan))
    verdict, said = one(of_units(rows))
    assert (verdict, said[:4]) == ("needed", "L1H1")
    assert "exact match" not in said
    verdict, said = one(of_units(rows.head(1)))
    assert verdict == "none shown to be needed"
    assert said.startswith("none is shown to at least double the error")


def ablated(feature: str, exact: float, p: float = 0.001, low: float = 0.0, n: int = 1000) -> list[dict[str, object]]:
    """Rows of one feature."""
    common = {"feature": feature, "loss_answer": 0.1, "p_value_holm": p, "exact_answer_low": low, "n_examples": n}
    rows = [{"condition": name, "exact_answer": 1.0, "difference": exact - 1.0} for name in ("intact", "random")]
    return [common | row for row in [*rows, {"condition": "ablated", "exact_answer": exact, "difference": exact - 1.0}]]


def test_a_label_that_is_the_next_token_makes_no_need():
    rest = "carry_without_next_token"
    rows = pd.DataFrame([*ablated("carry", 0.5), *ablated(rest, 1.0, p=1.0)])
    verdict, said = one(of_ablation(rows, {"carry": (15,)}))
    assert verdict == "next token only"
    assert "exact match is 0.500 (random directions 1.000)" in said
    assert "gives label 15 away; with the others alone out, exact match is 1.000" in said
    rows = pd.DataFrame([*ablated("carry", 0.5), *ablated(rest, 0.7)])
    assert one(of_ablation(rows, {"carry": (15,)}))[0] == "needed"
    assert one(of_ablation(pd.DataFrame(ablated("carry", 0.5)), {"carry": (0, 1)}))[0] == "next token only"
    assert one(of_ablation(pd.DataFrame(ablated("carry", 0.5)), {}))[0] == "needed"


@pytest.mark.parametrize(
    ("exact", "low", "n", "said"),
    [
        (0.998, 0.995, 1000, "not needed there"),
        (1.0, 1.0, 300, "not needed there"),
        (1.0, 1.0, 299, "not shown"),  # 3 of 299 may be wrong in truth, and none was seen
        (0.998, 0.985, 1000, "not shown"),
        (0.9, 0.88, 1000, "not shown"),
        (math.nan, math.nan, 1000, "not shown"),
    ],
)
def test_not_needed_wants_an_interval_of_its_own(exact, low, n, said):
    rows = pd.DataFrame(ablated("carry", exact, p=0.3, low=low, n=n))
    assert one(of_ablation(rows.assign(exact_answer=rows["exact_answer"]), {}))[0] == said
    alone = rows[rows["condition"] != "random"]
    assert one(of_ablation(alone, {}))[0] == "not shown", "no control"


def probes(test_loss: float) -> pd.DataFrame:
    """Two layers of one label, and one that the next token gives away, with an untrained model's."""
    rows = [
        {"source": source, "model_seed": 0, "step": step, "layer": layer, "label": label, "next_token": label == 1,
         "test_loss": loss if label == 0 else 0.0, "train_loss": loss if label == 0 else 0.0}
        for source, step, losses in (("trained", 5, (0.6, 0.6)), ("trained", 10, (0.5, test_loss)),
                                     ("untrained", 0, (0.4, 0.5)))
        for layer, loss in enumerate(losses) for label in (0, 1)
    ]  # fmt: skip
    fixed = {"feature": "carry", "fitted": True, "head": -1, "metric": "log_loss", "site": "resid_post"}
    return pd.DataFrame(rows).assign(**fixed, shuffled_test_loss=0.7, majority_test_loss=0.69)


def test_probes_read_where_they_beat_every_control():
    verdict, said = one(of_probes(probes(0.01)))
    assert verdict == "decodable"
    assert said.startswith(
        "at step 10 probes read it best at layer 1 (residual stream after a block): test log loss 0.01 "
    )
    assert "untrained models 0.4, shuffled labels 0.7, best constant 0.69" in said
    assert said.endswith("at layer 0 it is 0.5")
    assert one(of_probes(probes(0.3)))[0] == "partly decodable", "the untrained model's is 0.4"
    assert one(of_probes(probes(0.45)))[0] == "not decodable"


def test_a_lens_without_findings_gives_none(tiny_run):
    page = Page(tiny_run, ("carry",))
    assert AblateUnits.findings(page) == [], "nothing was computed"
    assert PartLens.findings_of(pd.DataFrame()) == []
