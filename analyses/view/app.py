"""The page as a Dash app: which callback fills what. The server keeps nothing but what files can give it again."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dash import Dash, Input, Output, State, no_update
from dash.dependencies import ClientsideFunction
from flask import Response, abort, request

from qfl_interp.analyses.view import head, layout
from qfl_interp.analyses.view.address import Address, read_address
from qfl_interp.analyses.view.index import Index, as_json
from qfl_interp.cli.faults import sentence
from qfl_interp.errors import QflError

# Nothing is loaded from elsewhere, whatever a run's strings contain; Dash starts itself by a line of its page.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# Seconds to wait for the first page before torch is loaded all the same.
_PATIENCE: Final = 5.0
_HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
_LOG: Final = logging.getLogger("qfl_interp.view")


def create_app(folder: Path) -> Dash:
    """The app over a folder."""
    index = Index(folder)
    work = _Work(index)
    app = Dash(
        __name__,
        title=f"qfl view · {folder.resolve().name}",
        update_title=None,  # type: ignore[arg-type]  # the title does not say each second that something is asked for
        assets_folder=str(Path(__file__).with_name("assets")),
        serve_locally=True,
        compress=False,
        suppress_callback_exceptions=True,
    )
    app.index_string = app.index_string.replace("<head>", '<head><meta name="color-scheme" content="light dark">')
    # Made before another thread imports: plotly asks modules that may be half there.
    app.layout = layout.page(folder)
    _guard(app)
    _listing(app, index, work)
    _figures(app, index, work)
    _in_the_browser(app)
    threading.Thread(target=work.prepare, name="load the lenses", daemon=True).start()
    return app


class _Work:
    """What draws, which loads torch: on first use, or in the background before it."""

    def __init__(self, index: Index) -> None:
        self._index, self._lock = index, threading.Lock()
        self.listed = threading.Event()  # a page has the list
        self._loaded: tuple[Any, Any] | None = None

    @property
    def ready(self) -> bool:
        """Whether it is loaded."""
        return self._loaded is not None

    def prepare(self) -> None:
        """List the runs, then load torch, which takes seconds: what the page asks for first is there first."""
        self._index.entries()
        self.listed.wait(_PATIENCE)
        self.load()

    def load(self) -> tuple[Any, Any]:
        """The module `drawn`, and the runs of the index."""
        with self._lock:
            if self._loaded is None:
                from qfl_interp.analyses.view import drawn
                from qfl_interp.analyses.view.opened import Opened

                self._loaded = drawn, Opened(self._index)
            return self._loaded

    def draw(self, name: str, *arguments: Any) -> Any:
        """What a function of `drawn` makes."""
        module, opened = self.load()
        return getattr(module, name)(opened, *arguments)


def _guard(app: Dash) -> None:
    """Answer this machine alone: a page of another name that leads here gets nothing."""

    @app.server.before_request
    def own_host() -> None:
        origin = request.headers.get("Origin")
        if request.host.rpartition(":")[0] not in _HOSTS or (origin and origin != f"http://{request.host}"):
            abort(403)

    @app.server.after_request
    def headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def _listing(app: Dash, index: Index, work: _Work) -> None:
    """The list, and whether anything of the chosen runs changed."""

    @app.callback(
        Output("rows", "data"),
        Output("rows-seen", "data"),
        Output("pulse", "data"),
        Output("tables-pulse", "data"),
        Input("tick", "n_intervals"),
        Input("chosen", "data"),
        State("rows-seen", "data"),
        State("pulse", "data"),
        State("tables-pulse", "data"),
    )
    def look(_n: int | None, chosen: list[str], seen: str | None, pulse: str, tables_pulse: str) -> tuple[Any, ...]:
        entries, now_seen = index.look(watch=chosen)
        if seen is not None:
            work.listed.set()
        rows = (no_update, no_update) if now_seen == seen else (as_json(entries), now_seen)
        now = [_said_of(lambda key=key: work.draw("stamps", key)) for key in chosen] if work.ready else []
        both = json.dumps(now), json.dumps([one if isinstance(one, dict) else one[1] for one in now])
        fresh = zip(both, (pulse, tables_pulse), strict=True)
        return (*rows, *(no_update if new == old else new for new, old in fresh))


def _figures(app: Dash, index: Index, work: _Work) -> None:
    """What is shown of the chosen runs: again whenever their files change."""

    def alone(chosen: list[str]) -> list[str]:
        """The run, if it is one: several, or a sweep, have no step to look at."""
        return chosen if len(chosen) == 1 and not index.is_sweep(chosen[0]) else []

    @app.callback(Output("head", "children"), Input("chosen", "data"), Input("rows-seen", "data"))
    def of_head(chosen: list[str], seen: str | None) -> Any:
        return no_update if seen is None else head.of(chosen, index.entries(), index.folder)

    @app.callback(
        Output("timeline-data", "data"), Input("chosen", "data"), Input("feature", "data"), Input("pulse", "data")
    )
    def of_timeline(chosen: list[str], feature: str, _pulse: str) -> str | None:
        address = Address(tuple(chosen), feature=feature or "")
        return _payload(lambda: work.draw("over_training", address), chosen)

    @app.callback(Output("tabs", "data"), Input("chosen", "data"), Input("tables-pulse", "data"))
    def of_tabs(chosen: list[str], _pulse: str) -> str | None:
        return _payload(lambda: work.draw("tabs", chosen[0]), alone(chosen))

    @app.callback(
        Output("view-data", "data"),
        Input("chosen", "data"),
        Input("open-view", "data"),
        Input("step", "data"),
        Input("choices", "data"),
        Input("tables-pulse", "data"),
    )
    def of_view(chosen: list[str], name: str, step: int | None, choices: dict[str, str], _pulse: str) -> str | None:
        address = Address(tuple(chosen), name or "", step, choices=choices or {})
        return _payload(lambda: work.draw("at_step", address), alone(chosen))

    @app.callback(Output("startable", "data"), Input("chosen", "data"))
    def of_startable(chosen: list[str]) -> str | None:
        return _payload(lambda: {"lenses": work.draw("startable", chosen[0])}, alone(chosen))

    @app.callback(
        Output("jobs", "data"),
        Input("chosen", "data"),
        Input("asked", "data"),
        Input("tick", "n_intervals"),
        State("jobs", "data"),
    )
    def of_jobs(chosen: list[str], _asked: str | None, _n: int | None, shown: str | None) -> Any:
        if not work.ready and shown is None:
            return no_update
        now = _payload(lambda: {"jobs": work.draw("working", chosen[0])}, alone(chosen))
        return no_update if now == shown else now

    @app.callback(Output("asked", "data"), Input("ask", "data"), prevent_initial_call=True)
    def of_ask(asked: dict[str, Any] | None) -> Any:
        if not asked:
            return no_update
        whose = {"run": asked.get("run"), "lens": asked.get("lens")}
        return json.dumps(_said_of(lambda: {"said": work.draw("ask", asked)}) | whose)

    @app.server.route("/table.csv")
    def table() -> Response:
        text = request.query_string.decode()
        of, address = request.args.get("of", ""), read_address(text)
        try:
            rows = work.draw("rows_of", of, address)
        except (QflError, ValueError) as error:
            return Response(sentence(error) or str(error), status=404, mimetype="text/plain")
        at = [f"step{rows['step'].iloc[0]}"] if of == "view" and "step" in rows and len(rows) else []
        name = "-".join([of, *address.runs[:1], *at]).replace("/", "-").replace('"', "")
        response = Response(rows.to_csv(index=False), mimetype="text/csv")
        response.headers.set("Content-Disposition", "attachment", filename=f"{name}.csv")
        return response


def _in_the_browser(app: Dash) -> None:
    """What `assets/view.js` does."""

    def here(function: str, *arguments: Any) -> None:
        app.clientside_callback(ClientsideFunction("view", function), *arguments)

    here("start", Output("address", "data"), Output("theme", "data"), Input("app", "id"))
    here("list", Output("drawn-list", "data"), Input("rows", "data"), Input("address", "data"))
    parts = ("chosen", "open-view", "step", "choices", "feature")
    here(
        "split",
        *(Output(name, "data") for name in parts),
        Input("address", "data"),
        *(State(name, "data") for name in parts),
    )
    here("search", Output("drawn-search", "data"), Input("search", "value"))
    for name in ("timeline", "view"):
        here(
            name,
            Output(f"{name}-graph", "figure"),
            Input(f"{name}-data", "data"),
            Input("theme", "data"),
            State("templates", "data"),
            State("address", "data"),
        )
    here("line", Output("drawn-line", "data"), Input("step", "data"))
    here(
        "lenses",
        Output("drawn-lenses", "data"),
        Input("startable", "data"),
        Input("jobs", "data"),
        Input("asked", "data"),
    )
    here(
        "tabs", Output("drawn-tabs", "data"), Input("tabs", "data"), Input("open-view", "data"), Input("chosen", "data")
    )


def _payload(make: Callable[[], dict[str, Any]], chosen: list[str]) -> str | None:
    """What is made, as JSON; or what is wrong, in words; None where nothing is chosen."""
    return json.dumps(_said_of(make)) if chosen else None


def _said_of(make: Callable[[], Any]) -> Any:
    """What is made, or an error as a sentence: one card's fault leaves the others as they are."""
    try:
        return make()
    except Exception as error:
        text = sentence(error)
        if text is None:
            _LOG.exception("a card cannot be drawn")
            text = f"{type(error).__name__}: {error}"
        return {"error": text}
