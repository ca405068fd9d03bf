"""Durations as people write them: `90s`, `42m30s`, `1h30m`, `250ms`, `7d`, or a timedelta."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

Duration = str | timedelta

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds", "ms": "milliseconds"}
_PART: Final = re.compile(r"(\d+)(ms|[dhms])")
_WHOLE: Final = re.compile(r"(?:\d+(?:ms|[dhms]))+", re.ASCII)


def parse_duration(value: Duration) -> timedelta:
    """The duration meant; ValueError for a bare number, a negative one, an unknown unit or a unit given twice.

    Units are d, h, m, s and ms, each at most once. A bare number is refused because it leaves the unit to be guessed.
    """
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise ValueError(f"a duration is not negative: {value}")
        return value
    if not _WHOLE.fullmatch(str(value)):  # callers without a type checker pass numbers
        raise ValueError(
            f"not a duration: {value!r}; write a number with a unit (d, h, m, s, ms), such as '90s' or '1h30m', or a timedelta"
        )
    parts = _PART.findall(value)
    units = [_UNITS[unit] for _, unit in parts]
    if len(set(units)) != len(units):
        raise ValueError(f"not a duration: {value!r} names a unit twice")
    try:
        return timedelta(**{unit: int(number) for unit, (number, _) in zip(units, parts, strict=True)})
    except OverflowError:
        raise ValueError(f"not a duration: {value!r} is longer than any task lives") from None


def format_duration(value: timedelta) -> str:
    """The wire's form of a duration, whole milliseconds, largest units first: `1h30m`, `250ms`, `0s`."""
    rest = round(value / timedelta(milliseconds=1))
    text = ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def milliseconds(value: Duration) -> int:
    """A duration in whole milliseconds, as the wire's `*_ms` members have it."""
    return round(parse_duration(value) / timedelta(milliseconds=1))
