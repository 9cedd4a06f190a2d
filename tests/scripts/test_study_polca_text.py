"""The script behind docs/polca_text.md: what is known of each character, and what the page shows of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from qfl_interp.curvature.token_losses import scored_tokens
from qfl_interp.data.examples import held_out, in_split
from qfl_interp.polca.naming import token_labels

SCRIPTS = Path(__file__).parents[2] / "scripts"
TEXT = 'If x, the "new one" runs.\n\n   the next: newer\n---\n'


@pytest.fixture(scope="module")
def study():
    """scripts/study_polca_text.py as a module; it reads another script beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        spec = importlib.util.spec_from_file_location("study_polca_text", SCRIPTS / "study_polca_text.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["study_polca_text"] = module
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def labels(study, monkeypatch):
    """The labels of the text in one row."""
    monkeypatch.setattr(study, "WINDOW", len(TEXT))
    return study.character_labels(TEXT)


def characters(labels, name):
    """Places and characters that have a label."""
    return [(int(at), TEXT[at]) for at in np.flatnonzero(labels[name])]


def test_classes_of_characters(labels):
    for name, expected in {"capital": "I", "punctuation": ',"".:---', "digit": "", "line_end": "\n" * 4}.items():
        assert "".join(character for _, character in characters(labels, name)) == expected
    together = sum(labels[name].astype(int) for name in ("letter", "digit", "space", "line_end", "punctuation"))
    assert (together == 1).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quoted", [(11 + i, c) for i, c in enumerate('new one"')]),
        ("indent", [(27, " "), (28, " "), (29, " ")]),
        ("line_start", [(0, "I"), (27, " "), (46, "-")]),
        ("repeated", [(26, "\n"), (28, " "), (29, " "), (47, "-"), (48, "-")]),
        # The third letters of the second `the`, and of `newer` after `new`.
        ("seen_word", [(32, "e"), (42, "w")]),
        ("word_over", [(i, TEXT[i]) for i in (2, 4, 9, 14, 18, 24, 33, 38, 45)]),
    ],
)
def test_places_in_words_lines_and_quotes(labels, name, expected):
    assert characters(labels, name) == expected


def test_letters_are_counted_within_words_and_not_beyond_the_last_told_apart(study):
    assert study.letter_of_word("ab c_longerword").tolist() == [1, 2, 0, 1, 0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6]


def test_the_most_frequent_character_follows_so_many_before(study):
    text = "abxabyabxcbz"
    # After b: x twice, y once, z once; after "ab": x twice, y once; after "cb": z.
    assert np.flatnonzero(study.most_frequent(text, 1) & np.array([c in "xyz" for c in text])).tolist() == [2, 8]
    assert np.flatnonzero(study.most_frequent(text, 2) & np.array([c in "xyz" for c in text])).tolist() == [2, 8, 11]
    assert not study.most_frequent(text, 2)[:2].any()


def test_the_text_has_every_paragraph_once(study, monkeypatch):
    monkeypatch.setattr(study, "topics", {"one": "a\n\nb\n", "two": "\nb\n\nc\n\na"})
    assert study.reference_text() == "a\n\nb\n\nc"


@pytest.fixture(scope="module")
def task(study):
    """Rows of a made-up text."""
    rng = np.random.default_rng(0)
    return study.text_task(" ".join(rng.choice(["the", "next", "word", '"is"', "new.\n"], 2000)))


def test_labels_are_read_where_the_character_is_predicted(study, task):
    examples = np.arange(5)[:, None]
    batch = task.encode(examples)
    scored = scored_tokens(batch)
    table = token_labels(task, examples, scored)
    assert len(table) == 5 * (study.WINDOW - study.PROMPT)
    text = "".join(task.str_tokens(batch.tokens.flatten()))
    for _, row in table.iterrows():
        at = row["example"] * study.WINDOW + study.PROMPT + row["place"]
        assert (row["target"], row["context"]) == (text[at], text[row["example"] * study.WINDOW : at])
    assert table["letter"].tolist() == [c.isalpha() for c in table["target"]]
    assert table["space"].tolist() == [c == " " for c in table["target"]]
    first = (table["letter_of_word"] == 1).to_numpy(dtype=bool)
    assert not table["previous"][first].str.isalpha().any()


def test_rows_are_trained_on_or_held_out(study, task):
    rows = np.arange(len(task))[:, None]
    assert in_split(task, rows, "train").mean() == pytest.approx(0.9, abs=0.1)
    test = held_out(task, "test", 3, seed=0, stream="polca")
    assert not in_split(task, test, "train").any()


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a b\n", "a␣b↵"),
        ("|*_`~\\[]", "&#124;&#42;&#95;&#96;&#126;&#92;&#91;&#93;"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("space=True", "space=True"),
    ],
)
def test_a_cell_shows_characters_and_no_markup(study, text, cell):
    assert study.shown(text) == cell


def test_the_target_is_bold_after_the_end_of_its_context(study):
    row = {"context": "x" * 100 + "y z", "target": "|"}
    assert study.in_context(row) == f"<code>{'x' * (study.CONTEXT - 3)}y␣z<b>&#124;</b></code>"
