"""Workflows as the dispatcher knows them, and the client that reads them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from handlers_sdk.api import Api
from handlers_sdk.errors import ApiError
from handlers_sdk.listing import listed
from handlers_sdk.portal import PORTAL
from handlers_sdk.resources import ResourceMetadata


class WorkflowVersion(BaseModel):
    """One version of a workflow; its definition never changes."""

    model_config = ConfigDict(extra="allow")

    number: int
    checksum: str = ""
    definition: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None


class RegisteredWorkflow(BaseModel):
    """A workflow: what starts it beside calls by name, and which endpoints serve it. One that is read alone has its definition."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: int
    description: str = ""
    on_events: list[str] = Field(default_factory=list)
    endpoints: list[str] = Field(default_factory=list)
    definition: dict[str, Any] | None = None
    versions: list[WorkflowVersion] = Field(default_factory=list)
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def id(self) -> str:
        """What other calls name it by: its name."""
        return self.name

    @property
    def metadata(self) -> ResourceMetadata:
        """Its id and age, as `workflow.metadata.id`."""
        return ResourceMetadata(self.name, self.created_at, self.updated_at)


class WorkflowList(BaseModel):
    """Workflows by name."""

    rows: list[RegisteredWorkflow]


class WorkflowsClient:
    """`dispatcher.workflows`. A workflow's id is its name. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def get(self, workflow_id: str) -> RegisteredWorkflow:
        """A workflow with its definition and its versions."""
        return PORTAL.call(self._get(workflow_id))

    async def aio_get(self, workflow_id: str) -> RegisteredWorkflow:
        """A workflow with its definition and its versions."""
        return await PORTAL.aio_call(self._get(workflow_id))

    def get_version(self, workflow_id: str, version: int | str | None = None) -> WorkflowVersion:
        """One version of a workflow, by its number or checksum; the newest unless one is given. ApiError 404 where there is none."""
        return PORTAL.call(self._get_version(workflow_id, version))

    async def aio_get_version(self, workflow_id: str, version: int | str | None = None) -> WorkflowVersion:
        """One version of a workflow, by its number or checksum; the newest unless one is given. ApiError 404 where there is none."""
        return await PORTAL.aio_call(self._get_version(workflow_id, version))

    def list(self, workflow_name: str | None = None, limit: int | None = None, offset: int | None = None) -> WorkflowList:
        """Workflows by name: all whose name holds `workflow_name`, unless a limit is given."""
        return PORTAL.call(self._list(workflow_name, limit, offset or 0))

    async def aio_list(self, workflow_name: str | None = None, limit: int | None = None, offset: int | None = None) -> WorkflowList:
        """Workflows by name: all whose name holds `workflow_name`, unless a limit is given."""
        return await PORTAL.aio_call(self._list(workflow_name, limit, offset or 0))

    def delete(self, workflow_id: str) -> None:
        """Remove a workflow with its crons, schedules and filters. ApiError `workflow_has_runs` while any of its runs is live.

        Its finished runs stay as long as history is kept. It comes back when an endpoint that serves it is registered again.
        """
        PORTAL.call(delete_workflow(self._api, self._api.config.namespaced(workflow_id)))

    async def aio_delete(self, workflow_id: str) -> None:
        """Remove a workflow with its crons, schedules and filters. ApiError `workflow_has_runs` while any of its runs is live.

        Its finished runs stay as long as history is kept. It comes back when an endpoint that serves it is registered again.
        """
        await PORTAL.aio_call(delete_workflow(self._api, self._api.config.namespaced(workflow_id)))

    async def _get(self, name: str) -> RegisteredWorkflow:
        _, found = await self._api.request("GET", _path(self._api.config.namespaced(name)), repeatable=True)
        return RegisteredWorkflow.model_validate(found)

    async def _get_version(self, name: str, version: int | str | None) -> WorkflowVersion:
        workflow = await self._get(name)
        wanted = str(workflow.version if version is None else version)
        for one in workflow.versions:
            if wanted in (str(one.number), one.checksum):
                return one
        raise ApiError(404, {"title": "Not found", "code": "not_found", "detail": f"workflow {name} has no version {wanted}"})

    async def _list(self, name: str | None, limit: int | None, offset: int) -> WorkflowList:
        most = None if limit is None or name is not None else offset + limit
        rows = await listed(self._api, "/v1/workflows", {}, most)
        found = [row for row in rows if name is None or name in row["name"]]
        return WorkflowList.model_validate({"rows": found[offset : None if limit is None else offset + limit]})


async def delete_workflow(api: Api, name: str) -> None:
    """Remove a workflow by its full name."""
    await api.request("DELETE", _path(name))


def _path(name: str) -> str:
    return f"/v1/workflows/{quote(name, safe='')}"
