"""What every registered task must satisfy; `tasks/test_contract.py` runs it on each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfl_interp.data.examples import ExampleStream, held_out, in_split
from qfl_interp.data.task import NO_POSITION, Batch, Task
from qfl_interp.seeding import generator

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
_N = 500


def check_encoding(task: Task) -> None:
    examples = task.sample(generator(0, "contract"), _N)
    batch = task.encode(examples)
    assert batch.tokens.shape[:2] == batch.loss_mask.shape == (_N, task.n_ctx)
    assert batch.loss_mask.dtype == torch.bool
    assert not batch.loss_mask[:, 0].any(), "nothing predicts the first token"
    if task.d_out is not None:
        check_vectors(task, examples, batch)
        return
    assert batch.tokens.ndim == 2
    assert batch.tokens.dtype == torch.int64
    assert int(batch.tokens.min()) >= 0
    # The first token of a task of vectors is a sample's number.
    assert int(batch.tokens[:, task.samples is not None :].max()) < task.d_vocab
    # Without the prompt's end among them where the batch says so.
    n_scored = batch.loss_mask.sum(dim=1)
    assert (n_scored >= 1 + batch.prompt_end).all(), "`=` and at least one answer token are scored"
    scored = batch.loss_mask.int()
    assert (scored.diff(dim=1).abs().sum(dim=1) <= 2).all(), "scored tokens are one stretch"
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)
    prompt_only = batch.tokens.clone()
    prompt_only[:, 1:][scored[:, :-1].cumsum(dim=1) > 0] = task.d_vocab - 1
    np.testing.assert_array_equal(task.decode(prompt_only), examples, "decode reads the prompt, not the answer")
    assert len("".join(task.str_tokens(batch.tokens[0].tolist()))) > 0


def check_vectors(task: Task, examples: np.ndarray, batch: Batch) -> None:
    """The encoding of a real-valued task."""
    assert batch.tokens.shape[2:] == (task.d_vocab,)
    assert batch.tokens.dtype == torch.float32
    assert batch.targets is not None
    assert batch.targets.shape == (_N, task.n_ctx, task.d_out)
    assert batch.loss_mask.any(dim=1).all()
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)
    assert len("".join(task.str_tokens(batch.tokens[0].tolist()))) > 0


def check_features(task: Task) -> None:
    examples = task.sample(generator(1, "contract"), _N)
    n_ctx = task.n_ctx
    for feature in task.features.values():
        labels, positions = feature.labels(examples), feature.positions(examples)
        assert labels.shape[:2] == positions.shape == (_N, feature.n_labels)
        assert (labels.ndim == 3) == (feature.kind == "multilabel")
        assert ((positions == NO_POSITION) | ((positions >= 0) & (positions < n_ctx))).all()
        if feature.kind in ("binary", "multilabel"):
            assert np.isin(labels, (0, 1)).all()
        assert np.isfinite(labels).all()
        assert feature.kind == "scalar" or np.issubdtype(labels.dtype, np.integer)
        np.testing.assert_array_equal(feature.labels(examples[:7]), labels[:7], "a label depends on its example alone")
        np.testing.assert_array_equal(feature.positions(examples[:7]), positions[:7], "and so does its position")
        assert len(np.unique(labels)) > 1, "the feature varies"


def check_splits(task: Task) -> None:
    examples = task.sample(generator(2, "contract"), 4000)
    membership = np.stack([in_split(task, examples, split) for split in ("train", "val", "test")])
    np.testing.assert_array_equal(membership.sum(axis=0), 1, "every example is in exactly one split")
    words = task.canonical(examples)
    _, group = np.unique(words, axis=0, return_inverse=True)
    for row in membership:
        share = np.bincount(group.ravel(), weights=row) / np.bincount(group.ravel())
        assert np.isin(share, (0.0, 1.0)).all(), "equivalent examples share a split"
    stream = ExampleStream(task, seed=0, batch_size=256)
    trained = {row.tobytes() for step in range(4) for row in task.canonical(stream.examples(step))}
    for split in ("val", "test"):
        kept = held_out(task, split, 200, seed=0, stream="contract")
        assert not trained & {row.tobytes() for row in task.canonical(kept)}
        assert len(np.unique(kept, axis=0)) == len(kept)


def check_determinism(task: Task) -> None:
    one, same, other = (task.sample(generator(s, "contract"), 50) for s in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    stream = ExampleStream(task, seed=4, batch_size=8)
    np.testing.assert_array_equal(stream.examples(3), ExampleStream(task, seed=4, batch_size=8).examples(3))
    assert (stream.examples(3) != stream.examples(4)).any()


def check_pairs(task: Task) -> None:
    for name, feature in task.features.items():
        label = feature.n_labels // 2 if feature.n_labels > 2 else 0
        pairs = task.sample_pairs(generator(7, "contract"), 40, name, label)
        clean, corrupted = feature.labels(pairs.clean)[:, label], feature.labels(pairs.corrupted)[:, label]
        assert (clean != corrupted).reshape(40, -1).any(axis=1).all(), f"{name} differs at {label} in every pair"
        places = [feature.positions(examples)[:, label] for examples in pairs]
        np.testing.assert_array_equal(*places, "both are read at the same token")
        equals = [task.encode(examples).loss_mask.int().argmax(dim=1) for examples in pairs]
        assert torch.equal(*equals), "the prompts are equally long"
        again = task.sample_pairs(generator(7, "contract"), 40, name, label)
        np.testing.assert_array_equal(pairs.clean, again.clean)
        np.testing.assert_array_equal(pairs.corrupted, again.corrupted)


def check_no_examples(task: Task) -> None:
    none = task.sample(generator(8, "contract"), 0)
    batch = task.encode(none)
    assert batch.tokens.shape[:2] == batch.loss_mask.shape == (0, task.n_ctx)
    np.testing.assert_array_equal(task.decode(batch.tokens), none)
    assert len(task.canonical(none)) == 0
    for feature in task.features.values():
        assert feature.labels(none).shape[:2] == feature.positions(none).shape == (0, feature.n_labels)


def check_description(task: Task) -> None:
    assert task.lengths[0] <= task.default_length <= task.lengths[1]
    assert 0 < task.train_fraction < 1
    assert len(set(task.vocabulary)) == task.d_vocab
    assert all(f.description and f.name == name for name, f in task.features.items())
    assert any(f.by_default for f in task.features.values())
    for length in (task.lengths[0] - 1, task.lengths[1] + 1):
        with pytest.raises(ValueError, match=f"length of task '{task.name}' must be an integer in"):
            type(task)(length)


def check_baselines(task: Task) -> None:
    if task.d_out is not None:  # rules that are known, none worse than a constant
        assert all(0 <= loss <= task.baselines["base_rate"] for loss in task.baselines.values())
        return
    assert {"base_rate"} <= set(task.baselines) <= {"paper", "base_rate"}
    assert all(0 < loss < np.log(task.d_vocab) + 1e-9 for loss in task.baselines.values())


def check_problems(task: Task) -> None:
    problems = task.problems()
    if problems is None:
        return
    assert len(np.unique(problems, axis=0)) == len(problems), "each once"
    drawn = task.sample(generator(9, "contract"), _N)
    assert drawn.dtype == problems.dtype
    assert len(np.unique(np.concatenate([problems, drawn]), axis=0)) == len(problems), "and no other is drawn"
    np.testing.assert_array_equal(task.decode(task.encode(problems).tokens), problems)


CHECKS = [
    check_problems,
    check_description,
    check_encoding,
    check_features,
    check_splits,
    check_determinism,
    check_pairs,
    check_no_examples,
    check_baselines,
]
