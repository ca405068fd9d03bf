"""/v1/schedules: runs at one moment each."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher.api.decoding import duration, one_of, span
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.metadata import check_pairs, metadata_pairs
from dispatcher.api.triggering import Moment, Name, Priority, check_count, json_text, metadata_text
from dispatcher.api.views import raw
from dispatcher.engine.definitions import format_duration
from dispatcher.errors import Problem, problem
from dispatcher.runtime.schedules import ScheduleWanted
from dispatcher.store import schedules
from dispatcher.store.runs import has_metadata
from dispatcher.store.schedules import ScheduleFilter, ScheduleRow

Missed = Literal["skip", "run_once"]
Status = Literal["scheduled", "started", "missed", "dropped"]
STATUSES: Final = ("scheduled", "started", "missed", "dropped")

Delay = Annotated[str, Meta(min_length=1, max_length=100, description='from now, such as "10m" or "in 10 minutes"')]
Ids = Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(min_length=1)]


class ScheduleBody(msgspec.Struct, forbid_unknown_fields=True, rename={"in_": "in"}):
    """A run to schedule, at `run_at` or `in` so long. One that finds nobody there at its moment runs once up to `misfire_grace` later."""

    workflow: Name
    run_at: Moment | None = None
    in_: Delay | None = None
    input: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    priority: Priority | None = None
    missed: Missed = "run_once"
    misfire_grace: str | None = None


class SchedulePatch(msgspec.Struct, forbid_unknown_fields=True, rename={"in_": "in"}):
    """What shall be different of a schedule that is still to come."""

    run_at: Moment | None = None
    in_: Delay | None = None
    input: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    priority: Priority | UnsetType | None = UNSET
    missed: Missed | UnsetType = UNSET
    misfire_grace: str | UnsetType = UNSET


class ScheduleMove(msgspec.Struct, forbid_unknown_fields=True):
    """A schedule, and its new moment."""

    id: Annotated[str, Meta(max_length=100)]
    run_at: Moment


class ScheduleSelection(msgspec.Struct, forbid_unknown_fields=True):
    """Schedules that match all that is given; `since` and `until` are about when they run."""

    workflow: str | None = None
    status: Status | list[Status] | None = None
    since: Moment | None = None
    until: Moment | None = None
    metadata: dict[str, str | int | float | bool] = {}


class SchedulesUpdate(msgspec.Struct, forbid_unknown_fields=True, rename={"in_": "in"}):
    """Either `updates`, each with its own moment, or one moment for all of `ids` or all that match the `filter`."""

    updates: list[ScheduleMove] = []
    ids: Ids | None = None
    filter: ScheduleSelection | None = None
    run_at: Moment | None = None
    in_: Delay | None = None


class SchedulesDelete(msgspec.Struct, forbid_unknown_fields=True):
    """Either `ids` or a `filter`, which is not empty."""

    ids: Ids | None = None
    filter: ScheduleSelection | None = None


class SchedulesQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which schedules; `since` and `until` are about when they run. `status` and `metadata` (`key:value`) may be repeated."""

    workflow: str | None = None
    status: tuple[str, ...] = ()
    since: Moment | None = None
    until: Moment | None = None
    metadata: tuple[str, ...] = ()


class ScheduleView(msgspec.Struct, frozen=True):
    """A schedule. `run_id` is its run once it is started; `settled_at` is when it was, or was given up as missed, because of `error` where
    that is not null.
    """

    id: str
    workflow: str
    status: str
    run_at: datetime
    metadata: Raw
    priority: int | None
    missed: str
    misfire_grace: str
    run_id: str | None
    settled_at: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime


class ScheduleDocument(ScheduleView, frozen=True):
    """A schedule with the input of its run."""

    input: Raw


class SchedulePage(msgspec.Struct, frozen=True):
    """Schedules, newest first, without their inputs."""

    rows: list[ScheduleView]
    next_cursor: str | None


class SchedulesChanged(msgspec.Struct, frozen=True):
    """The ids that were changed, and a problem document with its `id` for each that was not."""

    ids: list[str]
    errors: list[dict[str, Any]]


async def create_schedule(call: Call) -> Answer:
    """Schedule a run."""
    body: ScheduleBody = await call.json(_BODY)
    wanted = ScheduleWanted(
        body.workflow, call.services.schedules.moment(body.run_at, body.in_), json_text(body.input) or b"{}",
        metadata_text(call, body.metadata), body.priority, body.missed, duration(body.misfire_grace, "misfire_grace"),
    )  # fmt: skip
    return json_answer(201, _document(await call.services.schedules.create(call.tenant_id, wanted)))


async def list_schedules(call: Call) -> Answer:
    """Schedules that match all filters, newest first."""
    query: SchedulesQuery = call.query
    before = position("schedules", query, str)
    since, until = span(query.since, query.until)
    statuses = one_of(query.status, STATUSES, "status")
    wanted = ScheduleFilter(query.workflow, statuses, since, until, has_metadata(metadata_pairs(query.metadata)))
    found = await schedules.page(call.services.database, call.tenant_id, wanted, before, query.limit + 1)
    return page("schedules", query, found, lambda row: ScheduleView(**_members(row)), lambda row: row.id)


async def get_schedule(call: Call) -> Answer:
    """A schedule with the input of its run."""
    return json_answer(200, _document(await call.services.schedules.get(call.tenant_id, call.path["schedule_id"])))


async def update_schedule(call: Call) -> Answer:
    """Give a schedule another moment, or change what its run is given."""
    body: SchedulePatch = await call.json(_PATCH)
    service = call.services.schedules
    changes: dict[str, Any] = {name: value for name in ("priority", "missed") if (value := getattr(body, name)) is not UNSET}
    if body.run_at is not None or body.in_ is not None:
        changes["run_at"] = service.moment(body.run_at, body.in_)
    if body.input is not UNSET:
        changes["input"] = json_text(body.input)
    if body.metadata is not UNSET:
        changes["metadata"] = metadata_text(call, body.metadata)
    if body.misfire_grace is not UNSET:
        changes["grace_ms"] = round((duration(body.misfire_grace, "misfire_grace") or timedelta(0)).total_seconds() * 1000)
    if not changes:
        raise problem("invalid_value", "nothing to change is given")
    return json_answer(200, _document(await service.change(call.tenant_id, call.path["schedule_id"], changes)))


async def delete_schedule(call: Call) -> Answer:
    """Remove a schedule. A run it has started goes on."""
    await call.services.schedules.delete(call.tenant_id, call.path["schedule_id"])
    return Answer(204, b"", ())


async def trigger_schedule(call: Call) -> Answer:
    """Start the run of a schedule now instead of at its moment."""
    return json_answer(200, _document(await call.services.schedules.trigger(call.tenant_id, call.path["schedule_id"])))


async def update_schedules(call: Call) -> Answer:
    """Give many schedules another moment: each its own, or one for all of them."""
    body: SchedulesUpdate = await call.json(_UPDATE)
    service = call.services.schedules
    if (bool(body.updates), body.ids is not None, body.filter is not None).count(True) != 1:
        raise problem("invalid_value", "filter: give either `updates`, `ids` or `filter`", field="filter")
    if body.updates:
        check_count(body.updates, call.services.settings.max_bulk_schedules)
        if body.run_at is not None or body.in_ is not None:
            raise problem("invalid_value", "run_at: each of `updates` has its own", field="run_at")
        return json_answer(200, await _moved(call, body.updates))
    run_at = service.moment(body.run_at, body.in_)
    if body.filter is not None:
        return json_answer(200, SchedulesChanged(await service.reschedule_matching(call.tenant_id, _selected(body.filter), run_at), []))
    ids = body.ids or []
    check_count(ids, call.services.settings.max_bulk_schedules)
    changed = await service.reschedule(call.tenant_id, [(one, run_at) for one in ids])
    return json_answer(200, _outcome(ids, changed, "schedule_settled", "there is none of this id that is still to come"))


async def delete_schedules(call: Call) -> Answer:
    """Remove many schedules, by their ids or by what they have in common."""
    body: SchedulesDelete = await call.json(_DELETE)
    service = call.services.schedules
    if (body.ids is None) == (body.filter is None):
        raise problem("invalid_value", "filter: give either `ids` or `filter`", field="filter")
    if body.filter is not None:
        return json_answer(200, SchedulesChanged(await service.delete_matching(call.tenant_id, _selected(body.filter)), []))
    ids = body.ids or []
    check_count(ids, call.services.settings.max_bulk_schedules)
    gone = await service.delete_many(call.tenant_id, ids)
    return json_answer(200, _outcome(ids, gone, "unknown_schedule", "there is no schedule of this id"))


async def _moved(call: Call, updates: list[ScheduleMove]) -> SchedulesChanged:
    """Each by itself: one whose moment has passed keeps the others from nothing."""
    service, moments, errors = call.services.schedules, {}, []
    for i, one in enumerate(updates):
        try:
            moments[one.id] = service.checked(one.run_at, f"updates[{i}].run_at")
        except Problem as refused:
            errors.append({"id": one.id, **refused.document()})
    changed = await service.reschedule(call.tenant_id, list(moments.items()))
    outcome = _outcome(list(moments), changed, "schedule_settled", "there is none of this id that is still to come")
    return SchedulesChanged(outcome.ids, [*errors, *outcome.errors])


def _outcome(ids: list[str], changed: set[str], code: str, detail: str) -> SchedulesChanged:
    asked = list(dict.fromkeys(ids))
    left = [{"id": one, **problem(code, detail).document()} for one in asked if one not in changed]
    return SchedulesChanged([one for one in asked if one in changed], left)


def _selected(body: ScheduleSelection) -> ScheduleFilter:
    """Raises Problem for a filter that says nothing: it would match everything there is."""
    statuses = [body.status] if isinstance(body.status, str) else body.status
    check_pairs(len(body.metadata), "filter.metadata")
    pairs = [(key, value if isinstance(value, str) else msgspec.json.encode(value).decode()) for key, value in body.metadata.items()]
    since, until = span(body.since, body.until, "filter.")
    wanted = ScheduleFilter(body.workflow, statuses, since, until, has_metadata(pairs))
    if wanted == ScheduleFilter():
        raise problem("invalid_value", "filter: say which schedules", field="filter")
    return wanted


def _members(row: ScheduleRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "workflow": row.workflow,
        "status": row.status,
        "run_at": row.run_at,
        "metadata": raw(row.metadata),
        "priority": row.priority,
        "missed": row.missed,
        "misfire_grace": format_duration(timedelta(milliseconds=row.grace_ms)),
        "run_id": row.run_id,
        "settled_at": row.settled_at,
        "error": row.error,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _document(row: ScheduleRow) -> ScheduleDocument:
    return ScheduleDocument(**_members(row), input=Raw(row.input or b"null"))


_BODY: Final = msgspec.json.Decoder(ScheduleBody)
_PATCH: Final = msgspec.json.Decoder(SchedulePatch)
_UPDATE: Final = msgspec.json.Decoder(SchedulesUpdate)
_DELETE: Final = msgspec.json.Decoder(SchedulesDelete)
_READING: Final = (
    "invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8", "body_too_large",
    "unsupported_media_type",
)  # fmt: skip
_BAD_BODY: Final = (*_READING, "invalid_schedule", "schedule_in_past")
_ONE: Final = "/v1/schedules/{schedule_id}"

ROUTES: Final = (
    Route(
        "POST", "/v1/schedules", create_schedule, "runs:write", {201: ScheduleDocument}, body=ScheduleBody,
        problems=(*_BAD_BODY, "unknown_workflow", "limit_failed"),
    ),
    Route(
        "GET", "/v1/schedules", list_schedules, "runs:read", {200: SchedulePage}, SchedulesQuery,
        problems=("invalid_value", "unknown_parameter"),
    ),
    Route(
        "POST", "/v1/schedules/update", update_schedules, "runs:write", {200: SchedulesChanged}, body=SchedulesUpdate,
        problems=(*_BAD_BODY, "bulk_too_large"),
    ),
    Route(
        "POST", "/v1/schedules/delete", delete_schedules, "runs:write", {200: SchedulesChanged}, body=SchedulesDelete,
        problems=(*_READING, "bulk_too_large"),
    ),
    Route("GET", _ONE, get_schedule, "runs:read", {200: ScheduleDocument}, problems=("unknown_schedule",)),
    Route(
        "PATCH", _ONE, update_schedule, "runs:write", {200: ScheduleDocument}, body=SchedulePatch,
        problems=(*_BAD_BODY, "unknown_schedule", "schedule_settled", "limit_failed"),
    ),
    Route("DELETE", _ONE, delete_schedule, "runs:write", {204: None}, problems=("unknown_schedule",)),
    Route(
        "POST", _ONE + "/trigger", trigger_schedule, "runs:write", {200: ScheduleDocument},
        problems=("unknown_schedule", "schedule_settled", "overloaded", "database_unavailable"),
    ),
)  # fmt: skip
