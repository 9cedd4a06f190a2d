"""Where a feature is carried: patching maps of layer x position, and the gradient's estimate beside the exact value."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lenses.patch.pairs import HEADS, VARIES
from qfl_interp.plots.axes import labels_with_room
from qfl_interp.plots.grid import Cell, stack_cells
from qfl_interp.plots.lines import finite
from qfl_interp.plots.maps import CellMap, axis_title, bar_span, choices, color_axis, place_words, require_rows
from qfl_interp.plots.slider import AXIS_HEIGHT, over_steps, step_title
from qfl_interp.plots.text import line_height, n_lines, room, text_width, wrapped
from qfl_interp.plots.theme import DIVERGING, FONT_SIZE, is_narrow, new_figure, visible, words
from qfl_interp.sites import site_words
from qfl_interp.tables import column, distinct, select

# Between two maps without an axis.
_GAP: Final = 26
# Pixels left and right of the maps.
_LEFT, _RIGHT = 58, 18
# Letters under a map, a second line of them with the numbers of some positions, and pixels between two numbers.
_SIZE: Final = FONT_SIZE - 2
_NUMBERS: Final = 12
_APART: Final = 5


class _Metric(NamedTuple):
    """A normalised metric; `beside` are columns for the hover text, the patched run's own value, a `number`, first."""

    name: str
    beside: tuple[str, ...]
    number: str


_LOGIT_DIFF: Final = (
    "logit_diff",
    *(f"logit_diff_{name}" for name in ("clean", "corrupted", "low", "high")),
    "attribution",
)
_METRICS: Final = {
    "logit_diff_normalised": _Metric("logit difference", _LOGIT_DIFF, ":.3f"),
    "loss_normalised": _Metric("loss", ("loss",), ":.4f"),
    "exact_normalised": _Metric("exact match", ("exact",), ":.1%"),
}
_KEY: Final = ("step", "component", "layer", "head", "position")
# Values beyond this share the last colour: a few cells that overshoot must not wash out the rest.
WIDEST: Final = 1.5
_NO_VALUE: Final = "not patched, or the clean and the corrupted run hardly differ in this metric"


class _PatchMap(NamedTuple):
    """One component's panel.

    Attributes:
        component: Its name in the table.
        cells: Places against positions; against heads where every position was patched at once.
        across_heads: Whether the columns are heads.
        tokens: What stands at each column.
    """

    component: str
    cells: CellMap
    across_heads: bool
    tokens: list[str]

    @classmethod
    def of(cls, rows: pd.DataFrame, component: str) -> _PatchMap:
        """The panel of one component of the table."""
        chosen = select(rows, component=component)
        across_heads = set(chosen["position"]) == {-1} and bool((chosen["head"] >= 0).any())
        shown = _heads_as_positions(chosen) if across_heads else chosen
        cells = CellMap.by_place(shown, "position")
        token_at = dict(zip(shown["position"], shown["token"], strict=True))
        tokens = [str(at) if across_heads else visible(token_at[at]) for at in cells.across]
        return cls(component, cells, across_heads, tokens)

    def of_step(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Its rows among those of one step, by the key of its cells."""
        chosen = select(rows, component=self.component)
        return _heads_as_positions(chosen) if self.across_heads else chosen

    @property
    def height(self) -> int:
        """Pixels of the plot area."""
        per_head = any(head >= 0 for _, head in self.cells.down)
        return max(min((14 if per_head else 24) * len(self.cells.down), 420), 72)

    @property
    def names(self) -> list[list[str]]:
        """What a hover text calls each cell."""
        columns = list(zip(self.cells.across, self.tokens, strict=True))
        if self.across_heads:
            return [[f"{place_words(row[0], at)}, at every position" for at, _ in columns] for row in self.cells.down]
        return [
            [f"“{token}” at position {at}, {place_words(row[0], row[1])}" for at, token in columns]
            for row in self.cells.down
        ]

    @property
    def title(self) -> str:
        """The component, in lines that fit."""
        return wrapped(f"<b>{self.component}</b>  {_what(self.component)}", room(_LEFT + _RIGHT))

    @property
    def title_height(self) -> int:
        """Pixels that the title takes more than one line of text does."""
        return round(line_height() * (n_lines(self.title) - 1))

    @property
    def upright(self) -> bool:
        """Whether the columns' names stand upright, as long tokens do."""
        return not self.across_heads and any(len(token) > 1 for token in self.tokens)

    @property
    def token_height(self) -> int:
        """Pixels that the columns' names take more than one line of text does."""
        if self.across_heads:
            return 0
        return min(6 * max(map(len, self.tokens)) + 2 * _NUMBERS, 90) if self.upright else _NUMBERS

    def is_named(self, following: _PatchMap | None) -> bool:
        """Whether the axis is written under the map: it is under the last of equal columns."""
        return following is None or (self.cells.across, self.tokens) != (following.cells.across, following.tokens)

    def below(self, following: _PatchMap | None) -> int:
        """Pixels between the map and the next, or the slider."""
        gap = _GAP + following.title_height if following else 0
        return gap + (AXIS_HEIGHT + self.token_height if self.is_named(following) else 0)

    @property
    def columns(self) -> list[str]:
        """What is written under each column: tokens and positions, as far as there is room for them side by side."""
        if self.across_heads:
            return self.tokens
        spacing = room(_LEFT + _RIGHT) / len(self.tokens)
        widths = [line_height(_SIZE) if self.upright else text_width(token, _SIZE) for token in self.tokens]
        written = labels_with_room(widths, spacing, [token == VARIES for token in self.tokens])
        texts = [token if on else "" for token, on in zip(self.tokens, written, strict=True)]
        numbers = [f"<i>{position}</i>" for position in self.cells.across]
        if self.upright:
            return [f"{text} {number}" if text else "" for text, number in zip(texts, numbers, strict=True)]
        stride = math.ceil((max(text_width(number, _SIZE) for number in numbers) + _APART) / spacing)
        return [
            text if at % stride else f"{text}<br>{number}"
            for at, (text, number) in enumerate(zip(texts, numbers, strict=True))
        ]

    def layout(self, cell: Cell, named: bool) -> dict[str, Any]:
        """Axes of the panel, with its columns written if `named`."""
        x_axis = {
            "showticklabels": named,
            "ticks": "outside" if named else "",
            "ticklen": 2,
            "tickfont": {"size": _SIZE},
            "tickvals": self.cells.across,
            "ticktext": self.columns,
            "tickangle": -90 if self.upright else 0,
            "dtick": None,
        }
        return self.cells.layout(cell, **x_axis)


def patch_figure(
    rows: pd.DataFrame, *, metric: str = "logit_diff_normalised", step: int | None = None, slider: bool = True
) -> go.Figure:
    """How much of the clean run's answer each patch restores, by layer and position, a panel a component.

    0 is the corrupted run, 1 the clean one; below 0 a patch makes things worse. Colours are the same at every step.
    Buttons change the metric, a slider the step. Where every position was patched at once, columns are heads. Cells
    without a value are grey with a cross.

    Args:
        rows: Table "patch", of one feature and label.
        metric: The one shown first: "logit_diff_normalised", "loss_normalised" or "exact_normalised".
        step: The step shown first; None for the last.
        slider: Whether the figure goes through all steps; without it, it shows this one, in the colours of all.

    Raises:
        ValueError: No row, several features, labels or rows of a cell, an unknown metric or step.
    """
    require_rows(rows, "patch", ("feature", "label"), _KEY)
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {list(_METRICS)}, got {metric!r}. Choose one of them.")
    maps = [_PatchMap.of(rows, name) for name in distinct(rows, "component")]
    following = [*maps[1:], None]
    below = [one.below(other) for one, other in zip(maps, following, strict=True)]
    inner, panels = stack_cells([one.height for one in maps], below)
    # The colour bar stands above the first panel's title where there is no room beside it.
    raised = 18 + maps[0].title_height if is_narrow() else 0
    margin = {"l": _LEFT, "r": _RIGHT, "t": 108 + raised, "b": below[-1]}
    figure = new_figure(f"patch_{rows['feature'].iloc[0]}", inner, margin)
    for one, other, cell in zip(maps, following, panels, strict=True):
        named = one.is_named(other)
        figure.update_layout(one.layout(cell, named))
        figure.add_annotation(cell.title(one.title) | {"align": "left"})
        if named:
            title = "head" if one.across_heads else "token and its position (·: differs between pairs)"
            figure.add_annotation(axis_title(title, cell.y_domain[0], 22 + one.token_height))
        figure.add_trace(one.cells.within(cell).crosses(_NO_VALUE))
    attributed = len(finite(rows["attribution"])) > 0
    hovers = {name: _hover(one, attributed) for name, one in _METRICS.items()}

    def draw(part: pd.DataFrame) -> list[dict[str, Any]]:
        return [
            one.cells.within(cell).heat(
                one.of_step(part), name, hovers[name], beside=_METRICS[name].beside, name=name, text=one.names,
                visible=name == metric,
            )
            for one, cell in zip(maps, panels, strict=True) for name in _METRICS
        ]  # fmt: skip

    figure.update_layout(coloraxis=_color_axis(rows, metric, raised), updatemenus=[_buttons(len(maps))])
    return over_steps(figure, rows, draw, table="patch", title=_title, above=66 + raised, step=step, slider=slider)


def _title(rows: pd.DataFrame) -> str:
    """Feature, label, step, compute and the number of pairs."""
    feature, label = words(rows["feature"].iloc[0]), rows["label"].iloc[0]
    return step_title(rows, f"{feature}, label {label}") + f" · {int(column(rows, 'n_pairs').max()):,} pairs"


def _hover(metric: _Metric, attributed: bool) -> str:
    """What a cell says: place, normalised value, the patched run's own, and the gradient's estimate."""
    of_all = len(metric.beside) > 1
    text = f"%{{text}}<br>{metric.name}, normalised: <b>%{{z:.3f}}</b>"
    text += " (95 % %{customdata[3]:.3f} to %{customdata[4]:.3f})" if of_all else ""
    text += "<br>by gradient (attribution): %{customdata[5]:.3f}" if of_all and attributed else ""
    text += f"<br>patched run: %{{customdata[0]{metric.number}}}"
    return text + (" (clean %{customdata[1]:.3f}, corrupted %{customdata[2]:.3f})" if of_all else "")


def _what(component: str) -> str:
    """A component as a person reads it."""
    return "one head's output, at every position at once" if component == HEADS else site_words(component)


def _color_axis(rows: pd.DataFrame, metric: str, raised: int) -> dict[str, Any]:
    """Colours around 0, the same for every metric and step, with 1 marked; the bar is raised by so many pixels."""
    highest = float(abs(finite(rows[list(_METRICS)])).max(initial=1.0))
    end = min(highest, WIDEST)
    ticks, texts = [-1.0, -0.5, 0.0, 0.5, 1.0], ["−1", "−0.5", "0", "0.5", "<b>1</b>"]
    if highest > WIDEST:
        ticks, texts = [-WIDEST, *ticks, WIDEST], [f"≤ −{WIDEST}", *texts, f"≥ {WIDEST}"]
    marks = {"tickvals": ticks, "ticktext": texts}
    return color_axis(_bar_title(metric), -end, end, scale=DIVERGING, span=bar_span(0.5, 1.0), ypad=8 + raised, **marks)


def _bar_title(metric: str) -> str:
    """What the colours mean."""
    return f"{_METRICS[metric].name} (0: corrupted run, 1: clean run)"


def _buttons(n_maps: int) -> dict[str, Any]:
    """One button a metric; the crosses of all maps come first among the traces."""
    updates = [
        [
            {"visible": [True] * n_maps + [name == shown for name in _METRICS] * n_maps},
            {"coloraxis.colorbar.title.text": _bar_title(shown)},
        ]
        for shown in _METRICS
    ]
    return choices([one.name for one in _METRICS.values()], updates, 58)


def _heads_as_positions(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of heads that were patched at every position at once, with the head in the place of the position."""
    return rows.assign(position=rows["head"], head=-1)
