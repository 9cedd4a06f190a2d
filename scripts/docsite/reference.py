"""The site's reference: its pages by path below docs/, and its part of the navigation."""

from __future__ import annotations

from docsite import api, columns, commands, configurations

ENTRY = """# Reference

Made of the code when the site is built, so that it says what this version does.

- [Commands](commands/index.md): every `qfl` command with its options and their defaults.
- [Columns](columns.md): every column of every table, with its unit.
- [Configurations](configurations.md): every field of every configuration, with its default.
- [Names](api/index.md): the public names of `qfl_interp` and of the lenses; below them each room of the library.
"""


def pages() -> dict[str, str]:
    """Path below docs/ to Markdown."""
    return {
        "reference/index.md": ENTRY,
        "reference/columns.md": columns.page(),
        "reference/configurations.md": configurations.page(),
        **{f"reference/commands/{name}": text for name, text in commands.pages().items()},
        **{f"reference/api/{name}": text for name, text in api.pages().items()},
    }


def navigation() -> list[object]:
    """What stands below "Reference"."""
    paths = list(pages())

    def below(folder: str) -> list[str]:
        return [path for path in paths if path.startswith(f"reference/{folder}/")]

    return [
        "reference/index.md",
        {"Commands": below("commands")},
        "reference/columns.md",
        "reference/configurations.md",
        {"API": below("api")},
    ]
