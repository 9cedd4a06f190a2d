"""Second differences against polynomials and brute force; breaks and plateaus that were planted."""

from __future__ import annotations

import numpy as np
import pytest

from qfl_interp.polca import breakthroughs
from qfl_interp.polca.breakthroughs import (
    Stretch,
    acceleration,
    break_step,
    cluster_breakthroughs,
    flat,
    learned_step,
    plateau_after,
)

EVEN = list(range(0, 1001, 20))
UNEVEN = [0, 1, 2, 4, 8, 16, 32, 64, 128, 200, 256, 300, 500, 512, 760, 1000]


def ramp(steps, start, stop, depth=1.0):
    """0 until `start`, then a straight fall to -depth at `stop`, then level."""
    return np.interp(steps, [start, stop], [0.0, -depth])


def brute(values, steps, span):
    """Eq. 9 term by term."""
    found = {}
    for t in steps:
        if t - span >= steps[0] and t + span <= steps[-1]:
            before, here, after = (float(np.interp(s, steps, values)) for s in (t - span, t, t + span))
            found[t] = (after - here) - (here - before)
    return found


@pytest.mark.parametrize("steps", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("span", [20, 100, 33])
def test_acceleration_is_the_second_difference(steps, span):
    values = np.random.default_rng(0).normal(size=(3, 2, len(steps)))
    inner, turns = acceleration(values, steps, span)
    for i in range(3):
        for j in range(2):
            expected = brute(values[i, j], steps, span)
            assert inner.tolist() == list(expected)
            np.testing.assert_allclose(turns[i, j], list(expected.values()), rtol=0, atol=1e-13)


def test_acceleration_of_a_parabola_is_constant_and_of_a_line_zero():
    steps = np.array(EVEN)
    inner, turns = acceleration(3.0 * steps**2, EVEN, 100)
    assert (inner[0], inner[-1]) == (100, 900)
    np.testing.assert_allclose(turns, 2 * 3.0 * 100**2, rtol=1e-12)
    np.testing.assert_allclose(acceleration(7.0 - 0.3 * steps, EVEN, 100).values, 0, atol=1e-10)
    uneven = acceleration(7.0 - 0.3 * np.array(UNEVEN), UNEVEN, 50)
    np.testing.assert_allclose(uneven.values, 0, atol=1e-10)


@pytest.mark.parametrize(("rule", "fall", "rise"), [("paper", 600, 400), ("down", 400, 600)], ids=["paper", "down"])
def test_break_of_a_fall_and_a_rise_by_rule(rule, fall, rise):
    assert int(break_step(ramp(EVEN, 400, 600), EVEN, 100, rule=rule)) == fall
    assert int(break_step(-ramp(EVEN, 400, 600), EVEN, 100, rule=rule)) == rise


def test_of_equal_turns_the_first_counts():
    # In sixteenths, so that no sum is rounded.
    values = -np.array([0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4]) / 16
    steps = list(range(0, 110, 10))
    assert int(break_step(values, steps, 10)) == 40
    assert int(break_step(values, steps, 10, rule="down")) == 20
    assert int(break_step(values, steps, 10, rule="absolute")) == 20
    assert int(break_step(np.zeros(11), steps, 10)) == 10


def test_absolute_takes_the_larger_turn():
    steps = np.array(EVEN)
    # Slopes 0, -1, -0.8: the downward turn at 300 is larger than the upward one at 700.
    values = -np.clip(steps - 300, 0, 400) - 0.8 * np.clip(steps - 700, 0, None)
    assert int(break_step(values, EVEN, 100, rule="absolute")) == 300
    assert int(break_step(values, EVEN, 100)) == 700
    assert int(break_step(-values, EVEN, 100, rule="absolute")) == 300


def test_breaks_of_many_curves_are_their_own():
    values = np.stack([[ramp(EVEN, 200, 300), ramp(EVEN, 500, 700)], [ramp(EVEN, 420, 440), ramp(EVEN, 0, 1000)]])
    found = break_step(values, EVEN, 100, rule="down")
    assert found.shape == (2, 2)
    assert found[0].tolist() == [200, 500]
    # A fall shorter than the span has its whole depth within one difference from a span before its end on.
    assert found[1, 0] == 340
    assert np.array_equal(found[0], [break_step(curve, EVEN, 100, rule="down") for curve in values[0]])


def test_break_with_uneven_checkpoints():
    assert int(break_step(ramp(UNEVEN, 256, 500), UNEVEN, 50, rule="down")) == 256
    assert int(break_step(ramp(UNEVEN, 256, 500), UNEVEN, 50)) == 500


@pytest.mark.parametrize("span", [0, -20, 501], ids=["zero", "negative", "too-long"])
def test_span_without_a_checkpoint_between_is_refused(span):
    acceleration(np.zeros(len(EVEN)), EVEN, 500)
    with pytest.raises(ValueError, match=f"got {span} with steps 0..1000"):
        acceleration(np.zeros(len(EVEN)), EVEN, span)


def test_steps_must_fit():
    with pytest.raises(ValueError, match="one for each of the 3 times"):
        acceleration(np.zeros(3), [0, 1], 1)
    with pytest.raises(ValueError, match="must increase"):
        acceleration(np.zeros(3), [0, 2, 1], 1)


# --- where the exact loss is flat -------------------------------------------------------------------------------------


def quiet_loss(steps):
    """Falls from 2 to 0.7 by 60, a plateau to 400, falls to 0 by 500, flat to the end."""
    return np.interp(steps, [0, 60, 400, 500], [2.0, 0.7, 0.68, 0.0])


def test_flat_stretches_are_the_plateau_and_the_end(monkeypatch):
    stretches = flat(quiet_loss(EVEN), EVEN)
    assert len(stretches) == 2
    # 5 % of 2.0 is 0.1: from 60 to where 0.7 - 0.1 is reached, 412, and from 0.1 on, 486.
    assert stretches == [Stretch(60, 400), Stretch(500, 1000)]
    monkeypatch.setattr(breakthroughs, "FLAT_SHARE", 0.2)
    assert flat(quiet_loss(EVEN), EVEN) == [Stretch(60, 440), Stretch(460, 1000)]


def test_a_flat_stretch_is_long_in_log_compute(monkeypatch):
    monkeypatch.setattr(breakthroughs, "FLAT_SHARE", 0.001)
    steps = list(range(100, 1001, 10))
    # flat from 500 to 800 (a factor of 1.6) or to 900 (1.8)
    falling = lambda stop: np.interp(steps, [100, 500, stop, 1000], [2.0, 1.0, 1.0, 0.0])  # noqa: E731
    assert flat(falling(800), steps) == []
    assert flat(falling(900), steps) == [Stretch(500, 900)]


def test_a_drifting_plateau_is_one_stretch():
    steps = list(range(0, 2001, 20))
    loss = np.interp(steps, [0, 100, 1600, 1700], [2.0, 0.7, 0.5, 0.0])  # drifts by 0.2, twice the tolerance
    assert flat(loss, steps)[0].first_step <= 100
    assert 1600 <= flat(loss, steps)[0].last_step <= 1640
    assert len(flat(loss, steps)) == 1  # after 1,700 there is less than a factor of 1.8 left


def test_a_bump_ends_a_stretch():
    loss = quiet_loss(EVEN)
    loss[EVEN.index(600)] = 0.3
    assert flat(loss, EVEN) == [Stretch(60, 400)]  # neither 500 .. 580 nor 620 .. 1000 is a factor of 1.8
    assert plateau_after(loss, EVEN) == 620


def test_plateau_after_is_where_the_loss_stays_flat(monkeypatch):
    assert plateau_after(quiet_loss(EVEN), EVEN) == 500
    with monkeypatch.context() as wide:
        wide.setattr(breakthroughs, "FLAT_SHARE", 0.2)
        assert plateau_after(quiet_loss(EVEN), EVEN) == 460
    assert plateau_after(np.linspace(2, 0, len(EVEN)), EVEN) == 960  # the last 5 %: 2 of 50 gaps
    assert plateau_after(np.full(len(EVEN), 0.7), EVEN) == 0
    # A rise counts as a fall does.
    assert plateau_after(2 - quiet_loss(EVEN), EVEN) == 500


# --- clusters ---------------------------------------------------------------------------------------------------------


def planted():
    """Tokens that fall within the plateau, with the transition, after it, and at scattered times."""
    rng = np.random.default_rng(0)
    times = [np.full(10, 200), np.full(8, 400), np.full(6, 700), rng.permutation(np.arange(160, 801, 80))]
    curves = np.concatenate([[ramp(EVEN, t, t + 60) for t in group] for group in times])
    labels = np.repeat([0, 1, 2, 3], [10, 8, 6, 9])
    extra = np.stack([ramp(EVEN, 500, 540)] * 2)
    return np.concatenate([curves, extra]), np.append(labels, [-1, -2])


def test_verdicts_of_planted_clusters():
    curves, labels = planted()
    loss = quiet_loss(EVEN)
    found = cluster_breakthroughs(
        curves, labels, EVEN, span=60, tau=plateau_after(loss, EVEN), stretches=flat(loss, EVEN), rule="down"
    ).set_index("cluster")
    assert found.index.tolist() == [0, 1, 2, 3]
    assert found["break_step"].tolist() == [200, 400, 700, 480]
    assert found["hidden"].tolist() == [False, False, True, False]
    assert found["tau_step"].unique().tolist() == [500]
    # 400 is where the plateau ends: half of the window shows in the exact loss.
    assert found["in_flat"].tolist() == [True, False, True, True]
    # Of 160, 240, .. 800 those at 320 and below and at 560 and above.
    assert found["in_flat_share"].tolist() == pytest.approx([1, 0, 1, 7 / 9])
    assert found["jump_share"].tolist()[:3] == [1, 1, 1]
    assert found.loc[3, "jump_share"] < 0.25
    assert found.loc[3, ["break_q25", "break_q75"]].tolist() == [320, 640]
    assert found.loc[0, "curve_break_step"] == 200


def test_hidden_is_after_tau_and_not_at_it():
    curves, labels = planted()
    rows = [
        cluster_breakthroughs(curves, labels, EVEN, span=60, tau=tau, stretches=[], rule="down") for tau in (699, 700)
    ]
    assert [bool(r["hidden"][2]) for r in rows] == [True, False]
    assert not any(r["in_flat"].any() for r in rows)


def test_hidden_is_decided_by_the_mean_break_and_not_by_most_tokens():
    """Eq. 10 and the verdict are of the mean over a cluster: few late tokens can carry it across tau."""
    curves = np.stack([ramp(EVEN, t, t + 60) for t in (200, 200, 200, 800, 800)])  # mean 440, median 200
    for tau, hidden in ((300, True), (440, False)):
        found = cluster_breakthroughs(curves, np.zeros(5, dtype=int), EVEN, span=60, tau=tau, stretches=[], rule="down")
        assert (found["break_step"].item(), bool(found["hidden"].item())) == (440, hidden)


def test_the_paper_s_rule_finds_the_end_of_the_fall():
    curves, labels = planted()
    found = cluster_breakthroughs(curves, labels, EVEN, span=60, tau=0, stretches=[])
    assert found["break_step"].tolist()[:3] == [260, 460, 760]


def test_no_cluster_gives_no_row():
    found = cluster_breakthroughs(np.zeros((2, len(EVEN))), np.array([-1, -2]), EVEN, span=60, tau=0, stretches=[])
    assert found.empty
    assert "in_flat" in found


def test_flat_because_nothing_is_left_is_no_plateau():
    """A loss that falls to zero and stays there: breaks after that are where the tokens are learned."""
    steps = list(range(0, 1001, 20))
    losses = np.where(np.array(steps) < 400, 2.0, 0.02)
    assert learned_step(losses, steps) == 400
    assert learned_step(np.full(len(steps), 2.0), steps) is None
    assert learned_step(np.where(np.array(steps) < 400, 2.0, 0.5), steps) is None, "a plateau below another"
    times = np.array(steps, dtype=float)
    curves = np.stack([-np.maximum(times - at, 0) + 2 * np.maximum(times - at - 200, 0) for at in (500, 520, 540)])
    how = {"span": 40, "tau": 1000, "stretches": flat(losses, steps)}
    (late,) = cluster_breakthroughs(curves, np.zeros(3, int), steps, learned=400, **how).to_dict("records")
    assert late["in_flat"]
    assert late["learned_share"] == 1
    (early,) = cluster_breakthroughs(curves, np.zeros(3, int), steps, learned=None, **how).to_dict("records")
    assert early["learned_share"] == 0
