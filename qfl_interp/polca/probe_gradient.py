"""Where in weight space a feature's probes improve fastest: the gradient of their loss in the model's parameters."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from qfl_interp.curvature.ordered_sums import ordered_sums
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.data.task import NO_POSITION
from qfl_interp.models.build import HookedModel, model_device, parameters_to_save
from qfl_interp.models.hooks import Intervention, Site, interventions_on
from qfl_interp.probes import Probes, RegressionProbes, SoftmaxProbes
from qfl_interp.shapes import Tokens


def probe_gradient(
    model: HookedModel,
    probes: Probes,
    places: Int[Tensor, " label"],
    tokens: Tokens,
    y: Num[Tensor, "output label example"],
    positions: Int[Tensor, "label example"],
    *,
    chunk: int = 128,
) -> Float[Tensor, " parameter"]:
    """The gradient, in the model's parameters, of the mean loss of a feature's probes, which stay as they are.

    The mean goes over all examples, labels and outputs that have a fitted probe: log loss in nats, or squared error.
    The model is not changed.

    The probes were fitted on `resid_post` of every layer; `places` is the layer whose probe counts for each label,
    below 0 where none was fitted. A position is `NO_POSITION` where an example has no label. The model's precision is
    the result's, and `chunk` examples at a time bound the memory.

    Raises:
        ValueError: No probe was fitted, or no example has a label that one was fitted for.
    """
    space = ParameterSpace.of(model)
    parameters = {name: tensor.requires_grad_() for name, tensor in parameters_to_save(model).items()}
    layers = sorted({int(place) for place in places if place >= 0})
    total, count = torch.zeros(len(space), dtype=next(iter(parameters.values())).dtype, device=model_device(model)), 0
    for rows in torch.arange(len(tokens)).split(chunk) if layers else ():
        resid = _resid_post(model, parameters, tokens[rows].to(model_device(model)), layers)
        parts = [
            _losses(probes, (int(place), label), resid[int(place)], y[:, label, rows], positions[label, rows])
            for label, place in enumerate(places)
            if place >= 0
        ]
        losses = torch.cat(parts)
        count += len(losses)
        with ordered_sums(total.device):
            gradients = torch.autograd.grad(losses.sum(), list(parameters.values()), materialize_grads=True)
        total += space.flatten(dict(zip(parameters, gradients, strict=True)))
    if count == 0:
        raise ValueError(
            f"a feature's probes must be fitted for some label that the examples have, got {len(layers)} layers with "
            f"one and {len(tokens)} examples. Its labels do not vary, or it is never read: take another feature."
        )
    return total / count


def _resid_post(
    model: HookedModel, parameters: dict[str, Tensor], tokens: Tokens, layers: list[int]
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """The residual stream after some layers as a function of the parameters."""
    read: dict[int, Tensor] = {}

    def reader(layer: int) -> Intervention:
        def take(activation: Tensor) -> Tensor:
            # A copy: some models add to theirs in place.
            read[layer] = activation.clone()
            return activation

        return Intervention(Site(layer), take, "capture")

    with interventions_on(model, [reader(layer) for layer in layers]):
        functional_call(model, parameters, (tokens,))
    return read


def _losses(
    probes: Probes,
    at: tuple[int, int],
    resid: Float[Tensor, "batch pos d_model"],
    y: Num[Tensor, "output batch"],
    positions: Int[Tensor, " batch"],
) -> Float[Tensor, " loss"]:
    """One layer and label's loss of every example and fitted output that has one."""
    present = positions != NO_POSITION
    x = resid[present, positions[present]]
    outputs = torch.nonzero(probes.fitted[at]).flatten()
    weight, intercept = (part[at][outputs].to(x) for part in (probes.weight, probes.intercept))
    values = torch.einsum("o...d,nd->on...", weight, x) + intercept[:, None]
    label = y[outputs][:, present].to(x.device)
    if isinstance(probes, SoftmaxProbes):
        present_classes: Bool[Tensor, "output class"] = probes.classes_present[at[1]][outputs].to(x.device)
        ids = label.long().clamp(max=present_classes.shape[1] - 1)
        seen = present_classes.gather(1, ids) & (ids == label)
        log_p = values.masked_fill(~present_classes[:, None], -torch.inf).log_softmax(-1)
        return -log_p.gather(2, ids[..., None])[..., 0][seen]
    if isinstance(probes, RegressionProbes):
        return (values - label).square().flatten()
    return functional.softplus(values * (1 - 2 * label.to(x.dtype))).flatten()
