"""The server's outermost ASGI app: there before the database is, and still there while the work drains."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from dispatcher.errors import problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ALIVE: Final = "/livez"
# What endpoints need to bring running attempts to their end.
_WHILE_DRAINING: Final = ("/v1/callback", "/v1/log", "/.well-known/", ALIVE)


class Front:
    """Passes requests to `app` once that is set. Before, and for new work while `reason` is set again, it answers 503 with the reason."""

    def __init__(self) -> None:
        self.app: Application | None = None
        self.reason = "the server is starting"

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if self.app is not None and (not self.reason or scope["path"].startswith(_WHILE_DRAINING)):
            await self.app(scope, receive, send)
        elif scope["path"] == ALIVE:
            await _answer(send, 200, "application/json", {"status": "ok"}, ())
        else:
            document = problem("not_ready", self.reason).document()
            await _answer(send, 503, "application/problem+json", document, ((b"retry-after", b"1"),))


async def _answer(send: Send, status: int, media: str, document: Any, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    body = json.dumps(document).encode()
    held = [(b"content-type", media.encode()), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": held})
    await send({"type": "http.response.body", "body": body})
