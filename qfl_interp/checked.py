"""The base of every configuration: frozen, checked on creation, JSON both ways. A run is named by its configuration."""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError, nearest

# beartype, which checks the annotations in tests, refuses typing.Self on a method it sees alone.
_ConfigT = TypeVar("_ConfigT", bound="_Config")


# The integers that a tensor can hold.
_LARGEST = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _require(ok: bool, rule: str, value: object, advice: str) -> None:
    """Raise ValueError with the rule, the value found and what to do, unless `ok`."""
    if not ok:
        raise ValueError(f"{rule}, got {_shown(value)}. {advice}".rstrip())


def _require_word(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError with the words there are, and the nearest, unless `value` is one of them."""
    listed = " or ".join((", ".join(map(repr, known[:-1])), repr(known[-1])))
    if value not in known:  # the nearest is looked for where it is said: it takes longer than all other checks
        _require(False, f"{name} must be {listed}", value, nearest(value, known).strip())


def _shown(value: object) -> str:
    """The value as a message shows it: a list or a number of a thousand digits is cut."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python writes no number of 4300 digits
        return f"an integer of {value.bit_length()} bits"
    return _SHORT.repr(value)


def _plain(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def rule_of(
    like: bool | int | float | str, low: float | None, high: float | None, choices: tuple[str, ...] = ()
) -> str:
    """What a declared setting must be, of the type of `like`, in words: "an integer in [2, 40]"."""
    if isinstance(like, bool):
        return "true or false"
    if isinstance(like, str):
        return f"one of {', '.join(choices)}" if choices else "a text"
    kind = "an integer" if isinstance(like, int) else "a number"
    if low is None and high is None:
        return kind
    left = f"[{low:g}" if low is not None else "(-inf"
    return f"{kind} in {left}, {f'{high:g}]' if high is not None else 'inf)'}"


def fitted(
    value: Any,
    like: bool | int | float | str,
    low: float | None,
    high: float | None,
    choices: tuple[str, ...] = (),
) -> bool | int | float | str | None:
    """The value in the type of `like`; None where it has another one or is out of range (`rule_of` says which)."""
    value = _plain(value)
    try:
        if isinstance(like, (bool, str)):
            return value if type(value) is type(like) and (not choices or value in choices) else None
        made = _int(value) if isinstance(like, int) else _float(value)
    except TypeError:
        return None
    return made if (low is None or made >= low) and (high is None or made <= high) else None


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError("an integer")
    if abs(int(value)) > _LARGEST:
        raise TypeError("an integer within 2**63")
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError("a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TypeError("a finite number")
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return str(value)


def _floats(value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("several numbers")
    return tuple(_float(_plain(one)) for one in value)


def _ints(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("several integers")
    return tuple(_int(_plain(one)) for one in value)


class Options(dict[str, "bool | int | float | str"]):
    """Named settings of something that is itself a name (a task, an optimiser); hashable, never changed once made."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _options(value: Any) -> Options:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError("settings by name, each true or false, a number or a text")
    plain = {name: _plain(one) for name, one in value.items()}
    for name, one in plain.items():
        if not isinstance(one, (bool, str)):
            try:
                plain[name] = _int(one) if isinstance(one, numbers.Integral) else _float(one)
            except TypeError as error:
                raise TypeError(f"settings of which {name} is true or false, a text or {error}") from error
    return Options(plain)


def _int_or_all(value: Any) -> int | Literal["all"]:
    if isinstance(value, str) and value == "all":
        return "all"
    try:
        return _int(value)
    except TypeError as error:
        raise TypeError(f"{error}, or 'all'") from error


def _str_or_floats(value: Any) -> str | tuple[float, ...]:
    return _str(value) if isinstance(value, str) else _floats(value)


# Annotation -> what makes a value of it; a TypeError says what is wanted.
_TYPES: dict[str, Callable[[Any], Any]] = {
    "bool": _bool, "int": _int, "float": _float, "str": _str, "tuple[int, ...]": _ints,
    "tuple[float, ...]": _floats, "tuple[float, float]": _floats, "str | tuple[float, float]": _str_or_floats,
    "Mapping[str, Any]": _options, "int | Literal['all']": _int_or_all,
}  # fmt: skip


class _Config:
    """JSON both ways for a frozen dataclass; equal configurations have one JSON text, hence one digest.

    Every field is checked and made what its annotation says: a scalar of numpy becomes Python's, NaN and infinities are
    no numbers here. Fields of other annotations are words, and which ones is the class's own to check.
    """

    # Limits that may be infinite: there is none then.
    _unlimited: ClassVar[tuple[str, ...]] = ()
    # Fields that came after the first release. At their default they are not written: configurations of before keep
    # their names.
    _later: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            kind = str(field.type).removesuffix(" | None")
            value = _plain(getattr(self, field.name))
            if value is None and kind != field.type:
                continue
            if field.name in self._unlimited and isinstance(value, float) and value == math.inf:
                continue
            try:
                object.__setattr__(self, field.name, _TYPES.get(kind, _str)(value))
            except TypeError as error:
                _require(False, f"{field.name} must be {error}", value, "")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; those of `_later` where they differ from their default."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass
        defaults = {f.name: f.default for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {k: v for k, v in values.items() if not (k in self._later and getattr(self, k) == defaults[k])}

    @classmethod
    def from_dict(cls: type[_ConfigT], values: dict[str, Any]) -> _ConfigT:
        """The configuration that `to_dict` wrote.

        Raises:
            QflError: A field is unknown or missing: the file is another version's or another program's.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # a dataclass
        unknown = sorted(set(values) - set(fields))
        required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
        missing = sorted(required - set(values))
        if unknown or missing:
            raise QflError(
                f"{cls.__name__} does not fit: unknown fields {unknown}, missing fields {missing}. "
                "The file was written by another version of qfl_interp or by another program."
            )
        fitted = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fitted)

    def digest(self) -> str:
        """Twelve hexadecimal digits that name this configuration: the SHA-256 of its sorted JSON."""
        return json_digest(self.to_dict())
