"""A client of server-sent events that tests can cut off, slow down, or leave unread."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name, its id, and its data parsed."""

    name: str
    id: str
    data: Any


@asynccontextmanager
async def following(url: str, last: str | None = None) -> AsyncIterator[AsyncIterator[Event]]:
    """Connect; the events as they come, until the server closes."""
    headers = {"last-event-id": last} if last is not None else {}
    async with httpx.AsyncClient(timeout=20) as client, client.stream("GET", url, headers=headers) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        yield events(reply.aiter_lines())


async def events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Events from the lines of a body; comments are left out."""
    fields: dict[str, str] = {}
    async for line in lines:
        if not line:
            if "data" in fields:
                yield Event(fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


async def everything(url: str, last: str | None = None) -> list[Event]:
    """All events until the server closes."""
    async with following(url, last) as stream:
        return [event async for event in stream]


def told(found: list[Event]) -> list[Any]:
    """Events in short: the payloads of data, the names of all others."""
    return [event.data["payload"] if event.name == "stream:data" else event.name for event in found]


async def unread(url: str, buffer: int = 4096) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has asked for a stream, has seen the head of the answer, and reads no further. Its socket takes little."""
    parts = urlsplit(url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    writer.write(f"GET {parts.path} HTTP/1.1\r\nhost: localhost:8400\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"200" in head.split(b"\r\n")[0], head
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
    return reader, writer
