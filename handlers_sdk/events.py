"""Pushing events: messages that start the runs of every workflow that listens for their key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from handlers_sdk.api import Api
from handlers_sdk.definitions import check_priority
from handlers_sdk.errors import BulkTriggerError, DispatcherError
from handlers_sdk.listing import Params, given, listed, moment
from handlers_sdk.portal import PORTAL
from handlers_sdk.references import CALL_BYTES_MAX, upload_here
from handlers_sdk.resources import Metadata
from handlers_sdk.schemas import dump_json
from handlers_sdk.triggers import chunks, refused, send_bulk


class Event(BaseModel):
    """An event the dispatcher has stored. `runs` are those it started; `duplicate` says that its idempotency key was known already."""

    model_config = ConfigDict(extra="allow")

    event_id: str
    stream_id: str | None = None
    runs: list[Any] = Field(default_factory=list)
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class BulkPushEventWithMetadata:
    """One event of a bulk push."""

    key: str
    payload: Mapping[str, Any]
    additional_metadata: Mapping[str, Any] | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    scope: str | None = None


class FilterFailure(BaseModel):
    """A filter that could not be evaluated on an event, and so did not start its workflow."""

    model_config = ConfigDict(extra="allow")

    workflow: str
    filter_id: str
    expression: str
    code: str
    message: str


class V1Event(BaseModel):
    """An event as it is stored. `runs` counts what it started; `data` comes with one that is read alone."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str
    data: Any = None
    metadata: Metadata = Field(default_factory=Metadata)
    scope: str | None = None
    priority: int | None = None
    stream_id: str | None = None
    runs: int = 0
    created_at: datetime | None = None
    filter_failures: list[FilterFailure] = Field(default_factory=list)

    @model_validator(mode="after")
    def _identified(self) -> V1Event:
        self.metadata.of(self.id, self.created_at, self.created_at)
        return self

    @property
    def additional_metadata(self) -> dict[str, Any]:
        """The metadata it was pushed with."""
        return dict(self.metadata)


class V1EventList(BaseModel):
    """One page of events. `next_cursor` asks for the next, None on the last."""

    rows: list[V1Event]
    next_cursor: str | None = None


class EventRun(BaseModel):
    """One attempt of a run an event started. Those after the first name the first in `origin_run_id`."""

    model_config = ConfigDict(extra="allow")

    run_id: str
    function: str
    status: str
    input: Any = None
    result: Any = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    duration_ms: int | None = None
    origin_run_id: str | None = None


_Events = list[Event]
_Fates = list[Event | DispatcherError]


class EventClient:
    """`dispatcher.event`. Every method has an `aio_` face."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def push(
        self,
        event_key: str,
        payload: Mapping[str, Any],
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
        scope: str | None = None,
    ) -> Event:
        """Push one event; it is stored when this returns. A known idempotency key gives the first event and starts nothing.

        `scope` chooses the filters that judge it.
        """
        event = BulkPushEventWithMetadata(event_key, payload, additional_metadata, priority, idempotency_key, scope)
        return PORTAL.call(self._push(event))

    async def aio_push(
        self,
        event_key: str,
        payload: Mapping[str, Any],
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
        scope: str | None = None,
    ) -> Event:
        """Push one event; it is stored when this returns. A known idempotency key gives the first event and starts nothing.

        `scope` chooses the filters that judge it.
        """
        event = BulkPushEventWithMetadata(event_key, payload, additional_metadata, priority, idempotency_key, scope)
        return await PORTAL.aio_call(self._push(event))

    def bulk_push(self, events: Sequence[BulkPushEventWithMetadata]) -> list[Event]:
        """Push many, in as few calls as the dispatcher's limits allow, answered in order. BulkTriggerError when any was refused."""
        return PORTAL.call(self._bulk_push(events))

    async def aio_bulk_push(self, events: Sequence[BulkPushEventWithMetadata]) -> list[Event]:
        """Push many, in as few calls as the dispatcher's limits allow, answered in order. BulkTriggerError when any was refused."""
        return await PORTAL.aio_call(self._bulk_push(events))

    def list(
        self,
        keys: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        scope: str | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        matched: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> V1EventList:
        """One page of events, newest first, that match all filters. `matched` is whether they started any run."""
        return PORTAL.call(self._list(self._filters(keys, since, until, scope, additional_metadata, matched, limit, cursor)))

    async def aio_list(
        self,
        keys: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        scope: str | None = None,
        additional_metadata: Mapping[str, str] | None = None,
        matched: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> V1EventList:
        """One page of events, newest first, that match all filters. `matched` is whether they started any run."""
        return await PORTAL.aio_call(self._list(self._filters(keys, since, until, scope, additional_metadata, matched, limit, cursor)))

    def get(self, event_id: str) -> V1Event:
        """An event with its data, and the filters that failed on it."""
        return PORTAL.call(self._get(event_id))

    async def aio_get(self, event_id: str) -> V1Event:
        """An event with its data, and the filters that failed on it."""
        return await PORTAL.aio_call(self._get(event_id))

    def list_runs(self, event_id: str) -> Sequence[EventRun]:
        """The runs an event started, each attempt as a run."""
        return PORTAL.call(self._list_runs(event_id))

    async def aio_list_runs(self, event_id: str) -> Sequence[EventRun]:
        """The runs an event started, each attempt as a run."""
        return await PORTAL.aio_call(self._list_runs(event_id))

    def replay(self, event_id: str) -> Event:
        """Send an event again, as a new one that is matched to what is registered now."""
        return PORTAL.call(self._replay(event_id))

    async def aio_replay(self, event_id: str) -> Event:
        """Send an event again, as a new one that is matched to what is registered now."""
        return await PORTAL.aio_call(self._replay(event_id))

    def _filters(
        self,
        key: str | None,
        since: datetime | None,
        until: datetime | None,
        scope: str | None,
        metadata: Mapping[str, str] | None,
        matched: bool | None,
        limit: int | None,
        cursor: str | None,
    ) -> Params:
        return given(
            type=self._api.config.namespaced(key) if key else None,
            since=moment(since),
            until=moment(until),
            scope=scope,
            metadata=[f"{name}:{value}" for name, value in metadata.items()] if metadata else None,
            matched=str(matched).lower() if matched is not None else None,
            limit=limit,
            cursor=cursor,
        )

    async def _list(self, filters: Params) -> V1EventList:
        _, body = await self._api.request("GET", "/v1/events", params=filters, repeatable=True)
        return V1EventList.model_validate(body)

    async def _get(self, event_id: str) -> V1Event:
        _, body = await self._api.request("GET", f"/v1/events/{quote(event_id, safe='')}", repeatable=True)
        return V1Event.model_validate(body)

    async def _list_runs(self, event_id: str) -> Sequence[EventRun]:
        rows = await listed(self._api, f"/v1/events/{quote(event_id, safe='')}/runs", {})
        return [EventRun.model_validate(row) for row in rows]

    async def _replay(self, event_id: str) -> Event:
        _, body = await self._api.request("POST", f"/v1/events/{quote(event_id, safe='')}/replay")
        return Event.model_validate(body)

    async def _push(self, event: BulkPushEventWithMetadata) -> Event:
        text, _ = await self._sendable(event)
        _, body = await self._api.request("POST", "/v1/events", content=text)
        return Event.model_validate(body)

    async def _bulk_push(self, events: Sequence[BulkPushEventWithMetadata]) -> _Events:
        results: _Fates = []
        sendable = [await self._sendable(event) for event in events]
        for chunk in chunks([text for text, _ in sendable], [size for _, size in sendable]):
            results += await self._push_chunk(chunk)
        pushed = [one for one in results if isinstance(one, Event)]
        if len(pushed) < len(results):
            raise BulkTriggerError(results)
        return pushed

    async def _push_chunk(self, chunk: Sequence[bytes]) -> _Fates:
        try:
            rows = await send_bulk(self._api, "/v1/events/bulk", "events", chunk)
        except DispatcherError as error:
            return [error] * len(chunk)
        return [refused(row) or Event.model_validate(row) for row in rows]

    async def _sendable(self, event: BulkPushEventWithMetadata) -> tuple[bytes, int]:
        """An event as it is sent. A payload too large for the call is uploaded, and its size told."""
        data = dump_json(event.payload, "input")
        reference = await upload_here(self._api, data) if len(data) > CALL_BYTES_MAX else None
        if reference is None:
            return self._text(event, b'"data":' + data), 0
        return self._text(event, b'"data":%b,"refs":["data"]' % reference), len(data)

    def _text(self, event: BulkPushEventWithMetadata, data: bytes) -> bytes:
        if event.priority is not None:
            check_priority(event.priority)
        named: dict[str, Any] = {
            "type": self._api.config.namespaced(event.key),
            "metadata": event.additional_metadata,
            "priority": event.priority,
            "idempotency_key": event.idempotency_key,
            "scope": event.scope,
        }
        return dump_json({name: value for name, value in named.items() if value is not None}, "input")[:-1] + b",%b}" % data
