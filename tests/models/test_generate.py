"""Parallel greedy decoding against decoding one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import pairwise

from qfl_interp.config import ModelConfig
from qfl_interp.interventions.edits import edit_at
from qfl_interp.interventions.planes import project_out
from qfl_interp.models.build import build_hooked
from qfl_interp.models.generate import decode_greedy, generate_greedy
from qfl_interp.models.hooks import Intervention, Site, interventions_on

D_VOCAB, N_CTX, N_PROMPT, N_NEW, N_EXAMPLES = 5, 14, 4, 9, 30


@torch.no_grad()
def one_at_a_time(forward, prompts, n_new):
    tokens = prompts
    for _ in range(n_new):
        tokens = torch.cat([tokens, forward(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


class Counted:
    """A forward pass that keeps the shapes it was called with."""

    def __init__(self, forward):
        self.forward, self.shapes = forward, []

    def __call__(self, tokens, *rows):
        self.shapes.append(tuple(tokens.shape))
        return self.forward(tokens)


def random_model(seed, style="llama"):
    """In float64, so that no two logits are within rounding of each other."""
    config = ModelConfig(d_model=16, n_layers=2, n_heads=2, style=style)
    model = build_hooked(config, d_vocab=D_VOCAB, n_ctx=N_CTX, seed=seed).to(torch.float64, print_details=False)
    with torch.no_grad():  # loud logits: what is written depends on the whole prefix
        for name, parameter in model.named_parameters():
            if name.endswith(("W_E", "W_V", "W_O")):
                parameter.mul_(3)
    return model


def draw_prompts(seed, n=N_EXAMPLES):
    return torch.randint(0, D_VOCAB, (n, N_PROMPT), generator=torch.Generator().manual_seed(seed))


def changes_of(kind, seed):
    """Interventions at fixed token indices, the same for all examples or aligned with each."""
    drawn = torch.Generator().manual_seed(seed)
    w = torch.randn(2, 2, 16, generator=drawn, dtype=torch.float64)
    per_example = torch.stack([torch.randperm(N_CTX, generator=drawn)[:2] for _ in range(N_EXAMPLES)])
    return {
        "intact": [],
        "same-places": [project_out(Site(0), w, positions=torch.tensor([[5, 8]]))],
        "aligned": [project_out(Site(1), w, positions=per_example)],
        "heads": [edit_at(Site(0, "z"), lambda z: -z, per_example)],
        "everywhere": [Intervention(Site(0, "mlp_out"), lambda x: -2 * x)],
    }[kind]


@pytest.mark.parametrize(
    ("style", "kind", "seed"),
    pairwise(["llama", "gpt2"], ["intact", "same-places", "aligned", "heads", "everywhere"], [0, 1]),
)
def test_equal_to_one_token_at_a_time(style, kind, seed):
    model, prompts = random_model(seed, style), draw_prompts(seed)
    guesses = torch.randint(0, D_VOCAB, (N_EXAMPLES, N_NEW), generator=torch.Generator().manual_seed(seed + 9))
    with interventions_on(model, changes_of(kind, seed)):
        want = one_at_a_time(model, prompts, N_NEW)
        counted = Counted(model)
        for guess in (None, guesses):
            assert torch.equal(generate_greedy(counted, prompts, n_new=N_NEW, guess=guess), want)
            assert 2 <= len(counted.shapes) <= N_NEW
            # Aligned interventions need every example in every pass; the last token is never read.
            assert all(rows == N_EXAMPLES and length < N_PROMPT + N_NEW for rows, length in counted.shapes)
            counted.shapes.clear()
        assert torch.equal(generate_greedy(counted, prompts, n_new=N_NEW, guess=want[:, N_PROMPT:]), want)
        assert len(counted.shapes) == 1
    # Not all examples write the same, nor one token again and again.
    assert len(torch.unique(want[:, N_PROMPT:], dim=0)) > 5


def test_one_wrong_guess_costs_what_it_spoils():
    """A counter that adds one: with guesses right but for one token everything behind it is guessed anew."""
    counted = Counted(lambda tokens: torch.nn.functional.one_hot((tokens + 1) % 20, 20).double())
    prompts = torch.tensor([[3], [7]])
    want = (prompts + torch.arange(8)) % 20
    right = want[:, 1:]
    passes = {}
    for name, guess in {
        "right": right,
        "wrong-last": right + torch.tensor([0, 0, 0, 0, 0, 0, 1]),
        "wrong-early": right + torch.tensor([0, 1, 0, 0, 0, 0, 0]),
        "none": None,
    }.items():
        counted.shapes.clear()
        assert torch.equal(generate_greedy(counted, prompts, n_new=7, guess=guess), want)
        passes[name] = len(counted.shapes)
    # A wrong last token is replaced by the pass that finds it. After a wrong early one the token guessed anew behind it
    # followed from the wrong one, so that a counter's error walks on: each pass mends one token.
    assert passes == {"right": 1, "wrong-last": 1, "wrong-early": 6, "none": 7}


def test_settled_examples_are_not_passed_again():
    table = (torch.arange(20) + 1) % 20
    seen = []

    def forward(tokens, rows):
        seen.append(rows.tolist())
        return torch.nn.functional.one_hot(table[tokens], 20).double()

    tokens = torch.tensor([[0, 1, 2, 3], [5, 9, 9, 9], [4, 5, 9, 9], [1, 1, 1, 1]])
    free = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    found = decode_greedy(forward, tokens, free)
    assert found.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8], [4, 5, 6, 9], [1, 1, 1, 1]]
    assert seen == [[0, 1, 2], [1], [1]]
    assert tokens[1].tolist() == [5, 9, 9, 9], "the guess is left as it was"


@pytest.mark.parametrize("seed", range(4))
def test_free_tokens_between_fixed_ones(seed):
    """Stretches that begin and end where they like, with tokens that stay inside and behind them."""
    model = random_model(seed)
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(0, D_VOCAB, (N_EXAMPLES, N_CTX)))
    free = torch.from_numpy(rng.random((N_EXAMPLES, N_CTX)) < rng.random((N_EXAMPLES, 1)))
    free[:, 0] = False
    want = tokens.clone()
    with torch.no_grad():
        for place in range(1, N_CTX):
            following = model(want)[:, place - 1].argmax(dim=-1)
            want[:, place] = torch.where(free[:, place], following, want[:, place])
    assert torch.equal(decode_greedy(Counted(model), tokens, free), want)


def test_ties_go_to_the_lowest_id():
    def forward(tokens):
        logits = torch.zeros(*tokens.shape, 4)
        logits[..., 1:3] = 1.0  # ids 1 and 2 tie
        return logits

    assert generate_greedy(forward, torch.tensor([[3]]), n_new=3).tolist() == [[3, 1, 1, 1]]
    # A guess that is as likely as another id does not stay.
    assert generate_greedy(forward, torch.tensor([[3]]), n_new=2, guess=torch.tensor([[2, 2]])).tolist() == [[3, 1, 1]]


def test_nothing_to_write():
    counted = Counted(random_model(0))
    prompts = draw_prompts(0)
    assert torch.equal(generate_greedy(counted, prompts, n_new=0), prompts)
    assert generate_greedy(counted, prompts[:0], n_new=3).shape == (0, N_PROMPT + 3)
    assert not counted.shapes


def test_bad_requests_are_refused():
    model = random_model(0)
    with pytest.raises(ValueError, match=r"n_new must be at least 0.*got n_new=-1"):
        generate_greedy(model, draw_prompts(0), n_new=-1)
    with pytest.raises(ValueError, match=r"at least one token long, got n_new=2 and prompts of shape \(3, 0\)"):
        generate_greedy(model, torch.zeros(3, 0, dtype=torch.long), n_new=2)
    with pytest.raises(ValueError, match=r"guess must have shape \(30, 2\), got \(1, 2\)"):
        generate_greedy(model, draw_prompts(0), n_new=2, guess=torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="which nothing predicts, got it in example 1"):
        decode_greedy(Counted(model), draw_prompts(0, 2), torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]).bool())
