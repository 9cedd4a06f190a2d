"""Changing activations, and what the model does then.

`planes` projects directions out, `replace` writes zero, a mean or another example's activation; `edits` is what both
are made of. `controls` are what an ablation is compared with, `scoring` the losses it leaves. `pairs` are clean and
corrupted runs side by side; `patching`, `attribution`, `paths` and `interchange` move activations between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.interventions.attribution import AttributionScores, attribution_error, attribution_patch
    from qfl_interp.interventions.controls import plane_controls, plane_means
    from qfl_interp.interventions.edits import edit_at
    from qfl_interp.interventions.interchange import InterchangeScores, interchange_scores, swap_subspace
    from qfl_interp.interventions.pairs import PairScores, PatchPairs, patch_pairs
    from qfl_interp.interventions.patching import PatchScores, patch_sweep
    from qfl_interp.interventions.paths import Node, PathScores, head_senders, path_patch
    from qfl_interp.interventions.planes import Planes, plane_ablation, pooled_planes, probe_planes, project_out
    from qfl_interp.interventions.replace import activations_at, donors_of, mean, mean_of, resample, zero
    from qfl_interp.interventions.scoring import UnitScores, score_ablation, score_interventions, score_units

__getattr__, __dir__ = lazy_names(__name__)
