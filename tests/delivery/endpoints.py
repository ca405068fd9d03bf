"""Endpoints for delivery tests: real sockets on loopback, each connection driven by a coroutine that may be as nasty as it likes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dispatcher.delivery import BatchLimits, Push, Receipt, Target
from handlers_sdk.signing import HmacSigner, Signer

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
NOW = 1_767_225_600
ULID = "01hzzzzzzzzzzzzzzzzzzzzzzz"


def soon() -> asyncio.Timeout:
    """A bound for what comes at once, though the machine may be busy."""
    return asyncio.timeout(10)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Visit:
    """One connection to the endpoint."""

    endpoint: Endpoint
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> Request:
        """The next request, also kept in `endpoint.requests`."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(line, headers, body)
        self.endpoint.requests.append(request)
        self.endpoint.asked.set()
        return request

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)  # drain gives way only when the buffer is full

    async def gone(self) -> None:
        """Wait until the other side has closed."""
        with suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass
        self.endpoint.closed.set()

    def reset(self) -> None:
        """Close so that the other side sees a reset, not an end."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()

    def shut(self) -> None:
        """Close in the kernel at once, without giving the event loop a turn."""
        with socket.socket(fileno=os.dup(self.writer.get_extra_info("socket").fileno())) as raw:
            raw.shutdown(socket.SHUT_RDWR)


Script = Callable[[Visit], Awaitable[None]]


@dataclass(slots=True)
class Endpoint:
    """A listening endpoint, and what has happened to it."""

    port: int
    scheme: str
    requests: list[Request] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/tasks"


@asynccontextmanager
async def endpoint(script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Endpoint]:
    """An endpoint that runs `script` for every connection, as long as the block lasts."""
    served = Endpoint(0, "https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        visit = Visit(served, reader, writer)
        served.visits.append(visit)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await script(visit)
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(visited, host, port, ssl=tls, backlog=512)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for visit in served.visits:
            visit.writer.transport.abort()
        await asyncio.sleep(0)


def response(
    status: int = 200, body: bytes = b"", *headers: str, kind: str | None = "application/json", length: bool = True, version: str = "1.1"
) -> bytes:
    """An HTTP response; `length` False leaves the body open-ended."""
    lines = [f"HTTP/{version} {status} Text"]
    lines += [f"content-type: {kind}"] if kind else []
    lines += [f"content-length: {len(body)}"] if length else []
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def answering(*answers: bytes) -> Script:
    """Each request of each connection gets the next of these answers; the last goes on for ever."""
    left = list(answers)

    async def script(visit: Visit) -> None:
        while True:
            await visit.request()
            await visit.send(left.pop(0) if len(left) > 1 else left[0])

    return script


def saying(*parts: bytes, stay: bool = False) -> Script:
    """Reads one request, writes these bytes and closes; or stays until the other side closes."""

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(*parts)
        if stay:
            await visit.gone()

    return script


def pouring(start: bytes, more: bytes) -> Script:
    """Reads one request, writes `start`, then `more` without end."""

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(start)
        try:
            while True:
                await visit.send(more)
        except ConnectionError:
            visit.endpoint.closed.set()
            raise

    return script


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def line(**members: Any) -> bytes:
    """One line of a stream, as a chunk."""
    return chunk(json.dumps(members).encode() + b"\n")


# ---- what is pushed


def target(
    url: str,
    *,
    signers: Sequence[Signer] = (HmacSigner(SECRET),),
    headers: Sequence[tuple[str, str]] = (),
    features: frozenset[str] = frozenset(),
    batch: BatchLimits | None = None,
    allow_html: bool = False,
    response_limit: int = 100_000,
) -> Target:
    return Target(
        f"ep_{ULID}", url, "4f2c", tuple(signers), tuple(headers), "http://127.0.0.1:8400", features, batch, allow_html, response_limit
    )


def push(number: int = 0, *, timeout: float = 5.0, raw: bool = False, body: bytes = b'{"w":64}', metadata: bytes | None = None) -> Push:
    ulid = f"{ULID[:-4]}{number:04d}"
    return Push(
        task_id=f"tsk_{ulid}",
        run_id=f"run_{ulid}",
        workflow="resize",
        name="resize",
        attempt=2,
        retry_count=1,
        max_attempts=5,
        priority=1,
        input=body,
        metadata=metadata,
        event=None,
        parent_run_id=None,
        deadline=datetime(2026, 1, 1, 0, 0, 55, tzinfo=UTC),
        timeout=timedelta(seconds=timeout),
        token="atk1.abc.def",
        tenant="default",
        raw=raw,
    )


async def no_events(line: bytes) -> None:
    """For answers that are no streams."""
    raise AssertionError(f"an event nobody expected: {line!r}")


@dataclass(slots=True)
class Settled:
    """The `settle` of a batch: remembers, and refuses to hear twice of one task."""

    receipts: dict[int, Receipt] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, index: int, receipt: Receipt) -> None:
        assert index not in self.receipts, f"task {index} settled twice"
        self.receipts[index] = receipt
        self.order.append(index)
        self.arrived.set()
