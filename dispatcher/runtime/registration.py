"""Registering endpoints: discovery or a static manifest, versions, secrets, and what changes by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dispatcher.clock import Clock, monotonic
from dispatcher.delivery import Courier, DiscoveryError, EgressPolicy, EgressRefused, Manifest, check_url
from dispatcher.engine.definitions import (
    Definition,
    DefinitionError,
    checksum,
    content_checksum,
    dump,
    parse_definitions,
)
from dispatcher.engine.definitions.flow import Strategy
from dispatcher.engine.definitions.placement import MOST_LABEL, Label
from dispatcher.engine.flow import Plan, refuse_hopeless
from dispatcher.engine.placement import refuse_long
from dispatcher.engine.shared_limits import Disagreement
from dispatcher.errors import problem
from dispatcher.ids import IdMaker
from dispatcher.runtime import asides, limits_declared
from dispatcher.runtime.credentials import checked_auth, is_same_place
from dispatcher.runtime.crons import check_room, declare
from dispatcher.runtime.directory import Directory, Endpoint
from dispatcher.runtime.keyring import Keyring, secret_context
from dispatcher.runtime.limits_declared import Declared
from dispatcher.runtime.signals import Signals
from dispatcher.settings import Settings
from dispatcher.store import audit, crons, filters, gate_limits, registry, renewals, waits
from dispatcher.store.database import Connection, Database
from dispatcher.store.filters import NewFilter
from dispatcher.store.registry import EndpointPut, EndpointRow
from handlers_sdk.signing import HmacSigner, Signer, new_secret

_MOST_SLOTS = 1_000_000
_REGISTRATION_TRIES = 5
_MOST_LABELS = 100


@dataclass(frozen=True, slots=True)
class Offer:
    """What an endpoint is about to be registered as; `slots` is how much it says it takes at a time, if it does."""

    version: str
    manifest: dict[str, Any]
    definitions: tuple[Definition, ...]
    static: bool
    slots: int | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants an endpoint to be; `auth` is the header it is sent as, {} for none, None for the one it has."""

    url: str
    version: str | None
    slots: int | None
    labels: dict[str, Any] | None
    auth: dict[str, str] | None
    handlers: list[Any] | None


class _NameTaken(Exception):  # noqa: N818 - reads as what happened
    """The name was registered under another id since it was looked up."""


class Registration:
    """Handles everything under /v1/endpoints that changes something."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        keyring: Keyring,
        courier: Courier,
        egress: EgressPolicy,
        signals: Signals,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self._database = database
        self._directory = directory
        self._keyring = keyring
        self._courier = courier
        self._egress = egress
        self._signals = signals
        self._clock = clock
        self._settings = settings
        self._ids = IdMaker()

    async def put(
        self,
        tenant_id: int,
        name: str,
        *,
        url: str,
        version: str | None = None,
        slots: int | None = None,
        labels: dict[str, Any] | None = None,
        auth: dict[str, Any] | None = None,
        handlers: list[Any] | None = None,
        durable_slots: int | None = None,
    ) -> dict[str, Any]:
        """Register or update an endpoint. Raises Problem for a bad URL or manifest, and discovery_* when the GET gives none."""
        self._check_url(url)
        wanted = Wanted(url, version, slots, labels, checked_auth(auth), handlers)
        for _ in range(_REGISTRATION_TRIES):
            try:
                return await self._put(tenant_id, name, wanted, durable_slots)
            except _NameTaken:
                continue
        raise problem("conflict", f"{name!r} is being registered and deleted by others at the same time")

    async def _put(self, tenant_id: int, name: str, wanted: Wanted, durable_slots: int | None) -> dict[str, Any]:
        known = await registry.endpoint(self._database, tenant_id, name)
        endpoint_id = known.id if known is not None else self._ids.make("ep", self._clock.now())
        secret = new_secret() if known is None else None
        auth_sealed = self._auth_sealed(tenant_id, endpoint_id, wanted, known)
        if wanted.handlers is None:
            signers = await self._signers(tenant_id, endpoint_id, secret)
            headers = self._keyring.auth_headers(tenant_id, endpoint_id, auth_sealed)
            offer = await self._discovered(wanted.url, signers, headers, endpoint_id, wanted.version)
        else:
            offer = self._static(wanted.handlers, wanted.version)
        labels = wanted.labels if wanted.labels is not None else json.loads(known.labels) if known is not None else {}
        put = EndpointPut(
            tenant_id,
            endpoint_id,
            name,
            offer.version,
            wanted.url,
            json.dumps(offer.manifest),
            wanted.slots or (known.slots if known is not None else offer.slots or self._settings.default_slots),
            json.dumps(labels),
            auth_sealed,
            offer.static,
            self._durable_slots(durable_slots, offer, known),
        )
        found = await self._write(put, offer, secret)
        return self._document(put, offer, known, _names(known), secret) | {"warnings": [one.message for one in found]}

    def _durable_slots(self, asked: int | None, offer: Offer, known: EndpointRow | None) -> int | None:
        """How many turns of durable tasks it takes at a time; None where it has no such tasks."""
        if not any(task.durable for definition in offer.definitions for task in definition.tasks):
            return None
        return asked or (known.durable_slots if known is not None else None) or self._settings.default_durable_slots

    def _check_url(self, url: str) -> None:
        try:
            check_url(url, self._egress)
        except EgressRefused as refused:
            raise problem("destination_blocked", f"url: {refused}") from None
        except ValueError as error:
            raise problem("invalid_value", f"url: {error}") from None

    def _auth_sealed(self, tenant_id: int, endpoint_id: str, wanted: Wanted, known: EndpointRow | None) -> bytes | None:
        """The credentials an endpoint will have. Those it has are not sent to another place than they were given for."""
        if wanted.auth is not None or known is None or known.auth_sealed is None:
            return self._keyring.seal_auth(tenant_id, endpoint_id, wanted.auth)
        if not is_same_place(wanted.url, known.url):
            detail = (
                f'auth: that of {known.name!r} was given for {known.url}; give it again for this URL, or {{"type": "none"}} to remove it'
            )
            raise problem("invalid_value", detail, field="auth")
        return known.auth_sealed

    async def _signers(self, tenant_id: int, endpoint_id: str, secret: str | None) -> tuple[Signer, ...]:
        now = self._clock.now()
        rows = await registry.secrets(self._database, tenant_id, endpoint_id)
        signers = self._keyring.signers(tenant_id, endpoint_id, rows, await self._keyring.active(tenant_id, now), now)
        return (*signers.ed25519, *signers.hmac, *((HmacSigner(secret),) if secret is not None else ()))

    async def _discovered(
        self, url: str, signers: tuple[Signer, ...], headers: tuple[tuple[str, str], ...], endpoint_id: str, version: str | None
    ) -> Offer:
        try:
            manifest = await self._courier.discover(url, signers, headers, endpoint_id)
        except DiscoveryError as error:
            raise problem(f"discovery_{error.code}" if not error.code.startswith("destination") else error.code, str(error)) from None
        definitions = self._definitions(manifest.handlers, static=False)
        gathered = [d.name for d in definitions if d.tasks[0].batch is not None]
        if gathered and "batch" not in manifest.features:
            raise problem("invalid_value", f"{gathered[0]!r} is run in batches, which the endpoint's manifest does not say it takes")
        return _offer(manifest, definitions, version)

    def _static(self, handlers: list[Any], version: str | None) -> Offer:
        definitions = self._definitions(handlers, static=True)
        manifest = {"sdk": "", "features": [], "batch": None, "verified": None, "handlers": [dump(d) for d in definitions]}
        return Offer(version or _content_version(definitions), manifest, definitions, True, None)

    def _definitions(self, handlers: Sequence[Any], *, static: bool) -> tuple[Definition, ...]:
        try:
            definitions = parse_definitions(list(handlers), self._directory.limits, static=static)
            for definition in definitions:
                refuse_long(definition, {}, f"{definition.name}.desired_labels")
                refuse_hopeless(definition)
            return definitions
        except DefinitionError as error:
            raise problem("invalid_value", str(error), field=error.field) from None

    async def _write(self, put: EndpointPut, offer: Offer, secret: str | None) -> list[Disagreement]:
        """Answers what its workflows share with others and do not declare the same."""
        now = self._clock.now()
        names = {definition.name for definition in offer.definitions}
        async with self._database.transaction() as conn:
            await registry.bump(conn, put.tenant_id)
            landed = await registry.put_endpoint(conn, put, now)
            if landed is None:
                raise _NameTaken
            if not landed:
                raise problem("version_exists", f"version {put.version!r} of {put.name!r} exists with other handlers")
            if secret is not None:
                sealed = self._keyring.sealer.seal(secret.encode(), secret_context(put.tenant_id, put.id))
                await registry.add_secret(conn, put.tenant_id, put.id, sealed, now)
            declared = await self._write_workflows(conn, put, offer)
        await self._followed(put.tenant_id, declared)
        await self.changed()
        return [one for one in declared.disagreements if any(workflow in names for workflow, _ in one.declared)]

    async def _followed(self, tenant_id: int, declared: Declared) -> None:
        """Nobody is answered before the limits hold that he has declared."""
        if declared.news:
            await gate_limits.follow(self._database, tenant_id)

    async def _write_workflows(self, conn: Connection, put: EndpointPut, offer: Offer) -> Declared:
        now = self._clock.now()
        workflow_ids, rules = list[int](), dict[str, tuple[int | None, Strategy]]()
        before = await limits_declared.disagreeing(conn, put.tenant_id)
        for definition in offer.definitions:
            text = json.dumps(dump(definition))
            workflow_id = await registry.put_workflow(conn, put.tenant_id, definition.name, checksum(definition), text, now)
            given = definition.default_filters
            wanted = [NewFilter(self._ids.make("flt", now), workflow_id, f.scope, f.expression, f.payload) for f in given]
            await filters.declare(conn, put.tenant_id, workflow_id, wanted, now)
            await declare(conn, put.tenant_id, workflow_id, definition.on_crons, self._ids, now)
            if (plan := Plan.of(workflow_id, definition)) is not None:
                rules |= plan.rules()
            if definition.asks:
                await registry.mark_asking(conn, put.tenant_id, workflow_id)
            workflow_ids.append(workflow_id)
        if any(definition.on_crons for definition in offer.definitions):
            await check_room(conn, put.tenant_id, 0, self._settings.max_crons)
        await registry.set_routes(conn, put.tenant_id, put.id, workflow_ids)
        await asides.judge(conn, put.tenant_id, now)
        if any(task.durable for definition in offer.definitions for task in definition.tasks):
            await waits.unblock(conn, put.tenant_id, workflow_ids, None, now)  # what its code did not fit may fit this one's
        await crons.delete_unserved(conn, put.tenant_id)
        await renewals.returned(conn, put.tenant_id, put.id, now)
        declared = await limits_declared.redeclare(conn, put.tenant_id, rules)
        await self._note_disagreements(conn, put, [one for one in declared.disagreements if before.get(one.name) != one])
        return declared

    async def _note_disagreements(self, conn: Connection, put: EndpointPut, found: Sequence[Disagreement]) -> None:
        now = self._clock.now()
        for one in found:
            said = [{"workflow": name, "max_runs": c.max_runs, "limit_strategy": c.limit_strategy} for name, c in one.declared]
            details = {"endpoint": put.name, "declared": said, "max_runs": one.most, "limit_strategy": one.strategy}
            await audit.add(conn, put.tenant_id, self._ids.make("aud", now), now, None, "concurrency_limit.disagreement", one.name, details)

    async def changed(self) -> None:
        """Take note of a change here, and tell the others."""
        await self._directory.refresh(self._clock.now())
        self._signals.send("registry")

    def _document(
        self, put: EndpointPut, offer: Offer, known: EndpointRow | None, before: dict[str, str], secret: str | None
    ) -> dict[str, Any]:
        after = {d.name: checksum(d) for d in offer.definitions}
        diff = {
            "added": sorted(set(after) - set(before)),
            "removed": sorted(set(before) - set(after)),
            "changed": sorted(n for n in after if n in before and after[n] != before[n]),
        }
        changed = known is None or known.version != put.version or known.url != put.url or any(diff.values())
        document: dict[str, Any] = {
            "id": put.id,
            "endpoint": put.id,
            "name": put.name,
            "url": put.url,
            "version": put.version,
            "slots": put.slots,
            "durable_slots": put.durable_slots,
            "labels": json.loads(put.labels),
            "static": put.static,
            "verified": offer.manifest["verified"],
            "handlers": sorted(after),
            "changed": changed,
            "diff": diff,
        }
        if secret is not None:
            document["secret"] = secret
        return document

    async def rediscover(self, endpoint: Endpoint, version: str) -> bool:
        """Read an endpoint's manifest again, because it answers as another version than it named.

        Nothing is registered unless what it serves has changed. True when `version` is by another name what is registered, so that
        there is no need to ask again.
        """
        row = await registry.endpoint(self._database, endpoint.tenant_id, endpoint.name)
        if row is None or row.static:
            return False
        target = endpoint.target
        manifest = await self._courier.discover(target.url, target.signers, target.headers, endpoint.id)
        definitions = self._definitions(manifest.handlers, static=False)
        if {d.name: checksum(d) for d in definitions} == _names(row):
            return not manifest.version or manifest.version == version
        offer = _offer(manifest, definitions, None)
        put = EndpointPut(
            endpoint.tenant_id,
            row.id,
            row.name,
            offer.version,
            row.url,
            json.dumps(offer.manifest),
            row.slots,
            row.labels,
            row.auth_sealed,
            False,
            self._durable_slots(None, offer, row),
        )
        await self._write(put, offer, None)
        return False

    async def patch(
        self,
        tenant_id: int,
        name: str,
        *,
        paused: bool | None = None,
        slots: int | None = None,
        labels: dict[str, Any] | None = None,
        durable_slots: int | None = None,
        draining: bool | None = None,
    ) -> None:
        """Change what is given. A paused endpoint gets no new attempts; those open go on. One that is drained gets only those of what has
        to stay there.
        """
        row = await self._row(tenant_id, name)
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            text, now = json.dumps(labels) if labels is not None else None, self._clock.now()
            await registry.patch_endpoint(conn, tenant_id, row.id, paused, slots, text, now, durable_slots, draining)
            if draining:
                await registry.mark_served_asking(conn, tenant_id, row.id)
            await asides.judge(conn, tenant_id, now)
            if (row.paused and paused is False) or (row.draining and draining is False):
                await renewals.returned(conn, tenant_id, row.id, now)
        await self.changed()

    async def relabel(self, tenant_id: int, endpoint_id: str, labels: Mapping[str, Label | None]) -> None:
        """Change some labels of an endpoint at the word of a handler that runs there; null takes one away. Raises Problem invalid_value."""
        _check_labels(labels)
        text = json.dumps(labels)
        count, news = await registry.labels_with(self._database, tenant_id, endpoint_id, text)
        if count > _MOST_LABELS:
            raise problem("invalid_value", f"labels: at most {_MOST_LABELS}", field="labels")
        if not news:
            return  # who says the same again costs nobody a look at the registry
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            await registry.relabel(conn, tenant_id, endpoint_id, text, self._clock.now())
            await asides.judge(conn, tenant_id, self._clock.now())
        await self.changed()

    async def delete(self, tenant_id: int, name: str, *, force: bool = False) -> None:
        """Remove an endpoint. One where something runs, or is to go on, is refused unless forced; results are then still taken."""
        row = await self._row(tenant_id, name)
        running = await registry.running_at(self._database, tenant_id, row.id)
        if running and not force:
            raise problem("endpoint_in_use", f"{running} tasks are running at {name!r}, or are durable and go on there")
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            await registry.delete_endpoint(conn, tenant_id, row.id)
            await asides.judge(conn, tenant_id, self._clock.now())
            await crons.delete_unserved(conn, tenant_id)
            declared = await limits_declared.redeclare(conn, tenant_id, {})
        await self._followed(tenant_id, declared)
        await self.changed()

    async def ping(self, tenant_id: int, name: str) -> dict[str, Any]:
        """Ask an endpoint for a sign of life now: its manifest, or for a plain one a connection."""
        row = await self._row(tenant_id, name)
        await self._directory.refresh(self._clock.now())
        endpoint = self._directory.endpoint((tenant_id, row.id))
        if endpoint is None:
            raise problem("unknown_endpoint", f"no endpoint {name!r}")
        started = monotonic()
        error = await self._ping(endpoint)
        latency_ms = round((monotonic() - started) * 1000, 1)
        return {"ok": error is None, "latency_ms": latency_ms, "version": row.version, "error": error}

    async def _ping(self, endpoint: Endpoint) -> dict[str, str] | None:
        target = endpoint.target
        try:
            if not endpoint.static:
                await self._courier.discover(target.url, target.signers, target.headers, endpoint.id)
            elif not await self._courier.reachable(target.url, endpoint.id):
                return {"code": "discovery_unreachable", "message": "no connection could be made"}
        except DiscoveryError as error:
            return {"code": f"discovery_{error.code}", "message": str(error)}
        return None

    async def rotate(self, tenant_id: int, name: str, *, overlap: timedelta | None = None) -> dict[str, Any]:
        """Give an endpoint a new secret. Both sign until the overlap ends; another rotation before that is refused."""
        row = await self._row(tenant_id, name)
        now = self._clock.now()
        until = now + (overlap if overlap is not None else timedelta(seconds=self._settings.secret_overlap))
        secret = new_secret()
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            rows = await registry.secrets(conn, tenant_id, row.id)
            if any(s.not_after is not None and s.not_after > now for s in rows):
                raise problem("rotation_in_progress", f"the previous secret of {name!r} still signs")
            await registry.end_secrets(conn, tenant_id, row.id, until, now)
            sealed = self._keyring.sealer.seal(secret.encode(), secret_context(tenant_id, row.id))
            await registry.add_secret(conn, tenant_id, row.id, sealed, now)
        await self.changed()
        return {"secret": secret, "previous_until": until}

    async def cancel_rotation(self, tenant_id: int, name: str) -> None:
        """Go back to the secret before, and forget the new one."""
        row = await self._row(tenant_id, name)
        now = self._clock.now()
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            rows = await registry.secrets(conn, tenant_id, row.id)
            if not any(s.not_after is not None and s.not_after > now for s in rows):
                raise problem("no_rotation", f"the secret of {name!r} is not being rotated")
            await registry.undo_rotation(conn, tenant_id, row.id)
        await self.changed()

    async def task_keys(self, tenant_id: int) -> list[dict[str, Any]]:
        """The tenant's public keys."""
        return await self._keyring.published(tenant_id, self._clock.now())

    async def _row(self, tenant_id: int, name: str) -> EndpointRow:
        row = await registry.endpoint(self._database, tenant_id, name)
        if row is None:
            raise problem("unknown_endpoint", f"no endpoint {name!r}")
        return row


def _check_labels(labels: Mapping[str, Label | None]) -> None:
    for name, value in labels.items():
        plain = name.isprintable() and str(value).isprintable()
        if not plain or not 0 < len(name) <= MOST_LABEL or len(str(value)) > MOST_LABEL:
            said = f"labels.{name[:50]!r}: names and values have at most {MOST_LABEL} printable characters"
            raise problem("invalid_value", said, field="labels")


def _names(row: EndpointRow | None) -> dict[str, str]:
    """Names and content checksums of what an endpoint serves."""
    if row is None:
        return {}
    return {h["name"]: content_checksum(h) for h in json.loads(row.manifest)["handlers"]}


def _content_version(definitions: Sequence[Definition]) -> str:
    """A version for endpoints that name none: it changes when what they serve changes."""
    return hashlib.sha256("\n".join(sorted(checksum(d) for d in definitions)).encode()).hexdigest()[:12]


def _offer(manifest: Manifest, definitions: tuple[Definition, ...], version: str | None) -> Offer:
    version = version or manifest.version or _content_version(definitions)
    asked = manifest.limits.concurrency
    slots = asked if asked is not None and 0 < asked <= _MOST_SLOTS else None
    return Offer(version, _stored(manifest, definitions), definitions, False, slots)


def _stored(manifest: Manifest, definitions: Sequence[Definition]) -> dict[str, Any]:
    batch = manifest.batch
    return {
        "sdk": manifest.sdk,
        "version": manifest.version or None,
        "features": sorted(manifest.features),
        "batch": {"max_items": batch.max_items, "max_bytes": batch.max_bytes} if batch is not None else None,
        "verified": manifest.verified,
        "handlers": [dump(d) for d in definitions],
    }
