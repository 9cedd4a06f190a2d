"""Swaps of addition's inner carries: the direction is the carry's own, and pairs leave the next bit to it."""

import numpy as np
import pandas as pd
import paper_carry
import pytest
import torch
from paper_carry import carry_pairs, column_of, inner_carries, own_direction
from paper_kept import Kept
from paper_queue import Queue
from paper_words import carry_row

import qfl_interp as qfl
from qfl_interp.data.examples import held_out

TASK = qfl.load_task("addition", 6)


def examples(n=400):
    return TASK.sample(np.random.default_rng(0), n)


@pytest.mark.parametrize("label", [1, 3, 5])
def test_a_column_is_what_python_adds(label):
    raw = examples()
    column = column_of(TASK, raw, label)
    for row, carry, bits, above in zip(raw, column.carry, column.bits, column.above, strict=True):
        a, b = (int("".join(map(str, part)), 2) for part in (row[:6], row[6:]))
        low = 2 ** (label + 1)
        assert carry == (a % low + b % low) // low
        assert bits.tolist() == [number >> label & 1 for number in (a, b, a + b)]
        assert above.tolist() == ([a >> label + 1 & 1, b >> label + 1 & 1] if label < 5 else [])


def test_the_first_carry_is_refused():
    with pytest.raises(ValueError, match="label 0"):
        column_of(TASK, examples(4), 0)


def test_the_own_direction_is_not_that_of_the_bits_beside():
    """Class means point where the sum bit is written, too; the own direction does not."""
    column = column_of(TASK, examples(), 2)
    rng = np.random.default_rng(1)
    of_carry, *of_bits = rng.standard_normal((4, 10))
    exact = column.carry[:, None] * of_carry + column.bits @ np.array(of_bits)
    noisy = torch.from_numpy(exact + 0.01 * rng.standard_normal(exact.shape))
    own = own_direction(noisy, column.carry, column.bits).numpy()
    assert np.allclose(own, of_carry, atol=0.02)
    means = exact[column.carry == 1].mean(axis=0) - exact[column.carry == 0].mean(axis=0)
    assert np.linalg.norm(means - of_carry) > 1


def test_pairs_leave_the_next_bit_to_the_carry():
    raw = examples()
    column = column_of(TASK, raw, 2)
    pairs = carry_pairs(column, 100, 60, np.random.default_rng(2))
    assert min(pairs.base.min(), pairs.source.min()) >= 100
    assert pairs.differ.sum() == 30
    assert ((column.carry[pairs.base] != column.carry[pairs.source]) == pairs.differ).all()
    assert (column.above[pairs.base] == column.above[pairs.source]).all()
    assert (column.bits[pairs.base] != column.bits[pairs.source]).any(axis=1).all()
    bits = TASK.encode(raw).tokens[:, column.position + 1].numpy()
    assert ((bits[pairs.base] != bits[pairs.source]) == pairs.differ).all(), "so the task itself says"


def test_the_whole_stream_makes_the_sources_bit(tmp_path, monkeypatch):
    """Where the whole of the last stream is swapped, the next bit is what the model says of the source."""
    monkeypatch.setattr(paper_carry, "N_FITTED", 200)
    monkeypatch.setattr(paper_carry, "N_OTHERS", 200)
    model = qfl.ModelConfig(d_model=16, n_layers=2, n_heads=2)
    run = qfl.train(
        TASK, model, qfl.TrainConfig(n_steps=30, lr=1e-2, n_checkpoints=3), tmp_path / "run", progress=False
    )
    table = inner_carries(run, [2, 4], [0, run.steps[-1]], n_pairs=40)
    assert len(table) == 2 * 2 * 4 * 5 * 2
    assert set(table["n_pairs"]) == {20}

    raw = held_out(TASK, "test", 400, seed=0, stream="inner carries")
    column, tokens = column_of(TASK, raw, 2), TASK.encode(raw).tokens
    rng = paper_carry.generator(0, "inner carries/2", run.steps[-1])
    pairs = carry_pairs(column, 200, 40, rng)
    zero, one = (int(tokens[:, column.position][column.bits[:, 2] == bit][0]) for bit in (0, 1))
    logits = run.load_model("last")(tokens)[:, column.position]
    said = (logits[:, one] > logits[:, zero]).numpy()
    changed = said[pairs.base] != said[pairs.source]
    at = {"step": run.steps[-1], "label": 2, "layer": 1, "site": "resid_post", "swapped": "whole"}
    for differ in (True, False):
        rows = table[(table[list(at)] == pd.Series(at)).all(axis=1) & (table["carries_differ"] == differ)]
        assert rows["changed"].tolist() == [changed[pairs.differ == differ].mean()]


def test_the_row_is_of_the_site_that_tells_carries_best(tmp_path):
    entry = Queue(Kept(tmp_path)).entries[0]
    rows = [
        {"step": step, "flops": 1e10 * step, "label": 3, "layer": layer, "site": site, "swapped": swapped,
         "carries_differ": differ, "changed": value * differ * (step > 2 or step == 1) if swapped == "own" else 0.25}
        for step in (1, 2, 3, 4)
        for layer, site, value in ((0, "resid_post", 0.3), (1, "resid_mid", 0.9), (1, "resid_post", 1.0))
        for swapped in ("own", "rest", "mean", "random", "whole")
        for differ in (True, False)
    ]  # fmt: skip
    row = carry_row(entry, 0, pd.DataFrame(rows))
    assert (row["where"], row["its own direction"], row["random"]) == ("resid_mid 1", "90 / 0", "25 / 25")
    assert row["used from (FLOPs)"] == "3.0e+10", "from where on it stays so"
