"""What a model predicts for one example, token by token: the true token, the predicted one, chance and loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.slider import heading
from qfl_interp.plots.theme import FONT_SIZE, GREY, PAPER_WIDTH, new_figure, visible
from qfl_interp.tables import column, records, select

_COLUMN: Final = 26
_LETTER: Final = 7.2
_ROW: Final = 92
_FORCED: Final = "teacher-forced: each token is predicted from the true ones before it; below it, its loss in nats"
_PLAIN: Final = "rgba(138, 143, 152, 0.10)"
_RIGHT: Final = "rgba(2, 158, 115, {:.2f})"
_WRONG: Final = "rgba(213, 94, 0, {:.2f})"


def predictions_table(
    tokens: Sequence[str], predicted: Sequence[str], numbers: Mapping[str, Sequence[Any]]
) -> pd.DataFrame:
    """One row a place: `position`, `token`, `part` ("prompt", "=" where it is scored, "answer"), `predicted` and so on.

    Args:
        tokens: The true ones.
        predicted: The most likely ones; "" at the first place.
        numbers: Columns `right`, `probability`, `probability_true`, `loss`, `scored`, `answer`.
    """
    return pd.DataFrame(
        {"position": range(len(tokens)), "token": list(tokens), "predicted": list(predicted), **numbers}
    )


def predictions_figure(rows: pd.DataFrame, title: str) -> go.Figure:
    """The example as it is read, place by place in lines: the true token, and below it the one that is predicted.

    The colour of a place says whether a scored token is predicted, green or orange, and how sure the model is of it:
    the paler, the less likely. What is not scored is grey.

    Args:
        rows: As `predictions_table` makes them, without the padding.
        title: In bold above it; made safe before.
    """
    longest = max((len(str(token)) for name in ("token", "predicted") for token in rows[name]), default=1)
    width = max(_COLUMN, min(_LETTER * longest + 10, 150))
    per_line = max(int((PAPER_WIDTH - 90) // width), 1)
    lines = math.ceil(len(rows) / per_line)
    figure = new_figure("predictions", _ROW * lines, {"l": 78, "r": 12, "t": 92, "b": 14})
    cells = [(row, index % per_line, 3 * (index // per_line)) for index, row in enumerate(records(rows))]
    figure.update_layout(
        annotations=[heading(f"<b>{title}</b>", 62), heading(summary(rows), 42), heading(_FORCED, 24)],
        xaxis={"range": [-0.5, max(min(per_line, len(rows)), 12) - 0.5], "visible": False, "fixedrange": True},
        yaxis={
            "range": [3 * lines - 0.4, -0.9],
            "tickvals": [3 * line + at for line in range(lines) for at in (0, 1)],
            "ticktext": ["true", "predicted"] * lines,
            "ticks": "",
            "showgrid": False,
            "showline": False,
            "fixedrange": True,
        },
        shapes=[_box(x, y + at, _color(row, at)) for row, x, y in cells for at in (0, 1)],
    )
    for at, name in enumerate(("token", "predicted")):
        figure.add_trace(
            go.Scatter(
                x=[x for _, x, _ in cells],
                y=[y + at for _, _, y in cells],
                text=[visible(row[name]) for row, _, _ in cells],
                mode="text",
                textfont={"size": FONT_SIZE + 1},
                hovertext=[_hover(row) for row, _, _ in cells],
                hovertemplate="%{hovertext}<extra></extra>",
                name=name,
                showlegend=False,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[x for _, x, _ in cells],
            y=[y + 1.72 for _, _, y in cells],
            text=[_loss(row) for row, _, _ in cells],
            mode="text",
            textfont={"size": FONT_SIZE - 4, "color": GREY},
            hoverinfo="skip",
            name="loss",
            showlegend=False,
        )
    )
    return figure


def summary(rows: pd.DataFrame) -> str:
    """How much of the answer is right, and its mean loss."""
    answer = select(rows, answer=True)
    if answer.empty:
        return ""
    n, right = len(answer), int(column(answer, "right").sum())
    said = "all of the answer right" if right == n else f"{right} of {n} answer tokens right"
    return f"{said}, mean loss of the answer {column(answer, 'loss').mean():.3f} nats"


def _box(x: float, y: float, color: str) -> dict[str, Any]:
    """The ground of one token."""
    place = {"x0": x - 0.47, "x1": x + 0.47, "y0": y - 0.46, "y1": y + 0.46}
    return {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": color, **place}


def _color(row: dict[str, Any], line: int) -> str:
    """Of a place: by what the model makes of it, where that is scored; of the true token only whether it is scored."""
    if not row["scored"] or row["position"] == 0:
        return _PLAIN if line == 0 else "rgba(0,0,0,0)"
    if line == 0:
        return "rgba(91, 134, 173, 0.22)"
    return (_RIGHT if row["right"] else _WRONG).format(0.12 + 0.6 * row["probability"])


def _loss(row: dict[str, Any]) -> str:
    """The loss of a scored token under it."""
    return f"{row['loss']:.2f}" if row["scored"] and row["position"] > 0 else ""


def _hover(row: dict[str, Any]) -> str:
    """All that is known of a place."""
    what = "answer" if row["answer"] else "scored" if row["scored"] else "not scored"
    text = f"position {row['position']} ({what}): <b>{visible(row['token'])}</b>"
    if row["position"] == 0:
        return text + "<br>nothing predicts the first token"
    verdict = "right" if row["right"] else "wrong"
    return text + (
        f"<br>predicted <b>{visible(row['predicted'])}</b>, {verdict}, probability {row['probability']:.3f}"
        f"<br>of the true one {row['probability_true']:.3g}, loss {row['loss']:.4f} nats"
    )
