"""The lenses on a tiny run: complete rows, resumable parts, honest failures, values from scikit-learn."""

from __future__ import annotations

import functools
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import qfl_interp as qfl
from qfl_interp.analyses import ablate, emergence, probe, report, timeline
from qfl_interp.analyses.lenses.ablate import lens as ablation
from qfl_interp.analyses.lenses.emergence import tables as emerging
from qfl_interp.analyses.lenses.probe import data as of_probes
from qfl_interp.analyses.lenses.probe import fitting
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.analyses.stored import with_holm
from qfl_interp.data.examples import in_split
from qfl_interp.emergence.onset import Bracket
from qfl_interp.emergence.transition import Transition
from qfl_interp.models.metrics import ExampleScores, evaluate
from qfl_interp.tasks.addition import Addition

CONFIG = qfl.ProbeConfig(n_train=150, n_test=50)
QUICK = {"config": CONFIG, "progress": False}
N_LAYERS, N_LABELS = 2, 6


@pytest.fixture(scope="module")
def probed(tiny_run, tmp_path_factory):
    """A copy of the tiny run with every probe fitted and one ablation; read only."""
    path = tmp_path_factory.mktemp("probed") / "run"
    shutil.copytree(tiny_run.path, path)
    run = qfl.Run.open(path)
    probe(run, **QUICK)
    ablate(run, n_trials=4, **QUICK)
    return run


@pytest.fixture
def probed_copy(probed, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(probed.path, tmp_path / "probed")
    return qfl.Run.open(tmp_path / "probed")


@pytest.fixture
def no_work(monkeypatch):
    """Fitting a probe or loading a model fails."""

    def fail(*_args, **_kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(fitting, "fit_probes", fail)
    monkeypatch.setattr(qfl.Run, "load_model", fail)


def part_of(step, feature):
    """The probe table's part of a trained model and a feature."""
    return of_probes.part_name(ModelAt(step), feature, CONFIG)


def with_carries(monkeypatch, change):
    """Addition whose carries are changed in place by `change`."""
    original = Addition._carry

    def changed(self, examples):
        labels = original(self, examples).copy()
        change(labels)
        return labels

    monkeypatch.setattr(Addition, "_carry", changed)


# Probes


def test_probe_rows_are_complete(probed):
    rows = probe(probed, **QUICK).to_dataframe()
    trained, untrained = rows[rows["source"] == "trained"], rows[rows["source"] == "untrained"]
    for feature in ("first_operand", "carry"):
        index = ["step", "layer", "label"]
        found = trained[trained["feature"] == feature][index].to_records(index=False).tolist()
        expected = [(s, k, r) for s in probed.steps for k in range(N_LAYERS) for r in range(N_LABELS)]
        assert sorted(found) == expected
        control = untrained[untrained["feature"] == feature]
        assert control["model_seed"].nunique() == 2
        assert len(control) == 2 * N_LAYERS * N_LABELS
    assert rows["fitted"].all()
    assert rows["converged"].all()
    assert not rows.drop(columns=["run_id", "config_hash"]).isna().any().any()
    assert rows["flops"].tolist() == [probed.flops(s) for s in rows["step"]]
    assert set(rows["run_id"]) == {probed.run_id}
    assert set(rows["settings"]) == {CONFIG.digest()}
    assert (rows["n_train"] == 150).all()
    # Step 0 is trained from other initial weights than the untrained control.
    first = trained[trained["step"] == 0].groupby("feature")["test_loss"].mean()
    for _, part in untrained.groupby("model_seed"):
        assert (part.groupby("feature")["test_loss"].mean() != first).all()
    # Shuffled labels say nothing: worse than the base rate's log 2 or near it, and worse than the true ones.
    assert trained["shuffled_test_loss"].mean() > 0.9 * np.log(2)
    assert trained["shuffled_test_loss"].mean() > trained["test_loss"].mean()


@pytest.mark.parametrize(("feature", "label"), [("carry", 0), ("first_operand", 3)])
@pytest.mark.parametrize("layer", [0, 1])
def test_probes_agree_with_scikit_learn(probed, feature, label, layer):
    step = probed.steps[-1]
    data, wanted = of_probes.probe_data(probed, CONFIG), probed.task.feature(feature)
    model = probed.load_model(step)
    xs, ys = [], []
    for examples in (data.train, data.test):
        _, cache = model.run_with_cache(probed.task.encode(examples).tokens)
        place = wanted.positions(examples)[:, label]
        xs.append(cache["resid_post", layer].detach().double().numpy()[np.arange(len(examples)), place])
        ys.append(wanted.labels(examples)[:, label])
    reference = LogisticRegression(C=100, tol=1e-10, max_iter=100_000, solver="newton-cholesky").fit(xs[0], ys[0])
    rows = probe(probed, feature, step, **QUICK).to_dataframe()
    row = rows[(rows["source"] == "trained") & (rows["layer"] == layer) & (rows["label"] == label)].iloc[0]
    for name, x, y in zip(("train", "test"), xs, ys, strict=True):
        losses = np.logaddexp(0, np.where(y == 1, -1, 1) * reference.decision_function(x))
        # Activations agree to float32 rounding, which the fit passes on.
        assert row[f"{name}_loss"] == pytest.approx(losses.mean(), rel=1e-4)
        assert row[f"{name}_score"] == pytest.approx(reference.score(x, y), abs=1e-12)
    assert row["label_mean"] == pytest.approx(ys[0].mean())
    stored = probed.table("probe").read_tensors(part_of(step, feature))
    np.testing.assert_allclose(stored["weight"][layer, label, 0], reference.coef_[0], rtol=1e-2, atol=1e-3)
    if layer == stored["place"][label]:
        np.testing.assert_allclose(stored["test_loss"][label], losses, rtol=1e-3, atol=1e-4)


def test_the_shuffled_control_is_scored_on_the_true_labels(run_copy, monkeypatch):
    """With a shuffle that moves nothing it is the probe itself."""
    monkeypatch.setattr(fitting, "shuffle_labels", lambda y, *_: y.clone())
    rows = probe(run_copy, "carry", "last", n_untrained=1, **QUICK).to_dataframe()
    for name in ("loss", "score"):
        np.testing.assert_allclose(rows[f"shuffled_test_{name}"], rows[f"test_{name}"], rtol=1e-9)


def test_probing_again_computes_nothing(probed, no_work):
    everything = probe(probed, **QUICK)
    one = probe(probed, "carry", probed.steps[1], n_untrained=1, **QUICK).to_dataframe()
    assert set(one["step"]) == {0, probed.steps[1]}
    assert len(one) == 2 * N_LAYERS * N_LABELS
    assert len(everything.to_dataframe()) == (len(probed.steps) + 2) * 2 * N_LAYERS * N_LABELS
    with pytest.raises(AssertionError, match="computed again"):
        probe(probed, config=qfl.ProbeConfig(n_train=150, n_test=50, seed=1), progress=False)


def test_a_deleted_part_comes_back_bit_for_bit(probed_copy, monkeypatch):
    """Whatever is computed along with it: here one feature of one step instead of both."""
    step = probed_copy.steps[3]
    before, fits = probe(probed_copy, **QUICK).to_dataframe(), []
    table, part = probed_copy.table("probe"), part_of(step, "carry")
    weights = table.read_tensors(part)
    for file in table.folder.glob(f"*{part}*"):
        file.unlink()
    fit = fitting.fit_probes
    monkeypatch.setattr(fitting, "fit_probes", lambda *a, **k: fits.append(1) or fit(*a, **k))
    after = probe(probed_copy, "carry", step, **QUICK)
    assert fits == [1]
    again = table.read_tensors(part)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    pd.testing.assert_frame_equal(probe(probed_copy, **QUICK).to_dataframe(), before, check_exact=True)
    assert after.to_dataframe()["step"].max() == step


def test_mistakes_are_named(probed):
    with pytest.raises(qfl.QflError, match=r"no feature of addition is named 'cary'. Did you mean 'carry'"):
        probe(probed, "cary", **QUICK)
    with pytest.raises(qfl.QflError, match=f"was not saved. The nearest saved step is {probed.steps[-1]}"):
        probe(probed, "carry", 39, **QUICK)
    with pytest.raises(ValueError, match="n_trials must be at least 1, got 0"):
        ablate(probed, n_trials=0, **QUICK)


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
def test_a_corrupted_part_is_named(probed_copy, suffix):
    """The rows break `probe`, the weights what needs them; the advice given mends it."""
    table, part = probed_copy.table("probe"), part_of(probed_copy.steps[-1], "carry")
    (file,) = table.folder.glob(f"*{part}.{suffix}")
    file.write_bytes(file.read_bytes()[:60])
    lens = probe if suffix == "parquet" else functools.partial(ablate, n_trials=2)
    with pytest.raises(qfl.QflError, match=rf"{file.name} .*corrupted. Delete .*{part}.json and run"):
        lens(probed_copy, "carry", "last", **QUICK)
    (table.folder / f"_{part}.json").unlink()
    assert lens(probed_copy, "carry", "last", **QUICK).to_dataframe()["run_id"].notna().all()


def _one_class(labels):
    labels[:, [0, 1, 4, 5]] = [0, 1, 0, 0]


def _no_class(labels):
    labels[:] = 1


def test_labels_of_one_class_are_reported(run_copy, monkeypatch):
    with_carries(monkeypatch, _one_class)
    found = probe(run_copy, "carry", [0, 40], **QUICK)
    rows = found.to_dataframe()
    scores = ["train_loss", "test_loss", "test_score", "shuffled_test_loss"]
    skipped = rows["label"].isin([0, 1, 4, 5])
    assert (rows["fitted"] != skipped).all()
    assert rows.loc[skipped, scores].isna().all().all()
    assert rows.loc[~skipped, scores].notna().all().all()
    assert rows.loc[skipped, "converged"].all()
    assert set(found.summary["one_class"]) == {4}
    # Two labels are left: of the thirds, the first is empty and has no verdict.
    verdicts = emergence(run_copy, "carry", [1, 3, 40], **QUICK).to_dataframe()
    assert verdicts["third"].tolist() == ["middle", "end", "all"]
    ablated = ablate(run_copy, "carry", n_trials=2, **QUICK).to_dataframe()
    assert ablated["loss"].notna().all()


@pytest.mark.slow
def test_a_feature_without_any_probe_is_said_so(run_copy, monkeypatch):
    with_carries(monkeypatch, _no_class)
    found = probe(run_copy, steps=[0, 40], **QUICK)
    carry = found.summary[found.summary["feature"] == "carry"]
    assert len(carry) == 4
    assert carry["test_loss"].isna().all()
    assert (carry["one_class"] == N_LABELS).all()
    assert len(found.summary) == 8
    for lens in (lambda: ablate(run_copy, n_trials=2, **QUICK), lambda: emergence(run_copy, **QUICK)):
        with pytest.raises(qfl.QflError, match="no probe of 'carry' could be fitted"):
            lens()


# Ablation


def test_ablation_rows(probed, no_work):
    rows = ablate(probed, n_trials=4, **QUICK).to_dataframe()
    assert len(rows) == 15
    assert set(rows["step"]) == {probed.steps[-1]}
    for feature in ("first_operand", "carry", "carry_without_next_token"):
        part = rows[rows["feature"] == feature].set_index("condition")
        assert part.index.tolist() == ["intact", "ablated", "random", "random_feature", "same_norm"]
        assert part["n_trials"].tolist() == [1, 1, 4, 4, 4]
        for name in ("p_value_paired", "p_value_trials", "p_value_holm"):
            assert part[name].notna().tolist() == [False, True, True, True, True]
            assert part.loc["ablated", name] == part.loc["random", name]
            assert 0 < part.loc["ablated", name] <= 1
        assert part.loc["ablated", "p_value_holm"] >= part.loc["ablated", "p_value_paired"]
        for metric in ("loss", "loss_answer", "exact", "exact_answer"):
            assert (part[f"{metric}_low"] <= part[metric]).all()
            assert (part[metric] <= part[f"{metric}_high"]).all()
        assert part["loss"].nunique() == 5  # five different models
    # Both features are scored on the same examples.
    intact = rows[rows["condition"] == "intact"]
    assert intact["loss"].nunique() == 1


def test_intact_row_is_the_models_own_score(probed):
    rows = ablate(probed, n_trials=4, **QUICK).to_dataframe()
    examples = of_probes.probe_data(probed, CONFIG).test
    model = probed.load_model()
    scores = evaluate(lambda tokens, positions, _: model(tokens)[:, positions], probed.task.encode(examples))
    intact = rows[rows["condition"] == "intact"].iloc[0]
    means = scores.means()
    for name in ("loss", "loss_answer", "exact", "exact_answer"):
        assert intact[name] == pytest.approx(means[name], rel=1e-5)
    assert intact["n_examples"] == len(examples)


def test_holm_is_over_the_features_of_a_step():
    rows = pd.DataFrame(
        {
            "step": [1] * 4 + [2] * 2,
            "condition": ["ablated", "random"] * 3,
            "p_value_paired": [0.01, 0.3, 0.04, 0.2, 0.04, 0.5],
        }
    )
    corrected = with_holm(rows)["p_value_holm"]
    # Step 1: 2 * 0.01, then max(0.02, 0.04); step 2 alone stays.
    np.testing.assert_allclose(corrected, [0.02, 0.4, 0.04, 0.4, 0.04, 0.5], rtol=1e-12)


@pytest.mark.parametrize("method", ["project_out", "written"])
def test_ablation_takes_out_what_was_stored(probed_copy, method):
    """A brute-force pass: at each label's layer and position, x moves onto its probe's plane, or to the mean along what
    is written."""
    run, step = probed_copy, probed_copy.steps[-1]
    table, part = run.table("probe"), part_of(step, "carry")
    # The best layer of a tiny run's labels is one and the same: let them take turns.
    stored, rows = table.read_tensors(part), table.read([part])
    best = np.arange(N_LABELS) % N_LAYERS
    rows["train_loss"] = np.where(rows["layer"] == best[rows["label"]], 0.1, 0.2)
    table.write(part, rows, stored)
    shutil.rmtree(run.table("ablate").folder)
    examples = of_probes.probe_data(run, CONFIG).test
    places = run.task.feature("carry").positions(examples)[0]
    model, batch = run.load_model(step), run.task.encode(examples)
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens)
    means = [cache["resid_post", layer].mean(dim=0) for layer in range(N_LAYERS)]

    def taken_out(layer):
        def hook(x, hook):
            for label in range(N_LABELS):
                if best[label] == layer:
                    w, b = stored["weight"][layer, label, 0], stored["intercept"][layer, label, 0]
                    if method == "written":
                        w = stored["mean_shift"][layer, label, 0]
                        b = -w @ means[layer][places[label]]
                    at = x[:, places[label]]
                    x[:, places[label]] = at - ((at @ w + b) / (w @ w))[:, None] * w
            return x

        return hook

    hooks = [(f"blocks.{layer}.hook_resid_post", taken_out(layer)) for layer in range(N_LAYERS)]
    with torch.no_grad():
        scores = evaluate(lambda tokens, span, _: model.run_with_hooks(tokens, fwd_hooks=hooks)[:, span], batch)
    rows = ablate(run, "carry", method=method, n_trials=4, **QUICK).to_dataframe()
    rows = rows[rows["feature"] == "carry"].set_index("condition")
    assert rows.loc["ablated", "loss"] == pytest.approx(scores.loss.mean(), rel=1e-5)
    assert rows.loc["ablated", "exact_answer"] == scores.exact_answer.mean()


# Emergence


def curve_rows(losses, untrained=(0.8, 0.8), n_labels=3):
    """Probe rows of one layer: a test loss a step, the same for every label."""
    rows = []
    sites = [("trained", 0, step, loss) for step, loss in losses.items()]
    sites += [("untrained", seed, 0, loss) for seed, loss in enumerate(untrained, start=1)]
    for source, seed, step, loss in sites:
        for label in range(n_labels):
            rows.append(
                {"feature": "f", "metric": "log_loss", "source": source, "model_seed": seed, "step": step}
                | {"flops": 10.0 * step}
                | {"layer": 0, "head": -1, "label": label, "fitted": True, "train_loss": loss}
                | {"test_loss": loss * (label + 1), "shuffled_test_loss": 0.7}
            )
    return pd.DataFrame(rows)


def test_curve_of_a_synthetic_table():
    curve = emerging.emergence_curve(curve_rows({0: 0.8, 1: 0.4, 2: 0.1}, untrained=(0.7, 0.9)))
    assert curve["third"].tolist() == [t for t in ("beginning", "middle", "end", "all") for _ in range(3)]
    whole = curve[curve["third"] == "all"]
    np.testing.assert_allclose(whole["geometric"], np.array([0.8, 0.4, 0.1]) * 6 ** (1 / 3), rtol=1e-12)
    np.testing.assert_allclose(whole["arithmetic"], [1.6, 0.8, 0.2], rtol=1e-12)
    np.testing.assert_allclose(whole["baseline_geometric"], 0.8 * 6 ** (1 / 3), rtol=1e-12)
    np.testing.assert_allclose(whole["shuffled_geometric"], 0.7, rtol=1e-12)
    np.testing.assert_allclose(curve[curve["third"] == "end"]["geometric"], [2.4, 1.2, 0.3], rtol=1e-12)
    assert whole["n_labels"].tolist() == [3] * 3


def test_the_layer_is_chosen_on_the_training_loss():
    worse = curve_rows({1: 0.5, 2: 0.5})
    better = worse.assign(layer=1, train_loss=0.1, test_loss=0.9)
    curve = emerging.emergence_curve(pd.concat([worse, better]))
    np.testing.assert_allclose(curve["geometric"], 0.9, rtol=1e-12)


def planted_transition(start, end):
    return Transition(
        found=True, reason="planted", start_flops=start, end_flops=end,
        start_bracket=Bracket(start, 1.1 * start), end_bracket=Bracket(0.9 * end, end),
        plateau_start_flops=start / 10, plateau_loss=0.7, final_loss=0.1, complete=True, n_points=9,
    )  # fmt: skip


@pytest.mark.parametrize(("start", "verdict"), [(1000.0, "quiet"), (60.0, "loud")])
def test_verdict_by_the_side_of_the_transition(start, verdict):
    """The loss halves between 100 and 300 FLOPs, in log compute at the crossing of half the baseline."""
    curve = emerging.emergence_curve(curve_rows({0: 0.8, 3: 0.8, 10: 0.8, 30: 0.1, 200: 0.1}))
    part = curve[curve["third"] == "all"]
    found = emerging._verdict(part, planted_transition(start, 4000.0), None, 0.5)
    crossing = 2 + np.log10(3) * (0.8 - 0.4) / (0.8 - 0.1)
    assert found["verdict"] == verdict
    assert np.log10(found["onset_flops"]) == pytest.approx(crossing, rel=1e-12)
    assert found["lead_log10"] == pytest.approx(np.log10(start) - crossing, rel=1e-12)
    assert (found["onset_step_before"], found["onset_step_after"]) == (10, 30)


def test_no_transition_is_said_so(probed):
    found = emergence(probed, n_resamples=50, **QUICK)
    rows = found.to_dataframe()
    assert not rows["transition_found"].any()
    assert "never comes within 1.1 x chance" in repr(found)
    assert rows["third"].tolist() == ["beginning", "middle", "end", "all"] * 2
    assert set(rows["verdict"]) <= {"not learned", "no transition"}
    assert (rows["n_bootstrap"] == 0).all()
    assert set(rows["seed"]) == {3}
    written = probed.table("emergence").read()
    assert written["verdict"].tolist() == rows["verdict"].tolist()
    assert len(probed.table("emergence_curve").read()) == 2 * 4 * len(probed.steps)
    assert len(timeline(probed, **QUICK).data) > 0


@pytest.mark.parametrize("place", ["before", "inside", "after"])
def test_a_transition_outside_the_checkpoints_is_no_crash(probed_copy, monkeypatch, place):
    """Checkpoints may be chosen by hand; without any around its start there is no bootstrap, which shows."""
    steps = [12, 13, 27]
    step = {"before": 5, "inside": 20, "after": 35}[place]
    transition = planted_transition(probed_copy.flops(step), probed_copy.flops(40))
    monkeypatch.setattr(emerging, "loss_transition", lambda *_: transition)
    rows = emergence(probed_copy, "carry", steps, ratio=0.999, n_resamples=50, **QUICK).to_dataframe()
    inside = place == "inside"
    assert (rows["n_bootstrap"] == (50 if inside else 0)).all()
    assert rows["fraction_at_start"].notna().all() == inside
    assert rows["fraction_low"].notna().all() == inside


# Reports


def test_report_of_a_tiny_run(probed, tmp_path, no_work):
    """From stored parts alone."""
    page = report(probed, n_trials=4, out=tmp_path / "page.html", **QUICK)
    text = page.read_text()
    assert page == tmp_path / "page.html"
    assert probed.run_id in text
    for word in ("carry", "first_operand", "never comes within 1.1 x chance"):
        assert word in text


def test_a_repr_is_a_short_table(probed):
    for result in (probe(probed, **QUICK), ablate(probed, n_trials=4, **QUICK), emergence(probed, **QUICK)):
        lines = [line for line in repr(result).splitlines() if not line.startswith("plot() draws")]
        assert len(lines) == len(result.summary) + 2 <= 22
        assert probed.run_id in lines[0]
        assert "carry" in result._repr_html_()
        copied = result.to_dataframe()
        copied["run_id"] = "another"
        assert set(result.to_dataframe()["run_id"]) == {probed.run_id}


def test_probes_see_nothing_the_model_trains_on(tiny_run):
    """Fitted and scored on two splits apart from the training stream and from each other."""
    data = of_probes.probe_data(tiny_run, qfl.ProbeConfig(n_train=60, n_test=60))
    for examples, split in ((data.train, "val"), (data.test, "test")):
        assert in_split(tiny_run.task, examples, split).all()


def test_each_third_is_bootstrapped_on_its_own_labels(probed_copy):
    """Thirds whose stored losses fall at different steps: each point estimate is that third's own lead."""
    run, table = probed_copy, probed_copy.table("probe")
    steps = [step for step in run.steps if step > 0]
    falls = {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3}  # label -> how many checkpoints it stays at chance

    def loss(step, label):
        return 0.6 if step == 0 or steps.index(step) < falls[label] else 0.01

    for step in run.steps:
        part = of_probes.part_name(ModelAt(step), "carry", CONFIG)
        rows, tensors = table.read([part]), table.read_tensors(part)
        values = [loss(step, label) for label in rows["label"]]
        tensors["test_loss"] = torch.tensor([[loss(step, label)] * 50 for label in range(N_LABELS)])
        table.write(part, rows.assign(train_loss=values, test_loss=values), tensors)
    rows = probe(run, "carry", **QUICK).rows
    start = run.flops(steps[-2])
    near = Bracket(start, run.flops(steps[-1]))
    transition = Transition(True, "", start, near.high, near, near, 1.0, 0.6, 0.0, True, 9)
    curve = emerging.emergence_curve(rows.assign(test_loss=rows["test_loss"].where(rows["source"] == "trained", 0.6)))
    leads = []
    for third in ("beginning", "middle", "end"):
        part = curve[curve["third"] == third].reset_index(drop=True)
        bootstrap = emerging._bootstrap(run, rows, part, third, transition, CONFIG, 0.5, 50)
        leads.append(emerging._verdict(part, transition, None, 0.5)["lead_log10"])
        assert bootstrap is not None
        assert bootstrap.lead.estimate == pytest.approx(leads[-1], abs=1e-6)
    assert leads[0] > leads[1] > leads[2]


def _scores(exact: list[bool]) -> ExampleScores:
    """Four examples of one loss."""
    right, loss = np.array(exact), np.full(4, 0.5)
    return ExampleScores(loss, loss, right, right, np.full(4, 3), np.full(4, 2))


def _conditions(ablated, trials):
    return {"intact": [_scores([True] * 4)], "ablated": [_scores(ablated)], "random": trials}


def test_a_feature_that_matters_ranks_below_every_random_trial():
    trials = [_scores([True, True, True, False])] * 9
    harmed = ablation._rows(_conditions([False] * 4, trials), np.random.default_rng(0))
    assert harmed.set_index("condition").loc["ablated", "p_value_trials"] == pytest.approx(1 / 10)
    spared = ablation._rows(_conditions([True] * 4, trials), np.random.default_rng(0))
    assert spared.set_index("condition").loc["ablated", "p_value_trials"] == 1.0


def test_emergence_of_fewer_steps_keeps_the_full_table(probed_copy):
    run = probed_copy
    full = emergence(run, **QUICK).rows
    before = len(run.table("emergence").read())
    few = emergence(run, "carry", run.steps[-4:], **QUICK).rows
    assert len(few) < len(full)
    assert len(run.table("emergence").read()) == before + len(few)
    assert set(few["analysis"]).isdisjoint(full["analysis"])


def test_emergence_again_computes_nothing(probed_copy, monkeypatch):
    first = emergence(probed_copy, **QUICK).rows
    monkeypatch.setattr(emerging, "loss_transition", None)
    pd.testing.assert_frame_equal(emergence(probed_copy, **QUICK).rows, first)
