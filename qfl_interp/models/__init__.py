"""All that knows TransformerLens: building models, hook points, passes, metrics.

`build` makes models; `hooks` reads and changes activations; `fast_forward`, with `fast_support` and `fused_ops`,
computes the same function without hooks, and `forward` picks the faster of the two. `given` takes models of the user's
own, `tied` and `mup` are parametrisations. `generate` decodes, `metrics` scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel, build_model, hooked_from_hf
    from qfl_interp.models.fast_forward import fast_logits
    from qfl_interp.models.generate import generate_greedy
    from qfl_interp.models.hooks import (
        Intervention,
        Site,
        hook_point,
        interventions_on,
        read_activations,
        write_activation,
    )
    from qfl_interp.models.metrics import ExampleScores, evaluate

__getattr__, __dir__ = lazy_names(__name__)
