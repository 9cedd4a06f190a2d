"""`verify_sweep` and `qfl verify FOLDER`: what is wrong in a sweep's folder is named, and what cannot be checked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers_sweep import InlinePool
from typer.testing import CliRunner

import qfl_interp as qfl
from qfl_interp.cli.main import build_app
from qfl_interp.errors import QflError
from qfl_interp.sweep import Sweep, SweepConfig, run_sweep, sweep_status
from qfl_interp.sweep.parts import write_part
from qfl_interp.sweep.plan import plan_sweep
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.verification import is_sweep, verify_sweep

CONFIG = SweepConfig.from_dict(
    {
        "name": "tiny",
        "grid": [
            {
                "task": "addition", "length": 4, "budget_flops": [2e7], "d_model": 8, "n_layers": 1,
                "batch_size": 8, "seed": [0, 1], "n_val": 32,
            }
        ],
    }
)  # fmt: skip
RUNS = plan_sweep(CONFIG).runs


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two runs."""
    folder = tmp_path_factory.mktemp("verification") / "swept"
    run_sweep(CONFIG, str(folder), progress=False, pool=InlinePool)
    return folder


@pytest.fixture
def copy(swept: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(swept, tmp_path / "copy")
    return tmp_path / "copy"


def part_of(folder: Path) -> Path:
    (part,) = folder.glob("results/task=addition/part-*.parquet")
    return part


def rewrite(folder: Path, **changes: object) -> None:
    """Write the first run's row anew, with other values and a checksum that fits."""
    rows = Sweep.open(folder).table()
    part_of(folder).unlink()
    for name, value in changes.items():
        rows.loc[0, name] = value
    write_part(Storage(str(folder)), "addition", rows)


def as_an_earlier_version_wrote_it(folder: Path) -> None:
    """Take the checksums away."""
    part = part_of(folder)
    part.rename(part.with_name("-".join(part.stem.split("-")[:2]) + ".parquet"))
    for name in ("sweep.json", "state.json", "plan.json"):
        values = json.loads((folder / name).read_bytes())
        del values["sha256"]
        (folder / name).write_text(json.dumps(values["runs"] if name == "plan.json" else values))


def flip_key(file: Path) -> None:
    """One bit in the name of the checksum, which hides it."""
    file.write_bytes(file.read_bytes().replace(b'"sha256"', b'"sha257"'))


def test_nothing_is_wrong_in_a_finished_sweep(swept: Path) -> None:
    found = verify_sweep(str(swept))
    assert (found.rows, found.whole, found.problems, found.unchecked) == (2, 2, [], [])
    assert found


def test_files_without_checksums_are_read_and_said_to_be_unchecked(swept: Path, copy: Path) -> None:
    as_an_earlier_version_wrote_it(copy)
    pd.testing.assert_frame_equal(Sweep.open(copy).table(), Sweep.open(swept).table())
    assert sweep_status(str(copy)) == sweep_status(str(swept))
    found = verify_sweep(str(copy))
    assert found.problems == []
    named = ["sweep.json has no checksum", "plan.json has no", "state.json has no", ".parquet has no checksum"]
    assert len(found.unchecked) == 4
    assert all(words in sentence for words, sentence in zip(named, found.unchecked, strict=True))
    # A wrong number in such a part still differs from the run's directory.
    rows = Sweep.open(copy).table().drop(columns="task")
    part = part_of(copy)
    rows.assign(lr=rows["lr"] * 2).to_parquet(part, index=False)
    assert "and its row differ (lr 0.002 in the row, 0.001 there)" in verify_sweep(str(copy)).problems[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: rewrite(f, val_loss=0.125), r"and its row differ \(val_loss 0.125 in the row, "),
        (lambda f: rewrite(f, flops=1.0, seed=7), r"differ \(seed 7 in the row, 0 there, flops 1.0 in the row"),
        (lambda f: shutil.rmtree(f / RUNS[0].path), "is not there, and its row says that it finished"),
        (lambda f: part_of(f).unlink(), r"has finished and has no row. Call the sweep again"),
        (lambda f: (f / "sweep.json").unlink(), r"sweep\.json is missing"),
        (lambda f: (f / "plan.json").write_text('{"a": ["addition", 4]}'), r"plan\.json does not hold the runs"),
        (lambda f: (f / "plan.json").write_text("{}"), r"plan\.json is damaged: it must map runs to their task"),
        (lambda f: (f / "state.json").write_text("[]"), r"state\.json is damaged: it must hold a JSON object"),
        (lambda f: flip_key(f / "state.json"), r"state\.json is damaged: its sha257 is not as it was written"),
        (lambda f: flip_key(f / "plan.json"), r"plan\.json is damaged: it must map runs to their task and length"),
        (lambda f: flip_key(f / "sweep.json"), r"sweep\.json is damaged: no key of a sweep is named 'sha257'"),
        (lambda f: part_of(f).write_bytes(b"PAR1"), r"part-.* is damaged: it does not match the checksum in its name"),
        (lambda f: shutil.copytree(f / RUNS[1].path, f / RUNS[0].path, dirs_exist_ok=True), "is the run addition4-"),
        (lambda f: next((f / RUNS[0].path).rglob("model.safetensors")).write_bytes(b"x"), r"model\.safetensors has 1"),
        (lambda f: (f / RUNS[0].path / "metrics.jsonl").write_text(""), r"metrics\.jsonl is missing or empty"),
        (lambda f: (shutil.rmtree(f / "results"), (f / "results").write_text("")), "results.* cannot be read: Not a"),
    ],
    ids=["value", "values", "run", "part", "toml", "plan", "empty plan", "state", "state key", "plan key", "key",
         "parquet", "other", "weights", "rows", "file"],
)  # fmt: skip
def test_what_is_wrong_is_named(copy: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(copy)
    found = verify_sweep(str(copy))
    assert not found
    assert re.search(words, "\n".join(found.problems)), found.problems


def test_what_nothing_names_is_unchecked(copy: Path) -> None:
    (copy / "results" / "task=addition" / "notes.txt").write_text("")
    (copy / "runs" / "addition" / "old").mkdir()
    found = verify_sweep(str(copy))
    assert found
    assert [sentence.split(" is ")[1] for sentence in found.unchecked] == [
        "no part of the results: nothing reads it.",
        "named by no plan and by no row.",
    ]


def test_a_deleted_part_is_made_again_as_the_errors_say(swept: Path, copy: Path) -> None:
    """Finished runs are not trained again; what only the row knew is this call's: attempts, device, time."""
    part_of(copy).write_bytes(b"")
    with pytest.raises(QflError, match=r"part-.* is damaged.*delete it and call the sweep again: the rows of finished"):
        run_sweep(CONFIG, str(copy), progress=False, pool=InlinePool)
    part_of(copy).unlink()
    weights = {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors")}
    run_sweep(CONFIG, str(copy), progress=False, pool=InlinePool)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors")} == weights
    again, before = (Sweep.open(folder).table().drop(columns="finished_at") for folder in (copy, swept))
    pd.testing.assert_frame_equal(again, before)
    assert verify_sweep(str(copy))


@pytest.mark.parametrize("contents", [None, b"{", b"[" * 100_000, b'{"format": "qfl_interp sweep", "version": 1}'])
def test_a_lost_definition_is_given_back_by_extending(copy: Path, contents: bytes | None) -> None:
    file, before = copy / "sweep.json", (copy / "sweep.json").read_bytes()
    file.unlink() if contents is None else file.write_bytes(contents)
    words = (
        "is not empty and is no sweep" if contents is None else r"sweep\.json is damaged: .* --extend\), which keeps"
    )
    with pytest.raises(QflError, match=words):
        run_sweep(CONFIG, str(copy), progress=False, pool=InlinePool)
    run_sweep(CONFIG, str(copy), extend=True, progress=False, pool=InlinePool)
    assert file.read_bytes() == before
    assert verify_sweep(str(copy))
    # One of another version is nobody's to replace.
    file.write_text('{"format": "qfl_interp sweep", "version": 2}')
    with pytest.raises(QflError, match="was not written by this version"):
        run_sweep(CONFIG, str(copy), extend=True, progress=False, pool=InlinePool)


def test_remote_sweeps_are_verified_alike(swept: Path, tmp_path: Path) -> None:
    storage = Storage(f"memory://{tmp_path.name}/sweep")
    for file in swept.rglob("*"):
        if file.is_file():
            storage.write_bytes(file.relative_to(swept).as_posix(), file.read_bytes())
    assert is_sweep(storage.folder)
    found = verify_sweep(storage.folder)
    assert (found.rows, found.whole, found.problems, found.unchecked) == (2, 2, [], [])
    (part,) = storage.glob("results/*/part-*.parquet")
    data = bytearray(storage.read_bytes(part))
    data[100] ^= 1
    storage.write_bytes(part, bytes(data))
    assert "does not match the checksum" in verify_sweep(storage.folder).problems[0]
    answer = CliRunner().invoke(build_app(), ["verify", storage.folder])
    assert answer.exit_code == 1
    assert "does not match the checksum" in answer.stdout


def test_the_command(swept: Path, copy: Path) -> None:
    answer = CliRunner().invoke(build_app(), ["verify", str(swept)])
    assert (answer.exit_code, answer.exception) == (0, None)
    assert "2 runs have a row, 2 directories are whole" in answer.stdout
    assert "nothing is wrong" in answer.stdout
    part_of(copy).unlink()
    answer = CliRunner().invoke(build_app(), ["verify", str(copy), "--json"])
    assert answer.exit_code == 1
    found = json.loads(answer.stdout)
    assert (found["rows"], found["whole"], len(found["problems"]), found["unchecked"]) == (0, 0, 3, [])
    # A run of the sweep is still a run.
    assert not is_sweep(str(copy / RUNS[0].path))
    answer = CliRunner().invoke(build_app(), ["verify", str(copy / RUNS[0].path)])
    assert answer.exit_code == 0
    assert "1 whole checkpoints" in answer.stdout


def split_in_two(folder: Path) -> list[Path]:
    """Two parts, a run in each, as they lie before they are put together."""
    rows = Sweep.open(folder).table()
    part_of(folder).unlink()
    for number in range(2):
        write_part(Storage(str(folder)), "addition", rows.iloc[number : number + 1])
    return sorted(folder.glob("results/task=addition/part-*.parquet"))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_deleted_part_is_no_unfinished_sweep(swept: Path, copy: Path, kept: int) -> None:
    parts = split_in_two(copy)
    assert verify_sweep(str(copy))
    for part in parts[kept:]:
        part.unlink()
    there = set(pd.read_parquet(parts[0])["run_id"]) if kept else set()
    lost = ", ".join(run.run_id for run in RUNS if run.run_id not in there)
    words = rf"results lacks the rows of {2 - kept} runs that had one \({lost}\): a part was deleted"
    for read in (Sweep.open(copy).table, lambda: Sweep.open(copy).best(2e7), lambda: sweep_status(str(copy))):
        with pytest.raises(QflError, match=words):
            read()
    assert words.replace("\\", "") in repr(Sweep.open(copy))
    assert re.search(words, "\n".join(verify_sweep(str(copy)).problems))
    run_sweep(CONFIG, str(copy), progress=False, pool=InlinePool)
    columns = ["finished_at"]
    again, before = (Sweep.open(folder).table().drop(columns=columns) for folder in (copy, swept))
    pd.testing.assert_frame_equal(again, before)
    assert verify_sweep(str(copy))


def test_rows_that_nothing_can_make_again_are_not_missed_for_ever(copy: Path) -> None:
    """A run that the definition does not name any more had the deleted part."""
    smaller = SweepConfig.from_dict({"name": "tiny", "grid": [{**CONFIG.to_dict()["grid"][0], "seed": [0]}]})
    parts = split_in_two(copy)
    run_sweep(smaller, str(copy), extend=True, progress=False, pool=InlinePool)
    (other,) = [part for part in parts if pd.read_parquet(part)["seed"].tolist() == [1]]
    other.unlink()
    with pytest.raises(QflError, match="lacks the rows of 1 runs that had one: a part was deleted"):
        Sweep.open(copy).table()
    run_sweep(smaller, str(copy), extend=True, progress=False, pool=InlinePool)
    assert Sweep.open(copy).table()["seed"].tolist() == [0]


def test_a_state_that_does_not_say_the_rows_misses_none(copy: Path) -> None:
    state = json.loads((copy / "state.json").read_bytes())
    del state["rows"], state["sha256"]
    (copy / "state.json").write_text(json.dumps(state))
    part_of(copy).unlink()
    assert sweep_status(str(copy)).rows[0]["remaining"] == 2


def test_a_sweep_with_a_validation_every_step_is_whole(tmp_path):
    """Its rows have no gap where it kept the final weights alone."""
    values = CONFIG.to_dict()
    values["grid"][0] |= {"eval_fraction": 0.0, "seed": [0]}
    folder = tmp_path / "swept"
    run_sweep(SweepConfig.from_dict(values), str(folder), progress=False, pool=InlinePool)
    assert verify_sweep(str(folder)).problems == []
    (run,) = folder.glob("runs/*/*")
    assert qfl.Run.open(run).verify().problems == ()
    shutil.rmtree(run / "checkpoints")
    assert any("has no checkpoint of" in problem for problem in qfl.Run.open(run).verify().problems)
