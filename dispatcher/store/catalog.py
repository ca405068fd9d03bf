"""Reading what is registered, a page at a time: endpoints with what they are doing, their deliveries, workflows with their routes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Database
from dispatcher.store.runs import PLAN_FOR_VALUES
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint as it is shown; `labels` and `manifest` are JSON text. `in_use` counts slots filled now, by any dispatcher; `remaining`
    the runs that go on there, while it is drained.
    """

    id: str
    name: str
    version: str
    url: str
    manifest: str
    slots: int
    in_use: int
    durable_slots: int | None
    durable_in_use: int
    labels: str
    static: bool
    paused: bool
    draining: bool
    remaining: int | None
    circuit: str
    circuit_code: str | None
    circuit_since: datetime | None
    probe_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class EndpointVersion:
    """One version of an endpoint; `open_tasks` counts what runs on it, and durable tasks that will go on nowhere else."""

    version: str
    url: str
    manifest: str
    registered_at: datetime
    retired_at: datetime | None
    current: bool
    open_tasks: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt made at an endpoint, as its row was written when it was over."""

    run_id: str
    node: int
    number: int
    workflow: str | None
    status: str
    http_status: int | None
    latency_ms: int | None
    error: str | None
    endpoint_version: str
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class WorkflowState:
    """A workflow with its current definition (JSON text) and the names of the endpoints that serve it."""

    id: int
    name: str
    version: int
    definition: str
    endpoints: list[str]
    created_at: datetime
    updated_at: datetime
    paused_at: datetime | None
    resuming: bool
    queue_ttl_ms: int | None
    on_schedule: str


ENDPOINTS = Statement(
    """
    with used as (
        select endpoint_id, (sum(slots) filter (where not durable))::int as slots, (sum(slots) filter (where durable))::int as turns from (
            select endpoint_id, slots, durable from tasks where tenant_id = $1 and dispatcher_id is not null and batch_id is null
            union all
            select endpoint_id, slots, durable from tasks
            where tenant_id = $1 and lease_until is not null and not slot_released and batch_id is null
            union all
            select endpoint_id, max(slots), false from tasks
            where tenant_id = $1 and batch_id is not null and state = 'running' group by endpoint_id, batch_id
        ) running group by endpoint_id
    )
    select e.id, e.name, e.version, v.url, v.manifest, e.slots, coalesce(u.slots, 0) as in_use,
           e.durable_slots, coalesce(u.turns, 0) as durable_in_use, e.labels, e.static, e.paused,
           e.draining, case when e.draining then (
               select count(*)::int from (
                   select t.run_id from tasks t where t.tenant_id = $1 and t.pin_endpoint = e.id and t.state <> 'settled'
                   union
                   select t.run_id from tasks t where t.tenant_id = $1 and t.endpoint_id = e.id and t.dispatcher_id is not null
                   union
                   select t.run_id from tasks t where t.tenant_id = $1 and t.endpoint_id = e.id and t.lease_until is not null
                   union
                   select r.id from runs r
                   where r.tenant_id = $1 and r.sticky_endpoint = e.id and (r.workflow_id, r.workflow_version) in (
                       select v.workflow_id, v.number from workflow_versions v where v.tenant_id = $1 and v.definition->>'sticky' = 'hard')
               ) goes_on
           ) end as remaining, e.circuit, e.circuit_code, e.circuit_since, e.probe_at, e.created_at, e.updated_at
    from endpoints e
    join endpoint_versions v on v.tenant_id = e.tenant_id and v.endpoint_id = e.id and v.version = e.version
    left join used u on u.endpoint_id = e.id
    where e.tenant_id = $1 and ($2::text is null or e.name = $2) and e.name > $3 order by e.name limit $4
    """,
    EndpointState,
)
VERSIONS = Statement(
    """
    with open as (
        select coalesce(pin_endpoint, endpoint_id) as endpoint_id, coalesce(pin_version, endpoint_version) as version,
               count(*)::int as tasks
        from tasks
        where tenant_id = $1 and state <> 'settled' and (pin_version is not null or dispatcher_id is not null or lease_until is not null)
        group by 1, 2
    )
    select v.version, v.url, v.manifest, v.registered_at, v.retired_at, v.version = e.version as current,
           coalesce(o.tasks, 0) as open_tasks
    from endpoints e join endpoint_versions v on v.tenant_id = e.tenant_id and v.endpoint_id = e.id
    left join open o on o.endpoint_id = e.id and o.version = v.version
    where e.tenant_id = $1 and e.name = $2
      and ($3::timestamptz is null or (v.registered_at, v.version) < ($3, $4))
    order by v.registered_at desc, v.version desc limit $5
    """,
    EndpointVersion,
)
DELIVERIES = Statement(
    """
    with page as (
        select run_id, node, number, status, http_status, latency_ms, error, endpoint_version, started_at, finished_at
        from attempts
        where tenant_id = $1 and endpoint_id = $2 and ($7::text is null or status = $7)
          and ($3::timestamptz is null or finished_at < $3
               or (finished_at = $3 and (run_id, node, number) < ($4, $5::smallint, $6::int)))
          and ($3::timestamptz is null or finished_at <= $3)
        order by finished_at desc, run_id desc, node desc, number desc limit $8
    )
    select p.run_id, p.node, p.number,
           coalesce((select w.name from run_history h join workflows w on w.tenant_id = $1 and w.id = h.workflow_id
                     where h.tenant_id = $1 and h.id = p.run_id and h.finished_at >= p.finished_at limit 1),
                    (select w.name from runs r join workflows w on w.tenant_id = $1 and w.id = r.workflow_id
                     where r.tenant_id = $1 and r.id = p.run_id)) as workflow,
           p.status, p.http_status, p.latency_ms, p.error, p.endpoint_version, p.started_at, p.finished_at
    from page p order by p.finished_at desc, p.run_id desc, p.node desc, p.number desc
    """,
    Delivery,
)
WORKFLOWS = Statement(
    """
    select w.id, w.name, w.version, v.definition,
           array(select e.name from routes r join endpoints e on e.tenant_id = r.tenant_id and e.id = r.endpoint_id
                 where r.tenant_id = $1 and r.workflow_id = w.id order by e.name) as endpoints,
           w.created_at, w.updated_at, w.paused_at,
           exists (select from renewals n where n.tenant_id = $1 and n.workflow_id = w.id and n.late_at is null) as resuming,
           w.queue_ttl_ms, w.on_schedule
    from workflows w join workflow_versions v on v.tenant_id = w.tenant_id and v.workflow_id = w.id and v.number = w.version
    where w.tenant_id = $1 and ($2::text is null or w.name = $2) and w.name > $3 and w.removed_at is null order by w.name limit $4
    """,
    WorkflowState,
)


@dataclass(frozen=True, slots=True)
class DeliveryKey:
    """Where a page of deliveries left off."""

    finished_at: datetime
    run_id: str
    node: int
    number: int


async def endpoints(db: Database, tenant_id: int, after: str, limit: int) -> list[EndpointState]:
    """Endpoints by name, behind `after`."""
    return ENDPOINTS.read(await db.fetch(ENDPOINTS.sql, tenant_id, None, after, limit))


async def endpoint(db: Database, tenant_id: int, name: str) -> EndpointState | None:
    """One endpoint, or None where there is none of this name."""
    return ENDPOINTS.first(await db.fetch(ENDPOINTS.sql, tenant_id, name, "", 1))


async def versions(db: Database, tenant_id: int, name: str, before: tuple[datetime, str] | None, limit: int) -> list[EndpointVersion]:
    """An endpoint's versions, the newest registration first, older than (registered_at, version) `before`."""
    moment, version = before or (None, None)
    return VERSIONS.read(await db.fetch(VERSIONS.sql, tenant_id, name, moment, version, limit))


async def deliveries(
    db: Database, tenant_id: int, endpoint_id: str, status: str | None, before: DeliveryKey | None, limit: int
) -> list[Delivery]:
    """Attempts made at an endpoint, the latest end first; those that are still running are not among them."""
    key = (before.finished_at, before.run_id, before.node, before.number) if before is not None else (None, None, None, None)
    async with db.transaction() as conn:
        await conn.execute(PLAN_FOR_VALUES)
        return DELIVERIES.read(await conn.fetch(DELIVERIES.sql, tenant_id, endpoint_id, *key, status, limit))


async def workflows(db: Database, tenant_id: int, after: str, limit: int) -> list[WorkflowState]:
    """Workflows by name, behind `after`."""
    return WORKFLOWS.read(await db.fetch(WORKFLOWS.sql, tenant_id, None, after, limit))


async def workflow(db: Database, tenant_id: int, name: str) -> WorkflowState | None:
    """One workflow, or None where there is none of this name."""
    return WORKFLOWS.first(await db.fetch(WORKFLOWS.sql, tenant_id, name, "", 1))
