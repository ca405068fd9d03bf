"""Posting by aiohttp: connections kept and given up, what is no answer, and errors as httpx would have raised them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import pytest

from handlers_sdk import posting
from handlers_sdk.api import Api
from handlers_sdk.config import ClientConfig
from handlers_sdk.errors import ApiError, ApiUnreachableError
from handlers_sdk.posting import Posting, possible
from tests.delivery.authority import Authority

PLAIN: Final = b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"ok":true}'
LONG: Final = 5.0


@dataclass
class Server:
    """Answers the requests of each connection with the texts of `answers` in order; after the last, or None, it hangs up."""

    answers: list[bytes | None]
    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            self.hung_up.set()

    def url(self, path: str = "/v1/callbacks") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncIterator[Server]:
    server = Server(list(answers))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await listening.wait_closed()


@asynccontextmanager
async def posts() -> AsyncIterator[Posting]:
    lines = Posting()
    try:
        yield lines
    finally:
        await lines.aclose()


async def test_a_connection_is_taken_again() -> None:
    async with serving(PLAIN, PLAIN, PLAIN) as server, posts() as lines:
        first = await lines.post(server.url("/a?b=1"), b'{"n":1}', "atk1.x", LONG)
        await lines.post(server.url(), b'{"n":2}', "", LONG)
    assert (first.status_code, first.content, first.is_success) == (200, b'{"ok":true}', True)
    assert server.connections == 1
    assert server.bodies == [b'{"n":1}', b'{"n":2}']
    assert server.heads[0].startswith(b"post /a?b=1 http/1.1\r\nhost: 127.0.0.1:")
    assert b"authorization: bearer atk1.x" in server.heads[0]
    assert b"authorization" not in server.heads[1]


async def test_requests_at_once_have_connections_of_their_own() -> None:
    async with serving(PLAIN, PLAIN, PLAIN) as server, posts() as lines:
        await asyncio.gather(*[lines.post(server.url(), b"%d" % number, "", LONG) for number in range(3)])
        assert sorted(server.bodies) == [b"0", b"1", b"2"]


async def test_a_connection_the_server_gives_up_is_not_taken_again() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", PLAIN) as server, posts() as lines:
        assert (await lines.post(server.url(), b"{}", "", LONG)).content == b"{}"
        assert (await lines.post(server.url(), b"{}", "", LONG)).content == b'{"ok":true}'
        assert server.connections == 2


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with serving(b'HTTP/1.1 200 OK\r\n\r\n{"ok":1}') as server, posts() as lines:
        assert (await lines.post(server.url(), b"{}", "", LONG)).content == b'{"ok":1}'


async def test_a_redirect_is_not_followed() -> None:
    async with serving(b"HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n") as server, posts() as lines:
        answer = await lines.post(server.url(), b"{}", "secret", LONG)
    assert (answer.status_code, answer.is_success) == (307, False)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
async def test_what_is_no_answer(answer: bytes | None) -> None:
    async with serving(answer) as server, posts() as lines:
        with pytest.raises(httpx.RemoteProtocolError):
            await lines.post(server.url(), b"{}", "", LONG)


async def test_nobody_listens() -> None:
    async with serving() as server:
        pass
    async with posts() as lines:
        with pytest.raises(httpx.ConnectError):
            await lines.post(server.url(), b"{}", "", LONG)


async def test_a_server_that_says_nothing() -> None:
    silent = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with posts() as lines:
        with pytest.raises(httpx.ReadTimeout):
            await lines.post(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", b"{}", "", 0.02)
    silent.set()
    listening.close()
    await listening.wait_closed()


async def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, server = Authority.make(tmp_path), Server([PLAIN])
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=authority.server("localhost"))
    url = f"https://localhost:{listening.sockets[0].getsockname()[1]}/v1/callbacks"
    async with posts() as lines:
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await lines.post(url, b"{}", "", LONG)
    monkeypatch.setattr(posting, "tls", authority.client)
    async with posts() as lines:
        assert (await lines.post(url, b"{}", "", LONG)).status_code == 200
    listening.close()
    await listening.wait_closed()


def test_what_is_left_to_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert possible("http://127.0.0.1:8400/v1/callback")
    assert possible("https://tasks.example.com/v1/callback")
    assert not possible("https://user:secret@tasks.example.com/v1/callback")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    assert not possible("https://tasks.example.com/v1/callback")


@asynccontextmanager
async def calling(*answers: bytes | None) -> AsyncIterator[tuple[Server, Api]]:
    async with serving(*answers) as server:
        api = Api(ClientConfig(api_url=server.url("")), Posting())
        try:
            yield server, api
        finally:
            await api.aclose()


async def test_a_callback_goes_this_way() -> None:
    async with calling(PLAIN) as (server, api):
        assert await api.request("POST", "/v1/callback", content=b"{}", token="atk1.x") == (200, {"ok": True})
        assert b"user-agent: handlers-sdk" in server.heads[0]


@pytest.mark.parametrize("first", [b"HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n", None])
async def test_a_callback_is_repeated(first: bytes | None) -> None:
    async with calling(first, PLAIN) as (server, api):
        assert (await api.request("POST", "/v1/callback", content=b"{}", token="t", repeatable=True))[0] == 200
        assert len(server.bodies) == 2


async def test_a_callback_that_may_have_arrived_is_not_repeated_unless_it_may_be() -> None:
    async with calling(None, PLAIN) as (server, api):
        with pytest.raises(ApiUnreachableError):
            await api.request("POST", "/v1/callback", content=b"{}", token="t")
        assert len(server.bodies) == 1


def _problem(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Refused\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@pytest.mark.parametrize(("body", "code"), [(b'{"code":"stale_attempt","title":"x"}', "stale_attempt"), (b"<html>", "")])
async def test_a_refusal_says_what_httpx_would_have_said(body: bytes, code: str) -> None:
    async with calling(_problem(409, body)) as (_, api):
        with pytest.raises(ApiError) as caught:
            await api.request("POST", "/v1/callback", content=b"{}", token="t")
    assert (caught.value.status, caught.value.problem_code or "") == (409, code)
