"""HTTP requests under the egress guard, on aiohttp.

Why aiohttp here, while everything that is not hot uses httpx: one POST of 0.7 KB on a kept connection costs 134-144 µs of CPU on
aiohttp and 1,650-3,100 µs on httpx's own transport, measured side by side; and aiohttp lets the socket be made by us.

The guard sits in `_make_socket`, on the literal address about to be connected to. Names come through `NameResolver`, which judges all
their addresses; a URL that holds a bare address never reaches a resolver, so the socket is where the rule is kept. TLS is checked
against the URL's host name, whatever address it led to.

What may go wrong here is told apart by what left this machine, recorded in `Flight`. A pooled connection the server has closed is found
by asking the kernel just before it is used: readable means closed, or bytes nobody asked for, and it is dropped either way. If the
close arrives between that look and the first byte, nothing was sent, and the request is made once more. After the first byte there is no
such certainty - the server may have read the request and died - so nothing is ever sent again: HTTP alone cannot tell (RFC 9112, 9.3.1),
and aiohttp repeats only idempotent methods, which POST is not. To make the window rare, connections are kept for less time than
servers keep them, and not at all when the server says it will close earlier still.

aiohttp's parser bounds header lines and their number, but neither interim responses nor the framing around a body; `_Meter` does.
It is installed through the connector's `_factory`, the one private name relied on here, and a test fails should that stop working.
"""

from __future__ import annotations

import asyncio
import functools
import re
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from yarl import URL

from dispatcher.delivery.dns import NameResolver
from dispatcher.delivery.egress import EgressPolicy, EgressRefused, judge
from dispatcher.delivery.flight import FLIGHT, Flight

INTERIM_LIMIT: Final = 16
"""1xx responses before the real one; a hundred-continue or two are normal, an endless row of them is not."""
FRAMING_ALLOWANCE: Final = 1_048_576
"""Raw bytes of an answer beyond twice its body: headers, and the framing of small chunks."""
PROBE_AFTER, PROBE_EVERY, PROBES = 20, 5, 4
"""TCP keep-alive: seconds of silence before the first probe, seconds between probes, and unanswered ones that end a connection."""
_KEEP_ALIVE_HINT: Final = re.compile(r"timeout\s*=\s*([0-9]{1,9})", re.IGNORECASE)
_AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class TransportBounds:
    """Seconds and counts. `connect` covers TCP and TLS; `keep_alive` is under the 5 s after which common servers close."""

    connect: float = 10.0
    keep_alive: float = 4.0
    headers: int = 128
    header_bytes: int = 8_190


class ResponseOverflow(Exception):  # noqa: N818 - reads as what happened
    """The answer went beyond its allowance of raw bytes or interim responses; the connection is gone."""


class Transport:
    """A pool of guarded connections. Make it inside the running loop, and close it."""

    def __init__(
        self,
        policy: EgressPolicy,
        resolver: NameResolver,
        *,
        tls: ssl.SSLContext | None = None,
        bounds: TransportBounds | None = None,
    ) -> None:
        bounds = bounds or TransportBounds()
        self._resolver = resolver
        self._session = aiohttp.ClientSession(
            connector=_GuardedConnector(policy, resolver, tls or default_tls(), bounds),
            request_class=_Request,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(sock_connect=bounds.connect),
            auto_decompress=False,
            trust_env=False,
            max_line_size=bounds.header_bytes,
            max_field_size=bounds.header_bytes,
            max_headers=bounds.headers,
        )

    async def open(self, method: str, url: URL, headers: Mapping[str, str], body: bytes | None, flight: Flight) -> aiohttp.ClientResponse:
        """Send one request and read the head of its answer. The caller reads the body, and closes the response if it stops early.

        No deadline but that for connecting: the caller has one around all of it. Cancelling closes the connection.
        """
        FLIGHT.set(flight)
        for last in (False, True):
            try:
                return await self._session.request(method, url, headers=headers, data=body, allow_redirects=False)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                if last or flight.sent or flight.fresh or body is None:
                    raise
            except Exception:
                if flight.refused:  # whatever became of it among the tries of several addresses
                    raise EgressRefused(flight.refused) from None
                raise
        raise AssertionError("the second round returns or raises")

    async def close(self) -> None:
        """Close every connection and end every look-up."""
        await self._session.close()
        await self._resolver.close()


@functools.cache
def default_tls() -> ssl.SSLContext:
    """Certificates and host names verified against the system's authorities (or `SSL_CERT_FILE`). Reading those takes 20 ms."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _GuardedConnector(aiohttp.TCPConnector):
    """Connections only to judged addresses, and from the pool only clean ones."""

    def __init__(self, policy: EgressPolicy, resolver: NameResolver, tls: ssl.SSLContext, bounds: TransportBounds) -> None:
        super().__init__(
            ssl=tls,
            resolver=resolver,
            use_dns_cache=False,
            limit=0,
            keepalive_timeout=bounds.keep_alive,
            socket_factory=functools.partial(_make_socket, policy),
        )
        self._factory = functools.partial(_Meter, loop=self._loop, keep_alive=bounds.keep_alive)  # type: ignore[assignment]

    async def connect(self, req: ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout) -> Connection:
        flight = FLIGHT.get()
        while True:
            flight.fresh = False
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if isinstance(protocol, _Meter) and (flight.fresh or _is_clean(protocol)):
                protocol.flight = flight
                return connection
            connection.close()


def _make_socket(policy: EgressPolicy, info: _AddressInfo) -> socket.socket:
    """The only place a socket for a request is made."""
    family, kind, protocol, _, address = info
    reason = judge(str(address[0]), int(address[1]), policy)
    if reason:
        FLIGHT.get().refused = reason
        raise EgressRefused(reason)
    FLIGHT.get().fresh = True
    made = socket.socket(family, kind, protocol)
    for option, value in _PROBING:
        made.setsockopt(*option, value)
    return made


def _probing() -> list[tuple[tuple[int, int], int]]:
    """A server that is gone without a word is noticed long before the deadline of what it was working on: by probes it does not answer."""
    options = [((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)]
    for name, value in (("TCP_KEEPIDLE", PROBE_AFTER), ("TCP_KEEPINTVL", PROBE_EVERY), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, name):
            options.append(((socket.IPPROTO_TCP, getattr(socket, name)), value))
    return options


_PROBING: Final = _probing()


def _is_clean(protocol: _Meter) -> bool:
    """Whether an idle connection has nothing to read: no end, no error, no bytes nobody asked for."""
    transport = protocol.transport
    if transport is None or transport.is_closing() or protocol.should_close:
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return not poll.poll(0)


class _Request(ClientRequest):
    """Marks the moment from which the handler may have run."""

    async def write_bytes(self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None) -> None:
        # Headers wait in the writer to leave with the body, so nothing has left before this.
        transport = conn.transport
        if transport is not None and not transport.is_closing():
            FLIGHT.get().leaves()
        await super().write_bytes(writer, conn, content_length)


class _Meter(ResponseHandler):
    """Counts what arrives against the flight's allowance, and keeps no connection the server will close before we would."""

    flight: Flight | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, keep_alive: float) -> None:
        super().__init__(loop)
        self._keep_alive = keep_alive

    def data_received(self, data: bytes) -> None:
        flight = self.flight
        if flight is not None:
            flight.allowance -= len(data)
            if flight.allowance < 0:
                self._overflow(flight)
                return
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Takes the head of each response, interim ones included."""
        message, flight = data[0], self.flight
        if message.code < 200 and flight is not None:
            flight.interim += 1
            if flight.interim > INTERIM_LIMIT:
                self._overflow(flight)
                return
        hint = message.headers.get("keep-alive")
        if hint is not None and (match := _KEEP_ALIVE_HINT.search(hint)) and int(match[1]) <= self._keep_alive:
            self.force_close()
        super().feed_data(data, size)

    def _overflow(self, flight: Flight) -> None:
        if not flight.overflow:
            flight.overflow = True
            self.set_exception(ResponseOverflow())
            if self.transport is not None:
                self.transport.abort()


async def read_body(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """(the body, whether it fits): of a longer one the first bytes, and the connection is closed, not drained."""
    content = response.content
    parts: list[bytes] = []
    size = 0
    if (response.content_length or 0) > limit:
        response.close()
        return b"", False
    while part := await content.readany():
        parts.append(part)
        size += len(part)
        if size > limit:
            response.close()
            return b"".join(parts)[:limit], False
    return (parts[0] if len(parts) == 1 else b"".join(parts)), True


def refused_encoding(response: aiohttp.ClientResponse) -> str | None:
    """The content coding of an answer we asked to have none, or None. It is never decoded: a bomb stays small."""
    coding = response.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    return coding if coding not in {"", "identity"} else None
