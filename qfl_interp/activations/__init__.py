"""Activations of many examples at chosen places: in memory (`spans`) or on disk (`store`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.activations.spans import Place, ReadOut, SiteSpan, site_span, site_spans
    from qfl_interp.activations.store import ActivationStore
    from qfl_interp.activations.store_entry import StoreKey

__getattr__, __dir__ = lazy_names(__name__)
