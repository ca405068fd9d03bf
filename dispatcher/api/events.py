"""/v1/events: sending events, and reading them with the runs they started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import replace

from dispatcher.api.decoding import span
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, SearchText, Small, page, position, search_query
from dispatcher.api.metadata import REPLAY_OF, metadata_pairs, with_system_key
from dispatcher.api.referring import Referring
from dispatcher.api.triggering import (
    EVENT,
    EVENTS,
    EventBody,
    EventsBody,
    Moment,
    check_count,
    decode_item,
    event_request,
    in_bulk,
    one_of_schemas,
    referred_in_bulk,
    with_data,
)
from dispatcher.api.views import EventCreated, EventRef, EventRunView, EventView, show_event, show_event_run
from dispatcher.errors import Problem, problem
from dispatcher.runtime.intake import EventAccepted, EventRequest
from dispatcher.runtime.plans import CRON_ID
from dispatcher.store import events, filters
from dispatcher.store.events import AttemptRun, EventFilter, EventRow
from dispatcher.store.runs import has_metadata

_MOST_PAGE_BYTES: Final = 8_388_608


class EventsQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which events. `metadata` is `key:value` and may be repeated; `matched` is whether they started any run."""

    type: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    scope: str | None = None
    metadata: tuple[str, ...] = ()
    matched: bool | None = None
    q: SearchText | None = None


class EventPage(msgspec.Struct, frozen=True):
    """Events, newest first."""

    rows: list[EventView]
    next_cursor: str | None


class EventRunPage(msgspec.Struct, frozen=True):
    """Attempts of an event's runs, oldest run first. A page ends early when its bodies grow large."""

    rows: list[EventRunView]
    next_cursor: str | None


class EventRows(msgspec.Struct, frozen=True):
    """One row for each item, in order: the event, or the problem with it (its `status` is a number)."""

    rows: Annotated[list[Any], one_of_schemas("EventCreated", "Problem")]


async def send_event(call: Call) -> Answer:
    """Send an event. It is durable, with the runs it starts, before this is answered.

    `call` runs one function by name, `schedule:new` does later, or at every tick of a cron expression.
    """
    body: EventBody = await call.json(EVENT)
    accepted = (await _push(call, [event_request(call, await with_data(call, body))]))[0]
    if isinstance(accepted, Problem):
        raise accepted
    return json_answer(200 if accepted.duplicate else 201, _created(accepted))


async def send_events(call: Call) -> Answer:
    """Send up to 1,000 events; one row for each, in order: the event, or the problem with it."""
    settings = call.services.settings
    body: EventsBody = await call.json_items(EVENTS)
    check_count(body.events, settings.max_bulk_items)

    values: Referring[EventRequest] = Referring(call, _give)

    def make(item: Raw, at: str) -> EventRequest:
        event = decode_item(item, EVENT, at, call.limits)
        member = referred_in_bulk(event, f"{at}.") if event.refs else None
        request = event_request(call, event, f"{at}.")
        return values.note(request, request.data, f"{at}.{member}") if member is not None else request

    async def take(requests: Sequence[EventRequest]) -> Sequence[EventAccepted | Problem]:
        return await values.take(requests, lambda some: _push(call, some))

    return await in_bulk("events", body.events, make, take, lambda accepted, _: _created(accepted))


def _give(request: EventRequest, value: bytes) -> None:
    request.data = value


async def _push(call: Call, requests: Sequence[EventRequest]) -> list[EventAccepted | Problem]:
    """Take events in. Raises Problem too_many_crons where they plan crons there is no room for."""
    planned = sum(request.plan is not None and isinstance(request.plan.when, str) for request in requests)
    if not planned:
        return await call.services.intake.push(requests)
    async with call.services.crons.planning(call.tenant_id, planned):
        return await call.services.intake.push(requests)


async def list_events(call: Call) -> Answer:
    """Events that match all filters, newest first, without their data."""
    query: EventsQuery = call.query
    before = position("events", query, str)
    metadata = has_metadata(metadata_pairs(query.metadata))
    since, until = span(query.since, query.until)
    wanted = EventFilter(query.type, since, until, query.scope, metadata, query.matched)
    if query.q is not None:
        hits = await call.services.search.events(call.tenant_id, wanted, search_query(query.q), before, query.limit)
        return page("events", query, hits.rows, show_event, lambda row: row.id, more=hits.last is not None, last=hits.last)
    found = await events.page(call.services.database, call.tenant_id, wanted, before, query.limit + 1)
    return page("events", query, found, show_event, lambda row: row.id)


async def get_event(call: Call) -> Answer:
    """An event with its data, and the filters that could not be evaluated on it."""
    event = await _event(call)
    return json_answer(200, show_event(event, await filters.failures_of(call.services.database, call.tenant_id, event.id)))


async def replay_event(call: Call) -> Answer:
    """Send an event again, as a new one that is matched to what is registered now; its metadata names the first."""
    event = await _event(call)
    assert event.data is not None, "one event is read with its data"
    data, metadata = Raw(event.data), Raw(event.metadata or "null")
    again = event_request(call, EventBody(type=event.type, data=data, metadata=metadata, scope=event.scope, priority=event.priority))
    again.metadata = with_system_key(again.metadata, REPLAY_OF, event.id)
    accepted = (await _push(call, [again]))[0]
    if isinstance(accepted, Problem):
        raise accepted
    return json_answer(201, _created(accepted))


async def list_event_runs(call: Call) -> Answer:
    """The runs an event started, each attempt as a run: a retry names the first attempt in `origin_run_id`."""
    event = await _event(call)
    query, name = call.query, f"event runs {event.id}"
    after = position(name, query, tuple[str, Small]) or ("", -1)
    found = await events.attempts(call.services.database, call.tenant_id, event.id, after, query.limit + 1, _MOST_PAGE_BYTES)
    more = len(found) > query.limit or await _cut_short(call, event.id, found)
    return page(name, query, found, lambda row: show_event_run(row, event.id), lambda row: (row.run_id, row.number), more=more)


async def _cut_short(call: Call, event_id: str, found: list[AttemptRun]) -> bool:
    """Whether a page shorter than asked for was cut because of its bytes."""
    if not found:
        return False
    last = (found[-1].run_id, found[-1].number)
    return bool(await events.attempts(call.services.database, call.tenant_id, event_id, last, 1, 0))


async def _event(call: Call) -> EventRow:
    event_id = call.path["event_id"]
    event = await events.get(call.services.database, call.tenant_id, event_id)
    if event is None:
        raise problem("not_found", f"there is no event {event_id[:100]!r}")
    return event


def _created(accepted: EventAccepted) -> EventCreated:
    ref, planned = EventRef(accepted.id, accepted.stream_id), accepted.planned
    made = EventCreated(accepted.id, accepted.stream_id, accepted.run_ids, ref, True if accepted.duplicate else UNSET)
    if planned is None:
        return made
    return replace(made, cron_id=planned) if planned.startswith(CRON_ID) else replace(made, schedule_id=planned)


_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8")
_PLANNING: Final = ("invalid_cron", "invalid_timezone", "invalid_schedule", "schedule_in_past", "too_many_crons")
_BUSY: Final = ("overloaded", "database_unavailable")

ROUTES: Final = (
    Route(
        "POST", "/v1/events", send_event, "events:write", {201: EventCreated, 200: EventCreated}, body=EventBody,
        problems=(*_BAD_BODY, "body_too_large", "unsupported_media_type", "unknown_workflow", "too_many_runs", "invalid_ref", "unknown_ref",
                  *_PLANNING, *_BUSY),
    ),
    Route(
        "POST", "/v1/events/bulk", send_events, "events:write", {200: EventRows}, body=EventsBody,
        problems=(*_BAD_BODY, "body_too_large", "bulk_too_large", "unsupported_media_type", *_BUSY),
    ),
    Route("GET", "/v1/events", list_events, "events:read", {200: EventPage}, EventsQuery, problems=("invalid_value", "unknown_parameter")),
    Route("GET", "/v1/events/{event_id}", get_event, "events:read", {200: EventView}, problems=("not_found",)),
    Route(
        "POST", "/v1/events/{event_id}/replay", replay_event, "events:write", {201: EventCreated},
        problems=("not_found", "unknown_workflow", "too_many_runs", *_PLANNING, *_BUSY),
    ),
    Route("GET", "/v1/events/{event_id}/runs", list_event_runs, "events:read", {200: EventRunPage}, PageQuery, problems=("not_found",)),
)  # fmt: skip
