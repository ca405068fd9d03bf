"""Which requests a process believes: configured secrets or public keys, or the dispatcher's published key set."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.api import Api
from handlers_sdk.errors import DispatcherError
from handlers_sdk.portal import PORTAL
from handlers_sdk.signing import Scheme, SignatureError, audience_of, verify

REFETCH_SECONDS: Final = 60
REFETCH_AFTER_FAILURE_SECONDS: Final = 5
_PUBLIC_KEY: Final = re.compile(r"whpk_[A-Za-z0-9+/]{43}=")

logger = logging.getLogger("handlers_sdk")


class KeySet:
    """The dispatcher's public keys, fetched when first needed and again when none matches, at most once a minute."""

    def __init__(self, fetch: Callable[[], Awaitable[Any]]) -> None:
        self._fetch = fetch
        self._keys: list[tuple[str, int | None]] = []
        self._fetched_at: int | None = None
        self._fetches = 0
        self._fetching = asyncio.Lock()

    def current(self, now: int) -> list[str]:
        """Keys that have not expired."""
        return [key for key, expires in self._keys if expires is None or now < expires]

    async def refresh(self, now: int) -> bool:
        """Fetch again unless that was done within the last minute; whether there is anything new to try."""
        before = self._fetches
        async with self._fetching:
            if self._fetches != before:
                return True  # another request fetched while this one waited
            if self._fetched_at is not None and now - self._fetched_at < REFETCH_SECONDS:
                return False
            self._fetched_at = now
            try:
                self._keys = _read(await self._fetch())
            except DispatcherError as error:
                self._fetched_at = now - REFETCH_SECONDS + REFETCH_AFTER_FAILURE_SECONDS
                logger.warning("the dispatcher's public keys could not be fetched: %s", error)
                return False
            self._fetches += 1
        return True


class Verifier:
    """Believes a request or raises SignatureError.

    With secrets, `v1` is checked; with public keys, `v1a`; with neither, `v1a` against the key set. A `v1a` key is shared by all endpoints
    of a tenant, so the request must also name this endpoint: one of `endpoint_ids`, or, when none is configured, the one named by the
    latest verified manifest request, or else by the first request.
    """

    def __init__(
        self,
        *,
        secrets: Sequence[str] = (),
        public_keys: Sequence[str] = (),
        endpoint_ids: Sequence[str] = (),
        key_set: KeySet | None = None,
    ) -> None:
        self._secrets = tuple(secrets)
        self._public_keys = tuple(public_keys)
        self._endpoint_ids = frozenset(endpoint_ids)
        self._learned: str | None = None
        self._key_set = key_set

    @property
    def scheme(self) -> Scheme:
        """What the manifest says is checked."""
        return "v1" if self._secrets else "v1a"

    def trust_endpoint(self, endpoint_id: str) -> None:
        """Accept `v1a` requests for this endpoint only: registration has said which it is."""
        self._endpoint_ids = frozenset((endpoint_id,))

    async def check(self, headers: Mapping[str, str], body: bytes, now: int, *, introduces: bool = False) -> Scheme:
        """The scheme that vouches for a request. `introduces` marks a manifest request, which may say which endpoint this is."""
        try:
            scheme = self._verify(headers, body, now)
        except SignatureError as error:
            if error.code != "mismatch" or self._key_set is None or not await self._key_set.refresh(now):
                raise
            scheme = self._verify(headers, body, now)
        if scheme == "v1a":
            self._check_audience(audience_of(headers[wire.HEADER_MESSAGE_ID]), introduces)
        return scheme

    def _verify(self, headers: Mapping[str, str], body: bytes, now: int) -> Scheme:
        keys: Sequence[str] = self._public_keys
        if self._key_set is not None:
            keys = [*keys, *self._key_set.current(now)]
        return verify(headers, body, secrets=self._secrets, public_keys=keys, audience=None, now=now)

    def _check_audience(self, audience: str, introduces: bool) -> None:
        if self._endpoint_ids:
            known = audience in self._endpoint_ids
        else:
            if introduces or self._learned is None:
                self._learned = audience
            known = audience == self._learned
        if not known:
            ours = ", ".join(sorted(self._endpoint_ids)) or self._learned
            raise SignatureError(
                "wrong_audience", f"signed for endpoint {audience}; this process answers for {ours}. Set DISPATCHER_ENDPOINT_ID"
            )


def verifier_for(api: Api) -> Verifier:
    """The verifier a configuration asks for."""
    config = api.config

    async def fetch() -> Any:
        params = {"tenant": config.tenant} if config.tenant else None
        _, body = await PORTAL.aio_call(api.request("GET", wire.KEYS_PATH, params=params, token="", repeatable=True))
        return body

    published = not config.signing_secrets and not config.public_keys
    return Verifier(
        secrets=config.signing_secrets,
        public_keys=config.public_keys,
        endpoint_ids=config.endpoint_ids,
        key_set=KeySet(fetch) if published else None,
    )


def _read(answer: Any) -> list[tuple[str, int | None]]:
    found = answer.get("keys") if isinstance(answer, dict) else None
    if not isinstance(found, list):
        logger.warning("the dispatcher's key set has no `keys`")
        return []
    return [(key["whpk"], key.get("exp")) for key in found if isinstance(key, dict) and _PUBLIC_KEY.fullmatch(str(key.get("whpk")))]
