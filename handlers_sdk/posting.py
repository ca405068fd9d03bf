"""POSTs of JSON to a dispatcher with aiohttp: the hot way of callbacks, where a request of httpx (measured: 0.78 ms of CPU, this 0.13 ms)
costs as much as all else a step does.

What fails is an httpx error, so that whoever calls need not know which way a request went. Proxies, and whatever else httpx is configured
for, are left to it, as is all of it where aiohttp is not installed: `possible` says whether this will do. It is imported with the first
request: that takes a tenth of a second, which a cold start that has nothing to report should not wait for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies

import httpx

from handlers_sdk.connections import tls

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

CONNECTIONS_MAX: Final = 8
_HEADERS: Final = {"accept": "application/json", "user-agent": "handlers-sdk", "content-type": "application/json"}
_PROXIES: Final = frozenset({"http", "https", "all"})


@dataclass(frozen=True, slots=True)
class Posted:
    """An answer, as far as a caller of the dispatcher looks at it. Headers are found in any case."""

    status_code: int
    reason_phrase: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """2xx."""
        return 200 <= self.status_code < 300


def possible(url: str) -> bool:
    """Whether requests to this URL need nothing that only httpx knows."""
    parsed = httpx.URL(url)
    return (
        _installed()
        and parsed.scheme in ("http", "https")
        and bool(parsed.host)
        and not parsed.userinfo
        and not _PROXIES & getproxies().keys()
    )


class Posting:
    """Connections of one event loop, kept open and taken again. A forked child opens its own."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._process = 0

    async def post(self, url: str, content: bytes, token: str, timeout: float) -> Posted:
        """Send JSON and read the answer. `timeout` (seconds) is for connecting, and for each part of the answer. Raises httpx errors."""
        import aiohttp

        headers = {"authorization": f"Bearer {token}"} if token else None
        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        try:
            async with self._opened().post(_url(url), data=content, headers=headers, timeout=limits, allow_redirects=False) as answer:
                return Posted(answer.status, answer.reason or "", answer.headers, await answer.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _known(error)(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Close what is open; the next request opens anew."""
        session, self._session = self._session, None
        if session is not None and self._process == os.getpid():
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._process != os.getpid():  # what a parent process opened is the parent's
            import aiohttp

            connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=tls())
            self._process, self._session = (
                os.getpid(),
                aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=_HEADERS),
            )
        return self._session


@cache
def _installed() -> bool:
    return find_spec("aiohttp") is not None


@lru_cache(maxsize=100)
def _url(url: str) -> URL:
    from yarl import URL

    return URL(url, encoded=True)


def _known(error: BaseException) -> type[httpx.TransportError]:
    """What httpx calls an error of aiohttp."""
    import aiohttp

    names: tuple[tuple[type[BaseException], type[httpx.TransportError]], ...] = (  # the narrower before the wider
        (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
        (TimeoutError, httpx.ReadTimeout),
        (aiohttp.ClientConnectorError, httpx.ConnectError),
        (aiohttp.ClientOSError, httpx.ReadError),
    )
    return next((theirs for ours, theirs in names if isinstance(error, ours)), httpx.RemoteProtocolError)
