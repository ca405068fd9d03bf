"""Schedules: runs at one moment each, and the client that manages them."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from handlers_sdk.api import Api
from handlers_sdk.durations import format_duration
from handlers_sdk.listing import Params, given, listed, moment
from handlers_sdk.portal import PORTAL
from handlers_sdk.resources import ResourceMetadata, ScheduledWorkflowsOrderByField, WorkflowRunOrderByDirection, in_order
from handlers_sdk.schemas import dump_json


class ScheduledRunStatus(StrEnum):
    """What has become of a schedule. What has become of the run of a started one, the run says."""

    SCHEDULED = "scheduled"
    STARTED = "started"
    MISSED = "missed"
    DROPPED = "dropped"


class ScheduledWorkflows(BaseModel):
    """A schedule; `run_id` is its run once it is started."""

    model_config = ConfigDict(extra="allow")

    id: str
    workflow: str
    status: str
    run_at: datetime
    input: Any = None
    additional_metadata: dict[str, Any] | None = Field(default=None, validation_alias="metadata")
    priority: int | None = None
    run_id: str | None = None
    settled_at: datetime | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def metadata(self) -> ResourceMetadata:
        """Its id and age, as `schedule.metadata.id`."""
        return ResourceMetadata(self.id, self.created_at, self.updated_at)

    @property
    def trigger_at(self) -> datetime:
        """When it runs."""
        return self.run_at

    @property
    def workflow_name(self) -> str:
        """The workflow it starts."""
        return self.workflow


class ScheduledWorkflowsList(BaseModel):
    """Schedules, newest first."""

    rows: list[ScheduledWorkflows]


@dataclass(frozen=True, slots=True)
class ScheduledWorkflowsBulkUpdateItem:
    """A schedule and its new moment."""

    id: str
    trigger_at: datetime


class ScheduledWorkflowsBulkResponse(BaseModel):
    """The ids that were changed, and a problem document with its `id` for each that was not."""

    ids: list[str]
    errors: list[dict[str, Any]] = Field(default_factory=list)


class ScheduledClient:
    """`dispatcher.scheduled`. A workflow's id is its name. A moment without a zone is local time. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def create(
        self,
        workflow_name: str,
        trigger_at: datetime | timedelta,
        input: Mapping[str, Any] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> ScheduledWorkflows:
        """Schedule a run, at a moment or so long from now."""
        body = schedule_body(trigger_at, input, additional_metadata, priority)
        return PORTAL.call(create_schedule(self._api, self._api.config.namespaced(workflow_name), body))

    async def aio_create(
        self,
        workflow_name: str,
        trigger_at: datetime | timedelta,
        input: Mapping[str, Any] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> ScheduledWorkflows:
        """Schedule a run, at a moment or so long from now."""
        body = schedule_body(trigger_at, input, additional_metadata, priority)
        return await PORTAL.aio_call(create_schedule(self._api, self._api.config.namespaced(workflow_name), body))

    def get(self, scheduled_id: str) -> ScheduledWorkflows:
        """A schedule by its id."""
        return PORTAL.call(self._get(scheduled_id))

    async def aio_get(self, scheduled_id: str) -> ScheduledWorkflows:
        """A schedule by its id."""
        return await PORTAL.aio_call(self._get(scheduled_id))

    def list(
        self,
        offset: int | None = None,
        limit: int | None = None,
        workflow_id: str | None = None,
        parent_workflow_run_id: str | None = None,
        statuses: Sequence[ScheduledRunStatus | str] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        order_by_field: ScheduledWorkflowsOrderByField | None = None,
        order_by_direction: WorkflowRunOrderByDirection | None = None,
    ) -> ScheduledWorkflowsList:
        """Schedules, newest first unless put in another order: all that match, unless a limit is given.

        A schedule has no parent run: none matches a `parent_workflow_run_id`.
        """
        if parent_workflow_run_id is not None:
            return ScheduledWorkflowsList(rows=[])
        wanted = self._wanted(workflow_id, statuses, additional_metadata)
        return PORTAL.call(self._list(offset or 0, limit, wanted, order_by_field, order_by_direction))

    async def aio_list(
        self,
        offset: int | None = None,
        limit: int | None = None,
        workflow_id: str | None = None,
        parent_workflow_run_id: str | None = None,
        statuses: Sequence[ScheduledRunStatus | str] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
        order_by_field: ScheduledWorkflowsOrderByField | None = None,
        order_by_direction: WorkflowRunOrderByDirection | None = None,
    ) -> ScheduledWorkflowsList:
        """Schedules, newest first unless put in another order: all that match, unless a limit is given.

        A schedule has no parent run: none matches a `parent_workflow_run_id`.
        """
        if parent_workflow_run_id is not None:
            return ScheduledWorkflowsList(rows=[])
        wanted = self._wanted(workflow_id, statuses, additional_metadata)
        return await PORTAL.aio_call(self._list(offset or 0, limit, wanted, order_by_field, order_by_direction))

    def update(self, scheduled_id: str, trigger_at: datetime) -> ScheduledWorkflows:
        """Give a schedule that is still to come another moment."""
        return PORTAL.call(self._update(scheduled_id, trigger_at))

    async def aio_update(self, scheduled_id: str, trigger_at: datetime) -> ScheduledWorkflows:
        """Give a schedule that is still to come another moment."""
        return await PORTAL.aio_call(self._update(scheduled_id, trigger_at))

    def trigger(self, scheduled_id: str) -> ScheduledWorkflows:
        """Start the run of a schedule now instead of at its moment."""
        return PORTAL.call(self._trigger(scheduled_id))

    async def aio_trigger(self, scheduled_id: str) -> ScheduledWorkflows:
        """Start the run of a schedule now instead of at its moment."""
        return await PORTAL.aio_call(self._trigger(scheduled_id))

    def delete(self, scheduled_id: str) -> None:
        """Remove a schedule; a run it has started goes on."""
        PORTAL.call(self._delete(scheduled_id))

    async def aio_delete(self, scheduled_id: str) -> None:
        """Remove a schedule; a run it has started goes on."""
        await PORTAL.aio_call(self._delete(scheduled_id))

    def bulk_delete(
        self,
        scheduled_ids: Sequence[str] | None = None,
        workflow_id: str | None = None,
        parent_workflow_run_id: str | None = None,
        parent_step_run_id: str | None = None,
        statuses: Sequence[ScheduledRunStatus | str] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
    ) -> ScheduledWorkflowsBulkResponse:
        """Remove many, by their ids or by what they have in common. ValueError where neither is given.

        A schedule has no parent run: none matches a `parent_…` that is given.
        """
        if scheduled_ids is None and (parent_workflow_run_id is not None or parent_step_run_id is not None):
            return ScheduledWorkflowsBulkResponse(ids=[])
        return PORTAL.call(self._bulk("delete", self._selection(scheduled_ids, workflow_id, statuses, additional_metadata)))

    async def aio_bulk_delete(
        self,
        scheduled_ids: Sequence[str] | None = None,
        workflow_id: str | None = None,
        parent_workflow_run_id: str | None = None,
        parent_step_run_id: str | None = None,
        statuses: Sequence[ScheduledRunStatus | str] | None = None,
        additional_metadata: Mapping[str, Any] | None = None,
    ) -> ScheduledWorkflowsBulkResponse:
        """Remove many, by their ids or by what they have in common. ValueError where neither is given.

        A schedule has no parent run: none matches a `parent_…` that is given.
        """
        if scheduled_ids is None and (parent_workflow_run_id is not None or parent_step_run_id is not None):
            return ScheduledWorkflowsBulkResponse(ids=[])
        return await PORTAL.aio_call(self._bulk("delete", self._selection(scheduled_ids, workflow_id, statuses, additional_metadata)))

    def bulk_update(
        self, updates: Sequence[ScheduledWorkflowsBulkUpdateItem] | Sequence[tuple[str, datetime]]
    ) -> ScheduledWorkflowsBulkResponse:
        """Give each schedule its new moment."""
        return PORTAL.call(self._bulk("update", _updates(updates)))

    async def aio_bulk_update(
        self, updates: Sequence[ScheduledWorkflowsBulkUpdateItem] | Sequence[tuple[str, datetime]]
    ) -> ScheduledWorkflowsBulkResponse:
        """Give each schedule its new moment."""
        return await PORTAL.aio_call(self._bulk("update", _updates(updates)))

    async def _get(self, scheduled_id: str) -> ScheduledWorkflows:
        _, found = await self._api.request("GET", _path(scheduled_id), repeatable=True)
        return ScheduledWorkflows.model_validate(found)

    def _wanted(
        self, workflow: str | None, statuses: Sequence[ScheduledRunStatus | str] | None, metadata: Mapping[str, Any] | None
    ) -> Params:
        return given(
            workflow=self._api.config.namespaced(workflow) if workflow is not None else None,
            status=[str(status).lower() for status in statuses] if statuses is not None else None,
            metadata=[f"{key}:{value}" for key, value in metadata.items()] if metadata is not None else None,
        )

    async def _list(
        self,
        offset: int,
        limit: int | None,
        wanted: Params,
        field: ScheduledWorkflowsOrderByField | None,
        direction: WorkflowRunOrderByDirection | None,
    ) -> ScheduledWorkflowsList:
        end = None if limit is None else offset + limit
        rows = await listed(self._api, "/v1/schedules", wanted, end if field is None and direction is None else None)
        schedules = in_order([ScheduledWorkflows.model_validate(row) for row in rows], field, direction)
        return ScheduledWorkflowsList(rows=schedules[offset:end])

    async def _update(self, scheduled_id: str, trigger_at: datetime) -> ScheduledWorkflows:
        content = dump_json({"run_at": moment(trigger_at)})
        _, changed = await self._api.request("PATCH", _path(scheduled_id), content=content, repeatable=True)
        return ScheduledWorkflows.model_validate(changed)

    async def _trigger(self, scheduled_id: str) -> ScheduledWorkflows:
        _, started = await self._api.request("POST", f"{_path(scheduled_id)}/trigger")
        return ScheduledWorkflows.model_validate(started)

    async def _delete(self, scheduled_id: str) -> None:
        await self._api.request("DELETE", _path(scheduled_id))

    async def _bulk(self, action: str, body: Mapping[str, Any]) -> ScheduledWorkflowsBulkResponse:
        _, changed = await self._api.request("POST", f"/v1/schedules/{action}", content=dump_json(body))
        return ScheduledWorkflowsBulkResponse.model_validate(changed)

    def _selection(
        self,
        ids: Sequence[str] | None,
        workflow: str | None,
        statuses: Sequence[ScheduledRunStatus | str] | None,
        metadata: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        if ids is not None:
            return {"ids": builtins.list(ids)}
        wanted: dict[str, Any] = given(
            workflow=self._api.config.namespaced(workflow) if workflow is not None else None,
            status=[str(status).lower() for status in statuses] if statuses else None,
        )
        if metadata:
            wanted["metadata"] = dict(metadata)
        if not wanted:
            raise ValueError("say which: scheduled_ids, or a filter")
        return {"filter": wanted}


async def create_schedule(api: Api, workflow: str, body: Mapping[str, Any]) -> ScheduledWorkflows:
    """Schedule a run of a workflow by its full name."""
    _, made = await api.request("POST", "/v1/schedules", content=dump_json({"workflow": workflow, **body}, "input"))
    return ScheduledWorkflows.model_validate(made)


def schedule_body(at: datetime | timedelta, input: Any, metadata: Mapping[str, Any] | None, priority: int | None) -> dict[str, Any]:
    """A schedule as the dispatcher takes it, without its workflow."""
    members = {
        "run_at": moment(at) if isinstance(at, datetime) else None,
        "in": format_duration(at) if isinstance(at, timedelta) else None,
        "input": input,
        "metadata": metadata,
        "priority": priority,
    }
    return {member: value for member, value in members.items() if value is not None}


def _updates(updates: Sequence[ScheduledWorkflowsBulkUpdateItem] | Sequence[tuple[str, datetime]]) -> dict[str, Any]:
    pairs = [one if isinstance(one, tuple) else (one.id, one.trigger_at) for one in updates]
    return {"updates": [{"id": scheduled_id, "run_at": moment(at)} for scheduled_id, at in pairs]}


def _path(scheduled_id: str) -> str:
    return f"/v1/schedules/{quote(scheduled_id, safe='')}"
