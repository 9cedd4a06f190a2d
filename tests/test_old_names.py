"""`tasks` and `analyses`, the names of before, in a checkout: the modules of today, each loaded once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = """
import importlib, sys
{first}
import analyses.lenses.probe.lens, analyses.lens as lens
import tasks
from analyses import probe
from tasks.addition import Addition
import qfl_interp as qfl
import qfl_interp.analyses.lenses.probe.lens
import qfl_interp.tasks.addition

assert analyses is qfl.analyses and tasks is qfl.tasks and lens is qfl.analyses.lens
assert analyses.lenses.probe.lens is sys.modules["qfl_interp.analyses.lenses.probe.lens"]
assert probe is qfl.analyses.probe
assert Addition is qfl.tasks.addition.Addition is type(qfl.load_task("addition", 3))
assert Addition.__module__ == "qfl_interp.tasks.addition"
for name, module in list(sys.modules.items()):
    if name.split(".")[0] in ("tasks", "analyses"):
        assert module is sys.modules["qfl_interp." + name], name
        assert module.__spec__.name == module.__name__ == "qfl_interp." + name, name
        assert importlib.util.find_spec("qfl_interp." + name) is module.__spec__, name
try:
    import tasks.adition
except ModuleNotFoundError as error:
    assert error.name == "tasks.adition", error
else:
    raise AssertionError
assert importlib.reload(qfl.tasks.addition).Addition is not Addition
"""


def test_each_is_the_module_of_today():
    for first in ("", "import qfl_interp.tasks.addition, qfl_interp.analyses.lens", "from tasks import addition"):
        code = CODE.format(first=first)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stderr == "", first
