"""Activations of many examples at chosen places: in memory (`spans`) or on disk (`store`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.activations.spans import Place as Place
    from qfl_interp.activations.spans import ReadOut as ReadOut
    from qfl_interp.activations.spans import SiteSpan as SiteSpan
    from qfl_interp.activations.spans import site_span as site_span
    from qfl_interp.activations.spans import site_spans as site_spans
    from qfl_interp.activations.store import ActivationStore as ActivationStore
    from qfl_interp.activations.store_entry import StoreKey as StoreKey

__getattr__, __dir__ = lazy_names(__name__)
