"""Suites of hub repositories, through the real client and a server on this machine."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import huggingface_hub.constants as constants
import pytest
import torch
from helpers_hub import environment, hub_here, point_at

from qfl_interp.errors import QflError
from qfl_interp.plugins import warn
from qfl_interp.runs.hub.client import HubFile
from qfl_interp.runs.hub.sizes import wanted_files
from qfl_interp.runs.suite import Suite
from qfl_interp.runs.suite_file import open_suite_file, write_suite_file
from tests.helpers_suite import D_VOCAB, N_CTX, llama_config, neox_config, save_model, tiny_text_task

PYTHIA = {f"step{step}": noise for noise, step in enumerate((0, 1, 64, 512, 1000, 143_000))}
OLMO2 = {
    **{f"stage1-step{step}-tokens{round(step * 2.097152e-3)}B": n for n, step in enumerate((0, 30_000, 1_907_359))},
    "stage2-ingredient1-step1000-tokens3B": 3,
    "stage2-ingredient2-step1000-tokens3B": 4,
}


@pytest.fixture(scope="module")
def task():
    return tiny_text_task()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six checkpoints each of two families. Read only."""
    root = tmp_path_factory.mktemp("models")
    configs = {"neox": neox_config(), "llama": llama_config()}
    return {
        family: [save_model(config, root / f"{family}{number}", noise=0.1 * number) for number in range(6)]
        for family, config in configs.items()
    }


@pytest.fixture
def hub(tmp_path, folders):
    """Two repositories of suites, with the files that others keep beside a checkpoint."""
    with hub_here(tmp_path / "cache") as served:
        for repo, family, names in (("lab/pythia", "neox", PYTHIA), ("lab/olmo2", "llama", OLMO2)):
            served.repo(repo).commit("main", {"README.md": b"a card"})
            for name, number in names.items():
                served.repo(repo).commit_folder(name, folders[family][number])
            served.repo(repo).commit("step0", {"optimizer.pt": b"x" * 100_000, "tokenizer.json": b"{}"})
        del served.repos["lab/olmo2"].branches["step0"]
        warn.cache_clear()
        yield served


def tokens():
    return torch.randint(0, D_VOCAB, (3, N_CTX), generator=torch.Generator().manual_seed(0))


def logits(folder, task):
    """Of a folder, as `Suite.open` reads it."""
    source = Suite.open(folder.parent, task, pattern=f"{re.escape(folder.name)[:-1]}(\\d)").sources
    return source[int(folder.name[-1])].load()(tokens())


def test_every_revision_is_the_model_that_was_committed(hub, folders, task, tmp_path, capsys):
    suite = Suite.from_hub("lab/pythia", task, "all", out=tmp_path / "out", tokens_per_step=2_097_152)
    assert suite.steps == [0, 1, 64, 512, 1000, 143_000]
    sent = [one for one in hub.sent if "safetensors" in one]
    assert sent == []  # nothing was fetched yet but a configuration
    size = 6 * (folders["neox"][0] / "model.safetensors").stat().st_size
    said = capsys.readouterr().err
    assert re.search(r"lab/pythia: 6 of 6 revisions, steps 0 to 143000; ([\d.]+) kB to fetch, 0 revisions", said)
    assert float(re.search(r"([\d.]+) kB", said)[1]) == pytest.approx(size / 1000, rel=0.05)
    for step, folder in zip(suite.steps, folders["neox"], strict=True):
        assert torch.equal(suite.load_model(step)(tokens()), logits(folder, task))
    assert not any("optimizer" in one or "tokenizer" in one for one in hub.sent)
    assert suite.flops(10) == 6.0 * suite.n_parameters * 2_097_152 * 10
    assert suite.weights(64) == hub.repos["lab/pythia"].branches["step64"]
    Suite.from_hub("lab/pythia", task, "all", out=tmp_path / "out")
    assert "0 bytes to fetch, 6 revisions are in the cache" in capsys.readouterr().err
    assert pickle.loads(pickle.dumps(suite)).load_model(64) is not None


def test_steps_are_chosen_as_everywhere(hub, task, tmp_path, capsys):
    def steps(chosen):
        return Suite.from_hub("lab/pythia", task, chosen, out=tmp_path, progress=False).steps

    assert steps("log:3") == [0, 512, 143_000]
    assert steps("last") == [143_000]
    assert steps("1,64") == steps((64, 1)) == [1, 64]
    with pytest.raises(QflError, match=r"step 70 of lab/pythia is not on the hub. The nearest is 64; 6 steps lie bet"):
        steps([0, 70])
    assert capsys.readouterr().err == ""


def test_of_several_stages_the_first_is_taken_and_the_others_named(hub, folders, task, tmp_path, capsys):
    suite = Suite.from_hub("lab/olmo2", task, "all", out=tmp_path)
    assert suite.steps == [0, 30_000, 1_907_359]
    said = capsys.readouterr().err
    assert (
        "lab/olmo2 has several series: stage1 (3 revisions) is taken, and left out are stage2-ingredient1 (1)" in said
    )
    assert "2,100,000 tokens a step by their names" in said
    assert suite.tokens_per_step == 2_100_000
    assert suite.flops(30_000) == 6.0 * suite.n_parameters * 2_100_000 * 30_000
    other = Suite.from_hub("lab/olmo2", task, "all", out=tmp_path, stage="stage2-ingredient2")
    assert torch.equal(other.load_model(1000)(tokens()), logits(folders["llama"][4], task))
    assert other.run_id != suite.run_id
    assert suite.run_id.startswith("lab--olmo2--stage1-tiny_text-")
    with pytest.raises(QflError, match=r"has no series 'stage3'. Its series: stage1, stage2-ingredient1, stage2-ingr"):
        Suite.from_hub("lab/olmo2", task, out=tmp_path, stage="stage3")


def test_names_of_ones_own(hub, folders, task, tmp_path):
    for number, name in enumerate(("run-a.0005", "run-a.0010", "run-b.0005")):
        hub.repo("lab/own").commit_folder(name, folders["neox"][number])
    hub.repo("lab/own").tags["run-a.0020"] = hub.repo("lab/own").branches["run-b.0005"]
    with pytest.raises(QflError, match=r"no branch or tag of lab/own has a name that says a step; there are 4: 'run-a"):
        Suite.from_hub("lab/own", task, out=tmp_path)
    suite = Suite.from_hub("lab/own", task, out=tmp_path, pattern=r"run-(?P<stage>\w)\.(?P<step>\d+)")
    assert suite.steps == [5, 10, 20]
    assert torch.equal(suite.load_model(20)(tokens()), logits(folders["neox"][2], task))


def test_the_commits_of_one_branch(hub, folders, task, tmp_path):
    repo = hub.repo("lab/pico")
    for number, step in enumerate((0, 1000, 1000, 2000)):
        repo.commit_folder("tiny-1", folders["neox"][number], f"Saving HF Model -- Step {step}")
        repo.commit("tiny-1", {"fabric.pt": b"%d" % number}, f"Saving Fabric Checkpoint -- Step {step}")
    with pytest.raises(QflError, match=r"no branch or tag .* or history='main' where the commits of a branch are"):
        Suite.from_hub("lab/pico", task, out=tmp_path)
    suite = Suite.from_hub("lab/pico", task, "all", out=tmp_path, history="tiny-1")
    assert suite.steps == [0, 1000, 2000]
    for step, number in ((0, 0), (1000, 2), (2000, 3)):  # the newer commit of a step that was saved twice
        assert torch.equal(suite.load_model(step)(tokens()), logits(folders["neox"][number], task))


def test_a_step_twice(hub, folders, task, tmp_path):
    hub.repo("lab/pythia").commit_folder("step-64", folders["neox"][0])
    with pytest.raises(QflError, match=r"has step 64 twice: 'step64' and 'step-64', of other commits"):
        Suite.from_hub("lab/pythia", task, out=tmp_path)
    hub.repo("lab/pythia").branches["step-64"] = hub.repo("lab/pythia").branches["step64"]
    assert 64 in Suite.from_hub("lab/pythia", task, out=tmp_path).steps


def test_a_branch_that_moves_is_pinned_and_noticed(hub, folders, task, tmp_path, capsys):
    suite = Suite.from_hub("lab/pythia", task, [64], out=tmp_path)
    hub.repo("lab/pythia").commit_folder("step64", folders["neox"][5])
    del hub.repo("lab/pythia").branches["step512"]
    assert torch.equal(suite.load_model(64)(tokens()), logits(folders["neox"][2], task))
    again = Suite.from_hub("lab/pythia", task, [64], out=tmp_path)
    said = capsys.readouterr().err
    assert "1 of its revisions point to other commits: step64." in said
    assert "1 of its revisions are not there any more: step512." in said
    assert again.run_id == suite.run_id
    assert again.weights(64) != suite.weights(64)
    assert torch.equal(again.load_model(64)(tokens()), logits(folders["neox"][5], task))


def test_a_revision_that_vanished_is_named_and_the_others_stay_usable(hub, task, tmp_path, capsys):
    suite = Suite.from_hub("lab/pythia", task, [0, 64, 512], out=tmp_path, progress=False)
    repo = hub.repo("lab/pythia")
    del repo.commits[repo.branches["step64"]]
    with pytest.raises(
        QflError, match=r"fetching the configuration of 'step64' of lab/pythia failed: the revision is n"
    ):
        suite.load_model(64)
    assert suite.load_model(512)(tokens()).isfinite().all()
    suite = Suite.from_hub("lab/pythia", task, [0, 64, 512], out=tmp_path, fetch=True)
    said = capsys.readouterr().err
    assert "the size of 1 is unknown (step64)" in said
    assert "warning: fetching 'step64' of lab/pythia failed: the revision is not there any more" in said
    asked = len(hub.asked)
    assert suite.load_model(0)(tokens()).isfinite().all()
    assert len(hub.asked) == asked  # it was fetched


def test_repositories_that_cannot_be_read(hub, folders, task, tmp_path):
    def opened(repo, **settings):
        return Suite.from_hub(repo, task, out=tmp_path, progress=False, **settings)

    with pytest.raises(QflError, match=r"listing the revisions of lab/none failed: there is no such repository, or it"):
        opened("lab/none")
    with pytest.raises(QflError, match=r"listing the revisions of a/b/c failed: .* named like EleutherAI/pythia-70m"):
        opened("a/b/c")
    with pytest.raises(QflError, match=r"listing the commits of 'x' of lab/pythia failed: the revision is not there"):
        opened("lab/pythia", history="x")
    hub.repo("lab/pythia").gated = True
    with pytest.raises(QflError, match=r"fetching the configuration of 'step0' of lab/pythia failed: it is gated. Acc"):
        opened("lab/pythia")
    hub.repo("lab/empty").commit("step1", {"config.json": (folders["neox"][0] / "config.json").read_bytes()})
    with pytest.raises(QflError, match=r"lab/empty at 'step1' is no checkpoint that transformers reads: no weights"):
        opened("lab/empty").load_model(1)


def test_an_unreachable_hub_and_the_cache(hub, folders, task, tmp_path, monkeypatch):
    kept = Suite.from_hub("lab/olmo2", task, "all", out=tmp_path, progress=False)
    loaded = kept.load_model(0)(tokens())
    with monkeypatch.context() as patch:
        point_at(patch, "http://127.0.0.1:9", tmp_path / "cache")
        with pytest.raises(
            QflError, match=r"listing .* lab/olmo2 failed: the hub cannot be reached .*HF_HUB_OFFLINE=1"
        ):
            Suite.from_hub("lab/olmo2", task, out=tmp_path)
        assert torch.equal(kept.load_model(0)(tokens()), loaded)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        suite = Suite.from_hub("lab/olmo2", task, "all", out=tmp_path)
        assert torch.equal(suite.load_model(0)(tokens()), loaded)
        assert suite.steps == [0]
        assert suite.run_id == kept.run_id  # its tokens are those of the whole listing, which `out` remembers
        with pytest.raises(QflError, match=r"step 1907359 of lab/olmo2 is not in the cache of this machine"):
            Suite.from_hub("lab/olmo2", task, [1_907_359], out=tmp_path)
        with pytest.raises(QflError, match=r"the cache of this machine holds no revision of lab/pythia"):
            Suite.from_hub("lab/pythia", task, out=tmp_path)


def test_safetensors_come_before_pickles():
    def wanted(*names):
        return [file.name for file in wanted_files([HubFile(name, 1, name) for name in names])]

    both = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "training_args.bin"]
    assert wanted(*both) == ["config.json", "model.safetensors"]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    sharded = [*shards, "model.safetensors.index.json"]
    assert sorted(wanted("pytorch_model.bin", *sharded)) == sorted(sharded)
    assert wanted("pytorch_model.bin", "optimizer.bin") == ["pytorch_model.bin"]
    pickled = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
    assert sorted(wanted(*pickled)) == pickled


def test_sharded_weights_are_fetched_and_pickled_ones_named(hub, folders, task, tmp_path, capsys):
    repo = hub.repo("lab/shards")
    target = tmp_path / "sharded"
    model = Suite.open(folders["neox"][1].parent, task, pattern=r"neox(\d)").sources[1].load_pretrained()
    model.save_pretrained(target, max_shard_size="4KB")
    assert len(list(target.glob("*.safetensors"))) > 1
    repo.commit_folder("step5", target)
    shutil.rmtree(target)
    shutil.copytree(folders["neox"][2], target)
    torch.save(model.state_dict(), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    repo.branches.pop("main", None)
    repo.commit_folder("step6", target)
    suite = Suite.from_hub("lab/shards", task, "all", out=tmp_path / "out")
    assert torch.equal(suite.load_model(5)(tokens()), logits(folders["neox"][1], task))
    assert "pickled" not in capsys.readouterr().err
    assert torch.equal(suite.load_model(6)(tokens()), logits(folders["neox"][1], task))
    assert "weights of lab/shards at 'step6' are pickled (.bin)" in capsys.readouterr().err


@pytest.mark.slow
def test_another_process_finds_the_hub_through_its_environment(hub, folders, task, tmp_path):
    """What `HF_ENDPOINT` does is decided when the client is imported."""
    script = """
import json, sys, torch
from qfl_interp.runs.suite import Suite
from tests.helpers_suite import tiny_text_task
suite = Suite.from_hub("lab/pythia", tiny_text_task(), "log:2", out=sys.argv[1], fetch=True)
print(json.dumps([suite.steps, suite.run_id, float(suite.load_model("last")(torch.arange(8)[None]).detach().sum())]))
"""
    values = os.environ | environment(hub.url, tmp_path / "other")
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")], env=values, capture_output=True, text=True, check=True
    )
    steps, run_id, total = json.loads(ran.stdout)
    suite = Suite.from_hub("lab/pythia", task, "log:2", out=tmp_path / "out", progress=False)
    assert (steps, run_id) == (suite.steps, suite.run_id)
    assert total == pytest.approx(float(suite.load_model("last")(torch.arange(8)[None]).detach().sum()), abs=1e-4)
    assert "lab/pythia: 2 of 6 revisions" in ran.stderr


def test_a_suite_file_names_a_repository_and_the_steps_there_were(hub, folders, task, tmp_path, capsys):
    dataset = task.save(tmp_path / "text.safetensors")
    written = write_suite_file(
        tmp_path / "olmo.suite", repo="lab/olmo2", dataset=dataset, steps="log:2", stage="stage1"
    )
    hub.repo("lab/olmo2").commit_folder("stage1-step5000-tokens10B", folders["llama"][5])
    capsys.readouterr()
    opened = open_suite_file(tmp_path / "olmo.suite")
    assert (opened.run_id, opened.steps) == (written.run_id, written.steps) == (opened.run_id, [0, 1_907_359])
    assert "to fetch" not in capsys.readouterr().err  # it was said when the file was written


def test_flops_of_a_batch_that_grew_are_those_of_the_names(hub, folders, task, tmp_path):
    for number, name in enumerate(("step0-tokens0B", "step1000-tokens2B", "step3000-tokens20B")):
        hub.repo("lab/grown").commit_folder(name, folders["neox"][number])
    suite = Suite.from_hub("lab/grown", task, "all", out=tmp_path / "out", progress=False)
    per_token = 6 * suite.n_parameters
    assert [suite.flops(step) for step in suite.steps] == [0, per_token * 2e9, per_token * 20e9]
    assert suite.flops(2000) == per_token * 11e9
