"""Answers that are sent piece by piece, for as long as somebody takes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from litestar.types import Receive, Send

from dispatcher.api.edge import NO_STORE, Answer

_log = logging.getLogger(__name__)

# Proxies that gather what they pass on would hold an event back until more have come.
_UNBUFFERED: Final = (b"x-accel-buffering", b"no")
EVENT_STREAM: Final = ((b"content-type", b"text/event-stream; charset=utf-8"), _UNBUFFERED)


async def send_stream(answer: Answer, stream: AsyncIterator[bytes], head: bool, receive: Receive, send: Send, stall: float) -> None:
    """Send pieces until there are no more, the client has gone, or it has taken none for `stall` seconds: then it is let go."""
    await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, NO_STORE]})
    if head:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    gone = asyncio.ensure_future(_disconnected(receive))
    pump = asyncio.ensure_future(_pump(stream, send, stall))
    try:
        await asyncio.wait([gone, pump], return_when=asyncio.FIRST_COMPLETED)
        if pump.done() and pump.result():
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        for task in (gone, pump):
            task.cancel()
        await asyncio.wait([gone, pump])


async def _pump(stream: AsyncIterator[bytes], send: Send, stall: float) -> bool:
    """Whether all pieces were sent. Sending returns when there is room again in the socket's buffer."""
    try:
        async for piece in stream:
            async with asyncio.timeout(stall):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except TimeoutError:
        _log.info("a client that reads nothing of its stream was let go")
        return False
    except Exception:
        _log.exception("a stream was cut short")  # the client notices the missing end, and resumes
        return False
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # every stream of ours is an async generator
    return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
