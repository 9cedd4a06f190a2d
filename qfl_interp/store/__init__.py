"""Activations on disk, larger than memory: captured once, mapped into every later analysis.

A key (run, step, data set) is a folder. In it each site has a sparse file of all layers, [layer, head, pos, example, d]
without a header, so that the places asked for are one view of the map and a layer can be written later; and a JSON
manifest that says of every layer how many examples are written, which comes after the data at each save. What no
manifest counts is never read, so that a capture killed at any moment goes on where its manifest stands.
"""

from qfl_interp.store.activation_store import ActivationStore
from qfl_interp.store.entry import StoreDtype, StoreKey

__all__ = ["ActivationStore", "StoreDtype", "StoreKey"]
