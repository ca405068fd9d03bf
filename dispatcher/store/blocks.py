"""Blocking durable tasks, in one picture with what is registered: what comes meanwhile waits for the tenant, and finds them blocked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.engine.versions import Ran, Registered, superseded
from dispatcher.store import registry
from dispatcher.store.database import Connection
from dispatcher.store.pins import PIN
from dispatcher.store.statement import Statement

Key = tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class Serving:
    """A running turn of a task, and an endpoint that serves its workflow."""

    tenant_id: int
    run_id: str
    node: int
    ran_at: str
    ran_version: str
    since: datetime
    pinned: bool
    endpoint_id: str
    version: str
    registered_at: datetime | None


SERVING = Statement(
    """
    select t.tenant_id, t.run_id, t.node, t.endpoint_id as ran_at, t.endpoint_version as ran_version, t.started_at as since,
           coalesce(t.pin_endpoint = t.endpoint_id and t.pin_version = t.endpoint_version, false) as pinned,
           e.id as endpoint_id, e.version, e.registered_at
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[]) as g (tenant_id, run_id, node, epoch)
    cross join lateral (
        select * from tasks t
        where t.tenant_id = g.tenant_id and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = 'running' offset 0
    ) t
    join routes r on r.tenant_id = t.tenant_id and r.workflow_id = t.workflow_id
    join endpoints e on e.tenant_id = r.tenant_id and e.id = r.endpoint_id
    where t.endpoint_id is not null and t.endpoint_version is not null and t.started_at is not null
    """,
    Serving,
)
LET_GO = """
    update tasks t
    set state = 'queued', due_at = $5, error = null, marks = coalesce(t.marks, 0) + 1, pin_endpoint = null, pin_version = null,
        requirement = regexp_replace(t.requirement, $6, '')
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[]) as g (tenant_id, run_id, node, epoch)
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
"""


async def outdated(conn: Connection, attempts: Sequence[tuple[Key, int]]) -> set[Key]:
    """Of these running attempts, by task and number, those whose task may go on with what was registered meanwhile.

    Nothing is registered from here on until the end of the transaction.
    """
    await registry.hold(conn, sorted({key[0] for key, _ in attempts}))
    found: dict[Key, tuple[Ran, list[Registered]]] = {}
    for row in SERVING.read(await conn.fetch(SERVING.sql, *_columns(attempts))):
        ran = Ran(row.ran_at, row.ran_version, row.since, row.pinned)
        _, registered = found.setdefault((row.tenant_id, row.run_id, row.node), (ran, []))
        registered.append(Registered(row.endpoint_id, row.version, row.registered_at))
    return {key for key, (ran, registered) in found.items() if superseded(ran, registered)}


async def let_go(conn: Connection, attempts: Sequence[tuple[Key, int]], now: datetime) -> None:
    """Let tasks go on that this transaction has blocked, on whatever version is the latest."""
    await conn.execute(LET_GO, *_columns(attempts), now, PIN)


def _columns(attempts: Sequence[tuple[Key, int]]) -> tuple[list[int], list[str], list[int], list[int]]:
    return [k[0] for k, _ in attempts], [k[1] for k, _ in attempts], [k[2] for k, _ in attempts], [epoch for _, epoch in attempts]
