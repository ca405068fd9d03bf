"""Pinned durable tasks that wait where any endpoint could be claimed for them, or were claimed for another than the one they go on at: in
the queue of theirs.

And what a pin is in the text of a requirement, for statements that end it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dispatcher.engine.admission import Queue
from dispatcher.store.database import Database
from dispatcher.store.queue import Claimed, Line
from dispatcher.store.statement import Statement

PIN: Final = """(?<=^[{])"pin":"[^"]*",|^[{]"pin":"[^"]*"[}]$"""
"""What a pin adds to the text of a requirement (`Requirement.text`), as a regular expression: with nothing in its place, the text is that
of a requirement that is the same and has none.
"""


@dataclass(frozen=True, slots=True)
class Homeless:
    """A workflow of which such tasks wait, and an endpoint that is drained, where they go on."""

    tenant_id: int
    workflow_id: int
    endpoint_id: str


_AT_ONCE = 1_000  # of the first in a queue, that are looked at with one that was claimed

# What has been leased goes back to where it stood; nobody has heard of its attempt, so that has no number. Those behind it that are pinned
# to the same endpoint come along: each would be claimed in vain before anybody else has his turn.
SEND_HOME = Statement(
    """
    with leased as materialized (
        select * from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::timestamptz[], $6::text[])
            as g (tenant_id, run_id, node, epoch, schedule_deadline, requirement)
    ), first as materialized (
        select g.tenant_id, f.run_id, f.node, g.requirement, g.becomes
        from unnest($8::int[], $9::int[], $10::text[], $11::text[], $12::text[]) as g (tenant_id, workflow_id, requirement, pin, becomes)
        cross join lateral (
            select t.run_id, t.node, t.pin_endpoint from tasks t
            where t.tenant_id = g.tenant_id and t.workflow_id = g.workflow_id and t.durable and t.requirement = g.requirement
              and t.state = 'queued'
            order by t.priority desc, t.due_at, t.run_id, t.node limit $13
        ) f
        where f.pin_endpoint = g.pin
    ), behind as materialized (
        select f.tenant_id, f.run_id, f.node, f.becomes
        from first f cross join lateral ( -- of those that come along alone: who claims passes by what is locked
            select t.state, t.requirement from tasks t
            where t.tenant_id = f.tenant_id and t.run_id = f.run_id and t.node = f.node limit 1 for update skip locked
        ) t
        where t.state = 'queued' and t.requirement = f.requirement
    ), along as (
        update tasks t set requirement = b.becomes
        from behind b where t.tenant_id = any (array[b.tenant_id]) and t.run_id = b.run_id and t.node = b.node
    )
    update tasks t
    set state = 'queued', requirement = g.requirement, epoch = t.epoch - 1, schedule_deadline = g.schedule_deadline,
        dispatcher_id = null, endpoint_id = null, endpoint_version = null, started_at = null, deadline = null
    from leased g
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = 'running'
      and t.dispatcher_id = $7 and t.cancel_at is null
    returning t.tenant_id, -t.workflow_id as workflow_id, t.requirement
    """,
    Line,
)
# Where nothing else serves a workflow nobody is claimed for its queue once what does is drained: what goes on there has to be found.
HOMELESS = Statement(
    """
    select distinct t.tenant_id, t.workflow_id, t.pin_endpoint as endpoint_id
    from endpoints e cross join lateral (
        select t.tenant_id, t.workflow_id, t.pin_endpoint from tasks t
        where t.tenant_id = e.tenant_id and t.pin_endpoint = e.id and t.pin_endpoint is not null and t.state = 'queued'
          and not starts_with(t.requirement, '{"pin":')
        order by t.due_at limit $1
    ) t
    where e.draining
    """,
    Homeless,
)
FIND_HOMES = Statement(
    """
    with found as materialized (
        select t.tenant_id, t.run_id, t.node
        from (select distinct tenant_id, endpoint_id from unnest($1::int[], $2::text[]) as g (tenant_id, endpoint_id)) g
        cross join lateral (
            select t.tenant_id, t.run_id, t.node from tasks t
            where t.tenant_id = g.tenant_id and t.pin_endpoint = g.endpoint_id and t.pin_endpoint is not null and t.state = 'queued'
              and not starts_with(t.requirement, '{"pin":')
            order by t.due_at limit $3 for update skip locked -- as that index has them, so that no other is taken
        ) t
    )
    update tasks t
    set requirement = '{"pin":"' || t.pin_endpoint || '"' || case when t.requirement = '' then '}' else ',' || substr(t.requirement, 2) end
    from found s where t.tenant_id = any (array[s.tenant_id]) and t.run_id = s.run_id and t.node = s.node
    returning t.tenant_id, -t.workflow_id as workflow_id, t.requirement
    """,
    Line,
)


async def homeless(db: Database) -> list[Homeless]:
    """Where tasks wait that go on at endpoints that are drained, and could be claimed for any."""
    return HOMELESS.read(await db.fetch(HOMELESS.sql, _AT_ONCE))


async def find_homes(db: Database, found: Sequence[Homeless]) -> list[Queue]:
    """Let these tasks wait for their endpoints alone, so many of each at once; answers their queues, one entry a task."""
    records = await db.fetch(FIND_HOMES.sql, [row.tenant_id for row in found], [row.endpoint_id for row in found], _AT_ONCE)
    return [(row.tenant_id, row.workflow_id, row.requirement) for row in FIND_HOMES.read(records)]


async def send_home(db: Database, strays: Sequence[tuple[Claimed, str]], dispatcher_id: int) -> list[Queue]:
    """Let go of tasks leased to `dispatcher_id`, each to the queue of what it is given to ask for, with those like it; answers these
    queues, one entry a task that was leased.
    """
    alike = {(row.tenant_id, row.workflow_id, row.requirement, row.pin_endpoint): asks for row, asks in strays}
    records = await db.fetch(
        SEND_HOME.sql,
        [row.tenant_id for row, _ in strays],
        [row.run_id for row, _ in strays],
        [row.node for row, _ in strays],
        [row.epoch for row, _ in strays],
        [row.schedule_deadline for row, _ in strays],
        [asks for _, asks in strays],
        dispatcher_id,
        [tenant_id for tenant_id, _, _, _ in alike],
        [workflow_id for _, workflow_id, _, _ in alike],
        [requirement for _, _, requirement, _ in alike],
        [pin for _, _, _, pin in alike],
        list(alike.values()),
        _AT_ONCE,
    )
    return [(row.tenant_id, row.workflow_id, row.requirement) for row in SEND_HOME.read(records)]
