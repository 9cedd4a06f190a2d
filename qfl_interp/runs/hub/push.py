"""A run on the hub: one branch a checkpoint, as the suites of others have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qfl_interp.errors import QflError
from qfl_interp.progress import progress_bar
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE, TASK_FILE
from qfl_interp.runs.hub import client
from qfl_interp.runs.hub.model_card import model_card
from qfl_interp.runs.run import CHECKPOINTS, PROVENANCE_FILE, Run
from qfl_interp.runs.series import Steps

CARD = "README.md"
# Of a run, beside its checkpoints: what `pull_run` needs, and what says that it is this run.
RUN_FILES = (CONFIG_FILE, TASK_FILE, METRICS_FILE, PROVENANCE_FILE)
_OF_EVERY_BRANCH = (CONFIG_FILE, TASK_FILE)


@dataclass(frozen=True)
class Planned:
    """A branch of the repository, and what is to be sent to it.

    Attributes:
        branch: `main`, or `step1000`.
        step: Its checkpoint's; None for `main`.
        files: What the repository does not have yet, by name: the contents, or the path of a large file.
        n_bytes: How much that is.
    """

    branch: str
    step: int | None
    files: Mapping[str, bytes | Path]
    n_bytes: int


def plan_push(run: Run, repo: str, steps: Steps = "all") -> list[Planned]:
    """What pushing a run would send, branch by branch; nothing is sent.

    Args:
        run: The run.
        repo: "user/name".
        steps: The checkpoints.

    Raises:
        QflError: The hub cannot be reached; the repository holds another run, or other weights of a step; or a file of
            the run is damaged.
    """
    chosen = run.resolve_steps(steps)
    refs = client.find_refs(repo)
    there = {} if refs is None else refs.branches
    texts = {name: (run.path / name).read_bytes() for name in RUN_FILES if (run.path / name).exists()}
    known = {int(name[4:]) for name in there if name.startswith("step") and name[4:].isdecimal()}
    main = {**texts, CARD: model_card(run, repo, sorted(known.union(chosen))).encode()}
    plans = [_planned(run, repo, "main", None, main, there)]
    for step in chosen:
        own = {name: texts[name] for name in _OF_EVERY_BRANCH if name in texts}
        plans.append(_planned(run, repo, f"step{step}", step, own | _checkpoint(run, step), there))
    return plans


def push_run(
    run: Run, repo: str, steps: Steps = "all", *, public: bool = False, progress: bool = True
) -> list[Planned]:
    """Push the checkpoints of a run to the hub: the branch `step{N}` for each, and a card on `main`.

    The repository is made where there is none, private unless `public`; one that is there keeps its visibility. What it
    has already is not sent again, so that a push that was stopped goes on where it was. Optimiser states go along where
    the run has kept them; tables, activations and resume points stay.

    Args:
        run: The run.
        repo: "user/name".
        steps: The checkpoints.
        public: Make a public repository.
        progress: Draw a bar on standard error.

    Returns:
        What was sent, branch by branch.

    Raises:
        QflError: As `plan_push`; or sending fails, and what was sent before stays.
    """
    plans = plan_push(run, repo, steps)
    if client.find_refs(repo) is None:
        client.make_repo(repo, private=not public)
    with progress_bar(enabled=progress) as bar:
        work = bar.add_task("pushing", total=len(plans), detail="")
        for plan in plans:
            bar.update(work, detail=plan.branch)
            if plan.files:
                _send(run, repo, plan)
            bar.advance(work)
    return plans


def _send(run: Run, repo: str, plan: Planned) -> None:
    """Send one branch, its checkpoint checked first."""
    if plan.step is None:
        client.commit(repo, plan.branch, plan.files, f"{run.run_id}: configuration, metrics and card")
        return
    ckpt.check_checkpoint(_folder(run, plan.step), config_digest=run.config.digest)
    client.make_branch(repo, plan.branch)
    client.commit(repo, plan.branch, plan.files, f"{run.run_id}: checkpoint of step {plan.step}")


def _folder(run: Run, step: int) -> Path:
    return run.path / CHECKPOINTS / ckpt.step_name(step)


def _checkpoint(run: Run, step: int) -> dict[str, bytes | Path]:
    """The files of a checkpoint: its manifest, and those that this names."""
    folder = _folder(run, step)
    large = {name: folder / name for name in ckpt.read_manifest(folder)["files"]}
    return {ckpt.MANIFEST: (folder / ckpt.MANIFEST).read_bytes(), **large}


def _planned(
    run: Run, repo: str, branch: str, step: int | None, files: Mapping[str, bytes | Path], there: Mapping[str, str]
) -> Planned:
    """What of these files a branch lacks. Raises `QflError` where what it has must not be replaced."""
    listed = client.list_files(repo, there[branch], f"listing the files of {branch!r} of") if branch in there else []
    has = {file.name: file for file in listed}
    sums = {} if step is None else ckpt.read_manifest(_folder(run, step))["files"]
    lacking = {}
    for name, data in files.items():
        file = has.get(name)
        if file and (file.holds(data) if isinstance(data, bytes) else file.digest == sums[name]["sha256"]):
            continue
        if file and (name == CONFIG_FILE or isinstance(data, Path)):
            other = "another run" if name == CONFIG_FILE else f"other weights of step {step}"
            raise QflError(
                f"{repo} holds {other} ({name} of the branch {branch!r}). Nothing was replaced: push to another name."
            )
        lacking[name] = data
    sizes = [len(data) if isinstance(data, bytes) else data.stat().st_size for data in lacking.values()]
    return Planned(branch, step, lacking, sum(sizes))
