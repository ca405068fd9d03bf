"""What is registered: tenants, endpoints with their versions and secrets, workflows with theirs, and the routes between them.

Every change raises the tenant's registry_version in the same transaction; the tenant's row is the lock that orders them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store import filters, unschedulable
from dispatcher.store.database import Connection, Database
from dispatcher.store.filters import FilterRow
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class LabelsWith:
    """What an endpoint's labels would be with others: so many, and whether that changes them."""

    count: int
    news: bool


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant and the version of its registry."""

    id: int
    slug: str
    registry_version: int


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint with the manifest (JSON text) and URL of its current version."""

    id: str
    name: str
    version: str
    url: str
    manifest: str
    slots: int
    durable_slots: int | None
    labels: str
    auth_sealed: bytes | None
    static: bool
    paused: bool
    draining: bool
    circuit: str
    circuit_code: str | None
    circuit_since: datetime | None
    probe_at: datetime | None
    probes: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SecretRow:
    """One of an endpoint's signing secrets, the highest number the newest; `not_after` None means current."""

    endpoint_id: str
    number: int
    sealed: bytes
    created_at: datetime
    not_after: datetime | None


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """A workflow with the definition (JSON text) of its current version."""

    id: int
    name: str
    version: int
    definition: str
    created_at: datetime
    updated_at: datetime
    paused_at: datetime | None
    queue_ttl_ms: int | None
    on_schedule: str
    asks: bool
    aside: str | None
    resuming: bool


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a workflow."""

    number: int
    checksum: str
    definition: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EndpointVersionRow:
    """One version of an endpoint; its content never changes."""

    version: str
    url: str
    manifest: str
    registered_at: datetime
    retired_at: datetime | None


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint that serves a workflow."""

    workflow_id: int
    endpoint_id: str


@dataclass(frozen=True, slots=True)
class Probe:
    """An endpoint whose open circuit is due for a try."""

    tenant_id: int
    endpoint_id: str
    probes: int


TENANTS = Statement("select id, slug, registry_version from tenants order by id", Tenant)
TENANT_BY_SLUG = Statement("select id, slug, registry_version from tenants where slug = $1", Tenant)
CREATE_TENANT = Statement(
    """
    insert into tenants (slug, name, created_at) values ($1, $2, $3)
    on conflict (slug) do update set slug = excluded.slug returning id, slug, registry_version
    """,
    Tenant,
)
HOLD = Statement("select id, slug, registry_version from tenants where id = any($1::int[]) order by id for share", Tenant)
HOLD_ALONE = "select id from tenants where id = $1 for no key update"
BUMP = "update tenants set registry_version = registry_version + 1 where id = $1 returning registry_version"

ENDPOINTS = Statement(
    """
    select e.id, e.name, e.version, v.url, v.manifest, e.slots, e.durable_slots, e.labels, e.auth_sealed, e.static, e.paused, e.draining,
           e.circuit, e.circuit_code, e.circuit_since, e.probe_at, e.probes, e.created_at, e.updated_at
    from endpoints e join endpoint_versions v on v.tenant_id = e.tenant_id and v.endpoint_id = e.id and v.version = e.version
    where e.tenant_id = $1 and ($2::text is null or e.name = $2) order by e.name
    """,
    EndpointRow,
)
SECRETS = Statement(
    """
    select endpoint_id, number, sealed, created_at, not_after from endpoint_secrets
    where tenant_id = $1 and ($2::text is null or endpoint_id = $2) order by endpoint_id, number desc
    """,
    SecretRow,
)
WORKFLOWS = Statement(
    """
    select w.id, w.name, w.version, v.definition, w.created_at, w.updated_at, w.paused_at, w.queue_ttl_ms, w.on_schedule, w.asks, w.aside,
           exists (select from renewals n where n.tenant_id = $1 and n.workflow_id = w.id and n.late_at is null) as resuming
    from workflows w join workflow_versions v on v.tenant_id = w.tenant_id and v.workflow_id = w.id and v.number = w.version
    where w.tenant_id = $1 and ($2::text is null or w.name = $2) and w.removed_at is null order by w.name
    """,
    WorkflowRow,
)
WORKFLOW_VERSIONS = Statement(
    """
    select number, checksum, definition, created_at from workflow_versions
    where tenant_id = $1 and workflow_id = $2 and ($3::int is null or number = $3) order by number desc
    """,
    VersionRow,
)
ENDPOINT_VERSIONS = Statement(
    """
    select version, url, manifest, registered_at, retired_at from endpoint_versions
    where tenant_id = $1 and endpoint_id = $2 order by registered_at desc, version
    """,
    EndpointVersionRow,
)
ROUTES = Statement("select workflow_id, endpoint_id from routes where tenant_id = $1 order by workflow_id, endpoint_id", Route)

PUT_ENDPOINT = """
    insert into endpoints as e (tenant_id, id, name, version, slots, labels, auth_sealed, static, created_at, updated_at, registered_at,
                                durable_slots)
    values ($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9, $9, $9, $10)
    on conflict (tenant_id, name) do update
    set version = excluded.version, slots = excluded.slots, labels = excluded.labels, auth_sealed = excluded.auth_sealed,
        static = excluded.static, updated_at = excluded.updated_at, registered_at = excluded.registered_at,
        durable_slots = excluded.durable_slots,
        circuit = 'closed', circuit_code = null, circuit_since = null, probe_at = null, probes = 0
    returning id
"""
PUT_VERSION = """
    insert into endpoint_versions as v (tenant_id, endpoint_id, version, url, manifest, registered_at)
    values ($1, $2, $3, $4, $5::jsonb, $6)
    on conflict (tenant_id, endpoint_id, version) do update set url = excluded.url, retired_at = null
        where v.manifest -> 'handlers' = excluded.manifest -> 'handlers'
    returning version
"""
UPDATE_MANIFEST = "update endpoint_versions set manifest = $4::jsonb where tenant_id = $1 and endpoint_id = $2 and version = $3"
ADD_SECRET = """
    insert into endpoint_secrets (tenant_id, endpoint_id, number, sealed, created_at)
    select $1, $2, coalesce(max(number), 0) + 1, $3, $4 from endpoint_secrets where tenant_id = $1 and endpoint_id = $2
"""
END_SECRETS = """
    update endpoint_secrets set not_after = $3 where tenant_id = $1 and endpoint_id = $2 and not_after is null
"""
UNDO_ROTATION = """
    with newest as (
        delete from endpoint_secrets where tenant_id = $1 and endpoint_id = $2 and not_after is null
    )
    update endpoint_secrets set not_after = null where tenant_id = $1 and endpoint_id = $2 and number = (
        select max(number) from endpoint_secrets where tenant_id = $1 and endpoint_id = $2 and not_after is not null
    )
"""
RUNNING_AT = """
    select count(*) from tasks
    where tenant_id = $1 and ((endpoint_id = $2 and state = 'running') or (pin_endpoint = $2 and state <> 'settled'))
"""
DROP_SECRETS = "delete from endpoint_secrets where tenant_id = $1 and endpoint_id = $2 and not_after <= $3"
PUT_WORKFLOW = """
    insert into workflows as w (tenant_id, name, version, created_at, updated_at) values ($1, $2, 0, $3, $3)
    on conflict (tenant_id, name) do update set updated_at = w.updated_at, removed_at = null returning id
"""
PUT_WORKFLOW_VERSION = """
    insert into workflow_versions as v (tenant_id, workflow_id, number, checksum, definition, created_at)
    select $1, $2, coalesce(max(number), 0) + 1, $3, $4::jsonb, $5 from workflow_versions where tenant_id = $1 and workflow_id = $2
    on conflict (tenant_id, workflow_id, checksum) do update set checksum = excluded.checksum returning number
"""
SET_WORKFLOW_VERSION = """
    update workflows set version = $3, updated_at = $4 where tenant_id = $1 and id = $2 and version <> $3
"""
MARK_ASKING = "update workflows set asks = true where tenant_id = $1 and id = $2 and not asks"
MARK_SERVED_ASKING = """
    update workflows w set asks = true
    from routes r where r.tenant_id = $1 and r.endpoint_id = $2 and w.tenant_id = $1 and w.id = r.workflow_id and not w.asks
"""
ADD_ROUTE = "insert into routes (tenant_id, workflow_id, endpoint_id) values ($1, $2, $3) on conflict do nothing"
DROP_ROUTES = "delete from routes where tenant_id = $1 and endpoint_id = $2 and workflow_id <> all($3::int[])"
PATCH_ENDPOINT = """
    update endpoints set paused = coalesce($3, paused), slots = coalesce($4, slots), labels = coalesce($5::jsonb, labels), updated_at = $6,
        durable_slots = case when durable_slots is not null then coalesce($7, durable_slots) end, draining = coalesce($8, draining)
    where tenant_id = $1 and id = $2
"""
RELABEL = """
    update endpoints set labels = jsonb_strip_nulls(labels || $3::jsonb), updated_at = $4 where tenant_id = $1 and id = $2
"""
LABELS_WITH = Statement(
    """
    select (select count(*) from jsonb_object_keys(jsonb_strip_nulls(e.labels || $3::jsonb)))::int as count,
           e.labels is distinct from jsonb_strip_nulls(e.labels || $3::jsonb) as news
    from endpoints e where e.tenant_id = $1 and e.id = $2
    """,
    LabelsWith,
)
DELETE_ENDPOINT = "delete from endpoints where tenant_id = $1 and id = $2"
# An endpoint that answers a probe may still be broken: it keeps its count of probes until it has done some work, so that each relapse
# waits longer.
SET_CIRCUIT = """
    update endpoints set circuit = $3, circuit_code = $4, circuit_since = case when $3 <> 'closed' then $5::timestamptz end,
        probe_at = $6
    where tenant_id = $1 and id = $2 and circuit <> $3 and circuit <> 'retired'
    returning id
"""
# The next probe is moved on in the statement that takes this one, so that two dispatchers never take the same.
DUE_PROBES = Statement(
    """
    update endpoints set probes = probes + 1, probe_at = $2
    where (tenant_id, id) in (
        select tenant_id, id from endpoints where probe_at <= $1 order by probe_at limit 20 for update skip locked
    )
    returning tenant_id, id as endpoint_id, probes
    """,
    Probe,
)
RECOVERED = "update endpoints set probes = 0 where tenant_id = $1 and id = $2 and circuit = 'closed' and probes > 0 returning id"
SCHEDULE_PROBE = "update endpoints set probe_at = $3 where tenant_id = $1 and id = $2 and circuit = 'open'"


@dataclass(frozen=True, slots=True)
class Registered:
    """Everything one tenant has registered, read in one snapshot."""

    tenant: Tenant
    endpoints: list[EndpointRow]
    secrets: list[SecretRow]
    workflows: list[WorkflowRow]
    routes: list[Route]
    filters: list[FilterRow]
    returning: list[int]


async def tenants(db: Database) -> list[Tenant]:
    """All tenants with their registry versions."""
    return TENANTS.read(await db.fetch(TENANTS.sql))


async def tenant_by_slug(db: Database, slug: str) -> Tenant | None:
    """A tenant by its slug."""
    return TENANT_BY_SLUG.first(await db.fetch(TENANT_BY_SLUG.sql, slug))


async def create_tenant(db: Database, slug: str, name: str, now: datetime) -> Tenant:
    """Make a tenant; answers the existing one where the slug is taken."""
    return CREATE_TENANT.read(await db.fetch(CREATE_TENANT.sql, slug, name, now))[0]


async def load(db: Database, tenant: Tenant) -> Registered:
    """One tenant's registry. The tenant, and so its version, was read before: what is read now is at least as new."""
    return Registered(
        tenant,
        ENDPOINTS.read(await db.fetch(ENDPOINTS.sql, tenant.id, None)),
        SECRETS.read(await db.fetch(SECRETS.sql, tenant.id, None)),
        WORKFLOWS.read(await db.fetch(WORKFLOWS.sql, tenant.id, None)),
        ROUTES.read(await db.fetch(ROUTES.sql, tenant.id)),
        await filters.every(db, tenant.id),
        await unschedulable.returning(db, tenant.id),
    )


async def mark_asking(conn: Connection, tenant_id: int, workflow_id: int) -> None:
    """Note that tasks of a workflow may ask something of the endpoint they run at."""
    await conn.execute(MARK_ASKING, tenant_id, workflow_id)


async def mark_served_asking(conn: Connection, tenant_id: int, endpoint_id: str) -> None:
    """The same of all workflows that an endpoint serves."""
    await conn.execute(MARK_SERVED_ASKING, tenant_id, endpoint_id)


async def bump(conn: Connection, tenant_id: int) -> int:
    """Take the tenant's registry lock for this transaction and raise its version."""
    return int(await conn.fetchval(BUMP, tenant_id))


async def hold(conn: Connection, tenant_ids: Sequence[int]) -> dict[int, int]:
    """Keep registries as they are until the end of the transaction; answers their versions."""
    return {tenant.id: tenant.registry_version for tenant in HOLD.read(await conn.fetch(HOLD.sql, list(tenant_ids)))}


async def hold_alone(conn: Connection, tenant_id: int) -> None:
    """Keep everybody else from changing what a tenant has, until the end of the transaction."""
    await conn.execute(HOLD_ALONE, tenant_id)


async def endpoint(db: Database | Connection, tenant_id: int, name: str) -> EndpointRow | None:
    """An endpoint by name."""
    return ENDPOINTS.first(await db.fetch(ENDPOINTS.sql, tenant_id, name))


async def secrets(db: Database | Connection, tenant_id: int, endpoint_id: str) -> list[SecretRow]:
    """An endpoint's secrets, newest first."""
    return SECRETS.read(await db.fetch(SECRETS.sql, tenant_id, endpoint_id))


async def workflow(db: Database, tenant_id: int, name: str) -> WorkflowRow | None:
    """A workflow by name."""
    return WORKFLOWS.first(await db.fetch(WORKFLOWS.sql, tenant_id, name))


async def workflow_versions(db: Database, tenant_id: int, workflow_id: int) -> list[VersionRow]:
    """A workflow's versions, newest first."""
    return WORKFLOW_VERSIONS.read(await db.fetch(WORKFLOW_VERSIONS.sql, tenant_id, workflow_id, None))


async def workflow_version(db: Database, tenant_id: int, workflow_id: int, number: int) -> VersionRow:
    """One of a workflow's versions. It is asked for within transactions, and not by the lane that those may have filled: all of them would
    wait for each other.
    """
    (row,) = WORKFLOW_VERSIONS.read(await db.fetch(WORKFLOW_VERSIONS.sql, tenant_id, workflow_id, number, lane="settle"))
    return row


async def endpoint_versions(db: Database, tenant_id: int, endpoint_id: str) -> list[EndpointVersionRow]:
    """An endpoint's versions, newest first."""
    return ENDPOINT_VERSIONS.read(await db.fetch(ENDPOINT_VERSIONS.sql, tenant_id, endpoint_id))


@dataclass(frozen=True, slots=True)
class EndpointPut:
    """An endpoint as it shall be; `id` is used only if the name is new."""

    tenant_id: int
    id: str
    name: str
    version: str
    url: str
    manifest: str
    slots: int
    labels: str
    auth_sealed: bytes | None
    static: bool
    durable_slots: int | None = None


async def put_endpoint(conn: Connection, put: EndpointPut, now: datetime) -> bool | None:
    """Write an endpoint and its version, and close its circuit.

    False when that version exists with other handlers; None when the name has meanwhile been registered under another id.
    """
    row = (put.tenant_id, put.id, put.name, put.version, put.slots, put.labels, put.auth_sealed, put.static, now, put.durable_slots)
    if await conn.fetchval(PUT_ENDPOINT, *row) != put.id:
        return None
    landed = await conn.fetchval(PUT_VERSION, put.tenant_id, put.id, put.version, put.url, put.manifest, now)
    if landed is not None:
        await conn.execute(UPDATE_MANIFEST, put.tenant_id, put.id, put.version, put.manifest)
    return landed is not None


async def add_secret(conn: Connection, tenant_id: int, endpoint_id: str, sealed: bytes, now: datetime) -> None:
    """Give an endpoint a new current secret."""
    await conn.execute(ADD_SECRET, tenant_id, endpoint_id, sealed, now)


async def end_secrets(conn: Connection, tenant_id: int, endpoint_id: str, not_after: datetime, now: datetime) -> None:
    """Let current secrets sign until `not_after`, and forget those whose time is over."""
    await conn.execute(DROP_SECRETS, tenant_id, endpoint_id, now)
    await conn.execute(END_SECRETS, tenant_id, endpoint_id, not_after)


async def undo_rotation(conn: Connection, tenant_id: int, endpoint_id: str) -> None:
    """Forget the current secret and make the one before it current again."""
    await conn.execute(UNDO_ROTATION, tenant_id, endpoint_id)


async def running_at(db: Database, tenant_id: int, endpoint_id: str) -> int:
    """Attempts running at an endpoint, and durable tasks that go on at one of its versions."""
    return int(await db.fetchval(RUNNING_AT, tenant_id, endpoint_id))


async def put_workflow(conn: Connection, tenant_id: int, name: str, checksum: str, definition: str, now: datetime) -> int:
    """Make `definition` a workflow's current version, a new one only if its content is new; answers the workflow's id."""
    workflow_id = int(await conn.fetchval(PUT_WORKFLOW, tenant_id, name, now))
    number = await conn.fetchval(PUT_WORKFLOW_VERSION, tenant_id, workflow_id, checksum, definition, now)
    await conn.execute(SET_WORKFLOW_VERSION, tenant_id, workflow_id, number, now)
    return workflow_id


async def set_routes(conn: Connection, tenant_id: int, endpoint_id: str, workflow_ids: Sequence[int]) -> None:
    """Let an endpoint serve exactly these workflows."""
    await conn.execute(DROP_ROUTES, tenant_id, endpoint_id, list(workflow_ids))
    for workflow_id in workflow_ids:
        await conn.execute(ADD_ROUTE, tenant_id, workflow_id, endpoint_id)


async def patch_endpoint(
    conn: Connection,
    tenant_id: int,
    endpoint_id: str,
    paused: bool | None,
    slots: int | None,
    labels: str | None,
    now: datetime,
    durable_slots: int | None = None,
    draining: bool | None = None,
) -> None:
    """Change what is given."""
    await conn.execute(PATCH_ENDPOINT, tenant_id, endpoint_id, paused, slots, labels, now, durable_slots, draining)


async def relabel(conn: Connection, tenant_id: int, endpoint_id: str, labels: str, now: datetime) -> None:
    """Change some of an endpoint's labels, and take away those that are null."""
    await conn.execute(RELABEL, tenant_id, endpoint_id, labels, now)


async def labels_with(db: Database, tenant_id: int, endpoint_id: str, labels: str) -> tuple[int, bool]:
    """How many labels an endpoint would have with these, and whether they would be others; none and no where it is gone."""
    found = LABELS_WITH.first(await db.fetch(LABELS_WITH.sql, tenant_id, endpoint_id, labels))
    return (found.count, found.news) if found is not None else (0, False)


async def delete_endpoint(conn: Connection, tenant_id: int, endpoint_id: str) -> None:
    """Remove an endpoint with its versions, secrets, routes and grants. Its attempts stay in history."""
    await conn.execute(DELETE_ENDPOINT, tenant_id, endpoint_id)


async def set_circuit(
    conn: Connection, tenant_id: int, endpoint_id: str, circuit: str, code: str | None, now: datetime, probe_at: datetime | None
) -> bool:
    """Change an endpoint's circuit; False when it already was so, or is retired (only a registration undoes that)."""
    return bool(await conn.fetch(SET_CIRCUIT, tenant_id, endpoint_id, circuit, code, now, probe_at))


async def recovered(conn: Connection, tenant_id: int, endpoint_id: str) -> bool:
    """Forget the probes of an endpoint that works again; False when there was nothing to forget."""
    return bool(await conn.fetch(RECOVERED, tenant_id, endpoint_id))


async def due_probes(db: Database, now: datetime, again_at: datetime) -> list[Probe]:
    """Take the probes that are due; each is due again at `again_at` unless scheduled otherwise."""
    return DUE_PROBES.read(await db.fetch(DUE_PROBES.sql, now, again_at))


async def schedule_probe(db: Database, tenant_id: int, endpoint_id: str, at: datetime) -> None:
    """Set when an open circuit is tried next."""
    await db.execute(SCHEDULE_PROBE, tenant_id, endpoint_id, at)
