"""The ticks of a cron expression found the long way: minute by minute, by what the clocks of its zone show."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def _matches(field: str, value: int, low: int, high: int) -> bool:
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (int(first), int(last or (high if step else first)))
        if begin <= value <= end and (value - begin) % int(step or 1) == 0:
            return True
    return False


def _named(expression: str, wall: datetime) -> bool:
    minute, hour, day, month, weekday = expression.split()
    days = _matches(day, wall.day, 1, 31), _matches(weekday, wall.isoweekday() % 7, 0, 6)
    free = all(_matches(day, n, 1, 31) for n in range(1, 32)) or all(_matches(weekday, n, 0, 6) for n in range(7))
    on_day = all(days) if free else any(days)
    return _matches(minute, wall.minute, 0, 59) and _matches(hour, wall.hour, 0, 23) and _matches(month, wall.month, 1, 12) and on_day


def counted(expression: str, name: str, start: datetime, end: datetime) -> list[datetime]:
    """The ticks of all minutes behind `start` until `end`, minute by minute, by what the clocks show.

    An hour field that names all hours says every hour, however it is written: none of them is caught up with, and all come again.
    """
    rules, found = ZoneInfo(name), []
    minute, hour = expression.split()[:2]
    every_hour = all(_matches(hour, n, 0, 23) for n in range(24))
    again = minute.startswith("*") or hour.startswith("*") or every_hour
    at = start.replace(second=0, microsecond=0)
    shown = at.astimezone(rules)
    while at < end:
        at += MINUTE
        before, shown = shown, at.astimezone(rules)
        wall, expected = shown.replace(tzinfo=None, fold=0), before.replace(tzinfo=None, fold=0) + MINUTE
        skipped = [expected + MINUTE * n for n in range(max(0, (wall - expected) // MINUTE))] if not every_hour else []
        if (_named(expression, wall) and (shown.fold == 0 or again)) or any(_named(expression, one) for one in skipped):
            found.append(at)
    return [moment for moment in found if start < moment <= end]
