"""What the columns of table "probe" are: one row a model, feature, layer, head and label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import COUNT, PROBES, RUN, Column, Columns, how_far

_LOSS: Final = "log loss in nats, or mean squared error (column metric)"
_SCORE: Final = "accuracy, or R2 of numbers"

# What says which model was probed.
MODEL: Final[Columns] = {
    "source": Column('"trained": a checkpoint; "untrained": a freshly initialised model of the same shape'),
    "model_seed": Column("seed of the model's initial weights"),
}
# What says which of its activations.
PLACE: Final[Columns] = {
    "layer": Column("block, from 0"),
    "head": Column("head, from 0; -1 where the site has none"),
    "label": Column("which label of the feature, from 0"),
}
PROBE: Final[Columns] = {
    "feature": Column("name of the task's feature"),
    "kind": Column('the labels: "binary", "multilabel", "categorical" or "scalar"'),
    "metric": Column('what losses are: "log_loss" in nats, "mse" of numbers'),
    **MODEL,
    **how_far(),
    **PLACE,
    "site": Column("the activation that is read, by TransformerLens' name"),
    "fitted": Column("whether there is a probe: the label varies, and enough examples have it"),
    "converged": Column("whether the solver met its certificate, or nothing was fitted"),
    "strength": Column("inverse penalty of the probe (1 / alpha of numbers); geometric mean over outputs"),
    "n_train": Column("examples that have the label, of those the probe is fitted on", COUNT),
    "n_test": Column("examples that have the label, of those it is scored on", COUNT),
    "n_unseen": Column("test examples of a class that no training example has; scores leave them out", COUNT),
    "label_mean": Column("mean of the label over the training examples: for a binary one, the share that have it"),
    "train_loss": Column(f"loss on the training examples: {_LOSS}; each label's layer is chosen by it"),
    "test_loss": Column(f"loss on the test examples: {_LOSS}; NaN where nothing was fitted"),
    "train_score": Column(f"score on the training examples: {_SCORE}"),
    "test_score": Column(f"score on the test examples: {_SCORE}"),
    "shuffled_test_loss": Column("test loss of probes fitted on shuffled labels; NaN without that control"),
    "shuffled_test_score": Column("test score of probes fitted on shuffled labels; NaN without that control"),
    "selectivity": Column("test_score less shuffled_test_score (Hewitt and Liang, arXiv 1909.03368)"),
    "majority_test_loss": Column("test loss of the best constant answer, by the training examples"),
    "majority_test_score": Column("test score of that constant answer"),
    "next_token": Column("whether the token that the model writes next, where the label is read, gives it away"),
    **PROBES,
    **RUN,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"probe": PROBE}
# What a call gives; the summary has means over labels of each label's best layer.
RESULT: Final[Mapping[str, Columns]] = {
    "rows": PROBE,
    "summary": {
        "one_class": Column("labels without a probe: they do not vary, or few examples have them", COUNT),
        "not_converged": Column("probes whose solver stopped short of its certificate", COUNT),
    },
}
