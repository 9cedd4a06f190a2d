"""`tasks` and `analyses`, the names of before, in a checkout: the modules of today, each loaded once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from qfl_interp import old_names

ROOT = Path(__file__).parents[1]
# Some modules first under the old name, others first under that of today.
CODE = """
import importlib.util, sys
import analyses.lenses.probe, analyses.result as result
import qfl_interp.tasks
import tasks
import qfl_interp as qfl
from qfl_interp.tasks.addition import Addition as today
from tasks.addition import Addition
from analyses import probe

assert analyses is qfl.analyses and tasks is qfl.tasks and result is qfl.analyses.result
assert probe is qfl.analyses.probe
assert Addition is today is type(qfl.load_task("addition", 3))
assert Addition.__module__ == "qfl_interp.tasks.addition"
old = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("tasks", "analyses")}
assert {"analyses.lenses.probe", "tasks.addition"} <= {*old}
for name, module in old.items():
    assert module is sys.modules["qfl_interp." + name], name
    assert module.__spec__.name == module.__name__ == "qfl_interp." + name, name
    assert importlib.util.find_spec("qfl_interp." + name) is module.__spec__, name
try:
    import tasks.adition
except ModuleNotFoundError as error:
    assert error.name == "tasks.adition", error
else:
    raise AssertionError
"""


def test_each_is_the_module_of_today():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_other_modules_are_left_to_others():
    below = old_names._Below("tasks")
    assert below.find_spec("tasksets.x") is None
    folder = importlib.util.find_spec("scripts").submodule_search_locations  # of a package without __init__.py
    assert below.find_spec("scripts.demo", folder) is None
