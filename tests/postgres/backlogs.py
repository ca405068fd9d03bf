"""Backlogs at a shared limit, and what statements cost beside them: the same for a large one as for a small one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dispatcher.store.database import Database
from tests.postgres.explained import Explained, Undone, nodes_of, pages_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PAGE = 50
TENANT = "insert into tenants (slug, name, created_at) values ('t', 't', $1) returning id"
WORKFLOW = """
    insert into workflows (tenant_id, name, version, created_at, updated_at, aside, aside_at) values ($1, $2, 1, $3, $3, $4, $3)
    returning id
"""
TASKS = """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms, gates, gate_limits,
                       arrived_at, flow, requirement)
    select $1, format('run_%s%s_%s', $2::int, $4::text, lpad(g::text, 8, '0')), 0, $2, 1, 'queued', 1, $5, 1000,
           array[lpad('1', 32, '0')::uuid], array[5], $5::timestamptz + g * interval '1 millisecond',
           '{"gates": [["00000000-0000-0000-0000-000000000001", "=shared", "shared", "", "GROUP_ROUND_ROBIN", 5]]}', $4
    from generate_series(1, $3::int) as g
"""


def undo(explained: Explained, *names: str) -> None:
    """Raise what each of these statements cost, in pages, so that nothing of them stays; none may read all tasks or runs."""
    found = dict[str, int]()
    for name, plan in zip(names, explained.plans, strict=True):
        scans = {node["Relation Name"] for node in nodes_of(plan) if node["Node Type"] == "Seq Scan"}
        assert not scans & {"tasks", "runs"}, f"{name} reads all of {scans}"
        found[name] = pages_of(plan)
    raise Undone(found)


async def cost_the_same(database: Database, cost: Callable[[Database, int], Awaitable[Any]]) -> None:
    """Hold what `cost` raises for a small backlog against that for a large one."""
    costs = []
    for backlog in (100, 10_000):
        with pytest.raises(Undone) as undone:
            await cost(database, backlog)
        costs.append(undone.value.found)
    few, many = costs
    assert all(many[name] <= 2 * few[name] + 50 for name in few), (few, many)
