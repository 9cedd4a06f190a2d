"""`qfl site`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qfl_interp.cli.output import AsJson, print_json


def site(
    folder: Annotated[Path, typer.Argument(help="Runs and suite files below it, at any depth, are shown.")],
    out: Annotated[Path, typer.Option(help="The site's folder: a new or empty one, or an earlier site.")] = Path(
        "public"
    ),
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Write a static site: a page a run and an index of them, for any web host or to open from the disk.

    The site shows what was computed and computes nothing. The call keeps pages whose run has not changed, and lists a
    damaged run as damaged.

    Example: `qfl site runs/ --out public/`
    """
    from qfl_interp.analyses.pages.site import site as write

    written = write(folder, out, progress=not quiet)
    if as_json:
        print_json(written._asdict())
        return
    kept = f", {written.n_kept} kept" if written.n_kept else ""
    print(f"wrote {written.index}: {written.n_pages} pages{kept}")
    for path, why in written.missing.items():
        print(f"not shown: {path}: {why}")
