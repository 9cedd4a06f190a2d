"""`view`: the page over a folder, on this machine alone, until it is stopped."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.runs.config import CONFIG_FILE

PORT: Final = 8370
# Ports that are tried where the first is in use.
_TRIED: Final = 40


class Viewer:
    """A page that is served.

    Attributes:
        url: Where it is.
        note: What is to be said of it: that another port was taken. Empty mostly.
    """

    def __init__(self, server: Any, url: str, note: str) -> None:
        self._server = server
        self.url = url
        self.note = note
        self._thread = threading.Thread(target=server.serve_forever, name="qfl view", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Viewer({self.url!r}): .stop() ends it"

    def wait(self) -> None:
        """Until it is stopped, or Ctrl-C is pressed."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.5)
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


def view(
    folder_or_run: Any = "runs", *, port: int | None = None, open_browser: bool = True, block: bool = True
) -> Viewer:
    """Serve a page over all runs, suites and sweeps below a folder: 127.0.0.1 only, and nothing is sent elsewhere.

    The page shows what was computed and computes nothing by itself; a button starts a lens. What a training writes
    appears while it writes.

    Args:
        folder_or_run: A folder, or a run or suite, which is then shown: its path or what `Run.open` gives.
        port: By default 8370. One that is in use is not taken: the next free one is, which is said.
        open_browser: Also open the page in the browser of this machine.
        block: Return when it is stopped; if not, at once, and it ends with the process.

    Returns:
        Where it is served; `.stop()` ends it.

    Raises:
        QflError: Dash is not installed, there is no such folder, or no port is free.
        ValueError: The port is none.
    """
    folder, chosen = _place(folder_or_run)
    if port is not None and not 0 <= port < 65_536:
        raise ValueError(f"port must lie in [0, 65536), got {port}. 0 takes any that is free.")
    _require_dash()
    server, note = _served(folder, PORT if port is None else port)
    query = f"?{urlencode({'run': chosen})}" if chosen else ""
    found = Viewer(server, f"http://127.0.0.1:{server.server_port}/{query}", note)
    if note:
        print(note)
    print(f"{folder} is at {found.url}" + (" (Ctrl-C ends it)" if block else ""), flush=True)
    if open_browser and _has_screen():
        webbrowser.open(found.url)
    if block:
        found.wait()
    return found


def _place(given: Any) -> tuple[Path, str]:
    """The folder to list, and the key of the run that is shown first; empty where that is the reader's choice."""
    path = local_path(getattr(given, "path", given))
    if hasattr(given, "path"):
        if not (path / CONFIG_FILE).exists():  # the page opens what it shows again, by what lies in the folder
            raise QflError(
                f"{path} is shown by the file that names it: write one with `qfl suite open ... --out my.suite`, and "
                "view that file or its folder."
            )
        return path, "."
    if path.is_file():
        return path.parent, path.name
    if not path.is_dir():
        raise QflError(f"{path} is no folder. Name one that holds runs: `qfl view FOLDER`; `qfl train` makes one.")
    return path, "." if (path / CONFIG_FILE).exists() else ""


def _require_dash() -> None:
    if find_spec("dash") is None:
        raise QflError(
            "the viewer needs Dash, which is not installed. Install it with the viewer's extra: "
            "pip install 'qfl-interp[view]'"
        )


def _has_screen() -> bool:
    """Whether a browser can open here: one of text would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _served(folder: Path, port: int) -> tuple[Any, str]:
    """A server on the first free port from this one, and what to say where that is another."""
    from werkzeug.serving import make_server

    from qfl_interp.analyses.view.app import create_app

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
    app = create_app(folder).server
    for tried in range(port, min(port + _TRIED, 65_536)) if port else (0,):
        if not _is_free(tried):
            continue
        server: Any = make_server("127.0.0.1", tried, app, threaded=True)
        server.daemon_threads = True
        return server, "" if tried == port else f"port {port} is in use: this is {tried}."
    raise QflError(f"no port from {port} to {port + _TRIED - 1} is free. Name another: --port N, 0 for any.")


def _is_free(port: int) -> bool:
    """Whether a port can be listened on; werkzeug would end the process where it is not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True
