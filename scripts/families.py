"""Which lens works on which family of Hugging Face models: every lens on tiny random checkpoints of each.

python scripts/families.py           # prints the table
python scripts/families.py --write   # and puts it into docs/any_model.md
python scripts/families.py bloom     # one family
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import transformers
from pages import DOCS, fill, markdown
from transformers import AutoModelForCausalLM, PretrainedConfig

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.runs.sources.hugging_face import HuggingFace, quiet

STEPS = (0, 10, 100)
D_VOCAB, N_CTX = 12, 16
_SIZES = {
    "vocab_size": D_VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 1}
_GPT2 = {"vocab_size": D_VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": N_CTX}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1}
# Family -> class of its configuration, and sizes; as `transformers` has them.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2Config", _GPT2 | _ENDS),
    "GPT-J": ("GPTJConfig", _GPT2 | _ENDS | {"rotary_dim": 4}),
    "GPT-Neo": ("GPTNeoConfig", {
        "vocab_size": D_VOCAB, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": N_CTX,
        "attention_types": [[["global", "local"], 1]], "window_size": 4, **_ENDS,
    }),
    "GPT-NeoX": ("GPTNeoXConfig", _SIZES),
    "Llama": ("LlamaConfig", _SIZES | _GROUPED),
    "Llama, tied": ("LlamaConfig", _SIZES | _GROUPED | {"tie_word_embeddings": True}),
    "Mistral": ("MistralConfig", _SIZES | _GROUPED),
    "Mixtral": ("MixtralConfig", _SIZES | _GROUPED | {"num_local_experts": 4}),
    "Qwen2": ("Qwen2Config", _SIZES | _GROUPED),
    "Qwen3": ("Qwen3Config", _SIZES | _GROUPED | {"head_dim": 8}),
    "OLMo": ("OlmoConfig", _SIZES),
    "OLMo 2": ("Olmo2Config", _SIZES),
    "OLMo 3": ("Olmo3Config", _SIZES),
    "SmolLM3": ("SmolLM3Config", _SIZES | _GROUPED),
    "Gemma": ("GemmaConfig", _SIZES | _GROUPED | {"head_dim": 8}),
    "Gemma 2": ("Gemma2Config", _SIZES | _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "Gemma 3": ("Gemma3TextConfig", _SIZES | _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "Phi": ("PhiConfig", _SIZES),
    "Phi-3": ("Phi3Config", _SIZES),
    "StableLM": ("StableLmConfig", _SIZES | _GROUPED | {"partial_rotary_factor": 0.5}),
    "Granite": ("GraniteConfig", _SIZES | _GROUPED),
    "Cohere": ("CohereConfig", _SIZES),
    "Falcon": ("FalconConfig", _SIZES | {"alibi": False}),
    "Bloom": ("BloomConfig", {"vocab_size": D_VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 2, **_ENDS}),
    "OPT": ("OPTConfig", _SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "Mamba": ("MambaConfig", {
        "vocab_size": D_VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, **_ENDS,
    }),
}  # fmt: skip

_PROBES = qfl.ProbeConfig(n_train=40, n_test=20)
_POLCA = qfl.PolcaConfig(basis="random", n_directions=2, accuracy="first", n_examples=16, n_hessian=16)
_CURVATURE = qfl.CurvatureConfig(n_examples=16, n_rank_examples=16, tol=0.5, max_products=8)
_QUIET = {"progress": False}


class Call(NamedTuple):
    """A lens on a suite, and a column of its rows that must have finite numbers."""

    of: Callable[[qfl.Suite], Any]
    column: str


LENSES = {
    "probe": Call(lambda s: analyses.probe(s, "odd", "last", config=_PROBES, **_QUIET), "test_score"),
    "transfer": Call(lambda s: analyses.transfer(s, "odd", "0,100", config=_PROBES, **_QUIET), "test_score"),
    "mdl": Call(lambda s: analyses.mdl(s, "odd", "last", config=_PROBES, **_QUIET), "compression"),
    "patch": Call(
        lambda s: analyses.patch(s, "odd", "last", components=("resid_pre",), n_pairs=8, **_QUIET),
        "logit_diff_normalised",
    ),
    "patch heads": Call(
        lambda s: analyses.patch(s, "odd", "last", components=("z",), n_pairs=8, **_QUIET), "logit_diff_normalised"
    ),
    "interchange": Call(
        lambda s: analyses.interchange(s, "odd", "last", config=_PROBES, n_pairs=8, n_random=2, **_QUIET), "flipped"
    ),
    "ablate": Call(lambda s: analyses.ablate(s, "odd", "last", config=_PROBES, n_trials=2, **_QUIET), "loss"),
    "ablate heads": Call(lambda s: analyses.ablate_units(s, "last", site="z", n=16, **_QUIET), "loss_increase"),
    "ablate neurons": Call(
        lambda s: analyses.ablate_units(s, "last", site="mlp_post", n=16, **_QUIET), "loss_increase"
    ),
    "validate": Call(lambda s: analyses.validate(s, "all", **_QUIET), "val_loss"),
    "emergence": Call(lambda s: analyses.emergence(s, "odd", config=_PROBES, **_QUIET), "best"),
    "timeline": Call(lambda s: _drawn(analyses.timeline(s, "odd", config=_PROBES, **_QUIET)), "points"),
    "capture": Call(lambda s: analyses.capture(s, ["resid_post"], "last", n=16, n_test=8, **_QUIET), "mib"),
    "curvature": Call(lambda s: analyses.curvature(s, "last", config=_CURVATURE, **_QUIET), "sharpness"),
    "polca": Call(lambda s: analyses.polca(s, "all", config=_POLCA, **_QUIET).intervals, "captured"),
}


def _drawn(figure: go.Figure) -> pd.DataFrame:
    """How many points each curve of a figure has."""
    return pd.DataFrame({"points": [float(len(trace.x)) for trace in figure.data if trace.x is not None]})


def task() -> qfl.FixedTask:
    """Rows `x y a = a`: the feature is whether a, one of four, is odd; x and y keep rows apart."""
    rows = np.stack(np.unravel_index(np.arange(144), (D_VOCAB, D_VOCAB)), axis=1)
    a = np.random.default_rng(0).integers(4, size=(144, 1))
    tokens = np.concatenate([rows, a, np.full_like(a, 8), a + 4], axis=1)
    scored = np.zeros(tokens.shape, dtype=bool)
    scored[:, 3:] = True
    odd = qfl.FixedFeature("binary", a % 2, np.full_like(a, 2), "Whether the number is odd.")
    return qfl.FixedTask("copy", tokens, scored, {"odd": odd})


def save(config: PretrainedConfig, folder: Path, number: int) -> None:
    """A random model that differs from the others of its family, its activations far from zero."""
    with quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5.0) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
                parameter.add_(torch.randn_like(parameter) * 0.1 * number)
        model.save_pretrained(folder)


def difference(folder: Path) -> float:
    """The largest difference between the bridge's logits and the model's own, as a share of the largest logit."""
    tokens = torch.arange(3 * 8).view(3, 8) % D_VOCAB
    source = HuggingFace(str(folder))
    with torch.no_grad():
        own = source.load_pretrained().eval()(tokens).logits
        return float((source.load()(tokens) - own).abs().max() / own.abs().max())


def row(family: str) -> dict[str, str]:
    """Of a family: the difference of logits, and for each lens "yes", or why not."""
    name, sizes = FAMILIES[family]
    with tempfile.TemporaryDirectory() as place:
        for number, step in enumerate(STEPS):
            save(getattr(transformers, name)(**sizes), Path(place) / f"step{step}", number)
        try:
            apart = difference(Path(place) / f"step{STEPS[-1]}")
        except qfl.QflError as error:
            return {"family": family, "logits": _why(error)} | dict.fromkeys(LENSES, "–")
        suite = qfl.Suite.open(place, task(), tokens_per_step=1000)
        shown = "equal to 1e-6" if apart < 1e-6 else f"off by {apart:.0e}"
        return {"family": family, "logits": shown} | {lens: outcome(suite, call) for lens, call in LENSES.items()}


def outcome(suite: qfl.Suite, call: Call) -> str:
    """What a lens made of a suite: "yes", or in a sentence why it could not."""
    try:
        found = call.of(suite)
    except (qfl.QflError, ValueError) as error:
        return _why(error)
    rows = found.to_dataframe() if hasattr(found, "to_dataframe") else found
    if not len(rows):
        return "no rows"
    return "yes" if np.isfinite(rows[call.column].to_numpy(float)).any() else "no finite value"


def _why(error: Exception) -> str:
    """The first sentence of an error."""
    return str(error).partition(". ")[0].rstrip(".")


_WELL = ("yes", "–", "equal to 1e-6")


def page(rows: Iterable[dict[str, str]]) -> str:
    """The rows as a table of Markdown, the reasons why not below it by number."""
    reasons: dict[str, int] = {}
    shown = []
    for found in rows:
        why = {lens: said for lens, said in found.items() if lens != "family" and said not in _WELL}
        numbers = {lens: f"no ({reasons.setdefault(said, len(reasons) + 1)})" for lens, said in why.items()}
        shown.append(found | numbers)
    listed = [f"- ({number}) {reason}." for reason, number in reasons.items()]
    return "\n".join([markdown(pd.DataFrame(shown)), *listed])


def main() -> None:
    """Make the table; write it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="names, all by default")
    parser.add_argument("--write", action="store_true", help="put the table into docs/any_model.md")
    asked = parser.parse_args()
    by_name = {name.lower(): name for name in FAMILIES}
    if unknown := [name for name in asked.families if name.lower() not in by_name]:
        raise SystemExit(f"no family is named {unknown[0]!r}. Known: {', '.join(FAMILIES)}.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in [by_name[name.lower()] for name in asked.families] or FAMILIES:
        rows.append(row(name))
        print(rows[-1], file=sys.stderr)
    text = page(rows)
    print(text)
    if asked.write:
        fill(DOCS / "any_model.md", {"families": text})


if __name__ == "__main__":
    main()
