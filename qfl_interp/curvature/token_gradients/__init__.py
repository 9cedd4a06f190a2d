"""Every scored token's own gradient along given directions, all of both in one call; its curvature too."""

from __future__ import annotations

from qfl_interp.curvature.token_gradients.directional import TokenProjections
from qfl_interp.curvature.token_gradients.project import project_curvature, project_gradients
