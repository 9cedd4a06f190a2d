"""What a user sees of work under way, at several widths and off a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from qfl_interp import progress

DETAIL = progress.FIELDS.join(["loss 0.61", "val 0.652", "exact 0.0123", "FLOPs 1.26e+12", "tok/s 3.6e+04"])


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def on_a_console(monkeypatch: pytest.MonkeyPatch, width: int, *, terminal: bool) -> Console:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    return console


def line(width: int, clock: Clock, monkeypatch: pytest.MonkeyPatch, detail: str = DETAIL, name: str = "training step"):
    """The bar at step 300 of 716 after 42 s, as it stands on a terminal."""
    console = on_a_console(monkeypatch, width, terminal=True)
    bar = progress.progress_bar(enabled=True)
    bar.get_time = clock
    task = bar.add_task(name, total=716, completed=0, detail="")
    for at in (12.0, 42.0):
        clock.now = at
        bar.update(task, completed={12.0: 84, 42.0: 300}[at], detail=detail)
    with console.capture() as found:
        console.print(*bar.get_renderables())
    shown = found.get().rstrip("\n")
    assert "\n" not in shown
    assert len(shown) <= width
    return shown.rstrip()


@pytest.mark.parametrize(
    ("width", "end"),
    [
        (60, "300/716 loss 0.61 val 0.652 eta 0:58"),
        (80, "300/716 loss 0.61 val 0.652 exact 0.0123 eta 0:58"),
        (100, "300/716 loss 0.61 val 0.652 exact 0.0123 FLOPs 1.26e+12 eta 0:58"),
        (140, "300/716 loss 0.61 val 0.652 exact 0.0123 FLOPs 1.26e+12 tok/s 3.6e+04 eta 0:58"),
        (40, "300/716 loss 0.61"),
        (50, "300/716 loss 0.61 eta 0:58"),
    ],
)
def test_a_bar_keeps_step_loss_and_time_at_any_width(width, end, clock, monkeypatch):
    shown = line(width, clock, monkeypatch)
    assert shown.startswith("training step ")
    assert shown.endswith(f" {end}")
    bar = shown.removeprefix("training step ").removesuffix(f" {end}")
    assert 8 <= len(bar) <= 24
    assert set(bar) <= set("━╸╺ ")


def test_a_lens_has_the_same_line(clock, monkeypatch):
    assert line(60, clock, monkeypatch, "step 42", "probe").endswith(" 300/716 step 42 eta 0:58")


def test_off_a_terminal_a_line_a_minute(clock, monkeypatch):
    console = on_a_console(monkeypatch, 80, terminal=False)
    file: Any = console.file
    with progress.progress_bar(enabled=True) as bar:
        bar.get_time = clock
        task = bar.add_task("training step", total=716, detail="")
        for step in range(1, 717):
            clock.now = step * 0.25
            bar.update(task, completed=step, detail=f"loss {1 / step:.2f}")
    assert file.getvalue().splitlines() == [
        "training step 0/716",
        "training step 240/716 loss 0.00 eta 1:59",
        "training step 480/716 loss 0.00 eta 0:59",
        "training step 716/716 loss 0.00 in 2:59",
    ]


def test_nothing_where_it_is_not_wanted(monkeypatch):
    for terminal in (True, False):
        console = on_a_console(monkeypatch, 80, terminal=terminal)
        with progress.progress_bar(enabled=False) as bar:
            bar.advance(bar.add_task("probe", total=3, detail=""))
        file: Any = console.file
        assert file.getvalue() == ""


def test_a_stopped_piece_of_work_ends_with_how_far_it_was(monkeypatch):
    console = on_a_console(monkeypatch, 80, terminal=False)

    def stopped() -> None:
        with progress.weighted_bar(enabled=True) as bar:
            task = bar.add_task("sweep", total=1.0, detail="0/8 runs, 2 running")
            bar.update(task, completed=0.25, detail="2/8 runs, 2 running")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    file: Any = console.file
    assert file.getvalue().splitlines() == ["sweep 0 % 0/8 runs, 2 running", "sweep 25 % 2/8 runs, 2 running"]
