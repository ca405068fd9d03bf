"""/v1/workflows: what can be run, and what starts it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Raw

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.engine.definitions import NAME
from dispatcher.errors import problem
from dispatcher.store import catalog, registry
from dispatcher.store.catalog import WorkflowState


class WorkflowView(msgspec.Struct, frozen=True):
    """A workflow: what starts it beside calls by name, and which endpoints serve it."""

    name: str
    version: int
    description: str
    on_events: list[str]
    endpoints: list[str]
    created_at: datetime
    updated_at: datetime


class WorkflowVersionView(msgspec.Struct, frozen=True):
    """One version of a workflow; its definition never changes."""

    number: int
    checksum: str
    definition: Raw
    created_at: datetime


class WorkflowDetail(WorkflowView, frozen=True):
    """A workflow with its definition, and the versions before it."""

    definition: Raw
    versions: list[WorkflowVersionView]


class WorkflowPage(msgspec.Struct, frozen=True):
    """Workflows by name."""

    rows: list[WorkflowView]
    next_cursor: str | None


class _Definition(msgspec.Struct):
    description: str = ""
    on_events: list[str] = []


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
    return json_answer(200, WorkflowDetail(**_members(row), definition=Raw(row.definition), versions=versions))


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
    }


ROUTES: Final = (
    Route("GET", "/v1/workflows", list_workflows, "endpoints:read", {200: WorkflowPage}, PageQuery),
    Route("GET", "/v1/workflows/{name}", get_workflow, "endpoints:read", {200: WorkflowDetail}, problems=("unknown_workflow",)),
)
