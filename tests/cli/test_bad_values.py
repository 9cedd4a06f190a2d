"""Every option and argument of every command, given nonsense: it works, or one error says what is wrong."""

from __future__ import annotations

import random
import re
import resource
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from helpers_sweep import TOML, InlinePool
from jaxtyping import TypeCheckError

import qfl_interp as qfl
from qfl_interp import memory
from qfl_interp.cli import main as cli
from qfl_interp.sweep import SweepConfig, run_sweep

NUMBERS = ["nan", "inf", "-inf", "-1", "0", str(10**12), str(10**30), "", "true"]
TEXTS = ["", "no such thing", "nan", "-1", "[bold]x[/]", "x" * 3000, "../..", "a:b,c"]
PATHS = ["", "missing", "missing/deeper", "a_file", "a_file/below", "a_folder", "x" * 3000]
# What makes every command quick. An option under test is left out.
SMALL = {
    "--n-train": "60", "--n-val": "20", "--n-test": "40", "--n-trials": "2", "--n": "16", "--n-examples": "8",
    "--n-rank-examples": "8", "--max-products": "12", "--chains": "2", "--draws": "3", "--pairs": "4",
    "--n-random": "2", "--n-untrained": "1", "--n-resamples": "10", "--resamples": "2", "--directions": "2",
    "--n-hessian": "8", "--n-probe": "60", "--basis-steps": "last", "--step": "last", "--command": "pass",
}  # fmt: skip
OF_COMMAND = {
    "train": {
        "--length": "4", "--steps": "3", "--d-model": "8", "--n-layers": "1", "--n-val": "8", "--batch-size": "4",
        "--checkpoints": "2",
    },
    "fork": {
        "--step": "0", "--out": "forked", "--steps": "1", "--set": "lr=0.001", "--freeze": "embed",
        "--roll-back": "blocks.0=0", "--project-out": "carry", "--n-fit": "20",
    },
    "polca": {"--step": "all", "--basis": "random", "--accuracy": "first"},
    "emergence": {"--step": "log:3"}, "timeline": {"--step": "log:3"}, "report": {"--step": "log:3"},
    "sweep best": {"--budget": "1e7"}, "sweep matched": {"--d-model": "8", "--n-layers": "1"},
    "sweep run": {"--out": "{sweep}"},
}  # fmt: skip
ARGUMENTS = {
    "RUN": "{run}", "SWEEP": "{sweep}", "FILE": "{toml}", "TASK": "addition", "NAME": "addition",
    "[FEATURE]...": "carry", "FOLDER": ".", "SQL": "select 1 as one",
}  # fmt: skip
# Switched on they need another machine, minutes, or a terminal; `--unrestricted` is the promise to trust a query.
NOT_SWITCHED = {"--compile", "--unrestricted"}
# Of `qfl curvature`, where chains are asked for.
OF_CHAINS = {"--step-size", "--localization", "--chains", "--draws", "--batch-size"}
# Work that is long because that is asked for: training, and every example of a split.
LONG = [("train", "--steps"), ("train", "--budget"), ("curvature", "--n-examples"), ("polca", "--n-examples")]
# What is asked of the network, code of the user's own, and what is long training.
NOT_TRIED = {
    ("train", "--wandb"), ("sweep run", "--ray"), ("explore", "--command"),
    ("view", "FOLDER"), ("view", "--port"), ("view", "--browser"),  # it serves until it is stopped
    *((command, option, str(10**12)) for command, option in LONG),
    *(("sweep run", "--out", value) for value in ("", "missing", "missing/deeper")),
}  # fmt: skip
# Of this process alone, so that a busy machine is no fault; far above what any case takes (3 s).
MOST_SECONDS, MOST_BYTES = 12.0, 2**29
# What the quick tests take of all cases, and the slow ones of each command's.
N_QUICK, N_SLOW = 24, 18
# Of the machine in these tests: what is refused does not depend on the machine.
FREE = 2**31


class Case(NamedTuple):
    """A command whose option, or argument (None), has a value; None where a flag has none."""

    command: str
    option: str
    is_argument: bool
    value: str | None

    def __str__(self) -> str:
        return f"{self.command} {self.option} {self.value if self.value is None else self.value[:20]!r}"


def commands(command: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below one."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from commands(below, (*prefix, name))
    else:
        yield " ".join(prefix), command


COMMANDS = dict(commands(typer.main.get_command(cli.build_app())))


def word(parameter: Any) -> str:
    """What an option is called, an argument's metavar."""
    if parameter.param_type_name == "option":
        return next(w for w in parameter.opts if w.startswith("--"))
    return parameter.metavar or parameter.name.upper()


def values(parameter: Any) -> list[str | None]:
    """What is tried of a parameter."""
    kind = str(parameter.type_descriptor.annotation)
    if "bool" in kind:
        return [] if word(parameter) in NOT_SWITCHED else [None]
    if "Path" in kind or word(parameter) in ("SWEEP", "--out", "--scratch"):
        return [*PATHS]
    return [*NUMBERS] if "int" in kind or "float" in kind else [*TEXTS]


def cases() -> list[Case]:
    """All of them."""
    return [
        Case(command, word(parameter), parameter.param_type_name == "argument", value)
        for command, made in COMMANDS.items()
        for parameter in made.params
        for value in values(parameter)
        if not {(command, word(parameter)), (command, word(parameter), value)} & NOT_TRIED
    ]


def line(case: Case) -> list[str]:
    """The command line of a case."""
    arguments, options = [], []
    for parameter in COMMANDS[case.command].params:
        name, usual = word(parameter), SMALL | OF_COMMAND.get(case.command, {})
        tried = name == case.option
        if parameter.param_type_name == "argument":
            value = case.value if tried else ARGUMENTS.get(name)
            arguments += [] if value is None else [value]
        elif tried:
            options.append(name if case.value is None else f"{name}={case.value}")
        elif name == "--quiet":
            options.append(name)
        elif {*parameter.opts} & usual.keys():
            options += next([name, usual[w]] for w in parameter.opts if w in usual)
    if case.command == "curvature" and case.option in OF_CHAINS:
        options.append("--learning-coefficient")
    if case.command == "train" and case.option == "--budget":
        options = options[: (at := options.index("--steps"))] + options[at + 2 :]
    return [*case.command.split(), *options, "--", *arguments]


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of everything below a folder, but for what lenses keep."""
    found = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    kept = {"analyses", "activations"}
    return {
        path: (stat.st_size, stat.st_mtime_ns) if path.is_file() else (0, 0)
        for path, stat in found.items()
        if not kept & {*path.relative_to(folder).parts}
    }


class World:
    """A folder with a run, a sweep and bystanders, in which commands are called."""

    def __init__(self, folder: Path, run: Path, sweep: Path, toml: Path) -> None:
        self.folder = folder
        for source, name in ((run, "run"), (sweep, "sweep")):
            shutil.copytree(source, folder / name)
        shutil.copy(toml, folder / "sweep.toml")
        (folder / "a_file").write_text("not yours")
        (folder / "a_folder").mkdir()
        (folder / "a_folder" / "inside").write_text("not yours")
        self.before = snapshot(folder)
        self.places = {"run": "run", "sweep": "sweep", "toml": "sweep.toml"}

    def restore(self) -> None:
        """Delete what is new, and write again what was changed."""
        for path in set(snapshot(self.folder)) - set(self.before):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for name in ("a_file", "a_folder/inside"):
            if (self.folder / name).read_text() != "not yours":
                (self.folder / name).write_text("not yours")
        self.before = snapshot(self.folder)


def faults(case: Case, world: World, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[str]:
    """What is wrong with how a command answered."""
    arguments = [a.format(**world.places) if a in ("{run}", "{sweep}", "{toml}") else a for a in line(case)]
    monkeypatch.setattr(sys, "argv", ["qfl", *arguments])
    capsys.readouterr()
    start, size = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, status = [], 0
    try:
        cli.main()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except TypeCheckError:
        # The tests' own type checker, which users do not have, is before the library's check of a word.
        status = 2
    except Exception as error:  # what a user would see as a traceback
        found.append(f"traceback: {type(error).__name__}: {str(error)[:200]}")
        status = -1
    seconds = time.process_time() - start
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size)
    _, error = capsys.readouterr()
    if seconds > MOST_SECONDS:
        found.append(f"took {seconds:.1f} s")
    if grown > MOST_BYTES:
        found.append(f"took {grown / 2**30:.2f} GiB")
    if status not in (-1, 0, 1, 2):
        found.append(f"exit status {status}")
    text = " ".join(error.split())
    if status == 1 and case.command not in ("verify", "sweep run"):
        if not error.startswith("error: ") or error.strip().count("\n"):
            found.append(f"not one error: {error[:300]!r}")
    if "Traceback" in error:
        found.append(f"traceback of a thread: {error[-200:]}")
    if "out of memory" in text:
        found.append(f"asked for the memory first: {text[:200]}")
    if status != 2 and len(error.replace(case.value or "\0", "")) > 2500:
        found.append(f"an error of {len(error)} characters")
    diverged = case.command == "train" and "training diverged" in text
    if status and not diverged and (left := changes(world)):
        found.append(f"left {left} after: {text[:200]}")
    world.restore()
    return found


def changes(world: World) -> list[str]:
    """What is new, gone or changed in the world."""
    now, before = snapshot(world.folder), world.before
    return sorted(str(p.relative_to(world.folder)) for p in {*now, *before} if now.get(p) != before.get(p))


@pytest.fixture(scope="module")
def sweep_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a definition, `sweep.toml`, and the finished sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.toml").write_text(TOML)
    run_sweep(SweepConfig.from_toml(folder / "sweep.toml"), str(folder / "sweep"), progress=False, pool=InlinePool)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_run: qfl.Run, sweep_files: Path) -> World:
    for command in ("probe", "curvature", "polca"):  # what they import is no time of a case
        assert COMMANDS[command].callback
    return World(tmp_path_factory.mktemp("world"), tiny_run.path, sweep_files / "sweep", sweep_files / "sweep.toml")


@pytest.fixture
def answer(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Case], list[str]]:
    """What is wrong with how a command answers, in the world."""
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(memory, "_machine", lambda: FREE)
    return lambda case: faults(case, world, monkeypatch, capsys)


CASES = cases()
# Not those that start processes, make a page of everything, or draw all of a split.
LONGER = {"--jobs", "--n-train", "--n-test", "report", "timeline", "transfer", "sweep emergence"}
QUICK = random.Random(8).sample([case for case in CASES if not LONGER & {case.option, case.command}], N_QUICK)


def test_every_command_and_parameter_is_tried():
    assert len(CASES) > 2000
    tried = {(case.command, case.option) for case in CASES}
    left_out = {(command, word(parameter)) for command, made in COMMANDS.items() for parameter in made.params} - tried
    whole = {one for one in NOT_TRIED if len(one) == 2}
    assert left_out == whole | {one for one in left_out if one[1] in NOT_SWITCHED}


def test_nonsense_works_or_is_one_error(answer):
    bad = {str(case): found for case in QUICK if (found := answer(case))}
    assert bad == {}


# One test a command: what lenses keep in the run is then computed once.
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_nonsense_to_each_command_works_or_is_one_error(answer, command):
    own = [case for case in CASES if case.command == command]
    tried = random.Random(8).sample(own, min(N_SLOW, len(own)))
    bad = {str(case): found for case in tried if (found := answer(case))}
    assert bad == {}


HUGE = str(10**12)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "addition", "--batch-size", HUGE, "--steps", "3"], "batch_size 1,000,.* need about"),
        (["train", "topological_sort", "--batch-size", HUGE, "--steps", "3"], "batch_size 1,000,.* need about"),
        (["train", "addition", "--steps", "3", "--d-model", str(8 * 10**6)], "d_model 8,000,000 .* need about"),
        (["train", "addition", "--length", "16", "--n-val", HUGE, "--steps", "3"], "val examples of addition need"),
        (["train", "addition", "--budget", "1e40"], "budget_flops must pay for at most"),
        (["train", "addition", "--length", "4", "--steps", "3", "--wandb", "mine"], "Weights & Biases cannot"),
        (["sweep", "run", "sweep.toml", "--out", "new", "--workers", HUGE], "workers must be between 1"),
        (["sweep", "run", "sweep.toml", "--out", "new", "--threads", HUGE], "threads must be at most"),
        (["sweep", "run", "sweep.toml", "--out", "a_folder"], "a_folder is not empty"),
        (["tasks", "addition", "--examples", HUGE], "examples of addition need about"),
        (["probe", "run", "carry", "--out", "a_folder", "--steps", "last", "--n-train", "60"], "page is a file"),
        (["probe", "run", "carry", "--out", "a_file/x.html", "--steps", "last", "--n-train", "9"], "a_file/x.* failed"),
        (["probe", "run", "carry", "--out", "x.bmp", "--steps", "last"], "End it in .html, .png, .svg, .pdf, .json"),
        (["probe", "run", "carry", "--out", "x.png", "--width", "99", "--steps", "last"], "must be from 2 to 20"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing(answer, world, monkeypatch, capsys, arguments, named):
    def no_login(**_: object) -> None:
        raise OSError("no login")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=no_login))
    quiet = [] if "tasks" in arguments else ["--quiet"]
    monkeypatch.setattr(sys, "argv", ["qfl", *arguments, *quiet])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 1
    assert re.search(named, " ".join(capsys.readouterr().err.split()))
    # An empty folder `runs` may be new.
    left = [name for name in changes(world) if name != "runs"]
    world.restore()
    assert left == []
