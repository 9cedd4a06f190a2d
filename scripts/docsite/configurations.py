"""A page with every field of every configuration: type and default from the dataclass, meaning from the docstring."""

from __future__ import annotations

import dataclasses
from typing import Any

import qfl_interp as qfl
from docsite.tables import code, table
from qfl_interp.cli.signature import said, sections
from qfl_interp.homogeneous import MLPConfig

SHOWN = (
    qfl.ModelConfig,
    qfl.TrainConfig,
    qfl.ProbeConfig,
    qfl.PolcaConfig,
    qfl.CurvatureConfig,
    qfl.SgldConfig,
    qfl.Intervene,
    MLPConfig,
    qfl.SweepConfig,
)
_ENTRY = """# Configurations

Every configuration is a frozen dataclass that checks its values when it is made. A run directory keeps the ones it was
made with in `config.json`, and is named by their hash. On the command line a field is the option of its name:
`n_train` is `--n-train`.
"""


def page() -> str:
    """The page."""
    return "\n".join([_ENTRY, *map(_section, SHOWN)])


def _section(shown: Any) -> str:
    doc = sections(shown.__doc__)
    meanings = said(shown.__doc__)
    rows = [
        (code(f.name), code(f.type), _default(f), meanings[f.name].text if f.name in meanings else "")
        for f in dataclasses.fields(shown)
    ]
    return f"## {shown.__name__}\n\n{doc['']}\n\n{table(('field', 'type', 'default', 'meaning'), rows)}"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return code(repr(field.default))
    return code(repr(field.default_factory())) if field.default_factory is not dataclasses.MISSING else "required"
