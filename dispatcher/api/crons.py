"""/v1/crons: runs at every tick of an expression."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.metadata import metadata_pairs
from dispatcher.api.triggering import Name, Priority, json_text, metadata_text
from dispatcher.api.views import RunCreated, raw
from dispatcher.engine.schedules import UTC_NAME, ScheduleError, parse_cron
from dispatcher.errors import problem
from dispatcher.runtime.crons import CronWanted
from dispatcher.runtime.plans import upcoming
from dispatcher.store import crons
from dispatcher.store.crons import CronFilter, CronRow
from dispatcher.store.runs import has_metadata

UPCOMING: Final = 5

CronName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Expression = Annotated[str, Meta(min_length=1, max_length=200, description="5 fields, 6 with seconds first, or an alias such as @daily")]
Zone = Annotated[str, Meta(min_length=1, max_length=100, description="a name of the IANA database")]
Missed = Literal["skip", "run_once", "run_all"]


class CronBody(msgspec.Struct, forbid_unknown_fields=True):
    """A cron to make. `missed` is what becomes of ticks nobody was there for: left out, made up for by one run, or by one each."""

    workflow: Name
    name: CronName
    expression: Expression
    timezone: Zone = UTC_NAME
    input: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    priority: Priority | None = None
    missed: Missed = "skip"
    enabled: bool = True


class CronPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What shall be different. Of a cron that its workflow declares that can only be `enabled`."""

    name: CronName | UnsetType = UNSET
    expression: Expression | UnsetType = UNSET
    timezone: Zone | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    priority: Priority | UnsetType | None = UNSET
    missed: Missed | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class CronsQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which crons. `metadata` is `key:value` and may be repeated."""

    workflow: str | None = None
    name: str | None = None
    enabled: bool | None = None
    declared: bool | None = None
    metadata: tuple[str, ...] = ()


class CronView(msgspec.Struct, frozen=True):
    """A cron; `declared` says that it comes with its workflow. `last_skipped_at` is the last tick that was missed and left out, and
    `last_error` why the last one that was due could not start a run.
    """

    id: str
    workflow: str
    name: str
    expression: str
    timezone: str
    description: str
    input: Raw
    metadata: Raw
    priority: int | None
    missed: str
    enabled: bool
    declared: bool
    next_at: datetime | None
    last_at: datetime | None
    last_run_id: str | None
    last_skipped_at: datetime | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime


class CronDocument(CronView, frozen=True):
    """A cron with the ticks to come."""

    next_runs: Sequence[datetime]


class CronPage(msgspec.Struct, frozen=True):
    """Crons, newest first."""

    rows: list[CronView]
    next_cursor: str | None


async def create_cron(call: Call) -> Answer:
    """Make a cron. The first run is at its next tick."""
    body: CronBody = await call.json(_BODY)
    wanted = CronWanted(
        body.workflow, body.name, body.expression, body.timezone, json_text(body.input) or b"{}", metadata_text(call, body.metadata),
        body.priority, body.missed, body.enabled,
    )  # fmt: skip
    return json_answer(201, _document(await call.services.crons.create(call.tenant_id, wanted)))


async def list_crons(call: Call) -> Answer:
    """Crons that match all filters, declared ones among them, newest first."""
    query: CronsQuery = call.query
    before = position("crons", query, str)
    metadata = has_metadata(metadata_pairs(query.metadata))
    wanted = CronFilter(query.workflow, query.name, query.enabled, query.declared, metadata)
    found = await crons.page(call.services.database, call.tenant_id, wanted, before, query.limit + 1)
    return page("crons", query, found, lambda row: CronView(**_members(row)), lambda row: row.id)


async def get_cron(call: Call) -> Answer:
    """A cron, in words and with the ticks to come."""
    return json_answer(200, _document(await call.services.crons.get(call.tenant_id, call.path["cron_id"])))


async def update_cron(call: Call) -> Answer:
    """Change a cron, or stop and start it with `enabled`. Ticks that pass while it is disabled are not made up for."""
    body: CronPatch = await call.json(_PATCH)
    changes: dict[str, Any] = {
        name: value
        for name in ("name", "expression", "timezone", "priority", "missed", "enabled")
        if (value := getattr(body, name)) is not UNSET
    }
    if "expression" in changes:
        changes["expression"] = " ".join(changes["expression"].split())
    if body.input is not UNSET:
        changes["input"] = json_text(body.input)
    if body.metadata is not UNSET:
        changes["metadata"] = metadata_text(call, body.metadata)
    if not changes:
        raise problem("invalid_value", "nothing to change is given")
    return json_answer(200, _document(await call.services.crons.change(call.tenant_id, call.path["cron_id"], changes)))


async def delete_cron(call: Call) -> Answer:
    """Remove a cron. The runs it has started go on."""
    await call.services.crons.delete(call.tenant_id, call.path["cron_id"])
    return Answer(204, b"", ())


async def trigger_cron(call: Call) -> Answer:
    """Start a run now with what the cron gives its runs. Its ticks stay as they are."""
    row = await call.services.crons.get(call.tenant_id, call.path["cron_id"])
    accepted = await call.services.crons.trigger(call.tenant_id, row.id)
    return json_answer(201, RunCreated(accepted.id, row.workflow, accepted.status, accepted.created_at))


def _members(row: CronRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "workflow": row.workflow,
        "name": row.name,
        "expression": row.expression,
        "timezone": row.timezone,
        "description": _described(row.expression),
        "input": Raw(row.input),
        "metadata": raw(row.metadata),
        "priority": row.priority,
        "missed": row.missed,
        "enabled": row.enabled,
        "declared": row.declared,
        "next_at": row.due_at,
        "last_at": row.last_tick,
        "last_run_id": row.last_run_id,
        "last_skipped_at": row.skipped_at,
        "last_error": row.last_error,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _described(expression: str) -> str:
    try:
        return parse_cron(expression).describe()
    except ScheduleError:
        return expression


def _document(row: CronRow) -> CronDocument:
    try:
        ticks = upcoming(row.expression, row.timezone, row.due_at, row.due_wall, UPCOMING)
    except ScheduleError:
        ticks = [row.due_at] if row.due_at is not None else []
    return CronDocument(**_members(row), next_runs=ticks)


_BODY: Final = msgspec.json.Decoder(CronBody)
_PATCH: Final = msgspec.json.Decoder(CronPatch)
_BAD_BODY: Final = (
    "invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8", "body_too_large",
    "unsupported_media_type", "invalid_cron", "invalid_timezone", "cron_exists",
)  # fmt: skip
_ONE: Final = "/v1/crons/{cron_id}"

ROUTES: Final = (
    Route(
        "POST", "/v1/crons", create_cron, "runs:write", {201: CronDocument}, body=CronBody,
        problems=(*_BAD_BODY, "unknown_workflow", "too_many_crons", "limit_failed"),
    ),
    Route("GET", "/v1/crons", list_crons, "runs:read", {200: CronPage}, CronsQuery, problems=("invalid_value", "unknown_parameter")),
    Route("GET", _ONE, get_cron, "runs:read", {200: CronDocument}, problems=("unknown_cron",)),
    Route(
        "PATCH", _ONE, update_cron, "runs:write", {200: CronDocument}, body=CronPatch,
        problems=(*_BAD_BODY, "unknown_cron", "cron_declared", "limit_failed"),
    ),
    Route("DELETE", _ONE, delete_cron, "runs:write", {204: None}, problems=("unknown_cron", "cron_declared")),
    Route(
        "POST", _ONE + "/trigger", trigger_cron, "runs:write", {201: RunCreated},
        problems=("unknown_cron", "unknown_workflow", "overloaded", "database_unavailable"),
    ),
)  # fmt: skip
