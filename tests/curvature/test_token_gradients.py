"""Per-token derivatives along directions, from layers and by forward mode, against autograd one token at a time."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import qfl_interp as qfl
from qfl_interp.curvature.token_gradients import (
    TokenProjections,
    layers,
    operations,
    project,
    project_curvature,
    project_gradients,
    project_on_each,
)
from qfl_interp.curvature.token_losses import ScoredTokens, TokenLoss, scored_tokens
from qfl_interp.errors import QflError
from qfl_interp.models.build import build_model, hooked_from_hf
from qfl_interp.models.forward import is_fast

STYLES = ("llama", "gpt2")
# Answers of equal length; of two lengths behind prompts of two lengths; a task whose answer is longer than a batch.
TASKS = {"decimal_addition": 2, "breadth_first_search": 4, "addition": 3}
WIDTH = {"d_model": 12, "n_heads": 2, "n_layers": 2}


def rng(seed):
    return torch.Generator().manual_seed(seed)


def token_loss(style, task_name="decimal_addition", n=5, dtype=torch.float64, **changes):
    """The loss, and parameters that are not the model's own."""
    task = qfl.load_task(task_name, length=TASKS[task_name])
    model = build_model(qfl.ModelConfig(style=style, **(WIDTH | changes)), task, seed=1)
    loss = TokenLoss(model, scored_tokens(task.encode(task.sample(np.random.default_rng(0), n))), dtype=dtype)
    return loss, moved(loss)


def moved(loss):
    """Every parameter of the model plus noise, so that no gain is 1, no bias 0 and nothing symmetric."""
    random = rng(2)
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=random, dtype=torch.float64).to(loss.dtype)
        for name, tensor in loss.parameters().items()
    }


def per_parameter(space, dtype):
    """A direction for each parameter of the model, random in it and zero elsewhere."""
    names = {name: index for index, name in enumerate(space.shapes)}
    rows = torch.zeros(len(names), len(space), dtype=dtype)
    for name, part in space.unflatten(rows).items():
        own = part[names[name]]
        own.copy_(torch.randn(own.shape, generator=rng(names[name]), dtype=torch.float64))
    return rows


def random_directions(space, n, dtype=torch.float64):
    return torch.randn(n, len(space), generator=rng(5), dtype=torch.float64).to(dtype)


def by_autograd(loss, theta, directions):
    """Each token's gradient from a backward pass of its own, times the directions."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
    rows = []
    for value in loss(theta):
        gradient = torch.autograd.grad(value, list(theta.values()), retain_graph=True, materialize_grads=True)
        rows.append(directions @ torch.cat([part.flatten() for part in gradient]))
    return torch.stack(rows)


def assert_agrees(found, expected, tolerance):
    """Within `tolerance` of the column's largest entry, so that a small parameter cannot hide behind a large one.

    Entries below a hundredth of the largest of all may be rounding in any way of computing them: a key's bias moves all
    scores of a query alike, and no loss.
    """
    scale = expected.abs().amax(0).clamp_min(1e-2 * float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["layers", "jvp"])
@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("style", STYLES)
def test_every_parameter_agrees_with_autograd(style, task_name, method):
    loss, theta = token_loss(style, task_name)
    directions = per_parameter(loss.space, loss.dtype)
    found = project_gradients(loss, theta, directions, method=method)
    assert_agrees(found.gradients, by_autograd(loss, theta, directions), 1e-10)
    torch.testing.assert_close(found.losses, loss(theta), rtol=1e-12, atol=1e-12)


MADE_UP = {
    "grokking": {"style": "grokking", "n_layers": 1},
    "attention": {"attn_only": True, "norm": "ln", "positions": "none"},
    "mixed": {"positions": "learned", "d_head": 4, "gated": False, "act": "gelu", "biases": "all"},
}


@pytest.mark.parametrize("changes", MADE_UP.values(), ids=MADE_UP)
def test_models_by_parts_agree_with_autograd(changes):
    loss, theta = token_loss(**{"style": "llama"} | changes, n=3)
    assert is_fast(loss.model)
    directions = per_parameter(loss.space, loss.dtype)
    found = project_gradients(loss, theta, directions, method="layers")
    assert_agrees(found.gradients, by_autograd(loss, theta, directions), 1e-10)


@pytest.mark.parametrize("style", STYLES)
def test_layers_agree_with_products_in_float32(style):
    loss, theta = token_loss(style, "breadth_first_search", n=12, dtype=torch.float32)
    directions = per_parameter(loss.space, loss.dtype)
    ours, theirs = (project_gradients(loss, theta, directions, method=m) for m in ("layers", "jvp"))
    assert ours.gradients.dtype == torch.float32
    assert_agrees(ours.gradients, theirs.gradients, 1e-5)


def test_answers_of_unequal_length_are_among_the_cases():
    """What the tests above rest on: several positions, which not every example has."""
    loss, _ = token_loss("gpt2", "breadth_first_search")
    counts = torch.bincount(loss.scored.position)
    assert len(counts[counts > 0].unique()) > 1


@pytest.mark.parametrize("style", STYLES)
def test_tiles_and_batches_that_do_not_divide_anything(style, monkeypatch):
    loss, theta = token_loss(style, n=7)
    directions = random_directions(loss.space, 3)
    expected = project_gradients(loss, theta, directions, method="layers").gradients
    for constant, value in (("_TOKENS", 3), ("_ENTRIES", 35), ("_COLUMNS", 5)):
        monkeypatch.setattr(layers, constant, value)
    found = project_gradients(loss, theta, directions, method="layers").gradients
    assert_agrees(found, expected, 1e-12)
    assert_agrees(found, by_autograd(loss, theta, directions), 1e-10)


def small_tiles(monkeypatch):
    monkeypatch.setattr(layers, "_ENTRIES", 6)
    monkeypatch.setattr(layers, "_COLUMNS", 6)


@pytest.mark.parametrize("method", ["auto", "layers", "jvp"])
def test_several_bases_are_each_as_if_alone(method, monkeypatch):
    small_tiles(monkeypatch)  # of single parameters some hold none
    loss, theta = token_loss("gpt2", "breadth_first_search", dtype=torch.float32)
    single = torch.zeros(7, len(loss.space))
    single[torch.arange(7), torch.randperm(len(loss.space), generator=rng(0))[:7]] = 1.0
    bases = [random_directions(loss.space, 40, torch.float32), single, random_directions(loss.space, 1, torch.float32)]
    found = project_on_each(loss, theta, bases, method=method)
    for own, basis in zip(found, bases, strict=True):
        alone = project_gradients(loss, theta, basis, method=method)
        assert torch.equal(own.gradients, alone.gradients)
        assert torch.equal(own.losses, alone.losses)


def test_of_several_bases_every_gradient_is_formed_once(monkeypatch):
    calls = []
    formed = layers.tapped
    monkeypatch.setattr(layers, "tapped", lambda *args: calls.append(1) or formed(*args))
    loss, theta = token_loss("gpt2")
    bases = [random_directions(loss.space, 9) for _ in range(3)]
    project_gradients(loss, theta, bases[0], method="layers")
    alone = len(calls)
    project_on_each(loss, theta, bases, method="layers")
    assert len(calls) == 2 * alone > 0


def test_where_directions_are_0_nothing_is_formed(monkeypatch):
    small_tiles(monkeypatch)
    loss, theta = token_loss("gpt2")
    single = torch.zeros(1, len(loss.space), dtype=loss.dtype)
    loss.space.unflatten(single)["blocks.0.mlp.W_in"][0, 3, 5] = 1.0
    formed, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args, out: formed.append(out.shape[1:]) or bmm(*args, out=out))
    found = project_gradients(loss, theta, single, method="layers")
    assert [shape.numel() for shape in set(formed)] == [layers._entries(single.device)]
    assert_agrees(found.gradients, by_autograd(loss, theta, single), 1e-10)


@pytest.mark.parametrize("method", ["layers", "jvp"])
def test_little_memory_changes_nothing(method):
    loss, theta = token_loss("gpt2", "breadth_first_search", n=3)
    directions = random_directions(loss.space, 3)
    ample = project_gradients(loss, theta, directions, method=method)
    for max_bytes in (1, 100_000):
        scarce = project_gradients(loss, theta, directions, method=method, max_bytes=max_bytes)
        assert_agrees(scarce.gradients, ample.gradients, 1e-12)
        torch.testing.assert_close(scarce.losses, ample.losses, rtol=1e-12, atol=0)


def test_batches_hold_what_memory_allows():
    loss, theta = token_loss("gpt2", "breadth_first_search", n=40)
    (everything,) = layers._groups(loss, theta, 1 << 40, 1 << 40)
    assert everything[0].tolist() == sorted(everything[0].tolist(), key=lambda i: (int(loss.scored.position[i]), i))

    def kept(parts):
        return [sum(p.inputs.nbytes + p.gradient.nbytes for p in part.products) for part in parts]

    limit = sum(kept(everything[1])) // 5
    groups = list(layers._groups(loss, theta, limit, limit))
    assert len(groups) >= 5
    assert torch.cat([tokens for tokens, _ in groups]).tolist() == everything[0].tolist()
    for _, parts in groups:
        assert max(kept(parts)) <= limit  # a batch's working memory holds more than what it leaves
        assert sum(kept(parts)[:-1]) <= limit


def test_what_one_group_keeps_is_gone_before_the_next_is_formed(monkeypatch):
    loss, theta = token_loss("gpt2", "breadth_first_search", n=40)
    (everything,) = layers._groups(loss, theta, 1 << 40, 1 << 40)
    max_bytes = sum(p.inputs.nbytes + p.gradient.nbytes for part in everything[1] for p in part.products)
    del everything
    tap, kept, alive, together = layers.tapped, [], [], []

    def watched(*arguments):
        found = tap(*arguments)
        kept.extend(weakref.ref(tensor) for product in found.products for tensor in (product.inputs, product.gradient))
        alive.append(sum(tensor.nbytes for ref in kept if (tensor := ref()) is not None))
        together.append(
            sum(tensor.nbytes for product in found.products for tensor in (product.inputs, product.gradient))
        )
        return found

    monkeypatch.setattr(layers, "tapped", watched)
    project_gradients(loss, theta, random_directions(loss.space, 3), method="layers", max_bytes=max_bytes)
    assert sum(together) == max_bytes
    # Two groups at least, of three quarters of the memory; with the one before they would hold all of it.
    assert max(alive) <= max_bytes * 3 // 4 + max(together)
    assert max(alive) < max_bytes


def test_parameters_reach_forward_mode_as_tensors_of_their_own():
    """A view's tangent would be as large as what it views: gigabytes for a model of a few megabytes."""
    loss, theta = token_loss("gpt2", n=2)
    vector = loss.space.flatten(theta)
    own, _ = project._checked(loss, loss.space.unflatten(vector), vector[None], 1)
    assert all(tensor._base is None and torch.equal(tensor, theta[name]) for name, tensor in own.items())


def test_a_token_that_the_first_position_predicts():
    """A sequence of one token: every matrix is read once."""
    loss, _ = token_loss("gpt2")
    tokens = loss.scored.tokens
    scored = ScoredTokens(tokens, torch.tensor([1, 1, 0]), torch.tensor([0, 3, 0]), torch.tensor([2, 5, 7]))
    loss = TokenLoss(loss.model, scored, dtype=torch.float64)
    theta, directions = moved(loss), random_directions(loss.space, 4)
    found = project_gradients(loss, theta, directions, method="layers")
    assert_agrees(found.gradients, by_autograd(loss, theta, directions), 1e-10)


def test_a_vocabulary_wider_than_the_stream_and_one_layer():
    loss, theta = token_loss("gpt2", d_model=4, n_layers=1)
    assert loss.model.cfg.d_vocab > 4
    directions = per_parameter(loss.space, loss.dtype)
    found = project_gradients(loss, theta, directions, method="layers")
    assert_agrees(found.gradients, by_autograd(loss, theta, directions), 1e-10)


@pytest.mark.parametrize("style", STYLES)
def test_curvature_is_the_second_derivative(style):
    loss, theta = token_loss(style, n=2, d_model=8, n_layers=1)
    directions = random_directions(loss.space, 3)
    theta = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
    expected = torch.empty(len(loss), 3, dtype=torch.float64)
    for token, value in enumerate(loss(theta)):
        first = torch.autograd.grad(value, list(theta.values()), create_graph=True)
        gradient = torch.cat([part.flatten() for part in first])
        for column, b in enumerate(directions):
            product = torch.autograd.grad(gradient @ b, list(theta.values()), retain_graph=True)
            expected[token, column] = b @ torch.cat([part.flatten() for part in product])
    found = project_curvature(loss, theta, directions)
    assert not found.requires_grad
    assert_agrees(found, expected, 1e-10)
    assert_agrees(project_curvature(loss, theta, directions, max_bytes=1), expected, 1e-10)


def test_derivatives_are_those_of_finite_differences():
    """First and second, on the losses' own values."""
    loss, theta = token_loss("llama", n=3)
    (b,) = directions = random_directions(loss.space, 1) / len(loss.space) ** 0.5
    centre, step = loss.space.flatten(theta), 1e-4
    down, here, up = (loss.values(loss.space.unflatten(centre + s * step * b)) for s in (-1, 0, 1))
    first = project_gradients(loss, theta, directions).gradients[:, 0]
    torch.testing.assert_close(first, (up - down) / (2 * step), rtol=1e-6, atol=1e-7)
    second = project_curvature(loss, theta, directions)[:, 0]
    torch.testing.assert_close(second, (up - 2 * here + down) / step**2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_the_model_is_left_as_it_was(style):
    loss, theta = token_loss(style, n=2, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in loss.parameters().items()}
    directions = random_directions(loss.space, 2, torch.float32)
    kept = directions.clone()
    for method in ("layers", "jvp"):
        project_gradients(loss, theta, directions, method=method)
    project_curvature(loss, theta, directions)
    for name, tensor in loss.parameters().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in loss.model.parameters())
    assert torch.equal(directions, kept)


def test_gradients_are_found_where_autograd_is_off():
    loss, theta = token_loss("gpt2", n=2)
    directions = random_directions(loss.space, 2)
    expected = project_gradients(loss, theta, directions, method="layers")
    with torch.no_grad():
        found = project_gradients(loss, theta, directions, method="layers")
    assert torch.equal(found.gradients, expected.gradients)
    assert not expected.gradients.requires_grad


def test_a_model_with_hooks_is_differentiated_through_them():
    loss, theta = token_loss("gpt2", n=2)
    directions = random_directions(loss.space, 2)
    assert is_fast(loss.model)
    plain = project_gradients(loss, theta, directions)
    loss.model.add_hook("blocks.0.hook_mlp_out", lambda tensor, hook: 0.5 * tensor)
    assert not is_fast(loss.model)
    found = project_gradients(loss, theta, directions)
    assert_agrees(found.gradients, by_autograd(loss, theta, directions), 1e-10)
    assert float((found.gradients - plain.gradients).abs().max()) > 1e-3
    with pytest.raises(QflError, match=r"hooks are attached at blocks\.0\.hook_mlp_out"):
        project_gradients(loss, theta, directions, method="layers")


@pytest.mark.parametrize(("n_directions", "way"), [(1, "jvp"), (40, "layers")])
def test_auto_takes_the_way_with_less_to_compute(n_directions, way):
    loss, theta = token_loss("gpt2", n=2, dtype=torch.float32)
    directions = random_directions(loss.space, n_directions, torch.float32)
    found = {m: project_gradients(loss, theta, directions, method=m) for m in ("auto", "layers", "jvp")}
    assert isinstance(found["auto"], TokenProjections)
    assert torch.equal(found["auto"].gradients, found[way].gradients)
    assert not torch.equal(found["layers"].gradients, found["jvp"].gradients)  # rounding tells them apart


def test_the_more_tokens_a_sequence_has_the_more_directions_forward_mode_is_for():
    tokens = torch.zeros(3, 20, dtype=torch.int64)

    def most(n_scored):
        example, place = torch.arange(3).repeat_interleave(n_scored), torch.arange(n_scored).repeat(3)
        scored = ScoredTokens(tokens, example, 19 - place, torch.zeros(3 * n_scored, dtype=torch.int64))
        return max((k for k in range(1, 100) if operations.jvp_is_faster(scored, k)), default=0)

    # 1.45 (2 + 4 K) 20 operations a sequence against (6 n + 2 K + 40) a token that reads n positions.
    assert [most(n) for n in (1, 2, 8)] == [0, 2, 10]


def test_a_bridge_falls_back():
    config = GPTNeoXConfig(
        vocab_size=7, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = hooked_from_hf(GPTNeoXForCausalLM(config))
    tokens = torch.randint(7, (3, 6), generator=rng(0))
    scored = ScoredTokens(tokens, torch.tensor([0, 1, 2, 2]), torch.tensor([4, 3, 1, 4]), torch.tensor([1, 2, 3, 4]))
    loss = TokenLoss(model, scored, dtype=torch.float64)
    assert not is_fast(loss.model)
    directions = random_directions(loss.space, 3)
    found = project_gradients(loss, loss.parameters(), directions)
    assert_agrees(found.gradients, by_autograd(loss, loss.parameters(), directions), 1e-10)


def test_bad_arguments_are_refused():
    loss, theta = token_loss("gpt2", n=2)
    directions = random_directions(loss.space, 2)
    with pytest.raises(ValueError, match=r"method must be 'auto', 'layers' or 'jvp', got 'vjp'"):
        project_gradients(loss, theta, directions, method="vjp")
    with pytest.raises(ValueError, match="at least one set of directions, got none"):
        project_on_each(loss, theta, [])
    n = len(loss.space)
    for wrong in (directions[:, 1:], directions[:0]):
        with pytest.raises(
            ValueError, match=rf"at least one row of {n} coordinates, .*\({len(wrong)}, {wrong.shape[1]}\)"
        ):
            project_curvature(loss, theta, wrong)
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        project_gradients(loss, theta, directions, max_bytes=0)
    with pytest.raises(ValueError, match=r"embed\.W_E is missing"):
        project_gradients(loss, {k: v for k, v in theta.items() if k != "embed.W_E"}, directions)


@pytest.mark.parametrize("method", ["layers", "jvp"])
def test_a_loss_that_is_not_a_number_is_named(method):
    loss, theta = token_loss("gpt2", n=3)
    directions = random_directions(loss.space, 2)
    theta["unembed.b_U"] = theta["unembed.b_U"] * torch.nan
    with pytest.raises(ValueError, match=r"loss of the tokens must be finite, got nan at \[0\]"):
        project_gradients(loss, theta, directions, method=method)
    with pytest.raises(ValueError, match="curvature of the tokens' losses along the directions must be finite"):
        project_curvature(loss, theta, directions)
