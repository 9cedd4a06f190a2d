"""Suite files: what `qfl suite open` writes, every command takes; what is wrong with one is named."""

from __future__ import annotations

import json
import shutil

import pytest

import qfl_interp as qfl
from qfl_interp.runs.opening import open_checkpoints
from tests.cli.test_cli import call as call
from tests.helpers_suite import neox_config, save_model, save_tiny_neox, tiny_text_task

PROBES = ["--n-train", "60", "--n-test", "40", "--quiet"]
STEPS = [0, 10, 20, 40, 100]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints of another training, and a dataset."""
    folder = tmp_path_factory.mktemp("suites")
    save_tiny_neox(folder / "checkpoints", tuple(STEPS))
    tiny_text_task().save(folder / "text.safetensors")
    return folder


@pytest.fixture
def opened(call, place):
    """A suite file, new in each test; tables stay."""
    status, out, error = call(
        "suite", "open", place / "checkpoints", "--dataset", place / "text.safetensors", "--out", place / "my.suite"
    )
    assert (status, error) == (0, "")
    assert "qfl timeline" in out
    return place / "my.suite"


def test_a_suite_file_opens_the_same_suite_wherever_the_folder_goes(opened, place, tmp_path):
    suite = open_checkpoints(opened)
    direct = qfl.Suite.open(place / "checkpoints", tiny_text_task())
    assert (suite.path, suite.run_id, suite.steps) == (direct.path, direct.run_id, STEPS)
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    assert open_checkpoints(moved / "my.suite").path.is_relative_to(moved)


def test_commands_take_a_suite_file_like_a_run(call, opened, place):
    status, out, _ = call("validate", opened, "--quiet", "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["step"] for row in rows] == STEPS
    assert {"val_loss", "val_loss_answer", "val_exact", "val_pass", "n_val"} <= rows[0].keys()
    status, out, _ = call("probe", opened, "odd", *PROBES, "--json")
    assert status == 0
    assert {row["feature"] for row in json.loads(out)} == {"odd"}
    status, out, _ = call("emergence", opened, "odd", *PROBES, "--n-resamples", "20", "--json")
    assert status == 0
    assert all(row["transition_reason"] and "onset_step" in row for row in json.loads(out))
    page = place / "report.html"
    status, _, error = call("report", opened, "odd", *PROBES, "--n-trials", "2", "--out", page)
    assert (status, error) == (0, "")
    text = page.read_text()
    assert "training step" in text
    assert "Compute</strong> of these checkpoints is not known" in text
    status, out, error = call("explore", opened, "-c", "print(run.steps, tuple(logits.shape[1:]))")
    assert (status, out.strip()) == (0, f"{STEPS} (10, 12)")
    status, out, _ = call("runs", place)
    assert status == 0
    assert "suite of checkpoints" in out
    assert "unreadable" not in out
    status, out, _ = call("verify", opened)
    assert status == 0
    assert "5 checkpoints have weights" in out


def test_verify_finds_a_damaged_table(call, opened, place):
    call("probe", opened, "odd", *PROBES)
    (part, *_) = sorted(open_checkpoints(opened).path.glob("analyses/probe/*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-40])
    status, out, _ = call("verify", opened)
    part.write_bytes(whole)
    assert status == 1
    assert part.name in " ".join(out.split()).replace("\n", "")


def test_a_registered_task_instead_of_a_dataset(call, place, tmp_path):
    save_model(neox_config(vocab_size=40, max_position_embeddings=40), tmp_path / "run" / "step5")
    at = ["suite", "open", tmp_path / "run", "--out", tmp_path / "a.suite"]
    status, out, _ = call(*at, "--task", "addition", "--length", "6", "--tokens-per-step", "100", "--json")
    assert (status, json.loads(out)["steps"]) == (0, [5])
    suite = open_checkpoints(tmp_path / "a.suite")
    assert (suite.task.name, suite.task.length) == ("addition", 6)
    assert suite.flops(5) > 0


def test_what_is_wrong_with_a_suite_is_said(call, opened, place, tmp_path):
    """One message each, exit status 1, and no suite file."""
    good = ["--dataset", place / "text.safetensors", "--out", tmp_path / "new.suite"]
    (tmp_path / "empty").mkdir()
    wrong = {
        "no step folder": [tmp_path / "empty", *good],
        "is no folder": [tmp_path / "none", *good],
        "either --dataset FILE or --task NAME": [place / "checkpoints", "--out", tmp_path / "new.suite"],
        "a dataset has its own": [place / "checkpoints", *good, "--length", "4"],
        "are of a hub repository": [place / "checkpoints", *good, "--steps", "1,2"],
        "steps must be 'all'": ["owner/name", *good, "--steps", "a"],
        "has 10 tokens in a sequence, but the model": [
            save_model(neox_config(max_position_embeddings=8), tmp_path / "short" / "step1").parent, *good
        ],
    }  # fmt: skip
    for message, arguments in wrong.items():
        status, _, error = call("suite", "open", *arguments)
        assert status == 1, message
        assert message in " ".join(error.split())
    assert not (tmp_path / "new.suite").exists()


def test_a_suite_file_that_is_not_as_it_was_is_said(call, opened, place, tmp_path):
    values = json.loads(opened.read_text())

    def said(changed: str) -> str:
        opened.write_text(changed)
        status, _, error = call("probe", opened, "odd", *PROBES)
        assert status == 1
        return " ".join(error.split())

    assert "cannot be read" in said("{")
    assert "must hold an object" in said("[]")
    assert "no suite file of this version" in said(json.dumps(values | {"version": 2}))
    assert "does not take: ['build']" in said(json.dumps(values | {"build": "os.system"}))
    assert "names neither a dataset nor a task" in said(json.dumps({k: v for k, v in values.items() if k != "dataset"}))
    tiny_text_task(200).save(place / "text.safetensors")
    assert "is another dataset than when" in said(json.dumps(values))
    tiny_text_task().save(place / "text.safetensors")


def test_checkpoints_without_a_suite_file_say_what_to_do(call, place, tmp_path):
    for folder in (place / "checkpoints", place / "checkpoints" / "step10"):
        status, _, error = call("timeline", folder)
        assert status == 1
        assert f"`qfl suite open {folder} --dataset FILE --out my.suite`" in " ".join(error.split())
    status, _, error = call("timeline", tmp_path)
    assert (status, "is no run: it has no config.json" in " ".join(error.split())) == (1, True)
    with pytest.raises(qfl.QflError, match="is no run: it is a file"):
        qfl.Run.open(place / "text.safetensors")
