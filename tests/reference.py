"""dispatcher/REFERENCE.md, made from the code it describes: `python -m tests.reference` writes it, tests/test_docs.py compares it.

A description comes from the one place a reader of the code would look for it: a setting's comment, a command's help. Nothing is
described twice, and a name without a description fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

import click

from dispatcher.api import ROUTES
from dispatcher.api.metrics import METRICS
from dispatcher.cli import main
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


def route_table() -> Table:
    """Every route, in the order they are served."""
    intro = "`token` is what a token has to allow; routes without it are open. Request and answer bodies are described by `/openapi.json`."
    rows = [
        Row("route", f"{route.method} {route.path}", (route.scope or "", ", ".join(map(str, route.answers))), route.summary)
        for route in ROUTES
    ]
    return Table("HTTP routes", intro, ("token", "answers"), tuple(rows))


def metric_table() -> Table:
    """Every metric of `/metrics`."""
    return Table(
        "Metrics", "Served at `/metrics`.", ("kind",), tuple(Row("metric", item.name, (item.kind,), item.help) for item in METRICS)
    )


def _commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """The contexts of all commands below a group, in their order."""
    if not isinstance(command, click.Group):
        yield context
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if below is not None:
            yield from _commands(below, click.Context(below, parent=context, info_name=name))


def _usage(parameter: click.Parameter, context: click.Context) -> str:
    if isinstance(parameter, click.Option):
        value = "" if parameter.is_flag or parameter.count else f" {parameter.make_metavar(context)}"
        return f"{', '.join((*parameter.opts, *parameter.secondary_opts))}{value}"
    return parameter.make_metavar(context)


def command_tables() -> Iterator[Table]:
    """The list of commands, then the options of each."""
    contexts = list(_commands(main, click.Context(main, info_name="dispatcher")))
    usages = [" ".join((context.command_path, *context.command.collect_usage_pieces(context)[1:])) for context in contexts]
    rows = [Row("command", usage, (), context.command.help or "") for usage, context in zip(usages, contexts, strict=True)]
    yield Table("Commands", "Every command takes `-h`.", (), tuple(rows))
    paths = [context.command_path.removeprefix("dispatcher ") for context in contexts]
    users: dict[tuple[str, str], list[str]] = {}
    for path, context in zip(paths, contexts, strict=True):
        for parameter in context.command.params:
            if isinstance(parameter, click.Option):
                users.setdefault((_usage(parameter, context), parameter.help or ""), []).append(path)
    options = [Row("option", usage, (_gathered(used, paths),), text) for (usage, text), used in users.items()]
    yield Table("Options of commands", "", ("of",), tuple(options))


def _gathered(used: list[str], paths: list[str]) -> str:
    """Command paths as a reader wants them: a group that is there as a whole goes by its own name."""
    if len(used) == len(paths):
        return "all"
    names = dict[str, None]()
    for path in used:
        group = path.partition(" ")[0]
        whole = all(other in used for other in paths if other.partition(" ")[0] == group)
        names[group if whole else path] = None
    return ", ".join(names)


def tables() -> list[Table]:
    """Everything there is to name, in the order of the document."""
    return [*command_tables(), route_table(), error_table(), *settings_tables(), metric_table()]


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
        lines += [f"| {' | '.join((f'`{_cell(row.name)}`', *row.cells, _cell(row.text)))} |" for row in table.rows]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / TARGET).write_text(render(tables()), encoding="utf-8")
