"""Every scored token's own gradient along given directions, all of both in one call; its curvature too."""

from __future__ import annotations

from qfl_interp.curvature.token_gradients.directional import TokenProjections as TokenProjections
from qfl_interp.curvature.token_gradients.project import project_curvature as project_curvature
from qfl_interp.curvature.token_gradients.project import project_gradients as project_gradients
from qfl_interp.curvature.token_gradients.project import project_on_each as project_on_each
