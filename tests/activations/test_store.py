"""Activations on disk: what was captured comes back as it was, at the cost of what is read, after any interruption."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qfl_interp.activations import store_writing
from qfl_interp.activations.spans import CHUNK, Place, site_span, site_spans
from qfl_interp.activations.store import ActivationStore
from qfl_interp.activations.store_entry import Request, StoreKey
from qfl_interp.config import PROBE_SITES, ModelConfig
from qfl_interp.errors import QflError
from qfl_interp.models.build import build_hooked

ROOT = Path(__file__).parents[2]
N_LAYERS, N_HEADS, N_CTX, N_EXAMPLES = 4, 4, 9, 30
FIRST, LAST = 2, 6
KEY = StoreKey("run-1", 100, "probe/val/30/seed0")


def tiny(n_layers=N_LAYERS, d_model=16, seed=0):
    return build_hooked(ModelConfig(d_model=d_model, n_layers=n_layers), d_vocab=5, n_ctx=N_CTX, seed=seed)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 5, (N_EXAMPLES, N_CTX), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(tmp_path):
    return ActivationStore(tmp_path / "activations")


def no_model():
    raise AssertionError("the model was loaded again")


def file_of(store, site, key=KEY, suffix=".bin"):
    (found,) = store.key_folder(key).glob(f"{site}_*{suffix}")
    return found


@pytest.fixture
def written(monkeypatch):
    """Every (site, layer, first example) that is written."""
    noted = []
    true = store_writing._write

    def note(file, entry, layer, start, part):
        noted.append((entry.site, layer, start))
        return true(file, entry, layer, start, part)

    monkeypatch.setattr(store_writing, "_write", note)
    return noted


# Values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_site_comes_back_as_it_was_captured(store, model, tokens, dtype):
    asked = {"names": list(PROBE_SITES), "dtype": dtype, "progress": False}
    want = site_spans(model, tokens, FIRST, LAST, names=PROBE_SITES)
    first = store.spans(KEY, lambda: model, tokens, FIRST, LAST, **asked)
    for found in (first, ActivationStore(store.folder).spans(KEY, no_model, tokens, FIRST, LAST, **asked)):
        assert list(found) == list(PROBE_SITES)
        for name, span in found.items():
            assert (span.name, span.places, span.first) == (name, want[name].places, FIRST)
            assert span.values.dtype == getattr(torch, dtype)
            assert torch.equal(span.values, want[name].values.to(span.values.dtype))


def test_many_batches_equal_one(store):
    model = tiny()
    many = torch.randint(0, 5, (1203, N_CTX), generator=torch.Generator().manual_seed(1))
    seen = []
    store.capture(KEY, lambda: model, many, 0, LAST, names=["z", "resid_post"], on_examples=lambda *n: seen.append(n))
    assert seen == [(min(start + CHUNK, 1203), 1203) for start in range(0, 1203, CHUNK)]
    seen.clear()
    store.capture(KEY, lambda: model, many, 0, LAST, names=["q"], chunk=700, on_examples=lambda *n: seen.append(n))
    assert seen == [(700, 1203), (1203, 1203)]
    found = store.spans(KEY, no_model, many, 0, LAST, names=["z", "resid_post"], progress=False)
    for name, want in site_spans(model, many, 0, LAST, names=["z", "resid_post"]).items():
        assert torch.equal(found[name].values, want.values)


@pytest.mark.parametrize("name", ["resid_mid", "z"])
@pytest.mark.parametrize("layers", [None, [1], [1, 2], [0, 2], [3, 1], [0, 1, 3]], ids=str)
def test_a_part_is_served_by_what_is_stored(store, model, tokens, name, layers):
    store.capture(KEY, lambda: model, tokens, 0, N_CTX - 1, names=[name])
    found = store.spans(KEY, no_model, tokens, FIRST, LAST, names=[name], layers=layers, progress=False)[name]
    whole = site_span(model, tokens, 0, N_CTX - 1, name=name)
    heads = range(N_HEADS) if name == "z" else [-1]
    assert list(found.places) == [Place(layer, head) for layer in layers or range(N_LAYERS) for head in heads]
    want = whole.values[[whole.places.index(place) for place in found.places], FIRST : LAST + 1]
    assert torch.equal(found.values, want)


def test_layers_and_positions_are_views_of_one_map(store, model, tokens):
    store.capture(KEY, lambda: model, tokens, 0, N_CTX - 1, names=["resid_mid", "z"])

    def storage(name, layers):
        span = store.spans(KEY, no_model, tokens, FIRST, LAST, names=[name], layers=layers, progress=False)[name]
        return span.values.untyped_storage().nbytes()

    for name in ("resid_mid", "z"):
        size = file_of(store, name).stat().st_size
        assert size == N_LAYERS * N_CTX * N_EXAMPLES * 16 * 4
        for layers in (None, [2], [1, 2, 3]):
            assert storage(name, layers) == size
    assert storage("resid_mid", [1, 3]) == file_of(store, "resid_mid").stat().st_size
    assert storage("resid_mid", [0, 1, 3]) == 3 * (LAST - FIRST + 1) * N_EXAMPLES * 16 * 4


def test_writing_into_a_span_leaves_the_file_alone(store, model, tokens):
    asked = {"names": ["resid_post"], "progress": False}
    span = store.spans(KEY, lambda: model, tokens, FIRST, LAST, **asked)["resid_post"]
    before = span.values.clone()
    span.values.zero_()
    assert torch.equal(store.spans(KEY, no_model, tokens, FIRST, LAST, **asked)["resid_post"].values, before)


# What is captured, and when


def test_only_what_is_missing_is_captured(store, model, tokens, written):
    loaded = []

    def load():
        loaded.append(1)
        return model

    def ask(first, last, names, layers, dtype="float32"):
        written.clear()
        spans = store.spans(KEY, load, tokens, first, last, names=names, layers=layers, dtype=dtype, progress=False)
        for name, span in spans.items():
            want = site_span(model, tokens, first, last, name=name, layers=layers).values
            # Another span or another last layer of the fast path rounds otherwise.
            tolerance = 1e-5 if dtype == "float32" else 0.02
            torch.testing.assert_close(span.values.float(), want, rtol=tolerance, atol=tolerance)
        return [(site, layer) for site, layer, _ in written]

    assert ask(2, 6, ["z"], [1]) == [("z", 1)]
    assert ask(3, 5, ["z"], [1]) == []
    assert ask(3, 5, ["z"], [0, 1]) == [("z", 0)]
    assert ask(2, 6, ["z", "resid_post"], [0]) == [("resid_post", 0)]
    assert ask(2, 6, ["z", "resid_post"], None) == [
        *(("z", n) for n in (2, 3)),
        *(("resid_post", n) for n in (1, 2, 3)),
    ]
    assert len(loaded) == 4
    assert ask(1, 6, ["z"], [1]) == [("z", 1)]
    assert ask(2, 6, ["z"], [1], "bfloat16") == [("z", 1)]
    assert len(loaded) == 6
    assert ask(2, 6, ["z"], None) == []
    assert len(loaded) == 6


def test_keys_are_apart(store, tokens):
    keys = [KEY, KEY._replace(step=0), KEY._replace(run_id="run-2"), KEY._replace(dataset="probe%2Fval"),
            KEY._replace(dataset="probe/val")]  # fmt: skip
    models = [tiny(seed=seed) for seed in range(len(keys))]
    for key, model in zip(keys, models, strict=True):
        store.capture(key, lambda model=model: model, tokens, FIRST, LAST, names=["z"])
    for key, model in zip(keys, models, strict=True):
        found = store.spans(key, no_model, tokens, FIRST, LAST, names=["z"], progress=False)["z"]
        assert torch.equal(found.values, site_span(model, tokens, FIRST, LAST, name="z").values)


def test_two_that_ask_at_once_capture_once(store, model, tokens, written):
    start = threading.Barrier(2)

    def ask():
        start.wait()
        store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])

    both = [threading.Thread(target=ask) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(written) == [("z", layer, 0) for layer in range(N_LAYERS)]


def test_the_bar_shows_only_while_capturing(store, model, tokens, capsys):
    store.spans(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])
    shown = capsys.readouterr()
    assert "probe/val/30/seed0 at step 100" in shown.err
    assert f"{N_EXAMPLES}/{N_EXAMPLES}" in shown.err
    assert shown.out == ""
    store.spans(KEY, no_model, tokens, FIRST, LAST, names=["z"])
    assert capsys.readouterr().err.strip() == ""


# Interrupted


def killed_in_the_middle(store, model, key, tokens):
    """A process that is killed when it has written half of a layer's part."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status)
        return
    true = store_writing._write

    def torn(file, entry, layer, start, part):
        if start == 1500 and layer == 2:
            true(file, entry, layer, start, part * float("nan"))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return true(file, entry, layer, start, part)

    store_writing._write = torn
    try:
        store.capture(key, lambda: model, tokens, 2, 6, names=["resid_post"], chunk=500)
    finally:
        os._exit(1)


@pytest.mark.parametrize(("save_every", "resumed_at"), [(1, 1500), (2**30, 0)], ids=["saved", "nothing-saved"])
def test_a_killed_capture_goes_on_and_shows_nothing_half_written(
    store, model, written, monkeypatch, save_every, resumed_at
):
    key = StoreKey("run-1", 100, "d")
    tokens = torch.arange(2000 * 9).view(2000, 9) % 5
    with monkeypatch.context() as patched:
        patched.setattr(store_writing, "_SAVE_EVERY", save_every)
        killed_in_the_middle(store, model, key, tokens)
    assert len(store.entries()) == 0
    written.clear()
    seen = []
    store.capture(
        key, lambda: model, tokens, 2, 6, names=["resid_post"], chunk=500, on_examples=lambda *n: seen.append(n)
    )
    assert seen[0] == (resumed_at + 500, 2000)
    assert min(start for _, _, start in written) == resumed_at
    found = store.spans(key, no_model, tokens, 2, 6, names=["resid_post"], progress=False)["resid_post"]
    assert torch.equal(found.values, site_span(model, tokens, 2, 6, chunk=500).values)


def test_a_full_disk_is_seen_before_it_is_full(store, model, tokens, monkeypatch):
    needed = N_LAYERS * (LAST - FIRST + 1) * N_EXAMPLES * 16 * 4

    def with_free(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
        store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])

    with pytest.raises(QflError, match=rf"take {needed:,} bytes, but .* has {needed - 1:,} bytes free. Free some"):
        with_free(needed - 1)
    assert list(store.key_folder(KEY).glob("z_*")) == []
    with_free(needed)
    assert len(store.entries()) == N_LAYERS


def test_a_disk_that_fills_up_loses_nothing(store, model, tokens, monkeypatch):
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"], layers=[0])
    true = store_writing._write

    def full(*arguments):
        if arguments[2] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store_writing, "_write", full)
        with pytest.raises(QflError, match="the disk is full"):
            store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])
    assert store.entries()["layer"].tolist() == [0]
    found = store.spans(KEY, lambda: model, tokens, FIRST, LAST, names=["z"], progress=False)["z"]
    assert torch.equal(found.values, site_span(model, tokens, FIRST, LAST, name="z").values)


def test_a_folder_that_cannot_be_made_is_named(model, tokens, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QflError, match=r"writing .*file.* failed"):
        ActivationStore(tmp_path / "file").capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])


# Refused


def test_other_tokens_under_a_key_are_refused(store, model, tokens):
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])
    other = tokens.clone()
    other[-1, -1] = (other[-1, -1] + 1) % 5
    for changed in (other, tokens[:-1]):
        with pytest.raises(QflError, match=r"stands for one data set, but .* of other tokens .*Name this data set"):
            store.spans(KEY, no_model, changed, FIRST, LAST, names=["z"], progress=False)
    # Another integer type holds the same tokens.
    store.spans(KEY, no_model, tokens.to(torch.int32), FIRST, LAST, names=["z"], progress=False)


def test_a_model_of_another_width_under_a_key_is_refused(store, model, tokens):
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"], layers=[0])
    wider = tiny(d_model=32)
    with pytest.raises(QflError, match=r"one model, but .* holds z with 4 x 4 numbers .* gives 4 x 8"):
        store.capture(KEY, lambda: wider, tokens, FIRST, LAST, names=["z"], layers=[1])


@pytest.mark.parametrize("damage", ["truncated", "missing", "no-json", "other-fields", "other-version"])
def test_damage_is_named_with_a_way_out(store, model, tokens, damage):
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])
    data, manifest = file_of(store, "z"), file_of(store, "z", suffix=".json")
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-4])
    elif damage == "missing":
        data.unlink()
    elif damage == "no-json":
        manifest.write_text("{")
    else:
        change = {"version": 99} if damage == "other-version" else {"more": 1}
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    for use in (store.entries, lambda: store.spans(KEY, no_model, tokens, 2, 3, names=["z"], progress=False)):
        with pytest.raises(QflError, match=r"z_2-6_float32.*store.delete\(key\)"):
            use()
    store.delete(KEY)
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"])


@pytest.mark.parametrize(
    "key", [KEY._replace(run_id=""), KEY._replace(dataset=".."), KEY._replace(step=-1)], ids=["empty", "dots", "step"]
)
def test_a_key_that_names_no_folder_is_refused(store, tokens, key):
    with pytest.raises(ValueError, match="a key must have names that do not start with a dot"):
        store.capture(key, no_model, tokens, FIRST, LAST, names=["z"])


def test_a_request_that_makes_no_sense_loads_nothing(store, tokens, model):
    # `capture` says the same, but the tests' type checker speaks first.
    with pytest.raises(ValueError, match=r"dtype must be one of \['float32', 'bfloat16'\], got 'float16'"):
        store._capture(KEY, no_model, tokens, Request(FIRST, LAST, ("z",), None, "float16"), 500, lambda *_: None)
    with pytest.raises(ValueError, match="names must be one or more"):
        store.capture(KEY, no_model, tokens, FIRST, LAST, names=["pattern"])
    with pytest.raises(ValueError, match="0 <= first <= last"):
        store.capture(KEY, no_model, tokens, 4, 3, names=["z"])
    with pytest.raises(ValueError, match=r"layers must lie in \[0, 4\), got \[4\]"):
        store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"], layers=[4])


# The list


def test_entries_delete_and_repr(store, model, tokens):
    assert repr(store).endswith("activations': 0 layers of 0 keys, 0.0 MiB)")
    assert len(store.entries()) == 0
    other = KEY._replace(step=0)
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["z"], layers=[1, 3])
    store.capture(other, lambda: model, tokens, FIRST, LAST, names=["mlp_out"], layers=[0], dtype="bfloat16")
    size = (LAST - FIRST + 1) * N_EXAMPLES * 16 / 2**20
    where = ("run-1", "probe/val/30/seed0", FIRST, LAST, N_EXAMPLES)
    rows = store.entries()
    found = rows[["run_id", "dataset", "first", "last", "n_examples", "step", "site", "layer", "dtype", "mib"]]
    assert found.to_records(index=False).tolist() == [
        (*where, 0, "mlp_out", 0, "bfloat16", 2 * size),
        (*where, 100, "z", 1, "float32", 4 * size),
        (*where, 100, "z", 3, "float32", 4 * size),
    ]
    assert "3 layers of 2 keys, 0.0 MiB" in repr(store)
    span = store.spans(KEY, no_model, tokens, FIRST, LAST, names=["z"], layers=[1], progress=False)["z"]
    store.delete(KEY)
    assert store.entries()["site"].tolist() == ["mlp_out"]
    assert torch.equal(span.values, site_span(model, tokens, FIRST, LAST, name="z", layers=[1]).values)
    with pytest.raises(QflError, match=r"nothing under \('run-1', 100.*Its keys: \('run-1', 0, 'probe/val/30/seed0'\)"):
        store.delete(KEY)


# 195 MiB on disk.
MEMORY = """
import json, sys, torch
from benchmarks._memory import reset_peak_mib, status_mib
from qfl_interp.config import ModelConfig
from qfl_interp.models.build import build_hooked
from qfl_interp.activations.store import ActivationStore
from qfl_interp.activations.store_entry import StoreKey
torch.set_num_threads(1)
model = build_hooked(ModelConfig(d_model=64, n_layers=2), d_vocab=5, n_ctx=40)
tokens = torch.zeros(10000, 40, dtype=torch.long)
store = ActivationStore(sys.argv[1])
asked = dict(names=["resid_post"], chunk=100, progress=False)
store.spans(StoreKey("run", 0, "warm"), lambda: model, tokens[:1000], 0, 39, **asked)
start = reset_peak_mib()
span = store.spans(StoreKey("run", 0, "all"), lambda: model, tokens, 0, 39, **asked)["resid_post"]
grown = {"capture": status_mib("VmHWM") - start}
for name, values in (("slice", span.values[:, 7]), ("whole", span.values)):
    start = reset_peak_mib()
    values.sum()
    grown[name] = status_mib("VmHWM") - start
print(json.dumps(grown))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's memory counters")
def test_memory_is_one_batch_to_write_and_the_slice_to_read(tmp_path):
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    grown = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    # Measured: 12 to 17.
    assert grown["capture"] < 80
    assert grown["slice"] < 2 * 10_000 * 64 * 4 / 2**20 + 3
    # The counter does see mapped pages.
    assert grown["whole"] > 150


def test_a_flipped_bit_is_found_on_reading_and_by_verify(store, model, tokens):
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["resid_post"])
    file = file_of(store, "resid_post")
    assert store.verify() == []
    whole = file.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 4
        file.write_bytes(changed)
        layer = place * N_LAYERS // len(whole)
        (problem,) = store.verify()
        assert f"layer {layer} of" in problem
        with pytest.raises(QflError, match=rf"layer {layer} of .*does not match its checksum"):
            store.spans(KEY, no_model, tokens, FIRST, LAST, names=["resid_post"])
        other = [n for n in range(N_LAYERS) if n != layer]
        store.spans(KEY, no_model, tokens, FIRST, LAST, names=["resid_post"], layers=other)
    file.write_bytes(whole)
    store.spans(KEY, no_model, tokens, FIRST, LAST, names=["resid_post"])


def test_layers_that_were_captured_in_two_calls_and_stores_of_before(store, model, tokens):
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["resid_post"], layers=[1])
    store.capture(KEY, lambda: model, tokens, FIRST, LAST, names=["resid_post"], layers=[3])
    manifest = file_of(store, "resid_post", suffix=".json")
    values = json.loads(manifest.read_text())
    assert set(values["sums"]) == {"1", "3"}
    assert store.verify() == []
    del values["sums"]
    manifest.write_text(json.dumps(values))
    store.spans(KEY, no_model, tokens, FIRST, LAST, names=["resid_post"], layers=[1])
