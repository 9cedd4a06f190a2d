"""Every option of a model: over a covering set, what is built is what was counted, and both passes compute the same."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from qfl_interp.config import ModelConfig
from qfl_interp.errors import QflError
from qfl_interp.models.build import build_hooked
from qfl_interp.models.fast_forward import fast_logits
from qfl_interp.models.fast_suffix import fast_suffix, suffix_logits
from qfl_interp.models.forward import is_fast, training_forward
from qfl_interp.models.hooks import hook_point
from qfl_interp.training.stacked.grouping import faster_alone, max_members

D_VOCAB, N_CTX = 7, 9
OPTIONS = {
    "norm": ("rms", "ln", "none"),
    "mlp": ("silu", "gelu", "gelu_new", "relu", "relu2", "solu", "gated silu", "gated relu", "no"),
    "positions": ("rotary", "learned", "none"),
    "biases": ("all", "mlp", "none"),
    "init": ("llama", "gpt2", "grokking"),
    "d_head": (None, 6),
    "tied": (False, True),
    "mup_base": (None, 8),
    "d_mlp": (None, 10),
}


def covering() -> list[dict]:
    """Few rows in which every pair of values of two options occurs: the next row is a greedy one of many shuffles."""
    names = list(OPTIONS)
    pairs = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in OPTIONS[a] for y in OPTIONS[b]
    }  # fmt: skip
    rows, rng = [], torch.Generator().manual_seed(0)
    while pairs:
        drawn = [
            {n: v[int(torch.randint(len(v), (), generator=rng))] for n, v in OPTIONS.items()} for _ in range(60)
        ]  # fmt: skip
        best = max(drawn, key=lambda row: len(pairs & _pairs(row)))
        first = min(pairs, key=str)
        best = best if pairs & _pairs(best) else best | dict(first)
        rows.append(best)
        pairs -= _pairs(best)
    return rows


def _pairs(row: dict) -> set:
    return set(itertools.combinations(row.items(), 2))


def config_of(row: dict, **changes) -> ModelConfig:
    values = {name: value for name, value in row.items() if name not in ("mlp", "d_mlp")}
    if row["mlp"] == "no":
        values["attn_only"] = True
    else:
        values |= {"act": row["mlp"].split()[-1], "gated": "gated" in row["mlp"], "d_mlp": row["d_mlp"]}
    return ModelConfig(**{"d_model": 16, "n_layers": 2, "n_heads": 2} | values | changes)


COVERING = covering()


def built(config: ModelConfig, seed: int = 1):
    """A model in float64 none of whose numbers is left at 0 or 1, so that what is dropped is seen."""
    model = build_hooked(config, d_vocab=D_VOCAB, n_ctx=N_CTX, seed=seed)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng)
    return model.to(torch.float64, print_details=False)


def draw() -> torch.Tensor:
    return torch.randint(D_VOCAB, (3, N_CTX), generator=torch.Generator().manual_seed(4))


def by_hand(model, config: ModelConfig, tokens: torch.Tensor) -> torch.Tensor:
    """Logits from the parameters by name alone, in the words of the configuration."""
    used, w = config.used, dict(model.named_parameters())
    d_head = config.d_head_used

    def norm(x, name):
        if used.norm == "none":
            return x
        if used.norm == "ln":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return x * w[f"{name}.w"] + w.get(f"{name}.b", 0)

    def rotated(x):
        if used.positions != "rotary":
            return x
        angle = torch.arange(x.shape[1])[:, None] * config.rope_theta ** (-torch.arange(0, d_head, 2) / d_head)
        turn = torch.polar(torch.ones_like(angle, dtype=torch.float64), angle.to(torch.float64))[:, None]
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    def heads(x, name, layer):
        y = torch.einsum("bpd,ndh->bpnh", x, w[f"blocks.{layer}.attn.W_{name}"])
        return y + w.get(f"blocks.{layer}.attn.b_{name}", 0)

    act = {
        "silu": F.silu, "relu": F.relu, "relu2": lambda x: F.relu(x) ** 2, "gelu": F.gelu,
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "solu": lambda x: x * x.softmax(-1),
    }[used.act]  # fmt: skip
    x = w["embed.W_E"][tokens]
    x = x + w["pos_embed.W_pos"][: tokens.shape[1]] if used.positions == "learned" else x
    later = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    ratio = config.width_ratio if config.d_head is None else 1
    for layer in range(config.n_layers):
        name, normal = f"blocks.{layer}", norm(x, f"blocks.{layer}.ln1")
        q, k, v = (heads(normal, part, layer) for part in "QKV")
        scores = torch.einsum("bpnh,bqnh->bnpq", rotated(q), rotated(k)) / math.sqrt(d_head * ratio)
        z = torch.einsum("bnpq,bqnh->bpnh", scores.masked_fill(later, -torch.inf).softmax(-1), v)
        x = x + torch.einsum("bpnh,nhd->bpd", z, w[f"{name}.attn.W_O"]) + w.get(f"{name}.attn.b_O", 0)
        if config.attn_only:
            continue
        normal, bias = norm(x, f"{name}.ln2"), w.get(f"{name}.mlp.b_in", 0)
        up = normal @ w[f"{name}.mlp.W_in"]
        hidden = act(normal @ w[f"{name}.mlp.W_gate"]) * up + bias if used.gated else act(up + bias)
        x = x + hidden @ w[f"{name}.mlp.W_out"] + w.get(f"{name}.mlp.b_out", 0)
    matrix = w["embed.W_E"].T / config.width_ratio if config.tied else w["unembed.W_U"]
    return norm(x, "ln_final") @ matrix + w.get("unembed.b_U", 0)


def test_the_covering_set_covers_and_is_small():
    pairs = {
        pair
        for a, b in itertools.combinations(OPTIONS, 2)
        for pair in (((a, x), (b, y)) for x in OPTIONS[a] for y in OPTIONS[b])
    }
    assert pairs <= set().union(*map(_pairs, COVERING))
    assert len(COVERING) < 60


@pytest.mark.parametrize("row", COVERING, ids=lambda row: "-".join(map(str, row.values())))
def test_what_is_built_is_what_was_asked_for(row):
    config = config_of(row)
    model, tokens = built(config), draw()
    assert config.n_parameters(d_vocab=D_VOCAB, n_ctx=N_CTX) == sum(p.numel() for p in model.parameters())
    want = by_hand(model, config, tokens)
    # TransformerLens keeps the tables of rotations in the precision that the model was built in, float32.
    close = 1e-5 if config.used.positions == "rotary" else 1e-9
    torch.testing.assert_close(model(tokens), want, rtol=close, atol=close)
    assert is_fast(model) == expected_fast(config)
    span = slice(2, 6)
    own = model(tokens)[:, span]
    got = training_forward(model)(tokens, span)
    torch.testing.assert_close(got, own, rtol=1e-9, atol=1e-9)
    parameters, upstream = list(model.parameters()), torch.linspace(-1, 1, own.numel()).view_as(own)
    gradients = [torch.autograd.grad((y * upstream).sum(), parameters, allow_unused=True) for y in (got, own)]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    if is_fast(model):
        rest = suffix_logits(fast_suffix(model, tokens, 1, 3), slice(4, 6), {})
        torch.testing.assert_close(rest, own[:, 2:], rtol=1e-9, atol=1e-9)
    else:
        with pytest.raises(QflError, match="does not compute this model's function"):
            fast_logits(model, tokens)


def expected_fast(config: ModelConfig) -> bool:
    """What `fast_logits` says that it covers."""
    gated_biases = config.used.gated and config.used.biases != "none"
    mlp = config.attn_only or (config.used.act not in ("relu2", "solu") and not gated_biases)
    return mlp and not config.tied and not (config.mup_base is not None and config.d_head is None)


def test_only_the_two_published_functions_are_stacked():
    small = {"d_model": 16, "n_layers": 2}
    for same in (
        {},
        {"style": "gpt2"},
        {"d_mlp": 11},
        {"init": "gpt2", "init_scale": 2.0},
        {"norm": "rms", "d_head": 4},
    ):
        assert ModelConfig(**small, **same).stackable, same
    others = (
        {"style": "grokking"}, {"norm": "ln"}, {"act": "relu"}, {"gated": False}, {"positions": "none"},
        {"biases": "mlp"}, {"d_head": 6}, {"attn_only": True}, {"tied": True}, {"mup_base": 8},
    )  # fmt: skip
    for other in others:
        config = ModelConfig(**small, **other)
        assert not config.stackable, other
        assert faster_alone(config, batch_size=64, n_ctx=10)
        assert max_members(config, batch_size=64, n_ctx=10) == 1


def test_a_model_without_an_mlp_says_so():
    model = build_hooked(ModelConfig(16, 1, attn_only=True), d_vocab=D_VOCAB, n_ctx=N_CTX)
    for name in ("hook_resid_mid", "hook_mlp_out", "mlp.hook_post"):
        with pytest.raises(QflError, match="Its blocks have no MLP"):
            hook_point(model, f"blocks.0.{name}")


def test_initial_weights_of_the_grokking_models():
    """Released code: every matrix of deviation 1 / sqrt(d_model), the unembedding's 1 / sqrt(d_vocab), biases 0."""
    model = build_hooked(ModelConfig(128, 1, style="grokking"), d_vocab=114, n_ctx=3)
    spread = {name: (p.numel(), p.std().item()) for name, p in model.named_parameters() if ".W_" in name}
    for name, (n, std) in spread.items():
        want = 1 / math.sqrt(114 if name == "unembed.W_U" else 128)
        assert std == pytest.approx(want, rel=4 / math.sqrt(2 * n)), name  # four standard errors
    others = {name: p for name, p in model.named_parameters() if ".W_" not in name}
    assert others.keys() == {"blocks.0.mlp.b_in", "blocks.0.mlp.b_out"}
    assert not any(p.any() for p in others.values())
    assert (model.cfg.d_mlp, model.cfg.d_head, model.cfg.act_fn, model.cfg.normalization_type) == (
        512,
        32,
        "relu",
        None,
    )


@pytest.mark.parametrize("style", ["llama", "gpt2", "grokking"])
def test_the_scale_multiplies_every_matrix(style):
    once, thrice = (
        dict(build_hooked(ModelConfig(16, 1, style=style, init_scale=s), d_vocab=5, n_ctx=4).named_parameters())
        for s in (1.0, 3.0)
    )
    for name, w in once.items():
        torch.testing.assert_close(thrice[name], 3 * w if ".W_" in name else w, rtol=1e-6, atol=1e-7)


def test_a_tied_model_survives_a_copy_a_pickle_and_another_set_of_weights():
    model = build_hooked(ModelConfig(16, 1, tied=True), d_vocab=D_VOCAB, n_ctx=N_CTX)
    tokens = draw()
    assert "unembed.W_U" not in dict(model.named_parameters())
    assert torch.equal(model.W_U, model.embed.W_E.T)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.embed.W_E += 1
        assert torch.equal(other.W_U, other.embed.W_E.T)
        assert not torch.equal(other(tokens), model(tokens))
    doubled = {name: 2 * p for name, p in model.named_parameters()}
    swapped = torch.func.functional_call(model, doubled, (tokens,))
    with torch.no_grad():
        for p in model.parameters():
            p *= 2
    torch.testing.assert_close(swapped, model(tokens))
