"""Why a task of a graph does not run yet: the parents it waits for, then the conditions that are still open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from dispatcher.engine.definitions import Condition, Definition, Parent, UserEvent, compile_condition
from dispatcher.engine.expressions import ExpressionError
from dispatcher.engine.graphs import LETTERS, Clause, Graph, GraphState, awaited
from dispatcher.store.runs import RunRow


class Watch:
    """One run's open conditions. `waits` are the rows of those that time or events settle."""

    def __init__(self, definition: Definition, letters: str, known: Mapping[int, RunRow], waits: Sequence[Mapping[str, Any]]) -> None:
        self._definition = definition
        self._letters = letters
        self._known = known
        self._due: dict[tuple[int, int], datetime | None] = {(wait["node"], int(wait["id"])): wait["due_at"] for wait in waits}
        met: dict[int, set[int]] = {}
        for wait in waits:
            if not wait["open"]:
                met.setdefault(wait["node"], set()).add(int(wait["id"]))
        statuses = tuple(LETTERS[letter] for letter in letters)
        self._state = GraphState(statuses, {node: frozenset(numbers) for node, numbers in met.items()})
        self._graph = Graph.of(definition)

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
