"""Durations as they are written: `90s`, `1h30m`, `250ms`."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

from dispatcher.engine.definitions.reading import DefinitionError

LONGEST = timedelta(days=3650)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


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
