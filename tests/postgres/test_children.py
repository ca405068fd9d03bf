"""The statement for appends whose children are simple writes what the others do one after the other; what asks for more is left to them."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import MISSING, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.engine.journal import Entries, Wait
from dispatcher.ids import IdMaker
from dispatcher.store import children, intake, journal, registry
from dispatcher.store.database import Connection, Database
from dispatcher.store.intake import NewRun
from dispatcher.store.journal import NewEntries
from tests.postgres.test_plain_forms import GATE, NOT_ALONE, NOT_STORED, OTHERWISE

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
IDS = IdMaker()
MOST = (1_000, 1_000_000)
TABLES = ("runs", "tasks", "waits", "journal", "gates")
SAME = {"durable", "parent_node", "parent_wait"}  # what a child has, or is refused here in words of its own


@pytest.fixture
async def tenant(database: Database) -> registry.Tenant:
    return await registry.create_tenant(database, "default", "Default", NOW)


async def _parent(database: Database, tenant: registry.Tenant) -> NewRun:
    """A durable task in its first turn."""
    version: int = await database.fetchval("select registry_version from tenants where id = $1", tenant.id)
    run = NewRun(
        tenant.id, version, IDS.make("run", NOW), 1, 1, b"{}", None, 2, "api", None, None, None, None, None, 60_000, 30_000, "ep_1", "7",
        durable=True,
    )  # fmt: skip
    assert await intake.write(database, [], [run], 5, NOW)
    return run


def _child(parent: NewRun, number: int, **changed: Any) -> NewRun:
    run = NewRun(
        parent.tenant_id, parent.registry_version, IDS.make("run", NOW), 2, 1, b'{"n": 1}', None, 3, "child", None, parent.id, None, None,
        None, 60_000, 30_000, parent_node=0, parent_wait=f"key {number}",
    )  # fmt: skip
    return replace(run, **changed)


def _append(parent: NewRun, runs: list[NewRun], **changed: Any) -> NewEntries:
    names = [f"child#{number}" for number in range(len(runs))]
    raw = tuple(b'{"id":"%b","op":"child","status":"pending"}' % name.encode() for name in names)
    entries = Entries(raw, tuple(Wait(name, "child") for name in names), only_steps=False)
    ids = {name: run.id for name, run in zip(names, runs, strict=True)}
    return replace(NewEntries((parent.tenant_id, parent.id, 0), 1, 0, entries, ids, {}), **changed)


class Undone(Exception):  # noqa: N818
    """Ends a transaction that was only to be looked at."""


async def _rows(database: Database, write: Callable[[Connection], Awaitable[None]]) -> list[list[str]]:
    """What a write would leave in each table."""
    found: list[list[str]] = []
    with contextlib.suppress(Undone):
        async with database.transaction() as conn:
            await write(conn)
            for table in TABLES:
                rows = await conn.fetch(f"select to_jsonb(t)::text from {table} t order by 1")
                found += [[row[0] for row in rows]]
            raise Undone
    return found


class _Lane:
    """A connection that stands where the store expects a database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *arguments: object, lane: str = "") -> list[Any]:
        return await self._connection.fetch(sql, *arguments)


async def _by_one(conn: Connection, row: NewEntries, runs: list[NewRun]) -> None:
    assert children.is_simple(row, runs)
    assert await children.begin(_Lane(conn), [row], [runs], 5, LATER, *MOST)  # type: ignore[arg-type]  # as far as it is asked


async def _by_two(conn: Connection, row: NewEntries, runs: list[NewRun]) -> None:
    assert await journal.append(conn, [row], LATER, *MOST)
    assert len(await intake.write(conn, [], runs, 5, LATER)) == len(runs)


@pytest.mark.parametrize("leased", [False, True])
async def test_it_writes_what_the_others_do(database: Database, tenant: registry.Tenant, leased: bool) -> None:
    parent = await _parent(database, tenant)
    more: dict[str, Any] = {"endpoint_id": "ep_1", "endpoint_version": "7"} if leased else {}
    runs = [_child(parent, 0, **more), _child(parent, 1, metadata='{"k": [1]}'), _child(parent, 2, priority=1)]
    row = _append(parent, runs)
    ours = await _rows(database, lambda conn: _by_one(conn, row, runs))
    assert [len(rows) for rows in ours] == [4, 4, 3, 1, 0]
    assert ours == await _rows(database, lambda conn: _by_two(conn, row, runs))


OPTIONAL = [f.name for f in fields(NewRun) if f.default is not MISSING and f.name not in NOT_STORED | NOT_ALONE | SAME]


@pytest.mark.parametrize("member", [name for name in OPTIONAL if not name.startswith("endpoint")])
async def test_what_asks_for_more_is_not_simple(database: Database, tenant: registry.Tenant, member: str) -> None:
    parent = await _parent(database, tenant)
    runs = [_child(parent, 0), _child(parent, 1, **{member: OTHERWISE[member]})]
    assert not children.is_simple(_append(parent, runs), runs)


@pytest.mark.parametrize(
    "changed",
    [
        {"durable": True}, {"parent_wait": None}, {"parent_node": 1}, {"trigger": "api"}, {"event_id": "evt_1"}, {"stream_id": "str_1"},
        {"idempotency_key": "k"}, {"run_at": LATER}, {"registry_version": 99}, {"gates": GATE},
    ],
)  # fmt: skip
async def test_nor_is_a_child_of_another_kind(database: Database, tenant: registry.Tenant, changed: dict[str, Any]) -> None:
    parent = await _parent(database, tenant)
    runs = [_child(parent, 0), _child(parent, 1, **changed)]
    assert not children.is_simple(_append(parent, runs), runs)


@pytest.mark.parametrize(
    "changed",
    [
        {"given": {"child#0": ("error", b"{}")}},
        {"again": {"child#0"}},
        {"entries": Entries((b"{}",), (Wait("child#0", "child"), Wait("sleep#0", "sleep")), only_steps=False)},
        {"entries": Entries((b"{}",), (Wait("child#0", "child"),), parents=("s#0",), only_steps=False)},
        {"entries": Entries((b"{}",), (Wait("child#0", "child"),), closes=("s#0",), only_steps=False)},
        {"entries": Entries((b"{}",), (Wait("child#0", "child"),), checkpoint=b"1", only_steps=False)},
        {"entries": Entries((b"{}",), (Wait("child#0", "child"),), closes_inbox=True, only_steps=False)},
    ],
)
async def test_nor_is_an_append_that_says_more(database: Database, tenant: registry.Tenant, changed: dict[str, Any]) -> None:
    parent = await _parent(database, tenant)
    runs = [_child(parent, 0)]
    assert children.is_simple(_append(parent, runs), runs)
    assert not children.is_simple(_append(parent, runs, **changed), runs)


REFUSED: dict[str, dict[str, Any]] = {
    "another attempt": {"epoch": 2},
    "a wrong base": {"base": 1},
    "a log that would be too long": {"base": 0, "most": (0, 1_000_000)},
    "a log that would be too large": {"base": 0, "most": (1_000, 3)},
}


@pytest.mark.parametrize("why", [*REFUSED, "an old registry", "a wait that is there", "a clean-up"])
async def test_what_is_refused_leaves_nothing(database: Database, tenant: registry.Tenant, why: str) -> None:
    """And what stands beside it in the set lands."""
    parent, other = await _parent(database, tenant), await _parent(database, tenant)
    changed = dict(REFUSED.get(why, {}))
    most = changed.pop("most", MOST)
    version = {"registry_version": 0} if why == "an old registry" else {}
    runs, beside = [_child(parent, 0, **version)], [_child(other, 0)]
    if why == "a wait that is there":
        await database.execute(
            "insert into waits (tenant_id, run_id, node, id, graph, kind, created_at) values ($1, $2, 0, 'child#0', false, 'sleep', $3)",
            tenant.id, parent.id, NOW,
        )  # fmt: skip
    if why == "a clean-up":
        await database.execute("update tasks set cleanup = true where run_id = $1", parent.id)
    rows = [_append(parent, runs, **changed), _append(other, beside)]
    landed = await children.begin(database, rows, [runs, beside], 5, LATER, *most)
    assert set(landed) == (set() if "most" in REFUSED.get(why, {}) else {rows[1].key})
    written = await database.fetch("select id from runs where parent_run_id is not null")
    assert [row[0] for row in written] == ([beside[0].id] if landed else [])
    assert await database.fetchval("select count(*) from journal where run_id = $1", parent.id) == 0
    assert await database.fetchval("select count(*) from waits where kind = 'child' and run_id = $1", parent.id) == 0
