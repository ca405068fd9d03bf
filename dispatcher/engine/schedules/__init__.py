"""When things are to run: cron expressions in time zones, moments as people write them, and what becomes of moments that were missed.

`zones` knows the offsets of a time zone and when they change, `crons` the ticks of an expression, `missed` which of the ticks that are
due start a run, `moments` reads "in 10 minutes".
"""

from dispatcher.engine.schedules.crons import Cron, Tick, Ticks, next_after, parse_cron
from dispatcher.engine.schedules.errors import ScheduleError
from dispatcher.engine.schedules.missed import MISSED, Due, Missed, Watch, due_ticks, still_runs
from dispatcher.engine.schedules.moments import parse_delay, parse_when
from dispatcher.engine.schedules.zones import RULES, UTC_NAME, Zone, zone

__all__ = [
    "MISSED", "RULES", "UTC_NAME", "Cron", "Due", "Missed", "ScheduleError", "Tick", "Ticks", "Watch", "Zone", "due_ticks", "next_after",
    "parse_cron", "parse_delay", "parse_when", "still_runs", "zone",
]  # fmt: skip
