"""The pieces of a stack against torch, the model and each other."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import qfl_interp as qfl
from qfl_interp.data.examples import ExampleStream, examples_of_all
from qfl_interp.data.registry import task_names
from qfl_interp.models.build import build_hooked, parameters_to_save
from qfl_interp.models.fast_forward import fast_logits
from qfl_interp.models.losses import IGNORED
from qfl_interp.models.metrics import masked_loss
from qfl_interp.training.stacked import attention as attention_module
from qfl_interp.training.stacked import bytes_per_member, kernels, max_members
from qfl_interp.training.stacked.attention import Heads, attention, gated_unit
from qfl_interp.training.stacked.forward import member_losses, stack_shape, stacked_logits
from qfl_interp.training.stacked.grouping import faster_alone
from qfl_interp.training.stacked.parameters import StackedParameters

N_CTX = 14


def _randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _heads(n_heads, d_head, n_pos, first, rotary):
    angle = _randn(n_pos + 1, d_head // 2, seed=9) * 3
    turn = torch.stack((angle.cos(), angle.sin()), -1) if rotary else torch.zeros(n_pos + 1, 0, 2)
    return Heads(n_heads, first, d_head**-0.5, turn)


def _written_out(q, k, v, heads):
    """Attention position by position in float64."""

    def turned(x, start):
        if not heads.turn.shape[1]:
            return x
        out = x.clone()
        for pos in range(x.shape[1]):
            for pair in range(x.shape[3] // 2):
                cos, sin = heads.turn[start + pos, pair].double()
                even, odd = x[:, pos, :, 2 * pair], x[:, pos, :, 2 * pair + 1]
                out[:, pos, :, 2 * pair] = even * cos - odd * sin
                out[:, pos, :, 2 * pair + 1] = even * sin + odd * cos
        return out

    q, k, v = (t.unflatten(-1, (heads.n_heads, -1)) for t in (q, k, v))
    q, k = turned(q, heads.first), turned(k, 0)
    out = torch.zeros_like(q)
    for a in range(q.shape[1]):
        seen = heads.first + a + 1
        scores = torch.einsum("nhd,nthd->nht", q[:, a], k[:, :seen]) * heads.scale
        out[:, a] = torch.einsum("nht,nthd->nhd", scores.softmax(-1), v[:, :seen])
    return out.flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "torch"])
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
@pytest.mark.parametrize(
    ("n_examples", "n_heads", "d_head", "n_pos", "n_asked"),
    [
        (3, 4, 4, 20, 20), (3, 2, 6, 37, 17), (3, 1, 2, 16, 1), (3, 3, 2, 33, 33), (1, 1, 4, 9, 5), (15, 1, 4, 5, 5),
        (16, 1, 4, 5, 3), (17, 1, 4, 5, 5), (1, 4, 16, 11, 11), (9, 4, 16, 12, 4), (16, 3, 4, 1, 1), (5, 2, 10, 8, 8),
    ],
    ids=str,
)  # fmt: skip
def test_attention_and_its_gradients(n_examples, n_heads, d_head, n_pos, n_asked, rotary, dtype):
    _check_attention(n_examples, n_heads, d_head, n_pos, n_asked, rotary, dtype)


@pytest.mark.parametrize("d_head", [1, 3, 5])
def test_attention_of_an_odd_width(d_head):
    _check_attention(6, 3, d_head, 9, 4, False, torch.float32)


def _check_attention(n_examples, n_heads, d_head, n_pos, n_asked, rotary, dtype):
    heads = _heads(n_heads, d_head, n_pos, n_pos - n_asked, rotary)
    width, full = n_heads * d_head, n_pos == n_asked
    kv = (_randn(n_examples, n_pos, (3 if full else 2) * width) * 2).to(dtype).requires_grad_()
    q = None if full else (_randn(n_examples, n_asked, width, seed=1) * 2).to(dtype).requires_grad_()
    weight = _randn(n_examples, n_asked, width, seed=2)
    got = attention(q, kv, heads)
    leaves = [kv] if q is None else [q, kv]
    gradients = torch.autograd.grad((got * weight.to(dtype)).sum(), leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    parts = exact[0].chunk(3, -1) if q is None else (exact[0], *exact[1].chunk(2, -1))
    want = _written_out(*parts, heads)
    wanted = torch.autograd.grad((want * weight).sum(), exact)
    atol = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)
    for gradient, exact_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=0, atol=atol)


def _values_and_gradients(q, kv, weight, heads):
    leaves = [t.clone().requires_grad_() for t in (q, kv)]
    z = attention(*leaves, heads)
    return [z.detach(), *torch.autograd.grad((z * weight).sum(), leaves)]


@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
@pytest.mark.parametrize(("n_heads", "d_head"), [(4, 4), (3, 16), (1, 6)], ids=str)
def test_an_example_has_the_same_bits_in_any_company(n_heads, d_head, rotary):
    """Alone, at another place, and beside numbers that are none."""
    heads, width = _heads(n_heads, d_head, 12, 5, rotary), n_heads * d_head
    q, kv, weight = _randn(37, 7, width), _randn(37, 12, 2 * width, seed=1), _randn(37, 7, width, seed=2)
    together = _values_and_gradients(q, kv, weight, heads)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(3))
    for chosen in ([0], [36], [20], list(range(5, 22)), order.tolist()):
        for got, want in zip(
            _values_and_gradients(q[chosen], kv[chosen], weight[chosen], heads), together, strict=True
        ):
            assert torch.equal(got, want[chosen])
    sick = q.clone()
    sick[::2] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])[torch.arange(width) % 4]
    for got, want in zip(_values_and_gradients(sick, kv, weight, heads), together, strict=True):
        assert torch.equal(got[1::2], want[1::2])
        assert not got[::2].isfinite().all()


def test_the_compiled_loops_write_what_they_are_to_write_and_no_more():
    """Lanes past the last head, and a width that is no multiple of a chunk, touch nothing else."""
    heads = _heads(3, 6, 5, 1, rotary=True)
    q, kv, dz = _randn(3, 4, 18).numpy(), _randn(3, 5, 36, seed=1).numpy(), _randn(3, 4, 18, seed=2).numpy()
    edge, mark = 64, np.float32(7)

    def framed(*shape):
        whole = np.full(2 * edge + int(np.prod(shape)), mark)
        return whole, whole[edge:-edge].reshape(shape)

    (all_z, z), (all_levels, levels) = framed(3, 4, 18), framed(1, 4, 2, 16)
    (all_dq, dq), (all_dkv, dkv) = framed(3, 4, 18), framed(3, 5, 36)
    given = (q, 0, kv, 0, 18, heads.turn.numpy(), np.float32(heads.scale), 1, 3)
    kernels.attend(*given, z, levels)
    kernels.attend_backward(*given, levels, dz, dq, dkv)
    for whole, part in ((all_z, z), (all_levels, levels), (all_dq, dq), (all_dkv, dkv)):
        assert (whole[:edge] == mark).all()
        assert (whole[-edge:] == mark).all()
        assert not (part == mark).any()
        assert np.isfinite(part).all()


@pytest.mark.parametrize("far", [150.0, 200.0, 300.0])
def test_attention_with_scores_far_apart(far):
    """A score of 100 above the rest takes all the weight, and nothing overflows."""
    heads = _heads(1, 2, 3, 0, rotary=False)
    q, k, v = torch.tensor([[1.0, 0], [1, 0], [1, 0]]), torch.tensor([[0.0, 0], [far, 0], [-far, 0]]), _randn(3, 2)
    kv = torch.cat((q, k, v), -1)[None].requires_grad_()
    z = attention(None, kv, heads)
    torch.testing.assert_close(z[0], v[[0, 1, 1]], rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(z.sum(), kv)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[0, :, 4:], torch.tensor([[1.0, 1], [2, 2], [0, 0]]), rtol=0, atol=1e-6)


def test_attention_keeps_what_is_not_a_number():
    """A member that diverged must not look finite."""
    kv = _randn(2, 5, 12)
    kv[1, 2, 0] = torch.nan  # one query of one example
    z = attention(None, kv, _heads(1, 4, 5, 0, rotary=True))
    assert z[1, 2].isnan().all()
    z[1, 2] = 0
    assert z.isfinite().all()
    kv[1, 2, 0], kv[1, 3, 4] = 0, torch.nan  # one key, which two queries see
    z = attention(None, kv, _heads(1, 4, 5, 0, rotary=True))
    assert z[1, 3:].isnan().all()
    assert z[0].isfinite().all()
    assert z[1, :3].isfinite().all()


def test_gated_unit_and_its_gradient():
    x = (_randn(3, 5, 14) * 30).requires_grad_()
    weight = _randn(3, 5, 7, seed=1)
    got = gated_unit(x)
    (gradient,) = torch.autograd.grad((got * weight).sum(), x)
    exact = x.detach().double().requires_grad_()
    gate, up = exact.chunk(2, -1)
    want = F.silu(gate) * up
    (wanted,) = torch.autograd.grad((want * weight).sum(), exact)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gated_unit(x.detach().double()), want.detach(), rtol=1e-12, atol=0)


def _models(style, n_layers, d_vocab, dtype, n_members=3):
    config = qfl.ModelConfig(d_model=16, n_layers=n_layers, n_heads=2, style=style, d_mlp=11)
    models = [build_hooked(config, d_vocab=d_vocab, n_ctx=N_CTX, seed=i).to(dtype) for i in range(n_members)]
    for seed, model in enumerate(models):
        for parameter in model.parameters():  # gains and biases that are not ones and zeros
            parameter.data += 0.2 * _randn(*parameter.shape, seed=seed).to(dtype)
    stack = StackedParameters([parameters_to_save(m) for m in models], torch.device("cpu"))
    return models, stack, stack_shape(config, models[0])


@pytest.mark.parametrize("span", [slice(0, 13), slice(4, 9)], ids=["all", "some"])
@pytest.mark.parametrize("d_vocab", [5, 40], ids="d_vocab{}".format)
@pytest.mark.parametrize("n_layers", [1, 3], ids="layers{}".format)
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_forward_and_gradients_equal_each_members_model(style, n_layers, d_vocab, span):
    _check_against_models(style, n_layers, d_vocab, span, torch.float64, 1e-9)


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_forward_and_gradients_in_float32(style):
    _check_against_models(style, 3, 5, slice(4, 9), torch.float32, 1e-5)


def _check_against_models(style, n_layers, d_vocab, span, dtype, rtol):
    models, stack, shape = _models(style, n_layers, d_vocab, dtype)
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, d_vocab, (3, 4, N_CTX - 1), generator=rng)
    target = torch.randint(0, d_vocab, (3, 4, span.stop - span.start), generator=rng)
    target[1, 2:] = IGNORED
    target[0, 0, 1] = IGNORED
    losses = member_losses(stacked_logits(stack.weights, shape, tokens, span), target)
    stack.differentiate(losses.sum())
    found = stack.views(stack.gradients)
    for member, model in enumerate(models):
        loss = masked_loss(fast_logits(model, tokens[member], span), target[member])
        loss.backward()
        torch.testing.assert_close(losses[member], loss, rtol=rtol, atol=0)
        scale = max(p.grad.abs().max().item() for p in model.parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                found[name][member], parameter.grad, rtol=0, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_adamw_and_clipping_equal_torchs():
    """Ten updates of three members with learning rates of their own, gradients clipped or not, in float64."""
    shapes = {"a": (3, 4), "b": (5,)}
    start = [{n: _randn(*s, seed=10 * m + len(n)).double() for n, s in shapes.items()} for m in range(3)]
    config = qfl.TrainConfig(n_steps=10, weight_decay=0.3, betas=(0.8, 0.95), adam_eps=1e-3, clip_norm=2.0)
    stack = StackedParameters(start, torch.device("cpu"))
    lrs = [0.1, 0.01, 0.3]
    mirrors = [[p.clone().requires_grad_() for p in member.values()] for member in start]
    optimizers = [
        torch.optim.AdamW(ps, lr=lr, betas=config.betas, eps=config.adam_eps, weight_decay=config.weight_decay)
        for ps, lr in zip(mirrors, lrs, strict=True)
    ]
    for step in range(1, 11):
        stack.gradients.copy_(_randn(3, 17, seed=step) * torch.tensor([[0.1], [1.0], [10.0]]))
        wanted_norms = []
        for gradients, parameters, optimizer in zip(stack.gradients.clone(), mirrors, optimizers, strict=True):
            for parameter, gradient in zip(parameters, stack.views(gradients).values(), strict=True):
                parameter.grad = gradient.clone()
            wanted_norms.append(torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm))
            optimizer.step()
        norms = stack.clip(config.clip_norm)
        stack.update(lrs, step, config)
        torch.testing.assert_close(norms, torch.stack(wanted_norms), rtol=1e-12, atol=0)
    for member, (parameters, optimizer) in enumerate(zip(mirrors, optimizers, strict=True)):
        saved = stack.states(10, ["x"] * 3)[member]
        for name, parameter in zip(shapes, parameters, strict=True):
            torch.testing.assert_close(saved.model[name], parameter.detach(), rtol=1e-12, atol=1e-14)
            for field, value in optimizer.state[parameter].items():
                torch.testing.assert_close(saved.optimizer[f"{name}/{field}"], value, rtol=1e-12, atol=0)


def test_rows_that_are_kept_stay_as_they_are():
    _, stack, shape = _models("llama", 1, 5, torch.float32)
    stack.gradients.copy_(_randn(*stack.gradients.shape))
    stack.update([0.1, 0.2, 0.3], 1, qfl.TrainConfig(n_steps=1))
    before = stack.states(1, ["a", "b", "c"])
    stack.keep([0, 2])
    after = stack.states(1, ["a", "c"])
    for got, want in zip(after, (before[0], before[2]), strict=True):
        assert got.config_digest == want.config_digest
        assert all(torch.equal(got.model[n], want.model[n]) for n in want.model)
        assert all(torch.equal(got.optimizer[n], want.optimizer[n]) for n in want.optimizer)
    logits = stacked_logits(stack.weights, shape, torch.zeros(2, 1, 3, dtype=torch.long), slice(0, 3))
    stack.differentiate(logits.sum())
    assert stack.gradients.abs().sum(1).gt(0).all()


@pytest.mark.parametrize("name", task_names())
def test_joint_examples_are_each_streams_own(name):
    """Encoded together too: no example depends on its neighbours."""
    task = qfl.load_task(name)
    streams = [ExampleStream(task, seed, 5) for seed in (0, 1, 7)]
    for step in (0, 3):
        own = [stream.batch(step) for stream in streams]
        together = examples_of_all(streams, step)
        np.testing.assert_array_equal(together, np.concatenate([s.examples(step) for s in streams]))
        batch = task.encode(together)
        assert torch.equal(batch.tokens, torch.cat([b.tokens for b in own]))
        assert torch.equal(batch.loss_mask, torch.cat([b.loss_mask for b in own]))


def test_a_stream_with_too_few_in_the_first_round_goes_on_alone(addition):
    """With hardly any proposal of the split, every stream needs more rounds."""

    class Rare(type(addition)):
        train_fraction = 0.9

        def sample(self, rng, n):
            drawn = super().sample(rng, n)
            drawn[1:] = drawn[0]
            return drawn

    task = Rare(length=6)
    streams = [ExampleStream(task, seed, 4) for seed in range(40)]
    want = np.concatenate([stream.examples(0) for stream in streams])
    np.testing.assert_array_equal(examples_of_all(streams, 0), want)


def test_members_on_a_cpu():
    small = qfl.ModelConfig(d_model=16, n_layers=4)
    assert max_members(small, batch_size=8, n_ctx=52) > max_members(small, batch_size=64, n_ctx=52) > 1
    assert max_members(qfl.ModelConfig(d_model=1024, n_layers=1), batch_size=64, n_ctx=512) == 1


def test_large_models_of_small_batches_are_faster_alone():
    large = qfl.ModelConfig(d_model=256, n_layers=4)
    assert faster_alone(large, batch_size=8, n_ctx=52)
    assert max_members(large, batch_size=8, n_ctx=52) == 1
    assert not faster_alone(large, batch_size=64, n_ctx=52), "attention of many tokens"
    assert not faster_alone(qfl.ModelConfig(d_model=16, n_layers=4), batch_size=1, n_ctx=52), "calls, not numbers"
    assert not faster_alone(large, batch_size=8, n_ctx=52, device="cuda"), "and no GPU is asked"


_MEASURE = """
import json, sys, torch
import qfl_interp as qfl
from benchmarks._memory import reset_peak_mib, status_mib
from qfl_interp.models.metrics import scored_span, targets
from qfl_interp.models.build import build_model, parameters_to_save
from qfl_interp.training.stacked.forward import member_losses, stack_shape, stacked_logits
from qfl_interp.training.stacked.parameters import StackedParameters
torch.set_num_threads(1)
task = qfl.load_task("addition", length=16)
def grows(d, n_members, batch):
    config = qfl.ModelConfig(d_model=d, n_layers=3)
    model = build_model(config, task)
    tokens = torch.randint(0, 5, (n_members, batch, task.n_ctx))
    shape = stack_shape(config, model)
    before = reset_peak_mib()
    stack = StackedParameters([parameters_to_save(model)] * n_members, torch.device("cpu"))
    for step in (1, 2):
        logits = stacked_logits(stack.weights, shape, tokens, slice(32, 51))
        stack.differentiate(member_losses(logits, tokens[:, :, 33:52]).sum())
        stack.clip(1.0)
        stack.update([1e-3] * n_members, step, qfl.TrainConfig(n_steps=9))
    stack.states(2, ["x"] * n_members)
    return (status_mib("VmHWM") - before) * 2**20 / n_members
grows(16, 1, 1)
print(grows(*json.loads(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("d_model", "n_members", "batch"), [(64, 4, 64), (256, 4, 1)])
def test_memory_of_a_member_is_as_estimated(d_model, n_members, batch):
    """Peak memory of a process of its own, within a factor of 3: many activations, and many weights.

    One process for each: what an earlier one has freed may stay with the allocator, and hide what this one takes.
    """
    command = [sys.executable, "-c", _MEASURE, json.dumps([d_model, n_members, batch])]
    found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    estimate = bytes_per_member(qfl.ModelConfig(d_model=d_model, n_layers=3), batch_size=batch, n_ctx=52, d_vocab=5)
    assert estimate / 3 < found < 3 * estimate


def test_compiled_loops_are_what_a_cpu_runs(monkeypatch):
    calls = []
    true = attention_module.attend
    monkeypatch.setattr(attention_module, "attend", lambda *a: calls.append(1) or true(*a))
    _, stack, shape = _models("llama", 3, 5, torch.float32)
    stacked_logits(stack.weights, shape, torch.zeros(3, 1, 3, dtype=torch.long), slice(1, 3))
    assert len(calls) == 3
