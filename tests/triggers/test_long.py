"""Short forms of what `make soak-crons` and `make storm-crons` do at length."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dispatcher.store.database import Database
from tests.bench.system import workspace
from tests.triggers.storm import POLICIES, storm
from tests.triggers.year import Plan, simulate


@pytest.mark.slow
@pytest.mark.parametrize(("dispatchers", "start"), [(2, datetime(2026, 3, 1, tzinfo=UTC)), (3, datetime(2026, 10, 24, tzinfo=UTC))])
async def test_weeks_of_crons(database: Database, dispatchers: int, start: datetime) -> None:
    """Clocks are put forward in New York and on Troll, or back in both; dispatchers come and go, and some have wrong clocks."""
    report = await simulate(database, Plan(start, 10, dispatchers, 11, often=5))
    assert report.wrong == []
    assert report.runs > 300
    assert {"outages", "restarts", "schedules"} <= set(report.happenings)


@pytest.mark.slow
async def test_seconds_of_crons_while_dispatchers_are_killed() -> None:
    async with workspace() as directory:
        kept, kills = await storm(directory, 12, 4, 2, 1)
    assert kills >= 2
    assert [one.policy for one in kept] == [*POLICIES]
    assert not any(one.broken for one in kept), kept
    assert min(one.ticks for one in kept) >= 10
