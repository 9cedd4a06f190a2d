"""The one table of places inside a block where an activation is read or changed; it imports nothing heavy.

`qfl_interp.models.hooks.Site` is one of these places in one layer.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class SiteKind(NamedTuple):
    """What is known of a place in every block.

    Attributes:
        hook: The hook point inside the block, as TransformerLens names it.
        axes: The activation's axes after `batch`; `d_mlp` and `d_head` are its own widths.
        words: What a person reads.
    """

    hook: str
    axes: tuple[str, ...]
    words: str

    @property
    def has_positions(self) -> bool:
        """Whether the second axis is the position: `[batch, pos, ...]`."""
        return self.axes[0] == "pos"

    @property
    def has_heads(self) -> bool:
        """Whether each position has one vector a head: `[batch, pos, head, d_head]`."""
        return self.axes[:2] == ("pos", "head")

    @property
    def in_stream(self) -> bool:
        """Whether each position has one vector as wide as the residual stream: `[batch, pos, d_model]`."""
        return self.axes == ("pos", "d_model")

    @property
    def shape(self) -> str:
        """The activation's shape as a person reads it."""
        return f"[{', '.join(('batch', *self.axes))}]"


_STREAM = ("pos", "d_model")
_BY_HEAD = ("pos", "head", "d_head")
_NEURONS = ("pos", "d_mlp")
_PAIRS = ("head", "query", "key")

SITES: Final = {
    "resid_pre": SiteKind("hook_resid_pre", _STREAM, "residual stream before a block"),
    "resid_mid": SiteKind("hook_resid_mid", _STREAM, "residual stream after attention"),
    "resid_post": SiteKind("hook_resid_post", _STREAM, "residual stream after a block"),
    "attn_out": SiteKind("hook_attn_out", _STREAM, "attention output"),
    "mlp_out": SiteKind("hook_mlp_out", _STREAM, "MLP output"),
    "q": SiteKind("attn.hook_q", _BY_HEAD, "attention heads' queries"),
    "k": SiteKind("attn.hook_k", _BY_HEAD, "attention heads' keys"),
    "v": SiteKind("attn.hook_v", _BY_HEAD, "attention heads' values"),
    "z": SiteKind("attn.hook_z", _BY_HEAD, "attention heads' outputs"),
    "pattern": SiteKind("attn.hook_pattern", _PAIRS, "attention pattern"),
    "attn_scores": SiteKind("attn.hook_attn_scores", _PAIRS, "attention scores"),
    "mlp_pre": SiteKind("mlp.hook_pre", _NEURONS, "MLP neurons before the nonlinearity"),
    "mlp_post": SiteKind("mlp.hook_post", _NEURONS, "MLP neurons"),
}
# Where probes read; where heads are; what is one vector of the stream's width a position.
PROBE_SITES: Final = tuple(name for name, kind in SITES.items() if kind.has_positions)
HEAD_SITES: Final = tuple(name for name, kind in SITES.items() if kind.has_heads)
STREAM_SITES: Final = tuple(name for name, kind in SITES.items() if kind.in_stream)


def block_sites(*, attn_only: bool) -> tuple[str, ...]:
    """The names of the places that a transformer's blocks have, with or without an MLP."""
    of_mlp = {"resid_mid", "mlp_out", "mlp_pre", "mlp_post"} if attn_only else set()
    return tuple(name for name in SITES if name not in of_mlp)


_BY_HOOK: Final = {kind.hook: kind for kind in SITES.values()}


def site_kind(name: str) -> SiteKind | None:
    """What is known of a site by its short name (`z`) or its hook point's full one (`blocks.0.attn.hook_z`).

    None for a hook point that is not in the table.
    """
    return SITES.get(name) or _BY_HOOK.get(name.split(".", 2)[-1])


def site_words(name: str) -> str:
    """A site as a person reads it; its name where the table has no words for it."""
    kind = site_kind(name)
    return name if kind is None else kind.words
