"""The short form of `make storm-limits`: limits of a second, and a few kills."""

from __future__ import annotations

import pytest

from tests.bench.system import workspace
from tests.chaos.limits import GROUPS, SLOTS, Plan, storm


@pytest.mark.slow
async def test_limits_hold_while_the_dispatchers_that_keep_them_are_killed() -> None:
    async with workspace() as directory:
        report = await storm(directory, Plan(seed=3, duration="SECOND", allowed=5, windows=3))
    assert report.broken == []
    assert report.kills >= 2
    assert 5 in report.calm
    assert sum(window.starts == 5 for window in report.windows) >= 2
    assert report.most[("slots",)] == SLOTS
    assert report.most[("shared",)] == 3
    assert report.grouped > 10 * len(GROUPS)
