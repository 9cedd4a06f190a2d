"""A page on disk: whole or not there, readable as the user's other files are."""

from __future__ import annotations

import os
from pathlib import Path

from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.runs.checkpoint import A_DAY, remove_leftovers, write_atomic

_PICTURES = {".png", ".jpg", ".jpeg", ".svg", ".pdf"}


def write_page(path: str | os.PathLike[str], text: str) -> Path:
    """Write a page to a file and return its path; what a killed writer of this page left a day ago goes.

    Raises:
        QflError: The path is a URL, a folder or named as a picture, or the file cannot be written; one that was there
            before is as it was.
    """
    target = local_path(Path(path))
    if target.suffix.lower() in _PICTURES:
        raise QflError(
            f"a page is HTML, and {target.name!r} is the name of a picture. Name it {target.stem}.html: its "
            "figures can be saved as pictures from there, or by `qfl.save_figure` in Python."
        )
    return write_file(path, text.encode())


def write_file(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a page or a picture to a file and return its path, as `write_page` does.

    Raises:
        QflError: The path is a URL or a folder, or the file cannot be written; one that was there before is as it was.
    """
    target = local_path(Path(path))
    try:
        require_no_folder(target)
        remove_leftovers(target.parent, target.name, older_than=A_DAY)
        write_atomic(target, content)
    except OSError as error:
        raise QflError(
            f"the page {target} cannot be written: {error.strerror}. Check its folder and the permissions there."
        ) from error
    return target


def require_no_folder(path: Path) -> None:
    """Raise `QflError` where there is a folder of the name that a page is to have."""
    if path.is_dir():
        raise QflError(f"a page is a file, and {str(path)!r} is a folder. Name the file, such as page.html.")
