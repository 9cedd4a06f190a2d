from __future__ import annotations

import types
import warnings

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from helpers import pairwise
from torch import nn

from qfl_interp.config import ModelConfig
from qfl_interp.errors import QflError
from qfl_interp.models import fused_ops
from qfl_interp.models.build import build_hooked
from qfl_interp.models.fast_forward import compile_fast_logits, fast_logits, fast_resid
from qfl_interp.models.tl_version import HookedTransformer, HookedTransformerConfig
from tests.helpers_golden import golden_forward, hooked_from_golden

N_CTX = 14
POSITIONS = {
    "all": None,
    "slice": slice(4, 9),
    "strided": slice(1, None, 3),
    "last": slice(-1, None),
    "index": torch.tensor([2, 5, 6, 12]),
    "neighbours": torch.tensor([3, 4, 5]),
}


def make(style="llama", n_layers=2, n_heads=4, d_vocab=5, dtype=torch.float32, d_mlp=21):
    """A small model whose gains and biases are not ones and zeros."""
    config = ModelConfig(d_model=16, n_layers=n_layers, n_heads=n_heads, style=style, d_mlp=d_mlp)
    model = build_hooked(config, d_vocab=d_vocab, n_ctx=N_CTX).to(dtype, print_details=False)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=rng, dtype=torch.float64)
    return model


def draw(model, n_batch=3, n_pos=N_CTX - 1):
    return torch.randint(0, model.cfg.d_vocab, (n_batch, n_pos), generator=torch.Generator().manual_seed(1))


def gradients(model, logits):
    """Gradients of a random linear function of the logits."""
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logits * weights.to(logits.dtype)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_gradients_close(got, want, rtol):
    # A gradient's rounding error goes with the largest entry of all: keys' biases have gradient 0 up to
    # rounding.
    scale = max(g.abs().max().item() for g in want.values())
    for name, g in want.items():
        torch.testing.assert_close(got[name], g, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("style", "n_layers", "n_heads", "d_vocab", "positions"),
    pairwise(["llama", "gpt2"], [1, 3], [1, 4], [5, 40], POSITIONS),
)
def test_equals_the_model_in_float64(style, n_layers, n_heads, d_vocab, positions):
    model = make(style, n_layers, n_heads, d_vocab, torch.float64)
    tokens, positions = draw(model), POSITIONS[positions]
    want = model(tokens)[:, slice(None) if positions is None else positions]
    got = fast_logits(model, tokens, positions)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert_gradients_close(gradients(model, got), gradients(model, want), 1e-9)


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_equals_the_model_in_float32(style):
    model = make(style, 3)
    tokens = draw(model, 8)
    got, want = fast_logits(model, tokens, slice(5, 12)), model(tokens)[:, 5:12]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert_gradients_close(gradients(model, got), gradients(model, want), 1e-5)


@pytest.mark.parametrize("positions", ["all", "slice", "index"])
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_fused_kernel_equals_written_out_scores(style, positions, monkeypatch):
    model = make(style, dtype=torch.float64)
    tokens = draw(model)
    want = fast_logits(model, tokens, POSITIONS[positions])
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    monkeypatch.setattr(fused_ops, "_EXPLICIT_SCORES_MAX", 0)
    got = fast_logits(model, tokens, POSITIONS[positions])
    assert len(calls) == 2  # a block
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert_gradients_close(gradients(model, got), gradients(model, want), 1e-9)


@pytest.mark.parametrize("case", golden_forward(), ids=lambda case: f"{case['config']['n_layers']}-layers")
def test_golden(case):
    model, tokens = hooked_from_golden(case), torch.tensor(case["ids"])
    mask = torch.tensor(case["loss_mask"]).bool()
    logits = fast_logits(model, tokens)
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(logits[:, :-1][mask[:, 1:]], tokens[:, 1:][mask[:, 1:]])
    assert loss.item() == pytest.approx(case["loss"], abs=1e-4)
    blocks = torch.tensor(case["block_outputs_first_example"])
    resid = fast_resid(model, tokens[:1], range(len(blocks)))
    torch.testing.assert_close(resid[0], blocks, rtol=1e-4, atol=1e-4)
    greedy = torch.tensor([case["greedy"]["prompt"]])
    while greedy.shape[1] < len(case["greedy"]["completed"]):
        greedy = torch.cat((greedy, fast_logits(model, greedy, slice(-1, None)).argmax(-1)), 1)
    assert greedy[0].tolist() == case["greedy"]["completed"]


@pytest.mark.parametrize(
    ("style", "layers", "positions"), pairwise(["llama", "gpt2"], [[0], [2, 0], [0, 1, 2]], POSITIONS), ids=str
)
def test_resid_equals_the_cache(style, layers, positions):
    model = make(style, 3, dtype=torch.float64)
    tokens, positions = draw(model), POSITIONS[positions]
    _, cache = model.run_with_cache(tokens)
    where = slice(None) if positions is None else positions
    want = torch.stack([cache["resid_post", layer][:, where] for layer in layers], 1)
    got = fast_resid(model, tokens, layers, positions)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert not got.requires_grad


def test_same_inputs_same_bits():
    model = make()
    tokens = draw(model, 16)
    first, again = (fast_logits(model, tokens, slice(3, 9)) for _ in range(2))
    assert torch.equal(first, again)
    grads, grads_again = gradients(model, first), gradients(model, again)
    assert all(torch.equal(g, grads_again[name]) for name, g in grads.items())


def test_tokens_after_the_last_position_do_not_matter():
    model = make()
    tokens = draw(model)
    changed = tokens.clone()
    changed[:, 9:] = 0
    assert not torch.equal(tokens, changed)
    assert torch.equal(fast_logits(model, tokens, slice(2, 9)), fast_logits(model, changed, slice(2, 9)))


def test_follows_the_parameters():
    model = make()
    tokens = draw(model)
    fast_logits(model, tokens)
    with torch.no_grad():
        model.blocks[1].mlp.W_in += 1
    torch.testing.assert_close(fast_logits(model, tokens), model(tokens), rtol=1e-5, atol=1e-4)
    model.to(torch.float64, print_details=False)
    torch.testing.assert_close(fast_logits(model, tokens), model(tokens), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("flag", ["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in"])
def test_flags_that_only_add_hook_points_are_fine(flag):
    model = make(dtype=torch.float64)
    tokens = draw(model)
    getattr(model, f"set_{flag}")(True)
    torch.testing.assert_close(fast_logits(model, tokens), model(tokens), rtol=1e-9, atol=1e-12)


UNSUPPORTED = {
    "act_fn": {"act_fn": "solu"},
    "scale": {"attn_scale": 3.0},
    "half_pairs": {"rotary_adjacent_pairs": False},
    "part_rotary": {"rotary_dim": 2},
    "attn_softcap": {"attn_scores_soft_cap": 30.0},
    "logit_softcap": {"output_logits_soft_cap": 30.0},
}
UNKNOWN_TO_TL4 = {
    "parallel": {"parallel_attn_mlp": True},
    "grouped": {"n_key_value_heads": 2},
    "window": {"use_local_attn": True, "window_size": 4, "attn_types": ["local", "global"]},
    "no_scale": {"use_attn_scale": False},
    "inverse_layer": {"scale_attn_by_inverse_layer_idx": True},
    "qk_norm": {"use_qk_norm": True},
    "bidirectional": {"attention_dir": "bidirectional"},
    "both_norms": {"use_normalization_before_and_after": True},
    "folded_norm": {"normalization_type": "RMSPre"},
    "positions": {"positional_embedding_type": "shortformer"},
    "clip": {"clip_qkv": 1.0},
}


def lens_model(**changes):
    """A llama-style HookedTransformer made without `build_hooked`."""
    fields = {
        **{
            "n_layers": 2,
            "d_model": 16,
            "d_head": 4,
            "n_heads": 4,
            "d_mlp": 21,
            "n_ctx": N_CTX,
            "d_vocab": 5,
        },
        **{
            "act_fn": "silu",
            "gated_mlp": True,
            "normalization_type": "RMS",
            "positional_embedding_type": "rotary",
        },
        **{"rotary_dim": 4, "rotary_adjacent_pairs": True, "init_weights": False, "device": "cpu"},
        **changes,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
        model = HookedTransformer(HookedTransformerConfig(**fields))
    for name, p in list(model.named_parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
        owner, _, leaf = name.rpartition(".")
        if leaf.startswith("b_"):
            delattr(model.get_submodule(owner), leaf)
            model.get_submodule(owner).register_buffer(leaf, torch.zeros(p.shape), persistent=False)
    return model


def test_a_model_made_elsewhere_is_fine():
    model = lens_model()
    tokens = draw(model)
    torch.testing.assert_close(fast_logits(model, tokens), model(tokens), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [pytest.param(changes, id=name) for name, changes in UNSUPPORTED.items()]
    + [pytest.param(changes, id=name, marks=pytest.mark.tl3) for name, changes in UNKNOWN_TO_TL4.items()],
)
def test_unsupported_configurations_are_refused(changes):
    model = lens_model(**changes)
    with pytest.raises(QflError, match="does not compute this model's function"):
        fast_logits(model, draw(model))


@pytest.mark.tl3
def test_all_differences_are_listed():
    model = lens_model(act_fn="relu2", use_qk_norm=True)
    with pytest.raises(
        QflError, match=r"(?s)use_qk_norm=True instead of False.*act_fn='relu2' instead of 'silu', .* or 'relu'"
    ):
        fast_logits(model, draw(model))


def test_another_kind_of_model_is_refused():
    with pytest.raises(QflError, match="is a Linear instead of a HookedTransformer"):
        fast_logits(nn.Linear(2, 2), torch.zeros(1, 2, dtype=torch.int64))


def _soft_cap(model):
    model.cfg.attn_scores_soft_cap = 5.0


def _bias(model):
    with torch.no_grad():
        model.blocks[1].attn.b_Q += 1


def _trained_bias(model):
    bias = model.blocks[1].mlp.b_in
    del model.blocks[1].mlp.b_in
    model.blocks[1].mlp.b_in = nn.Parameter(bias)


def _other_mlp(model):
    model.blocks[0].mlp = nn.Identity()


def _own_forward(model):
    model.blocks[0].mlp.forward = types.MethodType(lambda self, x: x, model.blocks[0].mlp)
    model.blocks[0] = model.blocks[0]


def _rotary(model):
    model.blocks[1].attn.rotary_sin *= -1


@pytest.mark.parametrize("change", [_soft_cap, _bias, _trained_bias, _other_mlp, _rotary], ids=lambda f: f.__name__)
def test_a_model_changed_after_the_first_call_is_refused(change):
    model = make()
    tokens = draw(model)
    fast_logits(model, tokens)
    change(model)
    with pytest.raises(QflError, match="does not compute this model's function"):
        fast_logits(model, tokens)


def test_a_forward_of_its_own_is_refused():
    model = make()
    _own_forward(model)
    with pytest.raises(QflError, match=r"blocks.0.mlp has a forward of its own"):
        fast_logits(model, draw(model))


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_attached_hooks_are_refused_until_removed(kind):
    model = make()
    tokens = draw(model)
    fast_logits(model, tokens)
    handle = getattr(model.blocks[1].hook_resid_post, f"register_{kind}_hook")(lambda *_: None)
    for call in (lambda: fast_logits(model, tokens), lambda: fast_resid(model, tokens, [0])):
        with pytest.raises(QflError, match=r"hooks are attached at blocks.1.hook_resid_post"):
            call()
    handle.remove()
    fast_logits(model, tokens)
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z)
    with pytest.raises(QflError, match=r"blocks.0.attn.hook_z"):
        fast_logits(model, tokens)
    model.reset_hooks()
    fast_logits(model, tokens)


BAD_POSITIONS = {
    "unsorted": torch.tensor([3, 2]),
    "twice": torch.tensor([2, 2]),
    "negative": torch.tensor([-1, 2]),
    "beyond": torch.tensor([2, 13]),
    "none": torch.tensor([], dtype=torch.int64),
    "empty slice": slice(5, 5),
    "backwards": slice(9, 2, -1),
}


@pytest.mark.parametrize("positions", BAD_POSITIONS.values(), ids=BAD_POSITIONS)
def test_bad_positions(positions):
    model = make()
    with pytest.raises(ValueError, match=r"increasing indices in \[0, 13\)"):
        fast_logits(model, draw(model), positions)


def test_bad_lengths_and_layers():
    model = make()
    with pytest.raises(ValueError, match="at most n_ctx = 14 long, got 15"):
        fast_logits(model, draw(model, n_pos=15))
    for layers in ([], [2], [-1]):
        with pytest.raises(ValueError, match=r"layers must lie in \[0, 2\)"):
            fast_resid(model, draw(model), layers)


def test_a_second_derivative_is_refused():
    model = make()
    loss = fast_logits(model, draw(model)).square().sum()
    (first,) = torch.autograd.grad(loss, [model.embed.W_E], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def _raise_at_once(*_, **__):
    raise RuntimeError("no C++ compiler here\nlong trace")


def _raise_when_called(*_, **__):
    return _raise_at_once


@pytest.mark.parametrize("compiler", [_raise_at_once, _raise_when_called], ids=lambda f: f.__name__)
def test_compilation_that_fails_falls_back_and_says_so(compiler, monkeypatch):
    monkeypatch.setattr(torch, "compile", compiler)
    model = make()
    tokens = draw(model)
    with pytest.warns(RuntimeWarning, match="goes on uncompiled: no C\\+\\+ compiler here"):  # noqa: PT031
        run = compile_fast_logits(model)  # warns here or at the first call
        got = run(tokens, slice(2, 5))
    assert torch.equal(got, fast_logits(model, tokens, slice(2, 5)))
    assert torch.equal(run(tokens), fast_logits(model, tokens))  # and warns once only


@pytest.mark.slow
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_compiled_form_equals_the_model(style, monkeypatch, request):
    # The graph that is compiled, run by torch itself: no C++ compiler needed. Type checks cannot be traced.
    jaxtyping.config.update("jaxtyping_disable", True)
    request.addfinalizer(lambda: jaxtyping.config.update("jaxtyping_disable", False))
    build = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: build(f, backend="aot_eager", fullgraph=True, **k))
    model = make(style)
    tokens = draw(model)
    run = compile_fast_logits(model)
    got, want = run(tokens, slice(5, 12)), model(tokens)[:, 5:12]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert_gradients_close(gradients(model, got), gradients(model, want), 1e-5)
    model.add_hook("blocks.0.hook_resid_post", lambda x, hook: x)
    with pytest.raises(QflError, match="hooks are attached"):
        run(tokens, slice(5, 12))
