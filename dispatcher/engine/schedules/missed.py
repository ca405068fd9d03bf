"""Which of the ticks that are due start a run.

A tick that is found a moment late is run all the same: the database was away, the process was busy. One that is found much later, or that
came while nobody was there, was missed, and the policy of its schedule says what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from dispatcher.engine.schedules.crons import Tick, Ticks

Missed = Literal["skip", "run_once", "run_all"]
MISSED: Final[tuple[Missed, ...]] = ("skip", "run_once", "run_all")


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks: the moment, since when without a break, how late a tick may be found that came while watching, and one that did not."""

    now: datetime
    since: datetime
    grace: timedelta
    tolerance: timedelta

    @property
    def late_from(self) -> datetime:
        """Ticks from here on are late at most; those before it were missed."""
        return min(max(self.since, self.now - self.grace), self.now - self.tolerance)


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done about the ticks that are due: those that start a run, the last one left out, and the next to look at."""

    run: tuple[Tick, ...]
    skipped: datetime | None
    next: Tick | None


def due_ticks(ticks: Ticks, first: Tick, policy: Missed, watch: Watch, most: int) -> Due:
    """What becomes of the ticks from `first` until now. At most `most` start a run; then `next` is due already."""
    run: list[Tick] = []
    skipped = None
    tick: Tick | None = first
    if first.at < watch.late_from and policy != "run_all":
        last = ticks.last(first, watch.late_from)
        if policy == "run_once":
            run.append(last)
        else:
            skipped = last.at
        tick = ticks.after(last.at, last.wall)
    while tick is not None and tick.at <= watch.now and len(run) < most:
        run.append(tick)
        tick = ticks.after(tick.at, tick.wall)
    return Due(tuple(run), skipped, tick)


def still_runs(at: datetime, policy: Missed, grace: timedelta, watch: Watch) -> bool:
    """Whether something that was to run once at a moment now past still does: `run_once` within its grace, `skip` only if it is late."""
    return at >= watch.late_from or (policy != "skip" and watch.now - at <= grace)
