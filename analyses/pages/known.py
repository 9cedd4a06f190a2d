"""What was computed of a run before: with which probes, of which features; nothing is computed to find it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.registered import lenses
from qfl_interp.config import ProbeConfig
from qfl_interp.runs.series import Checkpoints


def known_page(
    run: Checkpoints, features: str | Sequence[str] | None = None, beside: Sequence[Checkpoints] = ()
) -> Page:
    """A page that shows what tables hold: of the probes that most of their parts were computed with.

    Args:
        run: What to look at.
        features: Names; by default those that parts are about, and where there are none those with `by_default`.
        beside: Other runs whose loss is drawn too.
    """
    tables = [run.table(lens.name) for lens in lenses()]
    used = Counter(found for table in tables for settings in table.settings() if (found := probe_config_of(settings)))
    config = used.most_common(1)[0][0] if used else ProbeConfig()
    if features is None:
        # A part is named `<model>-<feature>-<settings>`.
        about = {word for table in tables for part in table.parts() for word in part.split("-")[1:-1]}
        features = [name for name in run.task.features if name in about] or None
    names = tuple(feature.name for feature in chosen_features(run, features))
    return Page(run, names, config=config, progress=False, beside=tuple(beside), compute=False)


def probe_config_of(settings: Mapping[str, Any]) -> ProbeConfig | None:
    """The probes that a part's settings name; None where they name none, or none of this version."""
    values: dict[str, Any] = {of.name: settings[of.name] for of in fields(ProbeConfig) if of.name in settings}
    if len(values) < len(fields(ProbeConfig)):
        return None
    try:
        values["path"] = tuple(values["path"])
        return ProbeConfig(**values)
    except (TypeError, ValueError):
        return None
