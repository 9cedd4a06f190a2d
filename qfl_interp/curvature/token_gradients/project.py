"""The entry points: arguments are checked here, and the way is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.token_gradients.directional import TokenProjections, jvp_curvature, jvp_projections
from qfl_interp.curvature.token_gradients.layers import layer_projections
from qfl_interp.curvature.token_gradients.operations import jvp_is_faster
from qfl_interp.curvature.token_losses import TokenLoss, require_finite
from qfl_interp.models.forward import is_fast

MAX_BYTES = 256 << 20


def project_gradients(
    loss: TokenLoss,
    parameters: Mapping[str, Tensor],
    directions: Float[Tensor, "direction parameter"],
    *,
    method: str = "auto",
    max_bytes: int = MAX_BYTES,
) -> TokenProjections:
    """Derivative of each scored token's loss along each direction, and the losses: `<b, dL(x; theta) / dtheta>`.

    Args:
        loss: Of which tokens, and in which precision. The model is not changed.
        parameters: Where the derivative is taken, by name; the model's own values are not used.
        directions: One a row, in the order of `loss.space`; any length.
        method: "layers" forms the gradients of the model's weights token by token from what every layer read and the
            gradient of what it wrote, and multiplies them with all directions at once: for models of `build_model`
            without hooks (`is_fast`), fastest beyond a handful of directions. "jvp" is one Jacobian-vector product a
            direction, with the model's hooks, for any model. "auto" is the one with less to compute (`operations`);
            "jvp" where "layers" cannot be.
        max_bytes: Bound on working memory beside the arguments and the result; at least one token, or one sequence and
            one direction, is worked on whatever it says.

    Raises:
        ValueError: An unknown method; no direction, or directions of another space; a loss or a derivative that is
            not finite, with its token.
        QflError: "layers" was asked for a model that it does not know.
    """
    return project_on_each(loss, parameters, [directions], method=method, max_bytes=max_bytes)[0]


def project_on_each(
    loss: TokenLoss,
    parameters: Mapping[str, Tensor],
    bases: Sequence[Float[Tensor, "_direction parameter"]],
    *,
    method: str = "auto",
    max_bytes: int = MAX_BYTES,
) -> list[TokenProjections]:
    """`project_gradients` along several sets of directions, each as if it was alone, to the bit.

    By "layers" a token's gradient is formed once for all of them, which is most of the work for a few directions.

    Arguments and errors are those of `project_gradients`; there must be one set at least.
    """
    if method not in ("auto", "layers", "jvp"):
        raise ValueError(f"method must be 'auto', 'layers' or 'jvp', got {method!r}.")
    if not bases:
        raise ValueError("bases must be at least one set of directions, got none.")
    checked = [_checked(loss, parameters, directions, max_bytes) for directions in bases]
    theta = checked[0][0]
    by_layers = [
        index
        for index, (_, vectors) in enumerate(checked)
        if method == "layers"
        or (method == "auto" and is_fast(loss.model) and not jvp_is_faster(loss.scored, len(vectors)))
    ]
    found: dict[int, TokenProjections] = {}
    if by_layers:
        together = [checked[index][1] for index in by_layers]
        found |= zip(by_layers, layer_projections(loss, theta, together, max_bytes=max_bytes), strict=True)
    for index, (_, vectors) in enumerate(checked):
        if index not in found:
            found[index] = jvp_projections(loss, theta, vectors, max_bytes=max_bytes)
        require_finite(found[index].losses, "loss of the tokens")
        require_finite(found[index].gradients, "derivative of the tokens' losses along the directions")
    return [found[index] for index in range(len(bases))]


def project_curvature(
    loss: TokenLoss,
    parameters: Mapping[str, Tensor],
    directions: Float[Tensor, "direction parameter"],
    *,
    max_bytes: int = MAX_BYTES,
) -> Float[Tensor, "token direction"]:
    """Second derivative of each scored token's loss along each direction, `b' H(x; theta) b`, exact.

    Nested forward mode: a Jacobian-vector product of the Jacobian-vector product, for any model.

    Arguments and errors are those of `project_gradients`.
    """
    theta, vectors = _checked(loss, parameters, directions, max_bytes)
    curvature = jvp_curvature(loss, theta, vectors, max_bytes=max_bytes)
    require_finite(curvature, "curvature of the tokens' losses along the directions")
    return curvature


def _checked(
    loss: TokenLoss, parameters: Mapping[str, Tensor], directions: Tensor, max_bytes: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters and directions that fit the loss, on its device and in its precision."""
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}.")
    if len(directions) == 0 or directions.shape[1] != len(loss.space):
        raise ValueError(
            f"directions must be at least one row of {len(loss.space)} coordinates, as many as the model has "
            f"parameters, got shape {tuple(directions.shape)}."
        )
    where = {"device": loss.scored.tokens.device, "dtype": loss.dtype}
    return loss.own(parameters), directions.detach().to(**where)
