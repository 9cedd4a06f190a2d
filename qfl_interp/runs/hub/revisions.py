"""Which checkpoints a hub repository has: its revisions by step, each pinned to a commit."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.plugins import warn
from qfl_interp.runs.checkpoint import write_atomic
from qfl_interp.runs.hub import client
from qfl_interp.runs.hub.names import REVISION, TITLE, Named, read_name, tokens_per_step
from qfl_interp.runs.series import Steps, listed_steps

_FIRST_STAGE = re.compile(r"stage[-_]?0*1(?!\d)", re.IGNORECASE)


class Revision(NamedTuple):
    """A branch, tag or commit that keeps the checkpoint of one step; `name` is the title of a commit of a history."""

    name: str
    commit: str
    named: Named


@dataclass(frozen=True)
class Listing:
    """The checkpoints of one series of a repository.

    Attributes:
        repo: The repository.
        series: What tells this series from the repository's others; empty where names are step and tokens alone.
        revisions: By step, ascending.
        others: How many revisions each other series has.
        tokens_per_step: The tokens of one step as the names of the whole series have them, also of what a cache lacks;
            None where they say none, or not in proportion to steps.
    """

    repo: str
    series: str
    revisions: Mapping[int, Revision]
    others: Mapping[str, int]
    tokens_per_step: int | None = None

    def choose(self, steps: Steps) -> list[Revision]:
        """The revisions that `steps` names, ascending.

        Raises:
            QflError: One is not there (the nearest is named).
            ValueError: The text names no steps.
        """
        there = list(self.revisions)
        for step in (chosen := listed_steps(steps, there)):
            if step not in self.revisions:
                nearest = min(there, key=lambda other: abs(other - step))
                where = "in the cache of this machine" if client.is_offline() else "on the hub"
                raise QflError(
                    f"step {step} of {self.repo} is not {where}. The nearest is {nearest}; {len(there)} steps lie "
                    f"between {there[0]} and {there[-1]}."
                )
        return [self.revisions[step] for step in sorted(set(chosen))]

    def left_out(self) -> str:
        """A sentence on the series that were not taken; empty where there are none."""
        if not self.others:
            return ""
        others = ", ".join(f"{name or 'without a stage'} ({count})" for name, count in sorted(self.others.items()))
        return (
            f"{self.repo} has several series: {self.series or 'that without a stage'} ({len(self.revisions)} "
            f"revisions) is taken, and left out are {others}. Give stage= for another."
        )


def list_revisions(
    repo: str,
    memory: Path,
    *,
    stage: str | None = None,
    pattern: str | None = None,
    history: str | None = None,
) -> Listing:
    """The revisions of a repository that keep a step each, of one series.

    Where names tell several series apart (stages, ingredients, seeds), it is the one without a stage, else stage 1,
    else that of most revisions.

    Args:
        repo: "EleutherAI/pythia-70m".
        memory: Folder that keeps what was listed: for `HF_HUB_OFFLINE=1`, and to see a revision that moved.
        stage: The series to take, by its name: "stage2-ingredient1".
        pattern: Regular expression of a whole name, its groups as `names.read_name` takes them.
        history: A branch whose commits are the checkpoints, where branches and tags are not: their titles are read.

    Raises:
        QflError: The hub cannot be reached, the repository is not there, or there is no such revision or series, or
            two of one step.
        ValueError: The pattern has no group `step`.
    """
    branch = "" if history is None else f"@{history}"
    remembered = memory / f"{re.sub(r'[^-.@A-Za-z0-9]+', '_', repo.replace('/', '--') + branch)}.revisions.json"
    before = _remembered(remembered)
    if client.is_offline():
        refs = before or client.cached_refs(repo)
    else:
        refs = _asked(repo, history)
        _remember(remembered, refs)
        _say_moved(repo, before, refs)
    found = [
        (name, commit, read_name(name, pattern or (TITLE if history else REVISION))) for name, commit in refs.items()
    ]
    revisions = [Revision(name, commit, named) for name, commit, named in found if named is not None]
    unnamed = tuple(name for name, _, named in found if named is None)
    if not revisions:
        raise _no_revision(repo, unnamed, history)
    sizes = Counter(revision.named.series for revision in revisions)
    series = _default_series(sizes) if stage is None else stage
    if series not in sizes:
        known = ", ".join(sorted(name or "''" for name in sizes))
        raise QflError(f"{repo} has no series {series!r}. Its series: {known}. Give one of them as stage=.")
    by_step: dict[int, Revision] = {}
    for revision in (one for one in revisions if one.named.series == series):
        other = by_step.setdefault(revision.named.step, revision)
        if other.commit != revision.commit and not history:  # the newest of a history comes first, and counts
            raise QflError(
                f"{repo} has step {revision.named.step} twice: {other.name!r} and {revision.name!r}, of other commits. "
                "Give a pattern= that matches one of them."
            )
    others = {name: count for name, count in sizes.items() if name != series}
    tokens = tokens_per_step([revision.named for revision in by_step.values()])
    there = {
        step: by_step[step] for step in sorted(by_step) if not client.is_offline() or _is_cached(repo, by_step[step])
    }
    if not there:
        raise _no_revision(repo, unnamed, history)
    return Listing(repo, series, there, others, tokens)


def _is_cached(repo: str, revision: Revision) -> bool:
    """Whether this machine's cache holds a configuration of that commit; its weights may be missing."""
    return client.cached_file(repo, revision.commit, "config.json") is not None


def _default_series(sizes: Mapping[str, int]) -> str:
    """The series without a stage, else stage 1, else the one of most revisions; of equal ones the first by name."""
    return min(sizes, key=lambda name: (name != "", not _FIRST_STAGE.match(name), -sizes[name], name))


def _asked(repo: str, history: str | None) -> dict[str, str]:
    """Name to commit, from the hub: of branches and tags, or of the commits of a branch."""
    if history is not None:
        return client.list_titles(repo, history)
    branches, tags = client.list_refs(repo)
    for name in branches.keys() & tags.keys():
        if branches[name] != tags[name]:
            warn(f"{repo} has a branch and a tag named {name!r}, of other commits: the branch is taken.")
    return tags | branches


def _no_revision(repo: str, unnamed: Sequence[str], history: str | None) -> QflError:
    """What to do where no name says a step."""
    if client.is_offline():
        return QflError(f"the cache of this machine holds no revision of {repo} with a step. Unset HF_HUB_OFFLINE.")
    shown = ", ".join(map(repr, unnamed[:8])) + (", ..." if len(unnamed) > 8 else "")
    what = f"commit of {history!r} of {repo} has a title" if history else f"branch or tag of {repo} has a name"
    return QflError(
        f"no {what} that says a step; there are {len(unnamed)}: {shown or 'none'}. Give pattern= with a group named "
        "step" + ("." if history else ", or history='main' where the commits of a branch are the checkpoints.")
    )


def _remembered(path: Path) -> dict[str, str]:
    """What was listed before; empty where nothing was, or it cannot be read."""
    try:
        found = read_json(path, dict, "")["revisions"]
        return {str(name): str(commit) for name, commit in found.items()}
    except (FileNotFoundError, QflError, KeyError, AttributeError):
        return {}


def _remember(path: Path, refs: Mapping[str, str]) -> None:
    """Keep what was listed; a folder that cannot be written costs its use offline alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"revisions": dict(refs)}, indent=1).encode())
    except (OSError, QflError):
        return


def _say_moved(repo: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Name the revisions that have another commit than when they were listed before, and those that are gone."""
    moved = [name for name, commit in now.items() if before.get(name, commit) != commit and read_name(name)]
    gone = [name for name in before if name not in now and read_name(name)]
    for names, what in ((moved, "point to other commits"), (gone, "are not there any more")):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            warn(
                f"since {repo} was listed before, {len(names)} of its revisions {what}: {shown}. Tables of the old "
                "weights do not count for new ones."
            )
