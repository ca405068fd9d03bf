"""Filters of events: which of those a workflow listens for start it, declared with it or managed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from handlers_sdk import wire
from handlers_sdk.api import Api
from handlers_sdk.errors import ConfigError
from handlers_sdk.listing import given, listed
from handlers_sdk.portal import PORTAL
from handlers_sdk.resources import ResourceMetadata
from handlers_sdk.schemas import dump_json


@dataclass(frozen=True, slots=True)
class DefaultFilter:
    """A filter that comes with a workflow: events in `scope` start it when `expression` holds, and `ctx.filter_payload` is `payload`.

    The expression is CEL over `input` (the event's data), `payload`, `additional_metadata` and `event_key`.
    """

    expression: str
    scope: str
    payload: Mapping[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.expression or not self.scope:
            raise ConfigError("a filter has an expression and a scope: DefaultFilter(expression='input.x > 1', scope='orders')")

    def entry(self) -> wire.FilterEntry:
        """What the manifest says of it."""
        entry: wire.FilterEntry = {"expression": self.expression, "scope": self.scope}
        if self.payload is not None:
            entry["payload"] = dict(self.payload)
        return entry


class V1Filter(BaseModel):
    """A filter; `declared` says that it comes with its workflow, and changes with it."""

    model_config = ConfigDict(extra="allow")

    id: str
    workflow: str
    expression: str
    scope: str
    payload: dict[str, Any] | None = None
    declared: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def metadata(self) -> ResourceMetadata:
        """Its id and age, as `filter.metadata.id`."""
        return ResourceMetadata(self.id, self.created_at, self.updated_at)

    @property
    def workflow_id(self) -> str:
        """The workflow it is of: its name."""
        return self.workflow


class V1FilterList(BaseModel):
    """Filters, the oldest first."""

    rows: list[V1Filter]


class V1UpdateFilterRequest(BaseModel):
    """What shall be different. A payload that is set to None is taken away."""

    expression: str | None = None
    scope: str | None = None
    payload: dict[str, Any] | None = None


class FiltersClient:
    """`dispatcher.filters`. A workflow's id is its name. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def create(self, workflow_id: str, expression: str, scope: str, payload: Mapping[str, Any] | None = None) -> V1Filter:
        """Make a filter; it judges every event that is pushed once this returns."""
        return PORTAL.call(self._create(workflow_id, expression, scope, payload))

    async def aio_create(self, workflow_id: str, expression: str, scope: str, payload: Mapping[str, Any] | None = None) -> V1Filter:
        """Make a filter; it judges every event that is pushed once this returns."""
        return await PORTAL.aio_call(self._create(workflow_id, expression, scope, payload))

    def get(self, filter_id: str) -> V1Filter:
        """A filter by its id."""
        return PORTAL.call(self._get(filter_id))

    async def aio_get(self, filter_id: str) -> V1Filter:
        """A filter by its id."""
        return await PORTAL.aio_call(self._get(filter_id))

    def list(
        self,
        limit: int | None = None,
        offset: int | None = None,
        workflow_ids: Sequence[str] | None = None,
        scopes: Sequence[str] | None = None,
    ) -> V1FilterList:
        """Filters, declared ones among them: all that match, unless a limit is given."""
        return PORTAL.call(self._list(limit, offset or 0, workflow_ids, scopes))

    async def aio_list(
        self,
        limit: int | None = None,
        offset: int | None = None,
        workflow_ids: Sequence[str] | None = None,
        scopes: Sequence[str] | None = None,
    ) -> V1FilterList:
        """Filters, declared ones among them: all that match, unless a limit is given."""
        return await PORTAL.aio_call(self._list(limit, offset or 0, workflow_ids, scopes))

    def update(self, filter_id: str, updates: V1UpdateFilterRequest) -> V1Filter:
        """Change what is set in `updates`."""
        return PORTAL.call(self._update(filter_id, updates))

    async def aio_update(self, filter_id: str, updates: V1UpdateFilterRequest) -> V1Filter:
        """Change what is set in `updates`."""
        return await PORTAL.aio_call(self._update(filter_id, updates))

    def delete(self, filter_id: str) -> V1Filter:
        """Remove a filter; answers what it was."""
        return PORTAL.call(self._delete(filter_id))

    async def aio_delete(self, filter_id: str) -> V1Filter:
        """Remove a filter; answers what it was."""
        return await PORTAL.aio_call(self._delete(filter_id))

    async def _create(self, workflow: str, expression: str, scope: str, payload: Mapping[str, Any] | None) -> V1Filter:
        body = {"workflow": self._api.config.namespaced(workflow), "expression": expression, "scope": scope, "payload": payload}
        _, made = await self._api.request("POST", "/v1/filters", content=dump_json(body, "input"))
        return V1Filter.model_validate(made)

    async def _get(self, filter_id: str) -> V1Filter:
        _, found = await self._api.request("GET", _path(filter_id), repeatable=True)
        return V1Filter.model_validate(found)

    async def _list(self, limit: int | None, offset: int, workflows: Sequence[str] | None, scopes: Sequence[str] | None) -> V1FilterList:
        names = [self._api.config.namespaced(name) for name in workflows] if workflows is not None else None
        wanted = given(workflow=names, scope=[*scopes] if scopes is not None else None)
        rows = await listed(self._api, "/v1/filters", wanted, None if limit is None else offset + limit)
        return V1FilterList(rows=[V1Filter.model_validate(row) for row in rows[offset:]])

    async def _update(self, filter_id: str, updates: V1UpdateFilterRequest) -> V1Filter:
        content = dump_json(updates.model_dump(exclude_unset=True), "input")
        _, changed = await self._api.request("PATCH", _path(filter_id), content=content, repeatable=True)
        return V1Filter.model_validate(changed)

    async def _delete(self, filter_id: str) -> V1Filter:
        was = await self._get(filter_id)
        await self._api.request("DELETE", _path(filter_id))
        return was


def _path(filter_id: str) -> str:
    return f"/v1/filters/{quote(filter_id, safe='')}"
