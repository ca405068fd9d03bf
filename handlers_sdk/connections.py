"""Connections to a dispatcher, kept open and shared, in small groups.

A group is one httpx client: the cost of a request in its connection pool grows with the connections and the requests it holds (measured:
0.85 ms of CPU with 8 at once, 5.8 ms with 50), so a group takes a few at a time and another one is opened when all are full.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final

import httpx

GROUP: Final = 8
_LIMITS: Final = httpx.Limits(max_connections=GROUP, max_keepalive_connections=GROUP)


@dataclass(slots=True)
class _Group:
    client: httpx.AsyncClient
    busy: int = 0


class Connections:
    """Any number of requests at once. For one event loop; a forked child opens its own."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None) -> None:
        self._transport = transport
        self._groups: list[_Group] = []
        self._process = 0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client with room for one request."""
        group = self._roomy()
        group.busy += 1
        try:
            yield group.client
        finally:
            group.busy -= 1

    async def aclose(self) -> None:
        """Close what is open; the next request opens anew."""
        groups, self._groups = self._groups, []
        for group in groups:
            await group.client.aclose()

    def _roomy(self) -> _Group:
        if self._process != os.getpid():  # what a parent process opened is the parent's
            self._process, self._groups = os.getpid(), []
        for group in self._groups:
            if group.busy < GROUP:
                return group
        client = httpx.AsyncClient(transport=self._transport, verify=tls(), limits=_LIMITS, follow_redirects=False)
        self._groups.append(_Group(client))
        return self._groups[-1]


@cache
def tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than many requests."""
    return httpx.create_ssl_context()
