"""What the name of a hub revision says: its step, how many tokens training had seen, and which series it is of."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

# One expression for the names that published suites have. What stands before the step and after the tokens tells the
# series of one repository apart. As of their model cards and branches:
#   Pythia            step1000                                 EleutherAI/pythia-70m (other seeds: repositories of
#                                                              their own, EleutherAI/pythia-70m-seed1)
#   OLMo              step1000-tokens4B                        allenai/OLMo-1B
#   OLMo 2            stage1-step150-tokens1B                  allenai/OLMo-2-0425-1B
#                     stage2-ingredient1-step11931-tokens50B   allenai/OLMo-2-1124-7B
#   OLMo 3            stage1-step1413814, stage3-step11921     allenai/Olmo-3-1025-7B
#   SmolLM            step-40000, stage1-step-40000            HuggingFaceTB/SmolLM3-3B-checkpoints
#                     lc-4k-to-32k-step-4000
#   FineWeb ablations step-001000-2BT                          HuggingFaceFW/ablation-model-fineweb-edu
#   DataDecide        step1250-seed-small-aux-2                allenai/DataDecide-dolma1_7-300M
REVISION = (
    r"(?:(?P<stage>(?!global_?step).+?)[-_])?(?:global_?step|step|checkpoint|ckpt|iteration|iter)[-_]?(?P<step>\d+)"
    r"(?:-(?:tokens)?(?P<tokens>\d+(?:\.\d+)?[KMBT])T?)?(?:-(?P<rest>.+))?"
)
# Trainings that push to one branch say the step in the title of the commit: Pico (pico-lm/pico-train,
# src/checkpointing/training.py) and `transformers.Trainer` with `push_to_hub=True`.
TITLE = r"(?:Saving HF Model -- Step|Training in progress, step) (?P<step>\d+)"
_UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "T": 12}
# Units of the last digit that the last name must have: rounding then moves its tokens by 2.5 % at most.
_LEAST_UNITS = 20


class Tokens(NamedTuple):
    """A number of tokens as a name has it, and one of its last digit: `2.5B` is 2,500,000,000, in units of 1e8."""

    count: int
    unit: int


class Named(NamedTuple):
    """What a name says; `series` is empty where the name is step and tokens alone."""

    step: int
    tokens: Tokens | None
    series: str


def read_name(name: str, pattern: str = REVISION) -> Named | None:
    """What a name says, None where the pattern does not match all of it.

    Args:
        name: A branch, a tag, or the title of a commit.
        pattern: Regular expression. Its group `step` is the step; `tokens`, where there is one, the tokens ("4B",
            "2097152"); all other named groups together are the series.

    Raises:
        ValueError: The pattern has no group `step`, or a group matches no number.
    """
    compiled = re.compile(pattern, re.IGNORECASE)
    if "step" not in compiled.groupindex:
        raise ValueError(
            f"pattern must have a group named step, got {pattern!r}. For example: r'run-(?P<step>\\d+)'; groups named "
            "tokens and stage are read too."
        )
    match = compiled.fullmatch(name)
    if match is None:
        return None
    groups = match.groupdict()
    step, tokens = groups.pop("step"), groups.pop("tokens", None)
    if step is None or not step.isdecimal():
        raise ValueError(f"the pattern's group step must match digits, got {step!r} in {name!r} of {pattern!r}.")
    return Named(int(step), read_tokens(tokens) if tokens else None, "-".join(filter(None, groups.values())))


def read_tokens(text: str) -> Tokens:
    """A number of tokens: `4B`, `2BT`, `2.5T`, `300M`, `2097152`. Raises `ValueError` where it is none."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?([KMBT]?)T?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"tokens must be a number like 4B, 2.5T or 2097152, got {text!r}.")
    whole, decimals, unit = match.group(1), match.group(2) or "", match.group(3).upper()
    exponent = _UNITS[unit] - len(decimals)
    if exponent < 0:
        raise ValueError(f"tokens must be whole, got {text!r}.")
    return Tokens(int(whole + decimals) * 10**exponent, 10**exponent)


def tokens_per_step(named: list[Named]) -> int | None:
    """The tokens of one step, where names say tokens in proportion to their steps; None where they do not.

    Names round: the early ones of a suite to much more or less than they are. The last one's quotient, to three
    digits, is taken where all names agree with it to a unit of their last digit. Elsewhere training changed its
    batches, or what is there is too early to tell.
    """
    known = [(one.step, one.tokens) for one in named if one.tokens is not None and one.step > 0]
    if not known or len(known) < sum(one.step > 0 for one in named):
        return None
    step, tokens = max(known)
    if tokens.count < _LEAST_UNITS * tokens.unit:
        return None
    rate = tokens.count / step
    if any(abs(rate * at - said.count) > said.unit + rate * at * tokens.unit / tokens.count for at, said in known):
        return None
    return int(float(f"{rate:.3g}"))


def tokens_at(named: list[Named]) -> dict[int, int] | None:
    """The tokens that names say of each step, rounded as they are.

    None where a step but 0 says none, or where rounding leaves two steps with the same tokens: no curve could be drawn
    over them.
    """
    if not any(one.step for one in named) or any(one.step and one.tokens is None for one in named):
        return None
    counts = {one.step: one.tokens.count if one.tokens else 0 for one in sorted(named, key=lambda one: one.step)}
    return counts if all(a < b for a, b in pairwise(counts.values())) else None
