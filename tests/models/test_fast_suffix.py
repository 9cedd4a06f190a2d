"""From a position and a block on: what the hooked model computes there, under the same changes."""

from __future__ import annotations

import pytest
import torch

from qfl_interp.config import ModelConfig
from qfl_interp.errors import QflError
from qfl_interp.models.build import build_hooked
from qfl_interp.models.fast_suffix import fast_suffix, suffix_logits
from qfl_interp.models.hooks import Intervention, Site, interventions_on

N_CTX, N_LAYERS, D_MODEL, D_VOCAB, N_EXAMPLES = 12, 3, 16, 7, 6


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    config = ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS, n_heads=4, style=request.param)
    built = build_hooked(config, d_vocab=D_VOCAB, n_ctx=N_CTX).to(torch.float64, print_details=False)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in built.parameters():
            p += 0.2 * torch.randn(p.shape, generator=rng, dtype=torch.float64)
    return built


@pytest.fixture
def tokens():
    return torch.randint(0, D_VOCAB, (N_EXAMPLES, N_CTX), generator=torch.Generator().manual_seed(1))


def shift_from(first, block):
    """A change of every token from `first` on, another one for each token."""

    def change(x):
        x = x.clone()
        x[:, first:] += 0.3 * (block + 1) * torch.linspace(-1, 1, x[:, first:].numel()).view_as(x[:, first:]).to(x)
        return x

    return change


@pytest.mark.parametrize("layer", range(N_LAYERS + 1))
@pytest.mark.parametrize("first", [0, 1, 5, N_CTX - 1])
def test_it_equals_the_hooked_model(model, tokens, layer, first):
    blocks = range(max(layer - 1, 0), N_LAYERS)
    changes = {block: [shift_from(first, block), lambda x: x * 1.0] for block in blocks}
    hooks = [Intervention(Site(block), fn) for block, fns in changes.items() for fn in fns]
    with torch.no_grad(), interventions_on(model, hooks):
        wanted = model(tokens)
    suffix = fast_suffix(model, tokens, layer, first)
    found = suffix_logits(suffix, slice(first, N_CTX), changes)
    torch.testing.assert_close(found, wanted[:, first:], rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert (found - model(tokens)[:, first:]).abs().max() > 1e-4
    part = suffix_logits(suffix, slice(N_CTX - 1, N_CTX), {})
    torch.testing.assert_close(part, model(tokens)[:, -1:], rtol=1e-9, atol=1e-9)


def test_rows_are_those_examples(model, tokens):
    whole = fast_suffix(model, tokens, 1, 4)
    changes = {0: [shift_from(4, 0)]}
    one = torch.cat([suffix_logits(whole.rows(slice(i, i + 1)), slice(4, 9), {}) for i in range(N_EXAMPLES)])
    torch.testing.assert_close(one, suffix_logits(whole, slice(4, 9), {}), rtol=1e-9, atol=1e-9)
    alone = fast_suffix(model, tokens[2:5], 1, 4)
    found = suffix_logits(whole.rows(slice(2, 5)), slice(4, 9), changes)
    torch.testing.assert_close(found, suffix_logits(alone, slice(4, 9), changes), rtol=1e-9, atol=1e-9)


def test_a_change_before_the_suffix_is_refused(model, tokens):
    suffix = fast_suffix(model, tokens, 1, 4)
    with pytest.raises(QflError, match="must leave the tokens before position 4 as they are"):
        suffix_logits(suffix, slice(4, 9), {1: [torch.tanh]})
    with pytest.raises(QflError, match="before position 4"):
        suffix_logits(suffix, slice(4, 9), {0: [lambda x: x[:, 1:]]})


@pytest.mark.parametrize(
    ("positions", "changes"), [(slice(3, 9), {}), (slice(4, 9), {-1: [torch.tanh]}), (slice(4, 9), {3: [torch.tanh]})]
)
def test_what_is_not_in_the_suffix_is_refused(model, tokens, positions, changes):
    with pytest.raises(ValueError, match="from 4 and 0 on"):
        suffix_logits(fast_suffix(model, tokens, 1, 4), positions, changes)


@pytest.mark.parametrize(("layer", "first"), [(-1, 0), (N_LAYERS + 1, 0), (0, -1), (0, N_CTX)])
def test_blocks_and_positions_that_are_not_there(model, tokens, layer, first):
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\] and \[0, 12\)"):
        fast_suffix(model, tokens, layer, first)
