"""How the model of state dicts is made, weights yet to be loaded: by a function, or from a configuration."""

from __future__ import annotations

import abc
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.models.given import lens_model, lens_settings
from qfl_interp.runs.sources.modules import Described, describe, digest_of, is_bridge


class Builder(abc.ABC):
    """Makes a model with fresh weights."""

    @abc.abstractmethod
    def make(self, seed: int) -> nn.Module:
        """A model whose weights the seed alone decides; the global generators of torch are as before."""

    def require_draws(self) -> None:
        """Raise `QflError` where another seed gives the same weights."""
        return None

    @cached_property
    def described(self) -> Described:
        """What is told of the model."""
        return describe(self.make(0))


@dataclass(frozen=True)
class FromFunction(Builder):
    """A function of the user's, without arguments.

    What names the model is the function's name, the module's class and the shapes of its tensors: give the function
    another name where it makes a model that computes something else with the same tensors.
    """

    build: Callable[[], nn.Module]

    def make(self, seed: int) -> nn.Module:
        """What the function returns, torch's generator seeded.

        Raises:
            QflError: It raises, or returns something else than a module.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                module: Any = self.build()
            except Exception as error:  # it is the user's
                raise QflError(f"build={_name(self.build)} failed: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise QflError(f"build={_name(self.build)} must return a torch.nn.Module, got a {type(module).__name__}.")
        if is_bridge(module):
            raise QflError(
                f"build={_name(self.build)} must return the model of transformers itself, got a TransformerBridge, "
                "whose state dict has other names. It is wrapped once its weights are there."
            )
        return module

    @cached_property
    def described(self) -> Described:
        """What is told of the model, the function's name among it."""
        found = describe(self.make(0))
        return found._replace(config={**found.config, "build": _name(self.build)})

    def require_draws(self) -> None:
        """Raise `QflError` where another seed gives the same weights."""
        if digest_of(self.make(0)) == digest_of(self.make(1)):
            raise QflError(
                f"build={_name(self.build)} gives the same weights whatever torch's seed, so that it makes no fresh "
                "models. Let it draw from torch's global generator, or do without untrained ones (n_untrained=0)."
            )


@dataclass(frozen=True)
class FromConfig(Builder):
    """A `HookedTransformer` of a configuration of transformer_lens, kept as JSON."""

    settings: str

    @classmethod
    def of(cls, config: Any) -> FromConfig:
        """From a `HookedTransformerConfig`, its fields as a mapping, or the path of a JSON file of them.

        Raises:
            QflError: The file cannot be read, or transformer_lens makes no model of it.
        """
        if isinstance(config, (str, Path)):
            try:
                config = read_json(Path(config), dict, "Write the configuration's to_dict() there.")
            except FileNotFoundError as error:
                raise QflError(f"{config} is not there. It should hold a HookedTransformerConfig as JSON.") from error
        elif not isinstance(config, Mapping) and not hasattr(config, "d_vocab"):
            raise TypeError(
                f"config must be a HookedTransformerConfig, a mapping or a JSON file, got a {type(config).__name__}."
            )
        return cls(json.dumps(lens_settings(config), sort_keys=True))

    def make(self, seed: int) -> nn.Module:
        """The model, its weights drawn as transformer_lens does."""
        return lens_model(json.loads(self.settings), seed)


def builder_of(build: Callable[[], nn.Module] | None, config: Any) -> Builder:
    """The builder that one of the two arguments names.

    Raises:
        TypeError: None of them is given, or both, or `build` cannot be called.
        QflError: The configuration makes no model.
    """
    if (build is None) == (config is None):
        raise TypeError(
            "give build= (a function that returns the model, weights yet to be loaded) or config= (a "
            f"HookedTransformerConfig, or its JSON file), got {'none' if build is None else 'both'}."
        )
    if build is None:
        return FromConfig.of(config)
    if not callable(build) or isinstance(build, nn.Module):
        raise TypeError(f"build must be a function that returns a model, got a {type(build).__name__}.")
    return FromFunction(build)


def _name(build: Callable[[], Any]) -> str:
    """A function as messages and ids call it."""
    inner = build.func if isinstance(build, functools.partial) else build
    arguments = ""
    if isinstance(build, functools.partial):
        given = [*map(repr, build.args), *(f"{name}={value!r}" for name, value in sorted(build.keywords.items()))]
        arguments = f"({', '.join(given)})"
    return f"{inner.__module__}:{getattr(inner, '__qualname__', type(inner).__qualname__)}{arguments}"
