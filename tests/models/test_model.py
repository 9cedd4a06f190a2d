from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qfl_interp.config import ModelConfig
from qfl_interp.errors import QflError
from qfl_interp.models.build import build_hooked, build_model, load_parameters, model_device, parameters_to_save
from qfl_interp.tasks.addition import Addition
from tests.helpers_golden import GOLDEN, golden_forward, hooked_from_golden

SMALL = ModelConfig(d_model=16, n_layers=2)
MODEL_SIZES = json.loads((GOLDEN / "schedules.json").read_text())["model_sizes"]


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module", params=range(len(golden_forward())), ids="golden{}".format)
def golden(request):
    case = golden_forward()[request.param]
    return case, hooked_from_golden(case)


def test_golden_logits_and_losses(golden):
    case, model = golden
    tokens, mask = torch.tensor(case["ids"]), torch.tensor(case["loss_mask"]).bool()
    logits = model(tokens)
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), rtol=1e-4, atol=1e-4)
    losses = F.cross_entropy(logits[:, :-1][mask[:, 1:]], tokens[:, 1:][mask[:, 1:]], reduction="none")
    torch.testing.assert_close(losses, torch.tensor(case["per_token_losses"]), rtol=1e-4, atol=1e-4)
    assert losses.mean().item() == pytest.approx(case["loss"], abs=1e-4)


def test_golden_inner_activations(golden):
    case, model = golden
    _, cache = model.run_with_cache(torch.tensor(case["ids"])[:1])
    for key, hook in (
        ("block_outputs", "resid_post"),
        ("attention_outputs", "attn_out"),
        ("after_attention", "resid_mid"),
        ("ffn_outputs", "mlp_out"),
    ):
        want = torch.tensor(case[f"{key}_first_example"])
        got = torch.stack([cache[hook, layer][0] for layer in range(len(want))])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_golden_greedy(golden):
    case, model = golden
    tokens = torch.tensor([case["greedy"]["prompt"]])
    while tokens.shape[1] < len(case["greedy"]["completed"]):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    assert tokens[0].tolist() == case["greedy"]["completed"]


@pytest.mark.parametrize(
    "size", [s for s in MODEL_SIZES if s["dim"] <= 128], ids=lambda s: f"{s['dim']}x{s['n_layers']}"
)
def test_golden_parameter_counts(size):
    config = ModelConfig(d_model=size["dim"], n_layers=size["n_layers"])
    assert config.d_mlp_used == size["ffn_hidden"]
    model = build_hooked(config, d_vocab=size["vocab"], n_ctx=52)
    assert n_parameters(model) == size["parameters"]


def test_polca_parameter_count():
    model = build_hooked(ModelConfig(d_model=512, n_layers=3, style="gpt2"), d_vocab=10, n_ctx=14)
    assert n_parameters(model) == 9_475_594


def test_build_model_takes_the_sizes_of_the_task():
    task = Addition(4)
    model = build_model(SMALL, task)
    assert (model.cfg.d_vocab, model.cfg.n_ctx) == (5, 16) == (task.d_vocab, task.n_ctx)


@pytest.mark.parametrize("style", ["llama", "gpt2"])
@pytest.mark.parametrize("d_mlp", [None, 20])
def test_parameters_are_counted_without_a_model(style, d_mlp):
    config = ModelConfig(d_model=24, n_layers=3, n_heads=2, style=style, d_mlp=d_mlp)
    assert config.n_parameters(d_vocab=7, n_ctx=9) == n_parameters(build_hooked(config, d_vocab=7, n_ctx=9))


def test_llama_initial_weights():
    config = ModelConfig(d_model=128, n_layers=2, d_mlp=300)
    model = build_hooked(config, d_vocab=64, n_ctx=8)
    for name, w in model.named_parameters():
        matrix = name.rpartition(".")[2]
        if matrix == "w":
            assert (w == 1).all(), name
            continue
        # Four standard errors of the moments of n independent draws.
        normal = matrix == "W_E"
        bound = math.sqrt(3) if normal else 1 / math.sqrt(300 if matrix == "W_out" else 128)
        sd = bound / math.sqrt(3)
        assert abs(w.mean().item()) < 4 * sd / math.sqrt(w.numel()), name
        kurtosis = 3.0 if normal else 1.8
        assert w.var().item() == pytest.approx(sd**2, rel=4 * math.sqrt((kurtosis - 1) / w.numel())), name
        if not normal:
            assert w.abs().max() <= bound, name
    assert model.embed.W_E.abs().max() > 3  # normal, not uniform


def test_gpt2_initial_weights():
    model = build_hooked(ModelConfig(d_model=128, n_layers=2, style="gpt2"), d_vocab=64, n_ctx=32)
    for name, w in model.named_parameters():
        matrix = name.rpartition(".")[2]
        if matrix.startswith("W_"):
            assert w.std().item() == pytest.approx(0.8 / math.sqrt(128), rel=4 / math.sqrt(2 * w.numel())), name
        else:
            assert (w == (1 if matrix == "w" else 0)).all(), name


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_seed_decides_the_weights(style):
    config = ModelConfig(d_model=16, n_layers=1, style=style)
    first, again, other = (
        parameters_to_save(build_hooked(config, d_vocab=5, n_ctx=8, seed=seed)) for seed in (3, 3, 4)
    )
    for name, w in first.items():
        assert torch.equal(w, again[name]), name
        if name.rpartition(".")[2].startswith("W_"):
            assert not torch.equal(w, other[name]), name
            assert len({torch.equal(w, u) for n, u in first.items() if n != name and u.shape == w.shape} - {False}) == 0


def test_global_generators_are_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 the global state is what is tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    build_hooked(SMALL, d_vocab=5, n_ctx=8, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_only_the_deprecation_is_silenced():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        build_hooked(SMALL, d_vocab=5, n_ctx=8)
        warnings.warn("another", DeprecationWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["another"]


def test_frozen_biases_are_in_no_checkpoint():
    model = build_hooked(SMALL, d_vocab=5, n_ctx=8)
    assert model.blocks[0].attn.b_Q.shape == (4, 4)
    assert not [name for name in model.state_dict() if ".b_" in name]
    assert parameters_to_save(model).keys() == {name for name, _ in model.named_parameters()}
    assert model_device(model) == torch.device("cpu")
    moved = build_hooked(SMALL, d_vocab=5, n_ctx=8).to(torch.float64, print_details=False)
    assert moved.blocks[0].attn.b_Q.dtype == moved(torch.zeros(1, 8, dtype=torch.int64)).dtype == torch.float64


def test_load_parameters_round_trip():
    source, target = (build_hooked(SMALL, d_vocab=5, n_ctx=8, seed=seed) for seed in (0, 1))
    tokens = torch.tensor([[0, 1, 2, 3, 4]])
    assert not torch.equal(source(tokens), target(tokens))
    load_parameters(target, parameters_to_save(source))
    assert torch.equal(source(tokens), target(tokens))


def test_load_parameters_refuses_and_lists_everything():
    model = build_hooked(SMALL, d_vocab=5, n_ctx=8)
    before = {name: w.clone() for name, w in parameters_to_save(model).items()}
    wrong = {name: w + 1 for name, w in before.items()}
    del wrong["ln_final.w"]
    wrong["blocks.7.ln1.w"] = torch.zeros(16)
    wrong["embed.W_E"] = torch.zeros(6, 16)
    wrong["unembed.W_U"] = wrong["unembed.W_U"].double()
    with pytest.raises(QflError) as error:
        load_parameters(model, wrong)
    for part in (
        "4 mismatches",
        "ln_final.w: missing",
        "blocks.7.ln1.w: not in this model",
        r"embed.W_E: shape (6, 16) instead of (5, 16)",
        "unembed.W_U: dtype torch.float64 instead of torch.float32",
    ):
        assert part in str(error.value)
    assert all(torch.equal(w, before[name]) for name, w in parameters_to_save(model).items())


@pytest.mark.parametrize("sizes", [{"d_vocab": 0, "n_ctx": 8}, {"d_vocab": 5, "n_ctx": 0}], ids=str)
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        build_hooked(SMALL, **sizes)
