"""Models with parts that lack derivatives of every order: what stands in for them gives the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call
from transformers import BloomConfig, MixtralConfig

from qfl_interp.curvature.hessian import Hessian
from qfl_interp.curvature.token_gradients.project import project_gradients
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.models.build import hooked_from_hf
from qfl_interp.models.hugging_face import new_model
from qfl_interp.models.plain_modules import plain_modules
from tests.helpers_suite import D_MODEL, D_VOCAB, N_HEADS, N_LAYERS, llama_config, tiny_text_task

CONFIGS = {
    "bloom": BloomConfig(
        vocab_size=D_VOCAB, hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, bos_token_id=0, eos_token_id=1
    ),
    "mixtral": MixtralConfig(**llama_config().to_dict() | {"model_type": "mixtral"}, num_local_experts=4),
}


@pytest.fixture(params=CONFIGS)
def loss(request):
    model = hooked_from_hf(new_model(CONFIGS[request.param], 0))
    for parameter in model.parameters():
        parameter.data.mul_(5.0 if parameter.ndim > 1 else 1.0)  # logits of a fresh tiny model are all alike
    task = tiny_text_task()
    return TokenLoss(model, scored_tokens(task.encode(task.sample(np.random.default_rng(0), 8))))


def test_hessian_products_are_those_of_the_model_itself(loss):
    """The reference differentiates the untouched model twice in reverse, which its own parts do support."""
    vector = torch.randn(len(loss.space), generator=torch.Generator().manual_seed(0))
    theta = {name: tensor.requires_grad_() for name, tensor in loss.own(loss.parameters()).items()}
    scored = loss.scored
    logits = functional_call(loss.model, theta, (scored.tokens,))[scored.example, scored.position]
    mean = torch.nn.functional.cross_entropy(logits, scored.target)
    gradient = loss.space.flatten(_filled(theta, torch.autograd.grad(mean, [*theta.values()], create_graph=True)))
    product = _filled(theta, torch.autograd.grad(gradient @ vector, [*theta.values()], allow_unused=True))
    hessian = Hessian(loss, chunk=3)
    torch.testing.assert_close(hessian.gradient(), gradient.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hessian.product(vector), loss.space.flatten(product), rtol=1e-4, atol=1e-5)
    along = project_gradients(loss, loss.parameters(), vector[None]).gradients
    torch.testing.assert_close(along.mean(), gradient.detach() @ vector, rtol=1e-4, atol=1e-4)


def _filled(theta, gradients):
    """By name, zero where nothing depends on a parameter."""
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(theta.items(), gradients, strict=True)}


def test_the_model_is_as_before_afterwards(loss):
    model, tokens = loss.model, loss.scored.tokens
    before, config = model(tokens), model.original_model.config
    experts = config._experts_implementation
    with plain_modules(model):
        torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-6)
    assert torch.equal(model(tokens), before)
    assert not any("forward" in vars(module) for module in model.original_model.modules())
    assert config._experts_implementation == experts != "batched_mm"
