"""Moments as people write them: "in 10 minutes", RFC 3339, or a cron expression for many of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from dispatcher.engine.schedules.crons import Cron, parse_cron
from dispatcher.engine.schedules.errors import ScheduleError

FURTHEST: Final = timedelta(days=3650)
_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SPELLED: Final = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("w", "week", "weeks"), "w"),
}
_PART: Final = re.compile(
    r"(?:an?\s+|(?P<count>[0-9]{1,9}(?:\.[0-9]{1,6})?)\s*)(?P<unit>[a-z]+)(?:\s*(?:,|\band\b)\s*|\s+|$|(?=[0-9]))", re.ASCII
)
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)


def parse_delay(text: str) -> timedelta:
    """How long from now: "10m", "1h30m", "10 minutes", "in an hour and 5 minutes". Raises ScheduleError invalid_schedule."""
    rest = re.sub(r"^\s*in\s+", "", text.strip().lower())
    end, millis = 0, Decimal(0)
    while end < len(rest) and len(text) < 100:
        part = _PART.match(rest, end)
        if part is None or part["unit"] not in _SPELLED:
            break
        millis += Decimal(part["count"] or 1) * _UNITS[_SPELLED[part["unit"]]]
        end = part.end()
    if not rest or end < len(rest):
        raise ScheduleError("invalid_schedule", f"{text[:100]!r} is no time from now; write it like 10m, 1h30m or in 10 minutes")
    delay = timedelta(milliseconds=int(min(millis, Decimal(10) ** 12)))
    if not timedelta(0) < delay <= FURTHEST:
        raise ScheduleError("invalid_schedule", f"{text[:100]!r} is out of range: more than zero, at most ten years")
    return delay


def parse_when(text: str, now: datetime) -> datetime | Cron:
    """When something is to run: a moment for "in 10 minutes" and RFC 3339, a Cron for an expression. Raises ScheduleError."""
    stripped = text.strip()
    if stripped.lower().startswith("in "):
        return now + parse_delay(stripped)
    if _RFC3339.fullmatch(stripped):
        return _moment(stripped)
    if stripped.startswith("@") or len(stripped.split()) in (5, 6):
        return parse_cron(stripped)
    raise ScheduleError("invalid_schedule", f'{text[:100]!r} is neither "in 10 minutes", nor RFC 3339, nor a cron expression')


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError as error:
        raise ScheduleError("invalid_schedule", f"{text!r} is not a moment: {error}") from None
    if moment.tzinfo is None:
        raise ScheduleError("invalid_schedule", f"{text!r} says no offset; write 2026-01-31T09:00:00Z")
    return moment.astimezone(UTC)
