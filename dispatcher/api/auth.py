"""Who is calling: a token's tenant and scopes, or the developer on this machine.

A token is looked up in the database once, however many calls come with it meanwhile, and then remembered for a few seconds, so that the
busiest routes ask nobody, and a revocation takes effect within that time on every process (at once on the one that revokes). Nothing but
the Authorization header is looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from dispatcher.api.credentials import parse_token
from dispatcher.clock import Clock
from dispatcher.errors import problem
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.tokens import PREFIX, AttemptToken
from dispatcher.settings import Settings
from dispatcher.store import tokens
from dispatcher.store.database import Database, DatabaseUnavailable, is_transient

_log = logging.getLogger(__name__)

EVERYTHING: Final = "*"
DEFAULT_TENANT: Final = "default"
REMEMBERED: Final = timedelta(seconds=5)
_MOST_REMEMBERED: Final = 10_000
_MISSING: Final = "send a token: Authorization: Bearer dsp_live_…"
_UNKNOWN: Final = "the token is unknown, expired or revoked"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call is made. `token_id` is None for the developer on this machine, and for a running `attempt`."""

    tenant_id: int
    tenant: str
    scopes: frozenset[str]
    token_id: str | None
    attempt: AttemptToken | None = None

    def may(self, scope: str) -> bool:
        """Whether this caller has a scope."""
        return scope in self.scopes or EVERYTHING in self.scopes


@dataclass(slots=True)
class _Remembered:
    caller: Caller
    until: datetime


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    token_id: str
    found: asyncio.Task[_Remembered]


class Guard:
    """Tells callers apart."""

    def __init__(self, settings: Settings, clock: Clock, database: Database, directory: Directory) -> None:
        self._dev = settings.dev
        self._clock = clock
        self._database = database
        self._directory = directory
        self._remembered: dict[bytes, _Remembered] = {}
        self._looks: dict[bytes, _Look] = {}
        """Those under way, whose callers are to be remembered."""
        self._local: Caller | None = None
        self.attempts: Callable[[str, int], AttemptToken | None] = lambda _token, _now: None
        self.nobody = Caller(0, "", frozenset(), None)
        """Who calls an open route, and has nothing of its own there."""

    def known(self, headers: Mapping[bytes, bytes], client: tuple[str, int] | None) -> Caller | None:
        """The caller, as far as no database is needed to tell."""
        authorization = headers.get(b"authorization")
        if authorization is None:
            return self._developer(headers, client)
        found = self._remembered.get(hashlib.sha256(authorization).digest())
        return found.caller if found is not None and self._clock.now() < found.until else None

    async def identify(self, headers: Mapping[bytes, bytes], client: tuple[str, int] | None) -> Caller:
        """The caller behind a token. Raises Problem unauthorized."""
        authorization = headers.get(b"authorization")
        if authorization is None:
            raise problem("unauthorized", _MISSING)
        token = bearer(headers)
        if token.startswith(f"{PREFIX}."):
            return self._attempt(token)
        parts = parse_token(token)
        if parts is None:
            raise problem("unauthorized", "the token is damaged or not one of this server; it starts with dsp_live_")
        key = hashlib.sha256(authorization).digest()
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = _Look(parts[0], asyncio.create_task(self._look_up(*parts)))
            look.found.add_done_callback(lambda _: self._looked_up(key, look))
        return (await asyncio.shield(look.found)).caller

    async def _look_up(self, public_id: str, secret_hash: bytes) -> _Remembered:
        now = self._clock.now()
        row = await tokens.find(self._database, public_id)
        # Compared with something in any case, so that the time taken does not tell which ids exist.
        matches = hmac.compare_digest(secret_hash, row.secret_hash if row is not None else bytes(32))
        if row is None or not matches or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
            raise problem("unauthorized", _UNKNOWN)
        if self._directory.tenant(row.tenant) is None:
            await self._directory.refresh(now)  # a tenant that another process has made since this one looked
        caller = Caller(row.tenant_id, row.tenant, frozenset(row.scopes), row.public_id)
        until = min(now + REMEMBERED, row.expires_at) if row.expires_at is not None else now + REMEMBERED
        if row.last_used_at is None or row.last_used_at < now - tokens.USE_RESOLUTION:
            await self._note_use(public_id, now)
        return _Remembered(caller, until)

    def _looked_up(self, key: bytes, look: _Look) -> None:
        """What has been forgotten meanwhile is not remembered. Callers who have all gone hear of no error."""
        if not look.found.cancelled() and look.found.exception() is None and self._looks.get(key) is look:
            self._remember(key, look.found.result())
        if self._looks.get(key) is look:
            del self._looks[key]

    def _attempt(self, token: str) -> Caller:
        found = self.attempts(token, int(self._clock.now().timestamp()))
        picture = self._directory.pictures.get(found.tenant_id) if found is not None else None
        if found is None or picture is None:
            raise problem("unauthorized", "the attempt token is forged, damaged or expired")
        return Caller(found.tenant_id, picture.tenant.slug, frozenset(), None, found)

    def forget(self, public_id: str) -> None:
        """Do not take this token on trust any longer."""
        for key in [key for key, found in self._remembered.items() if found.caller.token_id == public_id]:
            del self._remembered[key]
        for key in [key for key, look in self._looks.items() if look.token_id == public_id]:
            del self._looks[key]

    def _remember(self, key: bytes, found: _Remembered) -> None:
        self._remembered.pop(key, None)
        while len(self._remembered) >= _MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key] = found

    async def _note_use(self, public_id: str, now: datetime) -> None:
        try:
            await tokens.used(self._database, [public_id], now)
        except Exception as error:
            if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                raise
            _log.info("the use of token %s was not noted: %s", public_id, error)

    def _developer(self, headers: Mapping[bytes, bytes], client: tuple[str, int] | None) -> Caller | None:
        """In development, whoever calls from this machine, by a name of this machine, and not from a page of another site.

        The name is checked because a page may point its own at 127.0.0.1 (DNS rebinding). What a proxy forwards may come from anywhere.
        With a token none of this matters.
        """
        if not self._dev or client is None or not _is_loopback(client[0]) or b"x-forwarded-for" in headers or b"forwarded" in headers:
            return None
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if not _is_local_name(host) or (origin is not None and not _is_local_name(origin.partition(b"://")[2])):
            named = host if origin is None else origin
            raise problem("host_not_allowed", f"without a token, this server does not answer {named.decode('latin-1')}")
        if self._local is None and (tenant := self._directory.tenant(DEFAULT_TENANT)) is not None:
            self._local = Caller(tenant.id, tenant.slug, frozenset({EVERYTHING}), None)
        return self._local


def bearer(headers: Mapping[bytes, bytes]) -> str:
    """The token of the Authorization header; empty where there is none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or (address.version == 6 and address.ipv4_mapped is not None and address.ipv4_mapped.is_loopback)


@lru_cache(maxsize=1024)
def _is_local_name(authority: bytes) -> bool:
    try:
        name = urlsplit(f"//{authority.decode('ascii')}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
