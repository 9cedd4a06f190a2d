"""The same bits from several threads, where PyTorch's own sums differ from call to call."""

from __future__ import annotations

import pytest
import torch
from torch.utils import deterministic

import qfl_interp as qfl
from qfl_interp.curvature import Hessian
from qfl_interp.curvature.ordered_sums import ordered_sums
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.models.build import build_model


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def same_bits(compute, n):
    first = compute()
    return all(torch.equal(first, compute()) for _ in range(n - 1))


@pytest.mark.usefixtures("two_threads")
def test_rows_that_are_read_often_have_one_gradient():
    """Each of four rows of a table gets the sum of 32,768 gradients: so many that threads share them."""
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(4, 64, generator=rng).requires_grad_()
    rows, slopes = torch.randint(4, (1 << 17,), generator=rng), torch.randn(1 << 17, 64, generator=rng)

    def gradient():
        return torch.autograd.grad((table[rows] * slopes).sum(), table)[0]

    with ordered_sums("cpu"):
        assert same_bits(gradient, 10)
    expected = torch.zeros(4, 64, dtype=torch.float64).index_add_(0, rows, slopes.double())
    # Sums of about 200 in float32, rounded 32,768 times.
    torch.testing.assert_close(gradient().double(), expected, rtol=0, atol=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_gradients_and_products_of_a_model_are_the_same_each_time():
    task = qfl.load_task("addition", length=16)
    model = build_model(qfl.ModelConfig(d_model=64, n_layers=1), task, seed=0)
    batch = task.encode(qfl.held_out(task, "val", 64, seed=0, stream="test"))
    hessian = Hessian(TokenLoss(model, scored_tokens(batch)))
    vector = torch.randn(len(hessian), generator=torch.Generator().manual_seed(1))
    assert same_bits(hessian.gradient, 6)
    assert same_bits(lambda: hessian.product(vector), 6)


@pytest.mark.parametrize("enabled", [False, True])
def test_what_was_set_is_set_again(enabled):
    fills = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(enabled)
    try:
        with ordered_sums("cpu"):
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled() == enabled
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert deterministic.fill_uninitialized_memory == fills
    finally:
        torch.use_deterministic_algorithms(False)
