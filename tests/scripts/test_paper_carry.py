"""Swaps of addition's inner carries: the direction is the carry's own, and pairs leave the next bit to it."""

import numpy as np
import pandas as pd
import paper_carry
import pytest
import torch
from paper_carry import (
    CONDITIONS,
    KINDS,
    carry_pairs,
    column_of,
    directions_of,
    inner_carries,
    read_share,
    swap_rows,
    swaps_of,
)
from paper_kept import Kept
from paper_queue import Queue
from paper_words import carry_row

import qfl_interp as qfl
from qfl_interp.data.examples import held_out
from qfl_interp.models.hooks import Site

TASK = qfl.load_task("addition", 6)


def examples(n=400):
    return TASK.sample(np.random.default_rng(0), n)


@pytest.mark.parametrize("label", [1, 3, 4])
def test_a_column_is_what_python_adds(label):
    raw = examples()
    column = column_of(TASK, raw, label)
    for row, carry, bits, above in zip(raw, column.carry, column.bits, column.above, strict=True):
        a, b = (int("".join(map(str, part)), 2) for part in (row[:6], row[6:]))
        low = 2 ** (label + 1)
        assert carry == (a % low + b % low) // low
        assert bits.tolist() == [number >> label & 1 for number in (a, b, a + b)]
        assert above.tolist() == [a >> label + 1 & 1, b >> label + 1 & 1]
    assert (column.next_bit == TASK.encode(raw).tokens[:, column.position + 1].numpy()).all()


@pytest.mark.parametrize("label", [0, 5])
def test_the_first_and_the_last_carry_are_refused(label):
    with pytest.raises(ValueError, match=f"label {label}"):
        column_of(TASK, examples(4), label)


def test_pairs_differ_in_what_their_kind_says():
    raw = examples(800)
    column = column_of(TASK, raw, 2)
    pairs = carry_pairs(column, 100, 20, np.random.default_rng(2))
    assert min(pairs.base.min(), pairs.source.min()) >= 100
    assert (column.bits[pairs.base] != column.bits[pairs.source]).any(axis=1).all()
    said = TASK.encode(raw).tokens[:, column.position + 1].numpy()
    for kind, (carry, n_bits) in KINDS.items():
        base, source = pairs.base[pairs.kind == kind], pairs.source[pairs.kind == kind]
        assert len(base) == 20
        assert ((column.carry[base] != column.carry[source]) == carry).all()
        assert ((column.above[base] != column.above[source]).sum(axis=1) == n_bits).all()
        assert ((said[base] != said[source]) == (kind in ("carry", "bit"))).all(), "so the task itself says"


def written(column, seed=1):
    """Activations as a model would write them: carry and bits above along one line, the bits beside on others."""
    rng = np.random.default_rng(seed)
    line, first, second, sums = np.linalg.qr(rng.standard_normal((10, 10)))[0][:4]
    count = column.carry + column.above.sum(axis=1)
    exact = count[:, None] * line + column.bits @ np.array([first, second, 3 * sums]) + 0.5
    return torch.from_numpy(exact + 1e-3 * rng.standard_normal(exact.shape)), torch.from_numpy(line)


def test_swaps_of_a_carry_that_is_there_and_of_one_that_is_not():
    """The model says the parity of what stands along the line: every condition does what that implies."""
    raw = examples(1500)
    column, rng = column_of(TASK, raw, 2), np.random.default_rng(3)
    activations, line = written(column)
    pairs = carry_pairs(column, 500, 60, rng)
    found = directions_of(activations[:500], column.first(500), rng)
    assert abs(found["own"] @ line) / found["own"].norm() > 0.999
    assert abs(found["mean"] @ line) / found["mean"].norm() < 0.8, "class means point along the bits beside, too"
    source = activations[pairs.source][:, None]
    swaps = swaps_of(Site(0, "resid_mid"), found, source, activations[:500].mean(dim=0), 0)

    def next_bit(interventions):
        x = activations[pairs.base][:, None]
        for intervention in interventions:
            x = intervention.fn(x)
        return (((x - 0.5) @ line).round().long() % 2).flatten().numpy()

    rows = pd.DataFrame(swap_rows(swaps, next_bit([]), column, pairs, next_bit)).set_index(["swapped", "pairs"])
    assert (rows["intact"] == 1).all()
    assert set(rows["n_pairs"]) == {60}
    differ = [kind in ("carry", "bit") for kind in KINDS]
    for name in ("own", "bit", "whole"):
        assert rows.loc[name, "changed"].tolist() == differ
        assert (rows.loc[name, "right"] == 1).all()
    assert (rows.loc["rest", "changed"] == 0).all()
    assert rows.loc["rest", "right"].tolist() == [not of for of in differ]
    assert rows.loc[("cut own", "carry"), "changed"] > 0.3, "the parity of a mean is one for all"
    assert rows.loc[("random", "neither"), "changed"] < 0.5

    absent = activations - (activations @ line)[:, None] * line
    nothing = directions_of(absent[:500], column.first(500), rng)["own"]
    assert nothing.norm() < 1e-3


def test_what_is_read_is_read_on_other_examples():
    column = column_of(TASK, examples(600), 2)
    activations, _ = written(column)
    assert read_share(activations, column.carry, 300) > 0.99
    assert read_share(activations, column.next_bit, 300) < 0.7, "a parity is not linear"
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((600, 250)))
    assert read_share(noise, column.carry, 300) < 0.65


def test_the_whole_stream_makes_the_sources_bit(tmp_path, monkeypatch):
    """Where the whole of the last stream is swapped, the next bit is what the model says of the source."""
    monkeypatch.setattr(paper_carry, "N_FITTED", 200)
    monkeypatch.setattr(paper_carry, "N_OTHERS", 200)
    model = qfl.ModelConfig(d_model=16, n_layers=2, n_heads=2)
    config = qfl.TrainConfig(n_steps=30, lr=1e-2, n_checkpoints=3)
    run = qfl.train(TASK, model, config, tmp_path / "run", progress=False)
    table = inner_carries(run, [2, 4], [0, run.steps[-1]], 10)
    assert len(table) == 2 * 2 * 4 * 8 * 4

    raw = held_out(TASK, "test", 400, seed=0, stream="inner carries")
    column, tokens = column_of(TASK, raw, 2), TASK.encode(raw).tokens
    pairs = carry_pairs(column, 200, 10, paper_carry.generator(0, "inner carries/2", run.steps[-1]))
    zero, one = (int(tokens[:, column.position][column.bits[:, 2] == bit][0]) for bit in (0, 1))
    logits = run.load_model("last")(tokens)[:, column.position]
    said = (logits[:, one] > logits[:, zero]).numpy()
    at = {"step": run.steps[-1], "label": 2, "layer": 1, "site": "resid_post", "swapped": "whole"}
    for kind in KINDS:
        rows = table[(table[list(at)] == pd.Series(at)).all(axis=1) & (table["pairs"] == kind)]
        base, source = pairs.base[pairs.kind == kind], pairs.source[pairs.kind == kind]
        assert rows["changed"].tolist() == [(said[base] != said[source]).mean()]
        assert rows["intact"].tolist() == [(said[base] == column.next_bit[base]).mean()]
        assert rows["right"].tolist() == [(said[source] == column.next_bit[source]).mean()]


def test_too_few_examples_are_said_to_be_too_few(tmp_path):
    config = qfl.TrainConfig(n_steps=1)
    run = qfl.train(
        qfl.load_task("addition", 3),
        qfl.ModelConfig(d_model=8, n_layers=1, n_heads=2),
        config,
        tmp_path / "run",
        progress=False,
    )
    with pytest.raises(ValueError, match="2000 held-out examples, got 3 at length 3"):
        inner_carries(run, [1], [1], 10)


def test_the_row_is_of_the_place_that_tells_carries_best(tmp_path):
    entry = Queue(Kept(tmp_path)).entries[0]
    rows = [
        {"step": 4, "flops": 1e10, "label": label, "layer": layer, "site": site, "swapped": swapped, "pairs": kind,
         "changed": value * (kind in ("carry", "bit")) if swapped == "own" else 0.25,
         "carry_read": 0.9, "next_read": 0.5}
        for label in (3, 4)
        for layer, site, value in ((0, "resid_post", 0.3), (1, "resid_mid", 0.9), (1, "resid_post", 1.0))
        for swapped in CONDITIONS
        for kind in KINDS
    ]  # fmt: skip
    row = carry_row(entry, 0, pd.DataFrame(rows))
    assert (row["where"], row["its own direction"], row["random"]) == (
        "resid_mid 1",
        "90 / 0 / 90 / 0",
        " / ".join(["25"] * 4),
    )
    assert (row["cut: own / probe's"], row["read there: carry / next bit"]) == ("25 / 25", "90 / 50")
