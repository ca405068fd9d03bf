"""Pushing events: messages that start the runs of every workflow that listens for their key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from handlers_sdk.api import Api
from handlers_sdk.definitions import check_priority
from handlers_sdk.errors import BulkTriggerError, DispatcherError
from handlers_sdk.portal import PORTAL
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
    ) -> Event:
        """Push one event; it is stored when this returns. A known idempotency key gives the first event and starts nothing."""
        return PORTAL.call(self._push(BulkPushEventWithMetadata(event_key, payload, additional_metadata, priority, idempotency_key)))

    async def aio_push(
        self,
        event_key: str,
        payload: Mapping[str, Any],
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
    ) -> Event:
        """Push one event; it is stored when this returns. A known idempotency key gives the first event and starts nothing."""
        event = BulkPushEventWithMetadata(event_key, payload, additional_metadata, priority, idempotency_key)
        return await PORTAL.aio_call(self._push(event))

    def bulk_push(self, events: Sequence[BulkPushEventWithMetadata]) -> list[Event]:
        """Push many, in as few calls as the dispatcher's limits allow, answered in order. BulkTriggerError when any was refused."""
        return PORTAL.call(self._bulk_push(events))

    async def aio_bulk_push(self, events: Sequence[BulkPushEventWithMetadata]) -> list[Event]:
        """Push many, in as few calls as the dispatcher's limits allow, answered in order. BulkTriggerError when any was refused."""
        return await PORTAL.aio_call(self._bulk_push(events))

    async def _push(self, event: BulkPushEventWithMetadata) -> Event:
        _, body = await self._api.request("POST", "/v1/events", content=self._text(event))
        return Event.model_validate(body)

    async def _bulk_push(self, events: Sequence[BulkPushEventWithMetadata]) -> list[Event]:
        results: list[Event | DispatcherError] = []
        for chunk in chunks([self._text(event) for event in events]):
            results += await self._push_chunk(chunk)
        pushed = [one for one in results if isinstance(one, Event)]
        if len(pushed) < len(results):
            raise BulkTriggerError(results)
        return pushed

    async def _push_chunk(self, chunk: Sequence[bytes]) -> list[Event | DispatcherError]:
        try:
            rows = await send_bulk(self._api, "/v1/events/bulk", "events", chunk)
        except DispatcherError as error:
            return [error] * len(chunk)
        return [refused(row) or Event.model_validate(row) for row in rows]

    def _text(self, event: BulkPushEventWithMetadata) -> bytes:
        if event.priority is not None:
            check_priority(event.priority)
        named: dict[str, Any] = {
            "type": self._api.config.namespaced(event.key),
            "data": event.payload,
            "metadata": event.additional_metadata,
            "priority": event.priority,
            "idempotency_key": event.idempotency_key,
        }
        return dump_json({name: value for name, value in named.items() if value is not None}, "input")
