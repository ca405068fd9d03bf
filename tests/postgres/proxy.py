"""A proxy between a client and Postgres that can lose a COMMIT or its reply, and counts what passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

_SOCKET = ".s.PGSQL.5432"


@dataclass
class Proxy:
    """`lose` is what happens to the next COMMIT: the request is lost on its way, or the reply is; either way the connection ends."""

    dsn: str
    lose: Literal["request", "reply"] | None = None
    sent: list[bytes] = field(default_factory=list)
    """Every chunk a client sent."""


@asynccontextmanager
async def proxied(dsn: str, directory: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of the server behind the Unix socket of `dsn`; its own socket is in `directory`."""
    parts = urlsplit(dsn)
    target = f"{parse_qs(parts.query)['host'][0]}/{_SOCKET}"
    proxy = Proxy(parts._replace(query=f"host={quote(str(directory))}").geturl())
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type] # always inside a task
        await _serve(proxy, target, reader, writer)

    server = await asyncio.start_unix_server(connected, directory / _SOCKET)
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(proxy: Proxy, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    server_reader, server_writer = await asyncio.open_unix_connection(target)
    replies = asyncio.create_task(_copy(server_reader, writer))
    try:
        while chunk := await reader.read(1 << 16):
            proxy.sent.append(chunk)
            lose = proxy.lose if b"COMMIT" in chunk else None
            if lose == "request":
                break
            if lose == "reply":
                replies.cancel()
                await asyncio.wait([replies])
            server_writer.write(chunk)
            if lose == "reply":
                await server_reader.read(1)
                break
    except ConnectionError:
        pass
    finally:
        replies.cancel()
        writer.transport.abort()
        server_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
    writer.close()
