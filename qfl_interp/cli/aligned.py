"""Examples drawn token by token: each label stands under the token where it is read.

Everything in a column ends at its right edge, the index above it included. An example that is wider than the page goes
on in further blocks, and the answer begins one of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

_COLOURS = ("cyan", "magenta", "blue", "yellow", "bright_red", "bright_cyan", "bright_magenta")
_ROLES = {"prompt": "bold", "=": "bold yellow", "answer": "bold green", "padding": "dim"}
# More outputs than this are listed and not drawn, a row each.
_MAX_DRAWN_OUTPUTS = 32
_RULER_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class _Row:
    """What stands under the tokens on one line: text by token index."""

    name: str
    cells: Mapping[int, str]
    style: str


@dataclass(frozen=True)
class _Listed:
    """Several labels at one token: they have no column each, so they are listed."""

    name: str
    place: str
    values: Sequence[str]
    separator: str
    style: str


def draw(example: Mapping[str, Any], vocabulary: Sequence[str], width: int) -> Iterator[Text]:
    """The lines of one example.

    Args:
        example: "tokens", "loss_mask", "prompt_end" and "features" (by name: "kind", "positions", "labels").
        vocabulary: Its letters name the outputs of multilabel features, where it has any.
        width: Columns of the page.
    """
    tokens, roles = example["tokens"], _roles(example["loss_mask"], example["prompt_end"])
    rows, listed = [], []
    for (name, feature), style in zip(example["features"].items(), itertools.cycle(_COLOURS), strict=False):
        for part in _parts(name, feature, tokens, vocabulary, style):
            (rows if isinstance(part, _Row) else listed).append(part)
    shown = _without_padding(roles, rows)
    margin = max(len(part.name) for part in (*rows, *listed, _Row("tokens", {}, ""))) + 2
    rest = f" +{len(tokens) - shown} {tokens[shown]}" if shown < len(tokens) else ""
    yield from _blocks(tokens[:shown], roles, rows, margin, width, rest)
    for part in listed:
        yield from _list_lines(part, margin, width)
    yield Text()


def _roles(loss_mask: Sequence[bool], prompt_end: bool) -> list[str]:
    """The part each token plays: scored are `=`, where the task scores it, and the answer, through its end."""
    equals = loss_mask.index(True) - (not prompt_end)
    end = len(loss_mask) - loss_mask[::-1].index(True)
    return ["prompt"] * equals + ["="] + ["answer"] * (end - equals - 1) + ["padding"] * (len(loss_mask) - end)


def _without_padding(roles: Sequence[str], rows: Sequence[_Row]) -> int:
    """How many tokens to draw: all but the padding under which nothing stands."""
    last_label = max((at for row in rows for at in row.cells), default=0)
    return max(len(roles) - roles.count("padding"), last_label + 1)


def _parts(
    name: str, feature: Mapping[str, Any], tokens: Sequence[str], vocabulary: Sequence[str], style: str
) -> Iterator[_Row | _Listed]:
    """One feature as rows under the tokens, or listed where its labels do not fit there."""
    read = [(at, label) for at, label in zip(feature["positions"], feature["labels"], strict=True) if at >= 0]
    positions = [at for at, _ in read]
    multilabel = feature["kind"] == "multilabel"
    if multilabel and read and len(read[0][1]) > _MAX_DRAWN_OUTPUTS:
        for label, places in itertools.groupby(read, key=lambda pair: pair[1]):
            at = [at for at, _ in places]
            place = f"at {at[0]}" if len(at) == 1 else f"at {at[0]}..{at[-1]}, the same"
            yield _Listed(name, place, ["1" if bit else "·" for bit in label], "", style)
    elif multilabel:
        for output, title in enumerate(_output_names(len(read[0][1]) if read else 0, vocabulary)):
            title = f"{name if output == 0 else '':<{len(name)}} {title}"
            yield _Row(title, {at: "1" if label[output] else "·" for at, label in read}, style)
    elif len(set(positions)) == len(positions):
        yield _Row(name, {at: _text(label) for at, label in read}, style)
    else:
        for at, group in itertools.groupby(read, key=lambda pair: pair[0]):
            yield _Listed(name, f"at {at} ({tokens[at]})", [_text(label) for _, label in group], " ", style)


def _output_names(n: int, vocabulary: Sequence[str]) -> list[str]:
    """The vocabulary's letters where there are enough (an output a node), otherwise numbers."""
    letters = [token for token in vocabulary if token.isalpha()]
    return letters[:n] if len(letters) >= n else [str(i).rjust(len(str(n - 1))) for i in range(n)]


def _text(value: float) -> str:
    """A label; two decimals are enough to see a wave."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _blocks(
    tokens: Sequence[str], roles: Sequence[str], rows: Sequence[_Row], margin: int, width: int, rest: str
) -> Iterator[Text]:
    """Index, tokens and labels, in blocks no wider than the page."""
    widths = [max(len(token), *(len(row.cells.get(i, "")) for row in rows), 1) for i, token in enumerate(tokens)]
    # Tokens of one character need nothing between them; the last may be longer.
    gap = int(max(widths[:-1]) > 1)
    for block in _split([w + gap for w in widths], roles.index("="), width - margin, len(rest)):
        if block[0] > 0:
            yield Text()
        ends = dict(zip(block, itertools.accumulate(widths[i] + gap for i in block), strict=True))
        yield _ruler(ends, margin - gap, min(widths[i] + gap for i in block), len(str(len(tokens))))
        line = Text().append("tokens".ljust(margin), style="bold")
        for i in block:
            line.append(tokens[i].rjust(widths[i]), style=_ROLES[roles[i]]).append(" " * gap)
        if block[-1] == len(tokens) - 1:
            line.append(rest, style=_ROLES["padding"])
        yield _trimmed(line)
        for row in rows:
            if any(i in row.cells for i in block):
                line = Text(row.name.ljust(margin), style=row.style)
                for i in block:
                    cell = row.cells.get(i, "")
                    line.append(cell.rjust(widths[i]), style="dim" if cell == "·" else row.style).append(" " * gap)
                yield _trimmed(line)


def _trimmed(line: Text) -> Text:
    line.rstrip()
    return line


def _split(widths: Sequence[int], equals: int, available: int, rest: int) -> list[range]:
    """Token indices of each block; where one is not enough, `=` and the answer start a new one."""
    starts, used = [0], 0
    fits_one = sum(widths) + rest <= available
    for i, width in enumerate(widths):
        too_long = used + width + (rest if i == len(widths) - 1 else 0) > available
        if i > starts[-1] and (too_long or (i == equals and not fits_one)):
            starts.append(i)
            used = 0
        used += width
    return [range(start, end) for start, end in itertools.pairwise([*starts, len(widths)])]


def _ruler(ends: Mapping[int, int], offset: int, stride: int, digits: int) -> Text:
    """Token indices above the tokens, as many as fit; each ends where its token ends."""
    step = next((s for s in _RULER_STEPS if s * stride > digits), _RULER_STEPS[-1])
    line = ""
    for i, end in ends.items():
        at = offset + end - len(str(i))
        if i % step == 0 and at >= len(line) + bool(line):
            line = line.ljust(at) + str(i)
    return Text(line, style="dim")


def _list_lines(part: _Listed, margin: int, width: int) -> Iterator[Text]:
    """`name  at 3 (=)  0.1 0.2 ...`, going on below the first value."""
    indent = margin + len(part.place) + 2
    cell = max(map(len, part.values)) + len(part.separator)
    per_line = max(1, (width - indent) // cell)
    head = Text(part.name.ljust(margin), style=part.style).append(f"{part.place}  ", style="dim")
    for start in range(0, len(part.values), per_line):
        line = head if start == 0 else Text(" " * indent)
        for value in part.values[start : start + per_line]:
            line.append(value.rjust(cell - len(part.separator)), style="dim" if value == "·" else part.style)
            line.append(part.separator)
        yield _trimmed(line)
