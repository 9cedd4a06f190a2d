"""`qfl tasks`: labels stand under their tokens, pages wrap, JSON is complete."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.cli import main as cli
from qfl_interp.cli.aligned import draw
from qfl_interp.cli.tasks import _examples, short_vocabulary
from qfl_interp.data import registry

# One of each family, at lengths that need several blocks or wide cells, with every kind of feature.
SHOWN = [
    ("addition", 6), ("addition", 40), ("decimal_addition", 3), ("sparse_parity", 150), ("modular_addition", 113),
    ("multiplication", 16), ("majority_of_majorities", 32), ("activity_selection", 16), ("maximum_subarray", 64),
    ("breadth_first_search", 11), ("min_spanning_tree", 11), ("shortest_path", 11),
]  # fmt: skip
# Their baselines have closed forms.
QUICK = ["addition", "decimal_addition", "modular_addition", "sparse_parity"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `qfl tasks ...` on a page of some width; returns the exit status, standard output and standard error."""

    def run(*arguments, width: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "argv", ["qfl", "tasks", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        out, error = capsys.readouterr()
        return status, out, error

    return run


def drawn(task, width: int) -> tuple[dict, list[str]]:
    """An example and its lines."""
    (example,) = _examples(task, 1, seed=1)
    return example, [line.plain for line in draw(example, task.vocabulary, width)]


def blocks(lines: list[str]) -> list[list[str]]:
    """Index line, token line and label lines of each block; what is listed below has no column and is left out."""
    found = []
    for i, line in enumerate(lines):
        if line.startswith("tokens"):
            rows = lines[i - 1 : i + 1]
            for row in lines[i + 1 :]:
                if not row or " at " in row:
                    break
                rows.append(row)
            found.append(rows)
    return found


def token_ends(line: str, tokens: list[str], first: int) -> dict[int, int]:
    """The column in which each token of a line ends, reading on from token `first`."""
    ends, column = {}, len("tokens")
    while first < len(tokens):
        column += len(line[column:]) - len(line[column:].lstrip())
        if column >= len(line) or not line.startswith(tokens[first], column):
            break
        column += len(tokens[first])
        ends[first] = column - 1
        first += 1
    return ends


def expected_rows(example: dict, ends: dict[int, int]) -> list[dict[int, str]]:
    """Text by token index for each label line of a block, from the labels alone."""
    rows = []
    for feature in example["features"].values():
        read = [(p, v) for p, v in zip(feature["positions"], feature["labels"], strict=True) if p >= 0]
        if len({p for p, _ in read}) < len(read):
            continue
        if feature["kind"] == "multilabel":
            if len(read[0][1]) > 32:
                continue
            parts = [{p: "·1"[v[output]] for p, v in read} for output in range(len(read[0][1]))]
        else:
            parts = [{p: str(v) for p, v in read}]
        rows += [part for part in parts if set(part) & set(ends)]
    return rows


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize(("name", "length"), SHOWN)
def test_a_label_stands_in_the_column_of_its_token(name, length, width):
    example, lines = drawn(qfl.load_task(name, length), width)
    tokens, n_shown = example["tokens"], 0
    for ruler, token_line, *rows in blocks(lines):
        ends = token_ends(token_line, tokens, n_shown)
        assert ends
        expected = expected_rows(example, ends)
        assert len(rows) == len(expected), "features without a label in the block are left out"
        for row, cells in zip(rows, expected, strict=True):
            for i, end in ends.items():
                text = cells.get(i, " ")
                assert row.ljust(end + 1)[end + 1 - len(text) : end + 1] == text
        for number in ruler.split():
            end = ends[int(number)]
            assert ruler[: end + 1].endswith(number), "an index ends where its token ends"
        n_shown += len(ends)
    hidden = tokens[n_shown:]
    assert not any(example["loss_mask"][n_shown:]), "padding alone is not drawn"
    if hidden:
        assert any(line.endswith(f"+{len(hidden)} {hidden[0]}") for line in lines)
    assert max(map(len, lines)) <= width


def test_a_page_that_is_too_narrow_begins_the_answer_on_a_new_line():
    task = qfl.load_task("addition", 30)
    example, lines = drawn(task, 80)
    token_lines = [line for line in lines if line.startswith("tokens")]
    assert len(token_lines) == 2
    text = "".join(example["tokens"])
    equals = text.index("=")
    assert [line.split()[1] for line in token_lines] == [text[:equals], text[equals:]]
    assert len(blocks(drawn(task, 200)[1])) == 1


def test_several_labels_at_one_token_are_listed():
    task = qfl.load_task("sparse_parity", 12)
    example, lines = drawn(task, 80)
    bits = [int(example["tokens"][place]) for place in task.relevant]
    assert f"relevant_bit    at 12 (=)  {' '.join(map(str, bits))}" in lines
    _, lines = drawn(qfl.load_task("modular_addition"), 60)
    start = next(i for i, line in enumerate(lines) if line.startswith("cos_sum"))
    end = next(i for i, line in enumerate(lines) if line.startswith("sin_sum"))
    values = " ".join(lines[start:end]).removeprefix("cos_sum").replace("at 3 (=)", "").split()
    (example,) = _examples(qfl.load_task("modular_addition"), 1, seed=1)
    assert values == [f"{v:.2f}" for v in example["features"]["cos_sum"]["labels"]]


def synthetic(n_outputs: int) -> dict:
    labels = [[(i + r) % 2 for i in range(n_outputs)] for r in (0, 0, 1)]
    feature = {"kind": "multilabel", "positions": [1, 2, 3], "labels": labels}
    return {
        "tokens": list("0=1100"),
        "loss_mask": [False, True, True, True, False, False],
        "prompt_end": True,
        "features": {"set": feature},
    }


def test_many_outputs_are_listed_and_equal_ones_once():
    lines = [line.plain for line in draw(synthetic(40), ["0", "1", "="], 80)]
    assert f"set     at 1..2, the same  {'·1' * 20}" in lines
    assert f"set     at 3  {'1·' * 20}" in lines


def test_outputs_are_named_by_letters_or_numbers():
    lines = [line.plain for line in draw(synthetic(11), ["0", "1", "="], 80)]
    assert [line[:6] for line in lines[2:13]] == ["set  0", *(f"    {i:2d}" for i in range(1, 11))]
    lines = [line.plain for line in draw(synthetic(2), ["A", "B", "="], 80)]
    assert [line[:5] for line in lines[2:4]] == ["set A", "    B"]


def test_tokens_are_coloured_by_role():
    task = qfl.load_task("maximum_subarray", 4)
    (example,) = _examples(task, 1, seed=0)
    line = next(line for line in draw(example, task.vocabulary, 200) if line.plain.startswith("tokens"))
    styles = {line.plain[span.start : span.end].strip(): str(span.style) for span in line.spans}
    assert styles["="] == "bold yellow"
    assert styles["<EOS>"] == "bold green"
    padding = next(text for text in styles if text.startswith("+"))
    assert styles[padding] == "dim"
    assert styles[example["tokens"][0]] in ("bold", "bold green"), "a letter of the prompt may occur in the answer"


def test_detail_and_examples_as_text(call):
    status, out, _ = call("decimal_addition", "--examples", 2)
    assert status == 0
    assert "\x1b" not in out, "no colours where nobody sees them"
    assert "POLCA" in out
    assert "0..9 + = (12)" in out
    assert "1.9002" in out
    assert "example 2 of 2" in out
    examples = out[out.index("example 1 of 2") :]
    assert "digit_sum" not in examples
    status, out, _ = call("decimal_addition", "--examples", 2, "--all")
    assert "digit_sum" in out[out.index("example 1 of 2") :]
    assert call("decimal_addition", "--examples", 2, "--seed", 1)[1] != call("decimal_addition", "--examples", 2)[1]


def test_features_that_differ_in_a_number_share_a_line(call, monkeypatch):
    monkeypatch.setattr(qfl.load_task("multiplication").__class__, "baselines", {"paper": 1.0, "base_rate": 1.0})
    out = call("multiplication", width=160)[1]
    assert "carry_3 .. carry_16" in out
    assert "carry_4" not in out


def test_detail_as_json_is_complete(call):
    status, out, error = call("decimal_addition", "--length", 2, "--examples", 3, "--json")
    assert (status, error) == (0, "")
    found, task = json.loads(out), qfl.load_task("decimal_addition", 2)
    assert (found["task"], found["length"], found["lengths"], found["n_ctx"]) == ("decimal_addition", 2, [1, 18], 9)
    assert found["vocabulary"] == list(task.vocabulary)
    assert found["baselines"] == task.baselines
    assert [f["feature"] for f in found["features"]] == list(task.features)
    assert [f["by_default"] for f in found["features"]] == [True, False, False]
    assert len(found["examples"]) == 3
    for example in found["examples"]:
        raw = np.array([example["raw"]])
        batch = task.encode(raw)
        assert example["tokens"] == task.str_tokens(batch.tokens[0])
        assert example["loss_mask"] == batch.loss_mask[0].tolist()
        for name, shown in example["features"].items():
            assert shown["positions"] == task.features[name].positions(raw)[0].tolist()
            assert shown["labels"] == task.features[name].labels(raw)[0].tolist()


def test_options_are_shown_with_value_range_and_help(call):
    status, out, _ = call(
        "sparse_parity", "--length", 20, "--task-option", "k=4", "--task-option", "train_fraction=0.5", width=160
    )
    assert status == 0
    assert re.search(r"k +4 +\(an integer in \[2, 20\]; default 3\): how many bits are relevant", out)
    assert re.search(r"train_fraction +0.5 +\(a number in \[0, 0.99\]; default 0.75\)", out)
    found = json.loads(call("modular_addition", "--task-option", "p=31", "--json")[1])
    assert (found["length"], found["length_name"]) == (31, "p")
    assert found["options"][0] == {
        "option": "train_fraction", "value": 0.5, "default": 0.5, "rule": "a number in [0, 0.99]", "range": [0, 0.99],
        "help": "the share of all problems that training may see",
    }  # fmt: skip
    assert [(o["option"], o["value"]) for o in found["options"][1:]] == [("ordered", False), ("answer_only", False)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sparse_parity", "--task-option", "k"], "--task-option must be NAME=VALUE, got 'k'. Try --task-option k=4"),
        (["sparse_parity", "--task-option", "k=4", "--task-option", "k=5"], "must name an option once, got 'k' twice"),
        (["sparse_parity", "--task-option", "k=many"], "k of task 'sparse_parity' must be an integer in"),
        (["sparse_parity", "--task-option", "kay=4"], "no option of task 'sparse_parity' is named 'kay'"),
        (["--task-option", "k=4"], "--task-option needs a task"),
    ],
)
def test_a_bad_option_is_one_message(call, arguments, message):
    status, _, error = call(*arguments)
    assert status == 1
    assert message in " ".join(error.split())


def test_labels_and_positions_are_each_examples_own():
    """In a graph task the answer begins where the edges end."""
    task = qfl.load_task("breadth_first_search", 6)
    examples = _examples(task, 5, seed=0)
    raw = np.array([example["raw"] for example in examples])
    for name, feature in task.features.items():
        shown = [example["features"][name] for example in examples]
        assert [s["positions"] for s in shown] == feature.positions(raw).tolist()
        assert [s["labels"] for s in shown] == feature.labels(raw).tolist()
        assert len({s["positions"][0] for s in shown}) > 1


def test_the_list(call, monkeypatch):
    monkeypatch.setattr(registry, "task_names", lambda: QUICK)
    status, out, error = call()
    assert (status, error) == (0, "")
    assert "*" not in out.replace("a * b", "")
    (line,) = [line for line in out.splitlines() if line.startswith("modular_addition")]
    assert line.split() == ["modular_addition", "113", "5", "0..112", "+", "=", "(115)", "–", "4.7274"]
    assert max(map(len, out.splitlines())) <= 80
    assert "  cos_sum, sin_sum (+2)" in out
    wide = call(width=160)[1]
    (line,) = [line for line in wide.splitlines() if line.startswith("modular_addition")]
    assert line.rstrip().endswith("4.7274  cos_sum, sin_sum (+2)")


def test_a_long_vocabulary_leaves_the_names_on_the_page(call, monkeypatch):
    names = ["majority_of_majorities", "linear_regression"]
    monkeypatch.setattr(registry, "task_names", lambda: names)
    lines = call()[1].splitlines()
    assert [line.split()[0] for line in lines if line.startswith(tuple(names))] == names
    assert max(map(len, lines)) <= 80


def test_the_list_at_a_length_that_not_every_task_has(call, monkeypatch):
    monkeypatch.setattr(registry, "task_names", lambda: QUICK)
    out = call("--length", 100)[1]
    starts = {line.split()[0]: line.split()[1] for line in out.splitlines() if not line.startswith((" ", "*"))}
    assert [starts[name] for name in QUICK] == ["100", "3*", "100", "100"]
    assert "* cannot have length 100" in out
    rows = json.loads(call("--length", 100, "--json")[1])
    assert [(row["task"], row["length"], row["has_length"]) for row in rows] == [
        ("addition", 100, True), ("decimal_addition", 3, False), ("modular_addition", 100, True),
        ("sparse_parity", 100, True),
    ]  # fmt: skip


def test_a_broken_task_of_another_package_does_not_hide_the_rest(call, monkeypatch):
    load_task = registry.load_task

    def broken(name, length=None):
        if name == "theirs":
            raise qfl.QflError("entry point 'theirs' [red] cannot be loaded.")
        return load_task(name, length)

    monkeypatch.setattr(registry, "task_names", lambda: ["theirs", "addition"])
    monkeypatch.setattr(registry, "load_task", broken)
    status, out, error = call("--json")
    assert status == 0
    assert [row["task"] for row in json.loads(out)] == ["addition"]
    assert error == "warning: entry point 'theirs' [red] cannot be loaded.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decimal_adition"], "no task is named 'decimal_adition'. Did you mean 'decimal_addition'"),
        (["decimal_addition", "--length", "19"], "must be an integer in [1, 18], got 19"),
        (["--examples", "2"], "--examples needs a task: name one"),
    ],
)
def test_a_users_mistake_is_one_message(call, arguments, message):
    status, out, error = call(*arguments)
    assert status == 1
    assert out == ""
    assert message in " ".join(error.split())


@pytest.mark.parametrize(
    ("vocabulary", "short"),
    [
        (["0", "1", "+", "=", "<EOS>"], "0 1 + = <EOS> (5)"),
        ([*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "=", "<EOS>"], "A..Z = <EOS> (28)"),
        ([*map(str, range(113)), "+", "="], "0..112 + = (115)"),
        ([*"ABxyz", "9", "7"], "A B x..z 9 7 (7)"),
        (["+", ",", "-", "."], "+ , - . (4)"),
    ],
)
def test_short_vocabulary(vocabulary, short):
    assert short_vocabulary(vocabulary) == short
