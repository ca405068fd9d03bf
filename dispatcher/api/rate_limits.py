"""/v1/rate-limits and /v1/concurrency: limits that are set, changed and taken away while work goes on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from dispatcher.api.decoding import duration
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.engine.concurrency import declared_by
from dispatcher.engine.definitions import NAME, DefinitionError
from dispatcher.engine.definitions.flow import MOST_RUNS, MOST_UNITS, SECONDS, check_key, check_path
from dispatcher.engine.rate_limits import filled
from dispatcher.errors import problem
from dispatcher.runtime.limits import RateLimitChanges
from dispatcher.store import gate_limits, gates, rate_limits
from dispatcher.store.gate_limits import LimitRow
from dispatcher.store.rate_limits import BucketRow

Units = Annotated[int, Meta(ge=1, le=MOST_UNITS, description="units of a window")]
MaxRuns = Annotated[int, Meta(ge=1, le=MOST_RUNS, description="how many of a group may be under way")]


class RateLimitBody(msgspec.Struct, forbid_unknown_fields=True):
    """A limit: so many units in each window of `duration` (SECOND to YEAR, small letters too; MINUTE unless said)."""

    limit: Units
    duration: str = "MINUTE"


class RateLimitView(msgspec.Struct, frozen=True):
    """A rate limit. `value` is what is left of the window, which ends at `refill_at`; `dynamic` ones were made by tasks that use them."""

    key: str
    limit: int
    duration: str
    value: int
    refill_at: datetime
    dynamic: bool
    waiting: bool
    updated_at: datetime


class RateLimitPage(msgspec.Struct, frozen=True):
    """Rate limits, by key."""

    rows: list[RateLimitView]
    next_cursor: str | None


class ConcurrencyBody(msgspec.Struct, forbid_unknown_fields=True):
    """How many may share a named limit, in place of what workflows declare; for good, or for as long as `expires_in` says (`10m`)."""

    max_runs: MaxRuns
    expires_in: str | UnsetType = UNSET


class ConcurrencyView(msgspec.Struct, frozen=True):
    """A named concurrency limit that is other than declared."""

    name: str
    max_runs: int
    until: datetime | None
    updated_at: datetime


class ConcurrencyPage(msgspec.Struct, frozen=True):
    """Such limits, by name."""

    rows: list[ConcurrencyView]
    next_cursor: str | None


class GroupView(msgspec.Struct, frozen=True):
    """A concurrency group somebody is in: how many have a place, how many wait. `name` is that of a shared limit."""

    name: str | None
    workflow_id: int | None
    expression: str | None
    strategy: str
    key: str
    limit: int
    held: int
    waiting: int


class GroupPage(msgspec.Struct, frozen=True):
    """Concurrency groups, in no particular order."""

    rows: list[GroupView]
    next_cursor: str | None


async def list_rate_limits(call: Call) -> Answer:
    """Rate limits with what is left of them, those tasks have made among them."""
    query: PageQuery = call.query
    found = await rate_limits.page(call.services.database, call.tenant_id, position("rate limits", query, str) or "", query.limit + 1)
    now = call.services.clock.now()
    return page("rate limits", query, found, lambda row: _show(row, now), lambda row: row.key)


async def get_rate_limit(call: Call) -> Answer:
    """A rate limit."""
    return json_answer(200, _show(await call.services.limits.rate(call.tenant_id, call.path["key"]), call.services.clock.now()))


async def put_rate_limit(call: Call) -> Answer:
    """Set a rate limit, or change it: lowering takes away what is too much, raising adds nothing before the next window."""
    body: RateLimitBody = await call.json(_RATE)
    key, word = call.path["key"], body.duration.upper()
    try:
        check_key(key, "key")
        check_path(key, "key")
    except DefinitionError as error:
        raise problem("invalid_value", str(error), field="key") from None
    for known in SECONDS:
        if known == word:
            changes = RateLimitChanges(key, body.limit, known)
            row = await call.services.limits.put_rate(call.tenant_id, changes, call.caller.token_id)
            return json_answer(200, _show(row, call.services.clock.now()))
    raise problem("invalid_value", f"duration: one of {', '.join(SECONDS)}", field="duration")


async def delete_rate_limit(call: Call) -> Answer:
    """Take a rate limit away. Nothing is limited by it any more; what waits for it starts."""
    await call.services.limits.delete_rate(call.tenant_id, call.path["key"], call.caller.token_id)
    return Answer(204, b"", ())


async def list_concurrency(call: Call) -> Answer:
    """Named concurrency limits that are other than declared."""
    query: PageQuery = call.query
    found = await gate_limits.limits(call.services.database, call.tenant_id, position("concurrency", query, str) or "", query.limit + 1)
    return page("concurrency", query, found, _show_limit, lambda row: row.name)


async def put_concurrency(call: Call) -> Answer:
    """Let a named concurrency limit be other than declared. Lowered below what is under way, it ends nothing and lets nobody in."""
    body: ConcurrencyBody = await call.json(_CONCURRENCY)
    name = call.path["name"]
    if not NAME.fullmatch(name):
        raise problem("invalid_value", "name: 1 to 200 letters, digits and _ . : - (not starting with punctuation)", field="name")
    until = None
    if body.expires_in is not UNSET:
        until = call.services.clock.now() + (duration(body.expires_in, "expires_in") or timedelta())
    row = await call.services.limits.put_concurrency(call.tenant_id, name, body.max_runs, until, call.caller.token_id)
    return json_answer(200, _show_limit(row))


async def delete_concurrency(call: Call) -> Answer:
    """Let a named concurrency limit be as its workflows declare it again."""
    await call.services.limits.delete_concurrency(call.tenant_id, call.path["name"], call.caller.token_id)
    return Answer(204, b"", ())


async def list_groups(call: Call) -> Answer:
    """Concurrency groups somebody is in."""
    query: PageQuery = call.query
    found = await gates.page(call.services.database, call.tenant_id, position("groups", query, str) or _FIRST, query.limit + 1)
    return page("groups", query, found, _show_group, lambda row: row.id)


def _show(row: BucketRow, now: datetime) -> RateLimitView:
    parked = row.refill_at is not None
    bucket = row.bucket() if parked else filled(row.bucket(), now)
    return RateLimitView(row.key, row.most, row.duration, bucket.value, bucket.full_at, not row.fixed, parked, row.updated_at)


def _show_limit(row: LimitRow) -> ConcurrencyView:
    return ConcurrencyView(row.name, row.max_runs, row.until, row.updated_at)


def _show_group(row: gates.GateRow) -> GroupView:
    workflow, expression = None, None
    if row.name is None:
        workflow, expression = declared_by(row.rule, row.strategy)
    return GroupView(row.name, workflow, expression or None, row.strategy, row.key, row.most, row.held, row.waiting)


PREFIX: Final = "/v1/rate-limits/"
PATH: Final = "/v1/rate-limits/{key}"


def parameters(path: str) -> dict[str, str] | None:
    """The key of a rate limit, which may hold slashes, told from a path that is decoded already; None for a path that has none."""
    key = path[len(PREFIX) :]
    return {"key": key} if key else None


_FIRST: Final = "00000000-0000-0000-0000-000000000000"
_RATE: Final = msgspec.json.Decoder(RateLimitBody)
_CONCURRENCY: Final = msgspec.json.Decoder(ConcurrencyBody)
_BAD_BODY: Final = (
    "invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8",
    "body_too_large", "unsupported_media_type",
)  # fmt: skip
_BAD_LIST: Final = ("invalid_value", "unknown_parameter")

ROUTES: Final = (
    Route("GET", "/v1/rate-limits", list_rate_limits, "endpoints:read", {200: RateLimitPage}, PageQuery, problems=_BAD_LIST),
    Route("GET", PATH, get_rate_limit, "endpoints:read", {200: RateLimitView}, problems=("not_found",)),
    Route(
        "PUT", PATH, put_rate_limit, "endpoints:write", {200: RateLimitView}, body=RateLimitBody, problems=_BAD_BODY,
    ),
    Route("DELETE", PATH, delete_rate_limit, "endpoints:write", {204: None}, problems=("not_found",)),
    Route("GET", "/v1/concurrency", list_concurrency, "endpoints:read", {200: ConcurrencyPage}, PageQuery, problems=_BAD_LIST),
    Route("GET", "/v1/concurrency-groups", list_groups, "endpoints:read", {200: GroupPage}, PageQuery, problems=_BAD_LIST),
    Route(
        "PUT", "/v1/concurrency/{name}", put_concurrency, "endpoints:write", {200: ConcurrencyView}, body=ConcurrencyBody,
        problems=_BAD_BODY,
    ),
    Route("DELETE", "/v1/concurrency/{name}", delete_concurrency, "endpoints:write", {204: None}, problems=("not_found",)),
)  # fmt: skip
