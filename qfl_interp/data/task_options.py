"""What a task can be made with beside its length: declared names, their ranges, and the check of values given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qfl_interp.checked import Options, _plain, _shown, fitted, rule_of
from qfl_interp.errors import unknown_name

OptionValue = bool | int | float | str


@dataclass(frozen=True)
class TaskOption:
    """A declared option of a task; its default, whose type is the option's, is the class attribute of the same name.

    Args:
        name: As it is given, and the attribute that has its value.
        help: One line a person reads.
        low: The smallest number.
        high: The largest number, or "length": the task's length.
        choices: The words it can be, of an option that is a text.
    """

    name: str
    help: str
    low: float | None = None
    high: float | Literal["length"] | None = None
    choices: tuple[str, ...] = ()

    def range_at(self, length: int) -> tuple[float | None, float | None]:
        """The smallest and the largest number at a length; None where there is no limit."""
        return self.low, length if self.high == "length" else self.high

    def rule(self, default: OptionValue, length: int) -> str:
        """What a value must be, in words: "an integer in [2, 40]"."""
        return rule_of(default, *self.range_at(length), self.choices)

    def checked(self, value: Any, default: OptionValue, *, task: str, length: int) -> OptionValue:
        """The value, of the default's type.

        Raises:
            ValueError: It is of another type, or out of its range; says which one that is.
        """
        made = fitted(value, default, *self.range_at(length), self.choices)
        if made is None:
            rule, shown = self.rule(default, length), _shown(_plain(value))
            raise ValueError(f"{self.name} of task {task!r} must be {rule}, got {shown}. It is {self.help}.")
        return made


def checked_options(
    declared: Mapping[str, TaskOption],
    defaults: Mapping[str, OptionValue],
    given: Mapping[str, Any],
    *,
    task: str,
    length: int,
) -> Options:
    """The options that differ from their defaults, checked, in the order they are declared.

    Those at their default are left out: they are the task as it is without.

    Raises:
        QflError: An option is unknown; the nearest names are suggested.
        ValueError: A value is out of its range.
    """
    for name in given:
        if name not in declared:
            raise unknown_name(f"option of task {task!r}", name, declared)
    values = {
        name: option.checked(given[name], defaults[name], task=task, length=length)
        for name, option in declared.items()
        if name in given
    }
    return Options({name: value for name, value in values.items() if value != defaults[name]})
