"""An endpoint that does what a test tells it: every request waits for its answer, and sees when the dispatcher hangs up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

HOST = "127.0.0.1"
_PATIENCE_SECONDS = 30.0


@dataclass(slots=True, eq=False)
class Arrival:
    """A request that waits for its answer. `hung_up` is set when the dispatcher closes the connection before it."""

    method: str
    headers: Mapping[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    cutting: bool = False

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        """Answer. Anything but bytes is sent as JSON; `content_type` and others are headers, underscores standing for dashes."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        self.writer.write(f"HTTP/1.1 {status} .\r\n{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        self.answered.set()

    async def gone(self) -> None:
        """Until the caller has hung up. Raises TimeoutError when it does not."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self.hung_up.wait()

    def begin_stream(self) -> None:
        """Begin an NDJSON answer."""
        self.writer.write(b"HTTP/1.1 200 .\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")

    def line(self, document: object) -> None:
        """One line of the stream."""
        text = json.dumps(document).encode() + b"\n"
        self.writer.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")

    def end_stream(self) -> None:
        """End the stream as it should."""
        self.writer.write(b"0\r\n\r\n")
        self.answered.set()

    def cut(self) -> None:
        """Close the connection instead of answering."""
        self.cutting = True
        self.answered.set()


Way = Callable[[Arrival], None]


class Endpoint:
    """A server on loopback. POSTs are handed to the test by `next`, or to `way` when that is set; GETs are answered with `manifest`."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._held: socket.socket | None = None
        self._arrived: asyncio.Queue[Arrival] = asyncio.Queue()
        self._open: set[asyncio.StreamWriter] = set()
        self.way: Way | None = None
        self.manifest: dict[str, Any] | None = None
        self.seen: list[Arrival] = []
        self.port = 0

    @classmethod
    async def start(cls, port: int = 0) -> Self:
        """Listen, on any port unless one is given."""
        endpoint = cls()
        endpoint._server = await asyncio.start_server(endpoint._connection, HOST, port)
        endpoint.port = int(endpoint._server.sockets[0].getsockname()[1])
        return endpoint

    @property
    def url(self) -> str:
        """Where it is registered."""
        return f"http://{HOST}:{self.port}/tasks"

    async def stop(self) -> None:
        """Refuse connections, and cut those there are. The port is held, lest somebody else's server should answer there."""
        assert self._server is not None
        if self._held is not None:
            return
        self._server.close()
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind((HOST, self.port))
        for writer in list(self._open):
            writer.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._server.wait_closed()

    async def close(self) -> None:
        """Stop, and let go of the port."""
        await self.stop()
        if self._held is not None:
            self._held.close()

    async def next(self) -> Arrival:
        """The next POST. Raises TimeoutError when none comes."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self._arrived.get()

    async def several(self, count: int) -> list[Arrival]:
        """The next POSTs of so many runs, the oldest run first: requests of one moment arrive in any order."""
        return sorted([await self.next() for _ in range(count)], key=lambda arrival: arrival.json["run_id"])

    @property
    def waiting(self) -> int:
        """POSTs that nobody has taken yet."""
        return self._arrived.qsize()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._held is not None:  # taken in the moment of the stop, and begun after it
            writer.close()
            return
        self._open.add(writer)
        try:
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        arrival = Arrival(head[0].split()[0], headers, body, writer)
        if arrival.method == "GET":
            self._offer(arrival)
        else:
            self.seen.append(arrival)
            self._hand_over(arrival)
        watch = asyncio.ensure_future(reader.read(1))
        done = asyncio.ensure_future(arrival.answered.wait())
        await asyncio.wait([watch, done], return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            arrival.hung_up.set()
        for future in (watch, done):
            future.cancel()
        await asyncio.wait([watch, done])
        await writer.drain()
        return arrival.answered.is_set() and not arrival.cutting

    def _hand_over(self, arrival: Arrival) -> None:
        if self.way is None:
            self._arrived.put_nowait(arrival)
        else:
            self.way(arrival)

    def _offer(self, arrival: Arrival) -> None:
        if self.manifest is None:
            arrival.answer(404, {"detail": "no manifest here"})
            return
        challenge = {"challenge": arrival.headers.get("task-challenge", "")}
        arrival.answer(200, {**self.manifest, **challenge}, content_type="application/vnd.tasks.manifest+json", task_protocol="1")


def manifest(handlers: Sequence[Mapping[str, Any]], *features: str, version: str = "1", max_items: int = 100) -> dict[str, Any]:
    """What an endpoint made with an SDK says of itself."""
    document: dict[str, Any] = {
        "protocol": {"min": 1, "max": 1},
        "sdk": "test/1",
        "version": version,
        "verified": "v1a",
        "features": list(features),
        "handlers": list(handlers),
    }
    if "batch" in features:
        document["batch"] = {"max_items": max_items, "max_bytes": 1_000_000}
    return document
