"""Our `HookedTransformer` beside TransformerLens 3's: itself where that is installed, stored activations in both."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import torch
from safetensors import safe_open

import qfl_interp as qfl
from qfl_interp.models import tl_version
from qfl_interp.models.build import build_hooked, load_parameters, parameters_to_save
from qfl_interp.models.fast_forward import fast_logits
from qfl_interp.models.given import without_deprecation
from qfl_interp.models.hooked_config import HookedTransformerConfig
from qfl_interp.models.hooked_transformer import HookedTransformer
from tests.helpers_activations import CASES, SHAPE, SIZES, STORED, TOKENS, drawn, stored

SETTINGS = {"d_model": 8, "d_head": 4, "n_heads": 2, "n_layers": 2, "n_ctx": 6, "d_vocab": 5}
# `LinearAttention`, `TiedUnembed` and `VectorEmbed` are made of the installed version's layers: not without it.
OURS = [name for name in CASES if name not in ("linear", "relu2_tied")]


def ours(model):
    """Our model of the same configuration, parameters and zero buffers; changed to another precision afterwards too."""
    fields = {field.name: getattr(model.cfg, field.name) for field in dataclasses.fields(model.cfg)}
    made = HookedTransformer(HookedTransformerConfig(**fields | {"dtype": torch.float32}))
    made.to(model.cfg.dtype)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(own[name])
    return made


def cached(model, tokens=TOKENS, **kwargs):
    """The output and all activations."""
    return model.run_with_cache(tokens, return_cache_object=False, **kwargs)


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_the_stored_file_is_of_transformer_lens_3():
    with safe_open(STORED, "pt") as file:
        assert json.loads(file.metadata()["versions"])["transformer-lens"] == "3.9.0"
    assert STORED.stat().st_size < 500_000


@pytest.mark.parametrize("name", CASES)
def test_activations_are_those_stored_under_transformer_lens_3(name):
    """The installed version's model, built as a run's is."""
    model = build_hooked(qfl.ModelConfig(**SHAPE, **CASES[name]), **SIZES)
    load_parameters(model, stored(name, "weights"))
    want = stored(name, "activations")
    logits, got = cached(model)
    assert got.keys() == want.keys()
    assert {"blocks.1.hook_resid_post", "blocks.0.attn.hook_pattern", "unembed.hook_out"} <= want.keys()
    for hook, tensor in want.items():
        torch.testing.assert_close(got[hook], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, h=hook: f"{h}: {m}")
    torch.testing.assert_close(logits, want["unembed.hook_out"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_initial_weights_are_those_stored(name):
    """A seed decides the same weights in every version: an untrained model, a control, is the same one."""
    got, want = parameters_to_save(drawn(name)), stored(name, "weights")
    assert got.keys() == want.keys()
    for parameter, tensor in want.items():
        torch.testing.assert_close(got[parameter], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.tl3
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", OURS)
def test_it_computes_the_bits_of_transformer_lens_3(name, dtype):
    theirs = drawn(name).to(dtype, print_details=False)
    made = ours(theirs)
    assert [n for n, _ in theirs.named_parameters()] == [
        n for n, _ in made.named_parameters() if n in dict(theirs.named_parameters())
    ]
    assert list(theirs.hook_dict) == list(made.hook_dict)
    (want, all_theirs), (got, all_ours) = cached(theirs), cached(made)
    assert_same_bits(all_ours, all_theirs)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for logits in (want, got):
        (logits * weights).sum().backward()
    parameters = dict(made.named_parameters())
    for parameter, theirs_value in theirs.named_parameters():
        torch.testing.assert_close(parameters[parameter].grad, theirs_value.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.tl3
@pytest.mark.parametrize(
    "kwargs",
    [
        {"start_at_layer": 1},
        {"start_at_layer": -1, "stop_at_layer": 2},
        {"stop_at_layer": 0},
        {"stop_at_layer": -1},
        {"return_type": "loss"},
        {"return_type": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_part_of_the_pass_is_the_same(name, kwargs):
    theirs = drawn(name)
    inputs = torch.randn(2, 5, 8) if "start_at_layer" in kwargs else TOKENS
    (want, all_theirs), (got, all_ours) = cached(theirs, inputs, **kwargs), cached(ours(theirs), inputs, **kwargs)
    assert_same_bits(all_ours, all_theirs)
    if want is None:
        assert got is None
    else:
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.tl3
@pytest.mark.parametrize(
    "flag", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"], ids=lambda f: f[4:]
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_hook_points_behind_a_flag_are_the_same(name, flag):
    theirs = drawn(name)
    made = ours(theirs)
    for model in (theirs, made):
        getattr(model, f"set_{flag}")(True)
    (_, all_theirs), (_, all_ours) = cached(theirs), cached(made)
    assert len(all_ours) > len(cached(ours(drawn(name)))[1])
    assert_same_bits(all_ours, all_theirs)


@pytest.mark.tl3
@pytest.mark.parametrize(
    "changes",
    [
        {"attn_scores_soft_cap": 0.2, "output_logits_soft_cap": 0.5},
        {"rotary_adjacent_pairs": False, "rotary_dim": 2, "positional_embedding_type": "rotary", "rotary_base": 50},
        {"gated_mlp": True, "act_fn": "silu", "attn_scale": 3.0, "d_vocab_out": 7},
    ],
    ids=["caps", "half rotary", "others"],
)
def test_what_no_model_config_says_is_the_same(changes):
    with without_deprecation():
        theirs = tl_version.HookedTransformer(tl_version.HookedTransformerConfig(**SETTINGS, **changes, device="cpu"))
    made = ours(theirs)
    (_, all_theirs), (_, all_ours) = cached(theirs), cached(made)
    assert_same_bits(all_ours, all_theirs)
    assert torch.equal(made(TOKENS), theirs(TOKENS))


@pytest.mark.tl3
def test_a_hook_changes_the_same():
    theirs = drawn("llama")
    made = ours(theirs)

    def half(activation, hook):
        return activation / 2

    hooks = [("blocks.0.attn.hook_rot_q", half), ("blocks.1.mlp.hook_pre_linear", half), ("ln_final.hook_scale", half)]
    want, got = (model.run_with_hooks(TOKENS, fwd_hooks=hooks) for model in (theirs, made))
    assert torch.equal(got, want)
    assert not torch.equal(made(TOKENS), want)
    assert torch.equal(made(TOKENS), theirs(TOKENS))


@pytest.mark.tl3
def test_drawn_weights_and_the_configuration_are_the_same():
    for fields in (SETTINGS | {"act_fn": "relu"}, SETTINGS | {"attn_only": True, "initializer_range": 0.3}):
        theirs_cfg, cfg = tl_version.HookedTransformerConfig(**fields, device="cpu"), HookedTransformerConfig(**fields)
        shown = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
        assert shown == {field.name: getattr(theirs_cfg, field.name) for field in dataclasses.fields(theirs_cfg)}
        with without_deprecation():
            torch.manual_seed(3)
            theirs = tl_version.HookedTransformer(theirs_cfg)
        torch.manual_seed(3)
        made = HookedTransformer(cfg)
        assert list(theirs.state_dict()) == list(made.state_dict())
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(made.state_dict()[name], tensor), name


def test_what_it_does_not_compute_is_refused():
    with pytest.raises(
        qfl.QflError, match=r"(?s)n_key_value_heads=1 instead of None.*act_fn='tanh' instead of 'gelu' or.*>=3.9,<4"
    ):
        HookedTransformerConfig(**SETTINGS, act_fn="tanh", n_key_value_heads=1)
    with pytest.raises(qfl.QflError, match="init_mode='muP' instead of 'gpt2'"):
        HookedTransformerConfig(**SETTINGS, act_fn="relu", init_mode="muP")
    cfg = HookedTransformerConfig(**SETTINGS, act_fn="relu", init_mode="muP", init_weights=False)
    with pytest.raises(qfl.QflError, match="parallel_attn_mlp=True instead of False"):
        cfg.parallel_attn_mlp = True


def test_hooks_that_would_not_fire_are_refused():
    model = HookedTransformer(SETTINGS | {"act_fn": "relu"})
    hook = ("blocks.0.attn.hook_result", lambda activation, hook: activation**2)
    plain = model(TOKENS)
    with pytest.raises(ValueError, match=r"does not fire while cfg.use_attn_result is False. Call model.set_use_attn"):
        model.add_hook(*hook)
    model.set_use_attn_result(True)
    model.add_hook(*hook)
    assert not torch.allclose(model(TOKENS), plain)
    with pytest.raises(ValueError, match="return_type must be 'logits', None, or of token ids 'loss', got 'loss'"):
        model(torch.zeros(1, 2, 8), return_type="loss", start_at_layer=1)


def test_parameters_by_the_models_names():
    model = HookedTransformer(SETTINGS | {"act_fn": "relu"})
    assert model.W_E is model.embed.W_E
    assert model.b_U is model.unembed.b_U
    assert model.W_Q.shape == (2, 2, 8, 4)
    assert torch.equal(model.W_out[1], model.blocks[1].mlp.W_out)
    with pytest.raises(AttributeError, match="no attribute 'W_X'"):
        _ = model.W_X
    with pytest.raises(AttributeError, match="no attribute 'W_gate'"):
        _ = model.W_gate


def test_it_moves_pickles_and_takes_the_fast_way(capsys):
    model = HookedTransformer(SETTINGS | {"act_fn": "relu"})
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(TOKENS), model(TOKENS))
    torch.testing.assert_close(fast_logits(model, TOKENS), model(TOKENS))
    _, cache = model.run_with_cache(TOKENS)
    assert cache["resid_post", -1].shape == (2, 5, 8)
    model.to(torch.float64)
    assert model.cfg.dtype == model(TOKENS[0]).dtype == torch.float64
    assert capsys.readouterr().out == ""
