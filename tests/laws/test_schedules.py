"""When crons tick: days with holes and repetitions, every expression against a count of all minutes, and ticks that were missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.engine.schedules import (
    Cron,
    Due,
    Missed,
    ScheduleError,
    Tick,
    Ticks,
    Watch,
    due_ticks,
    next_after,
    parse_cron,
    parse_delay,
    parse_when,
    still_runs,
    zone,
)
from tests.triggers.oracle import DAY, HOUR, MINUTE, counted


def ticks(expression: str, name: str, start: str, count: int) -> list[str]:
    """The next ticks behind a local time, as local times with their offsets."""
    rules = ZoneInfo(name)
    table, at, wall = Ticks(parse_cron(expression), zone(name)), datetime.fromisoformat(start).replace(tzinfo=rules), None
    found = []
    for _ in range(count):
        tick = table.after(at.astimezone(UTC), wall)
        assert tick is not None
        at, wall = tick.at, tick.wall
        found.append(at.astimezone(rules).strftime("%Y-%m-%d %H:%M%z"))
    return found


# Times that do not exist that day: once, at the first moment that does. Times that come twice: the first; every interval for `*`.
VECTORS = [
    ("30 2 * * *", "America/New_York", "2026-03-07T12:00", ["2026-03-08 03:00-0400", "2026-03-09 02:30-0400"]),
    ("*/20 2 * * *", "America/New_York", "2026-03-07T12:00", ["2026-03-08 03:00-0400", "2026-03-09 02:00-0400"]),
    ("0 2,3 * * *", "America/New_York", "2026-03-07T12:00", ["2026-03-08 03:00-0400", "2026-03-09 02:00-0400"]),
    ("*/30 * * * *", "America/New_York", "2026-03-08T01:00", ["2026-03-08 01:30-0500", "2026-03-08 03:00-0400"]),
    ("15 * * * *", "America/New_York", "2026-03-08T01:10", ["2026-03-08 01:15-0500", "2026-03-08 03:15-0400"]),
    ("15 */1 * * *", "America/New_York", "2026-03-08T01:10", ["2026-03-08 01:15-0500", "2026-03-08 03:15-0400"]),
    ("15 0-23 * * *", "America/New_York", "2026-11-01T01:10",
     ["2026-11-01 01:15-0400", "2026-11-01 01:15-0500", "2026-11-01 02:15-0500"]),
    ("30 1 * * *", "America/New_York", "2026-10-31T12:00", ["2026-11-01 01:30-0400", "2026-11-02 01:30-0500"]),
    ("0,30 1,2 * * *", "America/New_York", "2026-10-31T12:00",
     ["2026-11-01 01:00-0400", "2026-11-01 01:30-0400", "2026-11-01 02:00-0500", "2026-11-01 02:30-0500"]),
    ("*/30 * * * *", "America/New_York", "2026-11-01T00:30",
     ["2026-11-01 01:00-0400", "2026-11-01 01:30-0400", "2026-11-01 01:00-0500", "2026-11-01 01:30-0500", "2026-11-01 02:00-0500"]),
    ("*/30 1 * * *", "America/New_York", "2026-11-01T00:30",
     ["2026-11-01 01:00-0400", "2026-11-01 01:30-0400", "2026-11-01 01:00-0500", "2026-11-01 01:30-0500", "2026-11-02 01:00-0500"]),
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", ["2026-10-04 02:30+1100", "2026-10-05 02:15+1100"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00", ["2026-04-05 01:45+1100", "2026-04-06 01:45+1030"]),
    ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-05T01:20",
     ["2026-04-05 01:30+1100", "2026-04-05 01:45+1100", "2026-04-05 01:30+1030", "2026-04-05 01:45+1030", "2026-04-05 02:00+1030"]),
    ("30 1 * * *", "Antarctica/Troll", "2026-03-28T12:00", ["2026-03-29 03:00+0200", "2026-03-30 01:30+0200"]),
    ("30 1,2 * * *", "Antarctica/Troll", "2026-10-24T12:00",
     ["2026-10-25 01:30+0200", "2026-10-25 02:30+0200", "2026-10-26 01:30+0000"]),
    ("0 */2 * * *", "Antarctica/Troll", "2026-10-24T23:30",
     ["2026-10-25 00:00+0200", "2026-10-25 02:00+0200", "2026-10-25 02:00+0000", "2026-10-25 04:00+0000"]),
    ("0 0 * * *", "Africa/Cairo", "2026-04-22T12:00", ["2026-04-23 00:00+0200", "2026-04-24 01:00+0300", "2026-04-25 00:00+0300"]),
    ("0 0 * * *", "America/Santiago", "2026-09-04T12:00", ["2026-09-05 00:00-0400", "2026-09-06 01:00-0300", "2026-09-07 00:00-0300"]),
    ("0 12 * * *", "Pacific/Apia", "2011-12-28T13:00", ["2011-12-29 12:00-1000", "2011-12-31 00:00+1400", "2011-12-31 12:00+1400"]),
    ("0 0 * * *", "Pacific/Apia", "2011-12-28T13:00", ["2011-12-29 00:00-1000", "2011-12-31 00:00+1400", "2012-01-01 00:00+1400"]),
    ("0 9 29 2 *", "Europe/Berlin", "2026-01-01T00:00", ["2028-02-29 09:00+0100", "2032-02-29 09:00+0100"]),
    ("30 23 31 12 *", "UTC", "2016-12-30T00:00", ["2016-12-31 23:30+0000", "2017-12-31 23:30+0000"]),
    ("0 9 * * mon-fri", "Europe/Berlin", "2026-03-27T12:00", ["2026-03-30 09:00+0200", "2026-03-31 09:00+0200"]),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "name", "start", "expected"), VECTORS)
def test_days_with_holes_and_repetitions(expression: str, name: str, start: str, expected: list[str]) -> None:
    assert ticks(expression, name, start, len(expected)) == expected


def test_every_minute_of_new_years_eve_is_there_once() -> None:
    """A leap second is the second before it once more: 2016-12-31 has 86,400 of them here, as everywhere in POSIX."""
    start = datetime(2016, 12, 31, 23, 58, 30, tzinfo=UTC)
    table = Ticks(parse_cron("*/30 * * * * *"), zone("UTC"))
    found: list[datetime] = []
    while not found or found[-1] < start + 3 * MINUTE:
        tick = table.after(found[-1] if found else start)
        assert tick is not None
        found.append(tick.at)
    assert found == [start + timedelta(seconds=30) * n for n in range(1, 7)]


def test_a_start_in_the_repeated_hour() -> None:
    """Whoever looks for the first time while clocks show an hour again finds fixed times of it gone, and intervals going on."""
    second_pass = datetime(2026, 11, 1, 6, 10, tzinfo=UTC)  # 01:10 for the second time
    assert next_after("30 1 * * *", "America/New_York", second_pass) == datetime(2026, 11, 2, 6, 30, tzinfo=UTC)
    assert next_after("*/30 * * * *", "America/New_York", second_pass) == datetime(2026, 11, 1, 6, 30, tzinfo=UTC)
    assert next_after("0 2 * * *", "America/New_York", second_pass) == datetime(2026, 11, 1, 7, 0, tzinfo=UTC)


def test_what_the_clocks_have_shown_is_not_due_again_by_other_rules() -> None:
    """A country gives up its summer time: nine o'clock is an hour later, and has been already."""
    table = Ticks(parse_cron("0 9 * * *"), zone("Europe/Berlin"))
    fired, wall = datetime(2026, 1, 5, 7, 0, tzinfo=UTC), datetime(2026, 1, 5, 9, 0)  # noqa: DTZ001 - what the clocks showed
    assert table.after(fired) == Tick(datetime(2026, 1, 5, 8, 0, tzinfo=UTC), wall)
    assert table.after(fired, wall) == Tick(datetime(2026, 1, 6, 8, 0, tzinfo=UTC), wall + DAY)


# ---- against a count of all minutes


_NUMBERS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 6)}


@st.composite
def _field(draw: st.DrawFn, name: str) -> str:
    low, high = _NUMBERS[name]
    kind = draw(st.sampled_from(["*", "*", "one", "step", "list", "range"]))
    one = draw(st.integers(low, high))
    if kind == "one":
        return str(one)
    if kind == "step":
        return f"*/{draw(st.integers(1, min(high, 30) if name != 'weekday' else 6))}"
    if kind == "list":
        return ",".join(str(value) for value in sorted(draw(st.sets(st.integers(low, high), min_size=1, max_size=4))))
    if kind == "range":
        return f"{one}-{draw(st.integers(one, high))}"
    return "*"


@st.composite
def _expression(draw: st.DrawFn) -> str:
    often = {"month": "*"} if draw(st.booleans()) else {}
    return " ".join(often.get(name) or draw(_field(name)) for name in _NUMBERS)


CHANGES = [
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 4, 23, 22, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 9, 6, 4, tzinfo=UTC)),
    ("Africa/Casablanca", datetime(2026, 2, 15, 2, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(2026, 6, 1, tzinfo=UTC)),
]


@settings(max_examples=100, deadline=None)
@given(_expression(), st.sampled_from(CHANGES), st.integers(-40 * 60, 20 * 60))
def test_every_tick_is_counted_and_no_other(expression: str, change: tuple[str, datetime], minutes: int) -> None:
    name, at = change
    start = at + MINUTE * minutes
    end = start + 30 * HOUR
    try:
        cron = parse_cron(expression)
    except ScheduleError:
        return  # a day that never comes
    table, found = Ticks(cron, zone(name)), []
    tick = table.after(start)
    while tick is not None and tick.at <= end:
        found.append(tick.at)
        tick = table.after(tick.at, tick.wall)
    assert found == counted(expression, name, start, end)


# ---- ticks that were missed

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def due(expression: str, first: datetime, policy: Missed, *, since: datetime, most: int = 100, now: datetime = NOON) -> Due:
    """What becomes of an expression's ticks until noon, for one who has watched since a moment and lets a minute pass as on time."""
    table = Ticks(parse_cron(expression), zone("UTC"))
    watch = Watch(now, since, MINUTE, timedelta(seconds=2))
    return due_ticks(table, Tick(first, first.replace(tzinfo=None)), policy, watch, most)


def _moments(found: Due) -> list[datetime]:
    return [tick.at for tick in found.run]


@pytest.mark.parametrize("policy", ["skip", "run_once", "run_all"])
def test_a_tick_found_late_runs_whatever_the_policy(policy: Missed) -> None:
    late = NOON - timedelta(seconds=50)
    found = due("10 59 11 * * *", late, policy, since=NOON - DAY)
    assert (_moments(found), found.skipped) == ([late], None)
    assert found.next is not None
    assert found.next.at == late + DAY


@pytest.mark.parametrize(
    ("policy", "expected", "skipped"),
    [
        ("skip", [12.0], 11.75),
        ("run_once", [11.75, 12.0], None),
        ("run_all", [9.0, 9.25, 9.5, 9.75, 10.0, 10.25, 10.5, 10.75, 11.0, 11.25, 11.5, 11.75, 12.0], None),
    ],
)
def test_three_hours_away(policy: Missed, expected: list[float], skipped: float | None) -> None:
    found = due("*/15 * * * *", NOON - 3 * HOUR, policy, since=NOON - timedelta(seconds=1))
    midnight = NOON - 12 * HOUR
    assert _moments(found) == [midnight + hour * HOUR for hour in expected]
    assert found.skipped == (midnight + skipped * HOUR if skipped is not None else None)
    assert found.next is not None
    assert found.next.at == NOON + 15 * MINUTE


def test_many_missed_ticks_are_made_up_for_in_portions() -> None:
    found = due("* * * * * *", NOON - HOUR, "run_all", since=NOON, most=10)
    assert _moments(found) == [NOON - HOUR + timedelta(seconds=n) for n in range(10)]
    assert found.next is not None
    assert found.next.at == NOON - HOUR + timedelta(seconds=10)


@settings(max_examples=60, deadline=None)
@given(_expression(), st.integers(1, 60 * 24 * 40), st.sampled_from(["skip", "run_once"]), st.integers(0, 3600))
def test_the_last_missed_tick_is_the_last(expression: str, minutes: int, policy: Missed, since: int) -> None:
    """Found without going through all of them: the same as going through all of them."""
    try:
        table = Ticks(parse_cron(expression), zone("America/New_York"))
    except ScheduleError:
        return
    first = table.after(NOON - minutes * MINUTE)
    if first is None or first.at > NOON:
        return
    watch = Watch(NOON, NOON - timedelta(seconds=since), MINUTE, timedelta(seconds=2))
    every, tick = [], first
    while tick.at <= NOON:
        every.append(tick.at)
        following = table.after(tick.at, tick.wall)
        assert following is not None
        tick = following
    missed = [at for at in every if at < watch.late_from]
    found = due_ticks(table, first, policy, watch, 10_000)
    assert _moments(found) == [*(missed[-1:] if policy == "run_once" else []), *(at for at in every if at >= watch.late_from)]
    assert found.skipped == (missed[-1] if missed and policy == "skip" else None)
    assert found.next == tick


@pytest.mark.parametrize(
    ("ago", "policy", "grace", "runs"),
    [(59, "skip", 0, True), (61, "skip", 3600, False), (61, "run_once", 3600, True), (3600, "run_once", 3600, True),
     (3601, "run_once", 3600, False)],
)  # fmt: skip
def test_a_schedule_that_is_late(ago: int, policy: Missed, grace: int, runs: bool) -> None:
    watch = Watch(NOON, NOON - DAY, MINUTE, timedelta(seconds=2))
    assert still_runs(NOON - timedelta(seconds=ago), policy, timedelta(seconds=grace), watch) is runs


def test_one_that_nobody_was_there_for_is_missed_at_once() -> None:
    watch = Watch(NOON, NOON, MINUTE, timedelta(seconds=2))
    assert still_runs(NOON - timedelta(seconds=2), "skip", HOUR, watch)
    assert not still_runs(NOON - timedelta(seconds=3), "skip", HOUR, watch)


# ---- what can be read

BAD = [
    "", " ", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "* * 32 * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "61 * * * * *",
    "0 0 31 2 *", "0 0 30 feb *", "R * * * *", "H * * * *", "h(1-5) * * * *", "a b c d e", "*/0 * * * *", "*/99 * * * *", "1,,2 * * * *",
    "-1 * * * *", "1-70 * * * *", "* * * * mon#6", "@reboot", "@every 5m", "\u0661 * * * *", "* * * * *\x00", "0 0 * * monday",
    "* * * * * ; drop", "*" * 201,
]  # fmt: skip


@pytest.mark.parametrize("expression", BAD)
def test_what_is_no_cron_expression(expression: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        parse_cron(expression)
    assert refused.value.code == "invalid_cron"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789*/,-?LW#@ jfmaond", max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        cron = parse_cron(text)
    except ScheduleError:
        return
    assert isinstance(cron, Cron)
    assert cron.describe()
    assert cron.after(datetime(2026, 1, 1)) is not None  # noqa: DTZ001 - a time of the day


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "europe/berlin", "../etc/passwd", "/Europe/Berlin", "Europe", "+01:00", "Europe/Berlin\x00"]
)
def test_what_is_no_time_zone(name: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        zone(name)
    assert refused.value.code == "invalid_timezone"


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 9 * * 1", "At 09:00, only on Monday"),
        ("*/15 * * * *", "Every 15 minutes"),
        ("30 * * * * *", "At 30 seconds past the minute"),
        ("0 0 L * *", "At 00:00, on the last day of the month"),
        ("@daily", "At 00:00"),
        ("0 12 * * 5#2", "At 12:00, on the second Friday of the month"),
    ],
)
def test_in_words(expression: str, words: str) -> None:
    assert parse_cron(expression).describe() == words


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("in 10 minutes", 10 * MINUTE), ("10m", 10 * MINUTE), ("in 1h30m", 90 * MINUTE), ("in an hour and 5 minutes", 65 * MINUTE),
        ("in a minute", MINUTE), ("in 2 weeks, 1 day", 15 * DAY), ("in 1.5 hours", 90 * MINUTE), ("In 90 Seconds", 90 * MINUTE / 60),
        ("500ms", timedelta(milliseconds=500)),
    ],
)  # fmt: skip
def test_so_long_from_now(text: str, delay: timedelta) -> None:
    assert parse_delay(text) == delay
    assert parse_when(text if text.lower().startswith("in ") else f"in {text}", NOON) == NOON + delay


@pytest.mark.parametrize(
    "text",
    ["", "in", "in ", "10", "in ten minutes", "in 0 minutes", "in -1 minutes", "in 10 minutes please", "in 5 fortnights", "in 11 years",
     "in 9999999 weeks", "in 1h" * 30],
)  # fmt: skip
def test_what_is_no_time_from_now(text: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        parse_delay(text)
    assert refused.value.code == "invalid_schedule"


def test_a_range_of_one_is_one() -> None:
    table = Ticks(parse_cron("5-5 3-3/2 * * mon-mon"), zone("UTC"))
    first = table.after(datetime(2026, 6, 1, 12, tzinfo=UTC))
    assert first is not None
    assert first.at == datetime(2026, 6, 8, 3, 5, tzinfo=UTC)


@pytest.mark.parametrize("day", ["8", "*/15", "8,9", "1-31", "*/1"])
@pytest.mark.parametrize("weekday", ["*", "*/1", "0-6", "sun-sat", "0,1,2,3,4,5,6", "1-7"])
def test_a_field_that_names_all_days_is_a_star(day: str, weekday: str) -> None:
    named, plain = Ticks(parse_cron(f"0 0 {day} * {weekday}"), zone("UTC")), Ticks(parse_cron(f"0 0 {day} * *"), zone("UTC"))
    assert named.after(NOON) == plain.after(NOON)


def test_either_of_day_and_weekday_will_do() -> None:
    """The first of June 2026 is a Monday."""
    table = Ticks(parse_cron("0 0 2,8 * 3"), zone("UTC"))
    found, at = [], NOON
    for _ in range(4):
        tick = table.after(at)
        assert tick is not None
        at = tick.at
        found.append(at.day)
    assert found == [2, 3, 8, 10]


def test_when() -> None:
    assert parse_when("2026-06-02T12:00:00Z", NOON) == NOON + DAY
    assert parse_when("2026-06-02T14:00:00+02:00", NOON) == NOON + DAY
    assert isinstance(parse_when("0 9 * * 1", NOON), Cron)
    assert isinstance(parse_when("@daily", NOON), Cron)


@pytest.mark.parametrize(
    "text", ["2026-06-02T12:00:00", "2026-02-30T12:00:00Z", "tomorrow", "9:00", "", "* * *", "99 * * * *", "every day"]
)
def test_what_says_no_moment(text: str) -> None:
    with pytest.raises(ScheduleError):
        parse_when(text, NOON)
