"""This process's picture of every address that receives webhooks, kept ready to verify and to route."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Final

from dispatcher.clock import monotonic
from dispatcher.engine.expressions import Expression, ExpressionError
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.rereading import Rereading
from dispatcher.runtime.webhooks.buckets import Bucket
from dispatcher.sealing import Sealer, SealError
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
CATCH_UP_SECONDS: Final = 0.01

_log = logging.getLogger(__name__)


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
    lists, and may take a while. `sealed` says that it has secrets which do not open with this server's key.
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
    sealed: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """(tenant's slug, name): where its address ends."""
        return self.tenant.slug, self.row.name

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
        self._opened: dict[tuple[int, bytes], str] = {}
        self._lock = asyncio.Lock()
        self.rereading = Rereading(self.refresh, CATCH_UP_SECONDS)

    async def refresh(self, now: datetime) -> bool:
        """Read again what belongs to tenants whose webhooks have changed; True when any had."""
        async with self._lock:
            return await self._refresh(now)

    async def _refresh(self, now: datetime) -> bool:
        versions = await store.versions(self._database)
        if not versions.keys() <= self._directory.pictures.keys():
            await self._directory.refresh(now)
        pictures = self._directory.pictures
        stale = [pictures[id_].tenant for id_, version in versions.items() if id_ in pictures and self._versions.get(id_) != version]
        for tenant in stale:
            rows = await store.webhooks(self._database, tenant.id)
            secrets = await store.secrets(self._database, tenant.id) if rows else []
            known = {hook.key: hook for hook in self._hooks.values() if hook.tenant.id == tenant.id}
            hooks = [self._readable(tenant, row, [s for s in secrets if s.webhook_id == row.id], known, now) for row in rows]
            self._hooks = {at: hook for at, hook in self._hooks.items() if hook.tenant.id != tenant.id}
            self._hooks.update({(tenant.slug, hook.row.name): hook for hook in hooks if hook is not None})
            self._versions[tenant.id] = versions[tenant.id]
            self._forget(tenant.id, {secret.sealed for secret in secrets})
        return bool(stale)

    def _forget(self, tenant_id: int, kept: set[bytes]) -> None:
        """Let go of what secrets say that are no more."""
        self._opened = {at: text for at, text in self._opened.items() if at[0] != tenant_id or at[1] in kept}

    async def catch_up(self, now: datetime) -> None:
        """Read what another process may just have changed."""
        await self.rereading.ask(now)

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

    def by_key(self, key: tuple[int, str]) -> Hook | None:
        """The address of this (tenant, webhook)."""
        return next((hook for hook in self._hooks.values() if hook.key == key), None)

    def open(self, tenant_id: int, row: WebhookSecretRow) -> str:
        """A secret's text, opened once. Raises SealError."""
        at = (tenant_id, row.sealed)
        if at not in self._opened:
            self._opened[at] = self._sealer.open(row.sealed, secret_context(tenant_id, row.webhook_id)).decode()
        return self._opened[at]

    def seal(self, tenant_id: int, webhook_id: str, secret: str) -> bytes:
        """A secret as it is stored."""
        return self._sealer.seal(secret.encode(), secret_context(tenant_id, webhook_id))

    def _readable(
        self, tenant: Tenant, row: WebhookRow, secrets: Sequence[WebhookSecretRow], known: Mapping[tuple[int, str], Hook], now: datetime
    ) -> Hook | None:
        """A webhook ready to receive. One whose row makes no sense here is left out, and does not stand in the others' way."""
        try:
            return self._hook(tenant, row, secrets, known.get((tenant.id, row.id)), now)
        except (LookupError, TypeError, ValueError):
            _log.exception("webhook %s of tenant %s cannot be read", row.name, tenant.slug)
            return None

    def _hook(self, tenant: Tenant, row: WebhookRow, secrets: Sequence[WebhookSecretRow], before: Hook | None, now: datetime) -> Hook:
        active = [s for s in secrets if s.not_after is None or now < s.not_after]
        opened = tuple(secret for secret in map(partial(self._secret, tenant, row), active) if secret is not None)[:SECRETS_MAX]
        bucket = before.bucket if before is not None else Bucket(row.rate, row.burst, now)
        if (bucket.rate, bucket.burst) != (row.rate, row.burst):
            bucket = Bucket(row.rate, row.burst, now)
        recording = before.recording if before is not None else Bucket(*self._recorded, now)
        filter_ = expression(row.filter, bool, FILTER_MACROS)
        sealed = len(opened) < min(len(active), SECRETS_MAX)
        return Hook(tenant, row, source_of(row, opened), opened, _first_end(opened), filter_, _loops(row.filter), bucket, recording, sealed)

    def _secret(self, tenant: Tenant, webhook: WebhookRow, row: WebhookSecretRow) -> Secret | None:
        try:
            return Secret(row.number, self.open(tenant.id, row), row.not_after)
        except (SealError, UnicodeDecodeError) as error:
            _log.error("secret %d of webhook %s of tenant %s: %s", row.number, webhook.name, tenant.slug, error)
            return None


def _loops(source: str | None) -> bool:
    """Whether an expression uses macros."""
    try:
        compiled_expression(source or "true", bool)
    except ExpressionError:
        return True
    return False


def _first_end(secrets: Sequence[Secret]) -> datetime | None:
    return min((secret.not_after for secret in secrets if secret.not_after is not None), default=None)
