"""uvicorn's side of a connection, with the head of an answer and its body in one write.

uvicorn writes them one after the other: two system calls, and two times that whoever waits is woken, first for nothing to be done with.
On a busy machine that costs both sides about what a small answer takes to make (measured: a twentieth of what a run costs in all).
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Joining:
    """What uvicorn uses of a transport. What is written first waits for what follows, at most until the loop has gone round."""

    __slots__ = ("_held", "_loop", "_transport", "get_extra_info", "is_closing", "pause_reading", "resume_reading")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        """Pass on what is held together with this, or hold this."""
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._pass_on)

    def close(self) -> None:
        """Pass on what is held and close."""
        self._pass_on()
        self._transport.close()

    def _pass_on(self) -> None:
        data, self._held = self._held, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)


class Protocol(HttpToolsProtocol):
    """One connection of the server."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Writes go through `Joining`."""
        joining: Any = Joining(cast(asyncio.Transport, transport), self.loop)
        super().connection_made(joining)
