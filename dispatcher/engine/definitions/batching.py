"""Tasks that are run many at once: how many, how long the first may wait for others, and which go together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from dispatcher.engine.definitions.durations import format_duration, parse_duration
from dispatcher.engine.definitions.flow import compile_key
from dispatcher.engine.definitions.reading import DefinitionError, Reader
from dispatcher.engine.expressions import ExpressionError

MOST_SIZE: Final = 1_000
LONGEST_INTERVAL: Final = timedelta(hours=1)
INTERVAL: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Batching:
    """A batch has `max_size` tasks of one group, or fewer once the first has waited for `interval`.

    `group_key` is CEL that gives a task's group, all are one without; at most `group_max_runs` batches of a group run at a time.
    """

    max_size: int
    interval: timedelta = INTERVAL
    group_key: str | None = None
    group_max_runs: int | None = None


def read_batching(reader: Reader) -> Batching | None:
    """`batch` of a task: `{"max_size": 100, "interval": "1s", "group_key": "input.user", "group_max_runs": 1}`."""
    value = reader.get("batch")
    if value is None:
        return None
    inner = Reader(value, f"{reader.at}.batch", {"max_size", "interval", "group_key", "group_max_runs"})
    if inner.get("max_size") is None:
        raise inner.refuse("max_size", f"required: a whole number from 1 to {MOST_SIZE}")
    most = inner.whole("group_max_runs", 0, 1, 1_000_000)
    return Batching(inner.whole("max_size", 1, 1, MOST_SIZE), _interval(inner), _group_key(inner), most or None)


def _interval(reader: Reader) -> timedelta:
    if reader.get("interval") is None:
        return INTERVAL
    interval = parse_duration(reader.get("interval"), f"{reader.at}.interval")
    if interval > LONGEST_INTERVAL:
        raise reader.refuse("interval", f"at most {format_duration(LONGEST_INTERVAL)}")
    return interval


def _group_key(reader: Reader) -> str | None:
    source = reader.text("group_key")
    if not source:
        return None
    try:
        compile_key(source)
    except ExpressionError as error:
        raise DefinitionError(f"{reader.at}.group_key", str(error)) from None
    return source


def dump_batching(batch: Batching) -> dict[str, Any]:
    """The batching as `read_batching` reads it."""
    said: dict[str, Any] = {"max_size": batch.max_size, "interval": format_duration(batch.interval)}
    if batch.group_key is not None:
        said["group_key"] = batch.group_key
    if batch.group_max_runs is not None:
        said["group_max_runs"] = batch.group_max_runs
    return said
