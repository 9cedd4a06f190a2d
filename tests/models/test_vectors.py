"""Models of vectors, and linear attention: against one step of gradient descent, ids, and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.models.build import build_hooked
from qfl_interp.models.forward import is_fast, logits_at
from qfl_interp.seeding import generator

LINEAR = qfl.ModelConfig(
    d_model=8, n_layers=1, n_heads=1, d_head=3, attn_only=True, norm="none", positions="none", attention="linear"
)


@torch.no_grad()
def one_step_model(task: qfl.Task, rate: float) -> torch.nn.Module:
    """One layer of linear attention whose weights make it a step of gradient descent (arXiv 2212.07677, prop. 1).

    Queries read x, keys the x of the pair before, values its y; what comes out is written beside them.
    """
    d = task.d
    model = qfl.build_model(LINEAR, task).double()
    for parameter in model.parameters():
        parameter.zero_()
    attention = model.blocks[0].attn
    model.embed.W_E[:, :-1] = torch.eye(2 * d + 1)
    attention.W_Q[0, :d] = torch.eye(d)
    attention.W_K[0, d : 2 * d] = torch.eye(d)
    attention.W_V[0, 2 * d, 0] = 1
    attention.W_O[0, 0, -1] = rate * math.sqrt(d)  # the scores are divided by it
    model.unembed.W_U[-1, 0] = 1
    return model


def test_one_layer_of_linear_attention_is_one_step_of_gradient_descent():
    task = qfl.load_task("linear_regression", length=9, d=3, noise=0.2)
    examples = task.sample(generator(0, "star"), 50)
    step, batch = task.features["gradient_step"], task.encode(examples)
    rates = np.array([task.step_rate(r) for r in range(1, 9)])
    given = one_step_model(task, rate=0.1)(batch.tokens.double())[:, 1:-1, 0].detach().numpy()
    np.testing.assert_allclose(given, step.labels(examples) / rates * 0.1, rtol=1e-9, atol=1e-12)
    # At the rate of the last prefix the model gives that feature itself, where the task says it is read.
    model = one_step_model(task, rate=task.step_rate(8))
    at = step.positions(examples)[:, -1]
    given = logits_at(model, batch.tokens, slice(0, 9))[torch.arange(50), torch.from_numpy(at.copy()), 0]
    np.testing.assert_allclose(given.numpy(), step.labels(examples)[:, -1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
def test_linear_attention_by_hand(positions):
    """Two heads, from the cached queries, keys and values, in a loop; it is causal."""
    config = qfl.ModelConfig(d_model=8, n_layers=1, n_heads=2, positions=positions, attention="linear", biases="all")
    model = build_hooked(config, d_vocab=5, n_ctx=6)
    tokens = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    logits, cache = model.run_with_cache(tokens)
    kind = "hook_rot_" if positions == "rotary" else "hook_"
    q, k, v = (cache[f"blocks.0.attn.{name}"] for name in (f"{kind}q", f"{kind}k", "hook_v"))
    z = torch.zeros_like(v)
    for i in range(6):
        for j in range(i + 1):
            z[:, i] += (q[:, i] * k[:, j]).sum(-1, keepdim=True) / math.sqrt(4) * v[:, j]
    torch.testing.assert_close(cache["blocks.0.attn.hook_z"], z, rtol=1e-5, atol=1e-6)
    assert (cache["blocks.0.attn.hook_pattern"].triu(1) == 0).all()
    out = torch.einsum("bphd,hdm->bpm", z, model.blocks[0].attn.W_O) + model.blocks[0].attn.b_O
    torch.testing.assert_close(cache["blocks.0.hook_attn_out"], out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(tokens[:, :4]), logits[:, :4], rtol=1e-5, atol=1e-6)
    assert not is_fast(model)


def test_linear_attention_by_head_result():
    model = build_hooked(qfl.ModelConfig(d_model=8, n_layers=1, n_heads=2, attention="linear"), d_vocab=5, n_ctx=6)
    tokens = torch.tensor([[1, 2, 3, 0]])
    before = model(tokens)
    model.set_use_attn_result(True)
    torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["llama", "gpt2", "grokking"])
def test_a_unit_vector_is_an_id(style):
    """The same weights read ids, or the ids' unit vectors, to the same logits."""
    config = qfl.ModelConfig(d_model=8, n_layers=2, n_heads=2, style=style)
    of_ids, of_vectors = (build_hooked(config, d_vocab=5, n_ctx=6, d_out=d_out) for d_out in (None, 5))
    of_vectors.load_state_dict(of_ids.state_dict())
    tokens = torch.tensor([[0, 4, 2, 2], [1, 3, 0, 1]])
    vectors = torch.nn.functional.one_hot(tokens, 5).float()
    torch.testing.assert_close(of_vectors(vectors), of_ids(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["llama", "gpt2", "grokking"])
def test_parameters_are_as_many_as_the_configuration_says(style):
    task = qfl.load_task("linear_regression", length=4, d=2)
    config = qfl.ModelConfig(d_model=8, n_layers=2, n_heads=2, style=style, attention="linear")
    model = qfl.build_model(config, task)
    n = config.n_parameters(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_out=1)
    assert sum(p.numel() for p in model.parameters()) == n


def test_models_that_do_not_fit_are_refused():
    task = qfl.load_task("linear_regression", length=4, d=2)
    with pytest.raises(qfl.QflError, match="tied must be left out"):
        qfl.build_model(qfl.ModelConfig(d_model=8, n_layers=1, tied=True), task)
    assert not LINEAR.stackable
