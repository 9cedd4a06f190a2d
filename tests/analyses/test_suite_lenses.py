"""Every lens on three saved steps of a tiny GPT-NeoX, against plain PyTorch hooks on the Hugging Face modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import qfl_interp as qfl
from qfl_interp.analyses import (
    ablate,
    ablate_units,
    capture,
    emergence,
    interchange,
    mdl,
    patch,
    probe,
    timeline,
    transfer,
    validate,
)
from qfl_interp.analyses.lenses.probe.data import part_name, probe_data, store_key
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.analyses.registered import lenses
from qfl_interp.data.examples import held_out, held_out_pairs
from qfl_interp.models.hugging_face import quiet
from qfl_interp.plots.axes import STEPS as STEPS_AXIS
from qfl_interp.probes import shuffle_labels
from qfl_interp.probes.feature_data import labels_of
from qfl_interp.seeding import generator
from tests.helpers_suite import D_MODEL, N_HEADS, neox_config, save_tiny_neox, tiny_text_task

STEPS = (0, 10, 100)
SIZES = {"n_train": 100, "n_test": 60}
CONFIG, BY_HEAD = qfl.ProbeConfig(**SIZES), qfl.ProbeConfig(site="z", **SIZES)
QUIET = {"progress": False}
D_HEAD = D_MODEL // N_HEADS
# Tokens of the task: the sum at 8 and the end at 9 are the answer, predicted at 7 and 8.
EQUALS, SUM = 7, 8
COMPONENTS = ("resid_pre", "attn_out", "mlp_out", "z")
# The exact optimum, where scikit-learn's default stop would be off by more than the tests allow.
EXACT = {"C": 100, "tol": 1e-10, "max_iter": 10_000, "solver": "newton-cholesky"}

# Both layers: what is changed behind the last block alone never reaches the answer, which is read at later tokens.
REMOVE = {"config": CONFIG, "top_k": 2, "n_trials": 2, **QUIET}


def replace_by(suite, method):
    return ablate(suite, "odd", "all", method=method, **REMOVE)


CALLS: dict[str, Callable] = {
    "capture": lambda s: capture(s, ["resid_post", "z"], "all", n=100, n_test=60, **QUIET),
    "probe": lambda s: probe(s, None, "all", config=CONFIG, **QUIET),
    "probe z": lambda s: probe(s, None, "all", config=BY_HEAD, n_untrained=1, **QUIET),
    "transfer": lambda s: transfer(s, None, "all", config=CONFIG, **QUIET),
    "mdl": lambda s: mdl(s, "odd", "all", config=CONFIG, **QUIET),
    "patch": lambda s: patch(s, "second", "all", components=COMPONENTS, labels=0, n_pairs=12, **QUIET),
    "interchange": lambda s: interchange(s, "odd", "all", config=CONFIG, labels=1, n_pairs=12, n_random=2, **QUIET),
    "ablate": lambda s: ablate(s, ["odd", "second"], "all", method="project_out", **REMOVE),
    "ablate zero": lambda s: replace_by(s, "zero"),
    "ablate mean": lambda s: replace_by(s, "mean"),
    "ablate resample": lambda s: replace_by(s, "resample"),
    "ablate_units": lambda s: ablate_units(s, "all", n=40, method="zero", **QUIET),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_neox(tmp_path_factory.mktemp("lenses") / "tiny", STEPS)


@pytest.fixture(scope="module")
def suite(folder):
    return qfl.Suite.open(folder, tiny_text_task(), tokens_per_step=1000)


@pytest.fixture(scope="module")
def results(suite):
    """What each call gives, computed once; a function of the call's name."""
    found = {}
    return lambda name: found[name] if name in found else found.setdefault(name, CALLS[name](suite))


def rows_at(result, *columns):
    return result.to_dataframe().set_index(list(columns)).sort_index()


# Plain PyTorch


@pytest.fixture(scope="module")
def plain(folder):
    """The Hugging Face model of each step, on its own."""
    with quiet():
        return {
            step: AutoModelForCausalLM.from_pretrained(folder / f"step{step}", attn_implementation="eager").eval()
            for step in STEPS
        }


@contextmanager
def changing(model, layer, name, change):
    """`change` applied to the activation at a site; z is [batch, pos, head, d_head]."""
    block = model.gpt_neox.layers[layer]

    def on_in(_module, args, kwargs):
        given = args[0] if args else kwargs.pop("hidden_states")
        by_head = given.view(*given.shape[:2], N_HEADS, D_HEAD) if name == "z" else given
        return (change(by_head).reshape(given.shape), *args[1:]), kwargs

    def on_out(_module, _args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    if name in ("resid_pre", "z"):
        module = block if name == "resid_pre" else block.attention.dense
        handle = module.register_forward_pre_hook(on_in, with_kwargs=True)
    else:
        module = {"resid_post": block, "attn_out": block.attention, "mlp_out": block.mlp}[name]
        handle = module.register_forward_hook(on_out)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def read(model, tokens, layer, name):
    seen = []
    with changing(model, layer, name, lambda x: seen.append(x.clone()) or x):
        model(tokens)
    return seen[0]


@torch.no_grad()
def logits_under(model, tokens, layer, name, change):
    with changing(model, layer, name, change):
        return model(tokens).logits


def loss_answer(logits, tokens):
    """Mean over the sum and the end, then over examples."""
    return float(cross_entropy(logits[:, EQUALS : SUM + 1].transpose(1, 2), tokens[:, SUM : SUM + 2]))


def labelled(model, task, examples, feature, label, layer, head=None):
    """Activations and labels of one label, as scikit-learn wants them."""
    x = read(model, task.encode(examples).tokens, layer, "resid_post" if head is None else "z")
    wanted = task.feature(feature)
    at = wanted.positions(examples)[:, label]
    x = x[np.arange(len(examples)), at] if head is None else x[np.arange(len(examples)), at, head]
    return x.double().numpy(), wanted.labels(examples)[:, label]


# Reading


@pytest.mark.slow
def test_stored_activations_are_those_of_the_modules(suite, results, plain):
    rows = results("capture").to_dataframe()
    assert set(rows["step"]) == set(STEPS)
    store, examples = qfl.ActivationStore(suite.path / "activations"), probe_data(suite, CONFIG).test
    tokens = suite.task.encode(examples).tokens
    for step in STEPS:
        key = store_key(suite, step, "test", examples, CONFIG)
        spans = store.spans(key, lambda: pytest.fail("not stored"), tokens, 3, 6, names=["resid_post", "z"])
        for layer in range(2):
            expected = read(plain[step], tokens, layer, "resid_post")[:, 3:7].transpose(0, 1)
            torch.testing.assert_close(spans["resid_post"].values[layer], expected, rtol=1e-6, atol=1e-6)
            z = read(plain[step], tokens, layer, "z")[:, 3:7].permute(2, 1, 0, 3)
            torch.testing.assert_close(spans["z"].values[2 * layer : 2 * layer + 2], z, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("probe", None), ("probe z", 1)])
@pytest.mark.parametrize("feature", ["odd", "second"])
def test_probes_against_scikit_learn(suite, results, plain, name, head, feature):
    """Trained steps, an untrained model and the majority, binary and categorical, residual stream and heads."""
    columns = ("feature", "source", "model_seed", "step", "layer", "head", "label")
    rows = rows_at(results(name), *columns)
    data, layer, label = probe_data(suite, CONFIG), 1, 1
    with quiet():
        torch.manual_seed(suite.untrained_seed(0))
        untrained = AutoModelForCausalLM.from_config(neox_config(), attn_implementation="eager").eval()
    every = torch.ones(2, len(data.train), dtype=torch.bool)
    rng = generator(CONFIG.seed, f"probe/shuffle/{feature}")
    shuffled = shuffle_labels(labels_of(suite.task.feature(feature), data.train), rng, every)[0, label].numpy()
    models = {("trained", 0, step): plain[step] for step in STEPS}
    models["untrained", suite.untrained_seed(0), 0] = untrained
    for at, model in models.items():
        row = rows.loc[(feature, *at, layer, -1 if head is None else head, label)]
        (x, y), (x_test, y_test) = (
            labelled(model, suite.task, part, feature, label, layer, head) for part in (data.train, data.test)
        )
        fitted = LogisticRegression(**EXACT).fit(x, y)
        assert row["test_loss"] == pytest.approx(log_loss(y_test, fitted.predict_proba(x_test)), rel=2e-3)
        assert row["test_score"] == fitted.score(x_test, y_test)
        rates = np.bincount(y) / len(y)
        assert row["majority_test_loss"] == pytest.approx(-np.log(rates[y_test]).mean())
        assert row["selectivity"] == pytest.approx(row["test_score"] - row["shuffled_test_score"])
        control = LogisticRegression(**EXACT).fit(x, shuffled)
        assert row["shuffled_test_score"] == control.score(x_test, y_test)
    seeds = rows.loc[(feature, "untrained")].index.get_level_values("model_seed").unique()
    assert sorted(seeds) == sorted(suite.untrained_seed(i) for i in range(2 if head is None else 1))


def test_transfer_scores_one_steps_probes_at_another(suite, results, plain):
    rows = rows_at(results("transfer"), "feature", "fit_step", "eval_step")
    probed = rows_at(results("probe"), "feature", "source", "step", "label")
    data = probe_data(suite, CONFIG)
    for feature in ("odd", "second"):
        for fit_step, eval_step in ((0, 100), (100, 10)):
            losses = []
            for label in range(2):
                there = probed.loc[(feature, "trained", fit_step, label)]
                layer = int(there["layer"].iloc[there["train_loss"].argmin()])
                x, y = labelled(plain[fit_step], suite.task, data.train, feature, label, layer)
                x_test, y_test = labelled(plain[eval_step], suite.task, data.test, feature, label, layer)
                chances = LogisticRegression(**EXACT).fit(x, y).predict_log_proba(x_test)
                losses.append(-chances[np.arange(len(y_test)), y_test].mean())
            assert rows.loc[(feature, fit_step, eval_step), "test_loss"] == pytest.approx(np.mean(losses), rel=5e-3)
    for step in STEPS:
        own = rows.loc[("odd", step, step)]
        assert own["test_loss"] == own["refit_loss"]
        assert own["cosine"] == pytest.approx(1)


def test_description_length_by_scikit_learn(suite, results, plain):
    rows = rows_at(results("mdl"), "source", "step", "layer", "label")
    examples, label = probe_data(suite, CONFIG).train, 1
    assert len(examples) == 100
    ends = [1, 2, 4, 7, 13, 25, 50, 100]
    for step in STEPS:
        x, y = labelled(plain[step], suite.task, examples, "odd", label, 1)
        bits = float(ends[0])
        for start, stop in itertools.pairwise(ends):
            seen = np.unique(y[:start])
            chance = np.zeros((stop - start, 2))
            if len(seen) == 1:
                chance[:, seen[0]] = 1
            else:
                chance = LogisticRegression(**EXACT).fit(x[:start], y[:start]).predict_proba(x[start:stop])
            sent = chance[np.arange(stop - start), y[start:stop]]
            bits -= np.log2((start * sent + 1) / (start + 2)).sum()
        row = rows.loc[("trained", step, 1, label)]
        assert row["uniform_bits"] == len(examples)
        assert row["codelength_bits"] == pytest.approx(bits, rel=1e-3)
        assert row["compression"] == pytest.approx(len(examples) / bits, rel=1e-3)


# Writing


def pairs_of(task, feature, label, stream):
    """Tokens of the clean and the corrupted rows of the pairs whose sums differ."""
    drawn = held_out_pairs(task, "test", 12, feature, label, seed=0, stream=stream)
    clean, corrupted = (task.encode(examples).tokens for examples in drawn)
    kept = clean[:, SUM] != corrupted[:, SUM]
    assert 0 < int(kept.sum())
    return clean[kept], corrupted[kept]


def difference(logits, clean, corrupted):
    """Logit of the clean sum less that of the corrupted one, a mean over pairs."""
    rows = torch.arange(len(clean))
    at = logits[:, EQUALS].double()
    return float((at[rows, clean[:, SUM]] - at[rows, corrupted[:, SUM]]).mean())


@pytest.mark.parametrize("component", COMPONENTS)
def test_patches_are_those_of_the_modules(suite, results, plain, component):
    rows = rows_at(results("patch"), "component", "step", "layer", "head", "position")
    clean, corrupted = pairs_of(suite.task, "second", 0, "patch")
    forced = torch.cat([corrupted[:, : EQUALS + 1], clean[:, EQUALS + 1 :]], dim=1)
    head = 1 if component == "z" else -1
    for step in STEPS:
        model = plain[step]
        with torch.no_grad():
            high, low = (difference(model(tokens).logits, clean, corrupted) for tokens in (clean, forced))
        for layer, position in ((0, 4), (1, EQUALS)):
            source = read(model, clean, layer, component)

            def patched(x, source=source, position=position):
                x = x.clone()
                if head < 0:
                    x[:, position] = source[:, position]
                else:
                    x[:, position, head] = source[:, position, head]
                return x

            logits = logits_under(model, forced, layer, component, patched)
            row = rows.loc[(component, step, layer, head, position)]
            found = difference(logits, clean, corrupted)
            assert row["n_pairs"] == len(clean)
            assert row["logit_diff"] == pytest.approx(found, rel=1e-4, abs=1e-5)
            assert row["logit_diff_normalised"] == pytest.approx((found - low) / (high - low), rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_interchange_is_that_of_the_modules(suite, results, plain):
    """The whole activation and the probe's direction, swapped by hand where the second number of a pair is read."""
    rows = rows_at(results("interchange"), "step", "layer", "condition")
    clean, corrupted = pairs_of(suite.task, "odd", 1, "interchange")
    for step in STEPS:
        model = plain[step]
        stored = suite.table("probe").read_tensors(part_name(ModelAt(step), "odd", CONFIG))
        with torch.no_grad():
            high, low = (difference(model(tokens).logits, clean, corrupted) for tokens in (clean, corrupted))
        for layer in range(2):
            source = read(model, clean, layer, "resid_post")
            w = stored["weight"][layer, 1].flatten().float()

            def whole(x, source=source):
                x = x.clone()
                x[:, 5] = source[:, 5]
                return x

            def along(x, source=source, w=w):
                x = x.clone()
                x[:, 5] += ((source[:, 5] - x[:, 5]) @ w / w.square().sum())[:, None] * w
                return x

            for condition, change in (("whole", whole), ("feature", along)):
                logits = logits_under(model, corrupted, layer, "resid_post", change)
                row = rows.loc[(step, layer, condition)]
                found = (difference(logits, clean, corrupted) - low) / (high - low)
                assert row["logit_diff_normalised"] == pytest.approx(found, rel=1e-3, abs=1e-4)
                assert row["flipped"] == (logits[:, EQUALS].argmax(dim=1) == clean[:, SUM]).double().mean()
    assert set(rows.index.get_level_values("condition")) >= {"none", "feature", "random", "whole"}


def ablated_by_hand(suite, model, change):
    """The answer's loss with `change(x, layer, label)` applied at 3 and 5 after both blocks."""
    tokens = suite.task.encode(probe_data(suite, CONFIG).test).tokens

    def at(layer):
        def changed(x):
            x = x.clone()
            for label, position in enumerate((3, 5)):
                x[:, position] = change(x[:, position], layer, label)
            return x

        return changed

    with torch.no_grad(), changing(model, 0, "resid_post", at(0)), changing(model, 1, "resid_post", at(1)):
        return loss_answer(model(tokens).logits, tokens)


@pytest.mark.slow
def test_projecting_out_is_that_of_the_modules(suite, results, plain):
    rows = rows_at(results("ablate"), "feature", "step", "condition")
    tokens = suite.task.encode(probe_data(suite, CONFIG).test).tokens
    for step in STEPS:
        conditions = set(rows.loc[("odd", step)].index)
        assert conditions == {"intact", "ablated", "random", "random_feature", "same_norm"}
        stored = suite.table("probe").read_tensors(part_name(ModelAt(step), "odd", CONFIG))

        def onto_plane(x, layer, label, stored=stored):
            w, b = stored["weight"][layer, label].flatten().float(), stored["intercept"][layer, label].flatten().float()
            return x - ((x @ w + b) / w.square().sum())[:, None] * w

        with torch.no_grad():
            intact = loss_answer(plain[step](tokens).logits, tokens)
        assert rows.loc[("odd", step, "intact"), "loss_answer"] == pytest.approx(intact, rel=1e-5)
        found = rows.loc[("odd", step, "ablated"), "loss_answer"]
        expected = ablated_by_hand(suite, plain[step], onto_plane)
        assert abs(expected - intact) > 1e-6, "or the test could not tell"
        assert found - intact == pytest.approx(expected - intact, abs=2e-6, rel=1e-2)
    assert {"intact", "ablated", "random", "same_norm"} <= set(rows.loc[("second", 10)].index)


@pytest.mark.slow
def test_replacing_the_activation_is_that_of_the_modules(suite, results, plain):
    for step in STEPS:
        losses = {}
        for method in ("zero", "mean", "resample"):
            rows = rows_at(results(f"ablate {method}"), "step", "condition")
            assert set(rows.loc[step].index) == {"intact", "ablated", "same_norm"}
            losses[method] = rows.loc[(step, "ablated"), "loss_answer"]
            losses["intact"] = rows.loc[(step, "intact"), "loss_answer"]
        zeroed = ablated_by_hand(suite, plain[step], lambda x, *_: torch.zeros_like(x))
        averaged = ablated_by_hand(suite, plain[step], lambda x, *_: x.mean(0, keepdim=True))
        assert losses["zero"] == pytest.approx(zeroed, rel=1e-5)
        assert losses["mean"] == pytest.approx(averaged, rel=1e-4)
        assert len({round(float(loss), 6) for loss in losses.values()}) == 4


def test_ablated_heads_are_those_of_the_modules(suite, results, plain):
    rows = rows_at(results("ablate_units"), "step", "layer", "unit")
    tokens = suite.task.encode(held_out(suite.task, "test", 40, seed=0, stream="units")).tokens
    assert len(rows) == len(STEPS) * 2 * N_HEADS
    for step in STEPS:
        for layer, unit in ((0, 1), (1, 0)):

            def without(z, unit=unit):
                z = z.clone()
                z[:, :, unit] = 0
                return z

            logits = logits_under(plain[step], tokens, layer, "z", without)
            assert rows.loc[(step, layer, unit), "loss_answer"] == pytest.approx(loss_answer(logits, tokens), rel=1e-5)


# What all lenses share


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_computes_nothing(suite, results, monkeypatch, name):
    first = results(name).to_dataframe()
    for method in ("load_model", "untrained_model"):
        monkeypatch.setattr(qfl.Suite, method, lambda *_args, **_kwargs: pytest.fail("computed again"))
    again = CALLS[name](suite)
    pd.testing.assert_frame_equal(again.to_dataframe(), first, check_exact=True)
    assert set(first["step"]) >= set(STEPS) if "step" in first else set(first["eval_step"]) == set(STEPS)
    assert set(first["run_id"]) == {suite.run_id}
    assert again.plot().data
    if name != "capture":
        assert any((suite.path / "analyses" / name.split()[0]).iterdir())
        compute = first.drop_duplicates("step").set_index("step")["flops"] if "flops" in first else {}
        assert all(compute[step] == suite.flops(step) for step in STEPS if len(compute))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda s, c: capture(s, "resid_mid", n=20, n_test=10, **QUIET), id="capture"),
        pytest.param(lambda s, c: probe(s, "odd", config=c, **QUIET), id="probe"),
        pytest.param(lambda s, c: transfer(s, "odd", config=c, **QUIET), id="transfer"),
        pytest.param(lambda s, c: mdl(s, "odd", config=c, **QUIET), id="mdl"),
        pytest.param(lambda s, c: patch(s, "odd", components="resid_mid", **QUIET), id="patch"),
        pytest.param(lambda s, c: interchange(s, "odd", config=c, **QUIET), id="interchange"),
        pytest.param(lambda s, c: ablate(s, "odd", config=c, **QUIET), id="ablate"),
        pytest.param(lambda s, c: ablate_units(s, site="resid_mid", n=20, **QUIET), id="ablate_units"),
    ],
)
def test_a_hook_point_that_the_blocks_lack_says_why(suite, call):
    with pytest.raises(qfl.QflError, match=r"blocks.0.hook_resid_mid.*attention and MLP side by side"):
        call(suite, qfl.ProbeConfig(site="resid_mid", **SIZES))


def test_the_loss_of_a_checkpoint_is_the_plain_models(suite, plain):
    found = validate(suite, **QUIET).to_dataframe().set_index("step")
    batch = suite.task.encode(held_out(suite.task, "val", 1000, seed=0, stream="validation"))
    for step, model in plain.items():
        with torch.no_grad():
            logits = model(batch.tokens).logits[:, EQUALS - 1 : -1]
        wanted = batch.tokens[:, EQUALS:]
        losses = cross_entropy(logits.flatten(0, 1).double(), wanted.flatten(), reduction="none").view(wanted.shape)
        right = logits.argmax(dim=-1) == wanted
        said = {
            "val_loss": losses.mean(), "val_loss_answer": losses[:, 1:].mean(),
            "val_exact": right.all(dim=1).double().mean(), "val_exact_answer": right[:, 1:].all(dim=1).double().mean(),
            "val_pass": torch.exp(-losses.sum(dim=1)).mean(),
        }  # fmt: skip
        for name, value in said.items():
            assert found.loc[step, name] == pytest.approx(float(value), rel=1e-5), name
    assert (found["n_val"] == len(batch.tokens)).all()


def test_the_timeline_of_a_suite_is_over_its_flops(suite, results):
    results("probe"), results("patch")
    figure = timeline(suite, "odd", config=CONFIG, **QUIET)
    assert figure.layout.xaxis.title.text == "training compute (FLOPs, nominal)"
    loss = next(trace for trace in figure.data if trace.name == "over the answer alone")
    assert list(loss.x) == [suite.flops(step) for step in STEPS[1:]]
    found = emergence(suite, "odd", config=CONFIG, n_resamples=10, **QUIET)
    assert set(found.rows["verdict"]) == {"no transition"}
    assert "2 checkpoints after step 0, and a transition needs at least 3" in repr(found)


@pytest.mark.parametrize("name", ["probe", "patch", "mdl", "ablate", "interchange", "ablate_units"])
def test_panels_of_every_lens_are_over_steps_where_nothing_else_is_known(results, name):
    """What a figure says it is drawn over is what it is drawn over."""
    rows = results(name).to_dataframe().assign(flops=np.nan)
    (lens,) = [lens for lens in lenses() if lens.name == name]
    for panel in lens.panels_of(rows):
        assert panel.axis is STEPS_AXIS
        assert {float(x) for trace in panel.traces for x in trace.x} <= {float(step) for step in STEPS[1:]}


def test_figures_without_compute_are_over_steps(folder, results, tmp_path):
    """Without the tokens of a step tables hold no FLOPs; given later, they are other tables."""
    suite = qfl.Suite.open(folder, tiny_text_task(), out=tmp_path)
    described = mdl(suite, "odd", "all", config=CONFIG, n_untrained=0, **QUIET)
    assert described.to_dataframe()["flops"].isna().all()
    figure = described.plot()
    assert figure.layout.xaxis.title.text == "training step"
    assert list(figure.data[1].x) == list(STEPS[1:])
    known = qfl.Suite.open(folder, tiny_text_task(), out=tmp_path, tokens_per_step=1000)
    assert known.path != suite.path
    assert min(results("mdl").plot().data[1].x) == known.flops(10)


def test_untrained_models_load_without_a_word(suite, capfd):
    ModelAt(0, 0).load(suite, "cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_processes_give_the_same_rows(folder, results, tmp_path):
    suite = qfl.Suite.open(folder, tiny_text_task(), out=tmp_path, tokens_per_step=1000)
    several = probe(suite, "odd", (0, 10), config=CONFIG, n_untrained=0, jobs=2, **QUIET).to_dataframe()
    alone = results("probe").to_dataframe().query("feature == 'odd' and source == 'trained' and step < 100")
    pd.testing.assert_frame_equal(several, alone.reset_index(drop=True), check_exact=True)
    assert suite.run_id == alone["run_id"].iloc[0]


def test_processes_need_a_task_that_others_can_open(folder, tmp_path):
    class Mine(type(qfl.load_task("addition", length=3))):
        """A task that no other process can find."""

    suite = qfl.Suite.open(folder, Mine(3), out=tmp_path)
    with pytest.raises(qfl.QflError, match=r"an argument cannot go to another process: .*Mine.*work in one process"):
        probe(suite, "carry", "all", config=CONFIG, n_untrained=0, jobs=2, **QUIET)
