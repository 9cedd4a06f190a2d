"""Patch, interchange, ablate and ablate_units on a tiny run: their rows against the core and against plain hooks."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.analyses import ablate, ablate_units, interchange, patch, timeline
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.lenses.ablate.lens import Ablate
from qfl_interp.analyses.lenses.patch.figure import patch_figure
from qfl_interp.analyses.lenses.patch.pairs import VARIES
from qfl_interp.analyses.lenses.probe import data as of_probes
from qfl_interp.analyses.lenses.probe.lens import probe
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.data.examples import held_out, held_out_pairs
from qfl_interp.interventions.attribution import attribution_patch
from qfl_interp.interventions.interchange import interchange_scores
from qfl_interp.interventions.pairs import patch_pairs
from qfl_interp.interventions.patching import patch_sweep
from qfl_interp.models.metrics import evaluate
from qfl_interp.runs.checkpoint import save_checkpoint
from qfl_interp.seeding import generator
from qfl_interp.tables import select

CONFIG = qfl.ProbeConfig(n_train=150, n_test=50)
QUIET = {"progress": False}
LABEL = 3


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run for all tests here; each adds tables of settings of its own."""
    path = tmp_path_factory.mktemp("causal") / "run"
    shutil.copytree(tiny_run.path, path)
    return qfl.Run.open(path)


def carry_pairs(run, n, stream):
    """The pairs of the lenses, decided at or after the label's position."""
    pairs = held_out_pairs(run.task, "test", n, "carry", LABEL, seed=0, stream=stream)
    return pairs, run.task.feature("carry").positions(pairs.clean)[:, LABEL]


# Patching


def test_patch_rows_are_those_of_the_sweep(run):
    rows = patch(run, "carry", "last", components=("attn_out", "z"), labels=LABEL, n_pairs=12, **QUIET).to_dataframe()
    drawn, positions = carry_pairs(run, 12, "patch")
    pairs = patch_pairs(run.task, drawn, positions)
    for component, n_places in (("attn_out", 2), ("z", 8)):
        scores = patch_sweep(run.load_model(), pairs, component=component)
        part = rows[rows["component"] == component]
        assert len(part) == n_places * len(scores.positions)
        assert [(p.layer, p.head) for p in scores.places for _ in scores.positions] == list(
            zip(part["layer"], part["head"], strict=True)
        )
        assert part["position"].tolist() == list(scores.positions) * n_places
        for name in ("logit_diff", "loss", "exact"):
            np.testing.assert_allclose(part[name], getattr(scores, name).mean(axis=2).ravel(), rtol=1e-6)
            np.testing.assert_allclose(part[f"{name}_normalised"], scores.normalised(name).ravel(), rtol=1e-6)
        ends = scores.intervals("logit_diff", generator(0, f"patch/bootstrap/carry/{LABEL}/{component}", 40))
        for name, expected in zip(("low", "high"), ends, strict=True):
            np.testing.assert_allclose(part[f"logit_diff_{name}"], expected.ravel(), rtol=1e-6)
        assert part["attribution"].notna().all()
        assert part["attribution_r"].nunique() == 1
    assert (rows["n_pairs"] == 12).all()


def test_heads_are_patched_at_every_position_at_once(run):
    rows = patch(run, "carry", "last", components="heads", labels=LABEL, n_pairs=12, **QUIET).to_dataframe()
    drawn, positions = carry_pairs(run, 12, "patch")
    pairs = patch_pairs(run.task, drawn, positions)
    scores = patch_sweep(run.load_model(), pairs, component="z", positions="all")
    np.testing.assert_allclose(rows["logit_diff"], scores.logit_diff.mean(axis=2).ravel(), rtol=1e-6)
    assert set(rows["position"]) == {-1}
    assert list(zip(rows["layer"], rows["head"], strict=True)) == [(p.layer, p.head) for p in scores.places]
    assert set(rows["token"]) == {VARIES}
    by_position = attribution_patch(run.load_model(), pairs, component="z", integrated=5).normalised()
    np.testing.assert_allclose(rows["attribution"], by_position.sum(axis=1), rtol=1e-6)
    assert "head" in {note.text for note in patch_figure(rows).layout.annotations}


def test_tokens_are_named_where_all_runs_agree(run):
    rows = patch(run, "carry", "last", components="resid_pre", labels=LABEL, n_pairs=12, **QUIET).to_dataframe()
    tokens = rows.drop_duplicates("position").set_index("position")["token"]
    assert tokens[6] == "+"
    assert tokens[13] == "="
    assert tokens[6 + 1 + LABEL] == VARIES


def test_patching_again_computes_nothing(run, monkeypatch):
    first = patch(run, "carry", "last", components="mlp_out", labels=LABEL, n_pairs=8, **QUIET).to_dataframe()
    monkeypatch.setattr(qfl.Run, "load_model", lambda *_args, **_kwargs: pytest.fail("computed again"))
    again = patch(run, "carry", "last", components="mlp_out", labels=LABEL, n_pairs=8, **QUIET).to_dataframe()
    pd.testing.assert_frame_equal(first, again, check_exact=True)


def test_features_whose_pairs_leave_the_answer_alone(run):
    """Swapping two operands' bits changes first_operand and no sum: nothing to patch. Named, it is an error."""
    found = patch(run, None, "last", components="mlp_out", labels=LABEL, n_pairs=8, **QUIET)
    assert set(found.to_dataframe()["feature"]) == {"carry"}
    assert "first_operand" in found.title
    with pytest.raises(ValueError, match="answers that differ"):
        patch(run, "first_operand", "last", components="mlp_out", labels=LABEL, n_pairs=8, **QUIET)


# Interchange


def test_interchange_rows_are_those_of_each_condition(run):
    rows = interchange(run, "carry", "last", config=CONFIG, labels=LABEL, n_pairs=20, n_random=3, **QUIET)
    table = rows.to_dataframe().set_index(["layer", "condition"])
    drawn, _ = carry_pairs(run, 20, "interchange")
    pairs = patch_pairs(run.task, drawn)
    positions = torch.full((20,), 13 + 1 + LABEL)
    stored = run.table("probe").read_tensors(of_probes.part_name(ModelAt(run.steps[-1]), "carry", CONFIG))
    for layer in range(2):
        scores = interchange_scores(
            run.load_model(),
            pairs,
            layer=layer,
            positions=positions,
            directions=stored["weight"][layer, LABEL],
            mean_shift=stored["mean_shift"][layer, LABEL],
            rng=generator(0, f"interchange/carry/{LABEL}/{layer}", run.steps[-1]),
            n_random=3,
        )
        for condition in ("none", "feature", "mean_shift", "whole"):
            row = table.loc[(layer, condition)]
            assert row["flipped"] == getattr(scores, condition).flipped.mean()
            assert row["logit_diff_normalised"] == pytest.approx(scores.normalised(condition), abs=1e-6)
        random = np.stack([swap.flipped for swap in scores.random]).mean()
        assert table.loc[(layer, "random"), "flipped"] == pytest.approx(random)
        assert table.loc[(layer, "feature"), "n_directions"] == 1
    # After the last block the whole activation decides the logits: the corrupted run becomes the clean one.
    assert table.loc[(1, "whole"), "logit_diff_normalised"] == pytest.approx(1)
    assert table["p_value_holm"].notna().sum() == 4


@pytest.mark.parametrize("lens", [interchange, ablate])
def test_sites_with_heads_are_refused(run, lens):
    with pytest.raises(ValueError, match="must have one activation a token, got 'z'"):
        lens(run, "carry", config=qfl.ProbeConfig(site="z"), **QUIET)


# Ablation


def test_conditions_and_tests(run):
    rows = ablate(run, None, "last", config=CONFIG, n_trials=3, **QUIET).to_dataframe()
    for _, part in rows.groupby("feature"):
        table = part.set_index("condition")
        assert list(table.index) == ["intact", "ablated", "random", "random_feature", "same_norm"]
        assert table["n_trials"].tolist() == [1, 1, 3, 3, 3]
        assert table.loc["ablated", "p_value_paired"] == table.loc["random", "p_value_paired"]
        assert table["p_value_holm"].isna().tolist() == [True, False, False, False, False]
    alone = ablate(run, "carry", "last", config=CONFIG, n_trials=3, **QUIET).to_dataframe()
    assert "random_feature" not in set(alone["condition"]), "there is no other feature to take directions of"


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_replacing_the_activation(run, method):
    """By plain hooks at the best layers of the carry's labels."""
    rows = ablate(run, "carry", "last", config=CONFIG, method=method, n_trials=2, **QUIET).to_dataframe()
    table = select(rows, feature="carry").set_index("condition")
    assert list(table.index) == ["intact", "ablated", "same_norm"]
    probed = probe(run, "carry", "last", config=CONFIG, n_untrained=0, **QUIET).to_dataframe()
    best = probed.loc[probed.groupby("label")["train_loss"].idxmin()].set_index("label")["layer"]
    examples = of_probes.probe_data(run, CONFIG).test
    batch, positions = run.task.encode(examples), run.task.feature("carry").positions(examples)[0]
    model = run.load_model()
    _, cache = model.run_with_cache(batch.tokens)

    def replaced(layer):
        def hook(x, hook):
            for label in range(6):
                if best[label] == layer:
                    at = positions[label]
                    x[:, at] = 0 if method == "zero" else cache["resid_post", layer][:, at].mean(0)
            return x

        return hook

    hooks = [(f"blocks.{layer}.hook_resid_post", replaced(layer)) for layer in range(2)]
    with torch.no_grad():
        scores = evaluate(lambda tokens, span, _: model.run_with_hooks(tokens, fwd_hooks=hooks)[:, span], batch)
    assert table.loc["ablated", "loss"] == pytest.approx(scores.loss.mean(), rel=1e-5)


@pytest.mark.slow
def test_strength_layers_and_pooling(run):
    """Strength 0 changes nothing; more layers and a pooled probe change something else each."""
    losses = {}
    for name, kwargs in {
        "none": {"epsilon": 0.0},
        "half": {"epsilon": 0.5},
        "one": {},
        "probe": {"method": "project_out"},
        "two": {"top_k": 2},
        "pooled": {"config": qfl.ProbeConfig(n_train=150, n_test=50, pooled=True), "method": "project_out"},
    }.items():
        found = ablate(run, "carry", "last", n_trials=1, **{"config": CONFIG, **kwargs}, **QUIET)
        losses[name] = select(found.to_dataframe(), feature="carry").set_index("condition")["loss"]
    assert losses["none"]["ablated"] == pytest.approx(losses["none"]["intact"], rel=1e-6)
    values = [losses[name]["ablated"] for name in losses]
    assert len({round(float(v), 7) for v in values}) == 6


def test_every_head_is_ablated_on_its_own(run):
    rows = ablate_units(run, "last", n=40, method="zero", **QUIET).to_dataframe()
    assert list(zip(rows["layer"], rows["unit"], strict=True)) == [(k, h) for k in range(2) for h in range(4)]
    batch = run.task.encode(held_out(run.task, "test", 40, seed=0, stream="units"))
    model = run.load_model()

    def without_head(z, hook):
        z[:, :, 2] = 0
        return z

    def forward(tokens, span, _rows):
        return model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", without_head)])[:, span]

    with torch.no_grad():
        scores = evaluate(forward, batch)
        intact = evaluate(lambda tokens, span, _: model(tokens)[:, span], batch)
    row = rows[(rows["layer"] == 1) & (rows["unit"] == 2)].iloc[0]
    assert row["loss_answer"] == pytest.approx(scores.loss_answer.mean(), rel=1e-5)
    assert row["loss_increase"] == pytest.approx((scores.loss_answer - intact.loss_answer).mean(), abs=1e-6)
    assert row["loss_increase_low"] <= row["loss_increase"] <= row["loss_increase_high"]
    assert rows["intact_loss_answer"].iloc[0] == pytest.approx(intact.loss_answer.mean(), rel=1e-5)


# Timeline


@pytest.mark.slow
def test_the_timeline_shows_every_lens_that_exists(run):
    def titles():
        figure = timeline(run, "carry", config=CONFIG, **QUIET)
        return " ".join(a.text for a in figure.layout.annotations if a.text)

    shutil.rmtree(run.table("ablate").folder, ignore_errors=True)
    before = titles()
    ablate(run, "carry", run.steps[-2:], config=CONFIG, n_trials=2, **QUIET)
    ablate(run, "carry", "last", config=CONFIG, n_trials=3, **QUIET)  # another call's settings are not mixed in
    patch(run, "carry", run.steps[-2:], components="resid_pre", labels=LABEL, n_pairs=8, **QUIET)
    interchange(run, "carry", run.steps[-2:], config=CONFIG, labels=LABEL, n_pairs=8, n_random=2, **QUIET)
    after = titles()
    assert "Swapping" in after
    assert len(after) > len(before)
    assert all(word in after for word in ("blat", "atch"))


def test_ablating_some_labels_leaves_the_others(run):
    """Labels named one by one are those of the whole, and the two sets are told apart in the table."""
    kwargs = {"config": CONFIG, "n_trials": 1, **QUIET}
    every = ablate(run, "carry", labels=range(6), **kwargs).to_dataframe().set_index("condition")
    default = select(ablate(run, "carry", **kwargs).to_dataframe(), feature="carry").set_index("condition")
    one = ablate(run, "carry", labels=2, **kwargs).to_dataframe().set_index("condition")
    assert every.loc["ablated", "loss"] == default.loc["ablated", "loss"]
    assert one.loc["ablated", "loss"] not in (default.loc["ablated", "loss"], one.loc["intact", "loss"])
    assert (one["labels"].iloc[0], default["labels"].iloc[0]) == ("2", "all")
    assert one.loc["random", "difference"] == one.loc["ablated", "exact_answer"] - one.loc["random", "exact_answer"]
    with pytest.raises(ValueError, match=r"labels of 'carry' must lie in \[0, 6\), got 6"):
        ablate(run, "carry", labels=6, **kwargs)
    with pytest.raises(ValueError, match=r"epsilon must lie in \[0, 1\], got -3"):
        ablate(run, "carry", epsilon=-3.0, **kwargs)
    with pytest.raises(ValueError, match="n_pairs and n_random must be at least 1, got 8 and 0"):
        interchange(run, "carry", config=CONFIG, n_pairs=8, n_random=0, **QUIET)


def test_a_checkpoint_that_tells_nothing_apart_leaves_the_others(run_copy):
    """An unembedding of zeros, as some models start with: NaN at that step, said, and the rest stands."""
    first = run_copy.steps[0]
    state = run_copy.load_checkpoint(first)
    weights = dict(state.model)
    weights["unembed.W_U"] = torch.zeros_like(weights["unembed.W_U"])
    save_checkpoint(run_copy.path / "checkpoints", state._replace(model=weights))
    result = patch(run_copy, "carry", "all", components="resid_pre", n_pairs=6, **QUIET)
    rows = result.to_dataframe()
    assert set(rows["step"]) == set(run_copy.steps)
    blind = rows["step"] == first
    assert rows.loc[blind, ["logit_diff_normalised", "attribution", "attribution_r"]].isna().all(axis=None)
    assert (rows.loc[blind, "attribution_n"] == 0).all()
    assert rows.loc[~blind, "logit_diff_normalised"].notna().all()
    assert (rows.loc[~blind, "attribution_n"] > 0).all()
    assert f"no value at step {first}: clean and corrupted runs answer alike there" in repr(result)
    assert len(result.plot().data)


def test_labels_that_the_next_token_gives_away_are_named_and_left_out_once(run_copy):
    """The last carry of a sum is the sum's last bit: rows with it and without, and the title says so."""
    how = {"config": CONFIG, "n_trials": 2, **QUIET}
    result = ablate(run_copy, ["carry", "first_operand"], **how)
    rows = result.to_dataframe().set_index(["feature", "condition"])
    assert list(dict.fromkeys(rows.index.get_level_values("feature"))) == [
        "carry", "carry_without_next_token", "first_operand",
    ]  # fmt: skip
    last = run_copy.task.features["carry"].n_labels - 1
    assert f"given away by the very next token: carry label {last}" in repr(result)
    assert set(rows.loc["carry", "labels"]) == {"all"}
    assert set(rows.loc["carry_without_next_token", "labels"]) == {",".join(map(str, range(last)))}
    by_hand = ablate(run_copy, ["carry", "first_operand"], labels=range(last), **how).to_dataframe()
    alone = by_hand.set_index(["feature", "condition"])
    assert rows.loc[("carry_without_next_token", "ablated"), "loss"] == alone.loc[("carry", "ablated"), "loss"]
    assert not set(alone.index.get_level_values("feature")) - {"carry", "first_operand"}, "labels that were named"
    page = Page(run_copy, ("carry",), config=CONFIG)
    assert set(Ablate.stored(page)["feature"]) == {"carry", "carry_without_next_token"}


def test_a_table_of_before_is_shown_as_it_is(run_copy):
    """Patched by a version that did not count what attributions rest on."""
    how = {"components": "resid_pre", "n_pairs": 6, **QUIET}
    patch(run_copy, "carry", "last", **how)
    table = run_copy.table("patch")
    (part,) = table.parts()
    table.write(part, table.read([part]).drop(columns="attribution_n"))
    assert "attribution_r" in repr(patch(run_copy, "carry", "last", **how))
