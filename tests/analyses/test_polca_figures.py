"""Figures of POLCA on made-up tables of a run of 5,000 steps: they show what is in the tables, and refuse bad input."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import pytest
from polca_recovery import recovery_panel

from qfl_interp.analyses.lenses.polca.captured_figure import captured_figure
from qfl_interp.analyses.lenses.polca.clusters import telling
from qfl_interp.analyses.lenses.polca.composition_figure import composition_figure
from qfl_interp.analyses.lenses.polca.figure import polca_figure, polca_panel
from qfl_interp.analyses.lenses.polca.section import polca_sections
from qfl_interp.analyses.lenses.polca.tables import Clustered
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.plots import theme
from qfl_interp.plots.panels import Shade
from qfl_interp.plots.theme import plain
from qfl_interp.report.page import render_report
from qfl_interp.tables import select
from tests import synthetic_tables as tables

N_TOKENS = 5000
FLOPS_PER_STEP = 4.2e8
TAU_STEP = 900
# direction, basis step, cluster, name, tokens, break step, fall, hidden, in_flat, F1
CLUSTERS = (
    (0, 20, 0, "place=0", 1180, 26, 1.9, False, False, 0.91),
    (0, 20, 1, "place=1", 640, 60, 1.1, False, False, 0.72),
    (0, 20, 2, "unnamed", 310, 41, 0.7, False, False, np.nan),
    (1, 300, 0, "carry=1", 890, 1800, 0.42, True, True, 0.84),
    (1, 300, 1, "place=2 & carry=1", 420, 260, 0.33, False, True, 0.66),
    (1, 300, 2, "place=3", 1210, 520, 0.25, False, False, 0.79),
    (4, 2500, 0, "place=3", 700, 2600, 0.05, True, False, 0.30),
)


def steps() -> np.ndarray:
    """40 checkpoints: step 0, then log-spaced, then linear."""
    spaced = np.unique(np.geomspace(2, 1000, 24).round().astype(int))
    return np.array([0, *spaced.tolist(), *np.linspace(1250, 5000, 16).astype(int).tolist()])


def clusters() -> pd.DataFrame:
    """One row a cluster."""
    names = ("direction", "basis_step", "cluster", "name", "n_tokens", "break_step", "fall", "hidden", "in_flat", "f1")
    table = pd.DataFrame(CLUSTERS, columns=list(names))
    return table.assign(
        eigenvalue=[41.2] * 3 + [17.5] * 3 + [2.1],
        share=table["n_tokens"] / N_TOKENS,
        curves="projected",
        medoid_context="0" * 99 + "4 7 1 + 3 6 5 = <0>",
        medoid_target="8",
        break_flops=table["break_step"] * FLOPS_PER_STEP,
        tau_step=TAU_STEP,
        stability=0.8,
        silhouette=0.4,
        best_label=table["name"],
        p_value_holm=np.where(table["name"] == "unnamed", np.nan, 1e-12),
    )


def curves() -> pd.DataFrame:
    """One row a cluster and step: projected losses fall around the break, exact ones early and to near 0."""
    rng, at, rows = np.random.default_rng(0), steps(), []
    for row in clusters().to_dict("records"):
        width = 0.12 if row["hidden"] else 0.22
        fallen = 1 / (1 + np.exp(-(np.log10(at + 1e-9) - np.log10(row["break_step"]) - 0.15) / width))
        mean = -row["fall"] * fallen + 0.01 * row["fall"] * rng.standard_normal(len(at)) * (at > 0)
        spread = 0.28 * np.abs(mean)
        exact = 2.4 / (1 + (at / (60 + 160 * row["cluster"])) ** 1.6) + 0.03
        part = {"step": at, "flops": at * FLOPS_PER_STEP, "mean": mean, "medoid": mean * 1.05 + 0.02 * row["fall"]}
        part |= {"q25": mean - spread, "q75": mean + 0.8 * spread}
        part |= {"exact_mean": exact, "exact_q25": 0.6 * exact, "exact_q75": 1.3 * exact, "n_tokens": row["n_tokens"]}
        rows.append(pd.DataFrame({name: row[name] for name in ("direction", "basis_step", "cluster", "name")} | part))
    return pd.concat(rows, ignore_index=True)


def composition() -> pd.DataFrame:
    """One row a cluster and value: the first values of each label are over-represented."""
    rng, rows = np.random.default_rng(1), []
    for row in clusters().to_dict("records"):
        for label, of_all in {"place": [0.25] * 4, "carry": [0.5, 0.5], "target": [0.1] * 10}.items():
            inside = rng.dirichlet(4 * np.array(of_all) + 0.2)
            for value, (share, share_all) in enumerate(zip(inside, of_all, strict=True)):
                lift = share / share_all
                rows.append(
                    {
                        "direction": row["direction"], "cluster": row["cluster"], "label": label, "value": str(value),
                        "share": share, "share_all": share_all, "lift": lift,
                        "p_value_holm": 1e-9 if lift > 1.2 else 1.0,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def intervals() -> pd.DataFrame:
    """One row an interval: the loss falls, two thirds of it captured, less so late."""
    at = steps()
    loss = 2.4 / (1 + (at / 120) ** 1.3)
    change = np.diff(loss)
    fraction = 0.7 + 0.2 * np.sin(np.arange(len(change)))
    fraction[-6:] = [0.2, -0.9, 0.1, 2.3, -0.2, 0.4]
    return pd.DataFrame(
        {
            "step_from": at[:-1], "step_to": at[1:], "flops_from": at[:-1] * FLOPS_PER_STEP,
            "flops_to": at[1:] * FLOPS_PER_STEP, "loss_change": change, "captured": fraction * change,
            "captured_fraction": fraction,
        }
    )  # fmt: skip


# Helpers


def traces(figure, name):
    """The traces of one name."""
    return [trace for trace in figure.data if trace.name == name]


def texts(figure):
    """Every annotation's text."""
    return [note.text for note in figure.layout.annotations]


def rows_of(table, direction, cluster):
    """A cluster's rows, where a log axis can show them."""
    found = select(table, direction=direction, cluster=cluster)
    return found[found["flops"] > 0] if "flops" in found else found


# Curves by cluster


@pytest.fixture(scope="module")
def figure():
    return polca_figure(curves(), clusters(), 1)


@pytest.mark.parametrize(("name", "cluster"), [("place=3", 2), ("carry=1", 0), ("place=2, carry=1", 1)])
def test_curves_bands_and_medoids_are_the_tables(figure, name, cluster):
    part = rows_of(curves(), 1, cluster)
    name = plain(name)
    (mean,) = [t for t in figure.data if str(t.name).startswith(f"{name} (")]
    np.testing.assert_array_equal(mean.x, part["flops"])
    np.testing.assert_array_equal(mean.y, part["mean"])
    np.testing.assert_array_equal(mean.customdata, part[["q25", "q75", "medoid", "step"]])
    (medoid,) = traces(figure, f"{name}, medoid")
    np.testing.assert_array_equal(medoid.y, part["medoid"])
    assert (medoid.line.dash, mean.line.dash) == ("dash", None)
    (exact,) = [t for t in traces(figure, name) if t.yaxis == "y2"]
    np.testing.assert_array_equal(exact.y, part["exact_mean"])
    np.testing.assert_array_equal(exact.customdata, part[["exact_q25", "exact_q75", "step"]])
    for band, ends in zip(traces(figure, f"{name}, middle half"), ("q25 q75", "exact_q25 exact_q75"), strict=True):
        low, high = ends.split()
        np.testing.assert_array_equal(band.x, [*part["flops"], *part["flops"][::-1]])
        np.testing.assert_array_equal(band.y, [*part[low], *part[high][::-1]])
        assert band.fill == "toself"
    drawn = [t for t in figure.data if t.legendgroup == mean.legendgroup]
    assert {t.line.color for t in drawn if t.line.color} == {mean.line.color}
    assert len(drawn) == 7, "a click on the legend must hide all of a cluster: 3 lines, 2 bands, 2 breaks"


def test_clusters_stand_by_size_and_the_legend_says_which_breaks_are_hidden(figure):
    entries = [t.name for t in figure.data if t.showlegend]
    assert entries == ["place=3 (n = 1,210)", "carry=1 (n = 890, hidden)", "place=2, carry=1 (n = 420, plateau)"]
    colors = [t.line.color for t in figure.data if t.showlegend]
    assert colors == [color for color, _ in theme.SERIES[:3]]


def test_breaks_stand_on_both_curves_and_are_filled_where_the_exact_loss_is_flat(figure):
    for name, cluster, symbol in [("carry=1", 0, "square"), ("place=2, carry=1", 1, "triangle-up")]:
        at = float(select(clusters(), direction=1, cluster=cluster)["break_flops"].iloc[0])
        part = rows_of(curves(), 1, cluster)
        for mark, column, axis in zip(
            traces(figure, f"{name}, break"), ("mean", "exact_mean"), ("y", "y2"), strict=True
        ):
            assert (mark.x[0], mark.yaxis) == (at, axis)
            after = int(np.searchsorted(part["flops"], at))
            (x0, x1), (y0, y1) = (
                np.log(part["flops"].iloc[after - 1 : after + 1]),
                part[column].iloc[after - 1 : after + 1],
            )
            assert mark.y[0] == pytest.approx(y0 + (y1 - y0) * (np.log(at) - x0) / (x1 - x0))
            assert mark.marker.symbol[0] == symbol
    (hidden, _), (open_, _) = traces(figure, "carry=1, break"), traces(figure, "place=3, break")
    assert open_.marker.symbol[0] == "circle-open"
    assert hidden.hovertemplate.startswith("hidden: breaks at step 1,800, falls 0.42 nats")
    assert f"medoid: …{'0' * 40}4␣7␣1␣+␣3␣6␣5␣=␣&lt;0&gt; → 8<extra>" in hidden.hovertemplate
    assert open_.hovertemplate.startswith("visible in the exact loss")


def test_basis_and_plateau_are_marked_at_their_compute(figure):
    for mark in traces(figure, "basis: step 300"):
        assert mark.x == pytest.approx([300 * FLOPS_PER_STEP] * 2)
    assert [mark.yaxis for mark in traces(figure, "basis: step 300")] == ["y", "y2"]
    (flat,) = traces(figure, "flat from step 900")
    assert flat.x == pytest.approx([TAU_STEP * FLOPS_PER_STEP] * 2)
    assert flat.yaxis == "y2"
    (text,) = [note for note in figure.layout.annotations if note.text == "basis: step 300"]
    assert text.x == pytest.approx(np.log10(300 * FLOPS_PER_STEP))


def test_texts_of_marks_keep_off_the_other_mark_and_the_edge():
    anchors = {}
    for direction in (1, 4):
        for note in polca_figure(curves(), clusters(), direction).layout.annotations:
            anchors[direction, note.text] = note.xanchor
    assert anchors[1, "basis: step 300"] == anchors[1, "flat from step 900"] == "left"
    assert anchors[4, "basis: step 2,500"] == anchors[4, "flat from step 900"] == "right"


def test_marks_off_the_axis_are_said_and_unknown_ones_are_not():
    initial = polca_figure(curves(), clusters().assign(basis_step=0), 1)
    assert "← basis: step 0" in texts(initial)
    assert traces(initial, "basis: step 0") == []
    without = clusters().assign(basis_step=np.nan, tau_step=np.nan, break_step=np.nan, break_flops=np.nan)
    drawn = polca_figure(curves(), without, 1)
    assert not [text for text in texts(drawn) if "step" in text]
    assert not [t for t in drawn.data if str(t.name).endswith("break")]
    late = clusters().assign(break_step=0, break_flops=0.0)
    assert not [t for t in polca_figure(curves(), late, 1).data if str(t.name).endswith("break")]


def test_every_curve_lies_inside_its_panel(figure):
    assert figure.layout.hovermode == "x unified"
    for axis in ("y", "y2"):
        low, high = figure.layout[axis.replace("y", "yaxis")].range
        values = np.concatenate([np.asarray(t.y, dtype=float) for t in figure.data if t.yaxis == axis])
        assert low <= values.min() <= values.max() <= high
        assert low < 0 < high
    assert all(np.asarray(t.x, dtype=float).min() > 0 for t in figure.data), "a log axis cannot show step 0"


def test_the_most_telling_directions_come_first():
    table = clusters()
    # Direction 1 has a hidden cluster of F1 0.84; that of direction 0 with 0.91 shows in the exact loss.
    assert telling(table) == [1, 4, 0]
    titles = [t for t in texts(polca_figure(curves(), table)) if "POLCA" in t]
    assert [title.split("</b>")[0] for title in titles] == ["<b>POLCA, direction 1", "<b>POLCA, direction 4"]
    visible = table.assign(hidden=False, in_flat=False)
    assert telling(visible) == [0, 1, 4]
    assert telling(table.assign(hidden=False)) == [1, 0, 4], "a break on a plateau counts as well"
    # Without names the loss that is shed decides: 0.05 · 700, 1180 · 1.9 + ..., 890 · 0.42 + ...
    assert telling(visible.assign(f1=np.nan)) == [0, 1, 4]
    assert telling(visible.assign(f1=np.nan, fall=[0, 0, 0, 1, 1, 1, 9])) == [4, 1, 0]


def many(n=8):
    """Tables of one direction with n clusters, the first the smallest, with awkward names."""
    table = pd.concat([select(clusters(), direction=1, cluster=0)] * n)
    names = ["target=<b>", "is_x= ", "place=1 & previous=_", "a name of more than twenty letters"] * (n // 4)
    table = table.assign(cluster=range(n), n_tokens=[100 + i for i in range(n)], name=names)
    part = select(curves(), direction=1, cluster=0)
    return pd.concat([part.assign(cluster=i) for i in range(n)]), table


def test_only_the_largest_clusters_are_drawn_and_the_others_counted():
    drawn = polca_figure(*many())
    entries = [t.name for t in drawn.data if t.showlegend]
    # A name that stands twice among those drawn is followed by its cluster's number, even where it is cut.
    assert entries == [
        "a name of more tha… [7] (n = 107, hidden)",
        "place=1, previous=_ [6] (n = 106, hidden)",
        "is x=␣ (n = 105, hidden)",
        "target=&lt;b&gt; (n = 104, hidden)",
        "a name of more tha… [3] (n = 103, hidden)",
        "place=1, previous=_ [2] (n = 102, hidden)",
    ]
    assert traces(drawn, "place=1, previous=_ [6], medoid")
    assert any("without 2 smaller clusters" in text for text in texts(drawn))
    assert len({t.line.color for t in drawn.data if t.showlegend}) == 6


@pytest.mark.parametrize(
    ("kind", "title", "axis"),
    [
        ("exact_loss", "<b>Clusters of the exact loss</b>  exact loss by", "exact loss (nats)"),
        ("loss_change", "<b>Clusters of the loss's changes</b>  loss change by", "loss change (nats)"),
        ("fisher", "<b>Fisher information</b>  squared gradient by", "squared gradient"),
    ],
)
def test_baselines_are_not_called_projected_loss(kind, title, axis):
    table = clusters().assign(curves=kind, direction=-1).iloc[:3]
    drawn = polca_figure(curves().iloc[: 3 * len(steps())].assign(direction=-1), table)
    assert texts(drawn)[0].startswith(title)
    assert drawn.layout.yaxis.title.text == axis
    assert not any("projected" in text for text in texts(drawn))
    both = pd.concat([clusters(), table])
    with pytest.raises(ValueError, match="shows one curves, got"):
        polca_figure(curves(), both)


def test_a_transition_is_shaded():
    drawn = polca_figure(curves(), clusters(), 1, transition=Shade(2e10, 8e10, "loss transition"))
    (band,) = drawn.layout.shapes
    assert (band.x0, band.x1) == (2e10, 8e10)


def test_the_panel_is_the_figures_upper_one_and_fits_a_timeline(figure):
    panel = polca_panel(curves(), clusters(), 1)
    upper = [t for t in figure.data if t.yaxis == "y"]
    assert [t.name for t in panel.traces] == [t.name for t in upper]
    for ours, theirs in zip(panel.traces, upper, strict=True):
        np.testing.assert_array_equal(ours.y, theirs.y)
    stacked = timeline_figure(tables.metrics(), [panel])
    assert any("POLCA, direction 1" in text for text in texts(stacked))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, k: (c, k.iloc[:0]), "a figure of POLCA needs a cluster, got none"),
        (lambda c, k: (c.iloc[:0], k), "polca table must have rows, got none"),
        (lambda c, k: (pd.concat([c, c.head(1)]), k), "one row a direction, cluster, step, got several"),
        (lambda c, k: (c, pd.concat([k, k])), "one row a direction, cluster, got several"),
        (
            lambda c, k: (c[c["cluster"] != 1], k),
            "every cluster of direction 1 must have a curve, got none of cluster 1",
        ),
    ],
    ids=["no cluster", "no curve", "a step twice", "a cluster twice", "a curve missing"],
)
def test_bad_tables_are_refused(change, message):
    given, of_clusters = change(curves(), clusters())
    with pytest.raises(ValueError, match=message):
        polca_figure(given, of_clusters, 1)


def test_an_unknown_direction_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"direction must be one with a cluster .*\[0, 1, 4\], got 3"):
        polca_figure(curves(), clusters(), 3)
    with pytest.raises(ValueError, match="got 3"):
        composition_figure(composition(), clusters(), 3)


# Composition


def bars(figure, axis):
    """A panel's shares of the cluster and of all tokens and its numbers, by (label, value)."""
    layout = figure.layout["yaxis"]
    rows, label = {}, ""
    for place, text in zip(layout.tickvals, layout.ticktext, strict=True):
        if text.startswith("<b>"):
            label = text[3:-4]
        else:
            rows[place] = (label, text)
    everyone, inside, numbers = [t for t in figure.data if t.yaxis == axis]
    assert everyone.name == "all tokens"
    assert everyone.width > inside.width, "or the cluster's bar would hide it"
    columns = zip(inside.y, inside.x, everyone.x, numbers.text, strict=True)
    assert list(inside.y) == list(everyone.y) == list(numbers.y)
    return {rows[place]: (share, of_all, text.strip()) for place, share, of_all, text in columns}


@pytest.mark.parametrize(("axis", "cluster"), [("y", 2), ("y2", 0), ("y3", 1)])
def test_bars_are_the_shares_beside_their_values(axis, cluster):
    found = bars(composition_figure(composition(), clusters()), axis)
    expected = select(composition(), direction=1, cluster=cluster).set_index(["label", "value"])
    assert [label for label, _ in found] == ["place"] * 4 + ["carry"] * 2 + ["target"] * 6
    for key, (share, of_all, text) in found.items():
        row = expected.loc[key]
        assert (share, of_all) == (row["share"], row["share_all"])
        bold = f"<b>{row['share']:.0%} (×{row['share'] / row['share_all']:.2g})</b>"
        assert text == (bold if row["p_value_holm"] < 0.05 else f"{row['share']:.0%}")
    assert {text.startswith("<b>") for _, _, text in found.values()} == {True, False}


def test_of_many_values_those_farthest_from_all_tokens_are_drawn():
    found = bars(composition_figure(composition(), clusters()), "y")
    rows = select(composition(), direction=1, label="target")
    far = (rows["share"] - rows["share_all"]).abs().groupby(rows["value"]).max().sort_values(ascending=False)
    assert [value for label, value in found if label == "target"] == sorted(far.index[:6])


def test_panels_are_headed_by_their_cluster_and_only_the_first_has_labels():
    drawn = composition_figure(composition(), clusters())
    heads = [text for text in texts(drawn) if "tokens" in text and "span" in text]
    for head, name, size, (color, _) in zip(
        heads,
        ["place=3", "carry=1", "place=2, carry=1"],
        ["1,210 tokens", "890 tokens, hidden", "420 tokens, plateau"],
        theme.SERIES[:3],
        strict=True,
    ):
        assert head == f'<b><span style="color:{color}">{name}</span></b><br>{size}'
    assert texts(drawn)[-1].startswith("<b>Direction 1</b>")
    assert set(drawn.layout.yaxis2.ticktext) == {""}
    hover = next(t for t in drawn.data if t.name == "carry=1").hovertext[0]
    row = select(composition(), direction=1, cluster=0).iloc[0]
    assert hover.startswith(f"<b>place: 0</b><br>{row['share']:.1%} of the cluster, 25.0% of all tokens")


def test_panels_of_six_clusters_do_not_overlap_and_texts_are_safe():
    _, table = many()
    rows = select(composition(), direction=1, cluster=0).assign(value=lambda rows: rows["value"] + " <i>" + "w" * 40)
    drawn = composition_figure(pd.concat([rows.assign(cluster=i) for i in range(8)]), table)
    boxes = []
    for number in range(1, 7):
        suffix = "" if number == 1 else str(number)
        boxes.append((*drawn.layout[f"xaxis{suffix}"].domain, *drawn.layout[f"yaxis{suffix}"].domain))
    for i, a in enumerate(boxes):
        assert 0 <= a[0] < a[1] <= 1
        assert -1e-9 <= a[2] < a[3] <= 1
        for b in boxes[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
    assert "0␣&lt;i&gt;" + "w" * 22 + "…" in drawn.layout.yaxis.ticktext
    assert drawn.layout.yaxis4.ticktext[1].startswith("0␣&lt;i&gt;"), "the second row of panels has labels again"
    assert not any("<i>" in text for text in texts(drawn))


# Captured loss


def test_change_and_captured_part_are_sums_since_the_first_checkpoint():
    drawn = captured_figure(intervals().sample(frac=1, random_state=0))
    loss = 2.4 / (1 + (steps() / 120) ** 1.3)
    (change,) = traces(drawn, "mean loss over the tokens")
    np.testing.assert_allclose(change.y, loss[1:] - loss[0])
    np.testing.assert_array_equal(change.x, steps()[1:] * FLOPS_PER_STEP)
    np.testing.assert_array_equal(np.ravel(change.customdata), steps()[1:])
    (part,) = traces(drawn, "captured by the directions together")
    parts = [float(np.sum(intervals()["captured"][: n + 1])) for n in range(len(intervals()))]
    np.testing.assert_allclose(part.y, parts)
    assert any(f"{parts[-1] / (loss[-1] - loss[0]):.0%} captured in all" in text for text in texts(drawn))


def test_shares_outside_the_panel_stand_at_its_edge_and_large_changes_are_large():
    rows = intervals()
    (points,) = traces(captured_figure(rows), "captured share")
    fraction = rows["captured_fraction"].to_numpy()
    np.testing.assert_array_equal(points.y, np.clip(fraction, -0.5, 1.5))
    beyond = {"triangle-up-open": fraction > 1.5, "triangle-down-open": fraction < -0.5}
    for symbol, where in beyond.items():
        assert where.sum() == 1
        np.testing.assert_array_equal(np.array(points.marker.symbol) == symbol, where)
    np.testing.assert_array_equal(points.customdata[:, 0], fraction)
    assert np.argmax(points.marker.size) == np.argmax(np.abs(rows["loss_change"]))
    area = (np.array(points.marker.size) - 4) ** 2
    np.testing.assert_allclose(area / area.max(), rows["loss_change"] / rows["loss_change"].min(), atol=1e-12)


def test_an_interval_without_change_has_no_share():
    rows = intervals()
    rows.loc[3, ["loss_change", "captured", "captured_fraction"]] = [0.0, 0.0, np.nan]
    (points,) = traces(captured_figure(rows), "captured share")
    assert len(points.x) == len(rows) - 1
    assert rows["flops_to"][3] not in points.x
    nothing = rows.assign(loss_change=0.0, captured=0.0, captured_fraction=np.nan)
    assert not any("in all" in text for text in texts(captured_figure(nothing)))
    with pytest.raises(ValueError, match="must have rows, got none"):
        captured_figure(rows.iloc[:0])
    with pytest.raises(ValueError, match="one row a step_from, step_to, got several"):
        captured_figure(pd.concat([rows, rows]))


# The report's sections


def given(**changed):
    """Tables of one analysis."""
    return Clustered(curves(), clusters(), composition(), intervals())._replace(**changed)


def test_sections_come_with_their_tables():
    assert [section.title for section in polca_sections(given())] == [
        "POLCA: hidden breakthroughs",
        "POLCA: composition of direction 1's clusters",
        "POLCA: composition of direction 4's clusters",
        "POLCA: what the directions capture",
    ]
    titles = [section.title for section in polca_sections(given(composition=composition().iloc[:0]))]
    assert titles == ["POLCA: hidden breakthroughs", "POLCA: what the directions capture"]
    first, second = polca_sections(given(clusters=clusters().iloc[:0], curves=curves().iloc[:0]))
    assert (first.figure, second.figure is None) == (None, False)
    assert "No direction has a cluster" in first.text


def test_the_first_section_counts_and_lists_the_clusters():
    section = polca_sections(given(clusters=clusters().iloc[::-1]))[0]
    assert section.text.startswith(
        "7 clusters along 3 directions; 2 with a hidden break, 1 more with a break on an earlier plateau"
    )
    assert "6 of 7 have a name" in section.text
    assert section.table is not None
    assert list(section.table["direction"]) == [1, 1, 1, 4, 0, 0, 0]
    assert list(section.table["tokens"]) == [1210, 890, 420, 700, 1180, 640, 310]
    assert section.table["medoid, end of its context"].iloc[0] == f"…{'0' * 10}4 7 1 + 3 6 5 = <0>"
    one = polca_sections(given(clusters=clusters()[clusters()["direction"] == 4]))[0].text
    assert one.startswith("1 cluster along 1 direction; 1 with a hidden break, 0 more")


def test_a_long_table_is_cut_after_the_most_telling_directions():
    rows = [clusters().assign(direction=clusters()["direction"] + 10 * i, f1=0.9 - 0.1 * i) for i in range(5)]
    many_of = pd.concat(rows, ignore_index=True)
    lines = [curves().assign(direction=curves()["direction"] + 10 * i) for i in range(5)]
    section = polca_sections(given(clusters=many_of, curves=pd.concat(lines)))[0]
    assert section.text.endswith("The table below shows 30 of them; `polca_clusters.csv` holds all.")
    assert section.table is not None
    assert len(section.table) == 30
    assert list(section.table["direction"])[:7] == [1, 1, 1, 4, 11, 11, 11]
    assert len(section.downloads["polca_clusters"]) == 35
    assert "table below" not in polca_sections(given())[0].text


def test_a_page_holds_tables_and_figures_and_no_markup_of_the_run():
    risky = clusters().assign(medoid_context="<img src=x>", name="<script>x")
    page = render_report({}, polca_sections(given(clusters=risky)))
    assert "<img src=x>" not in page
    assert "<script>x" not in page
    link = page.split('download="polca_clusters.csv"')[1]
    data = link.split('href="data:text/csv;charset=utf-8;base64,')[1].split('"')[0]
    read = pd.read_csv(io.StringIO(base64.b64decode(data).decode()))
    assert read["n_tokens"].tolist() == clusters()["n_tokens"].tolist()


def test_a_recovery_panel_draws_each_way_with_its_chance():
    rows = pd.DataFrame(
        {
            "way": ["clusters"] * 3 + ["loss"] * 3,
            "step": [0, 10, 20] * 2,
            "flops": [0.0, 1e9, 2e9] * 2,
            "score": [0.0, 0.3, 0.9, 0.1, 0.2, 0.3],
            "chance": [0.2, 0.25, 0.26, 0.1, 0.15, 0.16],
        }
    )
    panel = recovery_panel(rows, "carry")
    assert [trace.name for trace in panel.traces] == ["clusters", None, "loss", None]
    assert [list(trace.y) for trace in panel.traces] == [[0.3, 0.9], [0.25, 0.26], [0.2, 0.3], [0.15, 0.16]]
    assert all(list(trace.x) == [1e9, 2e9] for trace in panel.traces)
    assert len({trace.line.color for trace in panel.traces}) == 2
    assert "carry" in panel.title
    with pytest.raises(ValueError, match="at most 4 ways"):
        recovery_panel(pd.concat([rows.assign(way=rows["way"] + str(i)) for i in range(3)]), "carry")


def test_without_compute_everything_stands_at_its_step():
    """Curves, breaks, marks and captured parts of a suite whose tokens are not known."""
    figure = polca_figure(curves().assign(flops=np.nan), clusters().assign(break_flops=np.nan), 1)
    assert figure.layout.xaxis.title.text == "training step"
    known = polca_figure(curves(), clusters(), 1)
    assert len(figure.data) == len(known.data)
    for trace, of_known in zip(figure.data, known.data, strict=True):
        assert trace.name == of_known.name
        np.testing.assert_allclose(np.array(trace.x) * FLOPS_PER_STEP, np.array(of_known.x, dtype=float), rtol=1e-9)
    part = captured_figure(intervals().assign(flops_from=np.nan, flops_to=np.nan))
    assert part.layout.xaxis.title.text == "training step"
    (change,) = traces(part, "mean loss over the tokens")
    assert list(change.x) == sorted(intervals()["step_to"])
