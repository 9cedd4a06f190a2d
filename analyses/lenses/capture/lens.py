"""Activations on disk beside the run: captured once on the probes' examples, for every later look at them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import torch

from qfl_interp.activations.store import ActivationStore, store_of
from qfl_interp.activations.store_entry import StoreDtype, StoreKey
from qfl_interp.analyses.lens import Lens
from qfl_interp.analyses.lenses.capture.columns import RESULT
from qfl_interp.analyses.lenses.probe.data import probe_data, read_span, store_key
from qfl_interp.analyses.result import Result
from qfl_interp.config import ProbeConfig
from qfl_interp.plots.theme import new_figure
from qfl_interp.progress import progress_bar
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import column, distinct, groups, select


class Capture(Lens):
    """Fills the store of activations, which has no table and nothing for a page."""

    name = "capture"
    question = "Which activations are kept on disk, for every later look at them?"
    result = RESULT
    order = 5


def capture(
    run: Checkpoints,
    sites: str | Sequence[str] = ("resid_post",),
    steps: Steps = "last",
    *,
    layers: Sequence[int] | None = None,
    n: int = 10_000,
    n_test: int = 1_000,
    seed: int = 0,
    dtype: StoreDtype = "float32",
    store: ActivationStore | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Keep activations at checkpoints on disk, memory-mapped: what is there already is not captured again.

    Examples and positions are those of the probes (`probe(run, store=True)` then loads no model): `n` to fit on and
    `n_test` to score on, over all positions that some feature reads. They may be larger than memory; a call that
    was killed goes on where it was. Read them with `store_of(run).spans(...)`.

    Example:
        `qfl capture runs/add16 resid_post z --steps last`

    Args:
        run: What to look at.
        sites: Names as in `qfl_interp.models.hooks.Site`, "resid_post" by default: "attn_out", "z" (every head),
            "mlp_post", ...
        steps: "all", "last", "log:20", "1000,2000", a step or several.
        layers: Blocks; all by default.
        n: Examples to fit on; fewer where the split holds fewer.
        n_test: Examples to score on.
        seed: Draws the examples.
        dtype: "bfloat16" takes half the space; probes read "float32".
        store: Where; the folder `activations` of the run by default.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, data set, site and layer, with the positions stored and MiB.

    Raises:
        QflError: Unknown step, the model has no such site, or the disk has too little room.
        ValueError: An unknown site, layer or dtype, or `n` is below 1.
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    store = store or store_of(run)
    config = ProbeConfig(n_train=n, n_test=n_test, seed=seed)
    parts = {part: examples for part, examples in probe_data(run, config)._asdict().items() if len(examples)}
    at = run.resolve_steps(steps)
    keys = []
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task("capturing", total=len(at) * sum(map(len, parts.values())), detail="")
        before = 0
        for step in at:
            # Both data sets share one model, which is loaded only if something is missing.
            load = functools.cache(functools.partial(run.load_model, step, device=device))
            for part, examples in parts.items():
                key = store_key(run, step, part, examples, config)
                bar.update(shown, completed=before, detail=f"{key.dataset} at step {step}")

                def on_examples(done: int, _total: int, before: int = before) -> None:
                    bar.update(shown, completed=before + done)

                store.capture(
                    key,
                    load,
                    run.task.encode(examples).tokens,
                    *read_span(run.task, examples),
                    names=names,
                    layers=layers,
                    dtype=dtype,
                    on_examples=on_examples,
                )
                keys.append(key)
                before += len(examples)
        bar.update(shown, completed=before)
    rows = _rows(store, keys, names, dtype).assign(**run.identity())
    return Result(
        f"Activations of {run.run_id} in {store.folder}",
        _summary(rows),
        rows,
        _figure,
        columns=RESULT,
        of=run.label,
    )


def _rows(store: ActivationStore, keys: Sequence[StoreKey], names: Sequence[str], dtype: str) -> pd.DataFrame:
    """What the store holds of these sites under these keys."""
    entries = select(store.entries(), dtype=dtype)
    parts = [
        select(entries, run_id=key.run_id, step=key.step, dataset=key.dataset, site=name)
        for key in keys
        for name in names
    ]
    return pd.concat(parts, ignore_index=True)


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a step, data set and site."""
    lines = []
    for _, part in groups(rows.assign(line=rows["dataset"] + rows["step"].astype(str) + rows["site"]), "line"):
        line = part.iloc[0][["step", "dataset", "site", "n_examples", "first", "last", "dtype"]].to_dict()
        lines.append(line | {"layers": len(distinct(part, "layer")), "mib": column(part, "mib").sum()})
    return pd.DataFrame(lines)


def _figure(rows: pd.DataFrame) -> go.Figure:
    """MiB of each site's layers, over all steps and data sets."""
    figure = new_figure("activations", 320)
    for site, part in groups(rows, "site"):
        by_layer = {layer: column(one, "mib").sum() for layer, one in groups(part, "layer")}
        hover = f"{site}, layer %{{x}}<br>%{{y:,.1f}} MiB<extra></extra>"
        figure.add_trace(go.Bar(x=list(by_layer), y=list(by_layer.values()), name=site, hovertemplate=hover))
    figure.update_layout(xaxis={"title": "layer", "dtick": 1}, yaxis={"title": "MiB on disk"}, showlegend=True)
    return figure
