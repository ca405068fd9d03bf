"""POSTs of JSON to a dispatcher over connections of our own: the hot way of callbacks, where a request of httpx (measured: 0.6 ms of CPU,
this 0.06 ms) is as much as all else a step does.

HTTP/1.1, a request at a time on each connection, kept open and taken again. What fails is an httpx error, so that whoever calls need not
know which way a request went. Proxies, and whatever else httpx is configured for, are left to it: `possible` says whether this will do.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies

import httpx

from handlers_sdk.connections import tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

IDLE_MAX: Final = 8
HEAD_BYTES_MAX: Final = 65_536
_HEADERS: Final = b"accept: application/json\r\nuser-agent: handlers-sdk\r\ncontent-type: application/json\r\n"
_CHUNK_LINE_MAX: Final = 1_024
_PROXIES: Final = frozenset({"http", "https", "all"})
_NO_BODY: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Posted:
    """An answer, as far as a caller of the dispatcher looks at it. Names of headers are lower-case."""

    status_code: int
    reason_phrase: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """2xx."""
        return 200 <= self.status_code < 300


@dataclass(frozen=True, slots=True)
class _Address:
    host: str
    port: int
    secure: bool
    head: bytes
    """The request line and the headers that are the same for every request."""


@dataclass(slots=True)
class _Line:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def usable(self) -> bool:
        """Whether it is open, and nothing came that nobody asked for: the last word of a server that is about to close it."""
        return not (self.reader.at_eof() or self.reader._buffer or self.writer.is_closing())  # type: ignore[attr-defined]  # noqa: SLF001


def possible(url: str) -> bool:
    """Whether requests to this URL need nothing that only httpx knows."""
    parsed = httpx.URL(url)
    return parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.userinfo and not _PROXIES & getproxies().keys()


@dataclass(slots=True)
class Posting:
    """Connections of one event loop. A forked child opens its own."""

    _idle: dict[tuple[str, int, bool], list[_Line]] = field(default_factory=dict)
    _process: int = 0

    async def post(self, url: str, content: bytes, token: str, timeout: float) -> Posted:
        """Send JSON and read the answer. `timeout` (seconds) is for connecting, sending, each part of the answer. Raises httpx errors."""
        address = _address(url)
        line = self._taken(address) or await _open(address, timeout)
        bearer = b"authorization: Bearer %b\r\n" % token.encode() if token else b""
        try:
            async with _bounded(timeout, httpx.WriteTimeout, httpx.WriteError):
                line.writer.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (address.head, bearer, len(content), content))
                await line.writer.drain()
            posted, reusable = await _answer(line.reader, timeout)
        except BaseException:
            line.writer.transport.abort()
            raise
        idle = self._idle.setdefault((address.host, address.port, address.secure), [])
        if reusable and len(idle) < IDLE_MAX:
            idle.append(line)
        else:
            line.writer.close()
        return posted

    async def aclose(self) -> None:
        """Close what is open and idle; the next request opens anew."""
        lines = [line for idle in self._idle.values() for line in idle]
        self._idle = {}
        for line in lines:
            line.writer.close()
        await asyncio.gather(*[line.writer.wait_closed() for line in lines], return_exceptions=True)

    def _taken(self, address: _Address) -> _Line | None:
        if self._process != os.getpid():  # what a parent process opened is the parent's
            self._process, self._idle = os.getpid(), {}
        idle = self._idle.get((address.host, address.port, address.secure))
        while idle:
            line = idle.pop()
            if line.usable:
                return line
            line.writer.close()
        return None


@lru_cache(maxsize=100)
def _address(url: str) -> _Address:
    parsed = httpx.URL(url)
    secure = parsed.scheme == "https"
    head = b"POST %b HTTP/1.1\r\nhost: %b\r\n%b" % (parsed.raw_path, parsed.netloc, _HEADERS)
    return _Address(parsed.raw_host.decode("ascii"), parsed.port or (443 if secure else 80), secure, head)


async def _open(address: _Address, timeout: float) -> _Line:
    async with _bounded(timeout, httpx.ConnectTimeout, httpx.ConnectError):
        context = tls() if address.secure else None
        return _Line(*await asyncio.open_connection(address.host, address.port, ssl=context, limit=HEAD_BYTES_MAX))


async def _answer(reader: asyncio.StreamReader, timeout: float) -> tuple[Posted, bool]:
    """The answer, and whether its connection can be used again."""
    async with _bounded(timeout, httpx.ReadTimeout, httpx.ReadError):
        status, reason, version, headers = await _head(reader)
        while status < 200 and status != 101:  # said on the way
            status, reason, version, headers = await _head(reader)
    kept = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if status in _NO_BODY:
        return Posted(status, reason, headers, b""), kept
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Posted(status, reason, headers, await _chunked(reader, timeout)), kept
    length = headers.get("content-length")
    async with _bounded(timeout, httpx.ReadTimeout, httpx.ReadError):
        if length is None:
            return Posted(status, reason, headers, await reader.read(-1)), False
        return Posted(status, reason, headers, await reader.readexactly(_number(length, 10))), kept


async def _head(reader: asyncio.StreamReader) -> tuple[int, str, str, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    status, _, reason = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(status) != 3:
        raise httpx.RemoteProtocolError(f"no answer of HTTP/1.1: {lines[0][:100]!r}")
    headers: dict[str, str] = {}
    for text in lines[1:-2]:
        name, colon, value = text.partition(":")
        if not colon:
            raise httpx.RemoteProtocolError(f"no header: {text[:100]!r}")
        headers[name.strip().lower()] = value.strip()
    return _number(status, 10), reason, version, headers


async def _chunked(reader: asyncio.StreamReader, timeout: float) -> bytes:
    parts: list[bytes] = []
    while True:
        async with _bounded(timeout, httpx.ReadTimeout, httpx.ReadError):
            size = _number((await _text(reader)).partition(";")[0].strip(), 16)
            if size == 0:
                while await _text(reader):  # trailers
                    pass
                return b"".join(parts)
            parts.append(await reader.readexactly(size))
            if await reader.readexactly(2) != b"\r\n":
                raise httpx.RemoteProtocolError("a chunk is longer than it says")


async def _text(reader: asyncio.StreamReader) -> str:
    line = await reader.readuntil(b"\r\n")
    if len(line) > _CHUNK_LINE_MAX:
        raise httpx.RemoteProtocolError("a line of a chunked answer is too long")
    return line[:-2].decode("latin-1")


def _number(text: str, base: int) -> int:
    if not text.isascii() or not text.isalnum():
        raise httpx.RemoteProtocolError(f"no number: {text[:100]!r}")
    try:
        return int(text, base)
    except ValueError:
        raise httpx.RemoteProtocolError(f"no number: {text[:100]!r}") from None


@asynccontextmanager
async def _bounded(timeout: float, late: type[httpx.TimeoutException], broken: type[httpx.NetworkError]) -> AsyncIterator[None]:
    """Errors of asyncio as those of httpx."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as error:
        raise late(f"nothing for {timeout} s") from error
    except asyncio.IncompleteReadError as error:
        raise httpx.RemoteProtocolError("the connection was closed before the answer was there") from error
    except asyncio.LimitOverrunError as error:
        raise httpx.RemoteProtocolError("the head of the answer is too large") from error
    except (OSError, ssl.SSLError) as error:
        raise broken(str(error)) from error
