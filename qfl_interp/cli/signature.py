"""What a function takes and says, read from its module's source, so that `--help` imports nothing heavy."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any, NamedTuple

_SECTION = re.compile(r"^(Args|Attributes|Examples?|Raises|References|Returns|Yields):\n", re.MULTILINE)
# An entry of `Args`: a name, the words of its option where they differ from the name, a text over indented lines.
_ENTRY = re.compile(r"^(\w+)(?: \((-.*?)\))?: (.*?)(?=^\S|\Z)", re.DOTALL | re.MULTILINE)
_SENTENCE = re.compile(r"(?<=\.) (?=[A-Z\"'`(])")
# Packages whose source is read for the values of names; a lens' own package is another.
_READ = ("qfl_interp",)
# What a command opens: known by name, wherever it is imported from.
OPENED = ("Checkpoints", "Run", "Sweep")


class Said(NamedTuple):
    """What a docstring says of a parameter."""

    words: tuple[str, ...] = ()
    text: str = ""


def docstring(module: str, name: str) -> str:
    """The docstring of a function of a module, from its source; of one that is made by a call or imported, imported.

    Raises:
        ImportError: There is no such module.
        SyntaxError: It is no Python.
        AttributeError: It has no such function.
    """
    if hasattr(_spec(module).loader, "get_source"):  # not of a module in C
        node = _names(module).statements.get(name)
        if isinstance(node, ast.FunctionDef):
            return ast.get_docstring(node) or ""
    return inspect.getdoc(imported(module, name)) or ""


def imported(module: str, name: str) -> Any:
    """What a module, which is run, calls by this name; `Class.method` is one too."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def signature(module: str, name: str) -> inspect.Signature:
    """A function's parameters with annotations and defaults as values, from the source where that tells them.

    A class that is imported from elsewhere stands there as an empty class of its name, except a configuration (a
    dataclass), which is imported; what is returned is a class' name. A function that is decorated, made by a call or
    imported from elsewhere, or one whose defaults only running its module can tell, is imported and inspected.

    Raises:
        ImportError: The module is missing, or importing it fails.
        AttributeError: It has no such function.
    """
    try:
        names = _names(module)
        node = copy.copy(names.statements[name])
        assert isinstance(node, ast.FunctionDef)
        assert not node.decorator_list
        returned = ast.unparse(node.returns).strip("'").split(".")[-1] if node.returns else inspect.Signature.empty
        node.body, node.returns = [ast.Pass()], None
        bare = ast.fix_missing_locations(ast.Module([node], []))
        exec(compile(bare, module, "exec", dont_inherit=True), names)
        return inspect.signature(names.pop(name), eval_str=True).replace(return_annotation=returned)
    except Exception:  # whatever the source does not tell, or names wrongly, running it does
        return inspect.signature(imported(module, name), eval_str=True)


def sections(doc: str | None) -> dict[str, str]:
    """The parts of a Google-style docstring by title; what goes before the first has the title ""."""
    head, *rest = _SECTION.split(inspect.cleandoc(doc or "") + "\n")
    titled = zip(rest[::2], rest[1::2], strict=True)
    return {"": head.strip()} | {title: textwrap.dedent(text).strip() for title, text in titled}


def said(doc: str | None) -> dict[str, Said]:
    """What `Args` of a docstring says of each parameter: `name (--word): First sentence. More.`."""
    entries = _ENTRY.findall(sections(doc).get("Args", ""))
    return {
        name: Said(tuple(words.split()), _SENTENCE.split(" ".join(text.split()))[0]) for name, words, text in entries
    }


def _spec(module: str) -> ModuleSpec:
    """Where a module is."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    return spec


def _statements(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Every name that a module's statements bind, with its statement, also below `if` and `try`."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((a.asname or a.name.partition(".")[0], node) for a in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, node) for t in targets if isinstance(t, ast.Name))
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _statements(node.body)


class _Elsewhere(type):
    """An empty class in place of what is not imported; its attributes are such classes too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Elsewhere(name, (), {})


class _Module:
    """A module whose attributes are found without importing it."""

    def __init__(self, name: str, own: str) -> None:
        self._name, self._own = name, own

    def __getattr__(self, name: str) -> Any:
        return _found(self._name, name, self._own)


class _Names(dict[str, Any]):
    """The names of a module as values, found in its source when they are asked for."""

    def __init__(self, spec: ModuleSpec) -> None:
        source = spec.loader.get_source(spec.name)  # type: ignore[union-attr]  # no source: AttributeError
        self.spec = spec
        self.statements = dict(_statements(ast.parse(source, spec.origin or spec.name).body))

    def __missing__(self, name: str) -> Any:
        node, own = self.statements[name], self.spec.name.partition(".")[0]
        if isinstance(node, ast.Import):
            (alias,) = (a for a in node.names if name in (a.asname, a.name.partition(".")[0]))
            found = _Module(alias.name if alias.asname else name, own)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), self.spec.parent)
            (alias,) = (a for a in node.names if name == (a.asname or a.name))
            found = _found(module, alias.name, own)
        elif isinstance(node, ast.ClassDef):
            decorated = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
            module = self.spec.name
            found = getattr(importlib.import_module(module), name) if decorated else _Elsewhere(name, (), {})
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            found = eval(compile(ast.Expression(node.value), self.spec.name, "eval"), self)
        else:
            raise NameError(name)
        self[name] = found
        return found


_names = functools.cache(lambda module: _Names(_spec(module)))


def _found(module: str, name: str, own: str) -> Any:
    """What a module's name stands for; the standard library alone is imported."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return getattr(importlib.import_module(module), name)
    if name in OPENED or top not in (own, *_READ):
        return _Elsewhere(name, (), {})
    names = _names(module)
    return names[name] if name in names.statements else _Module(f"{module}.{name}", own)
