"""/v1/runs/cancel, /v1/runs/replay and /v1/bulk: the same for many runs, as an action with progress."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw

from dispatcher.api.decoding import moment
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.metadata import check_pairs
from dispatcher.api.triggering import Moment, Name
from dispatcher.errors import problem
from dispatcher.store import bulk
from dispatcher.store.bulk import BulkRow, Kind
from dispatcher.store.runs import FINAL_STATUSES, LIVE_STATUSES, RunFilter, has_metadata

_STATUSES: Final[dict[Kind, frozenset[str]]] = {"cancel": LIVE_STATUSES, "replay": FINAL_STATUSES}
# What a replay is for where nothing is said: what succeeded is not done again unawares.
_USUAL: Final[dict[Kind, tuple[str, ...] | None]] = {"cancel": None, "replay": ("failed", "cancelled")}


class RunsFilter(msgspec.Struct, forbid_unknown_fields=True):
    """Which runs: those that match all that is given, of which there is at least one.

    `workflow` and `status` are one or several; without a status live runs are cancelled, failed and cancelled ones replayed. Times are
    those of their making.
    """

    workflow: Name | list[Name] | None = None
    status: str | list[str] | None = None
    since: Moment | None = None
    until: Moment | None = None
    metadata: dict[str, str | int | float | bool | None] | None = None
    event_id: str | None = None
    parent_run_id: str | None = None


class BulkBody(msgspec.Struct, forbid_unknown_fields=True):
    """Runs by their ids, or by a filter. With `dry_run` they are counted and nothing is done."""

    ids: list[Annotated[str, Meta(max_length=100)]] | None = None
    filter: RunsFilter | None = None
    dry_run: bool = False
    reason: Annotated[str, Meta(max_length=1000)] = ""


class BulkPreview(msgspec.Struct, frozen=True):
    """How many runs an action would be for."""

    id: None
    matched: int
    status: Literal["preview"]


class BulkView(msgspec.Struct, frozen=True):
    """A bulk action: of `matched` runs, `done` were cancelled or begun again; `skipped` had changed meanwhile, and were left alone."""

    id: str
    kind: Kind
    status: Literal["running", "finished", "cancelled"]
    matched: int
    done: int
    skipped: int
    asked: Raw
    reason: str
    created_by: str | None
    created_at: datetime
    finished_at: datetime | None


class BulkPage(msgspec.Struct, frozen=True):
    """Bulk actions, the latest first."""

    rows: list[BulkView]
    next_cursor: str | None


class BulkQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which actions."""

    status: Literal["running", "finished", "cancelled"] | None = None


async def cancel_runs(call: Call) -> Answer:
    """Cancel many runs, by ids or by a filter."""
    return await _begin(call, "cancel")


async def replay_runs(call: Call) -> Answer:
    """Run many finished runs again, by ids or by a filter."""
    return await _begin(call, "replay")


async def get_bulk(call: Call) -> Answer:
    """A bulk action, and how far it has come."""
    row = await bulk.get(call.services.database, call.tenant_id, call.path["bulk_id"])
    if row is None:
        raise problem("not_found", f"there is no bulk action {call.path['bulk_id'][:100]!r}")
    return json_answer(200, _show(row))


async def list_bulk(call: Call) -> Answer:
    """Bulk actions, the latest first."""
    query: BulkQuery = call.query
    before = position("bulk", query, str)
    found = await bulk.page(call.services.database, call.tenant_id, before, query.status, query.limit + 1)
    return page("bulk", query, found, _show, lambda row: row.id)


async def cancel_bulk(call: Call) -> Answer:
    """End a bulk action where it stands; what it has done stays done."""
    return json_answer(200, _show(await call.services.bulk.stop(call.tenant_id, call.path["bulk_id"], call.caller.token_id)))


async def _begin(call: Call, kind: Kind) -> Answer:
    body: BulkBody = await call.json_items(_BODY)
    if (body.ids is None) == (body.filter is None):
        raise problem("invalid_value", "give either `ids` or `filter`", field="ids")
    wanted = _wanted(body.filter, kind) if body.filter is not None else RunFilter()
    found = await call.services.bulk.match(call.tenant_id, kind, wanted, _workflows(body.filter), body.ids)
    if body.dry_run:
        return json_answer(200, BulkPreview(None, len(found), "preview"))
    asked: dict[str, Any] = {"filter": _asked(body.filter)} if body.filter is not None else {"ids": len(body.ids or ())}
    reason = body.reason or ("cancelled by request" if kind == "cancel" else "")
    made = await call.services.bulk.make(call.tenant_id, kind, found, asked, reason, call.caller.token_id)
    return json_answer(202, _show(made), (b"location", b"/v1/bulk/" + made.id.encode()))


def _wanted(given: RunsFilter, kind: Kind) -> RunFilter:
    if not _asked(given):
        raise problem("invalid_value", "filter: name at least one of workflow, status, since, until, metadata", field="filter")
    since, until = moment(given.since, "filter.since"), moment(given.until, "filter.until")
    if since is not None and until is not None and until < since:
        raise problem("invalid_value", "filter.since: later than until", field="filter.since")
    return RunFilter(
        statuses=_statuses(given.status, kind),
        since=since,
        until=until,
        metadata=has_metadata(_pairs(given.metadata or {})),
        event_id=given.event_id,
        parent_run_id=given.parent_run_id,
    )


def _workflows(given: RunsFilter | None) -> list[str] | None:
    if given is None or given.workflow is None:
        return None
    return [given.workflow] if isinstance(given.workflow, str) else given.workflow


def _statuses(given: str | list[str] | None, kind: Kind) -> list[str] | None:
    names = [given] if isinstance(given, str) else given
    if not names:
        usual = _USUAL[kind]
        return list(usual) if usual is not None else None
    for name in names:
        if name not in _STATUSES[kind]:
            known = ", ".join(sorted(_STATUSES[kind]))
            raise problem("invalid_value", f"filter.status: {name[:100]!r} is none a {kind} is for: {known}", field="filter.status")
    return names


def _pairs(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    check_pairs(len(metadata), "filter.metadata")
    return [(key, value if isinstance(value, str) else msgspec.json.encode(value).decode()) for key, value in metadata.items()]


def _asked(given: RunsFilter) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.to_builtins(given)
    return {name: value for name, value in members.items() if value is not None and value not in ([], {})}


def _show(row: BulkRow) -> BulkView:
    return BulkView(
        row.id, row.kind, row.status, row.matched, row.done, row.skipped, Raw(row.filter or "{}"), row.reason, row.created_by,  # type: ignore[arg-type]
        row.created_at, row.finished_at,
    )  # fmt: skip


_BODY: Final = msgspec.json.Decoder(BulkBody)
_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8")
_BEGIN: Final = (*_BAD_BODY, "body_too_large", "unsupported_media_type", "too_many_matched", "database_unavailable")

ROUTES: Final = (
    Route("POST", "/v1/runs/cancel", cancel_runs, "runs:write", {202: BulkView, 200: BulkPreview}, body=BulkBody, problems=_BEGIN),
    Route("POST", "/v1/runs/replay", replay_runs, "runs:write", {202: BulkView, 200: BulkPreview}, body=BulkBody, problems=_BEGIN),
    Route("GET", "/v1/bulk", list_bulk, "runs:read", {200: BulkPage}, BulkQuery, problems=("invalid_value", "unknown_parameter")),
    Route("GET", "/v1/bulk/{bulk_id}", get_bulk, "runs:read", {200: BulkView}, problems=("not_found",)),
    Route("POST", "/v1/bulk/{bulk_id}/cancel", cancel_bulk, "runs:write", {200: BulkView}, problems=("not_found", "bulk_finished")),
)  # fmt: skip
