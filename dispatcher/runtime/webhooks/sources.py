"""This process's picture of every address that receives webhooks, kept ready to verify and to route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from dispatcher.clock import monotonic
from dispatcher.engine.expressions import Expression, ExpressionError
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.webhooks.buckets import Bucket
from dispatcher.sealing import Sealer
from dispatcher.store import webhooks as store
from dispatcher.store.database import Database
from dispatcher.store.registry import Tenant
from dispatcher.store.webhooks import WebhookRow, WebhookSecretRow
from webhooks import PROVIDERS, JsonValue, Response, Scheme, Source
from webhooks.generic import AUTH
from webhooks.ingest import SECRETS_MAX, Evaluate
from webhooks.response import NOSNIFF

GENERIC: Final = "generic"
FILTER_MACROS: Final = 4
CATCH_UP_EVERY: Final = timedelta(milliseconds=50)


def secret_context(tenant_id: int, webhook_id: str) -> str:
    """What a webhook's secret is bound to when sealed."""
    return f"{tenant_id}|{webhook_id}|webhook"


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret of a webhook, opened."""

    number: int
    text: str
    not_after: datetime | None


@dataclass(frozen=True, slots=True)
class Hook:
    """One address as this process receives for it.

    `secrets` are those of `source`, in its order; `until` is when one of them ends. `filter_loops` says that the filter goes through
    lists, and may take a while.
    """

    tenant: Tenant
    row: WebhookRow
    source: Source
    secrets: tuple[Secret, ...]
    until: datetime | None
    filter: Evaluate | None
    filter_loops: bool
    bucket: Bucket
    recording: Bucket

    @property
    def key(self) -> tuple[int, str]:
        """(tenant, webhook)."""
        return self.tenant.id, self.row.id


def scheme_of(source: str, auth: str | None) -> tuple[Scheme, dict[str, str]]:
    """How a webhook proves its sender, and the settings that come with it. Raises pydantic.ValidationError."""
    if source != GENERIC:
        return PROVIDERS[source].scheme, {}
    described = AUTH.validate_json(auth or "null")
    return described.scheme(), described.params()


def compiled_expression(source: str, returns: type[Any], macros: int = 0) -> Expression[Any]:
    """An expression over `input` and `headers`. Raises ExpressionError."""
    return Expression(source, returns=returns, macros=macros, names=("input", "headers"), clock=monotonic)


def expression(source: str | None, returns: type[str | bool], macros: int = 0) -> Evaluate | None:
    """An expression ready to be evaluated. One that cannot be read any more fails when it is evaluated, and loses nothing."""
    if source is None:
        return None
    try:
        compiled = compiled_expression(source, returns, macros)
    except ExpressionError as error:
        failure = error

        def fail(_input: JsonValue, _headers: Mapping[str, str]) -> Any:
            raise failure

        return fail
    return lambda value, headers: compiled(input=value, headers=headers)


def response_of(text: str | None, source: str) -> Response | None:
    """What an accepted delivery is answered, where it is not the usual answer."""
    if text is None:
        return PROVIDERS[source].response if source in PROVIDERS else None
    given = json.loads(text)
    headers = (("content-type", given["content_type"]), NOSNIFF) if given["body"] else (NOSNIFF,)
    return Response(given["status"], headers, given["body"].encode())


def source_of(row: WebhookRow, secrets: Sequence[Secret]) -> Source:
    """What the verification package needs to know of an address. The filter is left out: it runs on its own."""
    scheme, params = scheme_of(row.source, row.auth)
    event_key = expression(row.event_key, str)
    assert event_key is not None, "every webhook has one"
    return Source(
        name=row.name,
        scheme=scheme,
        event_key=event_key,
        secrets=tuple(secret.text for secret in secrets[:SECRETS_MAX]),
        params={**json.loads(row.params), **params},
        challenges=PROVIDERS[row.source].challenges if row.source in PROVIDERS else (),
        scope=expression(row.scope, str),
        static_payload=json.loads(row.static_payload) if row.static_payload is not None else None,
        response=response_of(row.response, row.source),
        body_bytes_max=row.body_bytes,
    )


class Sources:
    """Every address of every tenant. `refresh` brings it up to date with the directory; `find` answers from memory."""

    def __init__(self, database: Database, directory: Directory, sealer: Sealer, recorded: tuple[float, int]) -> None:
        self._database = database
        self._directory = directory
        self._sealer = sealer
        self._recorded = recorded
        self._versions: dict[int, int] = {}
        self._hooks: dict[tuple[str, str], Hook] = {}
        self._opened: dict[bytes, str] = {}
        self._lock = asyncio.Lock()
        self._flight: asyncio.Future[bool] | None = None
        self._caught_up: datetime | None = None

    async def refresh(self, now: datetime) -> bool:
        """Read again what belongs to tenants whose registry has moved on; True when any had."""
        async with self._lock:
            return await self._refresh(now)

    async def _refresh(self, now: datetime) -> bool:
        stale = [p.tenant for p in self._directory.pictures.values() if self._versions.get(p.tenant.id) != p.tenant.registry_version]
        for tenant in stale:
            rows = await store.webhooks(self._database, tenant.id)
            secrets = await store.secrets(self._database, tenant.id) if rows else []
            known = {hook.key: hook for hook in self._hooks.values() if hook.tenant.id == tenant.id}
            hooks = [self._hook(tenant, row, [s for s in secrets if s.webhook_id == row.id], known, now) for row in rows]
            self._hooks = {at: hook for at, hook in self._hooks.items() if hook.tenant.id != tenant.id}
            self._hooks.update({(tenant.slug, hook.row.name): hook for hook in hooks})
            self._versions[tenant.id] = tenant.registry_version
        return bool(stale)

    async def catch_up(self, now: datetime) -> bool:
        """Read what another process may just have changed, at most every few milliseconds; True when anything had.

        Whoever asks while that is being read waits for it too: what it brings may be what they miss.
        """
        if self._flight is None:
            self._flight = asyncio.ensure_future(self._catch_up(now))
            self._flight.add_done_callback(self._landed)
        return await asyncio.shield(self._flight)

    async def _catch_up(self, now: datetime) -> bool:
        if self._caught_up is not None and now < self._caught_up + CATCH_UP_EVERY:
            return False
        await self._directory.refresh(now)
        changed = await self.refresh(now)
        self._caught_up = now
        return changed

    def _landed(self, flight: asyncio.Future[bool]) -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # looked at, even when everybody who waited is gone

    def find(self, slug: str, name: str, now: datetime) -> Hook | None:
        """The address of a tenant, with the secrets that are active now."""
        hook = self._hooks.get((slug, name))
        if hook is None or hook.until is None or now < hook.until:
            return hook
        secrets = tuple(secret for secret in hook.secrets if secret.not_after is None or now < secret.not_after)
        source = replace(hook.source, secrets=tuple(secret.text for secret in secrets))
        fresh = replace(hook, source=source, secrets=secrets, until=_first_end(secrets))
        self._hooks[slug, name] = fresh
        return fresh

    def open(self, tenant_id: int, row: WebhookSecretRow) -> str:
        """A secret's text, opened once."""
        if row.sealed not in self._opened:
            self._opened[row.sealed] = self._sealer.open(row.sealed, secret_context(tenant_id, row.webhook_id)).decode()
        return self._opened[row.sealed]

    def seal(self, tenant_id: int, webhook_id: str, secret: str) -> bytes:
        """A secret as it is stored."""
        return self._sealer.seal(secret.encode(), secret_context(tenant_id, webhook_id))

    def _hook(
        self, tenant: Tenant, row: WebhookRow, secrets: Sequence[WebhookSecretRow], known: Mapping[tuple[int, str], Hook], now: datetime
    ) -> Hook:
        active = [s for s in secrets if s.not_after is None or now < s.not_after][:SECRETS_MAX]
        opened = tuple(Secret(s.number, self.open(tenant.id, s), s.not_after) for s in active)
        before = known.get((tenant.id, row.id))
        bucket = before.bucket if before is not None else Bucket(row.rate, row.burst, now)
        if (bucket.rate, bucket.burst) != (row.rate, row.burst):
            bucket = Bucket(row.rate, row.burst, now)
        recording = before.recording if before is not None else Bucket(*self._recorded, now)
        filter_ = expression(row.filter, bool, FILTER_MACROS)
        return Hook(tenant, row, source_of(row, opened), opened, _first_end(opened), filter_, _loops(row.filter), bucket, recording)


def _loops(source: str | None) -> bool:
    """Whether an expression uses macros."""
    try:
        compiled_expression(source or "true", bool)
    except ExpressionError:
        return True
    return False


def _first_end(secrets: Sequence[Secret]) -> datetime | None:
    return min((secret.not_after for secret in secrets if secret.not_after is not None), default=None)
