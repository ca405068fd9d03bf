"""/v1/webhooks: addresses that receive webhooks, their secrets, and what arrived at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher.api.decoding import EARLIEST, duration, moment, one_of
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, cursor, page, position
from dispatcher.api.triggering import Moment
from dispatcher.api.views import raw
from dispatcher.errors import problem
from dispatcher.runtime.webhooks.deliveries import Replayed, Replays
from dispatcher.runtime.webhooks.management import Changes, Trial
from dispatcher.runtime.webhooks.samples import Sample
from dispatcher.store import webhook_deliveries, webhooks
from dispatcher.store.webhook_deliveries import DeliveryFilter, DeliveryRow, FollowedRow, StoredDelivery
from dispatcher.store.webhooks import WebhookRow, WebhookSecretRow
from webhooks import PROVIDERS

Expression = Annotated[str, Meta(max_length=1_024, description="CEL over `input` and `headers` (lower-case names)")]
Secret = Annotated[str, Meta(min_length=1, max_length=8_192)]
STATUSES: Final = ("accepted", "duplicate", "unrouted", "rejected", "handshake", "filtering")
MOST_REPLAYED: Final = 1_000
"""Deliveries one call replays or routes again; `next_cursor` goes on behind them."""


class RateLimit(msgspec.Struct, forbid_unknown_fields=True):
    """Deliveries a webhook takes. Where several dispatchers serve, each takes its share of both, counted for itself."""

    per_second: float
    burst: int


class SuccessResponse(msgspec.Struct, forbid_unknown_fields=True):
    """What an accepted delivery is answered instead of its id; an unrouted one gets the same with 202."""

    status: Annotated[int, Meta(ge=200, le=299)] = 200
    body: Annotated[str, Meta(max_length=4_096)] = ""
    content_type: Annotated[str, Meta(pattern="^[\\x21-\\x7e][\\x20-\\x7e]{0,126}$")] = "text/plain; charset=utf-8"


class SampleBody(msgspec.Struct, forbid_unknown_fields=True):
    """A delivery to try things with. `form` sends the payload's members as form fields."""

    payload: Any
    headers: dict[str, str] = {}
    form: bool = False


class WebhookBody(msgspec.Struct, forbid_unknown_fields=True):
    """A webhook to make. `source` is a known sender, or "generic" with `auth` that describes it. Secrets come newest first.

    `params` are what some senders need besides; `repeat_window` is how long the same body counts as a repetition where there is no id.
    """

    name: str
    source: str
    secrets: list[Secret] = []
    event_key_expression: Expression | UnsetType = UNSET
    scope_expression: Expression | UnsetType | None = UNSET
    filter_expression: Expression | UnsetType | None = UNSET
    static_payload: dict[str, Any] | UnsetType | None = UNSET
    auth: dict[str, Any] | None = None
    params: dict[str, str] | UnsetType = UNSET
    response: SuccessResponse | UnsetType | None = UNSET
    max_body_bytes: int | UnsetType = UNSET
    rate_limit: RateLimit | UnsetType = UNSET
    repeat_window: str | UnsetType = UNSET
    sample: SampleBody | None = None


class WebhookPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a webhook. null takes a member away."""

    event_key_expression: Expression | UnsetType = UNSET
    scope_expression: Expression | UnsetType | None = UNSET
    filter_expression: Expression | UnsetType | None = UNSET
    static_payload: dict[str, Any] | UnsetType | None = UNSET
    params: dict[str, str] | UnsetType = UNSET
    response: SuccessResponse | UnsetType | None = UNSET
    max_body_bytes: int | UnsetType = UNSET
    rate_limit: RateLimit | UnsetType = UNSET
    repeat_window: str | UnsetType = UNSET
    sample: SampleBody | None = None


class SecretBody(msgspec.Struct, forbid_unknown_fields=True):
    """A secret to add; one is made where none is given. With an `overlap` the others end after it, else they go on until removed."""

    secret: Secret | None = None
    overlap: str | None = None


class TestBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to send; the sender's usual sample where nothing is said."""

    sample: SampleBody | None = None


Most = Annotated[int, Meta(ge=1, le=MOST_REPLAYED, description="deliveries of one call")]


class RerouteBody(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which unrouted deliveries, by when they came; all where nothing is said, those first that came first."""

    limit: Most = MOST_REPLAYED
    since: Moment | None = None
    until: Moment | None = None


class ReplayBody(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which deliveries: by `ids`, or by `status` and when they came. What is itself a replay is only chosen where it is unrouted.

    With a `key` each is replayed once, however often it is asked for with that key: a call that was cut off can be sent again.
    """

    limit: Most = MOST_REPLAYED
    ids: Annotated[tuple[str, ...], Meta(max_length=MOST_REPLAYED)] = ()
    status: tuple[Literal["accepted", "unrouted"], ...] = ()
    reason: tuple[str, ...] = ()
    since: Moment | None = None
    until: Moment | None = None
    key: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class WebhooksQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which webhooks."""

    name: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


class WebhookDeliveriesQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which deliveries, and from which end of time."""

    status: tuple[str, ...] = ()
    since: Moment | None = None
    until: Moment | None = None
    order: Literal["newest", "oldest"] = "newest"


class FollowQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Deliveries of which webhooks, in the order they came.

    With `wait`, such as `20s`, an empty page is answered when something has come, or the time is up.
    """

    webhook: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    since: Moment | None = None
    wait: str | None = None


class SecretView(msgspec.Struct, frozen=True):
    """A secret by its number. `last_used_at` is exact to a minute. One the sender told itself is shown until it has been used."""

    number: int
    created_at: datetime
    not_after: datetime | None
    last_used_at: datetime | None
    active: bool
    secret: str | UnsetType = UNSET


class TrialView(msgspec.Struct, frozen=True):
    """What the expressions make of a sample. `errors` are by member."""

    event_key: str | None
    scope: str | None
    passes: bool | None
    errors: dict[str, dict[str, str]]
    warnings: list[str]


class WebhookView(msgspec.Struct, frozen=True):
    """A webhook; `url` is what its sender is given. `sample` is there when it was just saved."""

    id: str
    name: str
    source: str
    url: str
    event_key_expression: str
    scope_expression: str | None
    filter_expression: str | None
    static_payload: Raw
    auth: Raw
    params: Raw
    response: Raw
    max_body_bytes: int
    rate_limit: RateLimit
    repeat_window: str
    note: str
    secrets: list[SecretView]
    created_at: datetime
    updated_at: datetime
    sample: TrialView | UnsetType = UNSET


class SecretAdded(msgspec.Struct, frozen=True):
    """A new secret. `secret` is there, this once, when it was made here."""

    number: int
    secret: str | UnsetType = UNSET


class WebhookDeliveryView(msgspec.Struct, frozen=True):
    """One request. `first_id` is the delivery a duplicate repeats or a replay replays; `sender_id` the sender's own name for it."""

    id: str
    status: str
    reason: str | None
    detail: str | None
    event_id: str | None
    event_key: str | None
    scope: str | None
    received_at: datetime
    method: str
    body_bytes: int
    sender_id: str | None
    first_id: str | None
    secret_number: int | None


class FollowedDeliveryView(WebhookDeliveryView, frozen=True, kw_only=True):
    """One request, and the name of its webhook."""

    webhook: str


class WebhookDeliveryDocument(WebhookDeliveryView, frozen=True):
    """One request with its headers, those that are credentials left out. `body_kept` says whether its body can be had."""

    headers: Raw
    query: str | None
    body_sha256: str | None
    body_kept: bool


class WebhookPage(msgspec.Struct, frozen=True):
    """Webhooks by name, without their secrets."""

    rows: list[WebhookView]
    next_cursor: str | None


class WebhookDeliveryPage(msgspec.Struct, frozen=True):
    """Requests in the order of their arrival."""

    rows: list[WebhookDeliveryView]
    next_cursor: str | None


class FollowedDeliveryPage(msgspec.Struct, frozen=True):
    """Requests to several webhooks in the order of their arrival."""

    rows: list[FollowedDeliveryView]
    next_cursor: str | None


class Replay(msgspec.Struct, frozen=True):
    """What a delivery became. `id` is its own where it was routed at last, else that of the replay.

    `status` is accepted, unrouted, duplicate (of a replay with the same key, which `id` names) or refused (there was nothing to replay).
    """

    delivery_id: str
    id: str | None
    status: str
    event_id: str | None
    event_key: str | None
    runs: list[str]
    reason: str | None


class ReplayReport(msgspec.Struct, frozen=True):
    """What became of a set: counts by status, why some did not become events, and each delivery. `next_cursor` goes on behind it."""

    matched: int
    accepted: int
    unrouted: int
    duplicate: int
    refused: int
    errors: dict[str, int]
    rows: list[Replay]
    next_cursor: str | None


class Reroute(msgspec.Struct, frozen=True):
    """How many unrouted deliveries were looked at and found a place, and why the others did not; `next_cursor` goes on behind them."""

    matched: int
    routed: int
    unrouted: int
    errors: dict[str, int]
    next_cursor: str | None


class TestResult(msgspec.Struct, frozen=True):
    """What a sample became. `answer` is what its sender would have been answered."""

    status: int
    outcome: str
    reason: str | None
    detail: str | None
    delivery_id: str | None
    event_id: str | None
    event_key: str | None
    scope: str | None
    runs: list[str]
    answer: str


_CREATE: Final = msgspec.json.Decoder(WebhookBody)
_PATCH: Final = msgspec.json.Decoder(WebhookPatch)
_SECRET: Final = msgspec.json.Decoder(SecretBody)
_TEST: Final = msgspec.json.Decoder(TestBody)
_REROUTE: Final = msgspec.json.Decoder(RerouteBody)
_REPLAY: Final = msgspec.json.Decoder(ReplayBody)


async def create_webhook(call: Call) -> Answer:
    """Make a webhook; answers its address, and what its expressions make of a sample."""
    body: WebhookBody = await call.json(_CREATE)
    changes = _changes(body)
    if body.auth is not None:
        changes = Changes({**changes.values, "auth": body.auth}, changes.sample)
    row, trial = await call.services.webhooks.management.create(call.tenant_id, body.name, body.source, changes, body.secrets)
    return json_answer(201, await _document(call, row, trial))


async def list_webhooks(call: Call) -> Answer:
    """Webhooks by name."""
    query: WebhooksQuery = call.query
    after = position("webhooks", query, str) or ""
    found = await webhooks.page(call.services.database, call.tenant_id, after, query.name or None, query.source or None, query.limit + 1)
    return page("webhooks", query, found, lambda row: _show(call, row, []), lambda row: row.name)


async def get_webhook(call: Call) -> Answer:
    """One webhook, with when each of its secrets was last used."""
    return json_answer(200, await _document(call, await _row(call), None))


async def patch_webhook(call: Call) -> Answer:
    """Change a webhook; answers what its expressions make of a sample now."""
    body: WebhookPatch = await call.json(_PATCH)
    row, trial = await call.services.webhooks.management.change(call.tenant_id, call.path["name"], _changes(body))
    return json_answer(200, await _document(call, row, trial))


async def delete_webhook(call: Call) -> Answer:
    """Remove a webhook. Its address then answers as one that never was."""
    await call.services.webhooks.management.delete(call.tenant_id, call.path["name"])
    return Answer(204, b"", ())


async def add_webhook_secret(call: Call) -> Answer:
    """Add a secret beside the active ones, so that the sender can be switched over without a refusal."""
    body: SecretBody = await call.json(_SECRET)
    overlap = duration(body.overlap, "overlap")
    number, made = await call.services.webhooks.management.add_secret(call.tenant_id, call.path["name"], body.secret, overlap)
    return json_answer(201, SecretAdded(number, made if made is not None else UNSET))


async def remove_webhook_secret(call: Call) -> Answer:
    """Remove a secret: what it signed is refused from now on."""
    text = call.path["number"]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    await call.services.webhooks.management.remove_secret(call.tenant_id, call.path["name"], number)
    return Answer(204, b"", ())


async def test_webhook(call: Call) -> Answer:
    """Sign a sample with the webhook's own secret and take it in as any other request."""
    body: TestBody = await call.json(_TEST)
    await _row(call)
    service = call.services.webhooks
    tested = await service.test(await service.hook(call.caller.tenant, call.path["name"]), _sample(body.sample))
    received = tested.received
    delivery, accepted = received.delivery, received.accepted
    result = TestResult(
        status=tested.status,
        outcome=delivery.status if delivery is not None else "rejected",
        reason=(delivery.reason or None) if delivery is not None else "rate_limited",
        detail=(delivery.detail or None) if delivery is not None else None,
        delivery_id=accepted.id if accepted is not None else None,
        event_id=accepted.event_id if accepted is not None else None,
        event_key=delivery.event_key if delivery is not None else None,
        scope=delivery.scope if delivery is not None else None,
        runs=accepted.run_ids if accepted is not None else [],
        answer=received.response.body.decode("utf-8", "replace"),
    )
    return json_answer(200, result)


async def list_webhook_deliveries(call: Call) -> Answer:
    """Requests that came to a webhook, and what became of each."""
    query: WebhookDeliveriesQuery = call.query
    row = await _row(call)
    name = f"webhook deliveries {row.id}"
    wanted = DeliveryFilter(one_of(query.status, STATUSES, "status"), moment(query.since, "since"), moment(query.until, "until"))
    found = await webhook_deliveries.page(
        call.services.database,
        call.tenant_id,
        row.id,
        wanted,
        position(name, query, str),
        query.limit + 1,
        oldest_first=query.order == "oldest",
    )
    return page(name, query, found, _show_delivery, lambda one: one.id)


async def follow_webhook_deliveries(call: Call) -> Answer:
    """Requests that came to all webhooks, oldest first; with `wait`, what comes next."""
    query: FollowQuery = call.query
    name, wait = "followed webhook deliveries", duration(query.wait, "wait")
    statuses, since = one_of(query.status, STATUSES, "status"), moment(query.since, "since") or EARLIEST
    after = position(name, query, str) or ""

    async def look() -> list[FollowedRow]:
        database, names = call.services.database, query.webhook or None
        return await webhook_deliveries.follow(database, call.tenant_id, names, statuses, since, after, query.limit + 1)

    seconds = min(wait.total_seconds(), call.services.settings.max_wait) if wait is not None else 0.0
    found = await call.services.webhooks.arrivals.first(call.tenant_id, query.webhook, seconds, look)
    return page(name, query, found, _show_followed, lambda row: row.id)


async def get_webhook_delivery(call: Call) -> Answer:
    """One request with its headers."""
    return json_answer(200, _show_stored(await _stored(call)))


async def get_webhook_delivery_body(call: Call) -> Answer:
    """The body of a request as it came, to be saved: a browser takes it for nothing else."""
    stored = await _stored(call)
    if stored.body is None:
        raise problem("not_found", "the body of this delivery is not kept")
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"content-disposition", f'attachment; filename="{stored.id}"'.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"sandbox"),
    )
    return Answer(200, stored.body, headers)


async def replay_webhook_delivery(call: Call) -> Answer:
    """Send a delivery through the expressions again: an unrouted one finds its place, an accepted one makes one more event."""
    await _row(call)
    service = call.services.webhooks
    hook = await service.hook(call.caller.tenant, call.path["name"])
    return json_answer(200, _show_replay(await service.deliveries.replay(hook, call.path["delivery_id"])))


async def replay_webhook_deliveries(call: Call) -> Answer:
    """Send many deliveries through the expressions again: unrouted ones find their place, accepted ones make one more event each."""
    body: ReplayBody = await call.json(_REPLAY)
    if bool(body.ids) == bool(body.status):
        raise problem("invalid_value", "ids: give ids, or say which by status", field="ids")
    if body.ids and (body.reason or body.since or body.until or body.cursor):
        raise problem("invalid_value", "ids: what is named by id is not chosen by anything else", field="ids")
    await _row(call)
    service = call.services.webhooks
    hook = await service.hook(call.caller.tenant, call.path["name"])
    if body.ids:
        return json_answer(200, _report(await service.deliveries.replay_named(hook, body.ids, body.key), None))
    name = f"webhook replays {hook.row.id}"
    until, after = _behind(call, name, body)
    wanted = DeliveryFilter(body.status, moment(body.since, "since"), until, body.reason or None)
    found = await service.deliveries.replay_chosen(hook, wanted, after, body.limit, body.key)
    return json_answer(200, _report(found, cursor(name, body, (until, found.last)) if found.last is not None else None))


async def reroute_webhook_deliveries(call: Call) -> Answer:
    """Give unrouted deliveries to the expressions as they are now, after those have been mended."""
    body: RerouteBody = await call.json(_REROUTE)
    await _row(call)
    service = call.services.webhooks
    hook = await service.hook(call.caller.tenant, call.path["name"])
    name = f"unrouted webhook deliveries {hook.row.id}"
    until, after = _behind(call, name, body)
    wanted = DeliveryFilter(None, moment(body.since, "since"), until)
    found = await service.deliveries.reroute(hook, wanted, after, body.limit)
    report = _report(found, cursor(name, body, (until, found.last)) if found.last is not None else None)
    return json_answer(200, Reroute(report.matched, report.accepted, report.matched - report.accepted, report.errors, report.next_cursor))


def _behind(call: Call, name: str, body: ReplayBody | RerouteBody) -> tuple[datetime, str]:
    """Until when, and behind which delivery. What comes while pages are gone through is for another time."""
    place: tuple[datetime, str] | None = position(name, body, tuple[datetime, str])
    if place is not None:
        return place
    return moment(body.until, "until") or call.services.clock.now() + _SOON, ""


def _report(found: Replays, following: str | None) -> ReplayReport:
    counts = Counter(row.status for row in found.rows)
    errors = Counter(row.reason or row.status for row in found.rows if row.status in {"unrouted", "refused"})
    return ReplayReport(
        matched=len(found.rows),
        accepted=counts["accepted"],
        unrouted=counts["unrouted"],
        duplicate=counts["duplicate"],
        refused=counts["refused"],
        errors=dict(errors),
        rows=[_show_replay(row) for row in found.rows],
        next_cursor=following,
    )


def _show_replay(row: Replayed) -> Replay:
    return Replay(row.delivery_id, row.id, row.status, row.event_id, row.event_key, row.runs, row.reason)


def _changes(body: WebhookBody | WebhookPatch) -> Changes:
    """What a body says; what it does not say is left out."""
    given = {name: getattr(body, name) for name in WebhookPatch.__struct_fields__ if name != "sample"}
    values = {name: msgspec.to_builtins(value) for name, value in given.items() if value is not UNSET}
    if "repeat_window" in values:
        values["repeat_window"] = duration(values["repeat_window"], "repeat_window")
    return Changes(values, _sample(body.sample))


def _sample(body: SampleBody | None) -> Sample | None:
    if body is None:
        return None
    if body.form and not isinstance(body.payload, dict):
        raise problem("invalid_value", "sample.payload: the fields of a form are an object", field="sample.payload")
    return Sample(body.payload, body.headers, body.form)


async def _row(call: Call) -> WebhookRow:
    return await call.services.webhooks.management.row(call.tenant_id, call.path["name"])


async def _stored(call: Call) -> StoredDelivery:
    row = await _row(call)
    return await call.services.webhooks.deliveries.get(call.tenant_id, row.id, call.path["delivery_id"])


async def _document(call: Call, row: WebhookRow, trial: Trial | None) -> WebhookView:
    found = await webhooks.secrets(call.services.database, call.tenant_id, row.id)
    shown = _show(call, row, found)
    if trial is None:
        return shown
    sample = TrialView(trial.event_key, trial.scope, trial.passes, trial.errors, trial.warnings)
    return msgspec.structs.replace(shown, sample=sample)


def _show(call: Call, row: WebhookRow, secrets: Sequence[WebhookSecretRow]) -> WebhookView:
    return WebhookView(
        id=row.id,
        name=row.name,
        source=row.source,
        url=call.services.webhooks.url(call.caller.tenant, row.name),
        event_key_expression=row.event_key,
        scope_expression=row.scope,
        filter_expression=row.filter,
        static_payload=raw(row.static_payload),
        auth=raw(row.auth),
        params=raw(row.params),
        response=raw(row.response),
        max_body_bytes=row.body_bytes,
        rate_limit=RateLimit(row.rate, row.burst),
        repeat_window=f"{row.repeat_ms / 1000:g}s",
        note=PROVIDERS[row.source].note if row.source in PROVIDERS else "",
        secrets=[_show_secret(call, secret) for secret in secrets],
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _show_secret(call: Call, row: WebhookSecretRow) -> SecretView:
    active = row.not_after is None or call.services.clock.now() < row.not_after
    told = row.captured and row.last_used_at is None and call.caller.may("webhooks:write")
    text = call.services.webhooks.sources.open(call.tenant_id, row) if told else UNSET
    return SecretView(row.number, row.created_at, row.not_after, row.last_used_at, active, text)


def _show_delivery(row: DeliveryRow) -> WebhookDeliveryView:
    return WebhookDeliveryView(
        row.id, row.status, row.reason, row.detail, row.event_id, row.event_key, row.scope, row.received_at, row.method, row.body_bytes,
        row.sender_id, row.first_id, row.secret_number,
    )  # fmt: skip


def _show_followed(row: FollowedRow) -> FollowedDeliveryView:
    return FollowedDeliveryView(
        row.id, row.status, row.reason, row.detail, row.event_id, row.event_key, row.scope, row.received_at, row.method, row.body_bytes,
        row.sender_id, row.first_id, row.secret_number, webhook=row.webhook,
    )  # fmt: skip


def _show_stored(row: StoredDelivery) -> WebhookDeliveryDocument:
    return WebhookDeliveryDocument(
        row.id, row.status, row.reason, row.detail, row.event_id, row.event_key, row.scope, row.received_at, row.method, row.body_bytes,
        row.sender_id, row.first_id, row.secret_number, raw(row.headers), row.query,
        row.body_sha256.hex() if row.body_sha256 is not None else None, row.body is not None,
    )  # fmt: skip


_SOON: Final = timedelta(seconds=1)
_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field")
_NO_SUCH: Final = ("unknown_webhook",)
_ONE: Final = "/v1/webhooks/{name}"
_DELIVERY: Final = "/v1/webhooks/{name}/deliveries/{delivery_id}"

ROUTES: Final = (
    Route("GET", "/v1/webhooks", list_webhooks, "webhooks:read", {200: WebhookPage}, WebhooksQuery),
    Route(
        "POST", "/v1/webhooks", create_webhook, "webhooks:write", {201: WebhookView}, body=WebhookBody,
        problems=(*_BAD_BODY, "invalid_expression", "webhook_exists"),
    ),
    Route("GET", _ONE, get_webhook, "webhooks:read", {200: WebhookView}, problems=_NO_SUCH),
    Route(
        "PATCH", _ONE, patch_webhook, "webhooks:write", {200: WebhookView}, body=WebhookPatch,
        problems=(*_BAD_BODY, *_NO_SUCH, "invalid_expression"),
    ),
    Route("DELETE", _ONE, delete_webhook, "webhooks:write", {204: None}, problems=_NO_SUCH),
    Route(
        "POST", f"{_ONE}/secrets", add_webhook_secret, "webhooks:write", {201: SecretAdded}, body=SecretBody,
        problems=(*_BAD_BODY, *_NO_SUCH, "too_many_secrets"),
    ),
    Route(
        "DELETE", _ONE + "/secrets/{number}", remove_webhook_secret, "webhooks:write", {204: None}, problems=(*_NO_SUCH, "not_found"),
    ),
    Route(
        "POST", f"{_ONE}/test", test_webhook, "webhooks:write", {200: TestResult}, body=TestBody,
        problems=(*_BAD_BODY, *_NO_SUCH, "not_signable"),
    ),
    Route(
        "POST", f"{_ONE}/replay", replay_webhook_deliveries, "webhooks:write", {200: ReplayReport}, body=ReplayBody,
        problems=(*_BAD_BODY, *_NO_SUCH),
    ),
    Route(
        "POST", f"{_ONE}/reroute", reroute_webhook_deliveries, "webhooks:write", {200: Reroute}, body=RerouteBody,
        problems=(*_BAD_BODY, *_NO_SUCH),
    ),
    Route(
        "GET", f"{_ONE}/deliveries", list_webhook_deliveries, "webhooks:read", {200: WebhookDeliveryPage}, WebhookDeliveriesQuery,
        problems=_NO_SUCH,
    ),
    Route("GET", "/v1/webhook-deliveries", follow_webhook_deliveries, "webhooks:read", {200: FollowedDeliveryPage}, FollowQuery),
    Route("GET", _DELIVERY, get_webhook_delivery, "webhooks:read", {200: WebhookDeliveryDocument}, problems=(*_NO_SUCH, "not_found")),
    Route("GET", f"{_DELIVERY}/body", get_webhook_delivery_body, "webhooks:read", {200: str}, problems=(*_NO_SUCH, "not_found")),
    Route(
        "POST", f"{_DELIVERY}/replay", replay_webhook_delivery, "webhooks:write", {200: Replay},
        problems=(*_NO_SUCH, "not_found", "not_replayable"),
    ),
)  # fmt: skip
