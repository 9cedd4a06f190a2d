"""POLCA on a small language model of characters: train it, follow its tokens, fill docs/polca_text.md.

    python scripts/study_polca_text.py [RUN]

The text is the language reference that Python ships for `help()`, so nothing is downloaded; another version of Python
has another text, and numbers a little different. Killed at any moment, it goes on where it was. The figure needs
`pip install kaleido` and a Chromium.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from html import escape
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from pages import DOCS, fill, markdown, nearest_saved, save

import qfl_interp as qfl
from qfl_interp.analyses import polca
from qfl_interp.analyses.lenses.polca.result import PolcaResult
from qfl_interp.data.dataset import FixedFeature
from qfl_interp.data.fixed_task import FixedTask
from qfl_interp.polca.clustering import cluster_direction, nearest_to_medoid
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.naming import cluster_name, enrichment
from qfl_interp.tables import column, records, select

PAGE = DOCS / "polca_text.md"
# Characters of a row, and how many of them only give context.
WINDOW, PROMPT = 48, 8
# The letters of a word are told apart up to this one.
MOST_LETTERS = 6
MODEL = qfl.ModelConfig(d_model=64, n_layers=3, n_heads=4, style="gpt2")
# A learning rate low enough that the Hessian's directions are not those of oscillation (docs/polca.md).
TRAIN = qfl.TrainConfig(
    n_steps=5_000, lr=1e-4, batch_size=32, seed=0, schedule="wsd", warmup_fraction=0.02, n_val=300, n_checkpoints=100,
    eval_fraction=0.02,
)  # fmt: skip
# How directions are found and followed, beside the checkpoints they come from.
FOLLOW: dict[str, Any] = {"n_examples": 40, "n_hessian": 40, "tol": 1e-2, "max_products": 40}
# One direction a basis checkpoint: evenly over the logarithm of the steps, from the end of the warm-up.
N_DIRECTIONS, FIRST_BASIS = 20, 100
# The paper's `min_samples`, a fifteenth of the tokens, leaves few clusters of so few tokens.
CLUSTERS: dict[str, Any] = {"min_cluster_size": 32, "min_samples": 10}
# Contexts shown of each cluster, and their characters.
N_SHOWN, CONTEXT = 4, 30


def reference_text() -> str:
    """Every paragraph of the language reference once, in its order: topics share sections, and splits must not."""
    paragraphs = [part for topic in topics.values() for part in topic.strip("\n").split("\n\n")]
    return "\n\n".join(dict.fromkeys(paragraphs))


def most_frequent(text: str, n_before: int) -> Bool[np.ndarray, " character"]:
    """Where a character is the one that most often follows the `n_before` characters before it, in this text."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for at in range(n_before, len(text)):
        counts[text[at - n_before : at]][text[at]] += 1
    guess = {before: found.most_common(1)[0][0] for before, found in counts.items()}
    return np.array([at >= n_before and guess[text[at - n_before : at]] == c for at, c in enumerate(text)])


def matches(pattern: str, text: str) -> Bool[np.ndarray, " character"]:
    """Which characters lie within a match of a regular expression, in its group 1."""
    inside = np.zeros(len(text), dtype=bool)
    for found in re.finditer(pattern, text, re.MULTILINE):
        inside[found.start(1) : found.end(1)] = True
    return inside


def letter_of_word(text: str) -> Int[np.ndarray, " character"]:
    """Which letter of its word a character is, from 1, `MOST_LETTERS` for all later ones; 0 for what is no letter."""
    number, numbers = 0, []
    for character in text:
        number = number + 1 if character.isalpha() else 0
        numbers.append(min(number, MOST_LETTERS))
    return np.array(numbers)


def seen_before(row: str) -> Bool[np.ndarray, " character"]:
    """Which letters of a row belong to a word, from its third letter on, whose beginning an earlier word had."""
    seen, marks = set(), np.zeros(len(row), dtype=bool)
    for found in re.finditer(r"[^\W\d_]+", row):
        word = found.group()
        for length in range(3, len(word) + 1):
            marks[found.start() + length - 1] = word[:length] in seen
        seen |= {word[:length] for length in range(3, len(word) + 1)}
    return marks


def character_labels(text: str) -> dict[str, np.ndarray]:
    """What is known of every character of a text, which is cut into rows of `WINDOW`: boolean, or integers from 0."""

    def of_each(test: Callable[[str], bool]) -> Bool[np.ndarray, " character"]:
        return np.array([test(character) for character in text])

    rows = [text[start : start + WINDOW] for start in range(0, len(text), WINDOW)]
    letters = letter_of_word(text)
    return {
        "letter": of_each(str.isalpha),
        "capital": of_each(str.isupper),
        "digit": of_each(str.isdigit),
        "space": of_each(" ".__eq__),
        "line_end": of_each("\n".__eq__),
        "punctuation": of_each(lambda c: not c.isalnum() and not c.isspace()),
        "letter_of_word": letters,
        # What comes after the last letter of a word.
        "word_over": (letters == 0) & np.concatenate([[False], letters[:-1] > 0]),
        "line_start": matches(r"^(.)", text),
        "indent": matches(r"^( +)", text),
        "quoted": matches(r'"([^"\n]*")', text),
        "repeated": np.concatenate([[False], of_each_equal(text)]),
        "seen_word": np.concatenate([seen_before(row) for row in rows]),
        "best_after_1": most_frequent(text, 1),
        "best_after_2": most_frequent(text, 2),
        "best_after_3": most_frequent(text, 3),
    }


def of_each_equal(text: str) -> Bool[np.ndarray, " later"]:
    """Whether each character but the first is the one before it."""
    return np.array([one == other for one, other in zip(text[1:], text, strict=False)])


def text_task(text: str) -> FixedTask:
    """Rows of `WINDOW` characters that follow one another in a text; labels are read where a character is predicted."""
    text = text[: len(text) // WINDOW * WINDOW]
    vocabulary = sorted(set(text))
    number = {character: index for index, character in enumerate(vocabulary)}
    tokens = np.array([number[character] for character in text]).reshape(-1, WINDOW)
    # The last character of the prompt is scored in training as `=` is.
    scored = np.broadcast_to(np.arange(WINDOW) >= PROMPT - 1, tokens.shape)
    positions = np.broadcast_to(np.arange(PROMPT - 1, WINDOW - 1), (len(tokens), WINDOW - PROMPT))
    features = {
        name: FixedFeature(
            "binary" if values.dtype == bool else "categorical",
            values.reshape(-1, WINDOW)[:, PROMPT:].astype(np.int64),
            positions,
        )
        for name, values in character_labels(text).items()
    }
    return FixedTask("python_reference", tokens, scored, features, str_tokens=vocabulary, train_fraction=0.9)


def shown(text: str) -> str:
    """Characters as a cell of a Markdown table shows them: no markup, blanks and ends of lines as signs."""
    marked = escape(text).replace(" ", "␣").replace("\n", "↵")
    return re.sub(r"[|*_`~\\\[\]]", lambda found: f"&#{ord(found.group())};", marked)


def in_context(row: dict[str, Any]) -> str:
    """The end of a token's context and, in bold, the token."""
    return f"<code>{shown(row['context'][-CONTEXT:])}<b>{shown(row['target'])}</b></code>"


def direction_table(found: PolcaResult) -> pd.DataFrame:
    """One row a direction: where it comes from, and how the tokens' losses move along it."""
    rows = []
    for row in records(found.directions):
        curves = found.data.trajectories.of(row["direction"])
        change = curves[:, -1].astype(np.float64)
        rows.append(
            {
                "direction": row["direction"],
                "basis step": row["step"],
                "eigenvalue": row["eigenvalue"],
                "residual": row["residual"],
                "mean change (nats)": change.mean(),
                "standard deviation": change.std(),
                "falling": f"{np.mean(change < 0):.0%}",
                "clusters": len(select(found.rows, direction=row["direction"])),
            }
        )
    return pd.DataFrame(rows)


def cluster_table(found: PolcaResult) -> pd.DataFrame:
    """One row a cluster, with the tokens nearest its medoid."""
    rows = []
    for row in records(found.rows):
        near = records(found.nearest(row["direction"], row["cluster"], N_SHOWN))
        verdict = "hidden" if row["hidden"] else "on a plateau" if row["in_flat"] else ""
        rows.append(
            {
                "direction": row["direction"],
                "cluster": row["cluster"],
                "name": shown(row["name"]),
                "tokens": row["n_tokens"],
                "F1": row["f1"],
                "fall (nats)": row["fall"],
                "break, step": round(row["break_step"]),
                "verdict": verdict,
                "stability": row["stability"],
                "nearest the medoid": "<br>".join(in_context(token) for token in near),
            }
        )
    return pd.DataFrame(rows)


def exact_loss_table(found: PolcaResult) -> pd.DataFrame:
    """The control: clusters of the same tokens' own losses, one row each."""
    losses = found.data.losses.double().numpy()
    clusters = cluster_direction(losses.T, only_falling=False, **CLUSTERS)
    labels = found.tokens[[name for name in found.tokens if not str(name).startswith("cluster_")]]
    composition = enrichment(labels, clusters.labels)
    rows = []
    for cluster in clusters.medoids:
        name = cluster_name(composition, cluster)
        best = select(composition, cluster=cluster, name=name)
        near = nearest_to_medoid(losses.T, clusters, cluster, N_SHOWN)
        rows.append(
            {
                "cluster": cluster,
                "name": shown(name),
                "tokens": len(clusters.tokens(cluster)),
                "F1": float(column(best, "f1")[0]) if len(best) else float("nan"),
                "last loss (nats)": float(losses[-1, clusters.labels == cluster].mean()),
                "nearest the medoid": "<br>".join(in_context(token) for token in records(labels.iloc[near])),
            }
        )
    return pd.DataFrame(rows)


def facts(run: qfl.Run, found: PolcaResult) -> str:
    """What was trained and followed, in numbers."""
    losses = run.metrics["val_loss_answer"].dropna()
    captured, change = column(found.intervals, "captured").sum(), column(found.intervals, "loss_change").sum()
    tau = int(column(found.rows, "tau_step")[0]) if len(found.rows) else -1
    return (
        f"{run.n_parameters:,} parameters, {run.steps[-1]:,} steps, {len(run.steps)} checkpoints; validation loss from "
        f"{losses.iloc[0]:.2f} to {losses.iloc[-1]:.2f} nats a character. {len(found.tokens):,} characters of "
        f"{found.data.config.n_examples} held-out rows followed along {len(found.directions)} directions, which "
        f"capture {captured:.3f} of their {change:.3f} nats ({captured / change:.1%}). Their mean loss is flat from "
        f"step {tau:,} on.\n"
    )


def configuration(run: qfl.Run) -> PolcaConfig:
    """The saved steps nearest those wanted give the directions."""
    steps = nearest_saved(run.steps, np.geomspace(FIRST_BASIS, run.steps[-1], N_DIRECTIONS))
    return PolcaConfig(basis_steps=",".join(map(str, steps)), **FOLLOW)


def followed(run: qfl.Run) -> list[int]:
    """Every second checkpoint, and the last: half the time, and enough to see when a curve turns."""
    return sorted({*run.steps[::2], run.steps[-1]})


def main(out: Path) -> None:
    """Train, find directions, follow tokens, cluster, write; each stage is skipped where it is done."""
    started = time.monotonic()
    task = text_task(reference_text())
    run = qfl.train(task, MODEL, TRAIN, out, resume=True)
    # A run's directory has its task's name alone, and this one is in no registry.
    run.task = task
    print(run, f"{time.monotonic() - started:.0f} s", flush=True)
    found = polca(run, followed(run), config=configuration(run), rule="down", **CLUSTERS)
    print(found, f"{time.monotonic() - started:.0f} s", flush=True)
    tables = {"directions": direction_table, "clusters": cluster_table, "exact": exact_loss_table}
    fill(PAGE, {"facts": facts(run, found)} | {name: markdown(table(found)) for name, table in tables.items()})
    save(found.plot(), "polca-text")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="study_polca_text.py", description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/polca/text"))
    main(parser.parse_args().run)
