"""Changing activations, and what the model does then.

`planes` projects directions out, `replace` writes zero, a mean or another example's activation; `edits` is what both
are made of. `controls` are what an ablation is compared with, `scoring` the losses it leaves. `pairs` are clean and
corrupted runs side by side; `patching`, `attribution`, `paths` and `interchange` move activations between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.interventions.attribution import AttributionScores as AttributionScores
    from qfl_interp.interventions.attribution import attribution_error as attribution_error
    from qfl_interp.interventions.attribution import attribution_patch as attribution_patch
    from qfl_interp.interventions.controls import plane_controls as plane_controls
    from qfl_interp.interventions.controls import plane_means as plane_means
    from qfl_interp.interventions.edits import edit_at as edit_at
    from qfl_interp.interventions.interchange import InterchangeScores as InterchangeScores
    from qfl_interp.interventions.interchange import interchange_scores as interchange_scores
    from qfl_interp.interventions.interchange import swap_subspace as swap_subspace
    from qfl_interp.interventions.pairs import PairScores as PairScores
    from qfl_interp.interventions.pairs import PatchPairs as PatchPairs
    from qfl_interp.interventions.pairs import patch_pairs as patch_pairs
    from qfl_interp.interventions.patching import PatchScores as PatchScores
    from qfl_interp.interventions.patching import patch_sweep as patch_sweep
    from qfl_interp.interventions.paths import Node as Node
    from qfl_interp.interventions.paths import PathScores as PathScores
    from qfl_interp.interventions.paths import head_senders as head_senders
    from qfl_interp.interventions.paths import path_patch as path_patch
    from qfl_interp.interventions.planes import Planes as Planes
    from qfl_interp.interventions.planes import plane_ablation as plane_ablation
    from qfl_interp.interventions.planes import pooled_planes as pooled_planes
    from qfl_interp.interventions.planes import probe_planes as probe_planes
    from qfl_interp.interventions.planes import project_out as project_out
    from qfl_interp.interventions.replace import activations_at as activations_at
    from qfl_interp.interventions.replace import donors_of as donors_of
    from qfl_interp.interventions.replace import mean as mean
    from qfl_interp.interventions.replace import mean_of as mean_of
    from qfl_interp.interventions.replace import resample as resample
    from qfl_interp.interventions.replace import zero as zero
    from qfl_interp.interventions.scoring import UnitScores as UnitScores
    from qfl_interp.interventions.scoring import score_ablation as score_ablation
    from qfl_interp.interventions.scoring import score_interventions as score_interventions
    from qfl_interp.interventions.scoring import score_units as score_units

__getattr__, __dir__ = lazy_names(__name__)
