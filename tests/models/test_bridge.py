"""Hugging Face models through the hook interface, against plain PyTorch hooks on their own modules."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformer_lens import HookedRootModule
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CTRLConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
)

from qfl_interp.data.task import Batch
from qfl_interp.errors import QflError
from qfl_interp.interventions.edits import edit_at
from qfl_interp.interventions.planes import project_out
from qfl_interp.interventions.scoring import score_units
from qfl_interp.models.build import hooked_from_hf, layer_count, model_device, parameters_to_save
from qfl_interp.models.forward import is_fast, logits_at
from qfl_interp.models.hooks import (
    Intervention,
    Site,
    hook_point,
    interventions_on,
    read_activations,
    write_activation,
)
from qfl_interp.models.hugging_face import new_model, quiet
from qfl_interp.runs.sources.hugging_face import HuggingFace
from qfl_interp.sites import SITES
from tests.helpers_suite import D_MODEL, D_VOCAB, N_HEADS, N_LAYERS, llama_config, neox_config, save_model

D_HEAD = D_MODEL // N_HEADS
CONFIGS = {
    "neox": neox_config(),
    "neox-sequential": neox_config(use_parallel_residual=False),
    "llama": llama_config(),
}
# Site -> module of a block, which end of it, for each family. q, k, v of GPT-NeoX are slices of one output.
MODULES = {
    "neox": {
        "resid_pre": ("", "in"),
        "resid_mid": ("post_attention_layernorm", "in"),
        "resid_post": ("", "out"),
        "attn_out": ("attention", "out"),
        "mlp_out": ("mlp", "out"),
        "q": ("attention.query_key_value", "out"),
        "k": ("attention.query_key_value", "out"),
        "v": ("attention.query_key_value", "out"),
        "z": ("attention.dense", "in"),
        "mlp_pre": ("mlp.dense_h_to_4h", "out"),
        "mlp_post": ("mlp.dense_4h_to_h", "in"),
    },
    "llama": {
        "resid_pre": ("", "in"),
        "resid_mid": ("post_attention_layernorm", "in"),
        "resid_post": ("", "out"),
        "attn_out": ("self_attn", "out"),
        "mlp_out": ("mlp", "out"),
        "q": ("self_attn.q_proj", "out"),
        "k": ("self_attn.k_proj", "out"),
        "v": ("self_attn.v_proj", "out"),
        "z": ("self_attn.o_proj", "in"),
        "mlp_pre": ("mlp.gate_proj", "out"),
        "mlp_post": ("mlp.down_proj", "in"),
    },
}
CASES = [
    pytest.param(arch, name, id=f"{arch}-{name}")
    for arch in CONFIGS
    for name in MODULES["neox"]
    if (arch, name) != ("neox", "resid_mid")
]
# A change of the stream between attention and MLP is a change of two inputs of plain modules.
WRITABLE = [case for case in CASES if case.values[1] != "resid_mid"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Architecture -> three steps of one model on disk."""
    root = tmp_path_factory.mktemp("models")
    return {
        arch: [save_model(config, root / f"{arch}{step}", noise=0.1 * step) for step in range(3)]
        for arch, config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def models(saved):
    """Architecture -> three steps, each as the bridge and as the model on its own; nothing may stay on them."""
    return {arch: [(bridged(folder), plain(folder)) for folder in folders] for arch, folders in saved.items()}


def bridged(folder):
    return HuggingFace(str(folder)).load()


def plain(folder):
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def draw_tokens(seed=0, n=3, length=9):
    return torch.randint(0, D_VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


@contextmanager
def hf_hook(model, layer, name, change):
    """`change` applied at the site by a plain hook on the module of the Hugging Face model."""
    family = "llama" if model.config.model_type == "llama" else "neox"
    path, end = MODULES[family][name]
    block = (model.model if family == "llama" else model.gpt_neox).layers[layer]
    module = block.get_submodule(path)

    def changed(x):
        if family == "neox" and name in "qkv":
            at = "qkv".index(name)
            heads = x.view(*x.shape[:2], N_HEADS, 3 * D_HEAD).clone()
            heads[..., at * D_HEAD : (at + 1) * D_HEAD] = change(heads[..., at * D_HEAD : (at + 1) * D_HEAD])
            return heads.reshape(x.shape)
        if name in "qkvz":
            return change(x.view(*x.shape[:2], -1, D_HEAD)).reshape(x.shape)
        return change(x)

    def on_out(_module, _inputs, output):
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    def on_in(_module, args, kwargs):
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": changed(kwargs["hidden_states"])}

    handle = (
        module.register_forward_pre_hook(on_in, with_kwargs=True)
        if end == "in"
        else module.register_forward_hook(on_out)
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def hf_activation(model, tokens, layer, name):
    seen = []
    with hf_hook(model, layer, name, lambda x: seen.append(x.clone()) or x):
        model(tokens)
    return seen[0]


@torch.no_grad()
def hf_logits(model, tokens, layer, name, change):
    with hf_hook(model, layer, name, change):
        return model(tokens).logits


@pytest.mark.parametrize("arch", CONFIGS)
def test_logits_are_the_models_own(models, arch):
    tokens = draw_tokens()
    for model, reference in models[arch]:
        with torch.no_grad():
            expected = reference(tokens).logits
            assert torch.equal(model(tokens), expected)
        assert torch.equal(logits_at(model, tokens, slice(2, 5)), expected[:, 2:5])
    assert not torch.allclose(models[arch][0][1](tokens).logits, expected, atol=1e-3)
    assert model_device(model) == torch.device("cpu")
    assert not model.training
    assert not is_fast(model)


@pytest.mark.parametrize(("arch", "name"), CASES)
def test_capture_sees_what_the_module_computes(models, arch, name):
    tokens = draw_tokens()
    for model, reference in models[arch]:
        for layer in range(N_LAYERS):
            expected = hf_activation(reference, tokens, layer, name)
            some = Site(layer, name, (4, 1))
            found = read_activations(model, tokens, [Site(layer, name), some])
            torch.testing.assert_close(found[Site(layer, name)], expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found[some], expected[:, [4, 1]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch", CONFIGS)
def test_attention_scores_and_pattern(models, arch):
    tokens = draw_tokens()
    model, reference = models[arch][1]
    with torch.no_grad():
        expected = reference(tokens, output_attentions=True).attentions
    for layer in range(N_LAYERS):
        pattern, scores = Site(layer, "pattern"), Site(layer, "attn_scores")
        found = read_activations(model, tokens, [pattern, scores])
        torch.testing.assert_close(found[pattern], expected[layer], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[scores].softmax(dim=-1), expected[layer], rtol=1e-5, atol=1e-6)
        # Looking at itself alone, a token's z is its own value.
        alone = Intervention(pattern, lambda p: torch.eye(p.shape[-1]).expand_as(p))
        with interventions_on(model, [alone]):
            after = read_activations(model, tokens, [Site(layer, "z"), Site(layer, "v")])
        torch.testing.assert_close(
            after[Site(layer, "z")], after[Site(layer, "v")].expand(-1, -1, N_HEADS, -1), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("arch", "name"), WRITABLE)
def test_patch_and_edit_act_as_on_the_module(models, arch, name):
    """Another run's activation at two positions, and a direction taken out, at every step and layer."""
    clean, other = draw_tokens(0), draw_tokens(1)
    where = torch.tensor([[2, 5], [6, -1], [0, 3]])
    for step, (model, reference) in enumerate(models[arch]):
        layer = step % N_LAYERS
        site = Site(layer, name, (3, 6))
        source = hf_activation(reference, other, layer, name)[:, [3, 6]]

        def swap(x, source=source):
            changed = x.clone()
            changed[:, [3, 6]] = source
            return changed

        with (
            interventions_on(model, [write_activation(site, read_activations(model, other, [site])[site])]),
            torch.no_grad(),
        ):
            patched = model(clean)
        expected = hf_logits(reference, clean, layer, name, swap)
        torch.testing.assert_close(patched, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(patched, reference(clean).logits, atol=1e-4)

        def doubled(x):
            changed = x.clone()
            for example, label in ((0, 2), (0, 5), (1, 6), (2, 0), (2, 3)):
                changed[example, label] = 2 * x[example, label] + 1
            return changed

        edited = logits_at(model, clean, slice(None), [edit_at(Site(layer, name), lambda x: 2 * x + 1, where)])
        torch.testing.assert_close(edited, hf_logits(reference, clean, layer, name, doubled), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("name", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_project_out_acts_as_on_the_module(models, arch, name):
    tokens = draw_tokens()
    w = torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(4))
    offset = torch.tensor([0.3])
    for model, reference in models[arch]:
        for layer in range(N_LAYERS):

            def onto_plane(x):
                return x - ((x @ w[0] + offset) / w.norm() ** 2)[..., None] * w[0]

            found = logits_at(model, tokens, slice(None), [project_out(Site(layer, name), w, offsets=offset)])
            expected = hf_logits(reference, tokens, layer, name, onto_plane)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(found, model(tokens), atol=1e-4)


@pytest.mark.parametrize("arch", ["neox-sequential", "llama"])
def test_the_middle_of_a_sequential_block(saved, arch):
    """Zeroing attention's output leaves the stream as it came in; a change there reaches the end of the block."""
    tokens, model = draw_tokens(), bridged(saved[arch][0])
    mid, pre, out = Site(1, "resid_mid"), Site(1, "resid_pre"), Site(1, "attn_out")
    with interventions_on(model, [Intervention(out, torch.zeros_like)]):
        found = read_activations(model, tokens, [mid, pre])
    torch.testing.assert_close(found[mid], found[pre], rtol=0, atol=0)


def test_every_block_site_is_there_or_says_why(saved):
    for arch, folders in saved.items():
        model = bridged(folders[0])
        for name in SITES:
            if (arch, name) == ("neox", "resid_mid"):
                with pytest.raises(QflError, match=r"'blocks.0.hook_resid_mid'.*run attention and MLP side by side"):
                    hook_point(model, Site(0, name).hook_name)
            else:
                assert read_activations(model, draw_tokens(), [Site(0, name)])[Site(0, name)].isfinite().any()


class NotSetUp(HookedRootModule):
    """A module that never looked for its hook points."""


def test_what_cannot_be_hooked_says_why(saved):
    model, tokens = bridged(saved["neox"][0]), draw_tokens()
    with pytest.raises(QflError, match=r"no hook point 'blocks.2.hook_resid_post'. Did you mean .*has 2 layers"):
        read_activations(model, tokens, [Site(2)])
    gated = Site(None, "blocks.0.attn.hook_result")
    with pytest.raises(QflError, match=r"use_attn_result is False. Call model.set_use_attn_result\(True\)"):
        read_activations(model, tokens, [gated])
    model.set_use_attn_result(True)
    found = read_activations(model, tokens, [gated, Site(0, "attn_out")])
    bias = plain(saved["neox"][0]).gpt_neox.layers[0].attention.dense.bias
    torch.testing.assert_close(found[gated].sum(2) + bias, found[Site(0, "attn_out")], rtol=1e-5, atol=1e-5)
    with pytest.raises(QflError, match=r"NotSetUp has no hook points.*hooked_from_hf"):
        hook_point(NotSetUp(), "hook_embed")


def test_models_without_a_bridge_say_why():
    sizes = {"vocab_size": 9, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1, "dff": 8}
    with pytest.raises(QflError, match=r"hook points into CTRLLMHeadModel: ValueError: Unsupported architecture"):
        hooked_from_hf(new_model(CTRLConfig(**sizes), 0))
    with pytest.raises(QflError, match="transformers is needed, got a Linear, which has no `config`"):
        hooked_from_hf(torch.nn.Linear(3, 3))
    with quiet():
        fused = AutoModelForCausalLM.from_config(neox_config(), attn_implementation="sdpa")
    with pytest.raises(QflError, match="attn_implementation='eager', got 'sdpa'"):
        hooked_from_hf(fused)


def test_interventions_leave_a_bridge_as_it_was(saved):
    model, tokens = bridged(saved["neox"][0]), draw_tokens()
    site, point = Site(1, "z"), hook_point(model, "blocks.1.attn.hook_z")
    clean = model(tokens)
    seen = []
    point.add_hook(lambda x, hook: seen.append(tuple(x.shape)))
    before = [len(m._forward_hooks) for m in model.modules()]
    with interventions_on(model, [Intervention(site, torch.zeros_like)]):
        assert not torch.allclose(model(tokens), clean, atol=1e-4)
    assert [len(m._forward_hooks) for m in model.modules()] == before
    assert len(point.fwd_hooks) == 1, "the user's own hook stays"
    assert torch.equal(model(tokens), clean)
    assert seen == [(3, 9, N_HEADS, D_HEAD)] * 2


def test_stopping_early_and_interventions_that_never_fire(saved):
    model, tokens = bridged(saved["neox"][0]), draw_tokens()
    first = Site(0)
    assert torch.equal(
        read_activations(model, tokens, [first], stop_at_layer=1)[first],
        read_activations(model, tokens, [first])[first],
    )
    with pytest.raises(QflError, match=r"never fired: <late at blocks.1.hook_resid_post>"):
        with interventions_on(model, [Intervention(Site(1), lambda x: x, "late")]):
            model(tokens, stop_at_layer=1)


def test_gradients_pass_through_an_edited_norm(saved):
    """A raw PyTorch hook would cut the graph here."""
    model, tokens = bridged(saved["llama"][0]), draw_tokens()
    seen = {}

    def keep(x):
        seen["resid"] = x.requires_grad_()
        return x

    halve = Intervention(Site(None, "ln_final.hook_normalized"), lambda x: x / 2)
    with pytest.warns(UserWarning, match="float-rounding"):
        with interventions_on(model, [Intervention(Site(1), keep), halve]):
            logits = model(tokens)
    (found,) = torch.autograd.grad(logits.square().sum(), seen["resid"])
    resid = seen["resid"].detach().requires_grad_()
    reference = plain(saved["llama"][0])
    eps = reference.config.rms_norm_eps
    norm = resid / (resid.square().mean(-1, keepdim=True) + eps).sqrt() / 2 * reference.model.norm.weight
    (expected,) = torch.autograd.grad((norm @ reference.lm_head.weight.T).square().sum(), resid)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        (GPTNeoXConfig, {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}),
        (GPT2Config, {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}),
        (LlamaConfig, {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}),
        (
            Phi3Config,
            {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"num_key_value_heads": 2, "pad_token_id": 0},
        ),
    ],
    ids=["neox", "gpt2", "llama", "phi3"],
)
def test_a_bridge_has_as_many_trained_numbers_as_its_model_and_reads_all_of_them(family, sizes):
    # Bridges keep fused projections beside the parts they split them into, and add a bias to the unembedding.
    config = family(vocab_size=5, **sizes)
    with quiet():
        hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        n_trained = sum(parameter.numel() for parameter in hf.parameters())
        logits = hf(torch.tensor([[1, 2, 3]])).logits.detach()
        bridge = hooked_from_hf(hf)
    tensors = parameters_to_save(bridge)
    assert sum(tensor.numel() for tensor in tensors.values()) == n_trained
    found = bridge(torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(found.detach(), logits)
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in bridge.parameters())


def test_a_model_without_a_configuration_is_named():
    batch = Batch(draw_tokens(), torch.ones_like(draw_tokens(), dtype=torch.bool))
    for ask in (layer_count, lambda model: score_units(model, batch)):
        with pytest.raises(QflError, match=r"NotSetUp has none. Wrap a Hugging Face model: qfl_interp.hooked_from_hf"):
            ask(NotSetUp())


def test_a_bridge_with_other_logits_is_refused():
    """That of transformer-lens 3.9 turns Cohere's queries and keys by halves; the model turns neighbours."""
    config = CohereConfig(**llama_config().to_dict() | {"model_type": "cohere"})
    with pytest.raises(QflError, match=r"bridge for CohereForCausalLM must compute the model's own logits, but is off"):
        hooked_from_hf(new_model(config, 0))
