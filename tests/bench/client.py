"""A client that costs next to nothing: HTTP/1.1, keep-alive, one request at a time on each connection."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, cast

import msgspec

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request came back as."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The parsed body."""
        return msgspec.json.decode(self.body)


class _Wire(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiting: asyncio.Future[Reply] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head)
        if length is None:
            self._fail(ConnectionError(f"an answer without a length: {head[:80]!r}"))
        elif len(rest) >= (size := int(length[1])):
            self._buffer = rest[size:]
            if self.waiting is not None and not self.waiting.done():
                self.waiting.set_result(Reply(int(head[9:12]), rest[:size]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._fail(exc or ConnectionError("closed by the server"))

    def _fail(self, error: Exception) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(error)


class Client:
    """One connection to `host:port`; opened when first used, opened again after it was lost."""

    def __init__(self, host: str, port: int, token: str = "") -> None:
        self._address = (host, port)
        credentials = f"authorization: Bearer {token}\r\n" if token else ""
        self._common = f"host: {host}:{port}\r\n{credentials}content-type: application/json\r\n".encode()
        self._wire: _Wire | None = None

    async def request(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> Reply:
        """One request; `headers` are lines. Raises OSError when the connection fails; a request that was sent is never sent again."""
        wire = await self._connected()
        assert wire.transport is not None
        wire.waiting = asyncio.get_running_loop().create_future()
        head = b"%s %s HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (method.encode(), path.encode(), self._common, headers, len(body))
        wire.transport.write(head + body)
        return await wire.waiting

    async def expect(self, method: str, path: str, document: object = None) -> Any:
        """One request with a JSON document; the parsed answer. Raises RuntimeError for anything but 2xx."""
        reply = await self.request(method, path, b"" if document is None else msgspec.json.encode(document))
        if not 200 <= reply.status < 300:
            raise RuntimeError(f"{method} {path}: {reply.status} {reply.body[:500]!r}")
        return reply.json() if reply.body else None

    def close(self) -> None:
        """Close the connection."""
        if self._wire is not None and self._wire.transport is not None:
            self._wire.transport.close()

    async def _connected(self) -> _Wire:
        if self._wire is None or self._wire.transport is None:
            _, self._wire = await asyncio.get_running_loop().create_connection(_Wire, *self._address)
        return self._wire
