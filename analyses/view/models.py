"""A run's models at single steps, a few of them kept, and the examples that they are looked at on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor

from qfl_interp.data.examples import held_out
from qfl_interp.data.task import Batch
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel, layer_count
from qfl_interp.models.hooks import Site, read_activations
from qfl_interp.models.losses import cross_entropies
from qfl_interp.runs.series import Checkpoints

FoundT = TypeVar("FoundT")
# Test examples to choose from.
N_EXAMPLES: Final = 16
_MOST_MODELS: Final = 3
# One pass at a time: hooks are on the model itself, and a machine has few cores.
_LOCK: Final = threading.RLock()
_MODELS: OrderedDict[Hashable, HookedModel] = OrderedDict()
_EXAMPLES: OrderedDict[Hashable, Batch] = OrderedDict()


class Predicted(NamedTuple):
    """What a model predicts for each token of an example, given the true ones before it.

    Attributes:
        token: The true ids, those of the padding too.
        predicted: The most likely id at each place, of equals the lowest; -1 at the first, which nothing predicts.
        probability: Of that id.
        probability_true: Of the true one.
        loss: `-log` of the latter, in nats.
        scored: Whether the token is.
        answer: Whether it is a scored one of the answer.
    """

    token: Tensor
    predicted: Tensor
    probability: Tensor
    probability_true: Tensor
    loss: Tensor
    scored: Tensor
    answer: Tensor


def examples_of(run: Checkpoints) -> Batch:
    """At most `N_EXAMPLES` examples of the split "test", the same at every call.

    Raises:
        QflError: The split holds none.
    """
    seed = int(run.identity()["seed"])
    return _kept(
        _EXAMPLES,
        (str(run.path), run.run_id),
        lambda: run.task.encode(held_out(run.task, "test", N_EXAMPLES, seed=seed, stream="view")),
        most=16,
    )


def n_layers_and_heads(run: Checkpoints) -> tuple[int, int]:
    """How many blocks and heads the models have.

    Raises:
        QflError: They have no heads.
    """
    with _LOCK:
        model = _model(run, run.steps[-1])
        pattern = read_activations(model, _row(run, 0), [Site(0, "pattern")])[Site(0, "pattern")]
        return layer_count(model), int(pattern.shape[1])


def patterns(run: Checkpoints, step: int, example: int) -> Tensor:
    """How much each place of an example looks at each: `[layer, head, query, key]`, on the CPU.

    Raises:
        QflError: The step was not saved or its checkpoint is damaged, or the model's blocks have no attention.
    """
    with _LOCK:
        model = _model(run, step)
        sites = [Site(layer, "pattern") for layer in range(layer_count(model))]
        with torch.no_grad():
            found = read_activations(model, _row(run, example), sites)
        return torch.stack([found[site][0].float().cpu() for site in sites])


def predict(run: Checkpoints, step: int, example: int) -> Predicted:
    """What the model of a step predicts for each token of an example, given the true ones before it.

    Raises:
        QflError: The step was not saved, or its checkpoint is damaged.
    """
    with _LOCK, torch.no_grad():
        logits = _model(run, step)(_row(run, example))[0, :-1].double().cpu()
    batch = examples_of(run).rows(slice(example, example + 1))
    tokens = batch.tokens[0]
    chances = logits.softmax(dim=-1)
    best = logits.argmax(dim=-1)

    def behind_first(first: float, values: Tensor) -> Tensor:
        return torch.cat([values.new_full((1,), first), values])

    return Predicted(
        tokens,
        behind_first(-1, best),
        behind_first(torch.nan, chances.gather(1, best[:, None])[:, 0]),
        behind_first(torch.nan, chances.gather(1, tokens[1:, None])[:, 0]),
        behind_first(torch.nan, cross_entropies(logits, tokens[1:])),
        batch.loss_mask[0],
        batch.answer_mask[0],
    )


def _row(run: Checkpoints, example: int) -> Tensor:
    """The tokens of one example, as a batch."""
    return examples_of(run).tokens[example : example + 1]


def _model(run: Checkpoints, step: int) -> HookedModel:
    """The model at a step, loaded once for as long as its weights are the same."""
    if step not in run.steps:  # it may be gone, and its model still kept
        raise QflError(f"step {step} of {run.path} is not there any more.")
    key = (str(run.path.absolute()), run.run_id, step, run.weights(step))
    return _kept(_MODELS, key, lambda: run.load_model(step), most=_MOST_MODELS)


def _kept(cache: OrderedDict[Hashable, Any], key: Hashable, make: Callable[[], FoundT], *, most: int) -> FoundT:
    """What `make` gave for a key; of more than `most`, the least used ones go."""
    with _LOCK:
        if key not in cache:
            while len(cache) >= most:
                cache.popitem(last=False)  # before the next is made: they may not fit together
            cache[key] = make()
        cache.move_to_end(key)
        return cache[key]
