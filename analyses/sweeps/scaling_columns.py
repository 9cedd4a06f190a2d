"""What the columns of scaling curves are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import COUNT, DECADES, FRACTION, LOSS_UNIT, TASK, Column, Columns, with_interval
from qfl_interp.sweep.record_columns import RECORDS
from qfl_interp.sweep.sweep import CONFIGURATION

_OF_FIT: Final = "95 % interval of the fit"
_OF_LINE: Final = "95 % interval (Student's t)"
_OF_SEEDS: Final = "95 % interval over resampled seeds"


def _over_seeds(name: str, text: str, unit: str) -> dict[str, Column]:
    """A score of the best configuration with the range of its seeds."""
    return {
        name: Column(f"{text}; mean over seeds", unit),
        f"{name}_low": Column("the lowest seed's", unit),
        f"{name}_high": Column("the highest seed's", unit),
    }


ROWS: Final[Columns] = {
    **TASK,
    "budget_flops": RECORDS["budget_flops"],
    # Of the budget's best configuration.
    **{name: RECORDS[name] for name in CONFIGURATION},
    "n_seeds": Column("seeds of the budget's best configuration that finished; 1 by the paper's rule", COUNT),
    **_over_seeds("loss", "final validation loss a token, of the tokens that `count` of the fits names", LOSS_UNIT),
    **_over_seeds("exact", "share of validation examples with every token right", FRACTION),
    **_over_seeds("pass", "mean chance of writing a whole validation example rightly at temperature 1", FRACTION),
}
FITS: Final[Columns] = {
    **TASK,
    "count": Column('what losses and scores are over: "answer", the answer alone; "paper", `=` too'),
    "rule": Column('what decides on the best configuration: its "mean" over seeds, or as in the "paper" its best run'),
    "resolution": Column("losses below it count as it in the laws and their tests", LOSS_UNIT),
    "n_budgets": Column("budgets with a finished run", COUNT),
    "n_seeds": Column("different seeds of the best configurations; 1 by the paper's rule", COUNT),
    **with_interval("exponent", "b of the power law L = c + a C^-b; positive where the loss falls", of=_OF_FIT),
    "floor": Column("c of that law; NaN of laws without a floor", LOSS_UNIT),
    "power_aicc": Column("small-sample Akaike criterion of that law; lower is better"),
    **with_interval(
        "early_exponent",
        "b of a law without a floor, fitted up to the transition's start; NaN with fewer than 3 budgets up to there",
        of=_OF_LINE,
    ),
    **with_interval(
        "broken_exponent",
        "b of the law with one smooth break, L = c + a C^-b (1 + (C/d)^(1/f))^(-s f): the exponent before the break",
        of=_OF_FIT,
    ),
    **with_interval("broken_change", "s of that law: what the break adds to the exponent", of=_OF_FIT),
    **with_interval("break_flops", "d of that law: where the break is", "FLOPs", of=_OF_FIT),
    "broken_aicc": Column("small-sample Akaike criterion of that law, of the same losses as power_aicc"),
    "lack_of_fit": Column(
        "F of the lack-of-fit test of the power law: variance of the budgets' means about it over that of seeds about "
        "their mean; NaN where seeds do not differ or budgets are too few"
    ),
    "lack_of_fit_p": Column("p-value of that F, by a bootstrap in which every budget has its own variance"),
    "lack_of_fit_p_equal": Column("p-value of that F if all budgets had one variance; too small where they have not"),
    "one_break_p": Column("p-value of one smooth break against none, by a parametric bootstrap; needs no seeds"),
    "transition_found": Column("whether the mean loss leaves a plateau and falls over the budgets"),
    **with_interval("transition_start", "last budget with at most 5 % of that fall done", "FLOPs", of=_OF_SEEDS),
    **with_interval("transition_end", "first budget with at least 95 % of it done", "FLOPs", of=_OF_SEEDS),
    "transition_share": Column("share of resamples of seeds with a transition; NaN with too few budgets", FRACTION),
    "grid_step_decades": Column("widest step of the grid beside an end of the transition: how exact both are", DECADES),
    "plateau_loss": Column("the loss of that plateau", LOSS_UNIT),
    "transition_reason": Column("what was found of the transition, in words"),
    **with_interval(
        "half_exact",
        "budget at which exact match rises past one half: geometric mean over the seeds where it does; NaN of none",
        "FLOPs",
        of=_OF_LINE,
    ),
    "half_exact_seeds": Column("seeds whose exact match rises past one half", COUNT),
    "half_exact_first": Column(
        "seeds with at least half of the answers right at their smallest budget; NaN without answers", COUNT
    ),
    **with_interval("pass_exponent", "b of the power law of -log(pass), a loss of whole answers", of=_OF_LINE),
    "base_rate": Column("loss of the best constant guess; NaN where the task does not know it", LOSS_UNIT),
    "paper_line": Column("the paper's random line; NaN where it has none", LOSS_UNIT),
    "not_fitted": Column("why a law or test is missing, in words; empty where none is"),
    "test": Column('the test that counts: "lack of fit", without it "one break"; empty where there is neither'),
    "p_value": Column("its p-value, under the power law"),
    "p_holm": Column("p_value, Holm-corrected over tasks and lengths"),
    "breaks": Column("whether p_holm is below 0.05"),
    "verdict": Column("law, transition and where half of the answers are right, in words"),
}
RESULT: Final[Mapping[str, Columns]] = {
    "rows": ROWS,
    "fits": FITS,
    # A line of it is one of `fits`.
    "summary": FITS,
}
