"""/v1/audit: who changed what."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from msgspec import Raw

from dispatcher.api.decoding import span
from dispatcher.api.edge import Answer, Call, Route
from dispatcher.api.listing import PageQuery, page, position
from dispatcher.api.triggering import Moment
from dispatcher.store import audit
from dispatcher.store.audit import AuditRow


class AuditQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which changes; `action` is as the rows have it, e.g. `runs.cancel`."""

    action: str | None = None
    since: Moment | None = None
    until: Moment | None = None


class AuditView(msgspec.Struct, frozen=True):
    """One change. `actor` is the id of the token it was made with, null for the developer on the server's own machine."""

    id: str
    at: datetime
    actor: str | None
    action: str
    target: str
    details: Raw


class AuditPage(msgspec.Struct, frozen=True):
    """Changes, the latest first."""

    rows: list[AuditView]
    next_cursor: str | None


async def list_audit(call: Call) -> Answer:
    """Bulk actions and changes of filters, the latest first: who, what, when."""
    query: AuditQuery = call.query
    before = position("audit", query, str)
    since, until = span(query.since, query.until)
    found = await audit.page(call.services.database, call.tenant_id, before, query.action, since, until, query.limit + 1)
    return page("audit", query, found, _show, lambda row: row.id)


def _show(row: AuditRow) -> AuditView:
    return AuditView(row.id, row.at, row.actor, row.action, row.target, Raw(row.details))


ROUTES: Final = (
    Route("GET", "/v1/audit", list_audit, "audit:read", {200: AuditPage}, AuditQuery, problems=("invalid_value", "unknown_parameter")),
)  # fmt: skip
