"""Which probes of runs are compared, and what is said of a run that has none of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qfl_interp.analyses.lenses.probe.data import TABLE
from qfl_interp.analyses.pages.known import probe_config_of
from qfl_interp.config import ProbeConfig
from qfl_interp.errors import QflError
from qfl_interp.runs.series import Checkpoints

# Parts of a table of probes by feature and digest of the configuration.
Parts = dict[tuple[str, str], list[str]]


@dataclass(frozen=True)
class ComparedProbes:
    """The probes of one configuration, as far as runs have them.

    Attributes:
        runs: What is compared.
        parts: What the table of each run has, by the run's path.
        settings: Digest of the configuration; empty where no run has probes.
        given: The configuration where it was named.
    """

    runs: tuple[Checkpoints, ...]
    parts: Mapping[Path, Parts]
    settings: str
    given: ProbeConfig | None = None

    @classmethod
    def of(
        cls, runs: Sequence[Checkpoints], feature: str | Sequence[str] | None, config: ProbeConfig | None
    ) -> ComparedProbes:
        """Those of `config`, by default of the configuration of which most runs have probes of the features."""
        parts = {run.path: _probe_parts(run) for run in runs}
        settings = config.digest() if config else _most_common(list(parts.values()), _wanted(feature))
        return cls(tuple(runs), parts, settings, config)

    def of_run(self, run: Checkpoints, feature: str) -> list[str]:
        """The parts with a run's probes of a feature."""
        return self.parts[run.path].get((feature, self.settings), [])

    def features(self, feature: str | Sequence[str] | None) -> list[str]:
        """The features to compare. Raises `QflError` for one of which no run has probes."""
        every = [key for of_run in self.parts.values() for key in of_run]
        known = list(dict.fromkeys(name for name, of in every if of == self.settings))
        wanted = _wanted(feature)
        for name in [] if wanted is None else wanted:
            if name in known:
                continue
            others = {_said(config): None for run in self.runs for config in self._others(run, name)}
            if others:
                raise QflError(
                    f"no run has probes of {name!r} of the compared {_said(self._config)}; there are those of "
                    f"{', '.join(others)}. Give one of these as config, or fit the others: {self._fit(name)}."
                )
            there = ", ".join(sorted({name for name, _ in every})) or "none"
            raise QflError(
                f"no run has probes of {name!r} of the compared configuration. Features with probes of any: {there}. "
                f"{self._fit(name)} fits them; feature=() compares the loss alone."
            )
        return known if wanted is None else wanted

    def lacking(self, run: Checkpoints, feature: str, *, command: bool = False) -> str:
        """The line on a run that has no such probes: none at all, or others; and what to do.

        Args:
            run: One of the runs.
            feature: Whose probes.
            command: Say what to do on the command line instead of in Python.
        """
        of = feature if command else repr(feature)
        fit = f"`qfl probe {run.path} {feature}{self._options()}`" if command else self._fit(feature)
        if not any(name == feature for name, _ in self.parts[run.path]):
            return f"{run.path} has no probes of {of}: {fit} fits them."
        others, compared = self._others(run, feature), self._config
        if not others or compared is None:
            # Tables of before say no configuration.
            return f"{run.path} has probes of {of} of another configuration than the compared one: {fit} fits that."
        nearest = min(others, key=lambda other: len(_differing(other, compared)))
        names = _differing(nearest, compared)
        has, wanted = (", ".join(f"{name}={getattr(one, name)!r}" for name in names) for one in (nearest, compared))
        draw = "" if command else f"compare(runs, {feature!r}, config={_said(nearest)}) draws those, "
        return f"{run.path} has probes of {of} with {has}, the compared ones have {wanted}: {draw}{fit} fits these."

    @functools.cached_property
    def _configurations(self) -> dict[Path, dict[str, ProbeConfig]]:
        """The configurations that the runs' tables name, by path and digest; read where a run lacks something."""
        found = {}
        for run in self.runs:
            known = filter(None, map(probe_config_of, run.table(TABLE).settings()))
            found[run.path] = {config.digest(): config for config in known}
        return found

    @property
    def _config(self) -> ProbeConfig | None:
        """The compared configuration; None where no table says what it is."""
        if self.given is not None:
            return self.given
        return next((own[self.settings] for own in self._configurations.values() if self.settings in own), None)

    def _others(self, run: Checkpoints, feature: str) -> list[ProbeConfig]:
        """The known configurations of a run's probes of a feature."""
        known = self._configurations[run.path]
        return [known[of] for name, of in self.parts[run.path] if name == feature and of in known]

    def _fit(self, feature: str) -> str:
        """The call that fits the compared probes."""
        config = ProbeConfig() if not self.settings else self._config
        more = "" if config == ProbeConfig() else f", config={_said(config)}"
        return f"probe(run, {feature!r}{more})"

    def _options(self) -> str:
        """The options of `qfl probe` that fit the compared probes, behind a blank each."""
        config = self._config or ProbeConfig()
        return "".join(f" {_option(name, getattr(config, name))}" for name in _differing(config, ProbeConfig()))


def _option(name: str, value: Any) -> str:
    """A field of the configuration on the command line."""
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{'' if value else 'no-'}{word}"
    return f"--{word} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def _differing(one: ProbeConfig, other: ProbeConfig) -> list[str]:
    """The names of fields that differ."""
    return [of.name for of in fields(ProbeConfig) if getattr(one, of.name) != getattr(other, of.name)]


def _said(config: ProbeConfig | None) -> str:
    """The configuration as code, without what is at its default."""
    if config is None:
        return "ProbeConfig(...)"
    return f"ProbeConfig({', '.join(f'{n}={getattr(config, n)!r}' for n in _differing(config, ProbeConfig()))})"


def _probe_parts(run: Checkpoints) -> Parts:
    """The parts of a run's probes by feature and digest of their configuration; those with a checkpoint's alone."""
    found: Parts = {}
    for part in run.table(TABLE).parts():
        model_and_feature, _, settings = part.rpartition("-")
        found.setdefault((model_and_feature.partition("-")[2], settings), []).append(part)
    return {key: parts for key, parts in found.items() if any(part.startswith("step_") for part in parts)}


def _wanted(feature: str | Sequence[str] | None) -> list[str] | None:
    return [feature] if isinstance(feature, str) else None if feature is None else list(dict.fromkeys(feature))


def _most_common(parts: Sequence[Parts], wanted: Sequence[str] | None) -> str:
    """The configuration of which most runs, then most models, have probes of the features; "" where there are none."""
    counts: dict[str, tuple[int, int]] = {}
    for of_run in parts:
        of_settings: dict[str, int] = {}
        for (name, settings), own in of_run.items():
            if wanted is None or name in wanted:
                of_settings[settings] = of_settings.get(settings, 0) + len(own)
        for settings, n in of_settings.items():
            n_runs, n_parts = counts.get(settings, (0, 0))
            counts[settings] = (n_runs + 1, n_parts + n)
    return max(counts, key=lambda settings: (counts[settings], settings), default="")
