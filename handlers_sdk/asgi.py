"""The endpoint as an ASGI app, mountable anywhere: it carries bytes between the server and `handlers.Handlers`, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final

from handlers_sdk.handlers import CUT_OFF, REQUEST_BYTES_MAX, Handlers
from handlers_sdk.outcomes import Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCH_AFTER_SECONDS: Final = 0.02
"""A client's leaving is looked for only in requests that last: quick ones do not pay for a watcher."""


class App:
    """An ASGI 3 app. Served on its own it runs its lifespan; mounted where lifespan events do not reach it, the first task starts it.

    A host that wants the end of the lifespan to run too enters `running()` in its own.
    """

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The app's lifespan, for a host application's own."""
        self.handlers.host.lifespan = await self.handlers.lifespan.start()
        try:
            yield
        finally:
            self.handlers.draining = True
            await self.handlers.close()

    async def _http(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        watch = _Watch(receive)
        CUT_OFF.set(lambda: not watch.gone)
        try:
            await _send(await self.handlers.handle(scope["method"], headers, body), send)
            if watch.request.cancelling() and not watch.gone:
                raise asyncio.CancelledError  # the server's wish, which has been answered for
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            watch.request.uncancel()
        finally:
            watch.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.handlers.host.lifespan = await self.handlers.lifespan.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.handlers.draining = True
        try:
            await self.handlers.close()
        except Exception as error:
            await send({"type": "lifespan.shutdown.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


class _Watch:
    """Cancels a request's task when its client goes away, which `gone` tells from other cancellations."""

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.request = task
        self.gone = False
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._start)

    def close(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        if (await self._receive())["type"] == "http.disconnect":
            self.gone = True
            self.request.cancel()


async def _body(receive: Receive) -> bytes | None:
    """The request's body, a little more than is allowed of one that is too large, None when the client left while sending."""
    message = await receive()
    chunks = [message.get("body", b"")]
    size = len(chunks[0])
    while message.get("more_body", False) and size <= REQUEST_BYTES_MAX:
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
    if message["type"] == "http.disconnect":
        return None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _send(response: Response, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    body = response.body
    if isinstance(body, bytes):
        if response.status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    try:
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        async for chunk in body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await body.aclose()
