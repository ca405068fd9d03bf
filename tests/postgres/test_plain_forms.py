"""The statements for what asks for nothing write what the whole ones do, and touch nothing that asks for more."""

from __future__ import annotations

import contextlib
import json
from dataclasses import MISSING, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.engine.attempts import Error, Finish
from dispatcher.ids import IdMaker
from dispatcher.store import intake, outcomes, registry
from dispatcher.store.database import Connection, Database
from dispatcher.store.intake import NewEvent, NewRun
from dispatcher.store.outcomes import AttemptFacts, Guard, Outcome, TaskKey

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
GATE = "00000000-0000-0000-0000-000000000001"
IDS = IdMaker()

# What each member of a run may be besides what it is by itself.
OTHERWISE: dict[str, Any] = {
    "endpoint_id": "ep_1",
    "endpoint_version": "7",
    "graph": "pp",
    "durable": True,
    "filter_payload": b"1",
    "parent_node": 3,
    "parent_wait": "w1",
    "on_its_own": True,
    "gates": GATE,
    "gate_limits": "2",
    "gates_held": 1,
    "preempts": True,
    "flow": f'{{"gates": [["{GATE}", "rule", null, "key", "GROUP_ROUND_ROBIN", 2]]}}',
    "requirement": "x",
    "slots": 2,
    "labels": '{"a": 1}',
    "sticky_endpoint": "ep_2",
}
NOT_STORED = {"demands"}
NOT_ALONE = {"gate_limits", "gates_held"}  # say something of `gates` only


@pytest.fixture
async def tenant(database: Database) -> registry.Tenant:
    return await registry.create_tenant(database, "default", "Default", NOW)


def _run(tenant_id: int, **changed: Any) -> NewRun:
    run = NewRun(
        tenant_id, 1, IDS.make("run", NOW), 1, 1, b'{"a": 1}', None, 2, "api", None, None, None, None, None, 60_000, 30_000
    )  # fmt: skip
    return replace(run, **changed)


OPTIONAL = [f.name for f in fields(NewRun) if f.default is not MISSING and f.name not in NOT_STORED | NOT_ALONE]


async def _version(database: Database, tenant: registry.Tenant) -> int:
    version: int = await database.fetchval("select registry_version from tenants where id = $1", tenant.id)
    return version


async def _write_plain(conn: Connection, _events: list[NewEvent], runs: list[NewRun], dispatcher_id: int, now: datetime) -> None:
    await intake._write_plain(conn, runs, dispatcher_id, now)


async def _write_limited(conn: Connection, _events: list[NewEvent], runs: list[NewRun], dispatcher_id: int, now: datetime) -> None:
    await intake._write_limited(conn, runs, dispatcher_id, now)


class Undone(Exception):  # noqa: N818
    """Ends a transaction that was only to be looked at."""


async def _rows(database: Database, write: Any, run: NewRun) -> list[list[str]]:
    """What writing a run would leave in each table."""
    found: list[list[str]] = []
    with contextlib.suppress(Undone):
        async with database.transaction() as conn:
            await write(conn, [], [run], 5, NOW)
            for table in ("runs", "tasks", "gates"):
                rows = await conn.fetch(f"select to_jsonb(t)::text from {table} t order by 1")
                found += [[row[0] for row in rows]]
            raise Undone
    return found


def test_every_member_of_a_run_is_changed_here() -> None:
    assert set(OTHERWISE) == {f.name for f in fields(NewRun) if f.default is not MISSING} - NOT_STORED


PLAIN = [
    {},
    {"endpoint_id": "ep_1", "endpoint_version": "7"},
    {"run_at": NOW + timedelta(hours=1)},
    {"run_at": NOW - timedelta(hours=1)},
    {"metadata": '{"k": [1, "2"]}', "idempotency_key": "key", "trigger": "cron"},
]


@pytest.mark.parametrize("changed", PLAIN)
async def test_a_plain_run_is_written_as_by_the_whole_statement(
    database: Database, tenant: registry.Tenant, changed: dict[str, Any]
) -> None:
    run = _run(tenant.id, registry_version=await _version(database, tenant), **changed)
    assert run.simple
    assert not run.limited
    small = await _rows(database, _write_plain, run)
    assert [len(rows) for rows in small] == [1, 1, 0]
    assert small == await _rows(database, intake._write_whole, run)
    assert small == await _rows(database, _write_limited, run)


OTHER_GATE = "00000000-0000-0000-0000-000000000002"
CHAIN = {
    "gates": f"{GATE},{OTHER_GATE}",
    "gate_limits": "2,3",
    "flow": json.dumps(
        {"gates": [[GATE, "rule", None, "key", "GROUP_ROUND_ROBIN", 2], [OTHER_GATE, "other", "name", "k", "CANCEL_NEWEST", 3]]}
    ),
}
LIMITED = [
    {**CHAIN, "gates_held": 2, "endpoint_id": "ep_1", "endpoint_version": "7"},
    {**CHAIN, "gates_held": 2},
    {**CHAIN, "gates_held": 0, "preempts": True},
    {**CHAIN, "gates_held": 0, "run_at": NOW + timedelta(hours=1)},
    {"flow": '{"units": [["bucket", 1, 2, "MINUTE"]]}'},
]


@pytest.mark.parametrize("changed", LIMITED)
async def test_a_limited_run_is_written_as_by_the_whole_statement(
    database: Database, tenant: registry.Tenant, changed: dict[str, Any]
) -> None:
    run = _run(tenant.id, registry_version=await _version(database, tenant), **changed)
    assert run.simple
    assert run.limited
    small = await _rows(database, _write_limited, run)
    waits = run.gates is not None and not run.gates_held and run.run_at is None
    assert [len(rows) for rows in small] == [1, 1, run.gates_held + waits]
    assert small == await _rows(database, intake._write_whole, run)


@pytest.mark.parametrize("member", OPTIONAL)
async def test_what_one_member_of_a_run_asks_for_is_never_left_out(database: Database, tenant: registry.Tenant, member: str) -> None:
    run = _run(tenant.id, registry_version=await _version(database, tenant), **{member: OTHERWISE[member]})
    if member == "gates":
        run = replace(run, gate_limits=OTHERWISE["gate_limits"], flow=OTHERWISE["flow"])
    if member.startswith("endpoint"):
        run = replace(run, endpoint_id="ep_1", endpoint_version="7")
    assert await _rows(database, intake.write, run) == await _rows(database, intake._write_whole, run)


# --- ends

LOOKED_AT = ("runs", "tasks", "waits", "journal", "run_history", "task_history", "attempts", "journal_history")

AWAIT_CHILD = """
    insert into waits (tenant_id, run_id, node, id, graph, kind, event_key, created_at)
    values ($1, 'run_parent', 0, 'w1', false, 'child', $2, $3)
"""


def _end(run: NewRun, *, status: Any = "succeeded", alone: bool) -> Outcome:
    error = Error("broken", "it broke", b'{"a": 1}') if status == "failed" else None
    change = Finish(status, status, b'"out"' if error is None else None, "application/json" if error is None else None, error)
    return Outcome(Guard(run.tenant_id, run.id, 0, 1, "running"), change, AttemptFacts(200, 7, b"said"), alone=alone)


async def _leased(database: Database, tenant: registry.Tenant, **changed: Any) -> NewRun:
    """A run whose one task is its first attempt."""
    version = await _version(database, tenant)
    run = _run(tenant.id, registry_version=version, endpoint_id="ep_1", endpoint_version="7", **changed)
    assert await intake.write(database, [], [run], 5, NOW)
    return run


async def _apply(database: Database, *ends: Outcome) -> tuple[bool, set[str]]:
    """Whether others are concerned, and the runs whose ends landed."""
    landed: list[TaskKey] = []
    concerned = await outcomes.apply(database, list(ends), NOW + timedelta(seconds=1), landed.append)
    assert len(landed) == len(set(landed))
    return concerned, {key[1] for key in landed}


async def _left(database: Database, run: NewRun) -> dict[str, list[str]]:
    """All rows that are there of a run, its id left out."""
    found = {}
    for table in LOOKED_AT:
        key = "id" if table in ("runs", "run_history") else "run_id"
        rows = await database.fetch(f"select (to_jsonb(t) - '{key}')::text from {table} t where t.{key} = $1 order by 1", run.id)
        found[table] = [row[0] for row in rows]
    return found


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_a_task_alone_ends_as_by_the_whole_statement(database: Database, tenant: registry.Tenant, status: str) -> None:
    given = {"metadata": '{"k": 1}', "labels": '{"a": 1}', "filter_payload": b"1", "idempotency_key": "key", "event_id": "evt_1"}
    one, other = await _leased(database, tenant, **given), await _leased(database, tenant, **given)
    await database.execute("update tasks set progress = '7', retry_base = 2, app_retries = 1, infra_retries = 3")
    assert await _apply(database, _end(one, status=status, alone=True)) == (False, {one.id})
    assert await _apply(database, _end(other, status=status, alone=False)) == (False, {other.id})
    left = await _left(database, one)
    assert left == await _left(database, other)
    assert {table for table, rows in left.items() if rows} == {"run_history", "task_history", "attempts"}


async def test_what_was_taken_for_alone_and_is_not_ends_whole(database: Database, tenant: registry.Tenant) -> None:
    alone, durable = await _leased(database, tenant), await _leased(database, tenant, durable=True)
    child = await _leased(database, tenant, parent_run_id="run_parent", parent_node=0, parent_wait="w1")
    await database.execute("insert into journal values ($1, $2, 0, 0, 0, 1, '{}', null, null, $3)", tenant.id, durable.id, NOW)
    await database.execute(AWAIT_CHILD, tenant.id, child.id, NOW)
    _, landed = await _apply(database, *[_end(run, alone=True) for run in (alone, durable, child)])
    assert landed == {alone.id, durable.id, child.id}
    assert await database.fetchval("select count(*) from runs") == 0
    assert await database.fetchval("select outcome || ' ' || convert_from(value, 'UTF8') from waits") == 'ok "out"'
    assert await database.fetchval("select convert_from(entries, 'UTF8') from journal_history where run_id = $1", durable.id) == "{}"


async def test_an_end_that_cancels_children_is_whole(database: Database, tenant: registry.Tenant) -> None:
    parent = await _leased(database, tenant)
    child = await _leased(database, tenant, parent_run_id=parent.id)
    assert await _apply(database, _end(parent, status="cancelled", alone=True)) == (True, {parent.id})
    assert await database.fetchval("select doomed_at is not null from runs where id = $1", child.id)


async def test_one_being_cancelled_and_one_that_has_moved_on_are_left(database: Database, tenant: registry.Tenant) -> None:
    ended, cancelling, moved = [await _leased(database, tenant) for _ in range(3)]
    await database.execute("update tasks set cancel_at = $2 where run_id = $1", cancelling.id, NOW)
    await database.execute("update tasks set epoch = 2 where run_id = $1", moved.id)
    assert await _apply(database, *[_end(run, alone=True) for run in (ended, cancelling, moved)]) == (False, {ended.id})
    assert await database.fetchval("select count(*) from tasks") == 2


async def test_what_has_landed_is_known_when_the_rest_fails(database: Database, tenant: registry.Tenant) -> None:
    """Otherwise its run would be over without anybody being told."""
    ended, durable = await _leased(database, tenant), await _leased(database, tenant, durable=True)
    await database.execute("alter table journal rename to journal_away")
    landed: list[TaskKey] = []
    try:
        with pytest.raises(Exception, match="journal"):
            await outcomes.apply(database, [_end(ended, alone=True), _end(durable, alone=True)], NOW, landed.append)
    finally:
        await database.execute("alter table journal_away rename to journal")
    assert [key[1] for key in landed] == [ended.id]
