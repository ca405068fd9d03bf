"""Why a task of a graph does not run yet: the parents it waits for, then the conditions that are still open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from dispatcher.engine.definitions import STORED, Condition, Definition, Parent, UserEvent, compile_condition, parse_definition
from dispatcher.engine.expressions import ExpressionError
from dispatcher.engine.graphs import LETTERS, Clause, Graph, GraphState, awaited
from dispatcher.store.runs import RunRow

_PLANS_KEPT: Final = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """A definition and its graph; `last` are the names of the tasks that come last."""

    definition: Definition
    graph: Graph
    last: frozenset[str]


@lru_cache(maxsize=_PLANS_KEPT)
def plan_of(definition: str) -> Plan:
    """The plan of a stored definition. Those asked for lately are kept: one of a thousand tasks takes as long to read as all the rest."""
    read = parse_definition(msgspec.json.decode(definition), STORED, static=False)
    return Plan(read, Graph.of(read), frozenset(read.tasks[node].name for node in (read.on_failure, read.on_success) if node is not None))


class Watch:
    """One run's open conditions. `waits` are the rows of those that time or events settle."""

    def __init__(self, plan: Plan, letters: str, known: Mapping[int, RunRow], waits: Sequence[Mapping[str, Any]]) -> None:
        self._definition = plan.definition
        self._letters = letters
        self._known = known
        self._due: dict[tuple[int, int], datetime | None] = {(wait["node"], int(wait["id"])): wait["due_at"] for wait in waits}
        met: dict[int, set[int]] = {}
        for wait in waits:
            if not wait["open"]:
                met.setdefault(wait["node"], set()).add(int(wait["id"]))
        statuses = tuple(LETTERS[letter] for letter in letters)
        self._state = GraphState(statuses, {node: frozenset(numbers) for node, numbers in met.items()})
        self._graph = plan.graph

    def of(self, node: int) -> dict[str, list[dict[str, Any]]]:
        """`waiting_for`, and `skipped_by` and `cancelled_by` where there is any."""
        parents = [{"parent": self._definition.tasks[n].name} for n in self._definition.tasks[node].parents if self._open(n)]
        gate = awaited(self._graph, self._state, node, self._holds)
        said = {"skipped_by": self._groups(node, gate.skip_if), "cancelled_by": self._groups(node, gate.cancel_if)}
        return {"waiting_for": parents + self._groups(node, gate.wait_for), **{name: groups for name, groups in said.items() if groups}}

    def _open(self, node: int) -> bool:
        return self._letters[node] in "-wa" and not (node in self._known and self._known[node].task_finished_at)

    def _groups(self, node: int, clauses: Iterable[Clause]) -> list[dict[str, Any]]:
        """The groups that can still come to hold, each without the conditions that cannot: what a parent gave does not change."""
        shown = [[self._shown(node, number, one) for number, one in clause if not isinstance(one, Parent)] for clause in clauses]
        return [group[0] if len(group) == 1 else {"or": group} for group in shown if group]

    def _shown(self, node: int, number: int, condition: Condition) -> dict[str, Any]:
        if not isinstance(condition, UserEvent):
            return {"sleep_until": self._due.get((node, number))}
        said = {"event": condition.key, "expression": condition.expression, "scope": condition.scope}
        return {name: value for name, value in said.items() if value is not None}

    def _holds(self, _: int, condition: Parent) -> bool:
        row = self._known.get(condition.node)
        if row is None or row.output is None:
            return False
        try:
            return compile_condition(condition.expression, parent=True)(output=msgspec.json.decode(row.output))
        except (ExpressionError, msgspec.DecodeError, RecursionError):
            return False
