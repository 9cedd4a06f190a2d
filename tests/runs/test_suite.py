"""A series of Hugging Face checkpoints: finding the steps, loading, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM, T5Config, T5ForConditionalGeneration
from transformers.utils import logging as hf_logging

from qfl_interp.data.fixed_task import FixedTask
from qfl_interp.data.registry import load_task
from qfl_interp.errors import QflError
from qfl_interp.models.hooks import Site, read_activations
from qfl_interp.models.hugging_face import quiet
from qfl_interp.runs.series import Checkpoints
from qfl_interp.runs.suite import Suite
from tests.helpers_suite import D_VOCAB, N_CTX, llama_config, neox_config, save_model, save_tiny_neox, tiny_text_task

STEPS = (0, 10, 100)


@pytest.fixture(scope="module")
def task():
    return tiny_text_task()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Read only: tests that write take `copy`."""
    return save_tiny_neox(tmp_path_factory.mktemp("suite") / "tiny", STEPS)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "tiny")


def tokens():
    return torch.randint(0, D_VOCAB, (3, N_CTX), generator=torch.Generator().manual_seed(0))


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_every_step_is_the_model_that_was_saved(folder, task):
    suite = Suite.open(folder, task)
    assert isinstance(suite, Checkpoints)
    assert suite.steps == suite.resolve_steps("all") == list(STEPS)
    assert suite.resolve_steps("last") == [100]
    outputs = []
    for step in STEPS:
        with quiet(), torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(folder / f"step{step}", attn_implementation="eager")
            expected = expected.eval()(tokens()).logits
        model = suite.load_model(step)
        assert torch.equal(model(tokens()), expected)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        outputs.append(expected)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-2)
    assert torch.equal(suite.load_model()(tokens()), outputs[2])
    with pytest.raises(QflError, match=r"step 11 of .*tiny.* was not saved. The nearest saved step is 10; 3 steps"):
        suite.load_model(11)


@pytest.mark.parametrize(
    "names",
    [
        ("step0", "step20", "step3"),
        ("step_000", "step_020", "step_003"),
        ("step-0", "step-20", "step-3"),
        ("checkpoint-0", "checkpoint-20", "checkpoint-3"),
        ("iter_0", "global_step20", "ckpt-3"),
    ],
    ids=lambda names: names[0],
)
def test_steps_come_from_the_folders_names(folder, task, tmp_path, names):
    for name in names:
        (tmp_path / name).symlink_to(folder / "step0")
    for other in ("logs", "stepwise", "mystep5", "step5.old"):
        (tmp_path / other).mkdir()
    (tmp_path / "step7").write_text("a file")
    assert Suite.open(tmp_path, task).steps == [0, 3, 20]


def test_other_names_through_a_pattern(folder, task, tmp_path):
    for name in ("tokens-5B", "tokens-1B", "step3"):
        (tmp_path / name).symlink_to(folder / "step0")
    assert Suite.open(tmp_path, task, pattern=r"tokens-(\d+)B").steps == [1, 5]
    for pattern in (r"tokens-\d+B", r"(tokens)-\d+B"):
        with pytest.raises(ValueError, match=r"first group that matches the step's digits.*'tokens-1B'"):
            Suite.open(tmp_path, task, pattern=pattern)


def test_names_and_tables(folder, task, tmp_path):
    suite, again = Suite.open(folder, task), Suite.open(str(folder), tiny_text_task())
    assert suite.run_id.startswith("tiny-tiny_text-")
    assert suite.run_id == again.run_id
    assert suite.path == folder / "qfl_interp" / suite.run_id
    assert suite.table("probe").folder == suite.path / "analyses" / "probe"
    assert Suite.open(folder, task, out=tmp_path).path == tmp_path / suite.run_id
    assert suite.identity() == {"run_id": suite.run_id, "config_hash": suite.config_hash, "seed": 0}
    # Tables of another dataset, or of a registered task, are others.
    shorter, addition = tiny_text_task(200), load_task("addition", length=3)
    others = {Suite.open(folder, t).run_id for t in (shorter, addition, load_task("addition", length=2))}
    assert len(others | {suite.run_id}) == 4
    assert {Suite.open(folder, t).config_hash for t in (shorter, addition)} == {suite.config_hash}
    larger = save_model(neox_config(intermediate_size=32), tmp_path / "tiny" / "step0").parent
    assert Suite.open(larger, task).config_hash != suite.config_hash


def test_flops(folder, task):
    suite = Suite.open(folder, task, tokens_per_step=1000)
    with quiet():
        n = sum(p.numel() for p in GPTNeoXForCausalLM(neox_config()).parameters())
    assert suite.n_parameters == n
    assert suite.flops(10) == 6.0 * n * 1000 * 10
    assert suite.flops(0) == 0
    assert math.isnan(Suite.open(folder, task).flops(10))


def test_untrained_models(folder, task):
    suite = Suite.open(folder, task)
    (one, seed), (same, _), (other, other_seed) = (suite.untrained_model(i) for i in (0, 0, 1))
    assert same_weights(one, same)
    assert not same_weights(one, other)
    assert seed != other_seed
    assert Suite.open(folder, task, seed=1).untrained_model(0)[1] != seed
    assert not one.training
    with quiet():
        torch.manual_seed(seed)
        reference = AutoModelForCausalLM.from_config(neox_config(), attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(one(tokens()), reference(tokens()).logits)


def test_loading_is_quiet_and_leaves_the_globals_alone(folder, task, capfd):
    hf_logging.enable_progress_bar()
    state, verbosity = torch.get_rng_state(), hf_logging.get_verbosity()
    suite = Suite.open(folder, task)
    suite.load_model(10)
    suite.untrained_model(0)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert (hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()) == (True, verbosity)


def test_other_architectures(task, tmp_path):
    save_model(llama_config(), tmp_path / "step0")
    suite = Suite.open(tmp_path, task)
    z = Site(1, "z")
    assert read_activations(suite.load_model(), tokens(), [z])[z].shape == (3, N_CTX, 2, 8)


# Pickling


def test_a_pickled_suite_opens_again(folder, task, tmp_path):
    for chosen in (task, load_task("addition", length=3)):
        suite = Suite.open(folder, chosen, out=tmp_path, seed=3, tokens_per_step=7)
        other = pickle.loads(pickle.dumps(suite))
        assert (other.identity(), other.path, other.flops(10)) == (suite.identity(), suite.path, suite.flops(10))
        assert torch.equal(other.load_model(10)(tokens()), suite.load_model(10)(tokens()))
        rows = chosen.sample(np.random.default_rng(0), 5)
        assert torch.equal(other.task.encode(rows).tokens, chosen.encode(rows).tokens)


class Mine(type(load_task("addition", length=3))):
    """A task of one's own under a name that is taken."""


def test_a_task_of_ones_own_goes_to_another_process_and_has_tables_of_its_own(folder):
    suite = Suite.open(folder, Mine(3))
    assert type(pickle.loads(pickle.dumps(suite)).task) is Mine
    assert suite.run_id != Suite.open(folder, load_task("addition", length=3)).run_id


# The hub


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub cache as a download leaves it, and no network."""
    repo = tmp_path / "models--lab--tiny"
    for step in STEPS:
        commit = f"{step:040d}"
        shutil.copytree(folder / f"step{step}", repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / f"step{step}").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for module in [m for name, m in sys.modules.items() if name.startswith("transformers.")]:
        if "TRANSFORMERS_CACHE" in vars(module):
            monkeypatch.setattr(module, "TRANSFORMERS_CACHE", str(tmp_path))


@pytest.mark.usefixtures("hub")
def test_revisions_of_a_repository(folder, task, tmp_path):
    suite = Suite.from_hub("lab/tiny", task, (100, 0, 10), out=tmp_path / "out", tokens_per_step=2_097_152)
    local = Suite.open(folder, task)
    assert suite.steps == list(STEPS)
    assert suite.run_id.startswith("lab--tiny-tiny_text-")
    assert suite.config_hash == local.config_hash
    for step in STEPS:
        assert torch.equal(suite.load_model(step)(tokens()), local.load_model(step)(tokens()))
    assert pickle.loads(pickle.dumps(suite)).run_id == suite.run_id


@pytest.mark.usefixtures("hub")
def test_pickled_weights_of_a_revision_are_named_too(task, tmp_path, capsys):
    suite = Suite.from_hub("lab/tiny", task, (0, 10), out=tmp_path / "out", progress=False)
    suite.load_model(10)
    assert capsys.readouterr().err == ""
    (weights,) = (tmp_path / "models--lab--tiny" / "snapshots" / f"{10:040d}").glob("*.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    suite.load_model(10)
    suite.load_model(0)
    assert capsys.readouterr().err.count("weights of lab/tiny at 'step10' are pickled (.bin)") == 1


@pytest.mark.usefixtures("hub")
def test_revisions_that_are_not_there(task, tmp_path):
    with pytest.raises(QflError, match=r"step 5 of lab/tiny is not in the cache of this machine. The nearest is 0; 3 "):
        Suite.from_hub("lab/tiny", task, (0, 5), out=tmp_path / "out")
    with pytest.raises(QflError, match="the cache of this machine holds no revision of lab/none with a step"):
        Suite.from_hub("lab/none", task, [0], out=tmp_path)


# What is refused


def test_no_steps(task, tmp_path):
    with pytest.raises(QflError, match=r"no step folder. Expected names like step0, step_1000, .*checkpoint-500"):
        Suite.open(tmp_path, task)
    with pytest.raises(QflError, match="is no folder"):
        Suite.open(tmp_path / "none", task)


def test_a_step_twice(copy, task):
    shutil.copytree(copy / "step10", copy / "step_0010")
    with pytest.raises(QflError, match=r"has step 10 twice: step10 and step_0010"):
        Suite.open(copy, task)


def test_half_written_steps_are_named(copy, task):
    (copy / "step0" / "model.safetensors").unlink()
    (copy / "step0" / "training_args.bin").write_bytes(b"what a trainer leaves")
    (copy / "step10" / "config.json").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (copy / "step100" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = r"step0 \(no weights\), step10 \(no config.json\), step100 \(no model-1.safetensors\)"
    with pytest.raises(QflError, match=found):
        Suite.open(copy, task)
    (copy / "step100" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(QflError, match=r"step100 \(unreadable model.safetensors.index.json\)"):
        Suite.open(copy, task)


def test_other_configurations_between_steps(copy, task):
    save_model(neox_config(intermediate_size=32), copy / "step10")
    with pytest.raises(QflError, match=r"step0 and .*step10 differ in intermediate_size: 24 and 32"):
        Suite.open(copy, task)
    shutil.rmtree(copy / "step10")
    save_model(llama_config(), copy / "step10")
    with pytest.raises(QflError, match=r"differ in .*architectures: \['GPTNeoXForCausalLM'\] and \['LlamaForCausalLM"):
        Suite.open(copy, task)


def test_a_step_that_changes_after_opening(copy, task):
    suite = Suite.open(copy, task)
    save_model(neox_config(intermediate_size=32), copy / "step10")
    with pytest.raises(QflError, match="differ in intermediate_size"):
        suite.load_model(10)
    assert suite.load_model(100)(tokens()).shape == (3, N_CTX, D_VOCAB)


def test_incidental_differences_are_none(copy, task):
    path = copy / "step10" / "config.json"
    changed = json.loads(path.read_text()) | {"transformers_version": "4.0.0", "dtype": "float16", "use_cache": False}
    path.write_text(json.dumps(changed))
    assert {p.dtype for p in Suite.open(copy, task).load_model(10).parameters()} == {torch.float32}


@pytest.mark.parametrize("damage", ["truncated", "absent", "misshapen"])
def test_damaged_weights_are_refused(copy, task, damage):
    path = copy / "step10" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "mlp" in name)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "absent":
        save_file({k: v for k, v in tensors.items() if k != name}, path, metadata={"format": "pt"})
    else:
        save_file(tensors | {name: torch.zeros(3)}, path, metadata={"format": "pt"})
    suite = Suite.open(copy, task)
    message = f"lacks or misshapes 1: {name}" if damage == "absent" else "step10 cannot be loaded"
    with pytest.raises(QflError, match=message):
        suite.load_model(10)
    assert suite.load_model(100)(tokens()).isfinite().all()


def test_a_task_that_does_not_fit(folder):
    long = np.zeros((2, N_CTX + 1), dtype=int)
    mask = np.arange(N_CTX + 1)[None].repeat(2, axis=0) > 0
    with pytest.raises(QflError, match=r"'long' has 17 tokens in a sequence, but the model of .*step0 takes 16"):
        Suite.open(folder, FixedTask("long", long, mask, {}))
    with pytest.raises(QflError, match=r"'many' has 13 token ids, but the model of .*step0 takes 12"):
        Suite.open(folder, FixedTask("many", long[:, :5] + 12, mask[:, :5], {}))
    Suite.open(folder, FixedTask("fits", long[:, :N_CTX] + 11, mask[:, :N_CTX], {}))


def test_models_that_cannot_be_used_say_why(copy, task, tmp_path):
    sizes = {"vocab_size": 40, "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    with quiet():
        T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5" / "step0")
    with pytest.raises(QflError, match=r"step0 cannot be loaded: ValueError: Unrecognized configuration.*T5"):
        Suite.open(tmp_path / "t5", task).load_model()
    for step in STEPS:
        path = copy / f"step{step}" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mine"}))
    with pytest.raises(QflError, match=r"step0 is no model that transformers knows.*mine"):
        Suite.open(copy, task)
    path.write_text("{")
    with pytest.raises(QflError, match=r"configuration of .*step100 cannot be read"):
        Suite.open(copy, task, pattern="step(100)")


@pytest.mark.parametrize("named", ["sdpa", "flash_attention_2"])
def test_attention_that_a_checkpoint_names_is_not_used(folder, copy, task, tmp_path, named):
    for file in copy.glob("*/config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_attn_implementation": named}))
    suite, plain = Suite.open(copy, task), Suite.open(folder, task, out=tmp_path / "out")
    assert suite.sources[10].config()._attn_implementation == "eager"
    assert suite.run_id == plain.run_id
    assert suite.load_model(10).original_model.config._attn_implementation == "eager"
    assert suite.untrained_model(0)[0].original_model.config._attn_implementation == "eager"
    assert torch.equal(suite.load_model(10)(tokens()), plain.load_model(10)(tokens()))


def test_pickled_weights_are_named_once(copy, task, capsys):
    suite = Suite.open(copy, task)
    suite.load_model(10)
    assert capsys.readouterr().err == ""
    weights = load_file(copy / "step10" / "model.safetensors")
    torch.save(weights, copy / "step10" / "pytorch_model.bin")
    (copy / "step10" / "model.safetensors").unlink()
    for _ in range(2):
        suite.load_model(10)
    said = capsys.readouterr().err
    assert said.count("are pickled (.bin)") == 1
    assert "step10" in said
