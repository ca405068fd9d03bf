"""Making, changing and removing filters: each raises the registry's version, so that no event is judged by what is gone."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dispatcher.clock import Clock
from dispatcher.engine.definitions.filters import MOST_PAYLOAD, canonical, compile_filter
from dispatcher.engine.expressions import ExpressionError
from dispatcher.errors import Problem, problem
from dispatcher.ids import IdMaker
from dispatcher.runtime.directory import Directory
from dispatcher.settings import Settings
from dispatcher.store import audit, registry
from dispatcher.store import filters as store
from dispatcher.store.database import Connection, Database
from dispatcher.store.filters import FilterRow, NewFilter

_KEPT: Final = object()


@dataclass(frozen=True, slots=True)
class FilterChanges:
    """What shall be different; `payload` is left as it is unless one is given, and None takes it away."""

    expression: str | None = None
    scope: str | None = None
    payload: Any = _KEPT


class Filters:
    """Everything that changes what filters there are, beside registering workflows."""

    def __init__(
        self, database: Database, directory: Directory, clock: Clock, settings: Settings, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._directory = directory
        self._clock = clock
        self._settings = settings
        self._changed = changed
        self._ids = IdMaker()

    async def create(
        self, tenant_id: int, workflow: str, expression: str, scope: str, payload: Mapping[str, Any] | None, actor: str | None
    ) -> FilterRow:
        """Make a filter. Raises Problem unknown_workflow, invalid_expression, filter_exists or too_many_filters."""
        found = await registry.workflow(self._database, tenant_id, workflow)
        if found is None:
            raise problem("unknown_workflow", f"no workflow {workflow[:200]!r} is registered")
        now = self._clock.now()
        new = _checked(NewFilter(self._ids.make("flt", now), found.id, scope, expression, canonical(payload)))
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            if await store.count(conn, tenant_id) >= self._settings.max_filters:
                raise problem("too_many_filters", f"there are {self._settings.max_filters:,} filters already")
            if not await store.add(conn, tenant_id, new, now):
                raise _exists(workflow)
            made = await self._noted(conn, tenant_id, new.id, "filter.create", actor)
        await self._changed()
        return made

    async def change(self, tenant_id: int, filter_id: str, changes: FilterChanges, actor: str | None) -> FilterRow:
        """Change what is given. Raises Problem not_found, filter_declared, invalid_expression or filter_exists."""
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)  # which holds the tenant: what is read now is what is changed
            before = await store.get(conn, tenant_id, filter_id)
            if before is None:
                raise _unknown(filter_id)
            _refuse_declared(before)
            payload = before.payload if changes.payload is _KEPT else canonical(changes.payload)
            scope, expression = changes.scope or before.scope, changes.expression or before.expression
            new = _checked(NewFilter(before.id, before.workflow_id, scope, expression, payload))
            if not await store.change(conn, tenant_id, new, self._clock.now()):
                raise _exists(before.workflow)
            made = await self._noted(conn, tenant_id, new.id, "filter.update", actor)
        await self._changed()
        return made

    async def delete(self, tenant_id: int, filter_id: str, actor: str | None) -> None:
        """Remove a filter. Raises Problem not_found or filter_declared."""
        _refuse_declared(await self.get(tenant_id, filter_id))
        async with self._database.transaction() as conn:
            await registry.bump(conn, tenant_id)
            if await store.get(conn, tenant_id, filter_id) is None:
                raise _unknown(filter_id)
            await self._noted(conn, tenant_id, filter_id, "filter.delete", actor)
            await store.delete(conn, tenant_id, filter_id)
        await self._changed()

    async def get(self, tenant_id: int, filter_id: str) -> FilterRow:
        """A filter. Raises Problem not_found."""
        row = await store.get(self._database, tenant_id, filter_id)
        if row is None:
            raise _unknown(filter_id)
        return row

    async def _noted(self, conn: Connection, tenant_id: int, filter_id: str, action: str, actor: str | None) -> FilterRow:
        row = await store.get(conn, tenant_id, filter_id)
        assert row is not None, "the tenant's row is locked"
        details = {"workflow": row.workflow, "scope": row.scope, "expression": row.expression, "payload": json.loads(row.payload or "null")}
        now = self._clock.now()
        await audit.add(conn, tenant_id, self._ids.make("aud", now), now, actor, action, filter_id, details)
        return row


def _checked(new: NewFilter) -> NewFilter:
    try:
        compile_filter(new.expression)
    except ExpressionError as error:
        raise problem("invalid_expression", f"expression: {error}", field="expression") from None
    if new.payload is not None and len(new.payload) > MOST_PAYLOAD:
        raise problem("body_too_large", f"payload: at most {MOST_PAYLOAD:,} bytes are taken", field="payload")
    return new


def _refuse_declared(row: FilterRow) -> None:
    if row.declared:
        raise problem("filter_declared", f"{row.id} is declared by workflow {row.workflow!r}")


def _exists(workflow: str) -> Problem:
    return problem("filter_exists", f"workflow {workflow!r} has a filter with this scope, expression and payload")


def _unknown(filter_id: str) -> Problem:
    return problem("not_found", f"there is no filter {filter_id[:100]!r}")
