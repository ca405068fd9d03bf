"""Following what a run says: server-sent events, read again from where they stopped whenever the connection is lost."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx

from handlers_sdk.api import Api
from handlers_sdk.errors import ApiError, ApiUnreachableError, DispatcherError
from handlers_sdk.portal import PORTAL
from handlers_sdk.schemas import parse_json

DATA: Final = "stream:data"
RESET: Final = "reset"
ENDS: Final = frozenset({"run:stop", "run:fail", "run:cancel"})

_WAITING_MAX: Final = 1_000  # events read ahead of whoever iterates; beyond that the connection is left to wait
_SILENCE_SECONDS: Final = 60.0  # the dispatcher says something more often than this
_FAILURES_MAX: Final = 12
_PAUSE_MAX: Final = 5.0
_BUSY: Final = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream: its type, its id (its position), the run it is of, and its document."""

    type: str
    id: str
    run_id: str
    data: dict[str, Any]

    @property
    def payload(self) -> Any:
        """What was put into the stream: text, bytes, or another JSON value. None of an event of another type."""
        value = self.data.get("payload")
        return base64.b64decode(value) if self.data.get("encoding") == "base64" and isinstance(value, str) else value


class StreamEvents:
    """The events of a run's stream, from its beginning, for `for` and for `async for`. Each iteration follows the stream anew."""

    def __init__(self, api: Api, run_id: str) -> None:
        self._api = api
        self._run_id = run_id

    def __iter__(self) -> Iterator[StreamEvent]:
        """Iterate, waiting for what is still to come."""
        follower = _Follower(self._api, self._run_id)
        try:
            while events := PORTAL.call(follower.take()):
                yield from events
        finally:
            PORTAL.submit(follower.aclose())

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Iterate, waiting for what is still to come."""
        follower = _Follower(self._api, self._run_id)
        try:
            while events := await PORTAL.aio_call(follower.take()):
                for event in events:
                    yield event
        finally:
            PORTAL.submit(follower.aclose())


class StreamChunks:
    """What a run puts into its stream, piece by piece, for `for` and for `async for`; the iteration ends with the run.

    When the run's task is tried again, `on_reset` is called: what came before is void.
    """

    def __init__(self, events: StreamEvents, on_reset: Callable[[], None] | None) -> None:
        self._events = events
        self._on_reset = on_reset

    def __iter__(self) -> Iterator[Any]:
        """Iterate, waiting for what is still to come."""
        for event in self._events:
            if self._is_data(event):
                yield event.payload

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate, waiting for what is still to come."""
        events = self._events.__aiter__()
        try:
            async for event in events:
                if self._is_data(event):
                    yield event.payload
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # it is an async generator

    def _is_data(self, event: StreamEvent) -> bool:
        if event.type == RESET and self._on_reset is not None:
            self._on_reset()
        return event.type == DATA


class _Follower:
    """Reads events on the client's own loop into a bounded queue. `take` answers none after the last."""

    def __init__(self, api: Api, run_id: str) -> None:
        self._api = api
        self._run_id = run_id
        self._last = ""
        self._failures = 0
        self._queue: asyncio.Queue[StreamEvent | DispatcherError | None] = asyncio.Queue(_WAITING_MAX)
        self._reader: asyncio.Task[None] | None = None
        self._over = False

    async def take(self) -> list[StreamEvent]:
        """What has come, waiting for one at least. Raises what the dispatcher refused, or ApiUnreachableError when it stays away."""
        if self._over:
            return []
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        taken: list[StreamEvent] = []
        while not taken or not self._queue.empty():
            item = await self._queue.get()
            if isinstance(item, StreamEvent):
                taken.append(item)
                continue
            self._over = True
            if item is not None:
                raise item
            break
        return taken

    async def aclose(self) -> None:
        """Let the connection go."""
        self._over = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            while not await self._connected():
                pause = min(_PAUSE_MAX, 0.05 * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                await asyncio.sleep(pause if self._failures else 0)
        except DispatcherError as error:
            await self._queue.put(error)
        except Exception as error:  # whoever iterates would wait for ever
            failed = DispatcherError(f"the stream of {self._run_id} cannot be read: {error!r}")
            failed.__cause__ = error
            await self._queue.put(failed)
        else:
            await self._queue.put(None)

    async def _connected(self) -> bool:
        """Read one connection to its end; whether that was the end of the stream."""
        path = f"/v1/runs/{self._run_id}/stream"
        headers = {"last-event-id": self._last} if self._last else {}
        try:
            async with self._api.stream(path, headers, _SILENCE_SECONDS) as response:
                if response.status_code == 204:
                    return True
                if not response.is_success:
                    await self._refused(response)
                    return False
                async for event in _events(_lines(response.aiter_bytes())):
                    if await self._kept(event):
                        return True
        except httpx.HTTPError as error:
            self._failed(f"{path}: {str(error) or type(error).__name__}", error)
        return False

    async def _kept(self, event: StreamEvent) -> bool:
        """Queue an event that has not come before; whether it is the last."""
        if event.id.isdigit() and (not self._last or int(event.id) > int(self._last)):
            self._last, self._failures = event.id, 0
            await self._queue.put(event)
        return event.type in ENDS and event.run_id == self._run_id

    async def _refused(self, response: httpx.Response) -> None:
        body = await response.aread()
        if response.status_code in _BUSY:
            self._failed(f"{response.request.url} answered {response.status_code}", None)
            return
        try:
            document = parse_json(body)
        except ValueError:
            document = None
        raise ApiError(response.status_code, document if isinstance(document, dict) else {"title": response.reason_phrase})

    def _failed(self, message: str, error: Exception | None) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_MAX:
            raise ApiUnreachableError(message) from error


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines as server-sent events have them: other separators that a text may hold end none, as they would for `aiter_lines`."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[StreamEvent]:
    """Events from lines; one that was cut off is left out, and comes again."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            document = parse_json(fields["data"].encode())
            yield StreamEvent(fields.get("event", ""), fields.get("id", ""), str(document.get("run_id", "")), document)
            fields = {}
