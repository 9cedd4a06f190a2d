"""A mechanism that was planted is found: directions that are written, under noise that leads a probe elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.analyses import ablate, probe
from qfl_interp.models.tl_version import HookedTransformer, HookedTransformerConfig
from qfl_interp.runs.series import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")

N_VALUES, N_NOISE, D_MODEL = 4, 60, 24
N_PROMPTS = N_VALUES * N_NOISE
CONFIG = qfl.ProbeConfig(n_train=N_PROMPTS, n_test=N_PROMPTS, shuffled_control=False)
QUIET = {"config": CONFIG, "n_trials": 8, "progress": False}
# What a value of 0 .. 3 writes, in the directions 0, 1 and 2: two dimensions, as cosine and sine of a wave have.
ANGLES = 2 * np.pi * np.arange(N_VALUES) / N_VALUES
WRITTEN = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def task() -> qfl.FixedTask:
    """Prompts `start x`, x one of 240 words that stand for a value and a kind of noise; the answer is the value."""
    prompt = np.arange(N_PROMPTS)
    value = prompt // N_NOISE
    tokens = np.stack([np.full(N_PROMPTS, N_PROMPTS), prompt, N_PROMPTS + 1 + value], axis=1)
    mask = np.tile([False, True, True], (N_PROMPTS, 1))
    at = np.ones((N_PROMPTS, 1), dtype=int)
    features = {
        "value": qfl.FixedFeature("categorical", value[:, None], at),
        "cosine": qfl.FixedFeature("scalar", WRITTEN[value, :1], at),
        "sine": qfl.FixedFeature("scalar", WRITTEN[value, 1:], at),
        "unused": qfl.FixedFeature("binary", (prompt % 2)[:, None], at),
    }
    return qfl.FixedTask("planted", tokens, mask, features)


def model(seed: int = 0) -> HookedTransformer:
    """Reads the value from the two directions it is written in.

    It is also written, a thousand times smaller, where there is almost no noise: the best direction to read it from by
    least squares, which the model does not look at.
    """
    rng = np.random.default_rng(seed)
    config = HookedTransformerConfig(
        n_layers=1, d_model=D_MODEL, n_ctx=3, d_head=4, n_heads=1, d_vocab=N_PROMPTS + 1 + N_VALUES,
        attn_only=True, act_fn=None, normalization_type=None, positional_embedding_type="standard",
    )  # fmt: skip
    built = HookedTransformer(config)
    value = np.arange(N_PROMPTS) // N_NOISE
    basis = np.linalg.qr(rng.standard_normal((D_MODEL, D_MODEL)))[0]
    spread = np.full(D_MODEL, 0.3)
    spread[2:4] = 1e-5
    noise = rng.standard_normal((N_PROMPTS, D_MODEL)) * spread
    # Noise of the written directions goes along with that of others.
    noise[:, :2] += 0.5 * noise[:, 4:6]
    written = np.zeros((N_PROMPTS, D_MODEL))
    written[:, :2], written[:, 2:4] = WRITTEN[value], 1e-3 * WRITTEN[value]
    # Bit "unused": written as strongly, read by nobody.
    written[:, 6] = np.where(np.arange(N_PROMPTS) % 2, 2.0, -2.0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
        built.W_E[:N_PROMPTS] = torch.from_numpy((written + noise) @ basis.T).float()
        built.W_U[:, N_PROMPTS + 1 :] = torch.from_numpy(3 * basis[:, :2] @ WRITTEN.T).float()
    return built.eval()


class Planted(Checkpoints):
    """One checkpoint of the planted model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._task = task()

    run_id = "planted"
    steps = [0]  # noqa: RUF012

    @property
    def task(self):
        return self._task

    def identity(self):
        return {"run_id": self.run_id, "config_hash": "planted", "seed": 0}

    def load_model(self, step="last", *, device="cpu"):
        return model()

    def untrained_model(self, index):
        return model(1), 1

    def flops(self, step):
        return 0.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    opened = Planted(tmp_path_factory.mktemp("planted"))
    probe(opened, config=CONFIG, n_untrained=0, progress=False)
    return opened


def effect(run, features, **how):
    """Exact match intact, ablated, and the lowest of the controls'."""
    rows = ablate(run, features, **how, **QUIET).rows.set_index("condition")["exact_answer"]
    return rows["intact"], rows["ablated"], rows.drop(["intact", "ablated"]).min()


def test_the_model_and_its_probes_are_as_planned(run):
    """Probes read every feature all but perfectly, the numbers from directions that the model does not look at."""
    rows = probe(run, config=CONFIG, n_untrained=0, progress=False).rows.set_index("feature")
    assert rows.loc["cosine", "test_score"] > 0.999
    assert rows.loc[["value", "unused"], "test_score"].min() == 1
    assert effect(run, "value")[0] == 1


@pytest.mark.parametrize("feature", ["value", "cosine", "sine"])
def test_the_default_finds_what_is_written_and_used(run, feature):
    rows = ablate(run, feature, **QUIET).rows.set_index("condition")
    chance = 0.25 if feature == "value" else 0.5  # two of the four values differ in a cosine or sine alone
    assert rows.loc["intact", "exact_answer"] == 1
    assert rows.loc["ablated", "exact_answer"] < chance + 0.2
    assert rows.loc["ablated", "loss_answer"] > -0.9 * np.log(chance)
    assert rows.drop(index=["intact", "ablated"])["exact_answer"].min() > 0.9


def test_the_probes_directions_miss_it(run):
    for feature in ("cosine", "sine"):
        assert effect(run, feature, method="project_out")[1] == 1


def test_a_feature_that_is_written_and_not_used_is_not_needed(run):
    assert effect(run, "unused")[1] == 1


def test_features_taken_out_at_once(run):
    """Either number leaves two values apart, both together none."""
    together = ablate(run, ["cosine", "sine"], joint=True, **QUIET).rows
    assert set(together["feature"]) == {"cosine+sine"}
    assert set(together["method"]) == {"written"}
    rows = together.set_index("condition")["exact_answer"]
    assert rows["ablated"] < 0.45
    assert rows["random"] > 0.9
    alone = effect(run, ["cosine"])[1]
    assert rows["ablated"] < alone


def test_a_feature_named_twice_over_is_taken_out_once(run):
    """`value` spans what `cosine` and `sine` do: dependent directions are no error, and no other result."""
    values = {
        names: ablate(run, list(names), joint=True, **QUIET).rows.set_index("condition").loc["ablated", "loss_answer"]
        for names in (("cosine", "sine"), ("value", "cosine", "sine"))
    }
    one, other = values.values()
    assert one == pytest.approx(other, rel=0.3)
