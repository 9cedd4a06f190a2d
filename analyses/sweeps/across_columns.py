"""What the columns of emergence across compute are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import COUNT, DECADES, FRACTION, LOSS_UNIT, TASK, Column, Columns
from qfl_interp.sweep.record_columns import RECORDS

_WITHIN: Final = "where runs stand beside (`within`)"
_THIRD: Final[Columns] = {
    "feature": Column("name of the task's feature"),
    "metric": Column('what probe losses are: "log_loss" in nats, "mse" of numbers'),
    "third": Column('which labels: "beginning", "middle", "end" of those with a probe, or "all"'),
}
RESULT: Final[Mapping[str, Columns]] = {
    "rows": {
        **TASK,
        **_THIRD,
        "verdict": Column('"quiet": learned at less compute than the loss falls; "loud"; "not learned"; else why none'),
        "certain": Column("whether the lead's range has one sign and every seed says the same"),
        "reason": Column("how the verdict came about, in words"),
        "onset_flops": Column("budget from which on the mean curve stays below ratio times the baseline", "FLOPs"),
        "onset_low": Column("the budget of the grid before the onset", "FLOPs"),
        "onset_high": Column("the budget of the grid after it", "FLOPs"),
        "lead_log10": Column("how far the onset lies before the transition's start; below 0: behind it", DECADES),
        "lead_low": Column("lower end of what the grid leaves open, of the mean curve and of each seed's", DECADES),
        "lead_high": Column("upper end of that", DECADES),
        "lead_seed_low": Column("lower end of Student's 95 % interval for the mean of the seeds' leads", DECADES),
        "lead_seed_high": Column("upper end of that interval", DECADES),
        "seed_verdicts": Column("how often each verdict comes of a seed's own curves"),
        "n_seeds": Column("seeds with a curve of their own", COUNT),
        "baseline": Column("untrained models' probe loss, summarised as the trained ones' is; mean over them"),
        "baseline_paper": Column("untrained models' probe loss as the paper takes it"),
        "verdict_paper_baseline": Column("the verdict against baseline_paper"),
        "onset_flops_paper_baseline": Column("the onset against baseline_paper", "FLOPs"),
        "best": Column("lowest probe loss at any budget"),
        "ratio": Column("a feature is learned once its probe loss stays below this share of the baseline", "ratio"),
        "transition_found": Column("whether the validation loss leaves a plateau and falls over the budgets"),
        "transition_start_flops": Column("where 5 % of that fall is done", "FLOPs"),
        "transition_end_flops": Column("where 95 % of it is done", "FLOPs"),
        "transition_share": Column("share of resamples of seeds with a transition; NaN with too few budgets", FRACTION),
        "transition_reason": Column("what was found of the transition, in words"),
        "d_model": Column("width of the shape that is probed", COUNT),
        "n_layers": Column("its blocks", COUNT),
        "target_budget": Column("the budget at which its shape was chosen", "FLOPs"),
        "within_verdict": Column("how often each verdict comes of runs over their own training", only=_WITHIN),
        "within_lead": Column("their mean lead, along their own training", DECADES, _WITHIN),
        "within_lead_low": Column("lowest end of their leads' ranges", DECADES, _WITHIN),
        "within_lead_high": Column("highest end of them", DECADES, _WITHIN),
        "within_runs": Column("those runs", COUNT, _WITHIN),
    },
    "curves": {
        **TASK,
        **_THIRD,
        "budget_flops": Column("training budget of the probed models", "FLOPs"),
        "geometric": Column("probe test loss of the final models, geometric mean over labels, mean over seeds"),
        "geometric_low": Column("the lowest seed's"),
        "geometric_high": Column("the highest seed's"),
        "arithmetic": Column("arithmetic mean over labels, mean over seeds"),
        "n_seeds": Column("seeds at the budget", COUNT),
        "n_labels": Column("labels of the third with a probe", COUNT),
        "shuffled_geometric": Column("geometric of probes fitted on shuffled labels, mean over seeds"),
        "baseline_clean": Column("geometric of untrained models, mean over them"),
        "baseline_paper": Column("that of the paper's rule"),
    },
    "losses": {
        **TASK,
        "budget_flops": Column("training budget of the models", "FLOPs"),
        "loss": Column("validation loss over the answer alone, mean over seeds", LOSS_UNIT),
        "loss_low": Column("the lowest seed's", LOSS_UNIT),
        "loss_high": Column("the highest seed's", LOSS_UNIT),
        "n_seeds": Column("seeds at the budget", COUNT),
        "base_rate": Column("loss of the best constant guess; NaN where the task does not know it", LOSS_UNIT),
    },
    "runs": RECORDS,
    "left_out": {**TASK, "budget_flops": Column("a budget of the sweep without a finished run of the shape", "FLOPs")},
}
