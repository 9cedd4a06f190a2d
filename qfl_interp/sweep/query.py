"""SQL on the rows of a sweep: by default DuckDB reaches nothing but them, and neither memory nor time without end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pyarrow as pa

from qfl_interp.errors import QflError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Statement

TIMEOUT_SECONDS = 60.0
# A year: a thread cannot wait for ever.
_MOST_SECONDS = 365 * 86_400.0
# What a query may take inside DuckDB, and its answer outside; 20,000 runs are about 5 MB.
_MEMORY_BYTES = 1_000_000_000
# Nothing outside: no file, no variable of this program, no extension; what does not fit memory is not put on disk.
_RESTRICTED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "memory_limit": f"{_MEMORY_BYTES}B",
    "temp_directory": "",
}
_UNRESTRICTED_HINT = "unrestricted=True (--unrestricted) lifts the limits, for queries that you trust."


def ask(
    rows: pa.Table,
    sql: str,
    parameters: dict[str, Any],
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    unrestricted: bool = False,
) -> pd.DataFrame:
    """What one statement answers on the view `runs` of these rows, which it cannot change.

    Args:
        rows: The table behind the view.
        sql: One statement.
        parameters: Values of its `$name`.
        timeout_seconds: When it is stopped; there is no limit where it is unrestricted.
        unrestricted: Files, extensions, memory and time as DuckDB has them.

    Raises:
        QflError: It is none or several statements, DuckDB refuses it, or it reached a limit; says which.
    """
    if not timeout_seconds > 0:
        raise ValueError(f"timeout_seconds must be positive, got {timeout_seconds:g}.")
    timeout_seconds = min(timeout_seconds, _MOST_SECONDS)
    with duckdb.connect(config={} if unrestricted else _RESTRICTED) as connection:
        connection.register("runs", rows)
        if unrestricted:
            with _told():
                return connection.execute(_only(connection, sql), parameters).df()
        connection.execute("set lock_configuration = true")
        with _told(), _stopped(connection, timeout_seconds):
            return _fetched(connection.execute(_only(connection, sql), parameters), timeout_seconds)


def _only(connection: DuckDBPyConnection, sql: str) -> Statement:
    """The one statement of a query."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        found = f"{len(statements)} statements" if statements else "nothing"
        raise QflError(f"a query must be one SQL statement, got {found}. Ask, for example, 'select * from runs'.")
    return statements[0]


def _fetched(result: DuckDBPyConnection, timeout_seconds: float) -> pd.DataFrame:
    """The whole answer, taken in pieces: one without end is stopped before it fills the memory."""
    deadline = time.monotonic() + timeout_seconds
    pieces = [result.fetch_df_chunk()]
    taken = 0
    while len(pieces[-1]):
        taken += int(pieces[-1].memory_usage(deep=True).sum())
        if taken > _MEMORY_BYTES:
            raise QflError(
                f"the answer of a query must stay below {_MEMORY_BYTES / 1e9:g} GB, and this one does not. Ask for "
                f"fewer rows or columns; {_UNRESTRICTED_HINT}"
            )
        if time.monotonic() > deadline:
            raise duckdb.InterruptException("interrupted between two pieces")
        pieces.append(result.fetch_df_chunk())
    return pieces[0] if len(pieces) < 3 else pd.concat(pieces[:-1], ignore_index=True)


@contextlib.contextmanager
def _stopped(connection: DuckDBPyConnection, timeout_seconds: float) -> Iterator[None]:
    """Interrupt what runs on a connection after some seconds, and say so."""
    done = threading.Event()

    def stop() -> None:
        wait = timeout_seconds
        while not done.wait(wait):  # again and again: an interrupt between two statements stops neither
            connection.interrupt()
            wait = 0.1

    thread = threading.Thread(target=stop, daemon=True, name="qfl-sweep-query")
    thread.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise QflError(
            f"a query may take {timeout_seconds:g} s, and this one was stopped after that. Ask for less, or give it "
            "longer: timeout_seconds=600 (--timeout 600)."
        ) from error
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What DuckDB refuses, in one line."""
    try:
        yield
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise QflError(
            f"a query may take {_MEMORY_BYTES / 1e9:g} GB of memory, and this one needs more. Ask for less; "
            f"{_UNRESTRICTED_HINT}"
        ) from error
    except duckdb.PermissionException as error:
        raise QflError(
            f"a query reads the view `runs` and nothing else, no files and no extensions: {_line(error)}. "
            f"{_UNRESTRICTED_HINT}"
        ) from error
    except duckdb.Error as error:
        raise QflError(f"DuckDB refuses the query on `runs`: {_line(error)}.") from error


def _line(error: BaseException) -> str:
    """A message of several lines with a marker under one of them, in one."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line.strip("^ ")).rstrip(".")
