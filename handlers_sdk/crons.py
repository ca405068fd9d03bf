"""Crons: runs at every tick of an expression, declared with a workflow or managed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from handlers_sdk import wire
from handlers_sdk.api import Api
from handlers_sdk.errors import ConfigError
from handlers_sdk.listing import Params, given, listed
from handlers_sdk.portal import PORTAL
from handlers_sdk.refs import WorkflowRunRef
from handlers_sdk.resources import CronWorkflowsOrderByField, ResourceMetadata, WorkflowRunOrderByDirection, in_order
from handlers_sdk.schemas import dump_json

Missed = Literal["skip", "run_once", "run_all"]


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """A cron that comes with a workflow, where `on_crons` has more to say than the expression.

    `timezone` is a name of the IANA database. `missed` is what becomes of ticks while no dispatcher ran: left out, made up for by one run,
    or by one each. `name` tells crons of one expression apart.
    """

    expression: str
    timezone: str | None = None
    name: str | None = None
    input: Mapping[str, Any] | None = None
    additional_metadata: Mapping[str, Any] | None = None
    priority: int | None = None
    missed: Missed | None = None

    def entry(self) -> wire.CronEntry:
        """What the manifest says of it."""
        entry: dict[str, Any] = {
            "expression": self.expression,
            "timezone": self.timezone,
            "name": self.name,
            "input": dict(self.input) if self.input is not None else None,
            "metadata": dict(self.additional_metadata) if self.additional_metadata is not None else None,
            "priority": self.priority,
            "missed": self.missed,
        }
        said: wire.CronEntry = {name: value for name, value in entry.items() if value is not None}  # type: ignore[assignment]
        return said


def cron_entries(crons: Sequence[str | CronTrigger]) -> list[str | wire.CronEntry]:
    """`on_crons` as the manifest has it; ConfigError for what cannot be one. Whether it can be read, the dispatcher says."""
    for cron in crons:
        expression = cron if isinstance(cron, str) else cron.expression
        if not expression.strip().startswith("@") and len(expression.split()) not in (5, 6):
            raise ConfigError(f"on_crons: {expression!r} is no cron expression; it has 5 fields, or 6 with seconds first")
    return [cron if isinstance(cron, str) else cron.entry() for cron in crons]


class CronWorkflows(BaseModel):
    """A cron; `declared` says that it comes with its workflow. `description` is the expression in words."""

    model_config = ConfigDict(extra="allow")

    id: str
    workflow: str
    name: str
    expression: str
    timezone: str = "UTC"
    description: str = ""
    input: Any = None
    additional_metadata: dict[str, Any] | None = Field(default=None, validation_alias="metadata")
    priority: int | None = None
    missed: str = "skip"
    enabled: bool = True
    declared: bool = False
    next_at: datetime | None = None
    next_runs: list[datetime] = Field(default_factory=list)
    last_at: datetime | None = None
    last_run_id: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def metadata(self) -> ResourceMetadata:
        """Its id and age, as `cron.metadata.id`."""
        return ResourceMetadata(self.id, self.created_at, self.updated_at)

    @property
    def cron(self) -> str:
        """The expression."""
        return self.expression

    @property
    def workflow_name(self) -> str:
        """The workflow it starts."""
        return self.workflow


class CronWorkflowsList(BaseModel):
    """Crons, newest first."""

    rows: list[CronWorkflows]


class CronClient:
    """`dispatcher.cron`. A workflow's id is its name. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def create(
        self,
        workflow_name: str,
        cron_name: str,
        expression: str,
        input: Mapping[str, Any] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        *,
        timezone: str | None = None,
        missed: Missed | None = None,
    ) -> CronWorkflows:
        """Make a cron; the first run is at its next tick. `timezone` is an IANA name, UTC unless given."""
        body = cron_body(cron_name, expression, input, additional_metadata, priority, timezone, missed)
        return PORTAL.call(create_cron(self._api, self._api.config.namespaced(workflow_name), body))

    async def aio_create(
        self,
        workflow_name: str,
        cron_name: str,
        expression: str,
        input: Mapping[str, Any] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        *,
        timezone: str | None = None,
        missed: Missed | None = None,
    ) -> CronWorkflows:
        """Make a cron; the first run is at its next tick. `timezone` is an IANA name, UTC unless given."""
        body = cron_body(cron_name, expression, input, additional_metadata, priority, timezone, missed)
        return await PORTAL.aio_call(create_cron(self._api, self._api.config.namespaced(workflow_name), body))

    def get(self, cron_id: str) -> CronWorkflows:
        """A cron by its id, with the ticks to come in `next_runs`."""
        return PORTAL.call(self._get(cron_id))

    async def aio_get(self, cron_id: str) -> CronWorkflows:
        """A cron by its id, with the ticks to come in `next_runs`."""
        return await PORTAL.aio_call(self._get(cron_id))

    def list(
        self,
        offset: int | None = None,
        limit: int | None = None,
        workflow_id: str | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        order_by_field: CronWorkflowsOrderByField | None = None,
        order_by_direction: WorkflowRunOrderByDirection | None = None,
        workflow_name: str | None = None,
        cron_name: str | None = None,
        enabled: bool | None = None,
    ) -> CronWorkflowsList:
        """Crons, declared ones among them, newest first unless put in another order: all that match, unless a limit is given."""
        wanted = self._wanted(workflow_name or workflow_id, additional_metadata, cron_name, enabled)
        return PORTAL.call(self._list(offset or 0, limit, wanted, order_by_field, order_by_direction))

    async def aio_list(
        self,
        offset: int | None = None,
        limit: int | None = None,
        workflow_id: str | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        order_by_field: CronWorkflowsOrderByField | None = None,
        order_by_direction: WorkflowRunOrderByDirection | None = None,
        workflow_name: str | None = None,
        cron_name: str | None = None,
        enabled: bool | None = None,
    ) -> CronWorkflowsList:
        """Crons, declared ones among them, newest first unless put in another order: all that match, unless a limit is given."""
        wanted = self._wanted(workflow_name or workflow_id, additional_metadata, cron_name, enabled)
        return await PORTAL.aio_call(self._list(offset or 0, limit, wanted, order_by_field, order_by_direction))

    def enable(self, cron_id: str) -> CronWorkflows:
        """Let a cron tick again, from now on."""
        return PORTAL.call(self._update(cron_id, enabled=True))

    async def aio_enable(self, cron_id: str) -> CronWorkflows:
        """Let a cron tick again, from now on."""
        return await PORTAL.aio_call(self._update(cron_id, enabled=True))

    def disable(self, cron_id: str) -> CronWorkflows:
        """Stop a cron; ticks that pass meanwhile are not made up for."""
        return PORTAL.call(self._update(cron_id, enabled=False))

    async def aio_disable(self, cron_id: str) -> CronWorkflows:
        """Stop a cron; ticks that pass meanwhile are not made up for."""
        return await PORTAL.aio_call(self._update(cron_id, enabled=False))

    def trigger(self, cron_id: str) -> WorkflowRunRef[Any]:
        """Start a run now with what the cron gives its runs; its ticks stay as they are."""
        return PORTAL.call(self._trigger(cron_id))

    async def aio_trigger(self, cron_id: str) -> WorkflowRunRef[Any]:
        """Start a run now with what the cron gives its runs; its ticks stay as they are."""
        return await PORTAL.aio_call(self._trigger(cron_id))

    def delete(self, cron_id: str) -> None:
        """Remove a cron; the runs it has started go on."""
        PORTAL.call(self._delete(cron_id))

    async def aio_delete(self, cron_id: str) -> None:
        """Remove a cron; the runs it has started go on."""
        await PORTAL.aio_call(self._delete(cron_id))

    async def _get(self, cron_id: str) -> CronWorkflows:
        _, found = await self._api.request("GET", _path(cron_id), repeatable=True)
        return CronWorkflows.model_validate(found)

    def _wanted(self, workflow: str | None, metadata: Mapping[str, Any] | None, name: str | None, enabled: bool | None) -> Params:
        return given(
            workflow=self._api.config.namespaced(workflow) if workflow is not None else None,
            name=name,
            enabled=str(enabled).lower() if enabled is not None else None,
            metadata=[f"{key}:{value}" for key, value in metadata.items()] if metadata is not None else None,
        )

    async def _list(
        self,
        offset: int,
        limit: int | None,
        wanted: Params,
        field: CronWorkflowsOrderByField | None,
        direction: WorkflowRunOrderByDirection | None,
    ) -> CronWorkflowsList:
        end = None if limit is None else offset + limit
        rows = await listed(self._api, "/v1/crons", wanted, end if field is None and direction is None else None)
        crons = in_order([CronWorkflows.model_validate(row) for row in rows], field, direction)
        return CronWorkflowsList(rows=crons[offset:end])

    async def _update(self, cron_id: str, **changes: Any) -> CronWorkflows:
        _, changed = await self._api.request("PATCH", _path(cron_id), content=dump_json(changes, "input"), repeatable=True)
        return CronWorkflows.model_validate(changed)

    async def _trigger(self, cron_id: str) -> WorkflowRunRef[Any]:
        _, run = await self._api.request("POST", f"{_path(cron_id)}/trigger")
        return WorkflowRunRef(self._api, run["id"], lambda output: output)

    async def _delete(self, cron_id: str) -> None:
        await self._api.request("DELETE", _path(cron_id))


async def create_cron(api: Api, workflow: str, body: Mapping[str, Any]) -> CronWorkflows:
    """Make a cron of a workflow by its full name."""
    _, made = await api.request("POST", "/v1/crons", content=dump_json({"workflow": workflow, **body}, "input"))
    return CronWorkflows.model_validate(made)


def cron_body(
    name: str,
    expression: str,
    input: Any,
    metadata: Mapping[str, Any] | None,
    priority: int | None,
    timezone: str | None,
    missed: str | None,
) -> dict[str, Any]:
    """A cron as the dispatcher takes it, without its workflow."""
    members = {
        "name": name,
        "expression": expression,
        "input": input,
        "metadata": metadata,
        "priority": priority,
        "timezone": timezone,
        "missed": missed,
    }
    return {member: value for member, value in members.items() if value is not None}


def _path(cron_id: str) -> str:
    return f"/v1/crons/{quote(cron_id, safe='')}"
