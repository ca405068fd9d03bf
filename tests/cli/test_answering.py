"""What leaves a connection of the server, and in how many writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from dispatcher.cli.answering import Protocol

_REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Recorded(asyncio.Transport):
    """A connection that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


class Answering:
    """An ASGI app that sends what it is told, and waits between where it is told to."""

    def __init__(self, *messages: dict[str, Any] | Callable[[], Any]) -> None:
        self._messages = messages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for message in self._messages:
            if isinstance(message, dict):
                await send(message)
            else:
                await message()


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def body(text: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


def connection(app: Answering) -> tuple[Protocol, Recorded]:
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False, date_header=False, server_header=False)
    config.load()
    protocol, transport = Protocol(config=config, server_state=ServerState(), app_state={}), Recorded()
    protocol.connection_made(transport)
    return protocol, transport


async def turns(count: int = 4) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_answer_is_one_write() -> None:
    protocol, transport = connection(Answering(start((b"content-length", b"2")), body(b"{}")))
    for _ in range(2):
        protocol.data_received(_REQUEST)
        await turns()
    assert transport.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"] * 2


async def test_a_head_without_a_body_does_not_wait_for_one() -> None:
    pending = asyncio.Event()
    protocol, transport = connection(Answering(start(), pending.wait, body(b"first", more=True), pending.wait, body(b"last")))
    protocol.data_received(_REQUEST)
    await turns()
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert transport.writes == [head]
    pending.set()
    await turns()
    assert b"".join(transport.writes) == head + b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n"


async def test_pieces_leave_as_they_come() -> None:
    pieces = [asyncio.Event(), asyncio.Event()]
    first, second = body(b"a", more=True), body(b"b", more=True)
    protocol, transport = connection(Answering(start(), first, pieces[0].wait, second, pieces[1].wait, body(b"")))
    protocol.data_received(_REQUEST)
    await turns()
    assert transport.writes[-1].endswith(b"1\r\na\r\n")
    pieces[0].set()
    await turns()
    assert transport.writes[-1] == b"1\r\nb\r\n"
    pieces[1].set()
    await turns()
    assert transport.writes[-1] == b"0\r\n\r\n"


async def test_what_is_held_leaves_before_the_connection_closes() -> None:
    protocol, transport = connection(Answering(start((b"content-length", b"0"), (b"connection", b"close")), body(b"")))
    protocol.data_received(_REQUEST)
    await turns()
    assert (transport.closed, transport.writes) == (True, [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"])


async def test_what_is_malformed_is_told_so() -> None:
    protocol, transport = connection(Answering())
    protocol.data_received(b"\x00\x01\r\n\r\n")
    assert transport.closed
    assert transport.writes[0].startswith(b"HTTP/1.1 400 ")


async def test_nothing_is_written_to_a_connection_that_is_gone() -> None:
    async def gone() -> None:
        transport.closed = True

    protocol, transport = connection(Answering(start((b"content-length", b"0")), gone, body(b"")))
    protocol.data_received(_REQUEST)
    await turns()
    assert transport.writes == []
