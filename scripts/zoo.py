"""Train the published settings of sweeps/zoo.toml that are not trained yet, and fill docs/zoo.md.

    python scripts/zoo.py [NAME ...] [--out runs/zoo] [--steps N] [--no-train] [--figures]

Each run is a `qfl train` command; one that is finished is not trained again, one that was stopped goes on. What a run
measured at its validations is written to docs/zoo/NAME-SEED.csv, the page's tables and commands are made of these files
alone, and `--figures` draws docs/figures/zoo-*.png (needs `pip install kaleido` and a Chromium). `--steps` trains fewer
updates into another folder, for a try, and writes nothing of the page.
"""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from figures.small_multiples import small_multiples
from pages import DOCS, fill, markdown, save

from qfl_interp.runs.provenance import device_name
from qfl_interp.runs.run import Run
from qfl_interp.tables import column, records

ZOO, PAGE, TABLES = Path(__file__).parent.parent / "sweeps" / "zoo.toml", DOCS / "zoo.md", DOCS / "zoo"
# What is kept of a validation, and what it is called in the run's metrics.
KEPT = {"step": "step", "seconds": "seconds", "train_loss": "train_loss", "val_loss": "val_loss_answer",
        "val_exact": "val_exact_answer"}  # fmt: skip
# A run has fitted its training data below this loss in nats, and found the answer above this share of exact matches.
FITTED, FOUND = 0.05, 0.9


class Entry(NamedTuple):
    """An entry of sweeps/zoo.toml.

    Attributes:
        name: As the tables and the command line know it.
        title: As the page calls it.
        seeds: A run each.
        command: What follows `qfl train`.
        figure: Which figure its curves are in.
        band: Updates that are shaded there, from and to.
        mark: The update at which a dotted line stands.
        compared: Rows of the page's comparison: `published`, `source`, `ours` (a pattern of `said`) and `verdict`.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    command: str
    figure: str
    band: tuple[float, float] | None = None
    mark: float | None = None
    compared: tuple[dict[str, str], ...] = ()

    def arguments(self, seed: int, out: Path, steps: int | None = None) -> list[str]:
        """The words of the run's command behind `qfl`; with `steps` instead of its own number of updates."""
        words = ["train", *shlex.split(self.command), "--seed", str(seed), "--out", str(out)]
        if steps is not None:
            words[words.index("--steps") + 1] = str(steps)
        return words

    def table(self, seed: int) -> Path:
        """Where a run's measurements are kept."""
        return TABLES / f"{self.name}-{seed}.csv"


def entries(path: Path = ZOO) -> dict[str, Entry]:
    """The entries by name."""
    found = []
    for one in tomllib.loads(path.read_text())["entry"]:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
        found.append(Entry(**fields))
    return {entry.name: entry for entry in found}


def measured(run: Run) -> pd.DataFrame:
    """What a run, finished or not, measured at its validations, to five digits."""
    rows = run.metrics.dropna(subset=["val_loss"])
    kept = pd.DataFrame({name: rows[own] for name, own in KEPT.items()})
    return kept.map(lambda value: float(f"{value:.5g}")).astype({"step": int})


def summary(table: pd.DataFrame) -> dict[str, float]:
    """A run in numbers: the updates and seconds it took, when it had fitted and found the answer, and its end."""
    last = records(table)[-1]
    return {
        "updates": last["step"],
        "seconds": last["seconds"],
        "fitted": _first(table, column(table, "train_loss") < FITTED),
        "found": _first(table, column(table, "val_exact") > FOUND),
        "loss": last["val_loss"],
        "exact": last["val_exact"],
    }


def _first(table: pd.DataFrame, holds: Any) -> float:
    """The step of the first row where something holds; NaN where there is none."""
    return float(column(table, "step")[holds.argmax()]) if holds.any() else math.nan


def page_parts(zoo: dict[str, Entry]) -> dict[str, str]:
    """What goes between the page's markers, made of the tables that are there."""
    runs, compared = [], []
    for entry in zoo.values():
        found = {seed: summary(pd.read_csv(entry.table(seed))) for seed in entry.seeds if entry.table(seed).exists()}
        for seed, numbers in found.items():
            runs.append(
                {
                    "entry": entry.title,
                    "seed": seed,
                    "updates": said(numbers["updates"]),
                    "seconds": said(round(numbers["seconds"])),
                    "fitted at": said(numbers["fitted"]),
                    "found at": said(numbers["found"]),
                    "validation loss": numbers["loss"],
                    "exact match": numbers["exact"],
                }
            )
        if found:
            ours = {name: ", ".join(said(one[name]) for one in found.values()) for name in next(iter(found.values()))}
            compared += [
                {"entry": entry.title, "published": row["published"], "source": row["source"],
                 "ours": row["ours"].format(**ours), "": row["verdict"]}
                for row in entry.compared
            ]  # fmt: skip
    commands = {f"command {entry.name}": _command(entry) for entry in zoo.values()}
    return {"runs": markdown(pd.DataFrame(runs)), "compared": markdown(pd.DataFrame(compared)), **commands}


def said(value: float) -> str:
    """A number as the page says it: whole ones with commas, others to three digits, a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and value > 1 else f"{value:.3g}"


def _command(entry: Entry) -> str:
    """A run's command as it is typed, in lines of at most 120 letters."""
    lines = [""]
    for words in ("qfl train " + entry.command + f" --seed {entry.seeds[0]} --out runs/zoo/{entry.name}-0").split(
        " --"
    ):
        word = words if not lines[0] else f"--{words}"
        if len(lines[-1]) + len(word) > 114:
            lines.append("    " + word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip() if len(lines) == 1 else f"{lines[-1]} {word}"
    return "```bash\n" + " \\\n".join(lines) + "\n```"


def figure_rows(zoo: dict[str, Entry], name: str) -> pd.DataFrame:
    """The curves of a figure, as `small_multiples` takes them."""
    rows = []
    for entry in (one for one in zoo.values() if one.figure == name):
        for seed in (one for one in entry.seeds if entry.table(one).exists()):
            for row in records(pd.read_csv(entry.table(seed))):
                for kind, line, key in (
                    ("validation", "loss (nats)", "val_loss"),
                    ("training", "loss (nats)", "train_loss"),
                    ("validation", "exact match", "val_exact"),
                ):
                    if row["step"] > 0 and row[key] == row[key]:
                        rows.append(
                            {"row": line, "column": entry.title, "group": kind, "curve": f"{kind} {seed}",
                             "x": row["step"], "y": row[key]}
                        )  # fmt: skip
    return pd.DataFrame(rows)


def draw(zoo: dict[str, Entry]) -> None:
    """Write the figures of all entries that have tables."""
    for name in dict.fromkeys(entry.figure for entry in zoo.values()):
        rows = figure_rows(zoo, name)
        if len(rows):
            own = [entry for entry in zoo.values() if entry.figure == name]
            bands = {entry.title: entry.band for entry in own if entry.band is not None}
            marks = {entry.title: entry.mark for entry in own if entry.mark is not None}
            figure = small_multiples(rows, bands=bands, marks=marks, x="updates", filename=f"zoo-{name}")
            save(figure, f"zoo-{name}")


def main() -> None:
    """Train, measure, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="entries of sweeps/zoo.toml; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("--figures", action="store_true")
    args = parser.parse_args()
    zoo = entries()
    for name in args.names or zoo:
        if name not in zoo:
            raise SystemExit(f"no entry of {ZOO} is named {name!r}. There are {', '.join(zoo)}.")
        for seed in zoo[name].seeds:
            folder = args.out / (f"{name}-{seed}" if args.steps is None else f"{name}-{seed}-{args.steps}")
            if not args.no_train:
                words = zoo[name].arguments(seed, folder, args.steps)
                subprocess.run([sys.executable, "-m", "qfl_interp.cli.main", *words, "--resume", "--quiet"], check=True)
            if args.steps is None and (folder / "config.json").exists():
                TABLES.mkdir(exist_ok=True)
                measured(Run.open(folder)).to_csv(zoo[name].table(seed), index=False)
    if args.steps is None:
        fill(PAGE, page_parts(zoo) | {"machine": f"{device_name('cpu')}, shared"})
        if args.figures:
            draw(zoo)


if __name__ == "__main__":
    main()
