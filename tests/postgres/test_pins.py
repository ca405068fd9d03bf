"""Whoever ends a task's pin leaves the text of a requirement that is the same and has none, so that it waits in the queue it came from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from dispatcher.engine.definitions.placement import DesiredLabel
from dispatcher.engine.placement import Requirement
from dispatcher.store import blocks, journal, waits
from dispatcher.store.database import Connection, Database
from dispatcher.store.journal import Seed

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LABELS: tuple[dict[str, DesiredLabel], ...] = ({}, {'"pin":"x",': DesiredLabel('{"pin":"y"}', required=True)})
ASKED = [
    Requirement(labels, endpoint, "hard" if endpoint else None, slots, batch, pin)
    for labels, endpoint, slots, batch, pin in product(LABELS, (None, "ep_1"), (1, 2), (None, 'a"}'), (None, "ep_2"))
]
TASKS = """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, durable, epoch, priority, due_at, execution_ms,
                       requirement)
    select 1, 'run_' || lpad(n::text, 3, '0'), 0, 1, 1, 'blocked', true, 1, 1, $2, 1000, text
    from unnest($1::text[]) with ordinality as a (text, n)
"""


async def _unblocked(conn: Connection, runs: list[str]) -> None:
    await waits.unblock(conn, 1, [1], None, NOW)


async def _let_go(conn: Connection, runs: list[str]) -> None:
    await blocks.let_go(conn, [((1, run_id, 0), 1) for run_id in runs], NOW)


async def _seeded(conn: Connection, runs: list[str]) -> None:
    for key, stands in (await journal.heads(conn, [(1, run_id, 0) for run_id in runs])).items():
        assert await journal.seed(conn, Seed(key, 1, [], [], None, None, [], {}, None, inbox_closed=False), stands, NOW)


@pytest.mark.parametrize("end", [_unblocked, _let_go, _seeded])
async def test_a_pin_that_is_ended_leaves_what_was_asked_beside_it(
    database: Database, end: Callable[[Connection, list[str]], Awaitable[None]]
) -> None:
    async with database.transaction() as conn:
        await conn.execute(TASKS, [asked.text() for asked in ASKED], NOW)
        runs = [row[0] for row in await conn.fetch("select run_id from tasks order by run_id")]
        await end(conn, runs)
        left = await conn.fetch("select state, requirement from tasks order by run_id")
    assert [tuple(row) for row in left] == [("queued", replace(asked, pin=None).text()) for asked in ASKED]
