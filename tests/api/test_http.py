"""The same application behind the real server, where bodies arrive in pieces and clients go away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from tests.api.test_bad_input import assert_problem
from tests.api.world import World

MIB = 1_048_576


@pytest.fixture
async def address(world: World) -> AsyncIterator[tuple[str, int]]:
    """Where uvicorn serves the world."""
    await world.register()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(world.app, lifespan="off", log_level="error", access_log=False, http="httptools", ws="none"))
    task = asyncio.create_task(server.serve([listener]))
    yield listener.getsockname()
    server.should_exit = True
    await task


async def test_a_body_that_says_it_is_too_large_is_refused(address: tuple[str, int]) -> None:
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        answer = await client.post("/v1/runs", content=b'{"workflow":"resize","input":"' + b"x" * (3 * MIB) + b'"}')
        assert_problem(answer, 413, "body_too_large", "1,048,576")
        assert answer.headers["connection"] == "close"
        assert (await client.post("/v1/runs", json={"workflow": "resize"})).status_code == 201


async def test_a_client_that_asks_first_is_spared_the_sending(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /v1/runs HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_does_not_say_is_cut_off(address: tuple[str, int]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65_536

    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        assert_problem(await client.post("/v1/runs", content=pieces()), 413, "body_too_large", "1,048,576")


async def test_a_body_in_pieces_is_put_together(address: tuple[str, int]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"work', b'flow":"resize",', b'"input":{"a":"', b"x" * 200_000, b'"}}'):
            yield piece

    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        assert (await client.post("/v1/runs", content=pieces())).status_code == 201


async def test_a_client_that_goes_away_is_no_fault(address: tuple[str, int], world: World, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /v1/runs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    del reader
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        assert (await client.get("/livez")).status_code == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/runs/%ff%fe HTTP/1.1",
        b"GET /v1/runs/run_%00 HTTP/1.1",
        b"GET /v1/runs?workflow=%ff HTTP/1.1",
        b"GET //v1//runs HTTP/1.1",
        b"GET /v1/runs/../runs HTTP/1.1",
        b"GET * HTTP/1.1",
    ],
)
async def test_odd_request_lines_are_refused_in_order(
    address: tuple[str, int], request_line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request_line + b"\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 404), answer
    assert caplog.records == []
