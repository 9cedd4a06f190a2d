"""Models of the user's own, made with TransformerLens: trained, resumed, opened again, refused."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from conftest import tiny_train_config
from helpers import stopped_after

import qfl_interp as qfl
from qfl_interp.model_kinds import LensModelConfig, model_config_from_dict
from qfl_interp.models.build import build_hooked, parameters_to_save
from qfl_interp.models.forward import is_fast
from qfl_interp.models.given import configured
from qfl_interp.models.tl_version import MAJOR, HookedTransformer, HookedTransformerConfig
from qfl_interp.runs.flops import actual_flops_per_step, flops_per_step

D_VOCAB, N_CTX = 5, 24
# What no `ModelConfig` says: a soft cap; and, where TransformerLens has them, parallel blocks and grouped queries.
OWN = {
    "d_model": 16, "d_head": 4, "n_heads": 4, "n_layers": 2, "n_ctx": N_CTX, "d_vocab": D_VOCAB, "act_fn": "relu",
    "output_logits_soft_cap": 20.0, "device": "cpu",
}  # fmt: skip
OWN |= {"n_key_value_heads": 2, "parallel_attn_mlp": True} if MAJOR < 4 else {}


def lens_config(**changes) -> HookedTransformerConfig:
    return HookedTransformerConfig(**OWN | changes)


def lens_model(seed=0, **changes) -> HookedTransformer:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
        torch.manual_seed(seed)
        return HookedTransformer(lens_config(**changes))


def short(**changes) -> qfl.TrainConfig:
    return tiny_train_config(**{"n_steps": 8, "n_checkpoints": 3} | changes)


def weights_of(run: qfl.Run) -> dict[int, dict[str, torch.Tensor]]:
    return {step: run.load_checkpoint(step).model for step in run.steps}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(w, other[step][name]) for step, at in one.items() for name, w in at.items()
    )


GIVEN = {"configuration": lens_config, "model": lens_model}


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["resume point", "first checkpoint alone"])
@pytest.mark.parametrize("make", GIVEN.values(), ids=GIVEN)
def test_it_trains_resumes_to_the_same_bits_and_opens_again(make, seconds, addition, tmp_path):
    whole = qfl.train(addition, make(), short(), tmp_path / "whole", progress=False)
    assert whole.metrics["val_loss"].notna().any()
    opened = qfl.Run.open(whole.path)
    assert opened.config == whole.config
    model = opened.load_model()
    assert not is_fast(model)
    assert {name: getattr(model.cfg, name) for name in OWN} == OWN
    assert opened.n_parameters == sum(p.numel() for p in model.parameters())
    assert same({0: dict(model.named_parameters())}, {0: opened.load_checkpoint(8).model})

    # Stopped after an update in the middle, as by a kill: the resume point of before is what is left.
    with stopped_after(5):
        qfl.train(addition, make(), short(), tmp_path / "killed", progress=False, resume_seconds=seconds)
    resumed = qfl.resume(tmp_path / "killed", progress=False)
    assert resumed.config == whole.config
    assert same(weights_of(resumed), weights_of(whole))


def test_a_models_own_weights_are_the_initial_ones_and_stay_as_they_are(addition, tmp_path):
    model = lens_model(seed=3)
    before = {name: w.clone() for name, w in parameters_to_save(model).items()}
    run = qfl.train(addition, model, short(), tmp_path / "run", progress=False)
    assert same({0: before}, {0: parameters_to_save(model)})
    assert same({0: before}, {0: run.load_checkpoint(0).model})
    assert not same({0: before}, {0: run.load_checkpoint(8).model})
    other = configured(lens_model(seed=4)).config
    assert other.weights != run.config.model.weights
    assert other.digest() != run.config.model.digest()
    with pytest.raises(qfl.QflError, match="another configuration"):
        qfl.train(addition, lens_model(seed=4), short(), tmp_path / "run", progress=False, resume=True)
    # Without any checkpoint nothing says what the weights were.
    for folder in ("checkpoints", "resume"):
        for step in (run.path / folder).glob("step_*"):
            for file in step.iterdir():
                file.unlink()
            step.rmdir()
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(qfl.QflError, match=r"begun with weights that were given .* again with the model and resume"):
        qfl.resume(run.path, progress=False)
    again = qfl.train(addition, model, short(), tmp_path / "run", progress=False, resume=True)
    assert same({0: before}, {0: again.load_checkpoint(0).model})


def test_the_seed_decides_the_weights_of_a_configuration(addition):
    config = configured(lens_config()).config
    assert config.weights is None
    before = torch.get_rng_state()
    one, again, other = (build_hooked(config, d_vocab=D_VOCAB, n_ctx=N_CTX, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same({0: dict(one.named_parameters())}, {0: dict(again.named_parameters())})
    assert not torch.equal(one.embed.W_E, other.embed.W_E)


def test_frozen_parameters_stay_frozen(addition, tmp_path):
    model = lens_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("b_" not in name)
    run = qfl.train(addition, model, short(), tmp_path / "run", progress=False)
    assert run.n_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    for name, parameter in run.load_model().named_parameters():
        assert parameter.requires_grad == ("b_" not in name)
        assert not (parameter.any() and "b_" in name), name


def test_a_model_of_this_library_is_given_as_well(addition, tmp_path):
    """Its biases are buffers of zeros: they stay zero."""
    config = qfl.ModelConfig(d_model=16, n_layers=1)
    model = qfl.build_model(config, addition, seed=3)
    plain = qfl.train(addition, config, short(), tmp_path / "plain", progress=False)
    run = qfl.train(addition, model, short(), tmp_path / "run", progress=False)
    assert run.n_parameters == plain.n_parameters
    sizes = {"batch_size": 3, "n_ctx": 7}
    assert flops_per_step(run.config.model, **sizes) == flops_per_step(config, **sizes)
    d_vocab = addition.d_vocab
    mine, usual = (actual_flops_per_step(c, **sizes, d_vocab=d_vocab) for c in (run.config.model, config))
    assert mine == usual
    trained, wanted = run.load_checkpoint(8).model, plain.load_checkpoint(8).model
    for name, w in wanted.items():
        torch.testing.assert_close(trained[name], w, rtol=1e-4, atol=1e-5)  # two passes' rounding, eight updates
    assert run.config == type(run.config).read(run.path)
    fresh, seed = run.untrained_model(0)
    drawn = dict(qfl.build_model(config, addition, seed=seed).named_parameters())
    for name, w in fresh.named_parameters():
        assert torch.equal(w, drawn[name]) if name in drawn else not w.any(), name


def test_the_file_says_the_kind_and_old_ones_say_none(tmp_path, addition, tiny_run):
    config = configured(lens_model()).config
    text = json.dumps(config.to_dict())
    assert json.loads(text)["kind"] == "transformer_lens"
    assert model_config_from_dict(json.loads(text)) == config
    assert isinstance(config, LensModelConfig)
    assert hash(config) == hash(model_config_from_dict(json.loads(text)))
    assert "kind" not in json.loads((tiny_run.path / "config.json").read_text())["model"]
    with pytest.raises(
        qfl.QflError, match=r"no kind of model configuration is named 'transformer_lense'.*Did you mean"
    ):
        model_config_from_dict({"kind": "transformer_lense"})
    with pytest.raises(qfl.QflError, match=r"unknown fields \['more'\], missing fields \['config'"):
        model_config_from_dict({"kind": "transformer_lens", "more": 1})


def hooked() -> HookedTransformer:
    model = lens_model()
    model.add_hook("blocks.0.hook_attn_out", lambda x, hook: x)
    return model


def patched() -> HookedTransformer:
    model = lens_model()
    model.blocks[1].attn = torch.nn.Identity()
    return model


def scaled() -> HookedTransformer:
    model = lens_model()
    model.blocks[1].attn.attn_scale = 1.0
    return model


REFUSED = {
    r"d_vocab=4: the task needs 5": lambda: lens_config(d_vocab=4),
    r"n_ctx=9: the task needs \d+": lambda: lens_config(n_ctx=9),
    r"dtype=torch.bfloat16: torch.float32 and": lambda: lens_config(dtype=torch.bfloat16),
    r"init_weights=False: there are no initial weights": lambda: lens_config(init_weights=False),
    r"hooks are attached at blocks.0.hook_attn_out: call reset_hooks": hooked,
    r"blocks.1.attn.*is not there": patched,
    r"computes other logits": scaled,
}
# Under transformer-lens 4 there is no such configuration.
REFUSED_AT_ONCE = {
    r"tokenizer_name='gpt2': a task has tokens of its own": lambda: lens_config(tokenizer_name="gpt2"),
    r"attention_dir='bidirectional': others read the tokens that": lambda: lens_config(attention_dir="bidirectional"),
    r"seed=3: TrainConfig.seed decides": lambda: lens_config(seed=3),
}


@pytest.mark.parametrize(
    ("message", "make"),
    [pytest.param(*case, id=case[0]) for case in REFUSED.items()]
    + [pytest.param(*case, id=case[0], marks=pytest.mark.tl3) for case in REFUSED_AT_ONCE.items()],
)
def test_what_cannot_be_trained_or_opened_again_is_refused(message, make, addition, tmp_path):
    with pytest.raises(qfl.QflError, match=rf"(?s)cannot be trained and opened again.*{message}"):
        qfl.train(addition, make(), short(), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_is_no_model_is_named(addition, tmp_path):
    with pytest.raises(TypeError, match=r"a model must be a ModelConfig, .* got a dict"):
        qfl.train(addition, {"d_model": 16}, short(), tmp_path / "run", progress=False)


def test_compile_says_that_the_own_forward_stays_as_it_is(addition, tmp_path):
    with pytest.warns(RuntimeWarning, match="compile=True has no effect"):
        qfl.train(addition, lens_config(), short(n_steps=2, compile=True), tmp_path / "run", progress=False)
