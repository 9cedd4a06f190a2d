"""What the columns of table "mdl" are: one row a model, feature, layer, head and label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.analyses.lenses.probe.columns import MODEL, PLACE
from qfl_interp.columns import ANALYSIS, COUNT, PROBES, RUN, Column, Columns, how_far

MDL: Final[Columns] = {
    **MODEL,
    **how_far(),
    "feature": Column("name of the task's feature, one of classes"),
    **PLACE,
    "codelength_bits": Column("length of the labels in the online code; mean over a label's outputs", "bits"),
    "uniform_bits": Column("their length in the uniform code, which knows the number of classes alone", "bits"),
    "compression": Column("uniform_bits over codelength_bits; 1: the activations save nothing", "ratio"),
    "n_train": Column("labels that are sent", COUNT),
    "site": Column("the activation that is read, by TransformerLens' name"),
    **PROBES,
    **ANALYSIS,
    **RUN,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"mdl": MDL}
RESULT: Final[Mapping[str, Columns]] = {"rows": MDL}
