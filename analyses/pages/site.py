"""A static site of many runs: a page each and an index of them, with plotly.js once."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import plotly.offline

from qfl_interp.analyses.pages.known import known_page
from qfl_interp.analyses.pages.run_page import run_page
from qfl_interp.analyses.pages.shown import LossUnknown
from qfl_interp.analyses.pages.site_index import index_row, index_section
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.files import local_path, read_json
from qfl_interp.progress import progress_bar
from qfl_interp.report.page import GENERATOR, page_look, write_report
from qfl_interp.runs.checkpoint import write_atomic
from qfl_interp.runs.config import CONFIG_FILE, RunConfig
from qfl_interp.runs.listing import places
from qfl_interp.runs.opening import open_checkpoints
from qfl_interp.runs.workplace import workplace

# What says that a folder is a site of this library.
MARKER: Final = "qfl_site.json"
_INDEX, _PAGES, _ASSETS = "index.html", "runs", "assets"
_MARK: Final = {"format": "qfl_interp site", "version": 1}
# What a page is made of, below a run's folder; checkpoints are told by their folder.
_SOURCES: Final = ("config.json", "metrics.jsonl", "task.json", "provenance.json", "checkpoints", "analyses/*/_*.json")
_ADVICE: Final = "Delete it: the page is then written again."


class Site(NamedTuple):
    """What was written.

    Attributes:
        index: The page to open.
        n_pages: Pages of runs that are there now.
        n_kept: Of these, as they were: their run has not changed.
        missing: What is listed without a page, damaged or not measured yet, and why.
    """

    index: Path
    n_pages: int
    n_kept: int
    missing: dict[str, str]


def site(folder: str | Path, out: str | Path, *, progress: bool = True) -> Site:
    """Write a static site of the runs and suite files below a folder: an index, a page each, plotly.js once.

    A page shows what tables hold and computes nothing. Links are relative: the site works from the disk and from any
    host. Each file is written whole or not at all. A page whose run has the files it had is kept, so that a call that
    was stopped goes on where it was. A run that cannot be read is listed with the reason.

    Example:
        `qfl site runs/ --out public/`

    Args:
        folder: Where to look, at any depth.
        out: The site's folder: a new or empty one, or one that `site` wrote.
        progress: Draw a bar on standard error.

    Raises:
        QflError: There is no run, or `out` holds files that are not a site's.
    """
    root, target = local_path(folder), local_path(out)
    found = _found(root, target)
    if not found:
        raise QflError(f"no run and no suite file lies below {root}. Train one with `qfl train`, or name its folder.")
    _claim(target)
    library = _shared_plotly(target)
    _forget(target / _PAGES, {_name(path.relative_to(root)) for path in found})
    rows, missing, n_kept = [], {}, 0
    with progress_bar(enabled=progress) as bar:
        task = bar.add_task("pages", total=len(found), detail="")
        for path in found:
            bar.update(task, detail=path.name)
            name = _name(path.relative_to(root))
            page, record = target / _PAGES / f"{name}.html", target / _PAGES / f"{name}.json"
            sources = _fingerprint(path, library)
            row = _kept(page, record, sources)
            n_kept += row is not None
            try:
                row = row or _write(path, root, page, record, sources, library)
            except (QflError, OSError, RecursionError) as error:
                missing[str(path)] = " ".join(str(error).split())
                state = "not measured" if isinstance(error, LossUnknown) else "damaged"
                row = {"why": _from_here(missing[str(path)], root), "state": state}
            rows.append(row | {"path": path.relative_to(root).as_posix(), "page": f"{_PAGES}/{name}.html"})
            bar.advance(task)
    index = target / _INDEX
    _require_own(index)
    write_report(index, {}, [index_section(rows)], title=f"Runs in {root.resolve().name}")
    return Site(index, len(found) - len(missing), n_kept, missing)


def _found(root: Path, target: Path) -> list[Path]:
    """Runs and suite files below a folder, none of them in the site; sorted."""
    found = [
        place.path
        for place in places(root)
        if place.kind == "suite" or (place.kind == "run" and (place.path / CONFIG_FILE).exists())
    ]
    return [path for path in found if target.resolve() not in path.resolve().parents]


def _claim(target: Path) -> None:
    """Make a folder a site's, or see that it is one. Raises `QflError` where it holds other files."""
    if target.is_dir() and any(target.iterdir()):
        try:
            mark = read_json(target / MARKER, dict, "Restore it, or name another folder.")
        except FileNotFoundError:
            mark = {}
        if mark.get("format") != _MARK["format"]:
            raise QflError(
                f"a site is written into a new or empty folder, or over an earlier site, and {target} holds other "
                f"files ({sorted(path.name for path in target.iterdir())[0]!r} and so on). Name another with --out."
            )
    try:
        for place in (target, target / _PAGES, target / _ASSETS):
            place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QflError(f"the folder {target} cannot be made: {error.strerror}. Name another with --out.") from error
    write_atomic(target / MARKER, json.dumps(_MARK).encode())


def _forget(pages: Path, names: Collection[str]) -> None:
    """Delete the pages of runs that are not there any more: those that have a record."""
    for record in pages.glob("*.json"):
        if record.stem not in names:
            record.with_suffix(".html").unlink(missing_ok=True)
            record.unlink(missing_ok=True)


def _shared_plotly(target: Path) -> str:
    """The name of the file of plotly.js, which is written if it is not there; another version has another name."""
    code = plotly.offline.get_plotlyjs().encode()
    name = f"plotly-{digest(code)}.min.js"
    path = target / _ASSETS / name
    if not path.exists() or path.stat().st_size != len(code):
        write_atomic(path, code)
    return name


def _name(inside: Path) -> str:
    """A file name for a run's page: its place below the folder, in letters that every host takes, never another's."""
    text = inside.as_posix() if inside.parts else "run"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("/", "--")).strip(".-")[:80]
    return plain if plain == text else f"{plain or 'run'}-{digest(text)}"


def _fingerprint(path: Path, library: str) -> str:
    """A digest of what a page is made of: the run's files by size and time, plotly.js, and how pages look."""
    files = (
        [path] if path.is_file() else [file for own in _places(path) for name in _SOURCES for file in own.glob(name)]
    )
    seen = []
    for file in sorted(files):
        try:
            said = file.stat()
        except OSError:
            continue
        seen.append((file.name, said.st_size, said.st_mtime_ns))
    return digest(repr(seen), library, page_look())


def _places(run: Path) -> list[Path]:
    """Where a run's files are: its folder, and the user's for what was computed of one that is read-only."""
    try:
        return list(dict.fromkeys([run, workplace(run, RunConfig.read(run).run_id)]))
    except (QflError, RecursionError):  # told when its page is written
        return [run]


def _kept(page: Path, record: Path, sources: str) -> dict[str, Any] | None:
    """What a page's record says, if the page is there and its run has the files that it was made of."""
    try:
        found = read_json(record, dict, _ADVICE)
    except (QflError, FileNotFoundError):
        return None
    return found["row"] if page.is_file() and found.get("sources") == sources and "row" in found else None


def _write(path: Path, root: Path, page: Path, record: Path, sources: str, library: str) -> dict[str, Any]:
    """Write the page of a run, then the record that says it is done; returns what the index says of it."""
    _require_own(page)
    run = open_checkpoints(path)
    shown = run_page(known_page(run))
    look: dict[str, Any] = {"plotly": f"../{_ASSETS}/{library}", "home": f"../{_INDEX}"}
    sections = [dataclasses.replace(section, text=_from_here(section.text, root)) for section in shown.sections]
    write_report(page, shown.card, sections, findings=shown.findings, **look)
    row = index_row(run, shown)
    write_atomic(record, json.dumps({"sources": sources, "row": row}).encode())
    return row


def _from_here(text: str, root: Path) -> str:
    """A message with paths from the folder that is shown on: where that lies is nobody's concern."""
    return text.replace(f"{root.resolve()}/", "").replace(f"{root}/", "")


def _require_own(page: Path) -> None:
    """Raise `QflError` where a page would take the place of a file that is none of ours."""
    if not page.exists():
        return
    with open(page, "rb") as file:
        if GENERATOR.encode() not in file.read(2_000):
            raise QflError(f"{page} is no page of a site's: it is not overwritten. Move it, or name another --out.")
