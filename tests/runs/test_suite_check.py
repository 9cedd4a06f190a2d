"""`check_suite`: planted faults of each kind are found where they are, clean trainings give no alarm."""

from __future__ import annotations

import json
import math
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_suite import neox_config, tiny_text_task
from safetensors.torch import load_file, save_file
from torch.nn import functional

import qfl_interp as qfl
from qfl_interp.cli.main import main
from qfl_interp.digests import digest
from qfl_interp.models.build import load_parameters
from qfl_interp.models.hugging_face import new_model
from qfl_interp.runs.steps import checkpoint_steps
from qfl_interp.runs.suite_check.check import _loss
from qfl_interp.runs.suite_check.geometry import excesses, exchanged, off_the_path, place_of
from qfl_interp.runs.suite_check.measure import SKETCH, measured
from qfl_interp.runs.suite_check.rules import missing_steps
from qfl_interp.seeding import generator

TASK = qfl.load_task("addition", 4)
SHAPE = qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2)
N_STEPS = 240
LOG = sorted({0, *np.unique(np.geomspace(1, N_STEPS, 70).round().astype(int)).tolist()})[-50:]
LINEAR = list(range(0, N_STEPS + 1, 5))


class InMemory(qfl.Checkpoints):
    """Checkpoints in memory."""

    def __init__(self, path, states):
        self.path, self.states = path, states

    run_id = "memory"
    task = TASK

    @property
    def steps(self):
        return sorted(self.states)

    def identity(self):
        return {"run_id": "memory", "config_hash": "", "seed": 0}

    def flops(self, step):
        return math.nan

    def weights(self, step):
        return digest(
            *(f"{n}{t.dtype}{t.double().sum().item()!r}{t.flatten()[0].item()!r}" for n, t in self.stored(step))
        )

    def stored(self, step):
        yield from self.states[step].items()

    def load_model(self, step="last", *, device="cpu"):
        model = qfl.build_model(SHAPE, TASK)
        load_parameters(model, self.states[step])
        return model

    def untrained_model(self, index):
        return qfl.build_model(SHAPE, TASK, seed=self.untrained_seed(index)), self.untrained_seed(index)


def trained(schedule: str, seed: int = 0, optimizer: str = "adamw") -> dict[int, dict[str, torch.Tensor]]:
    """The weights after every update of a real training."""
    model = qfl.build_model(SHAPE, TASK, seed=seed)
    pool = TASK.encode(TASK.sample(generator(seed, "pool"), 1024))
    made = {"adamw": lambda p: torch.optim.AdamW(p, lr=5e-3), "sgd": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)}
    descent = made[optimizer](model.parameters())
    rate = descent.param_groups[0]["lr"]
    states = {}
    for step in range(N_STEPS + 1):
        states[step] = {name: p.detach().clone() for name, p in model.named_parameters()}
        factor = 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / N_STEPS))
        descent.param_groups[0]["lr"] = rate * factor * min(1, (step + 1) / 20)
        rows = torch.arange(32 * step, 32 * step + 32) % 1024
        kept = pool.loss_mask[rows, 1:]
        loss = functional.cross_entropy(model(pool.tokens[rows])[:, :-1][kept], pool.tokens[rows, 1:][kept])
        descent.zero_grad()
        loss.backward()
        descent.step()
    return states


@pytest.fixture(scope="module")
def constant():
    return trained("constant")


def checked(path, states):
    return qfl.check_suite(InMemory(path, states), progress=False)


@pytest.mark.parametrize("grid", [LOG, LINEAR], ids=["log", "linear"])
def test_fifty_clean_checkpoints_give_no_alarm(tmp_path, constant, grid):
    found = checked(tmp_path, {step: constant[step] for step in grid})
    assert len(found.table) >= 49
    assert found
    assert found.findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_schedules_give_none_either(tmp_path, optimizer):
    """A cosine's whole range, its beginning and its end, where steps are as small as they get."""
    states = trained("cosine", seed=1, optimizer=optimizer)
    for number, grid in enumerate([LOG, LINEAR, range(50), range(190, 240)]):
        found = checked(tmp_path / str(number), {step: states[step] for step in grid})
        assert [f for f in found.findings if f.kind != "loss"] == [], grid


class TestPlantedFaults:
    """In 24 checkpoints of a real training; each names the step, and nothing else is said of the others."""

    GRID = LINEAR[::2]

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        """One for all: what is not replaced is not measured again."""
        return tmp_path_factory.mktemp("planted")

    @pytest.fixture
    def clean(self, constant):
        return {step: dict(constant[step]) for step in self.GRID}

    def only(self, found, step, kind, *, others=()):
        assert not found
        assert (step, kind) in {(f.step, f.kind) for f in found.faults}, found
        assert {f.step for f in found.findings} <= {step, *others}, found
        return next(f for f in found.faults if (f.step, f.kind) == (step, kind))

    def test_an_identical_step(self, folder, clean):
        clean[150] = dict(clean[60])
        finding = self.only(checked(folder, clean), 150, "identical")
        assert "its weights are those of step 60" in finding.text

    def test_an_identical_neighbour(self, folder, clean):
        clean[150] = dict(clean[140])
        self.only(checked(folder, clean), 150, "identical", others=(140,))

    def test_a_warm_up_from_zero_is_a_note(self, folder, clean):
        clean[10] = dict(clean[0])
        found = checked(folder, clean)
        assert found
        assert [(f.step, f.kind, f.severity) for f in found.findings] == [(10, "identical", "note")]

    def test_a_number_that_is_none(self, folder, clean):
        clean[100]["embed.W_E"] = clean[100]["embed.W_E"].clone()
        clean[100]["embed.W_E"][0, 0] = math.nan
        finding = self.only(checked(folder, clean), 100, "not finite")
        assert finding.tensors == ("embed.W_E",)

    def test_steps_far_apart_that_were_exchanged(self, folder, clean):
        clean[50], clean[200] = clean[200], clean[50]
        # The early one among late ones is off the path; the late one among early ones is found by it.
        found = checked(folder, clean)
        assert "They fit between steps 40 and 50" in self.only(found, 200, "jump", others=(50,)).text
        assert "its weights and those of step 200" in self.only(found, 50, "order", others=(200,)).text

    def test_neighbours_that_were_exchanged(self, folder, clean):
        clean[90], clean[100] = clean[100], clean[90]
        finding = self.only(checked(folder, clean), 90, "order")
        assert "steps 90 and 100 are in the wrong order" in finding.text

    def test_a_shard_of_another_step(self, folder, clean):
        shard = [name for name in clean[120] if ".attn." in name]
        clean[120] |= {name: clean[200][name] for name in shard}
        finding = self.only(checked(folder, clean), 120, "shard")
        assert set(finding.tensors) == set(shard)
        assert "those of step 200" in finding.text

    def test_a_shard_of_the_step_before(self, folder, clean):
        clean[120] |= {name: clean[110][name] for name in clean[120] if ".mlp." in name}
        self.only(checked(folder, clean), 120, "shard", others=(110,))

    def test_a_shard_of_another_seed(self, folder, clean):
        other = trained_seed_7()
        shard = [name for name in clean[120] if ".mlp." in name]
        clean[120] |= {name: other[name] for name in shard}
        finding = self.only(checked(folder, clean), 120, "jump")
        assert finding.tensors == () or set(finding.tensors) <= set(shard)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_another_type(self, folder, clean, dtype):
        clean[80] = {name: tensor.to(dtype) for name, tensor in clean[80].items()}
        self.only(checked(folder, clean), 80, "dtype")

    def test_numbers_that_were_cast_and_cast_back(self, folder, clean):
        clean[80] = {name: tensor.bfloat16().float() for name, tensor in clean[80].items()}
        finding = self.only(checked(folder, clean), 80, "dtype")
        assert "half precision" in finding.text

    def test_another_seed_in_the_middle(self, folder, clean):
        clean[120] = trained_seed_7()
        finding = self.only(checked(folder, clean), 120, "jump")
        assert "They fit nowhere" in finding.text

    def test_two_in_a_row_of_another_seed(self, folder, clean):
        clean[120] = trained_seed_7()
        clean[130] = {name: 1.001 * tensor for name, tensor in clean[120].items()}
        found = checked(folder, clean)
        assert {f.step for f in found.faults} & {120, 130, 140}

    def test_a_first_step_that_is_not_fresh(self, folder, constant, clean):
        clean[0] = dict(constant[5])
        finding = self.only(checked(folder, clean), 0, "not fresh")
        assert finding.tensors

    def test_a_loss_that_does_not_fall(self, folder, clean):
        """The whole training backwards: the path is as good as before, its direction is not."""
        states = dict(zip(sorted(clean), [clean[step] for step in sorted(clean, reverse=True)], strict=True))
        found = checked(folder, states)
        assert {"loss", "not fresh"} <= {f.kind for f in found.faults}

    def test_a_missing_tensor(self, folder, clean):
        del clean[40]["unembed.W_U"]
        finding = self.only(checked(folder, clean), 40, "tensors")
        assert finding.tensors == ("unembed.W_U",)


def trained_seed_7() -> dict[str, torch.Tensor]:
    """Weights that another seed could have come to: of the same sizes, in other directions."""
    model = qfl.build_model(SHAPE, TASK, seed=7)
    return {name: p.detach() * 1.1 for name, p in model.named_parameters()}


def test_a_check_goes_on_where_it_was_and_sees_other_weights(tmp_path):
    """A run: each checkpoint is measured once, and again once it is another."""
    run = qfl.train(TASK, SHAPE, qfl.TrainConfig(n_steps=40, n_checkpoints=10), tmp_path / "run", progress=False)
    first = qfl.check_suite(run, progress=False)
    parts = {path: path.stat().st_mtime_ns for path in (run.path / "analyses" / "suite_check").iterdir()}
    again = qfl.check_suite(run, progress=False)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    pd.testing.assert_frame_equal(again.table, first.table, rtol=1e-9)
    file = run.path / "checkpoints" / f"step_{run.steps[3]:08d}" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    found = qfl.check_suite(qfl.Run.open(run.path), progress=False)
    assert [(f.step, f.kind) for f in found.faults] == [(run.steps[3], "unreadable")]
    assert "does not match its checksum" in found.faults[0].text


def test_a_folder_of_hugging_face_checkpoints(tmp_path):
    """Stored types and names are the files' own; a half-precision step is seen though models load in float32."""
    model = new_model(neox_config(), 0)
    descent = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tiny_text_task().encode(np.arange(64)[:, None])
    labels = batch.tokens.masked_fill(~batch.loss_mask, -100)
    for step in range(13):
        model.save_pretrained(tmp_path / "suite" / f"step{step}")
        descent.zero_grad()
        model(input_ids=batch.tokens, labels=labels).loss.backward()
        descent.step()
    suite = qfl.Suite.open(tmp_path / "suite", tiny_text_task())
    assert qfl.check_suite(suite, progress=False).findings == ()
    path = tmp_path / "suite" / "step6" / "model.safetensors"
    save_file({name: t.half() for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    found = qfl.check_suite(qfl.Suite.open(tmp_path / "suite", tiny_text_task()), progress=False)
    assert [(f.step, f.kind) for f in found.faults] == [(6, "dtype")]


def test_steps_missing_from_a_regular_series_are_a_note():
    pythia = [0, *(2**n for n in range(10)), *range(1000, 20_001, 1000)]
    assert missing_steps(pythia) == []
    found = missing_steps([step for step in pythia if step not in (5000, 9000, 10_000)])
    assert [(f.step, f.kind, f.severity) for f in found] == [(6000, "gap", "note"), (11_000, "gap", "note")]
    assert "steps go by 1000 from 1000 to 20000, but 2 of them (9000, 10000) are missing" in found[1].text
    for regular in ([], [5], LOG, LINEAR, [0, 10, 20, 40, 80, 160], [0, 500, 1000, 2000, 4000], list(range(9))):
        assert missing_steps(regular) == [], regular
    for n in (10, 20, 40, 80):  # the schedule of this library, whatever is rounded
        for last in (500, 3000, 20_000, 143_000):
            assert missing_steps(checkpoint_steps(last, n)) == [], (n, last)


def test_a_loss_that_falls_on_the_answers_alone_is_a_note():
    """What a loop that scored answers only looks like where the dataset scores the prompt's last token too."""
    noise = np.linspace(-0.1, 0.1, 40)
    rising, falling = {0: 2.0 + noise, 9: 4.0 - noise}, {0: 2.0 + noise, 9: 0.5 - noise}
    assert _loss(falling, falling) == []
    (found,) = _loss(rising, falling)
    assert (found.step, found.kind, found.severity) == (9, "loss", "note")
    assert "That of the answers alone does, from 2 to 0.5" in found.text
    assert "prompt_end=False" in found.text
    (found,) = _loss(rising, rising)
    assert (found.step, found.severity) == (9, "fault")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `qfl suite check ...` in this process; returns the exit status and standard output."""

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["qfl", "suite", "check", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        return status, capsys.readouterr().out

    return run


def test_the_command_says_it_and_exits(tmp_path, call):
    run = qfl.train(TASK, SHAPE, qfl.TrainConfig(n_steps=40, n_checkpoints=8), tmp_path / "run", progress=False)
    status, out = call(run.path)
    assert status == 0, out
    assert "no fault" in out
    status, out = call(run.path, "--json")
    assert json.loads(out)["faults"] == 0
    shutil.rmtree(run.path / "analyses")
    (run.path / "checkpoints" / "step_00000040" / "model.safetensors").write_bytes(b"")
    status, out = call(run.path)
    assert status == 1
    assert "step 40, unreadable" in out


class TestGeometry:
    """Against paths whose values are known."""

    @staticmethod
    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    def test_excess_of_a_line_a_walk_and_noise(self):
        rng = np.random.default_rng(0)
        line = np.arange(6.0)[:, None]
        np.testing.assert_allclose(excesses(self.distances(line), range(6))[1:-1], 1)
        steps = rng.standard_normal((12, 100_000))
        walk = excesses(self.distances(np.cumsum(steps, axis=0)), range(12))[1:-1]
        np.testing.assert_allclose(walk, math.sqrt(2), rtol=0.01)
        np.testing.assert_allclose(excesses(self.distances(steps), range(12))[1:-1], 2, rtol=0.01)

    @pytest.mark.parametrize(("kind", "ratio"), [("line", 5 / 3), ("walk", (2 * math.sqrt(2) + 1) / 3)])
    def test_an_exchange(self, kind, ratio):
        points = np.arange(12.0)[:, None]
        if kind == "walk":
            points = np.cumsum(np.random.default_rng(0).standard_normal((12, 100_000)), axis=0)
        order = [0, 1, 2, 3, 5, 4, *range(6, 12)]
        assert exchanged(self.distances(points), range(12)) == []
        (found,) = exchanged(self.distances(points), order)
        assert (found.first, found.second) == (5, 4)
        assert found.ratio == pytest.approx(ratio, rel=0.01)

    def test_oscillation_is_no_fault(self):
        """Every step far from the next and near the one after: nothing stands out."""
        rng = np.random.default_rng(1)
        points = np.array([[0.01 * k, (-1) ** k * 1.0] for k in range(30)]) + 0.01 * rng.standard_normal((30, 2))
        near = self.distances(points)
        assert off_the_path(near, range(30))[0] == {}
        assert exchanged(near, range(30)) == []

    def test_where_a_step_fits(self):
        near = self.distances(np.array([0.0, 1, 2, 7.4, 4, 5, 6, 7, 8])[:, None])
        off, order = off_the_path(near, range(9))
        assert list(off) == [3]
        assert place_of(near, order, 3) == (7, 8)


def test_a_sketch_tells_distances(tmp_path):
    """Of 40,000 numbers 1,024 are kept: the distance is right to a few standard errors of 2 %."""
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.randn(200, 200, generator=rng) for _ in range(2))
    a, b = (measured([("w", t)]).sketches["w"] for t in (one, other))
    assert len(a) == SKETCH
    estimate = float((a - b).norm()) * math.sqrt(one.numel() / SKETCH)
    assert estimate == pytest.approx(float((one - other).norm()), rel=4 / math.sqrt(2 * SKETCH))
