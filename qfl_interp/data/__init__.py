"""What is learned from: tasks by name, data sets, streams and splits of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.data.baselines import measured_base_rate
    from qfl_interp.data.examples import ExampleStream, held_out, held_out_pairs
    from qfl_interp.data.fixed_task import FixedFeature, FixedTask
    from qfl_interp.data.registry import load_task, register_task, task_names
    from qfl_interp.data.task import Batch, Feature, Pairs, Task
    from qfl_interp.data.task_options import TaskOption
    from qfl_interp.data.training_stream import make_stream

__getattr__, __dir__ = lazy_names(__name__)
