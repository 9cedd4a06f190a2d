"""What the columns of a sweep's records are: one row a run."""

from __future__ import annotations

from typing import Final

from qfl_interp.columns import COUNT, TASK, Column, Columns
from qfl_interp.runs.metric_columns import METRICS

# Of the final validation.
_SCORES: Final = ("val_loss", "val_exact", "val_loss_answer", "val_exact_answer", "val_pass", "val_pass_answer")
_AT_END: Final = ", at the end; NaN of a run that did not finish"

# In the order of `parts.COLUMNS`.
RECORDS: Final[Columns] = {
    **TASK,
    "task_options": Column("what the task was made with beside its length; empty where nothing was said"),
    "budget_flops": Column("training budget of the grid", "FLOPs"),
    "style": Column("the model's style"),
    "d_model": Column("width of the model", COUNT),
    "n_layers": Column("blocks of the model", COUNT),
    "n_heads": Column("attention heads of a block", COUNT),
    "lr": Column("largest learning rate"),
    "batch_size": Column("examples in a batch", COUNT),
    "seed": Column("seed of the run: initial weights, data and evaluation sets"),
    "schedule": Column("schedule of the learning rate"),
    "weight_decay": Column("weight decay"),
    "n_steps": Column("updates of the whole training", COUNT),
    "flops": Column("nominal training compute, as the paper counts it", "FLOPs"),
    "actual_flops": Column("compute of the matrix products, padding and real widths included", "FLOPs"),
    "n_parameters": Column("trainable parameters", COUNT),
    **{name: METRICS[name]._replace(text=f"{METRICS[name].text}{_AT_END}", only="") for name in _SCORES},
    "n_val": Column("validation examples", COUNT),
    "seconds": Column("time spent on training, over all sessions", "seconds"),
    "status": Column('how the run ended: "finished", "diverged" or "failed"'),
    "error": Column("why it did not finish; empty where it did"),
    "attempts": Column("times that it was started", COUNT),
    "group_size": Column("runs that trained as one program", COUNT),
    "device": Column("name of the processor"),
    "configuration": Column("digest that is equal for runs that differ by their seed alone"),
    "run_id": Column("the run: task, length and a digest of its configuration"),
    "path": Column("the run's folder within the sweep's"),
    "finished_at": Column("when it ended, UTC"),
}
