"""The short form of `make chaos`: a few kills, Postgres among them, all promises looked after."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.system import workspace
from tests.chaos.campaign import Plan, campaign
from tests.chaos.ledger import shown

SEED = 20260101


@pytest.mark.slow
async def test_kills_under_load_lose_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = Plan(SEED, kills=5, dispatchers=2, workers=6, postgres_every=4, longest_pause=1.5)
    async with workspace() as directory:
        result = await campaign(plan, directory, print)
    assert not result.broken, shown(result.broken)
    assert result.strikes.total() - result.strikes["freeze"] == plan.kills
    assert any(name.startswith("postgres") for name in result.strikes)
    assert result.acknowledged > 50
    assert result.runs["succeeded"] > 50
