"""What a workflow is: its task, policies and triggers, read from a manifest entry and refused when it does not add up."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
EVENT_KEY = re.compile(r"[^\x00-\x1f\x7f]{1,500}")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
LONGEST = timedelta(days=3650)


class DefinitionError(ValueError):
    """A definition that cannot be registered. `field` is the path of what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's bounds and defaults that definitions are checked against and completed from."""

    max_retries: int
    execution_timeout: timedelta
    schedule_timeout: timedelta
    max_execution_timeout: timedelta


# What was registered once is read back whatever today's bounds are: they are for registering only.
STORED = Limits(2**31 - 1, LONGEST, LONGEST, LONGEST)


@dataclass(frozen=True, slots=True)
class Definition:
    """One version of a workflow of one task.

    `on_events` are keys, where `*` stands for any run of characters. `retries` counts what comes after the first attempt.
    """

    name: str
    task: str
    raw: bool
    description: str
    input_schema: Mapping[str, Any] | None
    output_schema: Mapping[str, Any] | None
    retries: int
    backoff_factor: float | None
    backoff_max_seconds: float | None
    execution_timeout: timedelta
    schedule_timeout: timedelta
    on_events: tuple[str, ...]
    default_priority: int
    idempotent: bool
    allow_html: bool

    @property
    def task_name(self) -> str:
        """The name its task is delivered under: the workflow's own, or `workflow:task` where the task has one of its own."""
        return f"{self.name}:{self.task}" if self.task else self.name


def parse_duration(text: object, field: str) -> timedelta:
    """A duration such as `90s`, `1h30m`, `250ms`. Bare numbers, signs and unknown units are refused."""
    if not isinstance(text, str) or not text:
        raise DefinitionError(field, 'a duration is text such as "90s" or "1h30m"')
    end, millis = 0, Decimal(0)
    for part in _PART.finditer(text):
        if part.start() != end:
            break
        end = part.end()
        millis += Decimal(part[1]) * _UNIT[part[2]]
    if end != len(text):
        raise DefinitionError(field, f'{text!r} is not a duration; write it like "90s" or "1h30m" (units ms, s, m, h, d)')
    if not 0 < millis <= LONGEST.total_seconds() * 1000 or millis % 1:
        raise DefinitionError(field, f"{text!r} is out of range: whole milliseconds, more than zero, at most ten years")
    return timedelta(milliseconds=int(millis))


def format_duration(value: timedelta) -> str:
    """The shortest text `parse_duration` reads back."""
    millis = round(value.total_seconds() * 1000)
    if millis % 1000:
        return f"{millis}ms"
    parts, seconds = [], millis // 1000
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


_OF_TASK = {
    "name", "body", "description", "input_schema", "output_schema", "retries", "backoff_factor", "backoff_max_seconds",
    "execution_timeout", "schedule_timeout", "idempotent", "allow_html",
}  # fmt: skip
_OF_WORKFLOW = {"name", "kind", "description", "input_schema", "on_events", "default_priority"}


def parse_definition(entry: object, limits: Limits, *, static: bool, at: str = "handlers[0]") -> Definition:
    """A Definition from one entry of a manifest's `handlers`. Raises DefinitionError naming the field.

    An entry is a task, or a workflow whose `tasks` hold its one task. A static manifest's handlers take their input as the
    whole body (`raw`) unless they say otherwise.
    """
    if not isinstance(entry, dict):
        raise DefinitionError(at, "each handler is an object with at least a name")
    kind = entry.get("kind", "task")
    if kind == "task":
        workflow = task = _Reader(entry, at, _OF_WORKFLOW | _OF_TASK)
    elif kind == "workflow":
        workflow = _Reader(entry, at, _OF_WORKFLOW | {"tasks"})
        task = _Reader(_only_task(entry, at), f"{at}.tasks[0]", _OF_TASK)
    else:
        raise DefinitionError(f"{at}.kind", f'{kind!r} is not supported by this server; it takes "task" or "workflow"')
    return Definition(
        name=workflow.name(),
        task=task.name() if task is not workflow else "",
        raw=task.raw(static),
        description=workflow.text("description"),
        input_schema=workflow.schema("input_schema") or task.schema("input_schema"),
        output_schema=task.schema("output_schema"),
        retries=task.whole("retries", 0, 0, limits.max_retries),
        backoff_factor=task.number("backoff_factor", 1.0, 1000.0),
        backoff_max_seconds=task.number("backoff_max_seconds", 0.001, 86_400.0),
        execution_timeout=task.duration("execution_timeout", limits.execution_timeout, limits.max_execution_timeout),
        schedule_timeout=task.duration("schedule_timeout", limits.schedule_timeout, LONGEST),
        on_events=workflow.event_keys(),
        default_priority=workflow.whole("default_priority", 1, 1, 3),
        idempotent=task.flag("idempotent"),
        allow_html=task.flag("allow_html"),
    )


def _only_task(entry: dict[str, Any], at: str) -> dict[str, Any]:
    tasks = entry.get("tasks")
    if not isinstance(tasks, list) or not tasks or not isinstance(tasks[0], dict):
        raise DefinitionError(f"{at}.tasks", "a list with the workflow's task")
    if len(tasks) > 1:
        raise DefinitionError(f"{at}.tasks", "workflows of several tasks are not supported by this server")
    return tasks[0]


def parse_definitions(entries: object, limits: Limits, *, static: bool) -> tuple[Definition, ...]:
    """All of a manifest's handlers; two of one name are refused."""
    if not isinstance(entries, list):
        raise DefinitionError("handlers", "a list of handlers")
    definitions = tuple(parse_definition(entry, limits, static=static, at=f"handlers[{i}]") for i, entry in enumerate(entries))
    names: set[str] = set()
    for i, definition in enumerate(definitions):
        if definition.name in names:
            raise DefinitionError(f"handlers[{i}].name", f"{definition.name!r} is declared twice")
        names.add(definition.name)
    return definitions


def dump(definition: Definition) -> dict[str, Any]:
    """The manifest entry that parses back to this definition; what is stored and shown."""
    workflow: dict[str, Any] = {
        "name": definition.name,
        "description": definition.description,
        "input_schema": definition.input_schema,
        "on_events": list(definition.on_events),
        "default_priority": definition.default_priority,
    }
    task = {
        "body": "raw" if definition.raw else "v1",
        "output_schema": definition.output_schema,
        "retries": definition.retries,
        "backoff_factor": definition.backoff_factor,
        "backoff_max_seconds": definition.backoff_max_seconds,
        "execution_timeout": format_duration(definition.execution_timeout),
        "schedule_timeout": format_duration(definition.schedule_timeout),
        "idempotent": definition.idempotent,
        "allow_html": definition.allow_html,
    }
    if definition.task:
        return {**workflow, "kind": "workflow", "tasks": [{"name": definition.task, **task}]}
    return {**workflow, "kind": "task", **task}


def content_checksum(entry: Mapping[str, Any]) -> str:
    """Of a dumped definition: registering the same content twice makes no new version."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checksum(definition: Definition) -> str:
    """Of a definition's content."""
    return content_checksum(dump(definition))


class _Reader:
    """Reads one entry's fields, each refused by its own path."""

    def __init__(self, entry: dict[str, Any], at: str, known: set[str]) -> None:
        self._entry = entry
        self._at = at
        unknown = sorted(set(entry) - known)
        if unknown:
            raise self._refuse(unknown[0], "unknown or not supported by this server")

    def _refuse(self, field: str, message: str) -> DefinitionError:
        return DefinitionError(f"{self._at}.{field}", message)

    def name(self) -> str:
        value = self._entry.get("name")
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise self._refuse("name", "required: 1 to 200 letters, digits and _ . : - (not starting with punctuation)")
        return value

    def raw(self, default: bool) -> bool:
        body = self._entry.get("body", "raw" if default else "v1")
        if body not in ("raw", "v1"):
            raise self._refuse("body", 'takes "raw" or "v1"')
        return bool(body == "raw")

    def text(self, field: str) -> str:
        value = self._entry.get(field)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > 10_000 or "\x00" in value:
            raise self._refuse(field, "text of at most 10,000 characters")
        return value

    def schema(self, field: str) -> Mapping[str, Any] | None:
        value = self._entry.get(field)
        if value is not None and not isinstance(value, dict):
            raise self._refuse(field, "a JSON Schema object")
        return value or None

    def flag(self, field: str) -> bool:
        value = self._entry.get(field, False)
        if not isinstance(value, bool):
            raise self._refuse(field, "true or false")
        return value

    def whole(self, field: str, default: int, low: int, high: int) -> int:
        value = self._entry.get(field)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._refuse(field, f"a whole number from {low} to {high}")
        return value

    def number(self, field: str, low: float, high: float) -> float | None:
        value = self._entry.get(field)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self._refuse(field, f"a number from {low:g} to {high:g}")
        return float(value)

    def duration(self, field: str, default: timedelta, most: timedelta) -> timedelta:
        value = self._entry.get(field)
        if value is None:
            return default
        parsed = parse_duration(value, f"{self._at}.{field}")
        if parsed > most:
            raise self._refuse(field, f"at most {format_duration(most)}")
        return parsed

    def event_keys(self) -> tuple[str, ...]:
        value = self._entry.get("on_events")
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > 100:
            raise self._refuse("on_events", "a list of at most 100 event keys")
        for i, key in enumerate(value):
            if not isinstance(key, str) or not EVENT_KEY.fullmatch(key):
                raise self._refuse(f"on_events[{i}]", "an event key: 1 to 500 characters, none of them control characters")
        return tuple(dict.fromkeys(value))
