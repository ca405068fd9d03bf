"""Making, changing and removing webhooks. What could not work is refused here, with the field named; what was tried is shown."""

from __future__ import annotations

import json
import secrets as random_secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any, Final

from pydantic import ValidationError

from dispatcher.clock import Clock
from dispatcher.engine.definitions import NAME
from dispatcher.engine.expressions import ExpressionError
from dispatcher.errors import Problem, problem
from dispatcher.ids import IdMaker
from dispatcher.runtime.webhooks.samples import Sample, sample_of
from dispatcher.runtime.webhooks.sources import FILTER_MACROS, GENERIC, Hook, Sources, compiled_expression, scheme_of
from dispatcher.sealing import SealError
from dispatcher.settings import Settings
from dispatcher.store import webhooks as store
from dispatcher.store.database import Connection, Database
from dispatcher.store.webhooks import WebhookRow, WebhookSecretRow
from webhooks import PROVIDERS, Scheme, body
from webhooks.ingest import SECRETS_MAX
from webhooks.keys import check_secret

BODY_FACTOR: Final = 10
"""How many times the usual body a webhook may ask for."""
RATE_MAX: Final = 10_000
_GENERATED: Final = frozenset({"hmac", "token", "basic"})


@dataclass(frozen=True, slots=True)
class Changes:
    """What a caller says of a webhook. UNCHANGED leaves a member as it is, or as it is when nothing is said."""

    values: Mapping[str, Any]
    sample: Sample | None = None

    def get(self, name: str, otherwise: Any) -> Any:
        """A member, or what it is otherwise."""
        return self.values.get(name, otherwise)


@dataclass(frozen=True, slots=True)
class Trial:
    """What the expressions make of a sample. `errors` are by member; nothing here keeps a webhook from being saved."""

    event_key: str | None = None
    scope: str | None = None
    passes: bool | None = None
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Management:
    """Everything that changes what webhooks there are."""

    def __init__(
        self, database: Database, sources: Sources, clock: Clock, settings: Settings, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._sources = sources
        self._clock = clock
        self._settings = settings
        self._changed = changed
        self._ids = IdMaker()

    async def create(self, tenant_id: int, name: str, source: str, changes: Changes, secrets: Sequence[str]) -> tuple[WebhookRow, Trial]:
        """Make a webhook. Raises Problem invalid_value, invalid_expression or webhook_exists."""
        if not NAME.fullmatch(name):
            raise _invalid("name", "1 to 200 letters, digits and _ . : - (not starting with punctuation)")
        row = self._drafted(name, source, changes)
        scheme = _checked_scheme(row)
        _check_secrets(scheme, secrets)
        trial = tried(row, scheme, changes.sample)
        async with self._database.transaction() as conn:
            await store.lock(conn, tenant_id)
            if not await store.insert(conn, tenant_id, row):
                raise problem("webhook_exists", f"there is a webhook {name!r} already")
            for secret in reversed(secrets):
                await store.add_secret(conn, tenant_id, row.id, self._sources.seal(tenant_id, row.id, secret), False, row.created_at)
        await self._changed()
        return row, trial

    async def change(self, tenant_id: int, name: str, changes: Changes) -> tuple[WebhookRow, Trial]:
        """Change what is given. Raises Problem."""
        async with self._changing(tenant_id, name) as (conn, before):
            row = replace(self._changed_row(before, changes), updated_at=self._clock.now())
            trial = tried(row, _checked_scheme(row), changes.sample)
            await store.update(conn, tenant_id, row)
        await self._changed()
        return row, trial

    async def delete(self, tenant_id: int, name: str) -> None:
        """Remove a webhook: from now on its address is like any that never was. Its deliveries stay as long as all others."""
        async with self._changing(tenant_id, name) as (conn, row):
            await store.delete(conn, tenant_id, row.id)
        await self._changed()

    async def add_secret(self, tenant_id: int, name: str, secret: str | None, overlap: timedelta | None) -> tuple[int, str | None]:
        """Add a secret, made here where none is given; answers its number, and its text if it was made here.

        With an `overlap` the others end after it, otherwise they go on until they are removed. Raises Problem.
        """
        now = self._clock.now()
        async with self._changing(tenant_id, name) as (conn, row):
            scheme = scheme_of(row.source, row.auth)[0]
            made = None if secret is not None else _generated(scheme)
            text = secret if secret is not None else made or ""
            _check_secrets(scheme, [text])
            if sum(_active(s, now) for s in await store.secrets(conn, tenant_id, row.id)) >= SECRETS_MAX:
                raise problem("too_many_secrets", f"a webhook has at most {SECRETS_MAX} active secrets; remove one that is not used")
            number = await store.add_secret(conn, tenant_id, row.id, self._sources.seal(tenant_id, row.id, text), False, now)
            if overlap is not None:
                await store.end_secrets(conn, tenant_id, row.id, number, now + overlap, now)
        await self._changed()
        return number, made

    async def remove_secret(self, tenant_id: int, name: str, number: int) -> None:
        """Forget a secret now. Raises Problem."""
        async with self._changing(tenant_id, name) as (conn, row):
            if not await store.remove_secret(conn, tenant_id, row.id, number):
                raise problem("not_found", f"webhook {name!r} has no secret {number}")
        await self._changed()

    async def capture(self, hook: Hook, secret: str) -> bool:
        """Keep the secret a sender told in its handshake; False when there is another by now."""
        tenant_id, webhook_id = hook.key
        async with self._database.transaction() as conn:
            await store.lock(conn, tenant_id)
            if await store.by_id(conn, tenant_id, webhook_id) is None:
                return False
            known = await store.secrets(conn, tenant_id, webhook_id)
            if known:
                return any(self._is(tenant_id, row, secret) for row in known if row.captured)
            sealed = self._sources.seal(tenant_id, webhook_id, secret)
            await store.add_secret(conn, tenant_id, webhook_id, sealed, True, self._clock.now())
        await self._changed()
        return True

    def _is(self, tenant_id: int, row: WebhookSecretRow, secret: str) -> bool:
        try:
            return compare_digest(self._sources.open(tenant_id, row).encode(), secret.encode())
        except SealError:
            return False

    @asynccontextmanager
    async def _changing(self, tenant_id: int, name: str) -> AsyncIterator[tuple[Connection, WebhookRow]]:
        """A webhook that nobody else changes meanwhile. Raises Problem unknown_webhook."""
        async with self._database.transaction() as conn:
            await store.lock(conn, tenant_id)
            row = await store.webhook(conn, tenant_id, name)
            if row is None:
                raise _unknown(name)
            yield conn, row

    async def row(self, tenant_id: int, name: str) -> WebhookRow:
        """A webhook. Raises Problem unknown_webhook."""
        row = await store.webhook(self._database, tenant_id, name)
        if row is None:
            raise _unknown(name)
        return row

    def _drafted(self, name: str, source: str, changes: Changes) -> WebhookRow:
        if source != GENERIC and source not in PROVIDERS:
            raise _invalid("source", f"{source!r} is none of generic, {', '.join(sorted(PROVIDERS))}")
        auth = changes.get("auth", None)
        if (auth is None) == (source == GENERIC):
            raise _invalid("auth", "a generic webhook describes its auth, that of a known sender is known")
        now, s = self._clock.now(), self._settings
        usual = PROVIDERS[source].event_key if source in PROVIDERS else ""
        event_key = changes.get("event_key_expression", usual)
        if not event_key:
            raise _invalid("event_key_expression", "an expression is needed, such as 'orders:' + input.type")
        row = WebhookRow(
            self._ids.make("wh", now), name, source, _json(auth), "{}", event_key, None, None, None, None,
            s.webhook_body_bytes, s.webhook_rate, s.webhook_burst, int(s.webhook_repeat_ttl * 1000), now, now,
        )  # fmt: skip
        return self._changed_row(row, changes)

    def _changed_row(self, row: WebhookRow, changes: Changes) -> WebhookRow:
        limit, repeat = changes.get("rate_limit", None), changes.get("repeat_window", None)
        static, response = changes.get("static_payload", ...), changes.get("response", ...)
        changed = replace(
            row,
            params=json.dumps(changes.get("params", json.loads(row.params))),
            event_key=changes.get("event_key_expression", row.event_key),
            scope=changes.get("scope_expression", row.scope),
            filter=changes.get("filter_expression", row.filter),
            static_payload=row.static_payload if static is ... else _json(static),
            response=row.response if response is ... else _json(response),
            body_bytes=changes.get("max_body_bytes", row.body_bytes),
            rate=row.rate if limit is None else limit["per_second"],
            burst=row.burst if limit is None else limit["burst"],
            repeat_ms=row.repeat_ms if repeat is None else round(repeat.total_seconds() * 1000),
        )
        self._check_bounds(changed)
        return changed

    def _check_bounds(self, row: WebhookRow) -> None:
        most = BODY_FACTOR * self._settings.webhook_body_bytes
        if not 0 < row.body_bytes <= most:
            raise _invalid("max_body_bytes", f"1 to {most:,}")
        if not 0 < row.rate <= RATE_MAX or not 0 < row.burst <= RATE_MAX:
            raise _invalid("rate_limit", f"`per_second` and `burst` are above 0 and at most {RATE_MAX:,}")
        wanted = PROVIDERS[row.source].params if row.source in PROVIDERS else ()
        missing = [name for name in wanted if not json.loads(row.params).get(name)]
        if missing:
            raise _invalid("params", f"{PROVIDERS[row.source].title} needs {' and '.join(missing)}")


def tried(row: WebhookRow, scheme: Scheme, sample: Sample | None) -> Trial:
    """What a webhook's expressions make of a sample. Raises Problem invalid_expression for one that cannot be read."""
    request = (sample or sample_of(row.source)).request("https://localhost/")
    static = json.loads(row.static_payload) if row.static_payload is not None else None
    value, headers = body.read(request, static_payload=static), body.kept_headers(request, scheme)
    results: dict[str, Any] = {}
    errors: dict[str, dict[str, str]] = {}
    warnings: list[str] = []
    for name, text, returns, macros in _expressions(row):
        if text is None:
            continue
        try:
            compiled = compiled_expression(text, returns, macros)
        except ExpressionError as error:
            raise _bad_expression(name, error) from None
        warnings += [f"{name}: {warning}" for warning in compiled.warnings]
        try:
            results[name] = compiled(input=value, headers=headers)
        except ExpressionError as error:
            errors[name] = {"code": error.code, "message": str(error)}
    return Trial(results.get("event_key_expression"), results.get("scope_expression"), results.get("filter_expression"), errors, warnings)


def _expressions(row: WebhookRow) -> tuple[tuple[str, str | None, type[Any], int], ...]:
    return (
        ("event_key_expression", row.event_key, str, 0),
        ("scope_expression", row.scope, str, 0),
        ("filter_expression", row.filter, bool, FILTER_MACROS),
    )


def _bad_expression(name: str, error: ExpressionError) -> Problem:
    more: dict[str, Any] = {"field": name, "reason": error.code}
    if error.position is not None:
        more["position"] = error.position
    return problem("invalid_expression", f"{name}: {error}", **more)


def _checked_scheme(row: WebhookRow) -> Scheme:
    try:
        return scheme_of(row.source, row.auth)[0]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["auth", *(str(step) for step in first["loc"] if step not in _AUTH_TYPES)])
        raise problem("invalid_value", f"{place}: {first['msg']}", field=place) from None


def _check_secrets(scheme: Scheme, secrets: Sequence[str]) -> None:
    if len(secrets) > SECRETS_MAX:
        raise _invalid("secrets", f"at most {SECRETS_MAX}")
    for secret in secrets:
        try:
            check_secret(scheme, secret)
        except ValueError as error:
            raise _invalid("secrets", f"one is not written as this sender writes it: {error}") from None


def _generated(scheme: Scheme) -> str:
    if scheme.kind not in _GENERATED or scheme.key != "utf8":
        raise _invalid("secret", "this sender makes its own: give the secret, or the key, it shows you")
    return random_secrets.token_hex(32)


def _active(secret: WebhookSecretRow, now: datetime) -> bool:
    return secret.not_after is None or now < secret.not_after


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _invalid(name: str, text: str) -> Problem:
    return problem("invalid_value", f"{name}: {text}", field=name)


def _unknown(name: str) -> Problem:
    return problem("unknown_webhook", f"there is no webhook {name[:200]!r}")


_AUTH_TYPES: Final = frozenset({"hmac", "ed25519", "ecdsa", "rsa", "basic", "api_key", "bearer", "jwt", "none"})
