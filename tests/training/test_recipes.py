"""Optimisers, schedules and losses by name: against torch alone, by hand, and through a stop at every kind of state."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import tiny_train_config
from helpers import stopped_after
from torch.nn import functional

import qfl_interp as qfl
from qfl_interp.curvature.hessian import Hessian
from qfl_interp.data.examples import ExampleStream
from qfl_interp.models.build import model_in_dtype
from qfl_interp.models.losses import IGNORED, token_losses_of
from qfl_interp.models.metrics import scored_span, targets
from qfl_interp.recipes import OPTIMIZERS, SCHEDULES, UPDATES, register_loss
from qfl_interp.training.schedule import learning_rate, require_decays
from qfl_interp.training.updates import tuned_rate

OPTIONS = {
    "adamw": {}, "adam": {"weight_decay": 0.01}, "sgd": {"optimizer_options": {"momentum": 0.9, "nesterov": True}},
    "muon": {"optimizer_options": {"momentum": 0.8}},
}  # fmt: skip


def half_square(logits, target):
    """A loss of one's own: half the squared distance of the right logit from 1."""
    return (logits.gather(1, target[:, None])[:, 0] - 1).square() / 2


def _config(optimizer="adamw", **changes):
    values = {"n_steps": 6, "n_checkpoints": 4, "optimizer": optimizer, **OPTIONS[optimizer]}
    return tiny_train_config(**values | changes)


def _loss(model, batch, losses):
    """The mean over scored tokens by the model's own forward pass."""
    span = scored_span(batch.loss_mask)
    target = targets(batch.tokens, batch.loss_mask, span).flatten()
    kept = target != IGNORED
    return losses(model(batch.tokens)[:, span].flatten(0, 1)[kept], target[kept]).mean()


def _by_torch(name, model, config):
    """Torch's optimisers of a name, made by hand; for Muon one on matrices that hold the heads as `nn.Linear` would."""
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if name == "sgd":
        return [torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **common)]
    adam = {**common, "betas": config.betas, "eps": config.adam_eps}
    if name in ("adamw", "adam"):
        return [(torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(model.parameters(), **adam)]
    outside = [p for n, p in model.named_parameters() if not n.startswith("blocks") or p.ndim == 1]
    return [torch.optim.AdamW(outside, **adam)]


def test_the_cases_cover_every_optimiser():
    assert OPTIONS.keys() == OPTIMIZERS.keys() - UPDATES.keys(), "depthwise has tests of its own"


@pytest.mark.parametrize("name", OPTIONS)
def test_an_optimiser_is_torchs(name, addition, model_config, tmp_path):
    """Six updates of a run equal six written out with torch and the model's own forward pass."""
    config = _config(name, clip_norm=math.inf)
    run = qfl.train(addition, model_config, config, tmp_path / "run", progress=False)
    model = run.load_model(0)
    stream = ExampleStream(addition, config.seed, config.batch_size)
    optimizers = _by_torch(name, model, config)
    heads = {n: p for n, p in model.named_parameters() if n.startswith("blocks") and p.ndim > 1}
    matrices = {}
    if name == "muon":
        matrices = {n: torch.nn.Parameter(_linear(n, p.detach()).clone()) for n, p in heads.items()}
        optimizers.append(
            torch.optim.Muon(
                matrices.values(), lr=config.lr, weight_decay=0.1, momentum=0.8, adjust_lr_fn="match_rms_adamw"
            )
        )
    for step in range(config.n_steps):
        loss = _loss(model, stream.batch(step), torch.nn.CrossEntropyLoss(reduction="none"))
        model.zero_grad()
        loss.backward()
        for n, matrix in matrices.items():
            matrix.grad = _linear(n, heads[n].grad).clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(config, step=step, n_steps=config.n_steps)
            optimizer.step()
        with torch.no_grad():
            for n, matrix in matrices.items():
                heads[n].copy_(_heads(n, matrix, heads[n].shape))
    first = dict(run.load_model(0).named_parameters())
    for (n, found), wanted in zip(run.load_model(6).named_parameters(), model.parameters(), strict=True):
        moved = float((wanted - first[n]).detach().abs().max())
        # Orthogonalisation runs in bfloat16, which rounding before it moves.
        assert torch.allclose(found, wanted, atol=(0.15 if name == "muon" else 1e-4) * moved, rtol=0), n


def _linear(name, weight):
    """A weight as `nn.Linear` would hold it, written with einsum."""
    if weight.ndim == 2:
        return weight
    pattern = "hkd->dhk" if name.endswith("W_O") else "hdk->dhk"
    return torch.einsum(pattern, weight).reshape(weight.shape[2 if name.endswith("W_O") else 1], -1)


def _heads(name, matrix, shape):
    if len(shape) == 2:
        return matrix
    split = matrix.reshape(matrix.shape[0], shape[0], -1)
    return torch.einsum("dhk->hkd" if name.endswith("W_O") else "dhk->hdk", split)


CASES = [
    *({"optimizer": name} for name in OPTIONS),
    {"schedule": "cdat", "schedule_options": {"sigma": 1.0}, "optimizer": "sgd"},
    {"schedule": "wsd_s", "schedule_options": {"n_decays": 2}, "decay_fraction": 0.7},
    {"loss": "squared_error"},
    {"loss": half_square},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_run_that_was_stopped_ends_in_the_same_bits(changes, addition, model_config, tmp_path):
    config = _config(**changes, save_optimizer=True)
    whole = qfl.train(addition, model_config, config, tmp_path / "whole", progress=False)
    with stopped_after(4):
        qfl.train(addition, model_config, config, tmp_path / "stopped", progress=False)
    again = qfl.resume(tmp_path / "stopped", progress=False)
    assert again.run_id == whole.run_id
    for part in ("model", "optimizer"):
        one, other = (getattr(run.load_checkpoint(6, with_optimizer=True), part) for run in (whole, again))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), part


def test_schedules_by_hand():
    common = {"n_steps": 10, "lr": 2.0, "warmup_fraction": 0.2, "min_lr_fraction": 0.5}

    def rates(**changes):
        config = qfl.TrainConfig(**common | changes)
        return [round(learning_rate(config, step=k, n_steps=10), 6) for k in range(10)]

    assert rates(schedule="constant") == rates(schedule="cdat") == [0.02, 1.01, *[2.0] * 8]
    assert rates(schedule="linear") == [0.02, 1.01, *(2 - k / 8 for k in range(8))]
    twice = rates(schedule="wsd_s", schedule_options={"n_decays": 2}, decay_fraction=0.5)
    assert twice == [0.02, 1.01, 2.0, 2.0, 2.0, 1.333333, 2.0, 2.0, 2.0, 1.333333], "halfway the inverse is 0.75"
    once = rates(schedule="wsd_s", schedule_options={"n_decays": 1}, decay_fraction=0.5)
    assert once == [0.02, 1.01, *[2.0] * 5, 1.6, 1.333333, 1.142857], "inverses 0.5, 0.625, 0.75, 0.875; next is 1"
    assert rates(schedule="wsd", decay_fraction=0.4) == [0.02, 1.01, *[2.0] * 5, 1.75, 1.5, 1.25]
    short = qfl.TrainConfig(n_steps=20, schedule="wsd_s", schedule_options={"n_decays": 2}, warmup_fraction=0.0)
    require_decays(short, 20)
    with pytest.raises(qfl.QflError, match=r"must be 2 updates or more, got 1: decay_fraction 0\.2 of a stage of 9"):
        require_decays(short, 19)
    with pytest.raises(ValueError, match="min_lr_fraction must be above 0 with 'wsd_s', got 0"):
        qfl.TrainConfig(n_steps=10, schedule="wsd_s", min_lr_fraction=0.0)


def test_losses_of_tokens_by_hand():
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 1.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    target = torch.tensor([0, 2, IGNORED])
    assert token_losses_of("squared_error")(logits, target).tolist() == [(1 + 0.25 + 1) / 2, 4.5, 0]
    assert token_losses_of("hinge")(logits, target).tolist() == [0, 3.0, 0]
    wanted = functional.multi_margin_loss(logits[:2], target[:2], reduction="none", margin=1.0)
    assert token_losses_of("hinge")(logits[:2], target[:2]).max() <= 3 * wanted.max()
    assert token_losses_of("cross_entropy")(logits, target)[1].item() == pytest.approx(
        -math.log(math.exp(1) / (1 + math.exp(3) + math.exp(1)))
    )
    own = token_losses_of(register_loss(half_square))(logits, target)
    assert own.tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize("loss", ["squared_error", "hinge", half_square], ids=["squared", "hinge", "own"])
def test_validations_and_rows_are_of_the_trained_loss(loss, addition, model_config, tmp_path):
    config = _config(loss=loss)
    run = qfl.train(addition, model_config, config, tmp_path / "run", progress=False)
    assert not [name for name in run.metrics if name.startswith("val_pass")]
    batch = ExampleStream(addition, config.seed, config.batch_size).batch(0)
    losses = token_losses_of(config.loss_name)
    with torch.no_grad():
        wanted = float(_loss(run.load_model(0), batch, losses))
    assert run.metrics["train_loss"][1] == pytest.approx(wanted, rel=1e-5)
    first = run.metrics.iloc[0]
    assert first["val_loss"] != pytest.approx(first["val_loss_answer"])
    assert 0 <= first["val_exact"] <= 1


def test_a_loss_of_ones_own_is_known_by_its_name(addition, model_config, tmp_path):
    config = _config(loss=half_square)
    assert config.loss == f"{__name__}:half_square"
    run = qfl.train(addition, model_config, config, tmp_path / "run", progress=False)
    assert json.loads((run.path / "config.json").read_text())["train"]["loss"] == config.loss
    with pytest.raises(qfl.QflError, match=r"loss '.*:other' is a function .* Call qfl_interp\.register_loss"):
        token_losses_of(f"{__name__}:other")
    with pytest.raises(qfl.QflError, match="by its name, got <function"):
        _config(loss=lambda logits, target: logits[:, 0])

    def averages(logits, target):
        return logits.mean()

    with pytest.raises(qfl.QflError, match=r"one number for each of \d+ tokens, got \(\)\. Do not average"):
        qfl.train(addition, model_config, _config(loss=averages), tmp_path / "bad", progress=False)


def _quadratic(addition, model, batch, before, step):
    """Slope and curvature of the batch's loss along a step, by finite differences in float64."""
    model = model_in_dtype(model, torch.float64)
    losses = token_losses_of("cross_entropy")

    def at(s):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(before[name].double() + s * step[name].double())
            return float(_loss(model, batch, losses))

    h = 1e-4
    return (at(h) - at(-h)) / (2 * h), (at(h) - 2 * at(0) + at(-h)) / h**2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_cdat_steps_to_the_minimum_or_the_edge_of_the_quadratic(optimizer, sigma, addition, model_config, tmp_path):
    options = {"schedule": "cdat", "schedule_options": {"sigma": sigma}, "clip_norm": math.inf, "n_checkpoints": 14}
    config = _config(optimizer, **options, weight_decay=0.0)
    run = qfl.train(addition, model_config, config, tmp_path / "run", progress=False)
    stream = ExampleStream(addition, config.seed, config.batch_size)
    for step in (0, 3):
        before, after = (dict(run.load_model(s).named_parameters()) for s in (step, step + 1))
        lr = run.metrics["lr"][step + 1]
        direction = {n: ((after[n] - before[n]) / lr).detach() for n in before}
        slope, bent = _quadratic(addition, run.load_model(step), stream.batch(step), before, direction)
        assert slope < 0 < bent
        assert lr == pytest.approx(sigma * -slope / bent, rel=1e-3)


def test_the_rate_of_cdat_by_hand():
    config = qfl.TrainConfig(n_steps=1, schedule="cdat", schedule_options={"sigma": 1.5})
    assert tuned_rate(config, -4.0, 2.0, 9.0) == 3.0
    assert tuned_rate(config, -4.0, -2.0, 9.0) == 3.0, "the curvature's size, also along a ridge"
    assert tuned_rate(config, 4.0, 2.0, 9.0) == 0.0, "no step uphill"
    assert tuned_rate(config, -4.0, 0.0, 9.0) == 9.0


def test_a_batch_is_differentiated_once_for_cdat(addition, model_config, tmp_path, monkeypatch):
    """The slope is taken from the gradient that training has; only the product with the Hessian is computed."""
    monkeypatch.setattr(Hessian, "gradient", None)
    qfl.train(addition, model_config, _config("sgd", schedule="cdat"), tmp_path / "run", progress=False)


def test_multipliers_of_a_width_act_in_training(addition, tmp_path):
    """One step of plain descent: each parameter moves by its gradient times its multiplier times the rate."""
    shape = qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2, style="gpt2", mup_base=4)
    how = {"optimizer_options": {}, "clip_norm": math.inf, "schedule": "constant", "warmup_fraction": 0.0}
    config = _config("sgd", **how, n_steps=1, lr=1.0)
    run = qfl.train(addition, shape, config, tmp_path / "run", progress=False)
    model, batch = run.load_model(0), ExampleStream(addition, config.seed, config.batch_size).batch(0)
    _loss(model, batch, torch.nn.CrossEntropyLoss(reduction="none")).backward()
    after = dict(run.load_model(1).named_parameters())
    for name, p in model.named_parameters():
        last = name.rpartition(".")[2]
        block = last.startswith("W_") and last not in ("W_E", "W_pos", "W_U")
        times = {"W_U": 0.25, "b_U": 1.0}.get(last, 1.0 if block else 4.0)
        wanted = -config.lr * times * p.grad
        assert torch.allclose(after[name] - p, wanted, rtol=1e-3, atol=1e-6), name  # float32 of weights near 1


BAD = {
    r"no optimizer is named 'adamv'\. Did you mean 'adam": {"optimizer": "adamv"},
    r"no schedule is named 'cosin'\. Did you mean 'cosine": {"schedule": "cosin"},
    r"no loss is named 'hing'\. Did you mean 'hinge'": {"loss": "hing"},
    r"no setting of optimizer 'sgd' is named 'momentm'\. Did you mean 'momentum'": {
        "optimizer": "sgd", "optimizer_options": {"momentm": 0.9},
    },
    "optimizer 'adamw' takes no settings, got momentum=0.9": {"optimizer_options": {"momentum": 0.9}},
    r"momentum of optimizer 'sgd' must be a number in \[0, 0.999999\], got 1.5": {
        "optimizer": "sgd", "optimizer_options": {"momentum": 1.5},
    },
    "nesterov of optimizer 'sgd' must be true or false, got 1": {
        "optimizer": "sgd", "optimizer_options": {"nesterov": 1},
    },
    "n_decays of schedule 'wsd_s' must be an integer .* got 0": {
        "schedule": "wsd_s", "schedule_options": {"n_decays": 0},
    },
}  # fmt: skip


@pytest.mark.parametrize(("message", "changes"), BAD.items(), ids=list(BAD))
def test_unknown_names_and_bad_settings_are_named(message, changes):
    with pytest.raises((qfl.QflError, ValueError), match=message):
        qfl.TrainConfig.from_dict({"n_steps": 3, **changes})


def test_weight_decay_is_decoupled_optimisers_own_by_default():
    assert {name: qfl.TrainConfig(n_steps=1, optimizer=name).weight_decay for name in OPTIMIZERS} == {
        "adamw": 0.1, "adam": 0.0, "sgd": 0.0, "muon": 0.1, "depthwise": 0.0,
    }  # fmt: skip
    assert all(qfl.TrainConfig(n_steps=1, schedule=name).schedule == name for name in SCHEDULES)


def test_momentum_without_nesterov_is_refused_by_name():
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        qfl.TrainConfig(n_steps=1, optimizer="sgd", optimizer_options={"nesterov": True})
    assert np.isfinite(qfl.TrainConfig(n_steps=1, optimizer="sgd").lr)
