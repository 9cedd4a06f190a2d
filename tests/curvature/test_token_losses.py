"""Losses of single tokens against loops, the metrics, plain Hugging Face models and finite differences."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformers import AutoModelForCausalLM, BloomConfig, MixtralConfig

import qfl_interp as qfl
from qfl_interp.curvature import Hessian
from qfl_interp.curvature.token_gradients import project_curvature, project_gradients
from qfl_interp.curvature.token_losses import TokenLoss, require_finite, scored_tokens
from qfl_interp.data.task import Batch
from qfl_interp.errors import QflError
from qfl_interp.models import plain_modules
from qfl_interp.models.build import build_model, hooked_from_hf
from qfl_interp.models.hugging_face import new_model, quiet
from qfl_interp.models.metrics import evaluate
from tests.helpers_suite import D_VOCAB, neox_config, save_model, tiny_text_task

STYLES = ["llama", "gpt2"]


def batch_of(name, length, n=6):
    task = qfl.load_task(name, length=length)
    return task, task.encode(task.sample(np.random.default_rng(0), n))


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return request.param


@pytest.fixture(scope="module")
def built(style):
    """A model in float32 and answers of unequal length."""
    task, batch = batch_of("breadth_first_search", 5)
    model = build_model(qfl.ModelConfig(d_model=8, n_layers=2, n_heads=2, style=style), task, seed=1)
    # Prompts of unequal length already move the answers; end some of them earlier, too.
    mask = batch.loss_mask.clone()
    for row in (1, 4):
        mask[row, int(mask[row].nonzero()[-1])] = False
    return model, Batch(batch.tokens, mask)


def moved(loss, scale, seed=0):
    """A random direction in parameter space, by name."""
    rng = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(v.shape, generator=rng, dtype=v.dtype) for k, v in loss.parameters().items()}


@pytest.mark.parametrize("prompt_end", [False, True])
def test_scored_tokens_are_those_the_mask_keeps(built, prompt_end):
    _, batch = built
    expected = []
    for row, (tokens, mask) in enumerate(zip(batch.tokens.tolist(), batch.loss_mask.tolist(), strict=True)):
        places = [place for place, kept in enumerate(mask) if kept]
        expected += [(row, place - 1, tokens[place]) for place in (places if prompt_end else places[1:])]
    scored = scored_tokens(batch, prompt_end=prompt_end)
    found = list(zip(scored.example.tolist(), scored.position.tolist(), scored.target.tolist(), strict=True))
    assert found == expected
    assert len(scored) == len(expected)
    # The last scored token itself predicts nothing.
    assert scored.tokens.shape[1] == max(position for _, position, _ in expected) + 1
    assert torch.equal(scored.tokens, batch.tokens[:, : scored.tokens.shape[1]])


def test_the_prompt_counts_where_it_is_asked_for(built):
    """Every token up to the last scored one, but the first, which nothing predicts."""
    _, batch = built
    expected = []
    for row, (tokens, mask) in enumerate(zip(batch.tokens.tolist(), batch.loss_mask.tolist(), strict=True)):
        last = max(place for place, kept in enumerate(mask) if kept)
        expected += [(row, place - 1, tokens[place]) for place in range(1, last + 1)]
    scored = scored_tokens(batch, prompt=True)
    assert list(zip(scored.example.tolist(), scored.position.tolist(), scored.target.tolist(), strict=True)) == expected


def test_some_of_the_examples_are_those_rows_counted_anew(built):
    _, batch = built
    scored = scored_tokens(batch)
    part = scored.of_examples(slice(2, 5))
    alone = scored_tokens(Batch(batch.tokens[2:5], batch.loss_mask[2:5]))
    width = alone.tokens.shape[1]
    assert torch.equal(part.tokens[:, :width], alone.tokens)
    for name in ("example", "position", "target"):
        assert torch.equal(getattr(part, name), getattr(alone, name)), name
    assert len(scored.of_examples(slice(6, 9))) == 0


def test_nothing_scored_is_refused():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, 2] = True
    with pytest.raises(ValueError, match="at least one token of an answer"):
        scored_tokens(Batch(tokens, mask))
    assert len(scored_tokens(Batch(tokens, mask), prompt_end=True)) == 2


@pytest.mark.parametrize(("prompt_end", "name"), [(False, "loss_answer"), (True, "loss")])
def test_token_losses_average_to_the_metrics(built, prompt_end, name):
    model, batch = built
    scored = scored_tokens(batch, prompt_end=prompt_end)
    loss = TokenLoss(model, scored, dtype=torch.float64)
    scores = evaluate(lambda tokens, span, rows: loss.model(tokens)[:, span], batch)
    losses = loss.values(loss.parameters()).numpy()
    means = [losses[scored.example.numpy() == row].mean() for row in range(len(batch.tokens))]
    np.testing.assert_allclose(means, getattr(scores, name), rtol=1e-12)
    assert losses.mean() == pytest.approx(scores.means()[name], rel=1e-12)


def test_each_loss_is_minus_the_log_of_the_targets_probability(built):
    model, batch = built
    scored = scored_tokens(batch)
    loss = TokenLoss(model, scored)
    with torch.no_grad():
        p = model(batch.tokens).double().softmax(-1)
    by_hand = [-float(p[e, q, t].log()) for e, q, t in zip(scored.example, scored.position, scored.target, strict=True)]
    np.testing.assert_allclose(loss(loss.parameters()).numpy(), by_hand, rtol=1e-5, atol=1e-6)
    assert len(loss) == len(by_hand)


def test_the_parameters_given_are_those_used(built):
    model, batch = built
    loss = TokenLoss(model, scored_tokens(batch))
    other = copy.deepcopy(model)
    step = moved(loss, 0.1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter += step[name]
    there = {name: value + step[name] for name, value in loss.parameters().items()}
    expected = TokenLoss(other, loss.scored)
    assert torch.equal(loss.values(there), expected.values(expected.parameters()))
    assert not torch.allclose(loss.values(there), loss.values(loss.parameters()), rtol=1e-3)


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_chunks_are_the_whole_in_order(built, size):
    model, batch = built
    loss = TokenLoss(model, scored_tokens(batch), dtype=torch.float64)
    parts = list(loss.chunks(size))
    assert [len(part.scored.tokens) for part in parts] == [min(size, 6 - i) for i in range(0, 6, size)]
    theta = loss.parameters()
    torch.testing.assert_close(torch.cat([part(theta) for part in parts]), loss(theta), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.values(theta, chunk=size), loss(theta), rtol=1e-12, atol=0)
    assert all(part.model is loss.model for part in parts)


def test_derivatives_of_both_orders_match_finite_differences(built):
    """Central differences at 1e-4: errors of order 1e-8 times the next derivatives, rounding of 1e-8 in the second."""
    model, batch = built
    loss = TokenLoss(model, scored_tokens(batch), dtype=torch.float64)
    theta, direction = loss.parameters(), moved(loss, 0.3)

    def at(h):
        return loss({name: theta[name] + h * direction[name] for name in theta})

    def first(parameters):
        return torch.func.jvp(loss, (parameters,), (direction,))[1]

    slope, curvature = torch.func.jvp(first, (theta,), (direction,))
    h = 1e-4
    torch.testing.assert_close(slope, (at(h) - at(-h)) / (2 * h), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(curvature, (at(h) - 2 * at(0.0) + at(-h)) / h**2, rtol=1e-4, atol=1e-4)
    reverse = torch.func.jacrev(loss)(theta)
    projected = sum((reverse[name] * direction[name]).flatten(1).sum(1) for name in theta)
    torch.testing.assert_close(slope, projected, rtol=1e-10, atol=1e-10)


def test_another_precision_is_a_copy_and_the_model_stays(built):
    model, batch = built
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scored = scored_tokens(batch)
    single, double = TokenLoss(model, scored), TokenLoss(model, scored, dtype=torch.float64)
    assert single.model is model
    assert double.model is not model
    assert single.parameters()["embed.W_E"].data_ptr() == model.W_E.data_ptr()
    for loss, dtype in ((single, torch.float32), (double, torch.float64)):
        theta = loss.parameters()
        torch.func.grad(lambda q, loss=loss: loss(q).mean())(theta)
        assert {value.dtype for value in theta.values()} == {loss.values(theta).dtype} == {dtype}
        assert not any(value.requires_grad for value in theta.values())
    torch.testing.assert_close(
        double.values(double.parameters()).float(), single.values(single.parameters()), rtol=1e-5, atol=1e-6
    )
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_losses_that_are_not_finite_are_located(built):
    model, batch = built
    loss = TokenLoss(model, scored_tokens(batch))
    theta = {name: value.clone() for name, value in loss.parameters().items()}
    theta["unembed.W_U"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=rf"loss of the tokens must be finite, got nan at \[0\] and in {len(loss)} of"):
        loss.values(theta)


def test_the_first_entry_that_is_not_finite_is_named():
    values = torch.zeros(3, 4)
    require_finite(values, "zeros")
    values[1, 2], values[2, 0] = float("-inf"), float("nan")
    with pytest.raises(ValueError, match=r"slopes must be finite, got -inf at \[1, 2\] and in 2 of 12 entries"):
        require_finite(values, "slopes")


def test_a_bridged_hugging_face_model_is_covered(tmp_path):
    folder = save_model(neox_config(), tmp_path / "model")
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        model = hooked_from_hf(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval())
    tokens = torch.randint(0, D_VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, 5:] = True
    loss = TokenLoss(model, scored_tokens(Batch(tokens, mask)))
    with torch.no_grad():
        logits = plain(tokens).logits[:, 5:8]
    expected = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 6:].flatten(), reduction="none")
    theta = loss.parameters()
    torch.testing.assert_close(loss.values(theta), expected, rtol=1e-5, atol=1e-5)
    step = moved(loss, 1.0)
    slopes = torch.func.jvp(loss, (theta,), (step,))[1]
    reverse = torch.func.jacrev(loss)(theta)
    torch.testing.assert_close(
        slopes, sum((reverse[name] * step[name]).flatten(1).sum(1) for name in theta), rtol=1e-3, atol=1e-3
    )
    assert all(bool(part.any()) for part in reverse.values()), "a parameter that nothing reads"


class Fused(HookedRootModule):
    """A model of somebody's own: one head of `scaled_dot_product_attention`, one hook point."""

    def __init__(self, d=8, d_vocab=12):
        super().__init__()
        self.cfg = SimpleNamespace(n_layers=1, d_vocab=d_vocab, d_model=d, d_mlp=0, n_heads=1)
        self.embed, self.qkv, self.unembed = nn.Embedding(d_vocab, d), nn.Linear(d, 3 * d), nn.Linear(d, d_vocab)
        self.hook_z = HookPoint()
        self.setup()

    def forward(self, tokens):
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, dim=-1)
        return self.unembed(self.hook_z(functional.scaled_dot_product_attention(q, k, v, is_causal=True)))


def test_a_model_with_fused_attention_has_derivatives_of_every_order():
    torch.manual_seed(0)
    model = Fused().double()
    batch = tiny_text_task().encode(np.arange(6)[:, None])
    loss = TokenLoss(model, scored_tokens(batch), dtype=torch.float64)
    vector = torch.randn(len(loss.space), dtype=torch.float64)
    space = loss.space
    theta = space.flatten(loss.parameters())
    mean = lambda flat: loss(space.unflatten(flat)).mean()  # noqa: E731
    dense = torch.autograd.functional.hessian(mean, theta)
    torch.testing.assert_close(Hessian(loss).product(vector), dense @ vector, rtol=1e-9, atol=1e-12)
    direction = (vector / vector.norm())[None]
    gradients = project_gradients(loss, loss.parameters(), direction).gradients[:, 0]
    exact = torch.autograd.functional.jacobian(lambda flat: loss(space.unflatten(flat)), theta) @ direction[0]
    torch.testing.assert_close(gradients, exact, rtol=1e-9, atol=1e-12)
    curvature = project_curvature(loss, loss.parameters(), direction)
    torch.testing.assert_close(curvature.mean(), direction[0] @ dense @ direction[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["bloom", "mixtral"])
def test_models_without_such_derivatives_say_so(kind, monkeypatch):
    monkeypatch.setattr(plain_modules, "_FUNCTIONS", {})
    monkeypatch.setattr(plain_modules, "_PLAIN_EXPERTS", "grouped_mm")
    sizes = {"vocab_size": 12, "hidden_size": 16}
    configs = {
        "bloom": lambda: BloomConfig(n_layer=1, n_head=2, **sizes),
        "mixtral": lambda: MixtralConfig(
            intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=16, num_local_experts=2, num_experts_per_tok=1, **sizes,
        ),
    }  # fmt: skip
    loss = TokenLoss(
        hooked_from_hf(new_model(configs[kind](), 0)), scored_tokens(tiny_text_task().encode(np.arange(4)[:, None]))
    )
    with pytest.raises(QflError, match=f"{kind.title()}ForCausalLM has no forward-mode derivatives, .*other lenses"):
        Hessian(loss).product(torch.ones(len(loss.space)))
    with pytest.raises(QflError, match="has no forward-mode derivatives"):
        project_gradients(loss, loss.parameters(), torch.ones(1, len(loss.space)))
