"""Names made from settings: they are on disk in part names and manifests, so they never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.config import ModelConfig, ProbeConfig, TrainConfig
from qfl_interp.digests import digest, json_digest
from qfl_interp.tasks._images import Labelled
from qfl_interp.tasks.digits import data_digest


def test_a_digest_is_the_start_of_the_sha_256_of_all_parts():
    assert digest("abc") == "ba7816bf8f01"  # FIPS 180-2, appendix B.1
    assert digest("a", b"b", memoryview(b"c")) == digest("abc")
    assert digest() == "e3b0c44298fc"
    assert json_digest({"b": 1, "a": [2.0]}) == digest('{"a": [2.0], "b": 1}') == json_digest({"a": [2.0], "b": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        json_digest({1, 2})


def test_the_names_of_configurations_are_those_on_disk():
    assert ModelConfig(64, 2).digest() == "e820640e1875"
    assert TrainConfig(n_steps=3, eval_fraction=0.005, n_val=1000).digest() == "0e034bdea55e"
    assert ProbeConfig(path=(1, 2)).digest() == "9e795b846778"


def test_the_names_of_data_are_those_on_disk():
    tokens = np.arange(12).reshape(3, 4) % 5
    feature = qfl.FixedFeature("binary", np.array([[0], [1], [0]]), np.array([[1], [2], [1]]))
    pairs = {"bit": np.array([[0, 1]])}
    task = qfl.FixedTask("rows", tokens, np.arange(12).reshape(3, 4) % 4 > 1, {"bit": feature}, pairs=pairs)
    assert task.digest == "e4d4d0bff418"
    x = torch.arange(6, dtype=torch.float32).view(3, 2)
    assert data_digest(Labelled("tiny", x, torch.tensor([0, 1, 0]), x[:1], torch.tensor([1]), 2)) == "3bd861250c6e"
