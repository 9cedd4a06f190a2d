"""The lens that fills a run's activation store: the probes' examples, once, and what it says of them."""

from __future__ import annotations

import pytest
import torch

import qfl_interp as qfl
from qfl_interp.activations.spans import site_span
from qfl_interp.activations.store import ActivationStore
from qfl_interp.activations.store_entry import StoreKey
from qfl_interp.analyses import capture, probe
from qfl_interp.analyses.lenses.probe import data as of_probes

N = 60
QUICK = {"n": N, "progress": False}


def no_model(*_args, **_kwargs):
    raise AssertionError("loaded again")


def test_rows_and_values_are_those_of_the_probes_examples(run_copy):
    steps = run_copy.steps[-2:]
    result = capture(run_copy, ["resid_post", "z"], steps, **QUICK)
    data = of_probes.probe_data(run_copy, qfl.ProbeConfig(n_train=N))
    rows = result.to_dataframe()
    parts = {"train": data.train, "test": data.test}
    names = {part: f"probe_{part}_{len(examples)}_seed0" for part, examples in parts.items()}
    want = [
        (s, name, site, n) for s in steps for name in names.values() for site in ("resid_post", "z") for n in (0, 1)
    ]
    assert rows[["step", "dataset", "site", "layer"]].to_records(index=False).tolist() == want
    assert set(rows["run_id"]) == {run_copy.run_id}
    assert set(rows["config_hash"]) == {run_copy.config.digest}
    store = ActivationStore(run_copy.path / "activations")
    for part, examples in parts.items():
        tokens, span = run_copy.task.encode(examples).tokens, of_probes.read_span(run_copy.task, examples)
        key = StoreKey(run_copy.run_id, steps[0], names[part])
        found = store.spans(key, no_model, tokens, *span, names=["z"], progress=False)["z"]
        assert torch.equal(found.values, site_span(run_copy.load_model(steps[0]), tokens, *span, name="z").values)
        mine = rows[(rows["dataset"] == names[part]) & (rows["site"] == "z")]
        assert mine["mib"].sum() == pytest.approx(2 * found.values.nbytes / 2**20)


def test_what_is_there_is_not_captured_again(run_copy, monkeypatch):
    first = capture(run_copy, "resid_post", **QUICK).to_dataframe()
    monkeypatch.setattr(qfl.Run, "load_model", no_model)
    assert capture(run_copy, "resid_post", **QUICK).to_dataframe().equals(first)
    with pytest.raises(AssertionError, match="loaded again"):
        capture(run_copy, "resid_mid", **QUICK)


def test_probes_read_what_was_captured(run_copy, monkeypatch):
    step = run_copy.steps[-1]
    capture(run_copy, ["resid_post"], step, **QUICK)
    monkeypatch.setattr(qfl.Run, "load_model", no_model)
    config = qfl.ProbeConfig(n_train=N)
    assert len(probe(run_copy, "carry", step, config=config, n_untrained=0, store=True, progress=False).to_dataframe())


def test_layers_dtype_and_store_are_the_callers(run_copy, tmp_path, capsys):
    store = ActivationStore(tmp_path / "elsewhere")
    result = capture(run_copy, "mlp_out", n=N, layers=[1], dtype="bfloat16", store=store)
    assert set(result.to_dataframe()["layer"]) == {1}
    assert set(store.entries()["dtype"]) == {"bfloat16"}
    assert not (run_copy.path / "activations").exists()
    assert "capturing" in capsys.readouterr().err
    assert "mlp_out" in repr(result)
    (bars,) = result.plot().data
    assert (bars.name, list(bars.x)) == ("mlp_out", [1])
    assert bars.y[0] == pytest.approx(result.to_dataframe()["mib"].sum())


def test_bad_requests(run_copy):
    with pytest.raises(ValueError, match="names must be one or more different ones"):
        capture(run_copy, "pattern", **QUICK)
    with pytest.raises(ValueError, match="n_train must be at least 1"):
        capture(run_copy, "z", n=0, progress=False)
    with pytest.raises(qfl.QflError, match="was not saved"):
        capture(run_copy, "z", steps=10**6, **QUICK)
