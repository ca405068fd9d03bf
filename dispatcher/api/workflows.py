"""/v1/workflows: what can be run, and what starts it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from dispatcher.api.decoding import duration
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.shapes import GraphView, shape
from dispatcher.engine.definitions import NAME
from dispatcher.errors import problem
from dispatcher.runtime.pausing import OnSchedule, PauseChange
from dispatcher.store import catalog, registry
from dispatcher.store.catalog import WorkflowState


class WorkflowView(msgspec.Struct, frozen=True):
    """A workflow: what starts it beside calls by name, and which endpoints serve it. One that is `resuming` is paused until all that waits
    has its schedule timeout before it again.
    """

    name: str
    version: int
    description: str
    on_events: list[str]
    endpoints: list[str]
    created_at: datetime
    updated_at: datetime
    paused: bool
    resuming: bool
    queue_ttl_ms: int | None
    on_schedule: OnSchedule


class WorkflowPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What shall be different. While a workflow is paused its tasks wait: `queue_ttl` (a duration) bounds how long, null for ever;
    `on_schedule` says what its crons and schedules do meanwhile.
    """

    paused: bool | None = None
    queue_ttl: str | UnsetType | None = UNSET
    on_schedule: OnSchedule | None = None


class WorkflowVersionView(msgspec.Struct, frozen=True):
    """One version of a workflow; its definition never changes."""

    number: int
    checksum: str
    definition: Raw
    created_at: datetime


class WorkflowDetail(WorkflowView, frozen=True):
    """A workflow with its definition, its shape, and the versions before it."""

    definition: Raw
    graph: GraphView
    versions: list[WorkflowVersionView]


class WorkflowPage(msgspec.Struct, frozen=True):
    """Workflows by name."""

    rows: list[WorkflowView]
    next_cursor: str | None


class _Definition(msgspec.Struct):
    description: str = ""
    on_events: list[str] = []


_PATCH: Final = msgspec.json.Decoder(WorkflowPatch)
_DEFINITION: Final = msgspec.json.Decoder(_Definition)


async def list_workflows(call: Call) -> Answer:
    """Workflows by name, with what starts them."""
    query: PageQuery = call.query
    after = position("workflows", query, str) or ""
    found = await catalog.workflows(call.services.database, call.tenant_id, after, query.limit + 1)
    return page("workflows", query, found, lambda row: WorkflowView(**_members(row)), lambda row: row.name)


async def get_workflow(call: Call) -> Answer:
    """A workflow with its definition and its versions."""
    name, database = call.path["name"], call.services.database
    row = await catalog.workflow(database, call.tenant_id, name) if NAME.fullmatch(name) else None
    if row is None:
        raise problem("unknown_workflow", f"there is no workflow {name[:200]!r}")
    versions = [
        WorkflowVersionView(v.number, v.checksum, Raw(v.definition), v.created_at)
        for v in await registry.workflow_versions(database, call.tenant_id, row.id)
    ]
    detail = WorkflowDetail(**_members(row), definition=Raw(row.definition), graph=shape(row.definition), versions=versions)
    return json_answer(200, detail)


async def patch_workflow(call: Call) -> Answer:
    """Pause or resume a workflow: paused, it takes runs in and hands none out."""
    body: WorkflowPatch = await call.json(_PATCH)
    ttl = None if isinstance(body.queue_ttl, UnsetType) else duration(body.queue_ttl, "queue_ttl") or timedelta(0)
    await call.services.pausing.change(call.tenant_id, call.path["name"], PauseChange(body.paused, ttl, body.on_schedule))
    return await get_workflow(call)


async def delete_workflow(call: Call) -> Answer:
    """Remove a workflow with its crons, its schedules and its filters; its finished runs stay. Registering it again brings it back."""
    await call.services.pausing.remove(call.tenant_id, call.path["name"], call.caller.token_id)
    return Answer(204, b"", ())


def _members(row: WorkflowState) -> dict[str, Any]:
    definition = _DEFINITION.decode(row.definition)
    return {
        "name": row.name,
        "version": row.version,
        "description": definition.description,
        "on_events": definition.on_events,
        "endpoints": row.endpoints,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "paused": row.paused_at is not None,
        "resuming": row.resuming,
        "queue_ttl_ms": row.queue_ttl_ms,
        "on_schedule": row.on_schedule,
    }


ROUTES: Final = (
    Route("GET", "/v1/workflows", list_workflows, "endpoints:read", {200: WorkflowPage}, PageQuery),
    Route("GET", "/v1/workflows/{name}", get_workflow, "endpoints:read", {200: WorkflowDetail}, problems=("unknown_workflow",)),
    Route(
        "PATCH", "/v1/workflows/{name}", patch_workflow, "endpoints:write", {200: WorkflowDetail}, body=WorkflowPatch,
        problems=("unknown_workflow",),
    ),
    Route(
        "DELETE", "/v1/workflows/{name}", delete_workflow, "endpoints:write", {204: None},
        problems=("unknown_workflow", "workflow_has_runs"),
    ),
)  # fmt: skip
