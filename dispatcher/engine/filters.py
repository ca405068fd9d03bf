"""Which runs an event starts, once its filters have had their say.

A workflow without filters runs for every event it listens for. One that has any, in whatever scope, runs once for each of its filters in
the event's scope that holds, and its handler gets that filter's payload. An expression that fails starts nothing and is reported.

The filters of one event are evaluated as a set: its data is read once, and they share a limit of time. What they cost is known before
(`Candidates.cost`), so that whoever holds the event loop can hand costly ones to a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dispatcher.engine.definitions.filters import compile_filter
from dispatcher.engine.expressions import Expression, ExpressionError

_PAGE: Final = 4_096  # bytes of an event that count once: what an expression costs grows with what it reads
_COSTLY: Final = 1 << 30  # an expression that goes through lists


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter, ready to be asked. `payload` is JSON text; `expression` is the error instead where it cannot be read any more."""

    id: str
    scope: str
    source: str
    payload: str | None
    variables: Mapping[str, Any]
    expression: Expression[bool] | ExpressionError

    @staticmethod
    def make(id: str, scope: str, source: str, payload: str | None) -> Filter:
        """Compiled. What cannot be compiled fails when it is asked, so that nothing is lost without a word."""
        expression: Expression[bool] | ExpressionError
        try:
            expression = compile_filter(source)
        except ExpressionError as error:
            expression = error
        return Filter(id, scope, source, payload, json.loads(payload) if payload is not None else {}, expression)

    @property
    def cost(self) -> int:
        """About how many steps it takes on a small event."""
        if isinstance(self.expression, ExpressionError):
            return 1
        return _COSTLY if self.expression.loops else self.expression.size


@dataclass(frozen=True, slots=True)
class Match:
    """A run to start, with the payload (JSON text) of the filter that held, if one did."""

    workflow: str
    payload: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A filter that could not be evaluated on an event."""

    workflow: str
    filter_id: str
    scope: str
    expression: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Occurrence:
    """The event as filters see it; `data` and `metadata` are JSON text."""

    key: str
    scope: str | None
    data: bytes
    metadata: str | None


FilterIndex = Mapping[str, Mapping[str, tuple[Filter, ...]]]
"""Filters by workflow and scope. A workflow that has any is in it, and one whose filters are all in other scopes gets none."""


def index(filters: Iterable[tuple[str, Filter]]) -> FilterIndex:
    """From (workflow, filter), in the order in which they shall be asked."""
    found: dict[str, dict[str, tuple[Filter, ...]]] = {}
    for workflow, one in filters:
        scopes = found.setdefault(workflow, {})
        scopes[one.scope] = (*scopes.get(one.scope, ()), one)
    return found


@dataclass(frozen=True, slots=True)
class Candidates:
    """Workflows that listen for an event, each with the filters to ask; None where it has none anywhere."""

    listening: tuple[tuple[str, tuple[Filter, ...] | None], ...]

    @staticmethod
    def of(workflows: Iterable[str], filters: FilterIndex, scope: str | None) -> Candidates | None:
        """Those of an event; None where no workflow has filters, and all of them run."""
        names = tuple(workflows)
        if not any(name in filters for name in names):
            return None
        return Candidates(tuple((name, filters[name].get(scope or "", ()) if name in filters else None) for name in names))

    def cost(self, event_bytes: int) -> int:
        """About how many steps they take together on an event of this size."""
        return sum(one.cost for _, filters in self.listening for one in filters or ()) * (1 + event_bytes // _PAGE)

    def select(self, event: Occurrence, clock: Callable[[], float], seconds: float) -> tuple[list[Match], list[Failure]]:
        """The runs to start, in the order of the workflows and of their filters, and the filters that failed.

        `clock` gives seconds; all of them together get `seconds`, and those that are left then fail.
        """
        variables = _variables(event) if any(filters for _, filters in self.listening) else {}
        matches: list[Match] = []
        failures: list[Failure] = []
        until = clock() + seconds
        for workflow, filters in self.listening:
            if filters is None:
                matches.append(Match(workflow))
                continue
            for one in filters:
                try:
                    if _holds(one, variables, clock, until):
                        matches.append(Match(workflow, one.payload))
                except ExpressionError as error:
                    failures.append(Failure(workflow, one.id, one.scope, one.source, error.code, str(error)))
        return matches, failures


def _variables(event: Occurrence) -> dict[str, Any]:
    metadata = json.loads(event.metadata) if event.metadata is not None else {}
    return {"input": json.loads(event.data), "additional_metadata": metadata, "metadata": metadata, "event_key": event.key}


def _holds(one: Filter, variables: dict[str, Any], clock: Callable[[], float], until: float) -> bool:
    if isinstance(one.expression, ExpressionError):
        raise one.expression
    if clock() > until:
        raise ExpressionError("budget", "the filters before it have used the time there is for those of one event")
    variables["payload"] = one.variables
    return one.expression.evaluate(variables, clock).value
