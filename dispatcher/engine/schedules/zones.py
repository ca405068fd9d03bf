"""Time zones: the offset at a moment, and the moments it changes.

The rules are those of the tzdata package, never those of the machine: dispatchers that share a database share its version by their
lock file, and agree on when a tick is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import Final
from zoneinfo import ZoneInfo

import tzdata  # type: ignore[import-untyped]

from dispatcher.engine.schedules.errors import ScheduleError

UTC_NAME: Final = "UTC"
RULES: Final[str] = tzdata.IANA_VERSION
"""Which release of the rules this process goes by, such as 2026f; later ones sort behind."""
_STEP: Final = timedelta(hours=12)  # no zone has ever changed its offset there and back within it
_SECOND: Final = timedelta(seconds=1)
_LONGEST_FOLD: Final = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Change:
    """A moment at which a zone's clocks are put forward or back."""

    at: datetime
    before: timedelta
    after: timedelta

    @property
    def wall_before(self) -> datetime:
        """What the clocks would have shown."""
        return self.at.replace(tzinfo=None) + self.before

    @property
    def wall_after(self) -> datetime:
        """What they show instead."""
        return self.at.replace(tzinfo=None) + self.after


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone by its IANA name. Make it with `zone`."""

    name: str
    rules: ZoneInfo

    def offset(self, at: datetime) -> timedelta:
        """How far its clocks are ahead of UTC at a moment."""
        return at.astimezone(self.rules).utcoffset() or timedelta(0)

    def wall(self, at: datetime) -> datetime:
        """What its clocks show at a moment."""
        return at.astimezone(self.rules).replace(tzinfo=None)

    def change(self, after: datetime, until: datetime) -> Change | None:
        """The first change behind `after`, `until` included."""
        for year in range(after.year, until.year + 1):
            for change in _changes(self, year):
                if after < change.at <= until:
                    return change
        return None

    def repeats(self, at: datetime) -> Change | None:
        """The change that made the clocks show for a second time what they show at this moment, if one did."""
        if at.astimezone(self.rules).fold == 0:
            return None
        last, after = None, at - _LONGEST_FOLD
        while (change := self.change(after, at)) is not None:
            last, after = change, change.at
        return last


@lru_cache(maxsize=1024)
def zone(name: str) -> Zone:
    """A zone by its name. Raises ScheduleError invalid_timezone."""
    if name not in names():
        raise ScheduleError("invalid_timezone", f"{name[:100]!r} is not an IANA time zone, such as Europe/Berlin or UTC")
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as rules:
        return Zone(name, ZoneInfo.from_file(rules, key=name))


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """Every zone there is."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="utf-8").split())


@lru_cache(maxsize=4096)
def _changes(zone: Zone, year: int) -> tuple[Change, ...]:
    """The changes of a year (UTC), the first of January included."""
    found = []
    at, end = datetime(year, 1, 1, tzinfo=UTC) - _SECOND, datetime(year + 1, 1, 1, tzinfo=UTC) - _SECOND
    before = zone.offset(at)
    while at < end:
        later = min(at + _STEP, end)
        after = zone.offset(later)
        if after != before:
            found.append(Change(_moment(zone, at, later, before), before, after))
        at, before = later, after
    return tuple(found)


def _moment(zone: Zone, low: datetime, high: datetime, before: timedelta) -> datetime:
    """The second between two moments at which the offset changes."""
    while high - low > _SECOND:
        middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
        if zone.offset(middle) == before:
            low = middle
        else:
            high = middle
    return high
