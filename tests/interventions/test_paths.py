"""Path patching against the same paths worked out from the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.interventions import paths
from qfl_interp.interventions.pairs import patch_pairs, score_pairs
from qfl_interp.interventions.paths import Node, head_senders, path_patch
from qfl_interp.models import forward
from qfl_interp.models.build import build_model
from qfl_interp.models.hooks import Site


@pytest.fixture(scope="module")
def task():
    return qfl.load_task("addition", length=3)


@pytest.fixture(scope="module")
def pairs(task):
    return patch_pairs(task, task.sample_pairs(np.random.default_rng(0), 3, "carry", 1))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, task):
    config = qfl.ModelConfig(d_model=16, n_layers=2, n_heads=2, style=request.param)
    return build_model(config, task, seed=1).to(torch.float64, print_details=False)


@pytest.fixture(scope="module")
def caches(model, pairs):
    """Clean and corrupted activations."""
    with torch.no_grad():
        return [model.run_with_cache(tokens)[1] for tokens in (pairs.clean, pairs.corrupted)]


def z(layer, head, positions=None):
    return Node(Site(layer, "z", positions), head)


def sent(model, caches, sender):
    """What the sender's clean activation adds to the residual stream."""
    clean, corrupted = (cache[sender.site.hook_name] for cache in caches)
    moved = clean - corrupted
    if sender.site.name == "z":
        moved = moved[:, :, sender.head] @ model.blocks[sender.layer].attn.W_O[sender.head]
    if sender.site.positions is not None:
        kept = torch.zeros_like(moved)
        kept[:, list(sender.site.positions)] = moved[:, list(sender.site.positions)]
        return kept
    return moved


def mlp(model, layer, resid_mid):
    block = model.blocks[layer]
    return block.mlp(block.ln2(resid_mid))


def arrived(model, caches, sender, at, through_mlps):
    """The change of the residual stream before sublayer `at` (2 layer: attention, 2 layer + 1: MLP, 4: the end)."""
    corrupted = caches[1]
    change = sent(model, caches, sender)
    if not through_mlps:
        return change
    written = 2 * sender.layer + (sender.site.name == "mlp_out")
    for layer in range(2):
        if written < 2 * layer + 1 < at:
            mid = corrupted[f"blocks.{layer}.hook_resid_mid"]
            change = change + mlp(model, layer, mid + change) - corrupted[f"blocks.{layer}.hook_mlp_out"]
    return change


def receiver_hooks(model, caches, sender, receiver, through_mlps):
    """Hooks that write the receiver's activation, computed from the changed residual stream it reads."""
    block, corrupted = model.blocks[receiver.layer], caches[1]
    name = receiver.site.name
    stage = {"mlp_pre": 2 * receiver.layer + 1, "resid_post": 2 * receiver.layer + 2}.get(name, 2 * receiver.layer)
    change = arrived(model, caches, sender, stage, through_mlps)
    where = slice(None) if receiver.site.positions is None else list(receiver.site.positions)
    prefix = f"blocks.{receiver.layer}."
    if name == "resid_post":
        stream = corrupted[prefix + "hook_resid_post"] + change
        return [(prefix + "hook_resid_post", lambda x, hook: stream)]
    if name == "mlp_pre":
        # All that the MLP reads goes through its normalised input.
        written = block.ln2(corrupted[prefix + "hook_resid_mid"] + change)

        def swap_input(x, hook):
            x = x.clone()
            x[:, where] = mlp_output[:, where]
            return x

        mlp_output = block.mlp(written)
        return [(prefix + "hook_mlp_out", swap_input)]
    stream = block.ln1(corrupted[prefix + "hook_resid_pre"] + change)
    weight, bias = getattr(block.attn, f"W_{name.upper()}"), getattr(block.attn, f"b_{name.upper()}")
    value = stream @ weight[receiver.head] + bias[receiver.head]

    def swap_head(x, hook):
        x = x.clone()
        x[:, where, receiver.head] = value[:, where]
        return x

    return [(prefix + f"attn.hook_{name}", swap_head)]


@torch.no_grad()
def brute_force(model, pairs, caches, sender, receiver, through_mlps=False):
    if receiver == "logits":
        change = arrived(model, caches, sender, 4, through_mlps)
        final = caches[1]["blocks.1.hook_resid_post"] + change
        logits = model.unembed(model.ln_final(final))
    else:
        hooks = receiver_hooks(model, caches, sender, receiver, through_mlps)
        logits = model.run_with_hooks(pairs.corrupted, fwd_hooks=hooks)
    return score_pairs(logits[:, pairs.span], pairs, torch.arange(len(pairs)))


CASES = [
    (z(0, 1), "logits"),
    (z(1, 0), "logits"),
    (z(0, 1, (5, 8)), "logits"),
    (Node(Site(0, "mlp_out")), "logits"),
    (Node(Site(1, "attn_out")), "logits"),
    (z(0, 0), Node(Site(1, "q"), 1)),
    (z(0, 1), Node(Site(1, "k"), 0)),
    (z(0, 1), Node(Site(1, "v"), 0)),
    (z(0, 1), Node(Site(1, "v", (5, 6)), 1)),
    (Node(Site(0, "attn_out")), Node(Site(1, "v"), 1)),
    (Node(Site(0, "mlp_out", (5,))), Node(Site(1, "v"), 1)),
    (z(0, 1), Node(Site(0, "mlp_pre"))),
    (z(0, 1), Node(Site(1, "mlp_pre", (8, 9)))),
    (z(1, 1), Node(Site(1, "mlp_pre"))),
    (z(0, 1), Node(Site(0, "resid_post"))),
    (Node(Site(0, "mlp_out")), Node(Site(1, "resid_post"))),
]


def case_id(value):
    if isinstance(value, Node):
        at = "" if value.site.positions is None else f"@{','.join(map(str, value.site.positions))}"
        return f"{value.site.name}{value.layer}{'' if value.head is None else f'.{value.head}'}{at}"
    return str(value)


@pytest.mark.parametrize("through_mlps", [False, True], ids=["direct", "through-mlps"])
@pytest.mark.parametrize(("sender", "receiver"), CASES, ids=case_id)
def test_paths_equal_those_worked_out_from_the_weights(model, pairs, caches, sender, receiver, through_mlps):
    receivers = receiver if receiver == "logits" else [receiver]
    found = path_patch(model, pairs, [sender], receivers, through_mlps=through_mlps, chunk_rows=2)
    expected = brute_force(model, pairs, caches, sender, receiver, through_mlps)
    np.testing.assert_allclose(found.logit_diff[0], expected.logit_diff, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.loss[0], expected.loss, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.exact[0], expected.exact)
    assert np.abs(found.loss[0] - found.corrupted.loss).max() > 1e-6


def test_mlps_in_between_make_a_difference(model, pairs):
    direct, through = (
        path_patch(model, pairs, [z(0, 1)], "logits", through_mlps=choice).loss for choice in (False, True)
    )
    assert np.abs(direct - through).max() > 1e-4


def test_direct_paths_to_the_end_add_up(model, pairs, caches):
    """The final streams differ by what all heads, MLPs and the embedding wrote: freezing leaves each its own part."""
    senders = [*head_senders(model, pairs, "logits"), Node(Site(0, "mlp_out")), Node(Site(1, "mlp_out"))]
    clean, corrupted = caches
    whole = clean["blocks.1.hook_resid_post"] - corrupted["blocks.1.hook_resid_post"]
    embedded = clean["blocks.0.hook_resid_pre"] - corrupted["blocks.0.hook_resid_pre"]
    final, bare = model.ln_final, torch.nn.Identity()
    parts = sum(sent(model, caches, sender) for sender in senders)
    torch.testing.assert_close(parts + embedded, whole, rtol=1e-9, atol=1e-9)
    model.ln_final = bare
    try:
        found = path_patch(model, pairs, senders, "logits")
    finally:
        model.ln_final = final
    # Without the last norm the logit difference is linear in the stream: the embedding is equal at these positions.
    change = (found.logit_diff - found.corrupted.logit_diff).sum(axis=0)
    np.testing.assert_allclose(change, found.clean.logit_diff - found.corrupted.logit_diff, rtol=1e-9)


def test_a_sweep_is_its_senders_one_by_one(model, pairs):
    receivers = [Node(Site(1, "q"), 0), Node(Site(1, "k"), 1)]
    senders = [*head_senders(model, pairs, receivers), Node(Site(0, "mlp_out"))]
    assert senders[:2] == [z(0, 0), z(0, 1)]
    sweep = path_patch(model, pairs, senders, receivers)
    for number, sender in enumerate(senders):
        one = path_patch(model, pairs, [sender], receivers, chunk_rows=1)
        np.testing.assert_allclose(one.logit_diff[0], sweep.logit_diff[number], rtol=1e-9, atol=1e-12)
    gap = sweep.clean.logit_diff.mean() - sweep.corrupted.logit_diff.mean()
    expected = (sweep.logit_diff.mean(1) - sweep.corrupted.logit_diff.mean()) / gap
    np.testing.assert_allclose(sweep.normalised(), expected, rtol=1e-12)


def test_receivers_are_written_together(model, pairs, caches):
    receivers = [Node(Site(1, "q"), 0), Node(Site(1, "v"), 1), Node(Site(0, "mlp_pre"))]
    hooks = [hook for node in receivers for hook in receiver_hooks(model, caches, z(0, 0), node, False)]
    with torch.no_grad():
        logits = model.run_with_hooks(pairs.corrupted, fwd_hooks=hooks)[:, pairs.span]
    expected = score_pairs(logits, pairs, torch.arange(3))
    np.testing.assert_allclose(path_patch(model, pairs, [z(0, 0)], receivers).loss[0], expected.loss, rtol=1e-9)


def test_models_that_cannot_stop_early_give_the_same(model, pairs, monkeypatch):
    receivers = [Node(Site(1, "k"), 0)]
    expected = path_patch(model, pairs, [z(0, 0)], receivers).loss
    for module in (paths, forward):
        monkeypatch.setattr(module, "resumable", lambda model: False)
    np.testing.assert_allclose(path_patch(model, pairs, [z(0, 0)], receivers).loss, expected, rtol=1e-9)


def test_senders_are_the_heads_before_every_receiver(model, pairs):
    heads = [z(0, 0), z(0, 1), z(1, 0), z(1, 1)]
    assert head_senders(model, pairs, "logits") == heads
    assert head_senders(model, pairs, [Node(Site(1, "mlp_pre"))]) == heads
    assert head_senders(model, pairs, [Node(Site(0, "resid_post"))]) == heads[:2]
    assert head_senders(model, pairs, [Node(Site(1, "mlp_pre")), Node(Site(1, "q"), 0)]) == heads[:2]
    assert head_senders(model, pairs, [Node(Site(0, "q"), 0)]) == []


def test_side_by_side_sublayers_have_no_path_between_them(model, pairs):
    model.cfg.parallel_attn_mlp = True
    try:
        assert head_senders(model, pairs, [Node(Site(1, "mlp_pre"))]) == [z(0, 0), z(0, 1)]
    finally:
        model.cfg.parallel_attn_mlp = False


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [
        (z(1, 0), Node(Site(0, "q"), 0)),
        (z(1, 0), Node(Site(1, "v"), 1)),
        (Node(Site(0, "mlp_out")), Node(Site(0, "mlp_pre"))),
        (z(1, 0), Node(Site(0, "resid_post"))),
    ],
    ids=case_id,
)
def test_there_is_no_path_backwards(model, pairs, sender, receiver):
    with pytest.raises(ValueError, match="there is no path between them"):
        path_patch(model, pairs, [sender], [receiver])


@pytest.mark.parametrize(
    ("senders", "receivers", "words"),
    [
        ([], "logits", "senders must hold at least one node"),
        ([z(0, 0)], [], "receivers must hold at least one node"),
        ([Node(Site(0, "q"), 0)], "logits", "a sender must be at one of"),
        ([z(0, 0)], [z(1, 0)], "a receiver must be at one of"),
        ([z(2, 0)], "logits", r"layers must be different numbers in \[0, 2\)"),
        ([z(0, 2)], "logits", r"heads must be different numbers in \[0, 2\)"),
        ([z(0, 0, (12,))], "logits", r"positions of a sender must lie in \[0, 12\), got \[12\]"),
    ],
    ids=["no-sender", "no-receiver", "q-sends", "z-receives", "layer", "head", "position"],
)
def test_bad_paths_are_refused(model, pairs, senders, receivers, words):
    with pytest.raises(ValueError, match=words):
        path_patch(model, pairs, senders, receivers)


def test_bad_nodes_are_refused(model, pairs):
    with pytest.raises(ValueError, match="head must be given at"):
        Node(Site(0, "z"))
    with pytest.raises(ValueError, match="head must be given at"):
        Node(Site(0, "mlp_out"), 1)
    with pytest.raises(ValueError, match="an end of a path must be in a block"):
        Node(Site(0, "resid_mid"))
    with pytest.raises(ValueError, match="chunk_rows must be at least 1"):
        path_patch(model, pairs, [z(0, 0)], "logits", chunk_rows=0)
