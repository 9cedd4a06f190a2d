"""Forks: the parent's bits without a change, what changes with one, interventions while training by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import tiny_train_config
from helpers import stopped_after

import qfl_interp as qfl
from qfl_interp.data.examples import ExampleStream, held_out
from qfl_interp.models.losses import IGNORED
from qfl_interp.models.metrics import scored_span, targets
from qfl_interp.training.fork import fork
from qfl_interp.training.intervene import TrainingInterventions

STEP, LAST = 5, 9


@pytest.fixture(scope="module")
def parent(built_once, addition, model_config) -> qfl.Run:
    def build(folder):
        config = tiny_train_config(n_steps=LAST, n_checkpoints=99, save_optimizer=True)
        qfl.train(addition, model_config, config, folder, progress=False)

    return qfl.Run.open(built_once("fork_parent", build))


def _equal(one, other, step, *, optimizer=True):
    first, second = (run.load_checkpoint(step, with_optimizer=True) for run in (one, other))
    assert all(torch.equal(first.model[name], second.model[name]) for name in second.model)
    if optimizer:
        assert first.optimizer.keys() == second.optimizer.keys()
        assert all(torch.equal(first.optimizer[name], second.optimizer[name]) for name in second.optimizer)


def test_a_fork_without_changes_ends_in_the_parents_bits(parent, tmp_path):
    same = fork(parent, STEP, tmp_path / "same", progress=False)
    assert (same.steps[0], same.steps[-1]) == (STEP, LAST)
    assert same.config.start.run_id == parent.run_id
    _equal(same, parent, LAST)
    rows = [run.metrics.set_index("step").loc[STEP + 1 :] for run in (same, parent)]
    for name in ("train_loss", "lr", "flops"):
        assert rows[0][name].tolist() == rows[1][name].tolist(), name
    assert rows[0]["val_loss"].iloc[-1] == rows[1]["val_loss"].iloc[-1]
    again = fork(same, STEP + 1, tmp_path / "again", progress=False)
    _equal(again, parent, LAST)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"lr": 5e-3}, "lr"), ({"seed": 8}, "seed"), ({"loss": "hinge"}, "loss"), ({"weight_decay": 0.0}, "wd")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_changes_the_run_and_its_name(changes, name, parent, tmp_path):
    other = fork(parent, STEP, tmp_path / name, progress=False, **changes)
    assert other.run_id != parent.run_id
    assert not torch.equal(
        other.load_checkpoint(LAST).model["unembed.W_U"], parent.load_checkpoint(LAST).model["unembed.W_U"]
    )
    _equal(other, parent, STEP)
    assert qfl.Run.open(other.path).config == other.config


def test_the_schedule_goes_on_or_starts_anew(parent, tmp_path):
    faster = fork(parent, STEP, tmp_path / "faster", lr=2e-3, progress=False)
    rates = parent.metrics.set_index("step")["lr"]
    assert faster.metrics["lr"].iloc[1:].tolist() == pytest.approx([2 * rates[s] for s in range(STEP + 1, LAST + 1)])
    anew = fork(parent, STEP, tmp_path / "anew", n_steps=20, progress=False)
    assert anew.steps[-1] == STEP + 20
    assert anew.metrics["lr"].iloc[1] == pytest.approx(0.01e-3)


def test_frozen_modules_stay_and_rolled_back_ones_start_from_before(parent, tmp_path):
    other = fork(
        parent, STEP, tmp_path / "f", frozen=["embed", "blocks.0"], roll_back={"blocks.1.mlp": 2}, progress=False
    )
    first, last = (other.load_checkpoint(s, with_optimizer=True) for s in (STEP, LAST))
    then, before = (parent.load_checkpoint(s, with_optimizer=True) for s in (STEP, 2))
    for name, tensor in last.model.items():
        frozen = name.startswith(("embed.", "blocks.0."))
        assert torch.equal(tensor, first.model[name]) == frozen, name
        source = before if name.startswith("blocks.1.mlp.") else then
        assert torch.equal(first.model[name], source.model[name]), name
        kept = {key.rpartition("/")[0] for key in last.optimizer}
        assert (name in kept) != frozen
    # The rolled-back module's moments are those of then.
    config = other.config
    assert config.fork.rolled_back == {"blocks.1.mlp": 2}
    moments = before.optimizer["blocks.1.mlp.W_in/exp_avg"]
    assert not torch.equal(moments, then.optimizer["blocks.1.mlp.W_in/exp_avg"])


def test_a_fork_of_a_fork_keeps_frozen_what_was(parent, tmp_path):
    one = fork(parent, STEP, tmp_path / "one", frozen=["embed"], progress=False)
    same = fork(one, STEP + 2, tmp_path / "same", progress=False)
    _equal(same, one, LAST)
    free = fork(one, STEP + 2, tmp_path / "free", frozen=[], progress=False)
    weights = [run.load_checkpoint(LAST).model["embed.W_E"] for run in (one, free)]
    assert not torch.equal(*weights)


SPECS = {
    "probe": qfl.Intervene("carry", n_fit=400),
    "written": qfl.Intervene("carry", directions="written", layers=(1,), labels=(1, 2), n_fit=400),
    "random": qfl.Intervene("carry", kind="random", n_fit=400),
    "resample": qfl.Intervene("carry", kind="resample", layers=(0,)),
    "refit": qfl.Intervene("carry", refit_every=2, n_fit=400),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_fork_under_an_intervention_goes_on_to_the_same_bits(name, parent, tmp_path):
    whole = fork(parent, STEP, tmp_path / "whole", intervene=SPECS[name], progress=False)
    assert not torch.equal(
        whole.load_checkpoint(LAST).model["unembed.W_U"], parent.load_checkpoint(LAST).model["unembed.W_U"]
    )
    with stopped_after(3):
        fork(parent, STEP, tmp_path / "stopped", intervene=SPECS[name], progress=False)
    _equal(qfl.resume(tmp_path / "stopped", progress=False), whole, LAST)


def _planes(run, step):
    held = run.load_checkpoint(step, with_optimizer=True).optimizer
    return {key.partition("/")[2]: value for key, value in held.items() if key.startswith("intervention/")}


def test_directions_are_fitted_once_or_again_and_random_ones_are_as_many(parent, tmp_path):
    found = {
        n: fork(parent, STEP, tmp_path / n, intervene=SPECS[n], progress=False) for n in ("probe", "random", "refit")
    }
    probe, random, refit = ([_planes(found[n], s) for s in (STEP + 1, LAST)] for n in ("probe", "random", "refit"))
    assert torch.equal(probe[0]["directions"], probe[1]["directions"])
    assert torch.equal(probe[0]["directions"], refit[0]["directions"]), "the first fit is the same"
    assert not torch.equal(refit[0]["directions"], refit[1]["directions"])
    assert torch.equal(probe[0]["kept"], random[0]["kept"])
    unit = random[0]["directions"].norm(dim=-1)
    assert torch.allclose(unit, torch.ones_like(unit))
    assert not torch.allclose(
        random[0]["directions"], probe[0]["directions"] / probe[0]["directions"].norm(dim=-1, keepdim=True)
    )


def test_what_is_taken_out_is_constant_along_each_direction(parent, addition, tmp_path):
    run = fork(parent, STEP, tmp_path / "run", intervene=SPECS["written"], progress=False)
    planes = _planes(run, LAST)
    assert set(planes["layers"].tolist()) == {1}
    model = run.load_model(LAST)
    examples = addition.sample(np.random.default_rng(0), 64)
    batch = addition.encode(examples)
    loop = TrainingInterventions(model, addition, SPECS["written"], STEP)
    loop.load(run.load_checkpoint(LAST, with_optimizer=True).optimizer)
    where = addition.features["carry"].positions(examples)[:, [1, 2]]
    plain = qfl.read_activations(model, batch.tokens, [qfl.Site(1)])[qfl.Site(1)]
    with qfl.interventions_on(model, loop.on(batch, LAST)(slice(None))):
        changed = qfl.read_activations(model, batch.tokens, [qfl.Site(1)])[qfl.Site(1)]
    for row, label in enumerate((0, 1)):
        direction = planes["directions"][row, 0] / planes["directions"][row, 0].norm()
        along = [
            (x[torch.arange(64), torch.from_numpy(where[:, label].copy())].double() @ direction)
            for x in (plain, changed)
        ]
        assert along[0].std() > 1e-3
        assert along[1].std() < 1e-5
    elsewhere = np.setdiff1d(np.arange(batch.tokens.shape[1]), np.unique(where))
    assert torch.equal(plain[:, elsewhere], changed[:, elsewhere])


@pytest.mark.parametrize("name", ["written", "random"])
def test_a_plane_goes_through_the_mean_activation(name, parent, addition, tmp_path):
    """`w . x + b` is 0 at the mean over the examples it is fitted on, so that the variation alone is taken out."""
    run = fork(parent, STEP, tmp_path / "run", n_steps=1, intervene=SPECS[name], progress=False)
    planes, model = _planes(run, STEP + 1), parent.load_model(STEP)
    examples = held_out(addition, "val", 400, seed=0, stream="intervene")
    where = torch.from_numpy(addition.features["carry"].positions(examples).astype(np.int64))
    labels = SPECS[name].labels or range(6)
    layers = SPECS[name].layers or (0, 1)
    read = qfl.read_activations(model, addition.encode(examples).tokens, [qfl.Site(layer) for layer in layers])
    furthest = 0.0
    for row, (label, layer) in enumerate((label, layer) for label in labels for layer in layers):
        if planes["kept"][row].all():
            mean = read[qfl.Site(layer)][torch.arange(400), where[:, label]].double().mean(dim=0)
            along = float(planes["directions"][row, 0] @ mean)
            size = float(planes["directions"][row, 0].norm() * mean.norm())
            assert along + float(planes["offsets"][row, 0]) == pytest.approx(0, abs=1e-5 * size)
            furthest = max(furthest, abs(along) / size)
    assert furthest > 0.01, "none of the planes goes through 0 anyway"


def test_one_update_under_an_intervention_by_hand(parent, addition, tmp_path):
    """Plain descent, one step: the gradient of the loss with the activation projected by a hook written here."""
    plain = {
        "optimizer": "sgd",
        "weight_decay": 0.0,
        "clip_norm": math.inf,
        "schedule": "constant",
        "warmup_fraction": 0.0,
    }
    spec = SPECS["written"]
    run = fork(parent, STEP, tmp_path / "run", n_steps=1, intervene=spec, progress=False, **plain)
    planes, model = _planes(run, STEP + 1), parent.load_model(STEP)
    stream = ExampleStream(addition, run.config.train.seed, run.config.train.batch_size)
    batch, where = stream.batch(STEP), addition.features["carry"].positions(stream.examples(STEP))[:, [1, 2]]

    def hook(x, hook):
        x = x.clone()
        for row in range(2):
            w = (planes["directions"][row, 0] / planes["directions"][row, 0].norm()).float()
            b = (planes["offsets"][row, 0] / planes["directions"][row, 0].norm()).float()
            at = (torch.arange(len(x)), torch.from_numpy(where[:, row].copy()))
            x[at] = x[at] - ((x[at] @ w) + b)[:, None] * w
        return x

    span = scored_span(batch.loss_mask)
    target = targets(batch.tokens, batch.loss_mask, span).flatten()
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", hook)]):
        logits = model(batch.tokens)[:, span].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORED).backward()
    for name, parameter in model.named_parameters():
        wanted = parameter.detach() - run.config.train.lr * parameter.grad
        assert torch.allclose(run.load_checkpoint(STEP + 1).model[name], wanted, atol=1e-6), name


def test_validations_are_with_and_without_what_is_installed(parent, tmp_path):
    run = fork(parent, STEP, tmp_path / "run", intervene=SPECS["resample"], progress=False)
    first = run.metrics.iloc[0]
    assert first["val_free_loss"] == pytest.approx(parent.metrics.set_index("step")["val_loss"][STEP], rel=1e-5)
    assert first["val_loss"] != pytest.approx(first["val_free_loss"], rel=1e-3)


BAD = {
    r"no field of TrainConfig that a fork can change is named 'lrr'\. Did you mean 'lr'": {"lrr": 1},
    r"no module with parameters is named 'blocks.7'\. Did you mean": {"frozen": ["blocks.7"]},
    r"roll_back must name steps up to the fork's 5, got 7 for 'blocks.0'": {"roll_back": {"blocks.0": 7}},
    "frozen must leave something to train": {"frozen": ["embed", "blocks", "ln_final", "unembed"]},
    r"no feature of addition is named 'carri'\. Did you mean 'carry'": {"intervene": qfl.Intervene("carri")},
    r"layers of an intervention must lie in \[0, 2\), got \[4\]": {"intervene": qfl.Intervene("carry", layers=(4,))},
    r"labels of an intervention must lie in \[0, 6\), got \[6\]": {"intervene": qfl.Intervene("carry", labels=(6,))},
}  # fmt: skip


@pytest.mark.parametrize(("message", "how"), BAD.items(), ids=list(BAD))
def test_what_cannot_be_forked_is_named_before_a_folder_is_made(message, how, parent, tmp_path):
    with pytest.raises(qfl.QflError, match=message):
        fork(parent, STEP, tmp_path / "bad", progress=False, **how)
    assert not (tmp_path / "bad").exists()


def test_a_fork_needs_updates_and_the_state_of_its_optimiser(parent, tiny_run, tmp_path):
    with pytest.raises(qfl.QflError, match=r"a fork from step 9, the last .*, needs n_steps"):
        fork(parent, LAST, tmp_path / "none", progress=False)
    with pytest.raises(
        qfl.QflError, match=r"step .* has no optimiser state\. Train or record the parent with save_opt"
    ):
        fork(tiny_run, tiny_run.steps[2], tmp_path / "bare", progress=False)
    other = fork(tiny_run, tiny_run.steps[-2], tmp_path / "sgd", optimizer="sgd", progress=False)
    assert other.config.train.weight_decay == 0
    assert other.verify()


def test_an_intervention_that_would_never_act_is_refused(parent, addition):
    spec, model = SPECS["written"], parent.load_model(STEP)
    for change, message in (
        ({"labels": lambda x: np.zeros((len(x), 6), np.int64)}, "none of its labels varies"),
        ({"positions": lambda x: np.full((len(x), 6), -1)}, "no example has a label of it"),
    ):
        loop = TrainingInterventions(model, addition, spec, STEP)
        loop.feature = dataclasses.replace(loop.feature, **change)
        with pytest.raises(qfl.QflError, match=f"on 'carry' would never act: {message}"):
            loop.refit(STEP)
    with pytest.raises((ValueError, TypeError), match=r"kind must be one of|kind"):
        qfl.Intervene.from_dict({"feature": "carry", "kind": "patch"})


def test_a_fork_of_a_fork_fits_directions_of_its_own(parent, tmp_path):
    one = fork(parent, STEP, tmp_path / "one", intervene=SPECS["written"], progress=False)
    other = qfl.Intervene("first_operand", n_fit=400)
    two = fork(one, STEP + 1, tmp_path / "two", intervene=other, progress=False)
    assert set(_planes(two, LAST)["layers"].tolist()) == {0, 1}
    with pytest.raises(qfl.QflError, match=r"under an intervention \(project_out of 'carry'\), .* intervene=False"):
        fork(one, STEP + 1, tmp_path / "unsaid", progress=False)
    assert not (tmp_path / "unsaid").exists()
    free = fork(one, STEP + 1, tmp_path / "free", intervene=False, progress=False)
    assert not _planes(free, STEP + 1)
