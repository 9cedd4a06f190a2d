"""What a page shows, as its address says it: a link brings back the same page.

`?run=seeds/a&run=seeds/b&view=patch&step=1000&feature=carry&c.metric=logit_diff&q=addition&state=finished`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

# Before the name of a choice of a view, so that no view's choice can hide a name of ours.
_CHOICE: Final = "c."


@dataclass(frozen=True)
class Address:
    """What is looked at.

    Attributes:
        runs: Keys of the index, in the order in which they were chosen; of several the curves are overlaid.
        view: The view that is open; empty for the first.
        step: Of all views; None for the last checkpoint.
        feature: Whose curves are overlaid; empty for the first.
        choices: What the open view shows of what it can, by name.
        search: Text that listed runs contain.
        states: States of the listed runs; empty for all.
    """

    runs: tuple[str, ...] = ()
    view: str = ""
    step: int | None = None
    feature: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    search: str = ""
    states: tuple[str, ...] = ()

    def changed(self, **values: Any) -> Address:
        """This address with other values; another view has choices of its own."""
        if values.get("view", self.view) != self.view:
            values.setdefault("choices", {})
        return replace(self, **values)

    def text(self) -> str:
        """The part of a URL behind the path: empty, or "?" and what differs from the start page."""
        pairs = [("run", run) for run in self.runs]
        pairs += [(name, value) for name in ("view", "feature") if (value := getattr(self, name))]
        pairs += [] if self.step is None else [("step", str(self.step))]
        pairs += [(f"{_CHOICE}{name}", value) for name, value in sorted(self.choices.items())]
        pairs += [("q", self.search)] if self.search else []
        pairs += [("state", state) for state in self.states]
        return f"?{urlencode(pairs)}" if pairs else ""


def read_address(text: str | None) -> Address:
    """The address that `Address.text` wrote; what nobody wrote is passed over, so that an old link still opens."""
    pairs = parse_qsl((text or "").removeprefix("?"), keep_blank_values=True)
    of = {name: value for name, value in pairs}
    step = of.get("step", "")
    return Address(
        runs=_once(value for name, value in pairs if name == "run"),
        view=of.get("view", ""),
        # At most as many digits as a step has: int() refuses thousands.
        step=int(step) if step.isdecimal() and step.isascii() and len(step) < 16 else None,
        feature=of.get("feature", ""),
        choices={name.removeprefix(_CHOICE): value for name, value in pairs if name.startswith(_CHOICE)},
        search=of.get("q", ""),
        states=_once(value for name, value in pairs if name == "state"),
    )


def _once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
