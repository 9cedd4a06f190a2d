"""Calls to the hub, and what a user reads when one fails."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from qfl_interp.errors import QflError


class HubFile(NamedTuple):
    """A file of a revision: its size in bytes, and the hash that the hub stores it under (SHA-256 of a large one)."""

    name: str
    size: int
    digest: str

    def holds(self, data: bytes) -> bool:
        """Whether it has these contents."""
        as_blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as git names it
        return self.digest in (as_blob, hashlib.sha256(data).hexdigest())


def is_offline() -> bool:
    """Whether this process was told to keep to the cache (`HF_HUB_OFFLINE=1`)."""
    return constants.HF_HUB_OFFLINE


@contextlib.contextmanager
def explained(repo: str, doing: str) -> Iterator[None]:
    """Make a failing call to the hub one sentence: which repository, what was tried, why, what to do.

    Raises:
        QflError: For whatever the client raises.
    """
    try:
        yield
    except QflError:
        raise
    except Exception as error:  # the client raises those of its HTTP library, which changed between versions
        raise QflError(f"{doing} {repo} failed: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What went wrong and what to do, in words."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # an upload's, around the cause
        return _why(error.__cause__)
    login = "log in with `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated. Accept its conditions on its page and {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the revision is not there any more. List the repository again, or take another step."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private. Check the name; for a private one {login}."
    if isinstance(error, errors.HFValidationError):
        return f"{error} A repository is named like EleutherAI/pythia-70m."
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)) and is_offline():
        return "it is not in the cache of this machine, and HF_HUB_OFFLINE=1 keeps to that. Fetch it without."
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "no status"
        return f"the hub answered {status}: {_first_line(error)} Try again later; what was fetched before is kept."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{_first_line(error)} What was fetched before is kept."
    said = f"{type(error).__name__}: {_first_line(error)}"
    return f"the hub cannot be reached ({said}). Try again, or set HF_HUB_OFFLINE=1 to keep to the cache."


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without the client's own progress bars, which a lens' bar would stand in."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


class Refs(NamedTuple):
    """Name to commit."""

    branches: dict[str, str]
    tags: dict[str, str]


def list_refs(repo: str) -> Refs:
    """The branches and tags of a repository. Raises `QflError` where they cannot be listed."""
    with explained(repo, "listing the revisions of"):
        found = HfApi().list_repo_refs(repo)
        return Refs(*({ref.name: ref.target_commit for ref in refs} for refs in (found.branches, found.tags)))


def list_titles(repo: str, branch: str) -> dict[str, str]:
    """Title to commit, newest first, of a branch; of equal titles the newest. Raises as `list_refs` does."""
    titles: dict[str, str] = {}
    with explained(repo, f"listing the commits of {branch!r} of"):
        for commit in HfApi().list_repo_commits(repo, revision=branch):
            titles.setdefault(commit.title, commit.commit_id)
    return titles


def cached_refs(repo: str) -> dict[str, str]:
    """Name to commit of the revisions that this machine's cache knows by name."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "refs"
    paths = sorted(folder.rglob("*")) if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path.read_text().strip() for path in paths if path.is_file()}


def list_files(repo: str, commit: str, doing: str) -> list[HubFile]:
    """The files at the root of a revision. Raises `QflError` where they cannot be listed."""
    with explained(repo, doing):
        found = HfApi().list_repo_tree(repo, revision=commit)
        files = [entry for entry in found if isinstance(entry, RepoFile)]
        return [HubFile(f.path, f.size, f.lfs.sha256 if f.lfs else f.blob_id) for f in files]


def fetch(repo: str, commit: str, names: Sequence[str], doing: str) -> Path:
    """The folder of a revision in the cache of this machine, with these files in it; fetched where they are not.

    Raises:
        QflError: One cannot be fetched.
    """
    folder = Path()
    for name in names:
        path = cached_file(repo, commit, name)
        if path is None:
            with explained(repo, doing), without_bars():
                path = Path(HfApi().hf_hub_download(repo, name, revision=commit))
        folder = path.parent
    return folder


def cached_file(repo: str, commit: str, name: str) -> Path | None:
    """A file of a revision in the cache of this machine; None where it is not there."""
    found = try_to_load_from_cache(repo, name, revision=commit)
    return Path(found) if isinstance(found, str) else None


def find_refs(repo: str) -> Refs | None:
    """The branches and tags of a repository, None where there is none, or none that this user may see."""
    try:
        return list_refs(repo)
    except QflError as error:
        missing = isinstance(error.__cause__, errors.RepositoryNotFoundError)
        if missing and not isinstance(error.__cause__, errors.GatedRepoError):
            return None
        raise


def make_repo(repo: str, *, private: bool) -> None:
    """Make a repository. Raises `QflError` where it cannot be made."""
    with explained(repo, "making"):
        HfApi().create_repo(repo, private=private)


def make_branch(repo: str, branch: str) -> None:
    """Make a branch that begins at `main`, where there is none. Raises `QflError` where it cannot be made."""
    with explained(repo, f"making the branch {branch!r} of"):
        HfApi().create_branch(repo, branch=branch, revision="main", exist_ok=True)


def commit(repo: str, branch: str, files: Mapping[str, bytes | Path], title: str) -> None:
    """Put files on a branch in one commit, all of them or none. Raises `QflError` where they cannot be sent."""
    with explained(repo, f"sending {branch!r} to"), without_bars():
        added = [
            CommitOperationAdd(name, str(data) if isinstance(data, Path) else data) for name, data in files.items()
        ]
        HfApi().create_commit(repo, added, commit_message=title, revision=branch)
