"""All that knows TransformerLens: building models, hook points, passes, metrics.

`build` makes models; `hooks` reads and changes activations; `fast_forward`, with `fast_support` and `fused_ops`,
computes the same function without hooks, and `forward` picks the faster of the two. `given` takes models of the user's
own, `tied` and `mup` are parametrisations. `generate` decodes, `metrics` scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel as HookedModel
    from qfl_interp.models.build import build_model as build_model
    from qfl_interp.models.build import hooked_from_hf as hooked_from_hf
    from qfl_interp.models.fast_forward import fast_logits as fast_logits
    from qfl_interp.models.generate import generate_greedy as generate_greedy
    from qfl_interp.models.hooks import Intervention as Intervention
    from qfl_interp.models.hooks import Site as Site
    from qfl_interp.models.hooks import hook_point as hook_point
    from qfl_interp.models.hooks import interventions_on as interventions_on
    from qfl_interp.models.hooks import read_activations as read_activations
    from qfl_interp.models.hooks import write_activation as write_activation
    from qfl_interp.models.metrics import ExampleScores as ExampleScores
    from qfl_interp.models.metrics import evaluate as evaluate

__getattr__, __dir__ = lazy_names(__name__)
