"""Configurations: every rule with its message, JSON both ways, digests."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.checked import Options, _options
from qfl_interp.training.train import plan_run

MODEL = {"d_model": 16, "n_layers": 2}
TRAIN = {"n_steps": 10}

MODEL_RULES = {
    "d_model must be positive, got 0": {"d_model": 0},
    "n_layers must be positive, got -1": {"n_layers": -1},
    "n_heads must be positive, got 0": {"n_heads": 0},
    "n_layers must be an integer, got True": {"n_layers": True},
    r"d_model must be a multiple of 8 \(4 heads, rotary pairs\), got 20. Use 16 or 24": {"d_model": 20},
    r"d_model must be a multiple of 8 .* got 4. Use 8, or another": {"d_model": 4},
    r"d_model must be a multiple of 4 \(4 heads\), got 18. Use 16 or 20": {"d_model": 18, "style": "gpt2"},
    "d_mlp must be positive, got 0": {"d_mlp": 0},
    "norm_eps must be positive, got 0": {"norm_eps": 0.0},
    "rope_theta must be positive, got -1": {"rope_theta": -1.0},
    "d_head must be positive, got 0. Leave it out for d_model / n_heads": {"d_head": 0},
    "d_head must be even with rotary positions, got 3": {"d_head": 3},
    "init_scale must be positive, got 0": {"init_scale": 0.0},
    "mup_base must be positive, got -8. It is the width at which": {"mup_base": -8},
    "act must be left out where attn_only is set, got 'relu'. There is no MLP": {"attn_only": True, "act": "relu"},
    "gated must be left out where attn_only is set, got False": {"attn_only": True, "gated": False},
    "d_mlp must be left out where attn_only is set, got 8": {"attn_only": True, "d_mlp": 8},
}

TRAIN_RULES = {
    r"exactly one of budget_flops and n_steps must be given, got \(None, None\)": {"n_steps": None},
    "exactly one of budget_flops and n_steps .* 1": {"budget_flops": 1e9},
    "n_steps must be at least 1, got 0": {"n_steps": 0},
    "budget_flops must be positive and finite, got -1": {"n_steps": None, "budget_flops": -1.0},
    "budget_flops must be a finite number, got inf": {"n_steps": None, "budget_flops": float("inf")},
    "lr must be positive and finite, got 0": {"lr": 0.0},
    "lr must be a finite number, got nan": {"lr": float("nan")},
    "batch_size must be at least 1, got 0": {"batch_size": 0},
    "draw must be left out with batch_size 'all'.* got 'epoch'": {"batch_size": "all", "draw": "epoch"},
    "n_val must be at least 1, got 0": {"n_val": 0},
    r"seed must lie in \[0, 2\*\*63\), got -1": {"seed": -1},
    r"seed must lie in \[0, 2\*\*63\), got 9223372036854775808": {"seed": 2**63},
    r"warmup_fraction must lie in \[0, 1\], got 10": {"warmup_fraction": 10.0},
    r"min_lr_fraction must lie in \[0, 1\], got -0.1": {"min_lr_fraction": -0.1},
    r"decay_fraction must lie in \[0, 1\], got 1.5": {"decay_fraction": 1.5},
    r"eval_fraction must lie in \[0, 1\], got 2": {"eval_fraction": 2.0},
    r"warmup_fraction \+ decay_fraction must not pass 1, got 1.2": {
        "schedule": "wsd",
        "warmup_fraction": 0.4,
        "decay_fraction": 0.8,
    },
    "weight_decay must not be negative, got -0.1": {"weight_decay": -0.1},
    r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)": {"betas": (0.9, 1.0)},
    r"adam_eps must lie in \(0, 1\], got 0": {"adam_eps": 0.0},
    r"adam_eps must lie in \(0, 1\], got 1e\+30": {"adam_eps": 1e30},
    "adam_eps must be a finite number, got inf": {"adam_eps": float("inf")},
    "clip_norm must be positive, got 0": {"clip_norm": 0.0},
    "divergence_loss must be positive, got -1": {"divergence_loss": -1.0},
    "n_checkpoints must be at least 2, got 1": {"n_checkpoints": 1},
    "save_every must be at least 1 step, got 0": {"save_every": 0},
}

PROBE_RULES = {
    "c must be positive and finite, got 0": {"c": 0.0},
    "c must be a finite number, got inf": {"c": float("inf")},
    "alpha must be finite and not negative, got -1": {"alpha": -1.0},
    "path must hold different positive numbers": {"path": (1.0, 1.0)},
    r"path must hold different positive numbers, got \(0": {"path": (0.0,)},
    "site must be one of": {"site": "pattern"},
    "n_val must be at least 1, got 0": {"n_val": 0},
    "n_train must be at least 1, got 0": {"n_train": 0},
    "n_test must be at least 1, got 0": {"n_test": 0},
    "max_iter must be at least 1, got 0": {"max_iter": 0},
    "seed must lie in": {"seed": -1},
}

# A value that differs from the default, for every field.
OTHER = {
    qfl.ModelConfig: {
        "d_model": 32, "n_layers": 3, "n_heads": 2, "style": "gpt2", "d_mlp": 10, "norm_eps": 1e-6,
        "rope_theta": 1e5, "norm": "none", "act": "relu", "gated": False, "positions": "none", "biases": "mlp",
        "init": "grokking", "init_scale": 0.5, "d_head": 6, "attn_only": True, "tied": True, "mup_base": 8,
        "attention": "linear",
    },
    qfl.TrainConfig: {
        "budget_flops": 1e9, "n_steps": 11, "lr": 2e-3, "batch_size": 65, "seed": 1, "schedule": "cdat",
        "warmup_fraction": 0.2, "min_lr_fraction": 0.2, "decay_fraction": 0.3, "weight_decay": 0.2,
        "betas": (0.9, 0.96), "adam_eps": 1e-7, "clip_norm": 2.0, "eval_fraction": 0.1, "n_val": 999,
        "n_checkpoints": 41, "save_optimizer": True, "divergence_loss": 99.0, "compile": True,
        "optimizer": "sgd", "optimizer_options": {"momentum": 0.9}, "schedule_options": {"sigma": 1.0}, "loss": "hinge",
        "draw": "epoch", "save_every": 7,
    },
    qfl.ProbeConfig: {
        "c": 1.0, "alpha": 2.0, "path": (1.0, 3.0), "n_train": 9, "n_val": 7, "n_test": 8, "seed": 1,
        "shuffled_control": False, "max_iter": 99, "site": "attn_out", "pooled": True,
    },
}  # fmt: skip
# What a value needs beside it.
ALONG = {
    "budget_flops": {"n_steps": None}, "optimizer_options": {"optimizer": "sgd"},
    "schedule_options": {"schedule": "cdat"}, "schedule": {"schedule_options": {}},
}  # fmt: skip
BASE = {qfl.ModelConfig: MODEL, qfl.TrainConfig: TRAIN, qfl.ProbeConfig: {}}
CLASSES = pytest.mark.parametrize("cls", list(BASE), ids=lambda cls: cls.__name__)


@pytest.mark.parametrize(
    ("cls", "rule", "changes"),
    [
        *((qfl.ModelConfig, rule, changes) for rule, changes in MODEL_RULES.items()),
        *((qfl.TrainConfig, rule, changes) for rule, changes in TRAIN_RULES.items()),
        *((qfl.ProbeConfig, rule, changes) for rule, changes in PROBE_RULES.items()),
    ],
)
def test_a_broken_rule_is_named(cls, rule, changes):
    with pytest.raises(ValueError, match=rule):
        cls(**BASE[cls] | changes)


def test_values_at_the_rules_edges_pass():
    assert qfl.ModelConfig(d_model=8, n_layers=1).d_head_used == 2
    assert qfl.ModelConfig(d_model=4, n_layers=1, style="gpt2").d_head_used == 1
    assert qfl.ModelConfig(d_model=10, n_layers=1, n_heads=4, positions="none", d_head=3).d_head_used == 3
    assert qfl.ModelConfig(d_model=12, n_layers=1, n_heads=4, positions="learned").d_head_used == 3
    qfl.TrainConfig(n_steps=1, batch_size=1, n_val=1, seed=2**63 - 1, n_checkpoints=2, weight_decay=0.0)
    qfl.TrainConfig(n_steps=1, warmup_fraction=0.0, eval_fraction=1.0, betas=(0.0, 0.0), min_lr_fraction=0.0)
    qfl.TrainConfig(n_steps=5, schedule="wsd", warmup_fraction=0.2, decay_fraction=0.8)
    qfl.TrainConfig(n_steps=5, schedule="cosine", warmup_fraction=0.4, decay_fraction=0.8)


@CLASSES
def test_json_round_trip(cls):
    changed = BASE[cls] | OTHER[cls] | ({"n_steps": None} if cls is qfl.TrainConfig else {})
    changed.pop("attn_only", None)  # goes with no choice of an MLP
    for values in (BASE[cls], changed):
        config = cls(**values)
        back = cls.from_dict(json.loads(json.dumps(config.to_dict())))
        assert back == config
        assert back.digest() == config.digest()


@CLASSES
def test_digest_depends_on_every_field(cls):
    assert set(OTHER[cls]) == {f.name for f in dataclasses.fields(cls)}, "a new field needs a case here"
    base = cls(**BASE[cls])
    seen = {base.digest()}
    for name, value in OTHER[cls].items():
        changes = {name: value} | ALONG.get(name, {})
        seen.add(cls(**BASE[cls] | changes).digest())
    assert len(seen) == 1 + len(OTHER[cls])
    assert all(len(digest) == 12 and int(digest, 16) >= 0 for digest in seen)


def test_digest_is_pinned():
    """A changed digest would orphan every run on disk."""
    assert qfl.ModelConfig(d_model=16, n_layers=2).digest() == "59c4b644e599"
    assert qfl.TrainConfig(n_steps=10, eval_fraction=0.005, n_val=1000).digest() == "9144f3790395"


# Wrong types, which this suite's type checker would stop before the rule speaks: a process without it.
_TYPE_RULES = """
import numpy as np
from qfl_interp.config import ModelConfig, TrainConfig
for make in (
    lambda: ModelConfig(d_model=16.5, n_layers=2),
    lambda: ModelConfig(d_model=16, n_layers=2, style="bert"),
    lambda: ModelConfig(d_model=16, n_layers=2, norm="layer_norm"),
    lambda: ModelConfig(d_model=16, n_layers=2, act="mish"),
    lambda: ModelConfig(d_model=16, n_layers=2, positions="sinusoidal"),
    lambda: ModelConfig(d_model=16, n_layers=2, biases="attn"),
    lambda: ModelConfig(d_model=16, n_layers=2, init="llamas"),
    lambda: TrainConfig(n_steps=10.5),
    lambda: TrainConfig(n_steps=10, lr="fast"),
):
    try:
        make()
    except ValueError as error:
        print(error)
written = TrainConfig(n_steps=10, lr=1, weight_decay=0, betas=[0, 0.95])
meant = TrainConfig(n_steps=np.int64(10), lr=np.float32(1.0), weight_decay=0.0, betas=(0.0, 0.95))
print(written == meant, written.digest() == meant.digest(), hash(written) == hash(meant))
"""


def test_wrong_types_are_named_and_equal_numbers_of_other_types_name_the_same_run():
    """1 == 1.0, but their JSON differs: a digest over raw values would tell equal configurations apart."""
    done = subprocess.run([sys.executable, "-c", _TYPE_RULES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "d_model must be an integer, got 16.5.",
        "style must be 'llama', 'gpt2' or 'grokking', got 'bert'.",
        "norm must be 'rms', 'ln' or 'none', got 'layer_norm'.",
        "act must be 'silu', 'gelu', 'gelu_new', 'relu', 'relu2' or 'solu', got 'mish'.",
        "positions must be 'rotary', 'learned' or 'none', got 'sinusoidal'.",
        "biases must be 'all', 'mlp' or 'none', got 'attn'.",
        "init must be 'llama', 'gpt2' or 'grokking', got 'llamas'. Did you mean 'llama'?",
        "n_steps must be an integer, got 10.5.",
        "lr must be a number, got 'fast'.",
        "True True True",
    ]


@CLASSES
def test_another_programs_file_is_refused(cls):
    values = cls(**BASE[cls]).to_dict()
    with pytest.raises(qfl.QflError, match=rf"{cls.__name__} does not fit: unknown fields \['hidden_size'\]"):
        cls.from_dict(values | {"hidden_size": 3})


def test_a_missing_field_is_named():
    with pytest.raises(qfl.QflError, match=r"missing fields \['d_model', 'n_layers'\]"):
        qfl.ModelConfig.from_dict({"n_heads": 4})


def test_default_widths_of_the_mlp():
    """8 d / 3 rounded down, then up to even; 4 d for GPT-2."""
    widths = {8: 22, 16: 42, 64: 170, 256: 682}
    assert {d: qfl.ModelConfig(d_model=d, n_layers=1).d_mlp_used for d in widths} == widths
    assert qfl.ModelConfig(d_model=16, n_layers=1, style="gpt2").d_mlp_used == 64
    assert qfl.ModelConfig(d_model=16, n_layers=1, d_mlp=7).d_mlp_used == 7
    assert qfl.ModelConfig(d_model=16, n_layers=1, gated=False).d_mlp_used == 64
    assert qfl.ModelConfig(d_model=16, n_layers=1, style="gpt2", gated=True).d_mlp_used == 42
    assert qfl.ModelConfig(d_model=16, n_layers=1, attn_only=True).d_mlp_used == 0


def test_a_style_is_a_preset():
    own = qfl.ModelConfig(d_model=16, n_layers=1, style="grokking", act="gelu", gated=False)
    assert own.used == ("none", "gelu", False, "learned", "mlp", "grokking")
    assert qfl.ModelConfig(d_model=16, n_layers=1).used == ("rms", "silu", True, "rotary", "none", "llama")
    spelled = dict(zip(own.used._fields, own.used, strict=True))
    assert qfl.ModelConfig(d_model=16, n_layers=1, **spelled).used == own.used


def test_what_was_not_there_before_is_not_written():
    assert set(qfl.ModelConfig(**MODEL).to_dict()) == {
        "d_model", "n_layers", "n_heads", "style", "d_mlp", "norm_eps", "rope_theta",
    }  # fmt: skip
    assert qfl.ModelConfig(**MODEL, norm="ln", tied=True).to_dict() | {"norm": "ln", "tied": True} == (
        qfl.ModelConfig(**MODEL).to_dict() | {"norm": "ln", "tied": True}
    )


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        qfl.ModelConfig(**MODEL).d_model = 32


def test_a_limit_may_be_infinite():
    config = qfl.TrainConfig(n_steps=1, clip_norm=math.inf, divergence_loss=math.inf)
    assert qfl.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="adam_eps must be a finite number"):
        qfl.TrainConfig(n_steps=1, adam_eps=math.inf)


def test_options_hold_plain_values_and_name_a_run_where_there_are_some(addition):
    made = _options({"k": np.int64(4), "share": 0.5, "wide": True, "name": "x"})
    assert made == {"k": 4, "share": 0.5, "wide": True, "name": "x"}
    assert type(made["k"]) is int
    assert hash(made) == hash(Options(reversed(made.items())))
    for bad, what in (({"k": [1]}, "k is true or false"), ({"k": float("nan")}, "finite"), ([1], "by name")):
        with pytest.raises(TypeError, match=what):
            _options(bad)
    plan = plan_run(addition, qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2), qfl.TrainConfig(n_steps=3))
    assert "task_options" not in plan.to_dict()
    other = dataclasses.replace(plan, task_options=Options(k=4))
    assert other.to_dict()["task_options"] == {"k": 4}
    assert other.digest != plan.digest
