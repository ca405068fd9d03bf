"""/v1/webhooks/…/deliveries: what arrived at webhooks, followed, replayed and routed again."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw

from dispatcher.api.decoding import EARLIEST, duration, moment, one_of
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, cursor, page, position
from dispatcher.api.triggering import Moment
from dispatcher.api.views import raw
from dispatcher.api.webhooks import BAD_BODY, NO_SUCH, ONE, webhook_row
from dispatcher.errors import problem
from dispatcher.runtime.webhooks.deliveries import Replayed, Replays
from dispatcher.store import webhook_deliveries
from dispatcher.store.webhook_deliveries import DeliveryFilter, DeliveryRow, FollowedRow, StoredDelivery

STATUSES: Final = ("accepted", "duplicate", "unrouted", "rejected", "handshake", "filtering")
MOST_REPLAYED: Final = 1_000
"""Deliveries one call replays or routes again; `next_cursor` goes on behind them."""

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


_REROUTE: Final = msgspec.json.Decoder(RerouteBody)
_REPLAY: Final = msgspec.json.Decoder(ReplayBody)


async def list_webhook_deliveries(call: Call) -> Answer:
    """Requests that came to a webhook, and what became of each."""
    query: WebhookDeliveriesQuery = call.query
    row = await webhook_row(call)
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
    await webhook_row(call)
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
    await webhook_row(call)
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
    await webhook_row(call)
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


async def _stored(call: Call) -> StoredDelivery:
    row = await webhook_row(call)
    return await call.services.webhooks.deliveries.get(call.tenant_id, row.id, call.path["delivery_id"])


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
_DELIVERY: Final = "/v1/webhooks/{name}/deliveries/{delivery_id}"

ROUTES: Final = (
    Route(
        "POST", f"{ONE}/replay", replay_webhook_deliveries, "webhooks:write", {200: ReplayReport}, body=ReplayBody,
        problems=(*BAD_BODY, *NO_SUCH),
    ),
    Route(
        "POST", f"{ONE}/reroute", reroute_webhook_deliveries, "webhooks:write", {200: Reroute}, body=RerouteBody,
        problems=(*BAD_BODY, *NO_SUCH),
    ),
    Route(
        "GET", f"{ONE}/deliveries", list_webhook_deliveries, "webhooks:read", {200: WebhookDeliveryPage}, WebhookDeliveriesQuery,
        problems=NO_SUCH,
    ),
    Route("GET", "/v1/webhook-deliveries", follow_webhook_deliveries, "webhooks:read", {200: FollowedDeliveryPage}, FollowQuery),
    Route("GET", _DELIVERY, get_webhook_delivery, "webhooks:read", {200: WebhookDeliveryDocument}, problems=(*NO_SUCH, "not_found")),
    Route("GET", f"{_DELIVERY}/body", get_webhook_delivery_body, "webhooks:read", {200: str}, problems=(*NO_SUCH, "not_found")),
    Route(
        "POST", f"{_DELIVERY}/replay", replay_webhook_delivery, "webhooks:write", {200: Replay},
        problems=(*NO_SUCH, "not_found", "not_replayable"),
    ),
)  # fmt: skip
