"""A run of this library from the hub, as a run directory again."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from qfl_interp.errors import QflError
from qfl_interp.files import local_path, read_json
from qfl_interp.progress import progress_bar
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import CONFIG_FILE, FORMAT
from qfl_interp.runs.hub import client
from qfl_interp.runs.hub.names import read_name
from qfl_interp.runs.hub.push import RUN_FILES
from qfl_interp.runs.hub.revisions import Listing, Revision
from qfl_interp.runs.run import CHECKPOINTS, FINAL_ALONE, Run
from qfl_interp.runs.series import Steps

_BRANCH = r"step(?P<step>\d+)"


def pull_run(repo: str, out: str | Path, steps: Steps = "all", *, progress: bool = True) -> Run:
    """The run that `push_run` put on the hub, as a run directory with these checkpoints.

    Every checkpoint is checked against its checksums. What the directory has already is not fetched again.

    Args:
        repo: "user/name".
        out: The run directory to make, or that of an earlier pull of the same run.
        steps: The checkpoints.
        progress: Draw a bar on standard error.

    Raises:
        QflError: The hub cannot be reached, there is no such repository or step, it holds no run of this library or
            another than the directory, or a file is not what was pushed.
    """
    branches = client.list_refs(repo).branches
    named = [(name, commit, read_name(name, _BRANCH)) for name, commit in branches.items()]
    found = {said.step: Revision(name, commit, said) for name, commit, said in named if said is not None}
    if "main" not in branches or not found:
        raise QflError(f"{repo} holds no run of this library: it has no branch step0, step1, ...")
    chosen = Listing(repo, "", dict(sorted(found.items())), {}).choose(steps)
    run = _run_directory(repo, branches["main"], local_path(out))
    with progress_bar(enabled=progress) as bar:
        work = bar.add_task("pulling", total=len(chosen), detail="")
        for revision in chosen:
            bar.update(work, detail=revision.name)
            if revision.named.step not in run.steps:
                _pull_checkpoint(run, repo, revision)
            bar.advance(work)
    marker = run.path / CHECKPOINTS / FINAL_ALONE
    if set(run.steps) == found.keys():
        marker.unlink(missing_ok=True)
    else:
        ckpt.write_atomic(marker, b"")
    return run


def _run_directory(repo: str, commit: str, out: Path) -> Run:
    """The run directory with its files beside checkpoints."""
    doing = "fetching the run of"
    names = [file.name for file in client.list_files(repo, commit, doing) if file.name in RUN_FILES]
    if CONFIG_FILE not in names:
        raise QflError(
            f"{repo} holds no run of this library: `main` has no {CONFIG_FILE}. Suite.from_hub opens suites."
        )
    folder = client.fetch(repo, commit, names, doing)
    if read_json(folder / CONFIG_FILE, dict, "Fetch it again.").get("format") != FORMAT:
        raise QflError(f"{repo} holds no run of this library, but a model. Suite.from_hub opens suites of those.")
    own = out / CONFIG_FILE
    if own.exists() and own.read_bytes() != (folder / CONFIG_FILE).read_bytes():
        raise QflError(f"{out} holds another run than {repo}. Pull into another folder.")
    if out.exists() and not own.exists() and any(out.iterdir()):
        raise QflError(f"{out} is not empty and holds no run. Pull into another folder.")
    (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    for name in sorted(names, key=lambda name: name == CONFIG_FILE):  # last: with it the directory is a run
        ckpt.write_atomic(out / name, (folder / name).read_bytes())
    return Run.open(out)


def _pull_checkpoint(run: Run, repo: str, revision: Revision) -> None:
    """Put one checkpoint into its place, whole and checked, or not at all."""
    doing = f"fetching {revision.name!r} of"
    folder = client.fetch(repo, revision.commit, [ckpt.MANIFEST], doing)
    names = read_json(folder / ckpt.MANIFEST, dict, "Push it again.").get("files", {})
    client.fetch(repo, revision.commit, list(names), doing)
    final = run.path / CHECKPOINTS / ckpt.step_name(revision.named.step)
    beside = final.parent / f".tmp-pull-{uuid.uuid4().hex[:8]}"
    try:
        # A checkpoint is checked under its own name.
        (beside / final.name).mkdir(parents=True)
        for name in (ckpt.MANIFEST, *names):
            shutil.copyfile(folder / name, beside / final.name / name)
        ckpt.check_checkpoint(beside / final.name, config_digest=run.config.digest)
        (beside / final.name).rename(final)
    except OSError as error:
        raise ckpt.storage_error(error, final) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
