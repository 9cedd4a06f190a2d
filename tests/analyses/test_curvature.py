"""Curvature over a run's checkpoints against the whole Hessian by double backward, files read by hand and NumPy."""

from __future__ import annotations

import functools
import json
import shutil
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch.func import functional_call
from typer.testing import CliRunner

import qfl_interp as qfl
from qfl_interp.analyses import curvature
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.lenses.curvature import lens as curving
from qfl_interp.analyses.lenses.curvature.lens import Chains, Curvature
from qfl_interp.analyses.lenses.curvature.ranks import rank_rows
from qfl_interp.analyses.lenses.curvature.tables import stored as stored_curvature
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.analyses.part_lens import Piece
from qfl_interp.cli.main import build_app
from qfl_interp.curvature import CurvatureConfig, SgldConfig
from qfl_interp.data.examples import held_out, in_split
from qfl_interp.data.task import Batch
from qfl_interp.errors import QflError
from qfl_interp.models.metrics import masked_loss, scored_span, targets
from qfl_interp.runs.checkpoint import save_checkpoint
from qfl_interp.runs.suite import Suite
from tests.conftest import tiny_train_config
from tests.helpers_suite import save_tiny_neox, tiny_text_task

EXACT = CurvatureConfig(n_examples=4, n_rank_examples=8, tol=1e-3, max_products=60, double=True)
FAST = CurvatureConfig(n_examples=4, n_rank_examples=8, tol=0.5, max_products=12)
CHAINS = SgldConfig(n_chains=2, n_draws=3, n_burn_in=1, batch_size=2)
LAST = 6
STEPS = [0, 2, 5, 6]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 78 parameters with every step saved, the moments beside it; tests that write work on copies."""
    task = qfl.load_task("addition", length=4)
    out = tmp_path_factory.mktemp("runs") / "smallest"
    config = tiny_train_config(n_steps=LAST, n_checkpoints=14, lr=3e-2, save_optimizer=True, clip_norm=0.05)
    return qfl.train(task, qfl.ModelConfig(d_model=2, n_layers=1, n_heads=1), config, out, progress=False)


@pytest.fixture(scope="module")
def measured(trained):
    return curvature(trained, STEPS, config=EXACT, progress=False)


@pytest.fixture
def run(trained, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(trained.path, target)
    shutil.rmtree(target / "analyses", ignore_errors=True)
    return qfl.Run.open(target)


@functools.cache
def at_checkpoint(path, step):
    """`derivatives` on the call's own examples."""
    run = qfl.Run.open(path)
    return derivatives(run, step, train_batch(run))


def derivatives(run, step, batch):
    """Loss, gradient and Hessian of the mean over all scored tokens, `=` included, by double backward; parameters."""
    model = run.load_model(step).double()
    model.cfg.dtype = torch.float64
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for _, p in model.named_parameters()]
    theta = torch.cat([p.detach().flatten() for p in model.parameters()]).requires_grad_()
    pieces = theta.split([shape.numel() for shape in shapes])
    parts = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
    span = scored_span(batch.loss_mask)
    logits = functional_call(model, parts, (batch.tokens,))[:, span]
    loss = masked_loss(logits, targets(batch.tokens, batch.loss_mask, span))
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    rows = [torch.autograd.grad(entry, theta, retain_graph=True)[0] for entry in gradient]
    return float(loss.detach()), gradient.detach().numpy(), torch.stack(rows).numpy(), theta.detach().numpy()


def parameters(run, step):
    return torch.cat([p.detach().flatten() for p in run.load_model(step).parameters()]).double().numpy()


def train_batch(run, config=EXACT):
    examples = held_out(run.task, "train", config.n_examples, seed=config.seed, stream="curvature")
    assert in_split(run.task, examples, "train").all()
    return run.task.encode(examples)


def row_at(measured, step):
    return measured.rows.set_index("step").loc[step]


def cos(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# What comes out


@pytest.mark.parametrize("step", [0, 2, 5])
def test_every_column_equals_that_of_the_whole_hessian(trained, measured, step):
    batch = train_batch(trained)
    loss, gradient, hessian, theta = at_checkpoint(trained.path, step)
    row = row_at(measured, step)
    assert row["sharpness_converged"]
    origin, taken = (parameters(trained, at) for at in (0, step + 1))
    taken = taken - theta
    expected = {
        "step_to": step + 1,
        "n_examples": 4,
        "n_tokens": int(batch.loss_mask.sum()),
        "loss": loss,
        "gradient_norm": np.linalg.norm(gradient),
        "weight_norm": np.linalg.norm(theta),
        "sharpness": np.linalg.eigvalsh(hessian)[-1],
        "step_norm": np.linalg.norm(taken),
        "step_curvature": taken @ hessian @ taken / (taken @ taken),
        "step_c1": gradient @ taken,
        "step_c2": taken @ hessian @ taken / 2,
        "step_sharpness": taken @ hessian @ taken / abs(gradient @ taken),
        "cos_gradient_step": cos(-gradient, taken),
        "flops": trained.flops(step),
    }
    for name, value in expected.items():
        # The eigenvalue's error is of the order of its residual's square.
        assert row[name] == pytest.approx(value, rel=1e-4 if name == "sharpness" else 1e-7), name
    if step:
        assert row["cos_step_cumulative"] == pytest.approx(cos(taken, theta - origin), rel=1e-7)
    else:
        assert np.isnan(row["cos_step_cumulative"])


@pytest.mark.parametrize("step", [2, 5])
def test_adams_columns_equal_those_from_the_file_of_moments(trained, measured, step):
    _, gradient, hessian, theta = at_checkpoint(trained.path, step)
    stored = safetensors.torch.load_file(trained.path / "checkpoints" / f"step_{step:08d}" / "optimizer.safetensors")
    names = [name for name, _ in trained.load_model(step).named_parameters()]
    second = torch.cat([stored[f"{name}/exp_avg_sq"].flatten() for name in names]).double().numpy()
    p = 1 / (np.sqrt(second / (1 - 0.95**step)) + 1e-8)
    row = row_at(measured, step)
    preconditioned = np.linalg.eigvals(p[:, None] * hessian).real.max()
    assert row["preconditioned_sharpness_converged"]
    assert row["preconditioned_sharpness"] == pytest.approx(preconditioned, rel=1e-4)
    assert row["moments"] == "saved"
    taken = parameters(trained, step + 1) - theta
    assert row["cos_preconditioned_step"] == pytest.approx(cos(-p * gradient, taken), rel=1e-6)


def test_edges_follow_the_learning_rate_that_training_logged(trained, measured):
    logged = trained.metrics.set_index("step")["lr"]
    for step in STEPS[:-1]:
        row = row_at(measured, step)
        assert row["lr"] == pytest.approx(logged[step + 1], rel=1e-12)
        assert row["edge"] == pytest.approx(2 / logged[step + 1])
        assert row["adam_edge"] == pytest.approx(38 / logged[step + 1])
        assert row["sharpness_over_edge"] == pytest.approx(row["sharpness"] * row["lr"] / 2)
        ratio = row["preconditioned_sharpness"] * row["lr"] / 38
        assert row["preconditioned_over_edge"] == pytest.approx(ratio, nan_ok=True)
    assert row_at(measured, LAST)["lr"] == pytest.approx(logged[LAST])


def test_the_update_made_again_is_the_one_that_was_taken(measured):
    """With a checkpoint after every update, at the first one too, where the moments are zero."""
    rows = measured.rows[measured.rows["step"] < LAST]
    assert len(rows) == 3
    for field in ("norm", "curvature", "c1", "c2", "sharpness"):
        np.testing.assert_allclose(rows[f"update_{field}"], rows[f"step_{field}"], rtol=2e-3, err_msg=field)
    np.testing.assert_allclose(rows["cos_gradient_update"], rows["cos_gradient_step"], rtol=1e-3)
    np.testing.assert_allclose(rows["cos_update_cumulative"], rows["cos_step_cumulative"], rtol=1e-3)
    np.testing.assert_allclose(rows["cos_preconditioned_update"], rows["cos_preconditioned_step"], rtol=1e-3)


def test_what_does_not_exist_at_the_ends(measured):
    first, last = row_at(measured, 0), row_at(measured, LAST)
    assert first["moments"] == "no update yet"
    assert np.isnan(first["preconditioned_sharpness"])
    assert first["preconditioned_sharpness_converged"] is None
    assert np.isfinite(first["update_norm"])
    for name in ("step_to", "step_norm", "step_sharpness", "cos_gradient_step", "update_norm", "cos_gradient_update"):
        assert np.isnan(last[name]), name
    assert np.isfinite(last["preconditioned_sharpness"])


@pytest.mark.slow
def test_the_step_leads_to_the_next_saved_checkpoint_whatever_is_asked_for(run, measured):
    found = curvature(run, [2, 5], config=EXACT, progress=False)
    pd.testing.assert_frame_equal(
        found.rows.reset_index(drop=True),
        measured.rows[measured.rows["step"].isin([2, 5])].reset_index(drop=True),
        check_dtype=False,  # step 0 of the others makes a column of booleans one of objects
    )


# Soft ranks


def svd_ranks(x):
    share = np.linalg.svd(x, compute_uv=False) ** 2
    share = share / share.sum()
    share = share[share > 1e-15]
    return 1 / share.max(), 1 / (share**2).sum(), np.exp(-(share * np.log(share)).sum())


def test_soft_ranks_are_those_of_the_singular_values(tiny_run):
    """Variable answers too: half of the examples end two tokens early."""
    model = tiny_run.load_model()
    tokens, mask, *_ = tiny_run.task.encode(held_out(tiny_run.task, "test", 20, seed=0, stream="x"))
    mask = mask.clone()
    last = int(mask[0].nonzero().max())
    mask[:10, last - 1 :] = False
    rows = rank_rows(model, Batch(tokens, mask)).set_index(["layer", "position"])
    _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        stream = cache[f"blocks.{layer}.hook_resid_post"].double().numpy()
        scored = np.concatenate([stream[i, mask[i, 1:].nonzero()[:, 0]] for i in range(20)])
        everywhere = {-1: scored, 3: stream[:, 3], last - 3: stream[:, last - 3], last - 1: stream[10:, last - 1]}
        for position, x in everywhere.items():
            row = rows.loc[(layer, position)]
            assert row["n_samples"] == len(x)
            names = ["stable_rank", "participation_ratio", "entropy_rank"]
            np.testing.assert_allclose(row[names].astype(float), svd_ranks(x), rtol=1e-4)
            centred = row[["stable_rank_centred", "participation_ratio_centred"]].astype(float)
            np.testing.assert_allclose(centred, svd_ranks(x - x.mean(axis=0))[:2], rtol=1e-4)
    assert sorted(rows.loc[0].index) == [-1, *range(last)]


def test_where_all_tokens_are_the_same_so_far_there_is_no_centred_rank(tiny_run):
    tokens, mask, *_ = tiny_run.task.encode(held_out(tiny_run.task, "test", 8, seed=0, stream="x"))
    tokens = tokens.clone()
    tokens[:, :2] = tokens[0, :2]
    tokens[:, 2] = torch.arange(8) % 2
    rows = rank_rows(tiny_run.load_model(), Batch(tokens, mask)).set_index(["layer", "position"])
    assert rows.loc[(0, 1), "stable_rank"] == pytest.approx(1, abs=1e-6)
    assert np.isnan(rows.loc[(0, 1), "stable_rank_centred"])
    assert rows.loc[(0, 2), "stable_rank_centred"] == pytest.approx(1, abs=1e-6)  # two values


def test_a_position_of_one_example_has_no_row(tiny_run):
    tokens, mask, *_ = tiny_run.task.encode(held_out(tiny_run.task, "test", 3, seed=0, stream="x"))
    mask = mask.clone()
    last = int(mask[0].nonzero().max())
    mask[1:, last] = False
    assert rank_rows(tiny_run.load_model(), Batch(tokens, mask))["position"].max() == last - 2


# What is stored


@pytest.mark.slow
def test_a_second_call_computes_nothing_and_gives_the_same(run, monkeypatch):
    first = curvature(run, [0, 3], config=FAST, sgld=CHAINS, progress=False)
    for name in ("measure", "rank_rows", "estimate_learning_coefficient"):
        monkeypatch.setattr(curving, name, None)
    again = curvature(run, [0, 3], config=FAST, sgld=CHAINS, progress=False)
    pd.testing.assert_frame_equal(first.rows, again.rows)
    pd.testing.assert_frame_equal(first.ranks, again.ranks)


@pytest.mark.slow
def test_a_call_that_stopped_goes_on(run, monkeypatch):
    whole, measure, calls = curvature(run, [0, 2, 3], config=FAST, progress=False), curving.measure, []
    shutil.rmtree(run.path / "analyses")

    def failing(run, shared, model, step, to):
        calls.append(step)
        if calls == [0, 2]:
            raise KeyboardInterrupt
        return measure(run, shared, model, step, to)

    monkeypatch.setattr(curving, "measure", failing)
    with pytest.raises(KeyboardInterrupt):
        curvature(run, [0, 2, 3], config=FAST, progress=False)
    found = curvature(run, [0, 2, 3], config=FAST, progress=False)
    assert calls == [0, 2, 2, 3]
    pd.testing.assert_frame_equal(found.rows, whole.rows)


@pytest.mark.slow
def test_other_settings_are_other_rows_and_the_stored_ones_are_of_one_call(run):
    curvature(run, [0, 3], config=FAST, progress=False)
    other = CurvatureConfig(n_examples=5, n_rank_examples=8, tol=0.5, max_products=12)
    curvature(run, [1, 3, 5], config=other, sgld=CHAINS, progress=False)
    stored = stored_curvature(run)
    assert stored is not None
    assert stored.rows["step"].tolist() == [1, 3, 5]
    assert set(stored.ranks["step"]) == {1, 3, 5}
    assert np.isfinite(stored.rows["learning_coefficient"]).all()
    assert {"curvature", "soft_ranks", "learning_coefficient"} == {p.name for p in (run.path / "analyses").iterdir()}
    assert run.verify()


@pytest.mark.slow
def test_a_checkpoint_that_got_a_next_one_is_shown_once(run):
    """Measured while the run was shorter, then again."""
    hidden = run.path / "checkpoints" / "step_00000006"
    hidden.rename(run.path / "away")
    before = curvature(run, [4, 5], config=FAST, progress=False)
    assert np.isnan(before.rows["step_to"].iloc[-1])
    (run.path / "away").rename(hidden)
    after = curvature(run, [4, 5], config=FAST, progress=False)
    assert after.rows["step_to"].tolist() == [5, 6]
    stored = stored_curvature(run)
    assert stored is not None
    assert stored.rows["step_to"].tolist() == [5, 6]


def test_nothing_stored(run):
    assert stored_curvature(run) is None


def test_work_goes_to_other_processes(run):
    lens = Chains(run, "cpu", FAST, CHAINS)
    assert ForkingPickler.loads(ForkingPickler.dumps(lens._compute)).__self__.sgld == CHAINS


# The learning coefficient


@pytest.mark.slow
def test_learning_coefficients_are_of_the_sample_in_examples(run, monkeypatch):
    """What the sampler is given: the loss of a whole example, and the parameters of the checkpoint."""
    seen = {}

    def spy(mean_loss, start, n, config):
        seen.update(loss=float(mean_loss(start, torch.tensor([0, 2]))), start=start, n=n)
        return found(mean_loss, start, n, config)

    found = curving.estimate_learning_coefficient
    monkeypatch.setattr(curving, "estimate_learning_coefficient", spy)
    rows = curvature(run, [3], config=EXACT, sgld=CHAINS, progress=False).rows
    batch = train_batch(run)
    one = [Batch(batch.tokens[[i]], batch.loss_mask[[i]]) for i in (0, 2)]
    expected = sum(derivatives(run, 3, part)[0] * int(part.loss_mask.sum()) for part in one) / 2
    assert seen["loss"] == pytest.approx(expected)
    assert seen["n"] == 4
    np.testing.assert_allclose(seen["start"], parameters(run, 3))
    assert rows["n_chains"].tolist() == [2]
    assert rows["n_finite_chains"].tolist() == [2]
    assert np.isfinite(rows[["learning_coefficient", "learning_coefficient_std"]].to_numpy(float)).all()


@pytest.mark.slow
def test_chains_that_leave_for_infinity_are_counted_and_said(run):
    wild = SgldConfig(n_chains=3, n_draws=8, n_burn_in=1, batch_size=2, step_size=1e4)
    found = curvature(run, [3], config=FAST, sgld=wild, progress=False)
    assert found.rows["n_finite_chains"].tolist() == [0]
    assert found.rows["n_chains"].tolist() == [3]
    assert np.isnan(found.rows["learning_coefficient"]).all()
    assert "chains that stayed finite: 0 of 3 at step 3 (take a smaller step size)" in repr(found)
    assert "stayed finite" not in repr(curvature(run, [3], config=FAST, sgld=CHAINS, progress=False))


# What a run lacks


@pytest.mark.parametrize("how", ["a byte", "the file"])
def test_damaged_moments_cost_their_own_columns_alone(run, how):
    whole = curvature(run, [3], config=FAST, progress=False).rows.iloc[0]
    shutil.rmtree(run.path / "analyses")
    file = run.path / "checkpoints" / "step_00000003" / "optimizer.safetensors"
    if how == "a byte":
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    else:
        file.unlink()
    found = curvature(run, [3], config=FAST, progress=False)
    row = found.rows.iloc[0]
    assert row["moments"] == "unreadable"
    assert "Adam's moments are damaged (see `qfl verify`) at step 3" in repr(found)
    for name in ("loss", "sharpness", "step_curvature", "cos_gradient_step", "lr"):
        assert row[name] == whole[name]
    for name in ("preconditioned_sharpness", "update_norm", "cos_preconditioned_step"):
        assert np.isnan(row[name])
        assert np.isfinite(whole[name])


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_a_run_of_another_optimiser_and_loss_is_measured_in_its_own(addition, model_config, tmp_path, loss):
    config = tiny_train_config(
        n_steps=4, n_checkpoints=2, optimizer="sgd", loss=loss, schedule="cdat", save_optimizer=True
    )
    run = qfl.train(addition, model_config, config, tmp_path / "run", progress=False)
    found = curvature(run, config=qfl.CurvatureConfig(n_examples=8, n_rank_examples=8), progress=False)
    assert found.rows["moments"].tolist() == ["not AdamW's"] * len(found.rows)
    assert "the optimiser is not AdamW" in repr(found)
    assert found.rows["lr"].iloc[0] == run.metrics["lr"][1]
    assert found.rows[["adam_edge", "preconditioned_sharpness", "update_norm"]].isna().all(axis=None)
    batch = addition.encode(qfl.held_out(addition, "train", 8, seed=0, stream="curvature"))
    span = scored_span(batch.loss_mask)
    target = targets(batch.tokens, batch.loss_mask, span)
    with torch.no_grad():
        wanted = masked_loss(run.load_model(0)(batch.tokens)[:, span], target, loss)
    assert found.rows["loss"].iloc[0] == pytest.approx(float(wanted), rel=1e-5)


def test_a_run_without_moments_says_so(tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "copy")
    found = curvature(qfl.Run.open(tmp_path / "copy"), "last", config=FAST, progress=False)
    assert found.rows["moments"].tolist() == ["not saved"]
    assert np.isfinite(found.rows["sharpness_over_edge"]).all()
    assert np.isnan(found.rows[["preconditioned_sharpness", "update_norm"]].to_numpy(float)).all()
    assert "Adam's moments were not saved (train with save_optimizer=True)" in repr(found)


@pytest.mark.slow
def test_a_suite_has_sharpness_steps_and_ranks(tmp_path):
    suite = Suite.open(save_tiny_neox(tmp_path / "suite", (0, 10)), tiny_text_task(40), tokens_per_step=10)
    found = curvature(suite, config=FAST, progress=False)
    assert found.rows["moments"].tolist() == ["unknown"] * 2
    assert np.isfinite(found.rows["sharpness"]).all()
    assert np.isfinite(found.rows["step_curvature"].iloc[0])
    assert np.isnan(found.rows[["lr", "edge", "preconditioned_sharpness"]].to_numpy(float)).all()
    assert len(found.ranks) > 8
    assert "learning rate and optimiser are not known" in repr(found)


# What is refused


def damage(run, step, value):
    """Write a checkpoint anew with one parameter changed."""
    state = run.load_checkpoint(step, with_optimizer=True)
    # Not any parameter: fused attention hides a NaN of this one from the loss.
    state.model["blocks.0.attn.W_K"].flatten()[0] = value
    save_checkpoint(run.path / "checkpoints", state)


@pytest.mark.slow
def test_the_last_checkpoint_before_a_run_diverged_is_measured_without_the_step(run):
    whole = curvature(run, [3], config=FAST, progress=False).rows.iloc[0]
    shutil.rmtree(run.path / "analyses" / "curvature")
    damage(run, 4, torch.nan)
    found = curvature(run, [1, 3], config=FAST, progress=False)
    assert "the next checkpoint is not finite after step 3" in repr(found)
    before, last = (found.rows.iloc[i] for i in (0, 1))
    assert np.isfinite(before["step_sharpness"])
    for name in ("sharpness", "loss", "preconditioned_sharpness", "update_norm", "step_to"):
        assert last[name] == whole[name]
    for name in ("step_norm", "step_sharpness", "cos_gradient_step", "cos_preconditioned_step", "cos_step_cumulative"):
        assert np.isnan(last[name])
        assert np.isfinite(whole[name])


def test_a_checkpoint_that_is_not_finite_is_named_and_what_was_measured_stays(run):
    damage(run, 4, torch.nan)
    with pytest.raises(QflError, match=r"stopped at step 4: parameter blocks.0.attn.W_K must be finite"):
        curvature(run, [1, 4], config=FAST, progress=False)
    with pytest.raises(QflError, match=r"stopped at step 4: parameter blocks.0.attn.W_K must be finite"):
        curvature(run, [4], config=FAST, progress=False)
    with pytest.raises(QflError, match=r"stopped at step 4: parameter blocks.0.attn.W_K must be finite"):
        Chains(run, "cpu", FAST, CHAINS).compute([Piece(ModelAt(4))], label="", progress=False)
    assert curvature(run, [1], config=FAST, progress=False).rows["step"].tolist() == [1]
    assert len(list((run.path / "analyses" / "curvature").glob("*.parquet"))) == 1


def test_one_checkpoint_has_no_step(run):
    for step in range(1, LAST + 1):
        shutil.rmtree(run.path / "checkpoints" / f"step_{step:08d}")
    with pytest.raises(QflError, match=r"at least 2 saved checkpoints, got 1 of .*: \[0\]"):
        curvature(run, config=FAST, progress=False)


def test_an_unknown_step_is_refused(run):
    with pytest.raises(QflError, match="nearest saved step is 6"):
        curvature(run, 99, config=FAST, progress=False)


# Where it is shown


@pytest.mark.slow
def test_the_timeline_has_its_panels_and_the_report_its_sections(run):
    page = Page(run, ())
    assert Curvature.panels(page) == Curvature.sections(page) == []
    curvature(run, [0], config=FAST, progress=False)
    assert Curvature.panels(page) == Curvature.sections(page) == []  # step 0 has no place on the axis
    curvature(run, [0, 3], config=FAST, progress=False)
    titles = [panel.title for panel in Curvature.panels(page)]
    assert titles == ["Sharpness", "Alignment", "Soft rank of the residual stream"]
    assert [one.title for one in Curvature.sections(page)] == ["Curvature", "Soft rank by layer and position"]


@pytest.mark.slow
def test_the_command(run):
    words = [
        "curvature",
        str(run.path),
        "--steps",
        "0,3",
        "--n-examples",
        "4",
        "--n-rank-examples",
        "8",
        "--json",
        "-q",
    ]
    done = CliRunner().invoke(build_app(), [*words, "--out", str(run.path / "page.html"), "--tol", "0.5"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["step"] for row in rows] == [0, 3]
    assert rows[1]["preconditioned_sharpness"] > 0
    assert "plotly" in (run.path / "page.html").read_text()
