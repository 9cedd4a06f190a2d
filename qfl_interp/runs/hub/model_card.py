"""The card of a run on the hub: what it is, how to read it, how it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qfl_interp.runs.run import Run

_SCORES = ("val_loss", "val_exact", "val_loss_answer", "val_exact_answer")
_CARD = """\
---
library_name: qfl_interp
tags:
- qfl_interp
- training-dynamics
- mechanistic-interpretability
---

# {run_id}

Checkpoints of a small transformer from the first step of its training to the last, made with qfl_interp. The branch
`step1000` keeps the model after 1,000 updates, in safetensors with its checksums; `main` keeps this card, the run's
configuration, the metrics of every logged step, and where they come from.

{facts}

## How to read it

```bash
qfl pull {repo} {folder}
qfl probe {folder}
```

## Configuration

```json
{config}
```
"""


def model_card(run: Run, repo: str, steps: Sequence[int]) -> str:
    """The text of `README.md` for a run whose checkpoints of these steps are in a repository.

    Raises:
        QflError: A file of the run is damaged.
    """
    config, session = run.config, (run.provenance or [{}])[-1]
    rows = run.read_metrics().rows
    validated = [row for row in rows if "val_loss" in row]
    facts = {
        "task": f"{config.task}, length {config.length}",
        "parameters": f"{run.n_parameters:,}",
        "checkpoints": f"{len(steps)}, of steps {steps[0]} to {steps[-1]}",
        "training": f"{config.n_steps:,} steps, {'finished' if run.finished else 'unfinished'}",
        "seed": config.train.seed,
    }
    if validated:
        last = validated[-1]
        facts |= {"nominal FLOPs": f"{last['flops']:.4g}", "validated at step": last["step"]}
        facts |= {name: f"{last[name]:.4g}" for name in _SCORES if name in last}
    if session:
        versions = ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items())
        facts |= {"device": session.get("device"), "versions": versions}
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())])
    values = {
        "model": config.model.to_dict(),
        "train": config.train.to_dict(),
        "task_options": dict(config.task_options),
    }
    text = json.dumps(values, indent=1)
    return _CARD.format(run_id=run.run_id, facts=table, repo=repo, folder=f"runs/{repo.split('/')[-1]}", config=text)
