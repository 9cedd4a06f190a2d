"""Labels of tokens by hand, enrichment against scipy's Fisher test, and clusters that must find their own names."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact

from qfl_interp.curvature.token_losses import scored_tokens
from qfl_interp.data.registry import load_task
from qfl_interp.polca.naming import UNNAMED, cluster_name, enrichment, token_labels
from qfl_interp.stats import holm


def having(table, label, value):
    """Which tokens have a value of a label; one without the label has not."""
    return (table[label] == value).fillna(False).to_numpy(dtype=bool)


def addition(n=200, seed=0):
    """Examples of 3-digit addition and the table of their answer's tokens."""
    task = load_task("decimal_addition", 3)
    examples = task.sample(np.random.default_rng(seed), n)
    return task, examples, token_labels(task, examples, scored_tokens(task.encode(examples)))


def test_labels_of_an_addition_by_hand():
    task = load_task("decimal_addition", 3)
    examples = np.array([[0, 5, 7, 9, 6, 8], [1, 2, 3, 1, 0, 8]])  # 057 + 968 = 1025, 123 + 108 = 0231
    table = token_labels(task, examples, scored_tokens(task.encode(examples)))
    assert table["example"].tolist() == [0] * 4 + [1] * 4
    assert table["place"].tolist() == [0, 1, 2, 3] * 2
    assert "".join(table["target"]) == "10250231"
    assert "".join(table["previous"]) == "=102=023"
    assert table["context"].tolist()[2:5] == ["057+968=10", "057+968=102", "123+108="]
    # Carries into the 1000s, 100s and 10s; nothing carries into the ones.
    assert table["carry"].tolist() == [True, True, True, pd.NA, False, False, True, pd.NA]
    assert table["carry"].dtype == "boolean"
    assert table["digit_sum"].tolist() == [pd.NA, 9, 1, 5, pd.NA, 2, 2, 1]
    assert table["digit_sum"].dtype == "Int64"
    assert table["digit"].tolist() == [1, 0, 2, 5, 0, 2, 3, 1]
    assert having(table, "carry", 1).tolist() == [True, True, True, False, False, False, True, False]
    assert having(table, "place", 2).tolist() == [False, False, True, False] * 2
    assert having(table, "digit_sum", 2).sum() == 2


def test_a_label_belongs_to_the_token_that_is_predicted_where_it_is_read():
    task, examples, table = addition()
    carry = task.features["carry"].labels(examples)
    for row in table.itertuples():
        if row.place == 3:
            assert row.carry is pd.NA
        else:
            assert row.carry == carry[row.example, row.place]
        assert str(row.digit) == row.target


def test_the_prompt_s_end_has_no_label_of_the_answer():
    task = load_task("decimal_addition", 3)
    examples = task.sample(np.random.default_rng(0), 5)
    table = token_labels(task, examples, scored_tokens(task.encode(examples), prompt_end=True))
    first = table[table["place"] == 0]
    assert set(first["target"]) == {"="}
    assert first["carry"].isna().all()
    assert table["place"].max() == 4


@pytest.mark.slow
def test_answers_of_different_lengths_and_kinds_that_are_no_class():
    task = load_task("breadth_first_search", 5)
    examples = task.sample(np.random.default_rng(0), 6)
    scored = scored_tokens(task.encode(examples))
    table = token_labels(task, examples, scored)
    assert len(table) == len(scored)
    assert set(table.columns) == {"example", "place", "target", "previous", "context"}  # its features are multilabel
    assert table.groupby("example")["place"].apply(lambda p: p.tolist() == list(range(len(p)))).all()


def test_several_labels_at_one_position_are_columns_of_their_own():
    task = load_task("sparse_parity")
    examples = task.sample(np.random.default_rng(0), 50)
    table = token_labels(task, examples, scored_tokens(task.encode(examples)))
    labels = task.features["relevant_bit"].labels(examples)
    for j in range(labels.shape[1]):
        assert table[f"relevant_bit[{j}]"].tolist() == labels[:, j].astype(bool).tolist()
    assert "relevant_bit" not in table


def test_examples_must_be_those_that_were_scored():
    task, examples, _ = addition(5)
    with pytest.raises(ValueError, match=r"the 5 rows of scored.tokens, got 4"):
        token_labels(task, examples[:4], scored_tokens(task.encode(examples)))


# --- enrichment -------------------------------------------------------------------------------------------------------


def test_every_row_is_fisher_s_test_of_its_counts():
    _, _, table = addition(60)
    rng = np.random.default_rng(1)
    labels = np.where(having(table, "carry", 1) & (rng.random(len(table)) < 0.5), 0, rng.integers(-2, 2, len(table)))
    found = enrichment(table, labels)
    assert set(found["label"]) == {"carry", "digit_sum", "digit", "place", "target", "previous", "place & carry"}
    for row in found.itertuples():
        parts = zip(row.label.split(" & "), row.value.split(" & "), strict=True)
        has = np.all([table[label].astype("string").fillna("-").isin(texts(value)) for label, value in parts], axis=0)
        inside = labels == row.cluster
        counts = [[np.sum(inside & has), np.sum(inside & ~has)], [np.sum(~inside & has), np.sum(~inside & ~has)]]
        assert row.n_inside == counts[0][0]
        assert row.p_value == pytest.approx(fisher_exact(counts, alternative="greater").pvalue, rel=1e-9)
        shares = (has[inside].mean(), has[~inside].mean(), has.mean())
        assert (row.share, row.share_outside, row.share_all) == pytest.approx(shares, rel=1e-12)
        assert row.lift == pytest.approx(has[inside].mean() / has.mean(), rel=1e-12)
        assert row.f1 == pytest.approx(2 * np.sum(inside & has) / (inside.sum() + has.sum()), rel=1e-12)
    np.testing.assert_allclose(found["p_value_holm"], holm(found["p_value"].to_numpy()), rtol=1e-12)
    assert found.groupby("cluster").size().nunique() == 1


def texts(value: str) -> list[str]:
    """How a value may be written in the table: booleans are 0 and 1 in the rows."""
    return [value, *{"0": ["False"], "1": ["True"]}.get(value, [])]


def test_background_is_all_tokens():
    table = plain(place=[0, 0, 0, 1, 1, 1, 1, 1])
    labels = np.array([0, 0, 1, 0, -1, -2, 1, 1])
    row = enrichment(table, labels).set_index(["cluster", "label", "value"]).loc[(0, "place", "0")]
    assert (row["share"], row["share_outside"], row["share_all"]) == pytest.approx((2 / 3, 1 / 5, 3 / 8))


def plain(**columns) -> pd.DataFrame:
    """A table with nothing to tell tokens apart but these columns."""
    n = len(next(iter(columns.values())))
    same = {"example": range(n), "place": 0, "target": "x", "previous": "y", "context": "z"}
    return pd.DataFrame(same | columns)


def test_pairs_that_say_what_a_part_says_are_left_out():
    nothing = pd.NA
    table = plain(
        place=[0, 0, 1, 1, 1, 1], carry=pd.array([True, False, True, True, nothing, nothing], dtype="boolean")
    )
    found = enrichment(table, np.zeros(6, dtype=int))
    pairs = found[found["label"] == "place & carry"]
    # carry=0 lies at place 0 alone; place 0 & carry 1 and place 1 & carry 1 are parts of both.
    assert pairs["value"].tolist() == ["0 & 1", "1 & 1"]
    assert pairs["name"].tolist() == ["place=0 & carry=1", "place=1 & carry=1"]
    assert pairs["n_inside"].tolist() == [1, 2]
    # What every token has tells nothing.
    assert "target" not in set(found["label"])
    assert found["share_outside"].isna().all()


def test_no_cluster_and_nothing_to_tell_give_no_rows():
    _, _, table = addition(5)
    none = enrichment(table, np.full(len(table), -1))
    assert none.empty
    assert cluster_name(none, 0) == UNNAMED
    assert enrichment(plain(place=[1, 1, 1]), np.zeros(3, dtype=int)).empty


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "name"),
    [
        (lambda t: having(t, "carry", 1), "carry=1"),
        (lambda t: having(t, "carry", 0), "carry=0"),
        (lambda t: having(t, "place", 2), "place=2"),
        (lambda t: having(t, "place", 2) & having(t, "carry", 1), "place=2 & carry=1"),
        (lambda t: having(t, "digit_sum", 9), "digit_sum=9"),
        (lambda t: having(t, "previous", "7"), "previous=7"),
        # A digit is its own target, and the simpler label: a feature.
        (lambda t: having(t, "target", "4"), "digit=4"),
        # The first digits' positions are those after "=": the place is simpler.
        (lambda t: having(t, "previous", "="), "place=0"),
    ],
    ids=["carry", "no-carry", "place", "pair", "digit-sum", "previous", "target", "equals"],
)
@pytest.mark.parametrize("share", [1.0, 0.8], ids=["whole", "most"])
def test_planted_clusters_name_themselves(choose, name, share):
    _, _, table = addition(400)
    rng = np.random.default_rng(0)
    members = choose(table) & (rng.random(len(table)) < share)
    # A few that do not belong, another cluster at random, outliers and dropped tokens.
    labels = rng.integers(-2, 2, len(table)).clip(max=1)
    labels[labels == 0] = -1
    labels[members] = 0
    if share < 1:
        labels[rng.integers(0, len(table), 5)] = 0
    assert cluster_name(enrichment(table, labels), 0) == name


def test_random_clusters_have_no_name():
    _, _, table = addition(300)
    rng = np.random.default_rng(0)
    # Holm bounds the chance of any name at 5 % a seed: of 10 seeds more than 3 have one with probability 0.001.
    named = sum(cluster_name(enrichment(table, rng.integers(-1, 1, len(table))), 0) != UNNAMED for _ in range(10))
    assert named <= 3


def test_a_label_with_more_overlap_but_no_significance_names_nothing():
    table = plain(place=[0] * 5 + [1] * 5)
    labels = np.array([0, 0, 0, 0, 1, 0, 0, -1, -1, -1])
    found = enrichment(table, labels)
    assert found["f1"].max() > 0.7
    assert cluster_name(found, 0) == UNNAMED


def test_a_target_with_an_ampersand_is_a_name_like_others():
    table = plain(target=["a & b"] * 12 + ["c"] * 12)
    assert cluster_name(enrichment(table, np.repeat([0, -1], 12)), 0) == "target=a & b"
