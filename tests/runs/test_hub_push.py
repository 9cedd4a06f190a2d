"""Runs on the hub: pushed, listed, pulled, through the real client and a server on this machine."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers_hub import hub_here
from typer.testing import CliRunner

from qfl_interp.cli.main import build_app
from qfl_interp.errors import QflError
from qfl_interp.runs.hub.pull import pull_run
from qfl_interp.runs.hub.push import plan_push, push_run
from qfl_interp.runs.run import Run
from qfl_interp.runs.suite import Suite
from tests.helpers_suite import neox_config, save_model, tiny_text_task

# The client gives its HTTP library a large file in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")


@pytest.fixture
def hub(tmp_path):
    with hub_here(tmp_path / "cache") as served:
        yield served


def push(run, **settings):
    return push_run(run, "me/add6", progress=False, **settings)


def pull(out, **settings):
    return pull_run("me/add6", out, progress=False, **settings)


def test_a_run_comes_back_as_it_was(hub, tiny_run, tmp_path):
    sent = push(tiny_run)
    repo = hub.repos["me/add6"]
    assert repo.private
    assert set(repo.branches) == {"main", *(f"step{step}" for step in tiny_run.steps)}
    assert set(repo.commits[repo.branches["step40"]].files) >= {"config.json", "task.json", "model.safetensors"}
    assert [plan.branch for plan in sent] == ["main", *(f"step{step}" for step in tiny_run.steps)]

    run = pull(tmp_path / "pulled")
    assert (run.run_id, run.steps) == (tiny_run.run_id, tiny_run.steps)
    batch = tiny_run.task.encode(tiny_run.task.sample(np.random.default_rng(0), 4))
    for step in (0, tiny_run.steps[3], 40):
        assert torch.equal(run.load_model(step)(batch.tokens), tiny_run.load_model(step)(batch.tokens))
    assert run.metrics.equals(tiny_run.metrics)
    assert run.provenance == tiny_run.provenance
    found = run.verify()
    assert (found.problems, found.finished, found.unchecked) == ((), True, ())


def test_some_checkpoints_and_then_the_others(hub, tiny_run, tmp_path):
    push(tiny_run)
    run = pull(tmp_path / "some", steps="log:2")
    assert run.steps == [0, 40]
    assert run.verify().problems == ()
    asked = len(hub.sent)
    assert pull(tmp_path / "some").steps == tiny_run.steps
    assert sum("safetensors" in one for one in hub.sent[asked:]) == len(tiny_run.steps) - 2
    assert not list((tmp_path / "some" / "checkpoints").glob(".*"))
    with pytest.raises(QflError, match=r"step 41 of me/add6 is not on the hub. The nearest is 40"):
        pull(tmp_path / "some", steps="41")


def test_the_card_says_what_the_run_is(hub, tiny_run):
    push(tiny_run, public=True)
    repo = hub.repos["me/add6"]
    assert not repo.private
    card = repo.commits[repo.branches["main"]].files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: qfl_interp\n")
    last = tiny_run.metrics.dropna(subset=["val_loss"]).iloc[-1]
    for line in (
        f"# {tiny_run.run_id}",
        "| task | addition, length 6 |",
        f"| parameters | {sum(p.numel() for p in tiny_run.load_model().parameters()):,} |",
        f"| checkpoints | {len(tiny_run.steps)}, of steps 0 to 40 |",
        "| training | 40 steps, finished |",
        f"| val_loss | {last.val_loss:.4g} |",
        f"| nominal FLOPs | {last.flops:.4g} |",
        "qfl pull me/add6 runs/add6",
    ):
        assert line in card
    assert json.loads(card.split("```json\n")[1].split("```")[0])["train"]["seed"] == 3


def test_a_push_that_was_stopped_goes_on(hub, tiny_run, tmp_path):
    hub.repo("me/add6").commit("main", {".gitattributes": b""})
    hub.fail_after = 3
    with pytest.raises(QflError, match=r"sending 'step\d+' to me/add6 failed: the hub answered 500"):
        push(tiny_run)
    hub.fail_after = None
    left = [plan for plan in plan_push(tiny_run, "me/add6") if plan.files]
    assert len(left) == len(tiny_run.steps) - 2
    assert [plan.branch for plan in push(tiny_run) if plan.files] == [plan.branch for plan in left]
    assert pull(tmp_path / "pulled").verify().problems == ()
    asked = len(hub.asked)
    assert not any(plan.files for plan in push(tiny_run))
    assert not any(one.startswith(("POST", "PUT")) for one in hub.asked[asked:])


def test_nothing_of_another_run_is_replaced(hub, run_copy, tiny_run, tmp_path):
    push(tiny_run, steps="0,40")
    repo = hub.repos["me/add6"]
    weights = repo.commits[repo.branches["step40"]].files["model.safetensors"]
    repo.commit("step40", {"model.safetensors": weights[:-1] + b"x"})
    with pytest.raises(QflError, match=r"me/add6 holds other weights of step 40 \(model.safetensors of the branch 's"):
        push(tiny_run)
    repo.commit("main", {"config.json": b"{}"})
    with pytest.raises(QflError, match=r"me/add6 holds another run \(config.json of the branch 'main'\). Nothing was"):
        push(tiny_run)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").touch()
    repo.commit("main", {"config.json": (tiny_run.path / "config.json").read_bytes()})
    with pytest.raises(QflError, match=r"else is not empty and holds no run"):
        pull(tmp_path / "else")
    text = (run_copy.path / "config.json").read_text()
    (run_copy.path / "config.json").write_text(text + "\n")
    with pytest.raises(QflError, match=r"copy holds another run than me/add6"):
        pull(run_copy.path)


def test_damage_is_neither_pushed_nor_pulled(hub, run_copy, checkpoint_file, tmp_path):
    data = bytearray(checkpoint_file.read_bytes())
    data[-1] ^= 1
    checkpoint_file.write_bytes(data)
    with pytest.raises(QflError, match=r"model.safetensors does not match its checksum"):
        push(run_copy)
    step = run_copy.steps[2]
    assert f"step{step}" not in hub.repos["me/add6"].branches
    data[-1] ^= 1
    checkpoint_file.write_bytes(data)
    push(run_copy)
    repo = hub.repos["me/add6"]
    data[-1] ^= 1
    repo.commit(f"step{step}", {"model.safetensors": bytes(data)})
    with pytest.raises(QflError, match=r"model.safetensors does not match its checksum"):
        pull(tmp_path / "pulled")
    run = Run.open(tmp_path / "pulled")
    assert run.steps == run_copy.steps[:2]
    assert run.load_model(0) is not None


def test_suites_and_runs_are_told_apart(hub, tiny_run, tmp_path):
    push(tiny_run)
    with pytest.raises(QflError, match=r"me/add6 holds a run of this library. Fetch it with `qfl pull me/add6 FOLDER`"):
        Suite.from_hub("me/add6", tiny_text_task(), out=tmp_path / "out", progress=False)
    folder = save_model(neox_config(), tmp_path / "model")
    hub.repo("lab/suite").commit_folder("main", folder)
    with pytest.raises(QflError, match=r"lab/suite holds no run of this library: it has no branch step0"):
        pull_run("lab/suite", tmp_path / "pulled")
    hub.repo("lab/suite").commit_folder("step1", folder)
    with pytest.raises(QflError, match=r"lab/suite holds no run of this library, but a model. Suite.from_hub"):
        pull_run("lab/suite", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_from_the_command_line(hub, tiny_run, tmp_path):
    def qfl(*words):
        result = CliRunner().invoke(build_app(), [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    rows = qfl("push", tiny_run.path, "me/add6", "--dry-run", "--json")
    assert hub.repos == {}
    assert [row["branch"] for row in rows] == ["main", *(f"step{step}" for step in tiny_run.steps)]
    weights = tiny_run.path / "checkpoints" / "step_00000040" / "model.safetensors"
    assert weights.stat().st_size < rows[-1]["bytes"] < 2 * weights.stat().st_size + 10_000
    assert qfl("push", tiny_run.path, "me/add6", "--json") == rows
    assert all(row["files"] == "all there" for row in qfl("push", tiny_run.path, "me/add6", "--dry-run", "--json"))
    found = qfl("pull", "me/add6", tmp_path / "pulled", "--steps", "last", "--json")
    assert found == {"path": str(tmp_path / "pulled"), "run_id": tiny_run.run_id, "steps": [40]}
