"""Moments and durations in expressions: RFC 3339 text, durations such as `1h30m`, and their parts by cel-python."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celpy.celtypes import DurationType, StringType, TimestampType
from celpy.evaluation import base_functions

from dispatcher.engine.expressions.faults import Fault
from dispatcher.engine.expressions.values import article

PARTS: Final = (
    "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getMonth",
    "getHours", "getMinutes", "getSeconds", "getMilliseconds",
)  # fmt: skip
ZONE_STEPS: Final = 100

# Both are asked before cel-python is: its pattern for durations backtracks exponentially, and pendulum reads far more than RFC 3339.
_MOMENT: Final = re.compile(r"[0-9]{4}(?:-[0-9]{2}){2}[Tt][0-9]{2}(?::[0-9]{2}){2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})")
_DURATION: Final = re.compile(r"[+-]?(?:0|(?:(?:[0-9]{1,15}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:h|m(?!s)|s|ms|us|µs|ns)){1,8})")
_TERM: Final = re.compile(r"([0-9.]+)([a-zµ]+)")
_ZONE: Final = re.compile(r"[+-]?[0-9]{1,2}:[0-9]{2}|[A-Za-z][A-Za-z0-9_+/-]{0,63}")
_MICROSECONDS: Final = {"h": 3_600_000_000.0, "m": 60_000_000.0, "s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "µs": 1.0, "ns": 0.001}
_MOST_SECONDS: Final = 315_576_000_000
_SPANS: Final = frozenset({"getHours", "getMinutes", "getSeconds"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment(text: str) -> datetime:
    """RFC 3339 text as a moment in UTC, to the microsecond. Raises Fault."""
    if not _MOMENT.fullmatch(text):
        raise Fault("timestamp() takes RFC 3339, such as 2030-01-31T12:00:00Z")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Fault("there is no such moment") from None


def moment_of(seconds_: int) -> datetime:
    """Seconds since 1970 as a moment. Raises Fault."""
    try:
        return _EPOCH + timedelta(seconds=seconds_)
    except OverflowError:
        raise Fault("there is no such moment between the years 1 and 9999") from None


def seconds(value: datetime) -> int:
    """A moment as whole seconds since 1970."""
    return (value - _EPOCH) // timedelta(seconds=1)


def duration(text: str) -> timedelta:
    """A duration such as `1h30m` or `-1.5s`, to the microsecond. Raises Fault."""
    if not _DURATION.fullmatch(text):
        raise Fault("duration() takes numbers with h, m, s, ms, us or ns, such as 1h30m")
    size = sum(float(number) * _MICROSECONDS[unit] for number, unit in _TERM.findall(text))
    if size > _MOST_SECONDS * 1_000_000:
        raise Fault("a duration has at most 315,576,000,000 seconds")
    return timedelta(microseconds=-size if text.startswith("-") else size)


def written(value: datetime | timedelta) -> str:
    """A moment as RFC 3339 text, a duration as seconds: 0, 3 or 6 digits after the point."""
    if isinstance(value, datetime):
        return value.strftime(f"{value.year:04d}-%m-%dT%H:%M:%S") + f"{_fraction(value.microsecond)}Z"
    whole, rest = divmod(abs(value), timedelta(seconds=1))
    return f"{'-' if value < timedelta(0) else ''}{whole}{_fraction(rest.microseconds)}s"


def _fraction(microseconds: int) -> str:
    if not microseconds:
        return ""
    return f".{microseconds:06d}" if microseconds % 1_000 else f".{microseconds // 1_000:03d}"


def part(name: str, value: Any, zone: str) -> int:
    """A part of a moment in a time zone (a name or an offset, UTC where empty), or a duration in whole hours, minutes or seconds."""
    if isinstance(value, timedelta) and not zone:
        if name == "getMilliseconds":
            return value.microseconds // 1_000 if value >= timedelta(0) else -((-value).microseconds // 1_000)
        if name in _SPANS:
            return int(base_functions[name](DurationType(value)))  # type: ignore[arg-type]
    if not isinstance(value, datetime):
        raise Fault(f"{article(value)} has no {name}()")
    if zone and not _ZONE.fullmatch(zone):
        raise Fault("a time zone is a name such as Europe/Vienna, or an offset such as +01:00")
    try:
        return int(base_functions[name](TimestampType(value), StringType(zone) if zone else None))  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        raise Fault(f"there is no time zone {zone!r}") from None
