"""/v1/callback, /v1/callbacks, /v1/log: where a handler speaks for its attempt, authorised by the attempt's token and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from dispatcher.api.auth import bearer
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.errors import problem

_SPEAK: Final = "send the attempt's token: Authorization: Bearer atk1.…"


class LogQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which entries: those from position `from` on, up to and without `to`; all of them unless said."""

    start: Annotated[int, Meta(ge=0)] = msgspec.field(name="from", default=0)
    to: Annotated[int, Meta(ge=0)] | None = None


class CallbackItem(msgspec.Struct):
    """What one attempt says."""

    token: str
    events: list[dict[str, Any]]


class CallbackGroup(msgspec.Struct):
    """What several attempts say."""

    items: list[CallbackItem]


class CallbackResult(msgspec.Struct, frozen=True):
    """What an item would have been answered had it come alone."""

    status: int
    body: dict[str, Any]


class CallbackResults(msgspec.Struct, frozen=True):
    """One result for each item, in order."""

    results: list[CallbackResult]


class LogPart(msgspec.Struct, frozen=True):
    """Part of a log of `len` entries; `head` is the rolling hash of all of them."""

    start: int = msgspec.field(name="from")
    to: int
    len: int
    head: str
    entries: list[dict[str, Any]]


async def callback(call: Call) -> Answer:
    """Take events of a running attempt (heartbeat, log, done, append, …): one, a list, or NDJSON."""
    token = bearer(call.headers)
    if not token:
        raise problem("unauthorized", _SPEAK)
    body = await call.body(call.services.settings.max_response_bytes)
    kind = call.headers.get(b"content-type", b"").decode("latin-1")
    status, document = await call.services.callbacks.handle(token, body, kind)
    return json_answer(status, document)


async def callbacks(call: Call) -> Answer:
    """Take events of many attempts at once, each with its token: `{"items": [{"token", "events"}]}`. One result for each, in order."""
    body = await call.body(call.services.settings.max_bulk_bytes)
    results = await call.services.callbacks.handle_group(body)
    return json_answer(200, {"results": [{"status": status, "body": document} for status, document in results]})


async def log(call: Call) -> Answer:
    """Entries of a durable task's log, for an endpoint that has lost them; authorised by the token of the running attempt."""
    token, query = bearer(call.headers), call.query
    if not token:
        raise problem("unauthorized", _SPEAK)
    document = await call.services.durable.log(token, query.start, query.to)
    entries = [msgspec.Raw(entry) for entry in document["entries"]]
    return json_answer(200, {**document, "entries": entries})


_REFUSED: Final = (
    "unauthorized", "invalid_json", "invalid_event", "body_too_large", "stale_attempt", "task_ended", "database_unavailable", "overloaded",
    "log_conflict", "invalid_op", "too_many_ops", "scope_closed", "journal_too_long", "journal_too_large",
)  # fmt: skip

ROUTES: Final = (
    Route(
        "POST", "/v1/callback", callback, None, {200: dict[str, Any]}, body=dict[str, Any],
        problems=_REFUSED,
    ),
    Route(
        "POST", "/v1/callbacks", callbacks, None, {200: CallbackResults}, body=CallbackGroup,
        problems=("invalid_json", "invalid_event", "body_too_large", "bulk_too_large"),
    ),
    Route(
        "GET", "/v1/log", log, None, {200: LogPart}, LogQuery,
        problems=("unauthorized", "stale_attempt", "task_ended", "invalid_value", "unknown_parameter"),
    ),
)  # fmt: skip
