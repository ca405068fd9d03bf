"""Answers on stdout, as JSON or for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rich_click as click

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """How a command answers: `json` or as text."""

    json: bool

    def rows(self, text: str, columns: Sequence[str], empty: str) -> None:
        """A list as the server sent it, or a table of `columns`; `empty` is said on stderr when there is nothing."""
        if self.json:
            click.echo(text)
            return
        document = json.loads(text)
        if not document["rows"]:
            note(empty)
            return
        click.echo("\n".join(table(document["rows"], columns)))
        if document.get("next_cursor"):
            note(f"there are more: --cursor {document['next_cursor']}")

    def document(self, text: str, lines: Sequence[str]) -> None:
        """One thing as the server sent it, or the lines that say the same."""
        click.echo(text if self.json else "\n".join(lines))

    def item(self, value: Row, line: str) -> None:
        """One of a stream of things: a JSON document on a line of its own, or a line of text."""
        click.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")) if self.json else line)


def table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Rows below their column names, aligned with spaces; nothing trails the last column."""
    cells = [
        [column.partition(".")[0].replace("_", " ") for column in columns],
        *([shown(reach(row, c)) for c in columns] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def pairs(row: Row, names: Sequence[str]) -> list[str]:
    """Members and their values, one pair to a line; absent ones are left out."""
    found = {name: shown(reach(row, name)) for name in names if reach(row, name) is not None}
    width = max((len(name) for name in found), default=0)
    return [f"{name.replace('_', ' ').ljust(width)}  {value}" for name, value in found.items()]


def reach(row: Row, path: str) -> Any:
    """`a.b` of a document, None where it is missing."""
    value: Any = row
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def shown(value: Any) -> str:
    """A value in a cell: text as it is, nothing as a dash, the rest as JSON."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def note(text: str) -> None:
    """Say something that is no data."""
    click.echo(text, err=True)
