"""Damage to a file: its bytes, its lines, its values, or a folder in its place."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_NUMBER = re.compile(rb"-?\d+(\.\d+)?(e-?\d+)?")


class Mutation(NamedTuple):
    """What becomes of a file: its new contents, or None for a folder in its place."""

    kind: str
    data: bytes | None


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON document that are no containers."""
    if isinstance(value, dict):
        return [path for key, item in value.items() for path in leaves(item, (*at, key))]
    if isinstance(value, list):
        return [path for key, item in enumerate(value) for path in leaves(item, (*at, key))]
    return [at]


def edited(data: bytes, rng: random.Random) -> bytes:
    """A JSON document with one value changed, or one key gone."""
    document = json.loads(data)
    *path, key = rng.choice(leaves(document))
    holder = document
    for step in path:
        holder = holder[step]
    value = holder[key]
    change = rng.choice(["gone", "null", "other", "other", "other"])
    if change == "gone":
        del holder[key]
    elif change == "null":
        holder[key] = None
    elif isinstance(value, str):
        holder[key] = value + "x"
    else:
        holder[key] = 1 if value is None else value * 2 + 1
    return json.dumps(document).encode()


Makers = dict[str, Callable[[], bytes | None]]
Kinds = Callable[[bytes, random.Random], Makers]


def no_more(_data: bytes, _rng: random.Random) -> Makers:
    """No kinds beside those of any file."""
    return {}


def of_text(data: bytes, rng: random.Random) -> Makers:
    """Kinds for files of lines: a line twice, two swapped, one gone, a number replaced by another or by none."""
    lines = data.splitlines(keepends=True)
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    numbers = list(_NUMBER.finditer(data)) or [re.match(b"", data)]
    where = rng.choice(numbers)

    def put_number(text: bytes) -> bytes:
        return data[: where.start()] + text + data[where.end() :]

    def swapped() -> bytes:
        order = list(lines)
        order[one], order[other] = order[other], order[one]
        return b"".join(order)

    return {
        "line twice": lambda: b"".join([*lines[: one + 1], *lines[one:]]),
        "lines swapped": swapped,
        "line gone": lambda: b"".join([*lines[:one], *lines[one + 1 :]]),
        "number": lambda: put_number(str(rng.choice([0, 1, -1, 7, 2.5, 10**30, rng.randrange(10**6)])).encode()),
        "no number": lambda: put_number(rng.choice([b"NaN", b"Infinity", b"-Infinity", b"null", b'"7"', b"1e999"])),
    }


def mutate(data: bytes, rng: random.Random, *, is_json: bool, more: Kinds = no_more) -> Mutation:
    """One mutation of a file's contents, which it changes; `more` gives kinds beside those of any file."""
    at, length = rng.randrange(len(data)), rng.randrange(1, 64)
    some = rng.randbytes(length)
    makers: dict[str, Callable[[], bytes | None]] = {
        "flip": lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        "truncate": lambda: data[:at],
        "overwrite": lambda: data[:at] + some + data[at + length :],
        "zeros": lambda: data[:at] + bytes(length) + data[at + length :],
        "insert": lambda: data[:at] + some + data[at:],
        "cut": lambda: data[:at] + data[at + length :],
        "twice": lambda: data[: at + length] + data[at:],
        "bomb": lambda: b"[" * 100_000,
        "other": lambda: rng.choice([b"[]", b"null", b"{}", b"3", b'{"a": 1}', b'["a"]', b"PAR1"]),
        "folder": lambda: None,
    }
    if is_json:
        makers |= {"edit": lambda: edited(data, rng)}
    makers |= more(data, rng)
    weights = {"flip": 8, "edit": 6, "folder": 1, "bomb": 1}
    kind = rng.choices(list(makers), [weights.get(name, 2) for name in makers])[0]
    changed = makers[kind]()
    return Mutation(kind, changed) if changed != data else mutate(data, rng, is_json=is_json, more=more)


def put(file: Path, data: bytes | None) -> None:
    """Give a file these contents, or put a folder in its place."""
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    file.mkdir() if data is None else file.write_bytes(data)
