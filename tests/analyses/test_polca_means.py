"""The figure of a POLCA analysis without a cluster: the means of all tokens, and a note that says so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import qfl_interp as qfl
from qfl_interp.analyses import polca
from qfl_interp.analyses.lenses.polca.means_figure import means_figure
from qfl_interp.polca.config import PolcaConfig
from tests.conftest import tiny_train_config

STEPS = np.array([0, 1, 10, 100])
# Means at the last step: the largest in size are drawn, rising ones too.
LAST = {0: -0.3, 1: 0.0, 2: 0.5, 3: -0.1, 4: -0.2, 5: 0.01, 6: -0.9, 7: 0.4}


def means() -> pd.DataFrame:
    """Straight curves along eight directions."""
    parts = [
        pd.DataFrame(
            {
                "direction": direction, "basis_step": 10 * direction, "step": STEPS, "flops": 5.0 * STEPS,
                "n_tokens": 1234, "curves": "projected", "mean": last * STEPS / 100, "exact_mean": 3.0 - STEPS / 50,
            }
        )
        for direction, last in LAST.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def texts(figure):
    """All annotations as one text."""
    return " ".join(note.text for note in figure.layout.annotations)


def test_the_directions_that_move_most_are_drawn_and_the_note_says_so():
    # Where the first and the last row of a direction in the table are not its first and last step, for some the same.
    mixed = pd.concat([means().iloc[:16:-1], means().iloc[[14, 12, 13, 15, 16, *range(12)]]])
    figure = means_figure(mixed)
    lines = {trace.name: trace for trace in figure.data}
    drawn = [0, 2, 3, 4, 6, 7]
    assert list(lines) == [*(f"direction {one}, step {10 * one}" for one in drawn), "exact"]
    for one in drawn:
        line = lines[f"direction {one}, step {10 * one}"]
        np.testing.assert_allclose(line.x, 5.0 * STEPS[1:])
        np.testing.assert_allclose(line.y, LAST[one] * STEPS[1:] / 100)
        assert line.yaxis == "y"
    np.testing.assert_allclose(lines["exact"].y, 3.0 - STEPS[1:] / 50)
    assert lines["exact"].yaxis == "y2"
    low, high = figure.layout.yaxis.range
    assert low < -0.9
    assert high > 0.5
    assert "no cluster found: mean over all 1,234 tokens along the 6 of 8 directions it moves most" in texts(figure)
    assert "smaller min_cluster_size" in texts(figure)


def test_a_baseline_without_directions_has_one_line():
    one = means()[lambda rows: rows["direction"] == 0].assign(direction=-1, curves="exact_loss")
    figure = means_figure(one)
    assert [trace.name for trace in figure.data] == ["mean", "exact"]
    assert "Clusters of the exact loss" in texts(figure)
    assert "no cluster found: mean over all 1,234 tokens" in texts(figure)
    assert "moves most" not in texts(figure)
    assert figure.layout.yaxis.title.text == "exact loss (nats)"


@pytest.mark.parametrize(
    "rows",
    [means().iloc[:0], pd.concat([means(), means()]), means().assign(curves=["projected", "fisher"] * 16)],
    ids=["none", "twice", "kinds"],
)
def test_bad_tables_are_refused(rows):
    with pytest.raises(ValueError, match="polca"):
        means_figure(rows)


@pytest.mark.parametrize("curves", ["projected", "exact_loss", "loss_change"])
def test_an_analysis_without_a_cluster_still_draws(tmp_path, curves):
    task = qfl.load_task("decimal_addition", length=1)
    model = qfl.ModelConfig(d_model=4, n_layers=1, n_heads=1, style="gpt2")
    run = qfl.train(
        task, model, tiny_train_config(n_steps=20, n_checkpoints=6, lr=1e-2), tmp_path / "run", progress=False
    )
    config = PolcaConfig(basis="random", n_directions=2, n_examples=8, n_hessian=8)
    # More than there are tokens.
    found = polca(run, config=config, curves=curves, min_cluster_size=1000, span=2, resamples=2, progress=False)
    assert found.rows.empty
    figure = found.plot()
    assert f"no cluster found: mean over all {len(found.tokens)} tokens" in texts(figure)
    exact = next(trace for trace in figure.data if trace.name == "exact")
    steps = [step for step in found.clustered.steps if step > 0]
    np.testing.assert_allclose(exact.x, [run.flops(step) for step in steps])
    np.testing.assert_allclose(exact.y, found.data.losses.double().mean(dim=1)[-len(steps) :], rtol=1e-6)
    first = figure.data[0]
    assert len(figure.data) == (3 if curves == "projected" else 2)
    np.testing.assert_allclose(
        first.y, found.clustered.values[0].mean(axis=0, dtype=float)[-len(steps) :], rtol=1e-5, atol=1e-9
    )
    if curves == "projected":
        assert first.name == f"direction 0, step {found.directions['step'].iloc[0]}"
