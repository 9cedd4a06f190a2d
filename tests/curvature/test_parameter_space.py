"""Parameters as one vector: what lies where, and that nothing is lost on the way there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.models.build import build_hooked

SHAPES = {"W": (2, 3), "b": (2,), "scale": ()}


@pytest.fixture
def space():
    return ParameterSpace(SHAPES)


def test_a_vector_lists_the_parameters_in_order_row_by_row(space):
    tensors = {"scale": torch.tensor(9.0), "b": torch.tensor([7.0, 8.0]), "W": torch.arange(6.0).reshape(2, 3)}
    assert space.flatten(tensors).tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert space.sizes == {"W": 6, "b": 2, "scale": 1}
    assert len(space) == 9
    assert repr(space) == "ParameterSpace(3 parameters, 9 coordinates)"


def test_rows_of_vectors_become_rows_of_every_parameter(space):
    rows = torch.arange(36.0).reshape(2, 2, 9)
    parts = space.unflatten(rows)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "W": (2, 2, 2, 3),
        "b": (2, 2, 2),
        "scale": (2, 2),
    }
    assert parts["W"][1, 0].tolist() == [[18, 19, 20], [21, 22, 23]]
    assert parts["b"][0, 1].tolist() == [15, 16]
    assert parts["scale"].tolist() == [[8, 17], [26, 35]]
    assert space.unflatten(torch.zeros(0, 9))["W"].shape == (0, 2, 3)


def test_flatten_copies_and_unflatten_does_not(space):
    vector = torch.zeros(9)
    parts = space.unflatten(vector)
    again = space.flatten(parts)
    parts["b"][1] = 5.0
    assert vector.tolist() == [0, 0, 0, 0, 0, 0, 0, 5, 0]
    assert again.tolist() == [0] * 9
    alone = torch.ones(3)
    ParameterSpace({"only": (3,)}).flatten({"only": alone})[0] = 2.0
    assert alone.tolist() == [1, 1, 1]


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_the_space_of_a_model_holds_what_is_trained(style):
    config = qfl.ModelConfig(d_model=8, n_layers=2, n_heads=2, style=style)
    model = build_hooked(config, d_vocab=5, n_ctx=6)
    space = ParameterSpace.of(model)
    d, mlp, vocab, n_ctx = 8, config.d_mlp_used, 5, 6
    llama = 2 * vocab * d + d + 2 * (4 * d * d + 3 * d * mlp + 2 * d)
    # Biases of q, k, v, O, in and out, two norms with gain and bias a block and one at the end, W_pos and b_U.
    block = 4 * d * d + 4 * d + 2 * d * mlp + mlp + d + 4 * d
    gpt2 = 2 * vocab * d + vocab + n_ctx * d + 2 * block + 2 * d
    assert len(space) == {"llama": llama, "gpt2": gpt2}[style]
    assert ("unembed.b_U" in space.shapes) == (style == "gpt2")

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    vector = space.flatten(parameters)
    np.testing.assert_array_equal(
        vector.numpy(), np.concatenate([parameter.detach().numpy().ravel() for parameter in model.parameters()])
    )
    back = space.unflatten(vector)
    assert back.keys() == parameters.keys()
    assert all(torch.equal(back[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"W": torch.zeros(3, 2)}, r"1 that differ: W is \(3, 2\) instead of \(2, 3\)\. Are they"),
        ({"extra": torch.zeros(4)}, r"extra is \(4,\) instead of absent"),
        (
            {"b": torch.zeros(1), "scale": torch.zeros(1)},
            r"2 that differ: b is \(1,\) .*; scale is \(1,\) instead of \(\)",
        ),
    ],
    ids=["transposed", "unknown", "two"],
)
def test_tensors_of_another_model_are_refused(space, change, words):
    good = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    assert space.flatten(good).shape == (9,)
    with pytest.raises(ValueError, match=words):
        space.flatten(good | change)


def test_a_missing_tensor_is_named(space):
    with pytest.raises(ValueError, match=r"scale is missing instead of \(\)"):
        space.flatten({"W": torch.zeros(2, 3), "b": torch.zeros(2)})


@pytest.mark.parametrize("length", [8, 10])
def test_a_vector_of_another_length_is_refused(space, length):
    with pytest.raises(ValueError, match=rf"must have 9 coordinates, got shape \(4, {length}\)"):
        space.unflatten(torch.zeros(4, length))
