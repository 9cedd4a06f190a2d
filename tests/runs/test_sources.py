"""Suites of what others saved: state dicts of any model, files named by step, models in memory."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.models.hugging_face import quiet
from qfl_interp.models.tl_version import HookedTransformer, HookedTransformerConfig, HookPoint
from qfl_interp.runs.suite import Suite
from tests.helpers_suite import D_VOCAB, N_CTX, neox_config, save_model, save_tiny_neox, tiny_text_task

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
STEPS = (0, 10)
QUICK = {"config": qfl.ProbeConfig(n_train=60, n_test=30), "progress": False}


def lens_config(**changes) -> HookedTransformerConfig:
    sizes = {"n_layers": 2, "d_model": 16, "n_ctx": N_CTX, "d_head": 8, "n_heads": 2, "d_vocab": D_VOCAB}
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 8}
    return HookedTransformerConfig(**{**sizes, **rotary, "act_fn": "gelu", **changes})


def lens_model(seed: int = 0, **changes) -> HookedTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HookedTransformer(lens_config(**changes)).eval()


class Bare(nn.Module):
    """Two layers of a user's own, a mask kept in and a scale kept out of the state dict, tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(D_VOCAB, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])
        self.unembed = nn.Linear(16, D_VOCAB, bias=False)
        self.unembed.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(N_CTX, N_CTX).tril())
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)

    def forward(self, tokens):
        n = tokens.shape[1]
        mean = self.mask[:n, :n] / self.mask[:n, :n].sum(1, keepdim=True)
        resid = mean @ self.embed(tokens)
        for block in self.blocks:
            resid = resid + torch.tanh(self.scale * block(resid))
        return self.unembed(resid)


class Hooked(Bare):
    """The same with hook points, under the names of transformer_lens."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_dict = {f"blocks.{i}.hook_resid_post": HookPoint() for i in range(2)}
        self.cfg = SimpleNamespace(n_layers=2, d_vocab=D_VOCAB, n_ctx=N_CTX)
        for i, block in enumerate(self.blocks):
            block.hook_resid_post = self.hook_dict[f"blocks.{i}.hook_resid_post"]

    def forward(self, tokens):
        n = tokens.shape[1]
        mean = self.mask[:n, :n] / self.mask[:n, :n].sum(1, keepdim=True)
        resid = mean @ self.embed(tokens)
        for block in self.blocks:
            resid = block.hook_resid_post(resid + torch.tanh(self.scale * block(resid)))
        return self.unembed(resid)


@pytest.fixture(scope="module")
def task():
    return tiny_text_task(120)


def tokens():
    return torch.randint(0, D_VOCAB, (3, N_CTX), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(tokens())


def models(make):
    found = {}
    for step in STEPS:
        with torch.random.fork_rng():
            torch.manual_seed(step)
            found[step] = make().eval()
    return found


# State dicts


@pytest.mark.parametrize("form", ["config", "mapping", "json", "build"])
def test_state_dicts_of_transformer_lens(tmp_path, task, form):
    trained = {step: lens_model(step) for step in STEPS}
    for step, model in trained.items():
        torch.save(model.state_dict(), tmp_path / f"step{step}.pt")
    (tmp_path / "model.json").write_text(json.dumps(lens_config().to_dict(), default=str))
    how = {
        "config": {"config": lens_config()},
        "mapping": {"config": lens_config().to_dict()},
        "json": {"config": tmp_path / "model.json"},
        "build": {"build": functools.partial(HookedTransformer, lens_config())},
    }[form]
    suite = Suite.open(tmp_path, task, **how)
    assert suite.steps == list(STEPS)
    for step, model in trained.items():
        assert torch.equal(logits(suite.load_model(step)), logits(model))
    assert suite.n_parameters == sum(p.numel() for p in trained[0].parameters())
    untrained, same = suite.untrained_model(0)[0], suite.untrained_model(0)[0]
    assert torch.equal(logits(untrained), logits(same))
    assert not torch.allclose(logits(untrained), logits(suite.untrained_model(1)[0]))
    assert "HookedTransformer, 2 steps" in repr(suite)
    again = pickle.loads(pickle.dumps(suite))
    assert again.run_id == suite.run_id
    assert torch.equal(logits(again.load_model(10)), logits(trained[10]))


def test_the_configuration_names_the_suite(tmp_path, task):
    ids = {
        Suite.from_state_dicts({0: tmp_path / "a.pt"}, task, name="x", out=tmp_path, config=config).run_id
        for config in (lens_config(), lens_config(), lens_config(act_fn="relu"), lens_config(rotary_base=500))
    }
    assert len(ids) == 3


@pytest.mark.parametrize("kind", ["safetensors", "pt", "entry", "compiled", "half", "sharded", "sharded pickles"])
def test_plain_state_dicts_in_the_files_that_are_about(tmp_path, task, kind):
    trained = models(Hooked)
    for step, model in trained.items():
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        path = tmp_path / f"model_step_{step}"
        if kind == "safetensors":
            save_file(state, path.with_suffix(".safetensors"))
        elif kind.startswith("sharded"):
            write_shards(path, state, ".safetensors" if kind == "sharded" else ".bin")
        else:
            wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}
            half = {name: tensor.half() for name, tensor in state.items()}
            held = {
                "entry": {"model": state, "optimizer": {"lr": 1.0}, "step": step},
                "compiled": wrapped,
                "half": half,
            }
            torch.save(held.get(kind, state), path.with_suffix(".pt"))
    suite = Suite.open(tmp_path, task, build=Hooked)
    for step, model in trained.items():
        loaded = suite.load_model(step)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        expected = copy.deepcopy(model).half().float() if kind == "half" else model
        assert torch.equal(logits(loaded), logits(expected))
    if kind == "safetensors":
        assert set(analyses.probe(suite, "odd", n_untrained=1, **QUICK).rows["step"]) == {0, 10}


def write_shards(folder, state, suffix):
    folder.mkdir()
    names = sorted(state)
    parts = {f"model-{i + 1}-of-2{suffix}": names[i::2] for i in range(2)}
    for name, own in parts.items():
        held = {key: state[key] for key in own}
        save_file(held, folder / name) if suffix == ".safetensors" else torch.save(held, folder / name)
    index = {"weight_map": {key: name for name, own in parts.items() for key in own}}
    (folder / f"model{suffix}.index.json").write_text(json.dumps(index))


def test_a_trainers_checkpoint_folder(tmp_path, task):
    for step, model in models(Hooked).items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        for beside in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            (folder / beside).write_bytes(b"whatever")
    suite = Suite.open(tmp_path, task, build=Hooked)
    assert torch.equal(logits(suite.load_model(10)), logits(models(Hooked)[10]))
    before = suite.weights(10)
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"others")
    assert suite.weights(10) == before
    torch.save(Hooked().state_dict(), tmp_path / "checkpoint-10" / "pytorch_model.bin")
    assert suite.weights(10) != before


def saved(tmp_path, change):
    state = {name: tensor.detach().clone() for name, tensor in Hooked().state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "step1.pt")
    return Suite.from_state_dicts({1: tmp_path / "step1.pt"}, tiny_text_task(120), build=Hooked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.bias"), r"1 mismatches:\n  blocks.1.bias: missing"),
        (lambda s: s.pop("mask"), r"1 mismatches:\n  mask: missing"),
        (lambda s: s.update(extra=torch.zeros(2)), r"1 mismatches:\n  extra: not in this model"),
        (lambda s: s.update({"blocks.0.weight": torch.zeros(3, 16)}), r"blocks.0.weight: shape \(3, 16\) instead of"),
        (lambda s: s.update({"blocks.0.bias": torch.zeros(16, dtype=int)}), r"blocks.0.bias: dtype torch.int64"),
        (lambda s: s.update({"unembed.weight": torch.zeros(D_VOCAB, 16)}), r"embed.weight and unembed.weight: tied in"),
        (lambda s: s.update(scale=torch.tensor(4.0)), r"1 mismatches:\n  scale: other values than"),
        (lambda s: [s.pop("embed.weight"), s.pop("unembed.weight")], r"embed.weight: missing\n  unembed.weight"),
    ],
)  # fmt: skip
def test_every_mismatch_is_named(tmp_path, change, message):
    with pytest.raises(qfl.QflError, match=message):
        saved(tmp_path, change).load_model(1)


@pytest.mark.parametrize(
    "change",
    [lambda s: s.pop("unembed.weight"), lambda s: s.pop("embed.weight"), lambda s: s.update(scale=torch.tensor(3.0))],
)
def test_what_is_no_mismatch(tmp_path, change):
    assert logits(saved(tmp_path, change).load_model(1)).isfinite().all()


def test_buffers_that_a_configuration_decides_are_compared(tmp_path, task):
    state = lens_model().state_dict()
    path = tmp_path / "step1.pt"
    suite = Suite.from_state_dicts({1: path}, task, config=lens_config())
    parameters = {name: tensor for name, tensor in state.items() if ".W_" in name or ".b_" in name or "ln" in name}
    old = {f"blocks.{i}.attn.mask": torch.ones(N_CTX, N_CTX, dtype=torch.bool).tril() for i in range(2)}
    for held in (parameters, state | old, {name: t.bfloat16() for name, t in parameters.items()}):
        torch.save(held, path)
        assert logits(suite.load_model(1)).isfinite().all()
    wrong = {
        "attn.mask: other values": {"blocks.1.attn.mask": ~old["blocks.1.attn.mask"]},
        "attn.rotary_cos: other values": {"blocks.0.attn.rotary_cos": state["blocks.0.attn.rotary_cos"] * 0.9},
        r"attn.IGNORE: 1.0 instead": {"blocks.0.attn.IGNORE": torch.tensor(1.0)},
    }
    for message, change in wrong.items():
        torch.save(state | change, path)
        with pytest.raises(qfl.QflError, match=message):
            suite.load_model(1)
    torch.save(lens_model(rotary_base=500).state_dict(), path)
    with pytest.raises(qfl.QflError, match="rotary_sin: other values than the configuration of this model gives"):
        suite.load_model(1)


def test_what_transformers_would_drop_is_named(tmp_path, task):
    folder = save_model(neox_config(), tmp_path / "step0")
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    save_file({**state, "value_head.weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(qfl.QflError, match=r"step0 must hold no weight .* but has 1: value_head.weight"):
        Suite.open(tmp_path, task).load_model()


def neox():
    return AutoModelForCausalLM.from_config(neox_config())


def test_state_dicts_of_transformers(tmp_path, task):
    with quiet():
        model = neox().eval()
    torch.save(model.state_dict(), tmp_path / "step5.pt")
    suite = Suite.open(tmp_path, task, build=neox)
    torch.testing.assert_close(logits(suite.load_model()), logits(model).logits, rtol=1e-5, atol=1e-6)
    assert suite.untrained_model(0)[0].original_model.config._attn_implementation == "eager"


# What is refused, and the others stay usable


class Payload:
    """What runs when a pickle is opened without care."""

    def __reduce__(self):
        return print, ("code ran",)


def test_files_that_are_no_state_dict(tmp_path, task, capsys):
    good = models(Hooked)[10]
    torch.save(good.state_dict(), tmp_path / "step10.pt")
    torch.save({"model": good.state_dict(), "hook": Payload()}, tmp_path / "step20.pt")
    torch.save(good, tmp_path / "step30.pt")
    whole = (tmp_path / "step10.pt").read_bytes()
    (tmp_path / "step40.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"a": {"w": torch.zeros(1)}, "lr": 0.1}, tmp_path / "step50.pt")
    save_file(
        dict(good.state_dict()) | {"unembed.weight": good.unembed.weight.clone()}, tmp_path / "step60.safetensors"
    )
    (tmp_path / "step60.safetensors").write_bytes((tmp_path / "step60.safetensors").read_bytes()[:-9])
    suite = Suite.open(tmp_path, task, build=Hooked)
    assert suite.steps == [10, 20, 30, 40, 50, 60]
    messages = {
        20: r"step20.pt holds more than tensors \([\w.]*print\), and is not read: .* run code. Save .* safetensors\.$",
        30: r"step30.pt holds more than tensors \([\w.]*Hooked\)",
        40: r"step40.pt cannot be read, it may be truncated",
        50: r"step50.pt must hold a state dict, or one under model, .*; it holds a, lr",
        60: r"step60.safetensors cannot be read, it may be truncated",
    }
    for step, message in messages.items():
        with pytest.raises(qfl.QflError, match=message):
            suite.load_model(step)
    assert "code ran" not in capsys.readouterr().out
    assert torch.equal(logits(suite.load_model(10)), logits(good))


def test_shards(tmp_path, task):
    for step, model in models(Hooked).items():
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        write_shards(tmp_path / f"step{step}", state, ".safetensors")
    shard = tmp_path / "step10" / "model-2-of-2.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    suite = Suite.open(tmp_path, task, build=Hooked)
    with pytest.raises(qfl.QflError, match=r"model-2-of-2.safetensors cannot be read, it may be truncated"):
        suite.load_model(10)
    assert logits(suite.load_model(0)).isfinite().all()
    shard.write_bytes((tmp_path / "step0" / "model-1-of-2.safetensors").read_bytes())
    with pytest.raises(qfl.QflError, match=r"which another shard of .*step10 has too"):
        suite.load_model(10)
    shard.unlink()
    with pytest.raises(qfl.QflError, match=r"half-written: step10 \(.* lacks 1 of its 2 shards: model-2-of-2"):
        Suite.open(tmp_path, task, build=Hooked)


def test_names_of_files(tmp_path, task):
    state = Hooked().state_dict()
    names = ("step300.pt", "model_step_400.bin", "optim_step300.pt", "step500_optimizer.pt", "notes_step7.txt")
    for name in names:
        torch.save(state, tmp_path / name)
    assert Suite.open(tmp_path, task, build=Hooked).steps == [300], "of those without a series, where there are some"
    (tmp_path / "step300.pt").unlink()
    assert Suite.open(tmp_path, task, build=Hooked).steps == [400]
    torch.save(state, tmp_path / "ema_step_400.pt")
    with pytest.raises(qfl.QflError, match=r"several series: ema \(1\), model \(1\). Give a pattern="):
        Suite.open(tmp_path, task, build=Hooked)
    assert Suite.open(tmp_path, task, build=Hooked, pattern=r"ema_step_(\d+)").steps == [400]
    torch.save(state, tmp_path / "model_step_400.pt")
    with pytest.raises(qfl.QflError, match=r"has step 400 twice: model_step_400.bin and model_step_400.pt"):
        Suite.open(tmp_path, task, build=Hooked, pattern=r"model_step_(?P<step>\d+)")
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    for name in ("model_000650.pt", "optim_000650.pt", "model_001300.pt"):
        torch.save(state, numbered / name)
    assert Suite.open(numbered, task, build=Hooked).steps == [650, 1300]


def test_tokens_in_names(tmp_path, task):
    state = Hooked().state_dict()
    for step, billions in ((0, 0), (10_000, 20), (30_000, 60), (50_000, 100)):
        torch.save(state, tmp_path / f"stage1-step{step}-tokens{billions}B.pt")
    suite = Suite.open(tmp_path, task, build=Hooked)
    assert suite.tokens_per_step == 2_000_000
    assert suite.flops(50_000) == 6.0 * suite.n_parameters * 100e9
    torch.save(state, tmp_path / "stage1-step60000-tokens400B.pt")  # larger batches from there
    suite = Suite.open(tmp_path, task, build=Hooked, out=tmp_path / "out")
    assert (suite.tokens(50_000), suite.tokens(60_000)) == (100e9, 400e9)
    assert suite.tokens(52_500) == 175e9  # between two checkpoints, where a break may lie
    assert suite.how_far(52_500)["flops"] == 6.0 * suite.n_parameters * 175e9
    assert math.isnan(suite.tokens(60_001))
    assert Suite.open(tmp_path, task, build=Hooked, tokens_per_step=7).tokens(10_000) == 70_000
    torch.save(state, tmp_path / "stage2-step5-tokens1B.pt")
    with pytest.raises(qfl.QflError, match=r"several series: stage1 \(5\), stage2 \(1\)"):
        Suite.open(tmp_path, task, build=Hooked)
    own = Suite.open(tmp_path, task, build=Hooked, pattern=r"stage2-step(?P<step>\d+)-tokens(?P<tokens>\d+B)")
    assert own.tokens(5) == 1e9
    assert math.isnan(Suite.open(tmp_path, task, build=Hooked, pattern=r"stage1-step(\d+).*").flops(10_000))


def test_what_says_no_model(tmp_path, task):
    torch.save(Hooked().state_dict(), tmp_path / "step1.pt")
    with pytest.raises(qfl.QflError, match=r"has state dicts: step1.pt. Say what their model is: build=.* config="):
        Suite.open(tmp_path, task)
    paths = {1: tmp_path / "step1.pt"}
    for how, error, message in (
        ({}, TypeError, "give build= .* got none"),
        ({"build": Hooked, "config": lens_config()}, TypeError, "got both"),
        ({"build": Hooked()}, TypeError, "build must be a function"),
        ({"build": lambda: 1}, qfl.QflError, "must return a torch.nn.Module, got a int"),
        ({"build": lambda: 1 / 0}, qfl.QflError, "failed: ZeroDivisionError"),
        ({"build": lambda: qfl.hooked_from_hf(eager())}, qfl.QflError, "got a TransformerBridge"),
        ({"config": tmp_path / "no.json"}, qfl.QflError, "no.json is not there"),
        ({"config": {"d_model": 8}}, qfl.QflError, "must say d_vocab"),
        ({"config": lens_config().to_dict() | {"d_modle": 8}}, qfl.QflError, "makes no model of this .*d_modle"),
        ({"config": 3}, TypeError, "config must be a HookedTransformerConfig"),
    ):
        with pytest.raises(error, match=message):
            Suite.from_state_dicts(paths, task, **how)
    with pytest.raises(qfl.QflError, match=r"Bare has no hook points. docs/any_model.md shows how"):
        Suite.from_state_dicts(paths, task, build=Bare).load_model()
    with pytest.raises(ValueError, match="a suite must have a step"):
        Suite.from_state_dicts({}, task, build=Hooked)
    with pytest.raises(qfl.QflError, match=r"nowhere.pt is not there"):
        Suite.from_state_dicts({1: tmp_path / "nowhere.pt"}, task, build=Hooked).load_model()


def eager():
    with quiet():
        return AutoModelForCausalLM.from_config(neox_config(), attn_implementation="eager")


def always_the_same():
    torch.manual_seed(0)
    return Hooked()


def test_a_function_that_makes_one_model_gives_no_untrained_ones(tmp_path, task):
    torch.save(Hooked().state_dict(), tmp_path / "step1.pt")
    suite = Suite.open(tmp_path, task, build=always_the_same)
    with pytest.raises(qfl.QflError, match=r"gives the same weights whatever torch's seed.*n_untrained=0"):
        analyses.probe(suite, "odd", **QUICK)
    assert not (suite.path / "analyses").exists(), "said before anything is computed"
    assert len(analyses.probe(suite, "odd", n_untrained=0, **QUICK).rows)


def test_a_dataset_that_the_model_does_not_take(tmp_path):
    long = np.zeros((2, N_CTX + 1), dtype=int)
    task = qfl.FixedTask("long", long, np.arange(N_CTX + 1)[None].repeat(2, axis=0) > 0, {})
    for how in ({"build": Hooked}, {"config": lens_config()}):
        with pytest.raises(qfl.QflError, match=r"'long' has 17 tokens in a sequence, but the model of .* takes 16"):
            Suite.from_state_dicts({0: tmp_path / "a.pt"}, task, **how)
    with pytest.raises(qfl.QflError, match=r"'long' has 17 tokens .* the model of the Hooked of step 0 takes 16"):
        Suite.from_models({0: Hooked()}, task)


# Models in memory


@pytest.mark.parametrize("kind", ["transformer_lens", "bridge", "transformers", "own"])
def test_models_in_memory(task, kind):
    make = {"transformer_lens": lens_model, "bridge": lambda: qfl.hooked_from_hf(eager()), "transformers": neox}
    with quiet():
        (model,) = [make.get(kind, Hooked)().train()]
    out = model(tokens())  # with a graph, which a bridge keeps
    expected = getattr(out, "logits", out).detach()
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = analyses.probe(model, "odd", task=task, n_untrained=0 if kind == "own" else 1, **QUICK).rows
    suite = Suite.from_models({3: model}, task)
    torch.testing.assert_close(logits(suite.load_model()), expected, rtol=1e-5, atol=1e-6)
    again = analyses.probe(suite, "odd", n_untrained=0, **QUICK).rows
    trained = rows[rows["source"] == "trained"]
    np.testing.assert_array_equal(trained["test_loss"], again["test_loss"])
    assert model.training
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == attention
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_is_trained_on_is_looked_at_anew(task):
    model = Hooked()
    suite = Suite.from_models({0: model}, task)
    first, digest = analyses.probe(suite, "odd", n_untrained=0, **QUICK).rows, suite.weights(0)
    with torch.no_grad():
        model.embed.weight.neg_()
        model.blocks[0].weight.mul_(2)
    assert suite.weights(0) != digest
    second = analyses.probe(suite, "odd", n_untrained=0, **QUICK).rows
    assert not np.array_equal(first["test_loss"], second["test_loss"])


def test_models_in_memory_in_other_precision(task):
    model = models(Hooked)[10].bfloat16()
    loaded = Suite.from_models({0: model}, task).load_model()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_models_in_memory_that_are_refused(task):
    model = Hooked()
    with pytest.raises(qfl.QflError, match=r"steps 0 and 5 are one object.*copy.deepcopy"):
        Suite.from_models({0: model, 5: model}, task)
    with pytest.raises(
        qfl.QflError, match=r"the HookedTransformer of step 0 and the HookedTransformer of step 1 differ"
    ):
        Suite.from_models({0: lens_model(), 1: lens_model(act_fn="relu")}, task)
    with pytest.raises(TypeError, match=r"probe\(model\) needs the task to look at it on: probe\(model, task=task\)"):
        analyses.probe(model)
    with pytest.raises(qfl.QflError, match=r"nothing says how a fresh Hooked is made.*build=.*n_untrained=0"):
        analyses.probe(model, "odd", task=task, **QUICK)
    suite = Suite.from_models({0: model}, task, build=Hooked)
    rows = analyses.probe(suite, "odd", n_untrained=1, **QUICK).rows
    assert set(rows["source"]) == {"trained", "untrained"}


def test_tables_of_models_in_memory_stay_where_they_are_put(task, tmp_path):
    suite = Suite.from_models(models(Hooked), task, out=tmp_path, name="mine")
    analyses.probe(suite, "odd", n_untrained=0, **QUICK)
    again = Suite.from_models(models(Hooked), task, out=tmp_path, name="mine")
    assert len(again.table("probe").parts()) == len(STEPS)
    others = Suite.from_models({step: Hooked() for step in STEPS}, task, out=tmp_path, name="mine")
    assert others.table("probe").parts() == [], "of other weights"


def test_a_folder_of_transformers_opens_as_it_did(tmp_path, task):
    suite = Suite.open(save_tiny_neox(tmp_path, STEPS), task)
    assert suite.run_id.endswith("-tiny_text-" + suite.run_id.rpartition("-")[2])
    assert math.isnan(suite.flops(10))
