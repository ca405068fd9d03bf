"""What the attempts of a process have to say, on its way to the dispatcher: many attempts in one request.

Group commit without a timer: a request starts as soon as one may, and takes what has gathered meanwhile. What is lone goes at once; what
comes while two are under way shares the next. Belongs to the event loop of the app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.api import Api
from handlers_sdk.errors import ApiError, ApiUnreachableError, DispatcherError
from handlers_sdk.schemas import dump_json

ITEMS_PER_POST: Final = 1_000
BYTES_PER_POST: Final = 500_000
POSTS_ALWAYS: Final = 2
"""While the dispatcher writes what one brought it reads the next, and what it answered goes on here."""
POSTS_AT_ONCE: Final = 4
"""Beside those only full ones start: what the dispatcher commits together costs it once."""
POSTS_AT_ONCE_ALONE: Final = 8

Reply = Callable[[Any, DispatcherError | None], None]
"""Told what a callback of this attempt alone would have been answered: the document, or why there is none."""


@dataclass(frozen=True, slots=True)
class _Item:
    token: str
    events: bytes  # JSON texts, with commas between them
    reply: Reply


@dataclass(slots=True)
class _Lane:
    """What goes to one dispatcher and may, or may not, be repeated when it is not known to have arrived."""

    base: str
    repeatable: bool
    waiting: list[_Item] = field(default_factory=list)
    size: int = 0
    posting: int = 0


class Postbox:
    """Callbacks of all attempts of an app."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lanes: dict[tuple[str, bool], _Lane] = {}
        self._alone = False  # the dispatcher takes one attempt's events at a time
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, base: str, token: str, events: bytes, reply: Reply, *, repeatable: bool = False) -> None:
        """Post events of an attempt. `repeatable` ones may be sent again when no answer came."""
        lane = self._lanes.get((base, repeatable))
        if lane is None:
            lane = self._lanes[base, repeatable] = _Lane(base, repeatable)
        lane.waiting.append(_Item(token, events, reply))
        lane.size += len(events)
        self._post_waiting(lane)

    async def aclose(self) -> None:
        """Wait for what is under way and close the connections."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        await self._api.aclose()

    def _post_waiting(self, lane: _Lane) -> None:
        if self._alone:
            more = lane.posting < POSTS_AT_ONCE_ALONE
        else:
            full = lane.size >= BYTES_PER_POST or len(lane.waiting) >= ITEMS_PER_POST
            more = lane.posting < POSTS_ALWAYS or (full and lane.posting < POSTS_AT_ONCE)
        if not more:
            return
        lane.posting += 1
        # Without the caller's context variables: what is logged while posting is not what a task says.
        task = asyncio.get_running_loop().create_task(self._post(lane), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, lane: _Lane) -> None:
        try:
            while items := self._take(lane):
                for item, body, error in await (self._one(lane, items[0]) if self._alone else self._many(lane, items)):
                    item.reply(body, error)
        finally:
            lane.posting -= 1

    def _take(self, lane: _Lane) -> list[_Item]:
        size = count = 0
        most = 1 if self._alone else ITEMS_PER_POST
        for item in lane.waiting:
            if count == most or (count and size + len(item.events) > BYTES_PER_POST):
                break
            size += len(item.events)
            count += 1
        taken, lane.waiting = lane.waiting[:count], lane.waiting[count:]
        lane.size -= size
        return taken

    async def _one(self, lane: _Lane, item: _Item) -> list[tuple[_Item, Any, DispatcherError | None]]:
        content = b'{"events":[%b]}' % item.events
        try:
            _, body = await self._api.request(
                "POST", wire.CALLBACK_PATH, content=content, token=item.token, base=lane.base, repeatable=lane.repeatable
            )
        except DispatcherError as error:
            return [(item, None, error)]
        return [(item, body, None)]

    async def _many(self, lane: _Lane, items: list[_Item]) -> list[tuple[_Item, Any, DispatcherError | None]]:
        content = b'{"items":[%b]}' % b",".join(b'{"token":%b,"events":[%b]}' % (dump_json(item.token), item.events) for item in items)
        try:
            _, body = await self._api.request(
                "POST", wire.CALLBACKS_PATH, content=content, token="", base=lane.base, repeatable=lane.repeatable
            )
        except ApiError as error:
            if error.status not in (404, 405):
                return [(item, None, error) for item in items]
            self._alone = True  # a dispatcher that does not know grouped callbacks
            lane.waiting[:0] = items[1:]
            lane.size += sum(len(item.events) for item in items[1:])
            for _ in items[1:]:
                self._post_waiting(lane)
            return await self._one(lane, items[0])
        except DispatcherError as error:
            return [(item, None, error) for item in items]
        results = body.get("results") if isinstance(body, dict) else None
        if not isinstance(results, list) or len(results) != len(items):
            unusable = ApiUnreachableError(f"{wire.CALLBACKS_PATH} did not answer one result for each of {len(items)} items")
            return [(item, None, unusable) for item in items]
        return [(item, *_read(result)) for item, result in zip(items, results, strict=True)]


def _read(result: Any) -> tuple[Any, DispatcherError | None]:
    status, body = int(result.get("status", 0)), result.get("body")
    return (body, None) if 200 <= status < 300 else (None, ApiError(status, body if isinstance(body, dict) else {}))
