"""What the report says in words: verdicts as sentences, how each number was computed, limits, how to cite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from qfl_interp.report.page import Finding

UNDECIDED: Final = "undecided"
_BEFORE: Final = "before the loss moved"
_AFTER: Final = "after the loss began to fall"

METHODS: Final = """\
- **Compute** is the nominal budget at each step, `6 (12 n_layers d_model^2 + n_layers n_ctx d_model)` FLOPs
  a token as the paper counts; that of a plain pass with padding and the real widths stands
  beside it in the run's card. Step 0 has no place on a logarithmic axis and is left out of the timeline.
- **Loss and exact match** are measured on a fixed validation set that shares no example with training,
  twice: as the paper counts (from the `=` sign on) and over the answer alone.
- **Probes** are linear read-outs of the residual stream after each layer, at the position the feature
  belongs to. They are fitted on fresh examples and scored on other fresh examples. For each label the layer
  with the lowest training loss is taken and its test loss reported.
- **Probe losses** are log losses in nats for binary and multilabel features, mean squared errors for numbers.
- **Thirds**: labels, which mostly follow the tokens, are split into a beginning, a middle and an end; a third's
  value is the geometric mean over its labels.
- **Controls**: dotted lines are the same probes on an untrained model of the same shape; thin lines are
  probes trained on shuffled labels.
- **Transition**: the stretch of compute in which the validation loss leaves its plateau and falls, found
  from the loss alone by a monotone fit over log compute; it starts where 5 % of the fall is done and ends
  where 95 % is.
- **Onset**: where a third's test loss falls below half of the untrained model's for good, interpolated in
  log compute between the checkpoints on either side. The paper sets its marks by hand; half is this
  library's choice.
- **Quiet** means that the onset lies before the transition's start, **loud** that it lies within or after
  it. The lead is the distance in decades of compute (log10 FLOPs); its range covers the spacing of
  checkpoints and validations and a bootstrap over the probe's test examples. A verdict is uncertain where
  that range includes 0.
- **Ablation** takes the probe's directions out of the activation at its layer and positions. Three controls
  disturb the same places: as many random directions, as many directions of another feature, and random changes
  of the same size. Whiskers are bootstrap 95 % intervals over examples; the p-value compares ablated with
  control for the same examples (sign flips), corrected for the number of features (Holm).
- **Probes carried over** are fitted at one checkpoint and scored on the activations of another. A feature that
  only grows keeps its old probes; one whose directions turn loses them, although a fresh probe reads it as
  well as ever.
- **Description length** is that of a label's values in the online code: a probe fitted on what was sent so far
  predicts the next examples. The compression is the uniform code's length over it, so it also says from how
  few examples the label can be learned (Voita and Titov, https://arxiv.org/abs/2003.12298).
- **Interchange** takes pairs of examples that differ in one label of a feature. At the token where the label is
  read, the corrupted run gets the clean run's component along some directions and keeps the rest of its own
  activation; a pair counts as flipped if the next differing token of its answer becomes the clean one. Beside
  the probe's directions stand those in which the classes' mean activations differ, no swap, random directions
  of the probe's number and the whole activation (Geiger et al., https://arxiv.org/abs/2106.02997).
- **Patching** writes one activation of the clean run, at one layer and position, into the corrupted run of such a
  pair. The scale is the corrupted run at 0 and the clean run at 1; the logit difference is the clean token's
  logit less the corrupted one's at the first token from the label on in which their answers differ.
  **Attribution** is the gradient's approximation of that effect.
- **Single heads and neurons** are replaced one at a time, at every token, by zero, by their mean over examples or
  by their value in another example. The rise of the answer's loss has a bootstrap 95 % interval over
  examples and a p-value (sign flips) corrected for the number of units of a step (Holm).
"""

LIMITS: Final = """\
- One run is one seed: a transition moves between seeds, and the ranges here do not cover that.
- A linear probe finds what is linearly decodable at one position; it neither shows that the model uses the
  feature (ablation and interchange ask that) nor that a feature it misses is absent.
- A probe's direction is one that the label can be read along; it need not be the one that the model itself writes or
  reads. Removing or swapping it may then do little although the model uses the feature.
- A patch tells which places matter for the pairs it was made with, one place at a time; what several places
  hold in common may show in none.
- A lead can be no sharper than the spacing of checkpoints around the onset and of validations around the
  transition.
- The paper's figures compare final models over compute budgets; this report follows one run over its
  training steps.
"""

CITATION: Final = """\
Please cite the paper whose method this is: *Quiet Feature Learning in Algorithmic Tasks*,
https://arxiv.org/abs/2505.03997 (arXiv 2505.03997).
"""


def findings(emergence: pd.DataFrame) -> list[Finding]:
    """One finding a feature, in the table's order.

    A row over all labels decides where there is one; otherwise the thirds are told one by one.

    Args:
        emergence: Table "emergence". May be empty.
    """
    by_feature: dict[str, list[dict[str, Any]]] = {}
    for row in emergence.to_dict("records"):
        by_feature.setdefault(str(row["feature"]), []).append({str(key): value for key, value in row.items()})
    return [_finding(feature, rows) for feature, rows in by_feature.items()]


def _finding(feature: str, rows: list[dict[str, Any]]) -> Finding:
    """The finding on one feature."""
    whole = [row for row in rows if row["third"] == "all"]
    rows = whole or rows
    verdicts = {str(row["verdict"]) for row in rows}
    verdict = verdicts.pop() if len(verdicts) == 1 else "mixed"
    if verdict == "no transition":
        reason = str(rows[0]["transition_reason"])
        return Finding(
            feature, verdict, "the loss has no transition to compare with" + (f": {reason}" if reason else "")
        )
    if verdict == "not learned":
        return Finding(feature, verdict, "its probes never stayed below half of the untrained model's loss")
    if whole:
        return Finding(feature, verdict if whole[0]["certain"] else UNDECIDED, timing(whole[0]))
    parts = [f"{row['third']}: {row['verdict']}, {timing(row)}".rstrip(", ") for row in rows]
    if verdict == "mixed":
        return Finding(feature, verdict, "; ".join(parts))
    leads = sorted(abs(float(row["lead_log10"])) for row in rows)
    parts = [f"{row['third']} {abs(float(row['lead_log10'])):.2f} ({_interval(row)})" for row in rows]
    span = f"{leads[0]:.2f} to {leads[-1]:.2f}" if len(leads) > 1 else f"{leads[0]:.2f}"
    side = _BEFORE if verdict == "quiet" else _AFTER
    return Finding(feature, verdict, f"learned {span} decades of compute {side}: {', '.join(parts)}")


def timing(row: Mapping[str, Any]) -> str:
    """When a feature was learned relative to the loss; "" where one of the two times is missing.

    Args:
        row: Of table "emergence".
    """
    lead = float(row["lead_log10"])
    if not math.isfinite(lead):
        return ""
    return f"learned {abs(lead):.2f} decades of compute {_BEFORE if lead > 0 else _AFTER} ({_interval(row)})"


def _interval(row: Mapping[str, Any]) -> str:
    """The range of the distance, in the direction of the lead itself."""
    low, high = float(row["lead_low"]), float(row["lead_high"])
    doubt = "" if row["certain"] else ", uncertain"
    if math.isnan(low) or math.isnan(high):
        return f"no interval{doubt}"
    if float(row["lead_log10"]) <= 0:
        low, high = -high, -low
    span = f"at least {low:.2f}" if math.isinf(high) else f"{low:.2f} to {high:.2f}"
    return f"range {span}{doubt}".replace("-", "−")
