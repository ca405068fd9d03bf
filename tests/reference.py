"""dispatcher/REFERENCE.md, made from the code it describes: `python -m tests.reference` writes it, tests/test_docs.py compares it.

A description comes from the one place a reader of the code would look for it: a setting's comment, a command's help. Nothing is
described twice, and a name without a description fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from dispatcher.errors import CODES
from dispatcher.settings import Settings
from tests.architecture.source import ROOT

TARGET = "dispatcher/REFERENCE.md"
SETTING = re.compile(r"^    (?P<name>\w+): [\w| ]+ = .+?  # (?P<text>.+)$")
GROUP = re.compile(r"^    # --- (?P<title>.+)$")
DEFAULTS = Settings()


@dataclass(frozen=True, slots=True)
class Row:
    """One documented thing: what kind it is of, its name, the cells after the name, and what it is for."""

    kind: str
    name: str
    cells: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a heading; `columns` name the cells between the name and the description."""

    heading: str
    intro: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _default(name: str) -> str:
    value = getattr(DEFAULTS, name)
    if value == "":
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings_tables() -> Iterator[Table]:
    """One table per group of fields, in the order of the file."""
    title, rows = "", list[Row]()
    for line in (ROOT / "dispatcher/settings.py").read_text().splitlines():
        if match := GROUP.match(line):
            if rows:
                yield Table(f"Settings: {title}", "", ("default",), tuple(rows))
            title, rows = match["title"], []
        elif match := SETTING.match(line):
            rows.append(Row("setting", f"DISPATCHER_{match['name'].upper()}", (_default(match["name"]),), match["text"]))
    if rows:
        yield Table(f"Settings: {title}", "", ("default",), tuple(rows))


def error_table() -> Table:
    """Every problem code, in the order of `dispatcher/errors.py`."""
    intro = (
        "Every refusal is an RFC 9457 problem document with these members, `detail` saying what exactly is wrong. The codes are stable;"
        " `retry` is the Retry-After sent with it, in seconds."
    )
    rows = [Row("error", name, (str(code.status), str(code.retry_after or ""), code.title), code.hint) for name, code in CODES.items()]
    return Table("Errors", intro, ("status", "retry", "title"), tuple(rows))


def tables() -> list[Table]:
    """Everything there is to name, in the order of the document."""
    return [*settings_tables(), error_table()]


def undescribed(found: list[Table]) -> list[str]:
    """Names whose description is missing or says nothing."""
    return [f"{row.kind} {row.name}" for table in found for row in table.rows if len(row.text.split()) < 2]


def setting_names() -> set[str]:
    """What the settings table must hold, asked of the dataclass itself."""
    return {f"DISPATCHER_{field.name.upper()}" for field in fields(Settings)}


def render(found: list[Table]) -> str:
    """The document."""
    lines = [
        "# Reference",
        "",
        "Made from the code by `make reference`; a test fails when the two differ. Durations are seconds, sizes bytes.",
        "",
    ]
    for table in found:
        lines += [f"## {table.heading}", ""]
        if table.intro:
            lines += [table.intro, ""]
        lines += [f"| {' | '.join(('name', *table.columns, 'what'))} |", "|---" * (len(table.columns) + 2) + "|"]
        lines += [f"| {' | '.join((f'`{row.name}`', *row.cells, _cell(row.text)))} |" for row in table.rows]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / TARGET).write_text(render(tables()), encoding="utf-8")
