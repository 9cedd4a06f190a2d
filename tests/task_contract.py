"""Lengths at which every registered task is held against `qfl_interp.testing`."""

from __future__ import annotations

# Lengths each task is tried at besides its default one: odd, small, beyond one machine word.
LENGTHS = {
    "activity_selection": (3,),
    "addition": (3, 70),
    "breadth_first_search": (5,),
    "decimal_addition": (2,),
    "depth_first_search": (5,),
    "digits": (),  # the images have one length
    "linear_regression": (2, 7),
    "majority_of_majorities": (4, 80),
    "maximum_subarray": (5,),
    "min_spanning_tree": (5,),
    "modular_addition": (31,),
    "multiplication": (4, 70),
    "parity_vectors": (6,),
    "repeated_sequences": (5,),
    "shortest_path": (5,),
    "sparse_parity": (9,),
    "topological_sort": (5,),
}
