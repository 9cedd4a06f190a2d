"""Activations where they are read: equal to the cache, and nothing computed or kept that was not asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import pairwise
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from qfl_interp.activations import spans as activations
from qfl_interp.activations.spans import Place, SiteSpan, site_span, site_spans, stream_spans
from qfl_interp.config import ModelConfig
from qfl_interp.data.task import NO_POSITION
from qfl_interp.errors import QflError
from qfl_interp.models.build import build_hooked, hooked_from_hf
from qfl_interp.models.hooks import Intervention, Site, interventions_on
from qfl_interp.sites import HEAD_SITES, PROBE_SITES, SITES

D_MODEL, N_LAYERS, N_HEADS, N_CTX, N_EXAMPLES = 16, 3, 4, 11, 20
FIRST, LAST = 3, 8


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 5, (N_EXAMPLES, N_CTX), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return build_hooked(ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS, style=request.param), d_vocab=5, n_ctx=N_CTX)


@pytest.fixture(scope="module")
def llama():
    return build_hooked(ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS), d_vocab=5, n_ctx=N_CTX, seed=1)


def cached(model, tokens, name, layer, head=-1):
    """One place's activations at every position, [pos, example, d], from TransformerLens's own cache."""
    point = f"blocks.{layer}.{SITES[name].hook}"
    _, cache = model.run_with_cache(tokens, names_filter=point)
    found = cache[point] if head < 0 else cache[point][:, :, head]
    return found.detach().transpose(0, 1)


def check_against_cache(model, tokens, span, places):
    assert list(span.places) == places
    assert span.values.is_contiguous()
    n_pos = LAST - FIRST + 1
    for index, (layer, head) in enumerate(places):
        want = cached(model, tokens, span.name, layer, head)[FIRST : LAST + 1]
        assert span.values[index].shape == (n_pos, N_EXAMPLES, want.shape[-1])
        # The fast path sums in another order, and so do matrix products of other sizes, in float32.
        torch.testing.assert_close(span.values[index], want, rtol=1e-5, atol=1e-5)


def layer_places(name, layers):
    """Layer by layer; every head of a layer at a site with heads."""
    return [Place(layer, head) for layer in layers for head in (range(N_HEADS) if name in HEAD_SITES else [-1])]


# Values


@pytest.mark.parametrize(
    ("model", "name", "chunk"), pairwise(["llama", "gpt2"], PROBE_SITES, [7, 500]), indirect=["model"]
)
def test_every_site_equals_the_cache(model, tokens, name, chunk):
    span = site_span(model, tokens, FIRST, LAST, name=name, chunk=chunk)
    assert (span.name, span.first) == (name, FIRST)
    check_against_cache(model, tokens, span, layer_places(name, range(N_LAYERS)))


@pytest.mark.parametrize("layers", [[1], [2, 0]], ids=str)
@pytest.mark.parametrize("name", ["resid_post", "mlp_out", "z"])
def test_layers_come_in_the_order_asked_for(llama, tokens, name, layers):
    span = site_span(llama, tokens, FIRST, LAST, name=name, layers=layers)
    check_against_cache(llama, tokens, span, layer_places(name, layers))


def test_a_site_does_not_depend_on_its_company(llama, tokens):
    names = ["z", "resid_post", "mlp_post"]
    together = site_spans(llama, tokens, FIRST, LAST, names=names)
    assert list(together) == names
    for name in names:
        alone = site_span(llama, tokens, FIRST, LAST, name=name)
        assert alone.places == together[name].places
        assert torch.equal(alone.values, together[name].values)


def test_hooks_that_are_on_the_model_act(llama, tokens):
    plain = site_span(llama, tokens, FIRST, LAST)
    zeroed = Intervention(Site(0, "mlp_out"), torch.zeros_like)
    with interventions_on(llama, [zeroed]):
        found = site_span(llama, tokens, FIRST, LAST)
        check_against_cache(llama, tokens, found, layer_places("resid_post", range(N_LAYERS)))
    assert not torch.allclose(found.values, plain.values)
    assert torch.equal(site_span(llama, tokens, FIRST, LAST).values, plain.values)


def test_a_hugging_face_model_through_the_bridge(tokens):
    config = GPTNeoXConfig(
        vocab_size=5, hidden_size=D_MODEL, intermediate_size=24, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, max_position_embeddings=N_CTX, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = GPTNeoXForCausalLM(config).eval()
    wanted: dict[int, torch.Tensor] = {}

    def keep(at):
        return lambda _module, _inputs, out: wanted.__setitem__(at, out[0] if isinstance(out, tuple) else out)

    handles = [layer.register_forward_hook(keep(at)) for at, layer in enumerate(plain.gpt_neox.layers)]
    with torch.no_grad():
        plain(tokens)
    for handle in handles:
        handle.remove()
    bridge = hooked_from_hf(plain)
    spans = site_spans(bridge, tokens, FIRST, LAST, names=["resid_post", "z", "mlp_post"], chunk=6)
    for layer, want in wanted.items():
        got = spans["resid_post"].values[layer]
        torch.testing.assert_close(got, want[:, FIRST : LAST + 1].transpose(0, 1), rtol=1e-5, atol=1e-5)
    assert spans["z"].values.shape == (N_LAYERS * N_HEADS, LAST - FIRST + 1, N_EXAMPLES, D_MODEL // N_HEADS)
    assert spans["z"].places == tuple(layer_places("z", range(N_LAYERS)))
    heads = torch.stack([cached(bridge, tokens, "z", 1, head) for head in range(N_HEADS)])[:, FIRST : LAST + 1]
    torch.testing.assert_close(spans["z"].values[N_HEADS : 2 * N_HEADS], heads, rtol=1e-5, atol=1e-5)
    assert spans["mlp_post"].values.shape[-1] == 24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(llama, tokens):
    names = ["resid_post", "z"]
    want = site_spans(llama, tokens, FIRST, LAST, names=names)
    found = site_spans(llama.to("cuda"), tokens, FIRST, LAST, names=names)
    llama.to("cpu")
    for name in names:
        assert found[name].values.device.type == "cpu"
        torch.testing.assert_close(found[name].values, want[name].values, rtol=1e-4, atol=1e-4)


# Nothing that was not asked for


def test_the_forward_pass_ends_where_the_last_site_is_read(llama, tokens):
    ran = []
    modules = {
        "block 0": llama.blocks[0],
        "attention 1": llama.blocks[1].attn,
        "mlp 1": llama.blocks[1].mlp,
        "block 2": llama.blocks[2],
        "unembed": llama.unembed,
    }
    handles = [
        module.register_forward_pre_hook(lambda _m, inputs, name=name: ran.append((name, [x.shape[1] for x in inputs])))
        for name, module in modules.items()
    ]
    try:
        site_spans(llama, tokens, FIRST, LAST, names=["attn_out", "z"], layers=[1, 0], chunk=N_EXAMPLES)
        stopped = [name for name, _ in ran]
        lengths = {n for _, shapes in ran for n in shapes}
        ran.clear()
        site_spans(llama, tokens, FIRST, LAST, names=["mlp_out"], layers=[1], chunk=N_EXAMPLES)
        further = [name for name, _ in ran]
    finally:
        for handle in handles:
            handle.remove()
    assert stopped == ["block 0", "attention 1"]
    assert lengths == {LAST + 1}
    assert further == ["block 0", "attention 1", "mlp 1"]


def test_resid_post_goes_through_the_fast_path_alone(llama, tokens, monkeypatch):
    asked = []
    true = activations.fast_resid

    def noted(model, tokens, layers, positions):
        asked.append((tuple(tokens.shape), list(layers), positions))
        return true(model, tokens, layers, positions)

    monkeypatch.setattr(activations, "fast_resid", noted)
    with monkeypatch.context() as patched:
        patched.setattr(activations, "interventions_on", lambda *_: pytest.fail("hooked"))
        site_span(llama, tokens, FIRST, LAST, layers=[1], chunk=N_EXAMPLES)
    assert asked == [((N_EXAMPLES, LAST + 1), [1], slice(FIRST, LAST + 1))]
    site_span(llama, tokens, FIRST, LAST, name="resid_pre")
    assert len(asked) == 1


def test_no_hook_stays_and_gradients_are_off(llama, tokens):
    before = {name: len(point._forward_hooks) for name, point in llama.hook_dict.items()}
    span = site_span(llama, tokens, FIRST, LAST, name="q")
    assert {name: len(point._forward_hooks) for name, point in llama.hook_dict.items()} == before
    assert not span.values.requires_grad


def test_what_is_kept_is_no_view_of_the_activation(llama, tokens):
    for parts in stream_spans(llama, tokens, FIRST, LAST, names=["z", "mlp_post"], layers=[0, 1], chunk=7):
        for by_layer in parts.values():
            for part in by_layer:
                assert part.untyped_storage().nbytes() == part.numel() * 4


# Two of forty positions of one site are kept.
MEMORY = """
import json, sys, torch
from benchmarks._memory import reset_peak_mib, status_mib
from qfl_interp.activations.spans import site_span
from qfl_interp.config import ModelConfig
from qfl_interp.models.build import build_hooked
torch.set_num_threads(1)
model = build_hooked(ModelConfig(d_model=64, n_layers=1), d_vocab=5, n_ctx=40)
tokens = torch.zeros(4000, 40, dtype=torch.long)
site_span(model, tokens[:50], 38, 39, name="resid_mid", layers=[0], chunk=50)
start = reset_peak_mib()
kept = site_span(model, tokens, 38, 39, name="resid_mid", layers=[0], chunk=50)
print(json.dumps({"grown": status_mib("VmHWM") - start, "kept": kept.values.nbytes / 2**20}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's memory counters")
def test_peak_memory_is_the_result_and_one_chunk():
    # In a process of its own: here the allocator may hold freed memory that hides a peak.
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["kept"] == pytest.approx(4000 * 2 * 64 * 4 / 2**20)
    # All forty positions would be 39 MiB.
    assert found["grown"] < found["kept"] + 20


# Errors


@pytest.mark.parametrize("span", [(-1, 3), (4, 3), (0, N_CTX)], ids=str)
def test_a_span_outside_the_sequence_is_refused(llama, tokens, span):
    with pytest.raises(ValueError, match=rf"0 <= first <= last < {N_CTX}, got"):
        site_span(llama, tokens, *span)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": []}, r"names must be one or more different ones of \['resid_pre'.*got \[\]"),
        ({"names": ["z", "z"]}, r"got \['z', 'z'\]"),
        ({"names": ["pattern"]}, r"got \['pattern'\]"),
        ({"layers": []}, r"layers must be one or more different ones, got \[\]"),
        ({"layers": [1, 1]}, r"got \[1, 1\]"),
        ({"layers": [N_LAYERS]}, rf"layers must lie in \[0, {N_LAYERS}\), got \[{N_LAYERS}\]"),
        ({"layers": [-1]}, r"got \[-1\]"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_refused(llama, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        site_spans(llama, tokens, FIRST, LAST, **{"names": ["resid_post"]} | changes)


def test_no_examples_are_refused(llama, tokens):
    with pytest.raises(ValueError, match="at least one example, got 0"):
        site_span(llama, tokens[:0], FIRST, LAST)


def test_an_activation_of_another_shape_is_refused(llama, tokens, monkeypatch):
    monkeypatch.setitem(SITES, "mlp_out", SITES["mlp_out"]._replace(hook="attn.hook_z"))
    with pytest.raises(QflError, match=r"'mlp_out' must be \[batch, pos, d_model\].*got \[20, 9, 4, 4\].*attn.hook_z"):
        site_span(llama, tokens, FIRST, LAST, name="mlp_out")


# Reading

POSITIONS = {
    "consecutive": np.tile([4, 5, 6], (N_EXAMPLES, 1)),
    "apart": np.tile([8, 3, 5], (N_EXAMPLES, 1)),
    "by-example": np.random.default_rng(0).integers(3, 9, (N_EXAMPLES, 3)),
    "missing": np.where(
        np.random.default_rng(1).random((N_EXAMPLES, 3)) < 0.4,
        NO_POSITION,
        np.random.default_rng(2).integers(3, 9, (N_EXAMPLES, 3)),
    ),
}


@pytest.fixture(scope="module")
def numbered():
    """A span whose every activation says where it is: place * 10,000 + pos * 100 + example."""
    place, pos, example = torch.meshgrid(torch.arange(2), torch.arange(3, 9), torch.arange(N_EXAMPLES), indexing="ij")
    values = (place * 10_000 + pos * 100 + example)[..., None].expand(-1, -1, -1, 5).float().contiguous()
    return SiteSpan("z", (Place(1, 0), Place(1, 3)), 3, values)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_read_against_a_loop(numbered, positions):
    found = numbered.read(positions)
    assert found.present.tolist() == (positions != NO_POSITION).T.tolist()
    assert found.x.shape == (2, 3, N_EXAMPLES, 5)
    for example in range(N_EXAMPLES):
        for label in range(3):
            pos = positions[example, label]
            for place in range(2):
                want = 0 if pos == NO_POSITION else place * 10_000 + pos * 100 + example
                assert (found.x[place, label, example] == want).all()


def test_labels_read_at_one_position_share_its_activations(numbered):
    x, kept = numbered.read(np.full((N_EXAMPLES, 4), 6))
    assert kept.all()
    assert x.untyped_storage().data_ptr() == numbered.values.untyped_storage().data_ptr()
    torch.testing.assert_close(x, numbered.values[:, [3, 3, 3, 3]], rtol=0, atol=0)


def test_read_copies_nothing_where_all_examples_read_the_same_stretch(numbered):
    storage = numbered.values.untyped_storage().data_ptr()
    assert numbered.read(POSITIONS["consecutive"]).x.untyped_storage().data_ptr() == storage
    assert numbered.read(POSITIONS["by-example"]).x.untyped_storage().data_ptr() != storage


@pytest.mark.parametrize("place", [2, 9])
def test_read_outside_the_span_is_refused(numbered, place):
    positions = POSITIONS["consecutive"].copy()
    positions[3, 1] = place
    low, high = min(place, 4), max(place, 6)
    with pytest.raises(ValueError, match=rf"the span \[3, 8\], got \[{low}, {high}\]. Capture"):
        numbered.read(positions)


def test_read_with_other_examples_is_refused(numbered):
    with pytest.raises(ValueError, match=f"a row for each of the {N_EXAMPLES} examples of 'z', got 5"):
        numbered.read(POSITIONS["consecutive"][:5])


def test_a_span_describes_itself(numbered):
    assert repr(numbered) == "SiteSpan('z': 2 places, positions 3 to 8, 20 examples, width 5, float32)"
