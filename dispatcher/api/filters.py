"""/v1/filters: which of the events a workflow listens for start it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.triggering import Name
from dispatcher.engine.definitions.filters import MOST_SCOPE
from dispatcher.runtime.filters import FilterChanges
from dispatcher.store import filters
from dispatcher.store.filters import FilterRow

Scope = Annotated[str, Meta(min_length=1, max_length=MOST_SCOPE, description="events of this scope are judged by it")]
Text = Annotated[str, Meta(min_length=1, max_length=1024, description="CEL over input, payload, additional_metadata and event_key")]


class FilterBody(msgspec.Struct, forbid_unknown_fields=True):
    """A filter to make: events in its scope start the workflow when the expression holds, and its handler gets the payload."""

    workflow: Name
    expression: Text
    scope: Scope
    payload: dict[str, Any] | None = None


class FilterPatch(msgspec.Struct, forbid_unknown_fields=True):
    """What shall be different; `payload: null` takes it away."""

    expression: Text | UnsetType = UNSET
    scope: Scope | UnsetType = UNSET
    payload: dict[str, Any] | UnsetType | None = UNSET


class FiltersQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which filters; both may be repeated."""

    workflow: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()


class FilterView(msgspec.Struct, frozen=True):
    """A filter; `declared` says that it comes with its workflow, and changes with it."""

    id: str
    workflow: str
    expression: str
    scope: str
    payload: Raw
    declared: bool
    created_at: datetime
    updated_at: datetime


class FilterPage(msgspec.Struct, frozen=True):
    """Filters, the oldest first."""

    rows: list[FilterView]
    next_cursor: str | None


async def create_filter(call: Call) -> Answer:
    """Make a filter. It judges every event that is sent once this is answered."""
    body: FilterBody = await call.json(_BODY)
    made = await call.services.filters.create(
        call.tenant_id, body.workflow, body.expression, body.scope, body.payload, call.caller.token_id
    )
    return json_answer(201, _show(made))


async def list_filters(call: Call) -> Answer:
    """Filters, declared ones among them, the oldest first."""
    query: FiltersQuery = call.query
    after = position("filters", query, str) or ""
    found = await filters.page(
        call.services.database, call.tenant_id, after, list(query.workflow) or None, list(query.scope) or None, query.limit + 1
    )
    return page("filters", query, found, _show, lambda row: row.id)


async def get_filter(call: Call) -> Answer:
    """A filter."""
    return json_answer(200, _show(await call.services.filters.get(call.tenant_id, call.path["filter_id"])))


async def update_filter(call: Call) -> Answer:
    """Change a filter that was made by hand."""
    body: FilterPatch = await call.json(_PATCH)
    changes = FilterChanges(body.expression or None, body.scope or None)
    if body.payload is not UNSET:
        changes = FilterChanges(changes.expression, changes.scope, body.payload)
    changed = await call.services.filters.change(call.tenant_id, call.path["filter_id"], changes, call.caller.token_id)
    return json_answer(200, _show(changed))


async def delete_filter(call: Call) -> Answer:
    """Remove a filter that was made by hand. A workflow without any runs for every event it listens for."""
    await call.services.filters.delete(call.tenant_id, call.path["filter_id"], call.caller.token_id)
    return Answer(204, b"", ())


def _show(row: FilterRow) -> FilterView:
    payload = Raw(row.payload if row.payload is not None else b"null")
    return FilterView(row.id, row.workflow, row.expression, row.scope, payload, row.declared, row.created_at, row.updated_at)


_BODY: Final = msgspec.json.Decoder(FilterBody)
_PATCH: Final = msgspec.json.Decoder(FilterPatch)
_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8")

ROUTES: Final = (
    Route(
        "POST", "/v1/filters", create_filter, "events:write", {201: FilterView}, body=FilterBody,
        problems=(
            *_BAD_BODY, "body_too_large", "unsupported_media_type", "unknown_workflow", "invalid_expression", "filter_exists",
            "too_many_filters",
        ),
    ),
    Route(
        "GET", "/v1/filters", list_filters, "events:read", {200: FilterPage}, FiltersQuery, problems=("invalid_value", "unknown_parameter"),
    ),
    Route("GET", "/v1/filters/{filter_id}", get_filter, "events:read", {200: FilterView}, problems=("not_found",)),
    Route(
        "PATCH", "/v1/filters/{filter_id}", update_filter, "events:write", {200: FilterView}, body=FilterPatch,
        problems=(
            *_BAD_BODY, "body_too_large", "unsupported_media_type", "not_found", "invalid_expression", "filter_exists", "filter_declared",
        ),
    ),
    Route("DELETE", "/v1/filters/{filter_id}", delete_filter, "events:write", {204: None}, problems=("not_found", "filter_declared")),
)  # fmt: skip
