"""From a run to its losses along directions: closure over a complete basis, what is stored, what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp import QflError
from qfl_interp.analyses.lenses.polca import basis as polca_basis
from qfl_interp.analyses.lenses.polca import trajectories as polca_trajectories
from qfl_interp.analyses.lenses.polca.basis import read_basis
from qfl_interp.analyses.lenses.polca.plan import Plan
from qfl_interp.analyses.lenses.polca.trajectories import gradients_at
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.data.examples import held_out, in_split
from qfl_interp.models.build import parameters_to_save
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.runs.suite import Suite
from tests.conftest import tiny_train_config
from tests.helpers_suite import save_tiny_neox, tiny_text_task

SMALL = PolcaConfig(basis="random", n_directions=3, n_examples=2, n_hessian=8, double=True)
ACCURACIES = ("first", "paper", "second", "trapezoid", "path")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 78 parameters and five checkpoints; tests work on copies."""
    task = qfl.load_task("addition", length=4)
    out = tmp_path_factory.mktemp("runs") / "smallest"
    config = tiny_train_config(n_steps=20, n_checkpoints=6, lr=3e-3)
    return qfl.train(task, qfl.ModelConfig(d_model=2, n_layers=1, n_heads=1), config, out, progress=False)


@pytest.fixture
def run(trained, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(trained.path, target)
    return qfl.Run.open(target)


def follow(run, config=SMALL, steps="all"):
    return polca_trajectories.follow(Plan.of(run, steps, config=config), progress=False)


def change(config=SMALL, **changes):
    return dataclasses.replace(config, **changes)


def theta(run, step):
    model = run.load_model(step)
    return ParameterSpace.of(model).flatten(parameters_to_save(model)).double()


def basis_of(run, config):
    return read_basis(Plan.of(run, config=config))


# What comes out


@pytest.mark.slow
def test_the_path_over_a_complete_basis_is_every_tokens_loss_change(run):
    """Closure: 78 directions of 78 parameters."""
    n = len(theta(run, 0))
    config = change(n_directions=n, n_panels=2)
    steps = run.steps[-3:]
    data = follow(run, config, steps)
    true = (data.losses - data.losses[0]).mT.numpy()  # [token, time]
    assert np.abs(true[:, -1]).min() > 1e-3
    np.testing.assert_allclose(data.trajectories.values.sum(axis=0), true, rtol=0, atol=1e-6)
    np.testing.assert_allclose(data.intervals["captured_fraction"], 1.0, atol=1e-5)
    first = follow(run, change(config, accuracy="first"), steps)
    assert np.abs(first.trajectories.values.sum(axis=0)[:, -1] - true[:, -1]).max() > 1e-4


def derivatives(loss, vector, b):
    """First and second derivative of every token's loss along b, by reverse mode in one number."""
    s = torch.zeros((), dtype=torch.float64, requires_grad=True)
    losses = loss(loss.space.unflatten(vector + s * b))
    first, second = [], []
    for value in losses:
        (slope,) = torch.autograd.grad(value, s, create_graph=True)
        first.append(slope.detach())
        second.append(torch.autograd.grad(slope, s, retain_graph=True)[0])
    return torch.stack(first), torch.stack(second)


@pytest.mark.parametrize(
    "accuracy", [pytest.param(name, marks=[pytest.mark.slow] * (name != "path")) for name in ACCURACIES]
)
def test_contributions_equal_those_from_derivatives_of_single_numbers(run, accuracy):
    """Everything between two checkpoints again, direction by direction, from the run's weights alone."""
    config = change(accuracy=accuracy)
    data = follow(run, config)
    examples = held_out(run.task, "test", 2, seed=0, stream="polca")
    np.testing.assert_array_equal(data.examples, examples)
    scored = scored_tokens(run.task.encode(examples))
    loss = TokenLoss(run.load_model(0), scored, dtype=torch.float64)
    steps = data.trajectories.steps
    start, end = theta(run, steps[1]), theta(run, steps[2])
    found = data.trajectories.values[:, :, 2] - data.trajectories.values[:, :, 1]
    for number, b in enumerate(basis_of(run, config)):
        step = b @ (end - start)
        (slope, curvature), (half, _), (last, _) = (
            derivatives(loss, start + s * (end - start), b) for s in (0.0, 0.5, 1.0)
        )
        if accuracy == "path":
            expected = step * (slope + 4 * half + last) / 6
        elif accuracy == "trapezoid":
            expected = step * (slope + last) / 2
        elif accuracy == "second":
            expected = step * slope + step**2 * curvature / 2
        elif accuracy == "paper":
            ratio = (last - slope) / (last - slope).mean()
            expected = step * slope + step**2 * curvature.mean() * ratio / 2
        else:
            expected = step * slope
        np.testing.assert_allclose(found[number], expected.numpy(), rtol=1e-7, atol=1e-12)
    for index, step in enumerate(steps):
        expected = loss.values(loss.space.unflatten(theta(run, step)))
        torch.testing.assert_close(data.losses[index], expected, rtol=1e-10, atol=1e-12)


def test_the_trajectories_and_their_tables(run):
    data = follow(run)
    n_tokens = len(data.scored)
    assert data.trajectories.kind == "polca"
    assert data.trajectories.steps == tuple(run.steps)
    assert data.trajectories.directions == (0, 1, 2)
    assert data.trajectories.values.shape == (3, n_tokens, len(run.steps))
    assert (data.trajectories.values[:, :, 0] == 0).all()
    # Held-out examples, the answer alone: of `aaaa+bbbb=ccccc<EOS>` the five digits and the end, not `=`.
    assert in_split(run.task, data.examples, "test").all()
    assert n_tokens == 6 * len(data.examples)
    intervals, losses = data.intervals, data.losses.mean(dim=1).numpy()
    assert intervals["step_from"].tolist() == run.steps[:-1]
    assert intervals["step_to"].tolist() == run.steps[1:]
    assert intervals["flops_to"].tolist() == [run.flops(step) for step in run.steps[1:]]
    np.testing.assert_allclose(intervals["loss_change"], np.diff(losses), rtol=1e-10)
    captured = np.diff(data.trajectories.values.mean(axis=1).sum(axis=0))
    np.testing.assert_allclose(intervals["captured"], captured, rtol=1e-8)
    np.testing.assert_allclose(intervals["captured_fraction"], captured / np.diff(losses), rtol=1e-8)
    assert data.directions["direction"].tolist() == [0, 1, 2]
    assert data.directions["orthogonality"].max() < 1e-12
    assert (data.directions["run_id"] == run.run_id).all()


def test_the_table_of_points_says_where_they_are(run):
    """The way from the first checkpoint of the run, whatever the first one looked at, and the tokens' mean slope."""
    follow(run, steps=run.steps[1:])
    rows, basis = run.table("polca_nodes").read(), basis_of(run, SMALL)
    assert len(rows) == 3 * (4 + 3)
    start, at, to = (theta(run, run.steps[index]) for index in (0, 2, 3))
    for share, point in ((0.0, at), (0.5, (at + to) / 2)):
        found = rows[(rows["step"] == run.steps[2]) & (rows["share"] == share)]
        assert found["direction"].tolist() == [0, 1, 2]
        assert set(found["step_to"]) == {run.steps[3] if share else run.steps[2]}
        np.testing.assert_allclose(found["coordinate"], basis @ (point - start), rtol=1e-9)
    means = gradients_at(Plan.of(run, run.steps[1:], config=SMALL))[1].mean(dim=0)
    at_checkpoint = rows[(rows["step"] == run.steps[2]) & (rows["share"] == 0)]
    np.testing.assert_allclose(at_checkpoint["mean"], means, rtol=1e-12)
    assert (rows["quantity"] == "gradients").all()


def test_a_coarser_look_shares_points_and_starts_at_zero(run):
    data, steps = follow(run), run.steps
    parts = len(run.table("polca_nodes").parts())
    coarse = follow(run, steps=[steps[1], steps[2], steps[4]])
    assert coarse.trajectories.steps == (steps[1], steps[2], steps[4])
    # Only the middle of the new, longer interval is new.
    assert len(run.table("polca_nodes").parts()) == parts + 1
    shared = data.trajectories.values[:, :, 2] - data.trajectories.values[:, :, 1]
    np.testing.assert_allclose(coarse.trajectories.values[:, :, 1], shared, rtol=1e-9, atol=1e-14)


def test_gradients_of_checkpoints_can_be_had(run):
    data = follow(run, change(accuracy="first"))
    gradients = gradients_at(Plan.of(run, config=change(accuracy="first")))
    assert gradients.shape == (len(run.steps), len(data.scored), 3)
    basis = basis_of(run, SMALL)
    moved = torch.stack(
        [basis @ (theta(run, b) - theta(run, a)) for a, b in zip(run.steps, run.steps[1:], strict=False)]
    )
    sums = torch.cumsum(gradients[:-1] * moved[:, None], dim=0)
    np.testing.assert_allclose(data.trajectories.values[:, :, 1:], sums.permute(2, 1, 0).numpy(), rtol=1e-9, atol=1e-14)
    assert data.trajectories.kind == "first_order"


# Bases


@pytest.mark.parametrize(
    "basis",
    [
        "hessian",
        pytest.param("shuffled", marks=pytest.mark.slow),
        "random",
        "parameters",
        "gradient",
        "trajectory",
        "probe",
    ],
)
def test_every_basis_is_orthonormal_and_stored(run, basis):
    config = PolcaConfig(
        basis=basis,
        basis_steps="all",
        n_directions=3,
        feature="carry" if basis == "probe" else "",
        accuracy="first",
        n_examples=2,
        n_hessian=8,
        n_probe=20,
    )
    data = follow(run, config)
    found = basis_of(run, config)
    assert found.dtype == torch.float32
    n = 3 if basis in ("random", "parameters", "trajectory") else len(run.steps)
    assert found.shape == (n, len(theta(run, 0)))
    gram = found.double() @ found.double().mT
    np.testing.assert_allclose(gram.numpy(), np.eye(n), atol=1e-6)
    rows = data.directions
    np.testing.assert_allclose(rows["orthogonality"], np.abs(gram.numpy() - np.eye(n)).max(axis=1), rtol=1e-6)
    assert (rows["basis"] == basis).all()
    assert data.trajectories.kind == ("lca" if basis == "parameters" else "first_order")
    assert rows["eigenvalue"].isna().all() == (basis not in ("hessian", "shuffled", "trajectory"))
    check = globals().get(f"check_{basis}")
    if check:
        check(run, found.double(), rows)


def training_loss(run, step):
    """The mean loss that curvature is taken of, as a function of the vector of parameters."""
    examples = held_out(run.task, "train", 8, seed=0, stream="polca/hessian")
    loss = TokenLoss(run.load_model(step), scored_tokens(run.task.encode(examples)), dtype=torch.float64)
    return lambda vector: loss(loss.space.unflatten(vector)).mean()


def check_hessian(run, found, rows):
    assert rows["step"].tolist() == run.steps
    assert rows["converged"].all()
    before = found[:2]
    hessian = torch.func.jacrev(torch.func.jacrev(training_loss(run, run.steps[2])))(theta(run, run.steps[2])).numpy()
    projection = np.eye(hessian.shape[0]) - before.numpy().T @ before.numpy()
    values, vectors = np.linalg.eigh(projection @ hessian @ projection)
    assert rows["eigenvalue"][2] == pytest.approx(values[-1], rel=1e-3)
    assert abs(found[2].numpy() @ vectors[:, -1]) > 0.99


def check_shuffled(run, found, rows):
    assert sorted(rows["step"]) == run.steps
    assert rows["step"].tolist() != run.steps


def check_parameters(run, found, rows):
    largest = theta(run, run.steps[-1]).abs().numpy().argsort()[::-1][:3]
    assert found.argmax(dim=1).tolist() == largest.tolist()


def check_gradient(run, found, rows):
    assert rows["step"].tolist() == run.steps
    gradient = torch.func.grad(training_loss(run, run.steps[0]))(theta(run, run.steps[0]))
    assert abs(float(found[0] @ gradient)) == pytest.approx(float(gradient.norm()), rel=1e-4)


def check_trajectory(run, found, rows):
    moved = torch.stack([theta(run, step) - theta(run, run.steps[0]) for step in run.steps[1:]])
    right = torch.linalg.svd(moved, full_matrices=False).Vh[:3]
    np.testing.assert_allclose((found @ right.mT).abs().numpy(), np.eye(3), atol=1e-3)


def check_probe(run, found, rows):
    """The first direction is the gradient of the loss of the probes that the run's table holds, at their own places."""
    assert rows["step"].tolist() == run.steps
    (part,) = [part for part in run.table("probe").parts() if part.startswith("step_00000000-carry-")]
    tensors = run.table("probe").read_tensors(part)
    examples = held_out(run.task, "train", 8, seed=0, stream="polca/hessian")
    feature, model = run.task.feature("carry"), run.load_model(0)
    labels, positions = feature.labels(examples), feature.positions(examples).copy()
    cache = {}
    hook = ("blocks.0.hook_resid_post", lambda activation, hook: cache.update({hook.name: activation}))
    model.run_with_hooks(run.task.encode(examples).tokens, fwd_hooks=[hook])
    losses = []
    for label, place in enumerate(tensors["place"].tolist()):
        if place >= 0:
            resid = cache[f"blocks.{place}.hook_resid_post"][torch.arange(8), positions[:, label]]
            logits = resid @ tensors["weight"][place, label, 0] + tensors["intercept"][place, label, 0]
            target = torch.from_numpy(labels[:, label].astype(np.float32))
            losses.append(torch.nn.functional.binary_cross_entropy_with_logits(logits, target))
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(named.values()), materialize_grads=True)
    gradient = ParameterSpace.of(model).flatten(dict(zip(named, gradients, strict=True)))
    assert abs(float(found[0] @ gradient.double())) == pytest.approx(float(gradient.norm()), rel=1e-4)


@pytest.mark.slow
def test_several_directions_a_checkpoint(run):
    config = change(basis="hessian", basis_steps="0,20", per_checkpoint=2, accuracy="first")
    rows = follow(run, config).directions
    assert rows["step"].tolist() == [0, 0, 20, 20]
    assert rows["eigenvalue"][0] > rows["eigenvalue"][1]
    assert rows["eigenvalue"][2] > rows["eigenvalue"][3]
    assert rows["n_products"][0] == rows["n_products"][1] > 0


def test_the_seed_draws_examples_and_directions(run):
    one, other = follow(run), follow(run, change(seed=1))
    assert not np.array_equal(one.examples, other.examples)
    assert not np.allclose(basis_of(run, SMALL), basis_of(run, change(seed=1)))


# Interrupted, shared, in other processes


def files(run, lens):
    """Each file of a table with when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in run.table(lens).folder.iterdir()}


@pytest.mark.slow
def test_what_is_there_is_not_computed_again_and_what_is_missing_comes_out_the_same(run):
    config = change(basis="hessian", basis_steps="0,4,20", n_panels=2)
    whole = follow(run, config)
    basis = basis_of(run, config)
    before = {lens: files(run, lens) for lens in ("polca_basis", "polca_nodes")}
    follow(run, config)
    assert {lens: files(run, lens) for lens in before} == before
    lost = {"polca_basis": ["direction_0001"], "polca_nodes": ["gradients-step_00000020-", "_1of2"]}
    for lens, names in lost.items():
        for path in list(run.table(lens).folder.iterdir()):
            if any(name in path.name for name in names):
                path.unlink()
    again = follow(run, config)
    np.testing.assert_array_equal(again.trajectories.values, whole.trajectories.values)
    assert torch.equal(basis_of(run, config), basis)
    for lens, names in lost.items():
        after = files(run, lens)
        assert after.keys() == before[lens].keys()
        kept = {name for name in after if not any(part in name for part in names)}
        assert len(kept) < len(after)
        assert {name: after[name] for name in kept} == {name: before[lens][name] for name in kept}


@pytest.mark.slow
def test_accuracies_share_what_they_have_in_common(run):
    n, counts = len(run.steps), []
    for accuracy, panels in (("first", 1), ("trapezoid", 1), ("path", 1), ("path", 2), ("paper", 1), ("second", 1)):
        follow(run, change(accuracy=accuracy, n_panels=panels))
        counts.append(len(run.table("polca_nodes").parts()))
    # Checkpoints; middles; quarters; the curvature at the start of each interval.
    assert np.diff([0, *counts]).tolist() == [n, 0, n - 1, 2 * (n - 1), n - 1, 0]
    follow(run, change(n_examples=3))
    assert len(run.table("polca_nodes").parts()) == counts[-1] + 2 * n - 1
    assert len(run.table("polca_basis").parts()) == 3


def test_plans_that_are_followed_together_come_out_as_if_alone(run, tmp_path):
    alone = shutil.copytree(run.path, tmp_path / "alone")
    configs = [SMALL, change(basis="trajectory", basis_steps="all"), change(accuracy="first")]
    plans = [Plan.of(run, config=config) for config in configs]
    polca_trajectories.compute_points(plans, progress=False)
    assert not any(polca_trajectories.missing_points(plan) for plan in plans)
    for config in configs:
        found = polca_trajectories.follow(Plan.of(run, config=config), progress=False)
        again = follow(qfl.Run.open(alone), config)
        np.testing.assert_array_equal(found.trajectories.values, again.trajectories.values)
        assert torch.equal(found.losses, again.losses)


def test_of_plans_that_share_a_basis_a_point_is_computed_once(run, monkeypatch):
    computed = []
    quantities = polca_trajectories.quantities
    monkeypatch.setattr(
        polca_trajectories, "quantities", lambda *args: computed.append(len(args[2])) or quantities(*args)
    )
    plans = [Plan.of(run, config=change(accuracy=accuracy)) for accuracy in ("first", "path")]
    polca_trajectories.compute_points(plans, progress=False)
    assert computed == [1] * (2 * len(plans[0].steps) - 1)


@pytest.mark.parametrize("changes", [{"n_examples": 3}, {"seed": 1}, {"double": False}], ids=str)
def test_plans_of_other_examples_or_precision_are_not_followed_together(run, changes):
    plans = [Plan.of(run, config=config) for config in (SMALL, change(**changes))]
    with pytest.raises(ValueError, match="must have run, n_examples, seed, precision and device in common"):
        polca_trajectories.compute_points(plans, progress=False)


def test_the_work_can_go_to_other_processes(run, monkeypatch):
    """Every call's arguments survive the trip, and what comes back from it computes the same."""
    expected = follow(run)
    shutil.rmtree(run.table("polca_nodes").folder)
    shutil.rmtree(run.table("polca_basis").folder)

    def travelled(items, prepare, work, *, label, jobs=1, progress=True):
        items, prepare, work = ForkingPickler.loads(ForkingPickler.dumps((list(items), prepare, work)))
        context = prepare() if items else None
        for item in items:
            work(context, item)

    for module in (polca_basis, polca_trajectories):
        monkeypatch.setattr(module, "over_checkpoints", travelled)
    np.testing.assert_array_equal(follow(run).trajectories.values, expected.trajectories.values)


@pytest.mark.slow
def test_a_suite_of_another_library_is_followed_too(tmp_path):
    """A bridge has no layer-wise gradients and its dataset no training split."""
    suite = Suite.open(save_tiny_neox(tmp_path), tiny_text_task())
    config = PolcaConfig(basis="gradient", basis_steps="0,100", n_examples=6, n_hessian=6)
    data = follow(suite, config)
    assert data.trajectories.steps == (0, 10, 100)
    gradients = gradients_at(Plan.of(suite, config=config))
    basis = basis_of(suite, config)
    loss = TokenLoss(suite.load_model(10), data.scored)
    # The first token's own gradient, backward through the bridge.
    theta_10 = loss.space.flatten(loss.parameters()).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(loss.space.unflatten(theta_10))[0], theta_10)
    torch.testing.assert_close(gradients[1, 0], basis @ gradient, rtol=1e-3, atol=1e-5)


# What is refused


def damaged(run, step, damage):
    """The run with one checkpoint's model changed as it is loaded."""
    load = run.load_model

    def load_model(at="last", *, device="cpu"):
        model = load(at, device=device)
        return damage(model) if at == step else model

    run.load_model = load_model
    return run


@torch.no_grad()
def with_nan(model):
    # Fused attention hides a NaN of this parameter from the loss.
    model.get_parameter("blocks.0.attn.W_K").view(-1)[0] = torch.nan
    return model


def test_two_checkpoints_are_too_few(run):
    with pytest.raises(QflError, match=r"at least 3 checkpoints, got 2 of .*: \[0, 20\].*n_checkpoints"):
        follow(run, steps=[0, 20])


@pytest.mark.parametrize(
    ("accuracy", "others"),
    [
        ("path", ["gradients-step_{0:08d}_to_{1:08d}_1of2"]),
        ("paper", ["curvature-step_{0:08d}", "curvature-step_{1:08d}"]),
        ("second", ["curvature-step_{0:08d}", "curvature-step_{1:08d}"]),
    ],
)
def test_a_step_that_diverged_is_named_and_earlier_points_are_kept(run, accuracy, others):
    first, second, step = run.steps[:3]
    with pytest.raises(QflError, match=rf"step {step} of .*finite, got nan.*computed before are kept"):
        follow(damaged(run, step, with_nan), change(accuracy=accuracy))
    done = run.table("polca_nodes").parts()
    expected = [f"gradients-step_{s:08d}" for s in (first, second)] + [name.format(first, second) for name in others]
    assert sorted(part.rpartition("-")[0] for part in done) == sorted(expected)
    assert run.verify()


def test_a_basis_checkpoint_that_diverged_is_named_and_earlier_directions_are_kept(run):
    step = run.steps[1]
    config = change(basis="hessian", basis_steps="all")
    with pytest.raises(QflError, match=rf"step {step} of .*finite, got nan.*Directions found"):
        follow(damaged(run, step, with_nan), config)
    assert [part[:14] for part in run.table("polca_basis").parts()] == ["direction_0000"]


def test_checkpoints_of_different_shapes_are_refused(run):
    step = run.steps[1]

    def wider(model):
        model.unembed.W_U = torch.nn.Parameter(torch.zeros(4, 9))
        return model

    message = rf"1 parameters of another shape at step {step} of .*: unembed.W_U\. POLCA follows one model"
    with pytest.raises(QflError, match=message):
        follow(damaged(run, step, wider))


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["trajectory", "parameters", "gradient", "hessian"])
def test_every_basis_names_the_checkpoint_that_is_not_finite_and_what_to_leave_out(run, basis):
    step = run.steps[-1]
    config = change(basis=basis, basis_steps="all", n_directions=2)
    message = rf"step {step} of .* parameter blocks.0.attn.W_K must be finite, got nan.*found .* kept.*--basis-steps"
    with pytest.raises(QflError, match=message):
        follow(damaged(run, step, with_nan), config, steps=run.steps[:3])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("basis", "accuracy"), [("parameters", "first"), ("random", "path"), ("trajectory", "path"), ("hessian", "path")]
)
def test_a_first_or_last_checkpoint_that_diverged_can_be_left_out(run, basis, accuracy):
    """What the error advises; the curves are those of the same steps of the run as it was."""
    kept = ",".join(str(step) for step in run.steps[1:-1])
    config = change(basis=basis, basis_steps=kept, n_directions=2, accuracy=accuracy)
    others = qfl.Run.open(shutil.copytree(run.path, run.path.with_name("other")))
    whole = follow(others, config, kept)
    hurt = damaged(run, run.steps[-1], with_nan)
    load = hurt.load_model
    hurt.load_model = lambda at="last", **how: with_nan(load(at, **how)) if at == 0 else load(at, **how)
    found = follow(hurt, config, kept)
    np.testing.assert_allclose(found.trajectories.values, whole.trajectories.values, rtol=1e-9, atol=1e-12)
    hurt.load_model = lambda at="last", **how: with_nan(load(at, **how))
    with pytest.raises(QflError, match=r"no checkpoint of .* is finite|must be finite"):
        follow(hurt, change(config, seed=5), kept)


def test_a_basis_is_named_by_what_decides_it_alone(run):
    """Another accuracy, other examples, another number of what this basis does not use: the same directions."""

    def digest(config):
        return Plan.of(run, config=config).basis_digest

    for basis, others in (
        ("hessian", {"n_directions": 9, "n_probe": 7, "n_examples": 3, "accuracy": "first", "n_panels": 3}),
        ("random", {"n_hessian": 9, "hessian_prompt": True, "tol": 0.1, "max_products": 50, "basis_steps": "last"}),
        ("parameters", {"n_hessian": 9, "seed": 4, "tol": 0.1}),
    ):
        config = change(basis=basis, basis_steps="all")
        named = digest(config)
        assert digest(change(config, **others)) == named
        assert digest(change(config, double=False)) != named
    for basis, decisive in (
        ("hessian", {"n_hessian": 9}), ("hessian", {"seed": 4}), ("hessian", {"tol": 0.1}),
        ("hessian", {"hessian_prompt": True}), ("hessian", {"per_checkpoint": 2}),
        ("hessian", {"basis_steps": "0,20"}),
        ("random", {"seed": 4}),
        ("random", {"n_directions": 4}), ("parameters", {"basis_steps": "0"}), ("gradient", {"n_hessian": 9}),
    ):  # fmt: skip
        config = change(basis=basis, basis_steps="all")
        assert digest(change(config, **decisive)) != digest(config)


def test_what_is_wrong_with_basis_steps_is_said_of_them(run):
    with pytest.raises(ValueError, match=r"basis_steps: steps must be 'all'.* got '5:5'"):
        follow(run, change(basis="hessian", basis_steps="5:5"))


def test_curves_that_do_not_fit_into_memory_are_refused_before_any_work(run, monkeypatch):
    n_tokens = len(follow(run, change(basis="random", n_directions=2)).scored)
    needed = 2 * n_tokens * (len(run.steps) * 8 + 32)
    monkeypatch.setattr(polca_trajectories, "available_bytes", lambda: needed)
    follow(run, change(basis="random", n_directions=2))
    monkeypatch.setattr(polca_trajectories, "available_bytes", lambda: needed - 1)
    message = rf"curves of {n_tokens} tokens along 2 directions at {len(run.steps)} steps need .*fewer steps"
    with pytest.raises(QflError, match=message):
        follow(run, change(basis="random", n_directions=2))


def test_bases_that_do_not_fit_into_memory_together_are_refused_before_any_point(run, monkeypatch):
    plans = [Plan.of(run, config=change(n_directions=n)) for n in (2, 3)]
    needed = 5 * 78 * 8
    monkeypatch.setattr(polca_trajectories, "available_bytes", lambda device: needed - 1)
    with pytest.raises(QflError, match=r"5 directions of 78 parameters, of 2 plans need .*Follow fewer of them"):
        polca_trajectories.compute_points(plans, progress=False)
    assert not run.table("polca_nodes").parts()
    monkeypatch.setattr(polca_trajectories, "available_bytes", lambda device: needed)
    polca_trajectories.compute_points(plans, progress=False)


def test_a_basis_that_does_not_fit_into_memory_is_refused_before_any_work(run, monkeypatch):
    monkeypatch.setattr(polca_basis, "available_bytes", lambda device: 10_000)
    with pytest.raises(QflError, match=r"3 directions of 78 parameters need about .* GiB of memory"):
        follow(run)
    assert not run.table("polca_basis").parts()


def test_the_memory_of_the_eigensolver_is_in_the_estimate(run, monkeypatch):
    monkeypatch.setattr(polca_basis, "available_bytes", lambda device: 10_000)
    asked = []
    monkeypatch.setattr(polca_basis, "basis_bytes", lambda *args, **how: asked.append(how.get("n_vectors")) or 10**9)
    for changes in ({"per_checkpoint": 2}, {}):
        with pytest.raises(QflError, match="need about"):
            follow(run, config=PolcaConfig(basis="hessian", basis_steps="last", **changes))
    with pytest.raises(QflError, match="need about"):
        follow(run, config=PolcaConfig(basis="random", n_directions=3))
    # A Krylov space of 40 + 2 k vectors, the pairs twice, and what a step works with.
    assert asked == [40 + 2 * 2 + 2 * 2 + 8, 40 + 2 + 2 + 8, None]


@pytest.mark.parametrize(
    "changes",
    [
        {"n_directions": 79},
        {"basis": "hessian", "basis_steps": "all", "per_checkpoint": 16, "max_products": 300},
        {"basis": "trajectory", "basis_steps": "last"},
    ],
)
def test_a_basis_of_no_possible_size_is_refused(run, changes):
    with pytest.raises(ValueError, match=r"1 to 78 directions, as many as the model has parameters, got (79|80|0) of"):
        follow(run, change(**changes))


def test_unknown_names_are_refused(run):
    with pytest.raises(QflError, match=r"step 3 of .* was not saved"):
        follow(run, change(basis="hessian", basis_steps="3"))
    with pytest.raises(QflError, match="no feature of addition is named 'cary'"):
        follow(run, change(basis="probe", feature="cary"))


def test_gradients_that_were_not_computed_are_missed(run):
    with pytest.raises(QflError, match="cannot be read"):
        gradients_at(Plan.of(run, config=SMALL))
