"""Predictions and attention patterns are those of the model at the step, against the model itself."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.analyses.view import models
from qfl_interp.analyses.view.attention import attention_figure
from qfl_interp.analyses.view.model_views import attention, model_views, predictions
from qfl_interp.analyses.view.panels import draw, table, view
from qfl_interp.analyses.view.predictions import predictions_figure
from qfl_interp.runs.run import Run

EXAMPLE = 3
HOSTILE = "<img src=x onerror=alert(1)></script>"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(models, "_MODELS", type(models._MODELS)())
    monkeypatch.setattr(models, "_EXAMPLES", type(models._EXAMPLES)())


def test_predictions_are_the_models_logits(tiny_run):
    step, batch = tiny_run.steps[3], models.examples_of(tiny_run)
    rows = predictions(tiny_run, step, EXAMPLE)
    tokens, n = batch.tokens[EXAMPLE], len(rows)
    logits = tiny_run.load_model(step)(tokens[None])[0].double()
    logs = logits.log_softmax(dim=-1)[: n - 1]
    best = logs.argmax(dim=-1)
    assert rows["token"].tolist() == tiny_run.task.str_tokens(tokens[:n])
    assert rows["predicted"].tolist() == ["", *tiny_run.task.str_tokens(best)]
    behind = rows.iloc[1:]
    np.testing.assert_allclose(behind["loss"], -logs[range(n - 1), tokens[1:n]].detach(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(behind["probability"], logs.max(dim=-1).values.exp().detach(), rtol=1e-9)
    np.testing.assert_allclose(behind["probability_true"], np.exp(-behind["loss"]), rtol=1e-9)
    assert behind["right"].tolist() == (best == tokens[1:n]).tolist()
    assert rows["scored"].tolist() == batch.loss_mask[EXAMPLE, :n].tolist()
    assert rows["answer"].sum() == rows["scored"].sum() - 1  # `=` is scored, and no part of the answer
    assert not batch.loss_mask[EXAMPLE, n:].any()


def test_predictions_of_all_examples_have_the_loss_that_a_validation_would_measure(tiny_run):
    from qfl_interp.models.forward import training_forward
    from qfl_interp.models.metrics import evaluate

    step, batch = tiny_run.steps[-1], models.examples_of(tiny_run)
    forward = training_forward(tiny_run.load_model(step))
    with torch.no_grad():
        wanted = evaluate(lambda tokens, span, _: forward(tokens, span), batch)
    for example in (0, 7):
        rows = predictions(tiny_run, step, example)
        answer = rows[rows["answer"]]
        assert answer["loss"].mean() == pytest.approx(wanted.loss_answer[example], rel=1e-4)
        assert bool(answer["right"].all()) == bool(wanted.exact_answer[example])


def test_attention_is_what_a_cache_holds(tiny_run):
    step = tiny_run.steps[4]
    tokens = models.examples_of(tiny_run).tokens[EXAMPLE : EXAMPLE + 1]
    model = tiny_run.load_model(step)
    _, cache = model.run_with_cache(tokens)
    wanted = torch.stack([cache["pattern", layer][0] for layer in range(model.cfg.n_layers)])
    found = models.patterns(tiny_run, step, EXAMPLE)
    torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=0)
    rows = attention(tiny_run, step, EXAMPLE, "1", "2")
    assert set(rows["layer"]) == {1}
    assert set(rows["head"]) == {2}
    of_head = wanted[1, 2].detach().numpy()
    np.testing.assert_array_equal(rows["attention"], of_head[rows["query"], rows["key"]].astype(float))
    figure = draw(tiny_run, "attention", step, example=EXAMPLE, layer="1", head="2")
    (shown,) = [trace for trace in figure.data if trace.type == "heatmap"]
    n = rows["query"].max() + 1
    np.testing.assert_allclose(np.tril(np.asarray(shown.z, float)), np.tril(of_head[:n, :n]), atol=1e-3)
    small = draw(tiny_run, "attention", step, example=EXAMPLE)
    assert [trace.name for trace in small.data] == [
        f"layer {layer}, head {head}" for layer in range(2) for head in range(4)
    ]


def test_a_model_is_loaded_once_a_step_and_few_are_kept(tiny_run, monkeypatch):
    loaded, load = [], Run.load_model
    monkeypatch.setattr(Run, "load_model", lambda self, step, **how: loaded.append(step) or load(self, step, **how))
    for step in tiny_run.steps[:2]:
        draw(tiny_run, "predictions", step)
        draw(tiny_run, "attention", step, layer="0")
        table(tiny_run, "predictions", step, example=1)
    assert loaded == tiny_run.steps[:2]
    for step in tiny_run.steps[2:5]:
        draw(tiny_run, "predictions", step)
    assert len(models._MODELS) == 3
    draw(tiny_run, "predictions", tiny_run.steps[0])
    assert loaded.count(tiny_run.steps[0]) == 2


def test_other_weights_are_another_model(run_copy):
    """A checkpoint that was replaced is loaded anew; one that is gone is not shown from memory."""
    step, other = run_copy.steps[1:3]
    before = predictions(run_copy, step, 0)["loss"].tolist()
    folders = [run_copy.path / "checkpoints" / f"step_{at:08d}" for at in (step, other)]
    for name in ("model.safetensors", "manifest.json"):
        source = next(folders[1].glob(name), None)
        if source is not None:
            (folders[0] / name).write_bytes(source.read_bytes())
    try:
        after = predictions(run_copy, step, 0)["loss"].tolist()
    except qfl.QflError:  # what the replaced files say of themselves does not fit: not shown either
        after = []
    assert after != before
    shutil.rmtree(folders[0])
    with pytest.raises(qfl.QflError, match="is not there any more"):
        predictions(run_copy, step, 0)


@pytest.mark.parametrize("name", ["linear_regression", "parity_vectors", "digits"])
def test_tasks_without_tokens_have_no_such_views(tiny_run, name, monkeypatch):
    run = Run(tiny_run.path, tiny_run.config)
    monkeypatch.setattr(Run, "task", property(lambda self: qfl.load_task(name)))
    assert model_views(run) == []


def test_an_unknown_task_takes_no_other_view_away(tiny_run, monkeypatch):
    def unknown(self):
        raise qfl.QflError("it is not registered here")

    monkeypatch.setattr(Run, "task", property(unknown))
    assert model_views(Run(tiny_run.path, tiny_run.config)) == []


def test_views_say_that_they_need_a_model_and_have_every_step(tiny_run):
    for name in ("predictions", "attention"):
        found = view(tiny_run, name)
        assert found.needs_model
        assert list(found.steps) == tiny_run.steps
    assert found.choices["layer"] == ["all", "0", "1"]
    assert found.options(layer="all")["head"] == ["all"]
    assert found.options(layer=1)["head"] == ["all", "0", "1", "2", "3"]
    assert len(found.choices["example"]) == models.N_EXAMPLES


def test_tokens_are_text_and_no_markup(tiny_run):
    patterns = np.tril(np.full((1, 1, 3, 3), 0.5))
    figure = attention_figure(patterns, [HOSTILE, "b", HOSTILE], "title", 0, 0)
    rows = predictions(tiny_run, tiny_run.steps[0], 0).assign(token=HOSTILE, predicted=HOSTILE)
    for drawn in (figure, predictions_figure(rows, "title")):
        assert "<img" not in drawn.to_json()
        assert "&lt;img" in drawn.to_json()


def test_patterns_without_a_softmax_are_drawn_around_zero():
    figure = attention_figure(np.array([[[[2.0, 0.0], [-3.0, 1.0]]]]), ["a", "b"], "title", 0, 0)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-3.0, 3.0)
    assert np.isnan(np.asarray(figure.data[0].z, dtype=float)[0, 1])  # what is later is not seen
