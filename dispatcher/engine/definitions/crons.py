"""Crons a workflow declares: expressions whose ticks start it, in a time zone, with what its runs are given."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from dispatcher.engine.definitions.reading import DefinitionError, Reader
from dispatcher.engine.schedules import MISSED, UTC_NAME, Missed, ScheduleError, parse_cron, zone

CRON_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
MOST_CRONS: Final = 100
MOST_INPUT: Final = 65_536
MOST_METADATA: Final = 16_384
_FIELDS: Final = {"expression", "timezone", "name", "input", "metadata", "priority", "missed"}


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """A cron that comes with the workflow. Its name is the expression where none is given; `input` and `metadata` are JSON text."""

    expression: str
    name: str
    timezone: str = UTC_NAME
    input: str = "{}"
    metadata: str | None = None
    priority: int | None = None
    missed: Missed = "skip"


def read_crons(reader: Reader) -> tuple[CronTrigger, ...]:
    """`on_crons` of an entry: expressions, or objects that say more. Two of one name and expression are refused."""
    found: dict[tuple[str, str], CronTrigger] = {}
    for i, item in enumerate(reader.items("on_crons", MOST_CRONS, "crons")):
        at = f"{reader.at}.on_crons[{i}]"
        cron = _trigger(Reader({"expression": item} if isinstance(item, str) else item, at, _FIELDS))
        if found.setdefault((cron.name, cron.expression), cron) != cron:
            raise DefinitionError(at, f"{cron.expression!r} is declared twice under the name {cron.name!r}")
    return tuple(found.values())


def _trigger(reader: Reader) -> CronTrigger:
    expression, name = " ".join(reader.text("expression").split()), reader.text("name")
    timezone = reader.text("timezone") or UTC_NAME
    if not expression:
        raise reader.refuse("expression", 'required: a cron expression such as "0 9 * * 1"')
    if name and not CRON_NAME.fullmatch(name):
        raise reader.refuse("name", "1 to 200 characters, none of them control characters")
    try:
        parse_cron(expression)
        zone(timezone)
    except ScheduleError as error:
        raise reader.refuse("timezone" if error.code == "invalid_timezone" else "expression", str(error)) from None
    priority = reader.whole("priority", 0, 1, 3) or None
    metadata = _json(reader, "metadata", MOST_METADATA)
    if metadata is not None and not metadata.startswith("{"):
        raise reader.refuse("metadata", "an object")
    missed = reader.choice("missed", "skip", *MISSED)
    policy: Missed = next(one for one in MISSED if one == missed)
    return CronTrigger(expression, name or expression, timezone, _json(reader, "input", MOST_INPUT) or "{}", metadata, priority, policy)


def _json(reader: Reader, field: str, most: int) -> str | None:
    value = reader.get(field)
    if value is None:
        return None
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > most:
        raise reader.refuse(field, f"at most {most:,} bytes")
    return text


def dump_crons(crons: Sequence[CronTrigger]) -> list[str | dict[str, Any]]:
    """The crons as a manifest has them, each as short as it can be said."""
    return [_dump(one) for one in crons]


def _dump(one: CronTrigger) -> str | dict[str, Any]:
    said: dict[str, Any] = {
        "name": one.name if one.name != one.expression else None,
        "timezone": one.timezone if one.timezone != UTC_NAME else None,
        "input": json.loads(one.input) if one.input != "{}" else None,
        "metadata": json.loads(one.metadata) if one.metadata is not None else None,
        "priority": one.priority,
        "missed": one.missed if one.missed != "skip" else None,
    }
    given = {name: value for name, value in said.items() if value is not None}
    return {"expression": one.expression, **given} if given else one.expression
