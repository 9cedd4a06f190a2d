"""What is learned from: tasks by name, data sets, streams and splits of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.data.baselines import measured_base_rate as measured_base_rate
    from qfl_interp.data.examples import ExampleStream as ExampleStream
    from qfl_interp.data.examples import held_out as held_out
    from qfl_interp.data.examples import held_out_pairs as held_out_pairs
    from qfl_interp.data.fixed_task import FixedFeature as FixedFeature
    from qfl_interp.data.fixed_task import FixedTask as FixedTask
    from qfl_interp.data.registry import load_task as load_task
    from qfl_interp.data.registry import register_task as register_task
    from qfl_interp.data.registry import task_names as task_names
    from qfl_interp.data.task import Batch as Batch
    from qfl_interp.data.task import Feature as Feature
    from qfl_interp.data.task import Pairs as Pairs
    from qfl_interp.data.task import Task as Task
    from qfl_interp.data.task_options import TaskOption as TaskOption
    from qfl_interp.data.training_stream import make_stream as make_stream

__getattr__, __dir__ = lazy_names(__name__)
