"""Cron expressions: reading them, and their ticks in a time zone.

An expression names times of the day, and days have holes and repetitions where clocks are put forward and back. The rule:

- A time that does not exist that day comes once, at the first moment that does; several such times come as one. An expression for every
  hour (`*`) leaves them out: its next tick is near anyway.
- A time that comes twice counts the first time. An expression that says "every" (its second, minute or hour field begins with `*`)
  ticks both times, so that its ticks stay as far apart as it says.

Where both the day and the weekday leave some out, either will do; a field that names all there are counts as `*`.

croniter does the arithmetic of the calendar, on times of the day without a zone; what a zone does to them is decided here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from cron_descriptor import CasingTypeEnum, ExpressionDescriptor, FormatError, Options  # type: ignore[import-untyped]
from croniter import croniter
from croniter.croniter import CroniterBadDateError, CroniterError

from dispatcher.engine.schedules.errors import ScheduleError
from dispatcher.engine.schedules.zones import Zone, zone

MOST_CHARACTERS: Final = 200
_ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELD: Final = re.compile(r"[0-9A-Za-z*/,\-?#]+", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z]+")
_MONTHS: Final = frozenset(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"))
_WORDS: Final = _MONTHS | frozenset(("sun", "mon", "tue", "wed", "thu", "fri", "sat", "l", "w"))
_SINGLE: Final = re.compile(r"(?<![\w#-])(\w+)-\1(?:/[0-9]+)?(?![\w#/-])", re.ASCII)  # `5-5`, which croniter takes for all the way round
_STEP: Final = re.compile(r"/([0-9]+)")
_MOST_STEP: Final = (59, 59, 23, 31, 12, 7)  # of seconds, minutes, hours, days, months, weekdays
_UNTIL: Final = 2200  # the last year anything is reckoned for
_EARLY: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - a time of the day has no zone
_JUST_BEFORE: Final = timedelta(milliseconds=1)
_HOURS: Final = frozenset(range(24))
_DAYS: Final = frozenset(range(1, 32))
_WEEKDAYS: Final = frozenset(range(7))
_SPOKEN: Final = Options()
_SPOKEN.locale_code = "en_US"
_SPOKEN.casing_type = CasingTypeEnum.Sentence
_SPOKEN.use_24hour_time_format = True


def _calendar(text: str) -> croniter[datetime]:
    """What croniter makes of an expression. A day or weekday field that names all there are becomes `*`: it is not always read as one."""
    fields = _SINGLE.sub(r"\1", text).split()
    calendar = croniter(" ".join(fields), _EARLY, ret_type=datetime, second_at_beginning=True)
    if _DAYS.issubset(calendar.expanded[2]):
        fields[-3] = "*"
    if _WEEKDAYS.issubset(calendar.expanded[4]) and "#" not in fields[-1]:
        fields[-1] = "*"
    return croniter(" ".join(fields), _EARLY, ret_type=datetime, second_at_beginning=True)


class Cron:
    """An expression, normalised. Make it with `parse_cron`."""

    def __init__(self, text: str) -> None:
        self.text = text
        seconds, minutes, hours = text.split()[:3] if text.count(" ") == 5 else ("0", *text.split()[:2])
        self._calendar = _calendar(text)
        self.every_hour = set(self._calendar.expanded[1]) in ({"*"}, _HOURS)
        self.repeats = any(field.startswith("*") for field in (seconds, minutes, hours)) or self.every_hour

    def after(self, wall: datetime) -> datetime | None:
        """The first time of the day behind `wall`, both without a zone; None when it never comes again."""
        try:
            found: datetime = self._calendar.get_next(datetime, start_time=wall)
        except (CroniterBadDateError, OverflowError):
            return None
        return found if found.year < _UNTIL else None

    def describe(self) -> str:
        """In words, such as "At 09:00, only on Monday"; the expression itself where there are none."""
        try:
            return str(ExpressionDescriptor(self.text, _SPOKEN).get_description())
        except (FormatError, ValueError, IndexError, KeyError, TypeError):
            return self.text


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment something is due (UTC), and what the clocks of its zone show then."""

    at: datetime
    wall: datetime


@dataclass(frozen=True, slots=True)
class Ticks:
    """The ticks of an expression in a zone."""

    cron: Cron
    zone: Zone

    def after(self, moment: datetime, wall: datetime | None = None) -> Tick | None:
        """The first tick behind a moment, None when there is none before the year 2200.

        `wall` is what the clocks showed at the last tick there was. An expression of fixed times does not tick for what they have shown
        already, also when the rules of the zone have changed since.
        """
        least = wall if wall is not None and not self.cron.repeats else _EARLY.min
        floor, at, offset = max(self._start(moment), least), moment, self.zone.offset(moment)
        while (time := self.cron.after(floor)) is not None:
            tick = time.replace(tzinfo=UTC) - offset
            change = self.zone.change(at, tick)
            if change is None:
                return Tick(tick, time)
            if time < change.wall_after and not self.cron.every_hour and change.wall_after > least:
                return Tick(change.at, change.wall_after)
            skipped = change.wall_after if self.cron.repeats else max(change.wall_after, change.wall_before)
            floor, at, offset = max(skipped - _JUST_BEFORE, least), change.at, change.after
        return None

    def _start(self, moment: datetime) -> datetime:
        """The time of the day behind which ticks count."""
        wall = self.zone.wall(moment)
        change = None if self.cron.repeats else self.zone.repeats(moment)
        return wall if change is None else max(wall, change.wall_before - _JUST_BEFORE)

    def last(self, since: Tick, before: datetime) -> Tick:
        """The last tick before a moment, which is behind `since`, itself a tick."""
        low, high = since, before
        while (high - low.at) >= timedelta(seconds=1):
            middle = low.at + (high - low.at) / 2
            tick = self.after(middle, low.wall)
            if tick is not None and tick.at < before:
                low = tick
            else:
                high = middle
        return low


def parse_cron(text: str) -> Cron:
    """An expression of 5 fields (minute hour day month weekday), 6 with seconds first, or an alias such as @daily.

    Raises ScheduleError invalid_cron for what is none, and for one whose day never comes.
    """
    return _parsed(text)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Cron:
    if len(text) > MOST_CHARACTERS:
        raise ScheduleError("invalid_cron", f"at most {MOST_CHARACTERS} characters")
    fields = _ALIASES.get(text.strip().lower(), text).split()
    if len(fields) not in (5, 6):
        raise ScheduleError(
            "invalid_cron", f"{text!r} has {len(fields)} fields; there are 5 (minute hour day month weekday), or 6 with seconds first"
        )
    for field, most in zip(fields, _MOST_STEP[-len(fields) :], strict=True):
        if not _FIELD.fullmatch(field) or not _WORDS.issuperset(word.lower() for word in _WORD.findall(field)):
            raise ScheduleError("invalid_cron", f"{field!r} in {text!r} is no field of a cron expression")
        if any(not 0 < int(step) <= most for step in _STEP.findall(field)):
            raise ScheduleError("invalid_cron", f"{field!r} in {text!r} steps further than there is")
    try:
        cron = Cron(" ".join(fields))
    except (CroniterError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ScheduleError("invalid_cron", f"{text!r} cannot be read: {error}") from None
    if cron.after(_EARLY) is None:
        raise ScheduleError("invalid_cron", f"{text!r} names a day that never comes")
    return cron


def next_after(expression: str, zone_name: str, moment: datetime) -> datetime | None:
    """The first tick of an expression in a zone behind a moment. Raises ScheduleError."""
    tick = Ticks(parse_cron(expression), zone(zone_name)).after(moment)
    return tick.at if tick is not None else None
