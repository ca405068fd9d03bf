"""Calls to a dispatcher over HTTP: authorisation, problem documents as errors, and retries of what certainly did nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import httpx

from handlers_sdk.config import ClientConfig
from handlers_sdk.connections import GROUP, Connections
from handlers_sdk.errors import ApiError, ApiUnreachableError
from handlers_sdk.posting import Posted, Posting, possible
from handlers_sdk.schemas import parse_json

_BACKOFF_MAX: Final = 5.0
_BUSY: Final = (429, 503)
_BEFORE_SENDING: Final = (httpx.ConnectError, httpx.ConnectTimeout)
_CALLS_AT_ONCE: Final = GROUP


class Api:
    """The dispatcher's HTTP face. Its coroutines run on the portal's loop only.

    Calls are few at a time, which is what makes many of them cheap; long polls are as many as there are.
    """

    def __init__(self, config: ClientConfig, posting: Posting | None = None) -> None:
        """With `posting`, JSON is posted its way wherever that will do."""
        self.config = config
        self._connections = Connections(config.transport)
        self._posting = posting if config.transport is None else None
        self._calls = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: Mapping[str, str | int | Sequence[str]] | None = None,
        token: str | None = None,
        base: str | None = None,
        wait: float = 0.0,
        repeatable: bool = False,
    ) -> tuple[int, Any]:
        """Status and parsed body of one call; ApiError for a refusal, ApiUnreachableError when no answer came.

        `token` and `base` stand in for the configured ones. `wait` adds to the time allowed, for long polls. A call that was certainly
        not executed (no connection, 429, 503) is repeated; `repeatable` says that any other failure may be repeated too.
        """
        return _answer(await self._response(method, path, content, params, token, base, wait, repeatable=repeatable), path)

    async def content(self, method: str, path: str, *, token: str | None = None, base: str | None = None, wait: float = 0.0) -> bytes:
        """The body of a repeatable call, as it came. Raises as `request` does."""
        response = await self._response(method, path, None, None, token, base, wait, repeatable=True)
        if not response.is_success:
            _answer(response, path)
        return response.content

    async def _response(
        self,
        method: str,
        path: str,
        content: bytes | None,
        params: Mapping[str, str | int | Sequence[str]] | None,
        token: str | None,
        base: str | None,
        wait: float,
        *,
        repeatable: bool,
    ) -> httpx.Response | Posted:
        for attempt in range(1, self.config.retry_attempts + 1):
            last = attempt == self.config.retry_attempts
            try:
                response = await self._send(method, path, content, params, token, base, wait)
            except httpx.HTTPError as error:
                if last or not (repeatable or isinstance(error, _BEFORE_SENDING)):
                    raise ApiUnreachableError(
                        f"{method} {base or self.config.base_url}{path}: {str(error) or type(error).__name__}"
                    ) from error
                await self._pause(attempt, None)
                continue
            if last or not (response.status_code in _BUSY or (repeatable and response.status_code >= 500)):
                return response
            await self._pause(attempt, response.headers.get("retry-after"))
        raise AssertionError("the last attempt returns or raises")

    @contextlib.asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str], silence: float) -> AsyncIterator[httpx.Response]:
        """The answer to a GET, to be read as it comes; httpx errors as they are, a `silence` of so many seconds among them."""
        bearer = {"authorization": f"Bearer {self.config.token}"} if self.config.token else {}
        timeout = httpx.Timeout(silence, connect=self.config.request_timeout, pool=None)
        url = self.config.base_url.rstrip("/") + path
        async with (
            self._connections.client() as client,
            client.stream("GET", url, headers={**bearer, **headers}, timeout=timeout) as response,
        ):
            yield response

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        await self._connections.aclose()
        if self._posting is not None:
            await self._posting.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        params: Mapping[str, str | int | Sequence[str]] | None,
        token: str | None,
        base: str | None,
        wait: float,
    ) -> httpx.Response | Posted:
        bearer = self.config.token if token is None else token
        url = (base or self.config.base_url).rstrip("/") + path
        if self._posting is not None and method == "POST" and content is not None and params is None and _possible(url):
            async with self._calls:
                return await self._posting.post(url, content, bearer, self.config.request_timeout + wait)
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        if content is not None:
            headers["content-type"] = "application/json"
        timeout = httpx.Timeout(self.config.request_timeout + wait, connect=self.config.request_timeout, pool=None)
        async with contextlib.nullcontext() if wait else self._calls, self._connections.client() as client:
            return await client.request(method, url, content=content, params=params, headers=headers, timeout=timeout)

    async def _pause(self, attempt: int, retry_after: str | None) -> None:
        delay = min(_BACKOFF_MAX, self.config.retry_backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
            delay = min(_BACKOFF_MAX, float(retry_after))
        await asyncio.sleep(delay)


@lru_cache(maxsize=100)
def _possible(url: str) -> bool:
    return possible(url)


def _answer(response: httpx.Response | Posted, path: str) -> tuple[int, Any]:
    try:
        body = parse_json(response.content) if response.content else None
    except ValueError:
        body = None
        if response.is_success:
            raise ApiUnreachableError(f"{path} answered {response.status_code} with something that is not JSON") from None
    if response.is_success:
        return response.status_code, body
    raise ApiError(response.status_code, body if isinstance(body, dict) else {"title": response.reason_phrase})
