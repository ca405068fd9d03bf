"""What becomes of the tasks of a graph: which may start, which are skipped or cancelled, and how the run ends.

The rules, in the order they are asked about a task that is not settled (3-semantics.md 12 to 23, and its head):

1. A parent failed or was cancelled: the task is cancelled, whatever its own conditions say, and without waiting for its other parents.
2. A parent is not settled: the task waits for it.
3. There are parents and all of them were skipped: the task is skipped.
4. `skip_if` holds: skipped. 5. `cancel_if` holds: cancelled. 6. `wait_for` holds: it starts.
7. `wait_for` can never hold, because one of its groups has nothing but parent conditions, none of which holds: cancelled. A wait nobody
   can end would keep the run open for ever; skipping would report a typo in an expression as success.
8. Otherwise its sleeps and events are registered, counted from now, and 4 to 6 are asked again whenever one of them is settled.

A condition on a parent's output holds only if that parent succeeded and the expression is true of its output: what was skipped has none.

`on_failure` starts at the first task that fails for good, once, while others may still run; `on_success` when all have succeeded or were
skipped. The one that has no reason to run is skipped when that is certain. A failure of `on_success` is a failure like any other.

Cancelling a run cancels what has not started, stops what has, and starts nothing any more, `on_failure` included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from dispatcher.engine.definitions import Condition, Definition, Parent, Rule, TaskDefinition

Status = Literal["pending", "waiting", "active", "succeeded", "failed", "cancelled", "skipped"]
Finish = Literal["succeeded", "failed", "cancelled"]
Reason = Literal[
    "parent_failed", "parents_skipped", "skip_if", "cancel_if", "wait_impossible", "run_cancelled", "nothing_failed", "not_all_succeeded"
]
Holds = Callable[[int, Parent], bool]
"""`holds(node, condition)`: whether the condition of `node` is true of the output of `condition.node`. An error is False."""

LETTERS: Final[Mapping[str, Status]] = {
    "-": "pending", "w": "waiting", "a": "active", "s": "succeeded", "f": "failed", "c": "cancelled", "k": "skipped",
}  # fmt: skip
"""How the statuses of a run's nodes are written, a letter each."""
OPEN: Final[frozenset[Status]] = frozenset({"pending", "waiting", "active"})
REASONS: Final[Mapping[Reason, str]] = {
    "parent_failed": "a task it comes after failed or was cancelled",
    "parents_skipped": "all tasks it comes after were skipped",
    "skip_if": "its skip_if held",
    "cancel_if": "its cancel_if held",
    "wait_impossible": "its wait_for can never hold: no parent condition of a group held, and nothing else could end the wait",
    "run_cancelled": "the run was cancelled",
    "nothing_failed": "no task failed",
    "not_all_succeeded": "not all tasks succeeded",
}

Clause = tuple[tuple[int, Condition], ...]
"""A group, each condition with its number."""
_Numbered = tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """A task's rules, each condition with its number."""

    wait_for: _Numbered
    skip_if: _Numbered
    cancel_if: _Numbered

    @classmethod
    def of(cls, task: TaskDefinition) -> Gate | None:
        """None for a task without conditions."""
        numbered = enumerate(conditions(task))
        rules = [tuple(tuple(next(numbered) for _ in group) for group in rule) for rule in _rules(task)]
        return cls(*rules) if any(rules) else None


@dataclass(frozen=True, slots=True)
class Graph:
    """A workflow's edges and rules by node. `order` has the tasks but the last two kinds, parents before children."""

    parents: tuple[tuple[int, ...], ...]
    children: tuple[tuple[int, ...], ...]
    rules: tuple[Gate | None, ...]
    order: tuple[int, ...]
    on_failure: int | None = None
    on_success: int | None = None
    above: tuple[int, ...] = field(default=(), repr=False)
    """Parents as bits, so that a task with hundreds of them is decided in one step."""
    asks: tuple[tuple[int, int], ...] = ()
    """Nodes with a condition on an ancestor's output, and that ancestor."""

    @classmethod
    def of(cls, definition: Definition) -> Graph:
        """The graph of a definition, whose edges are known to make no circle."""
        parents = tuple(task.parents for task in definition.tasks)
        last = {definition.on_failure, definition.on_success}
        children = _children(parents)
        return cls(
            parents=parents,
            children=children,
            rules=tuple(Gate.of(task) for task in definition.tasks),
            order=tuple(node for node in _order(parents, children) if node not in last),
            on_failure=definition.on_failure,
            on_success=definition.on_success,
            above=tuple(_bits(above) for above in parents),
            asks=tuple((n, one.node) for n, task in enumerate(definition.tasks) for one in conditions(task) if isinstance(one, Parent)),
        )


@dataclass(frozen=True, slots=True)
class GraphState:
    """Where a run is. `met` are the conditions of waiting nodes that are satisfied, by their number."""

    statuses: tuple[Status, ...]
    met: Mapping[int, frozenset[int]] = field(default_factory=dict)
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Advance:
    """What follows from a state, all at once: nodes to start, to register the conditions of, to settle without running, to stop.

    `finish` is how the run ends when nothing is left to happen; `reasons` says why a node is settled without running.
    """

    start: tuple[int, ...] = ()
    arm: tuple[int, ...] = ()
    skip: tuple[int, ...] = ()
    cancel: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    finish: Finish | None = None
    reasons: Mapping[int, Reason] = field(default_factory=dict)


def conditions(task: TaskDefinition) -> tuple[Condition, ...]:
    """A task's conditions in the order of their numbers: those of `wait_for`, of `skip_if`, of `cancel_if`."""
    return tuple(condition for rule in _rules(task) for group in rule for condition in group)


def ended(statuses: Sequence[Status], ends: Iterable[tuple[int, Status]]) -> tuple[Status, ...]:
    """The statuses with tasks that have ended since. The end of one that is not active belongs to an earlier life of it, and is no news."""
    now = list(statuses)
    for node, status in ends:
        if now[node] == "active":
            now[node] = status
    return tuple(now)


def advance(graph: Graph, state: GraphState, holds: Holds) -> Advance:
    """Everything that follows from a state. Applying it and asking again gives nothing new."""
    step = _Step(graph, state, holds)
    if state.cancelled:
        step.cancel_run()
    else:
        step.walk()
        step.last_tasks()
    return step.result()


def reset(graph: Graph, statuses: Sequence[Status], node: int | None) -> frozenset[int]:
    """The nodes a replay makes pending again: all, or `node` and what comes after it. Empty when one of them is active.

    `on_success` is always decided anew; `on_failure` unless a failure stays that it has run for.
    """
    again = set(range(len(statuses))) if node is None else _below(graph, node)
    if node is not None and graph.on_success is not None and node != graph.on_failure:
        again.add(graph.on_success)
    if graph.on_failure is not None and not any(s == "failed" and n not in again for n, s in enumerate(statuses) if n != graph.on_failure):
        again.add(graph.on_failure)
    if any(statuses[one] == "active" for one in again):
        return frozenset()
    return frozenset(one for one in again if statuses[one] != "pending")


def roll_up(statuses: Sequence[Status]) -> Finish:
    """How a run ended whose tasks are all settled: failed before cancelled before succeeded; skipped counts as succeeded."""
    if "failed" in statuses:
        return "failed"
    return "cancelled" if "cancelled" in statuses else "succeeded"


def awaited(graph: Graph, state: GraphState, node: int, holds: Holds) -> Gate:
    """What a waiting node still watches for: the groups of its rules that do not hold yet. Empty rules for any other node."""
    gate = graph.rules[node]
    if gate is None or state.statuses[node] != "waiting":
        return Gate((), (), ())
    test = _Test(node, state, holds)
    return Gate(*(tuple(clause for clause in rule if not test.clause(clause)) for rule in (gate.wait_for, gate.skip_if, gate.cancel_if)))


class _Test:
    """Whether rules of one node hold."""

    __slots__ = ("_holds", "_met", "_node", "_statuses")

    def __init__(self, node: int, state: GraphState, holds: Holds) -> None:
        self._node = node
        # What came true for an earlier life of the node, before a replay, counts for nothing.
        self._met = state.met.get(node, frozenset()) if state.statuses[node] == "waiting" else frozenset()
        self._statuses = state.statuses
        self._holds = holds

    def rule(self, rule: _Numbered) -> bool:
        """All groups, each by any of its conditions."""
        return all(self.clause(clause) for clause in rule)

    def clause(self, clause: Clause) -> bool:
        """Any condition. Those already known to be met are asked first: they cost nothing."""
        return any(number in self._met for number, _ in clause) or any(
            isinstance(condition, Parent) and self._statuses[condition.node] == "succeeded" and self._holds(self._node, condition)
            for _, condition in clause
        )

    def impossible(self, rule: _Numbered) -> bool:
        """Whether a group does not hold and never will: what parents gave does not change."""
        return any(all(isinstance(one, Parent) for _, one in clause) and not self.clause(clause) for clause in rule)


class _Step:
    """One pass over a graph. Parents come first, so a decision is known before those that depend on it are asked for."""

    __slots__ = ("_graph", "_held", "_holds", "_lost", "_moves", "_now", "_open", "_reasons", "_skipped", "_state")

    def __init__(self, graph: Graph, state: GraphState, holds: Holds) -> None:
        self._graph = graph
        self._state = state
        self._holds = holds
        self._now: list[Status] = list(state.statuses)
        self._moves: dict[str, list[int]] = {"start": [], "arm": [], "skip": [], "cancel": [], "stop": []}
        self._reasons: dict[int, Reason] = {}
        self._open = self._lost = self._skipped = 0
        for node, status in enumerate(self._now):
            self._note(node, status)

    def walk(self) -> None:
        """Decide every task that is not settled and has not started."""
        for node in self._graph.order:
            if self._now[node] in ("pending", "waiting"):
                self._decide(node)

    def last_tasks(self) -> None:
        """Decide the tasks that run after the others."""
        now, success, failure = self._now, self._graph.on_success, self._graph.on_failure
        main = [now[node] for node in self._graph.order]
        over = OPEN.isdisjoint(main)
        if success is not None and now[success] == "pending" and over:
            if "failed" in main or "cancelled" in main:
                self._settle(success, "skip", "not_all_succeeded")
            else:
                self._start(success)
        after = [*main, now[success]] if success is not None else main
        if failure is not None and now[failure] == "pending":
            if "failed" in after:
                self._start(failure)
            elif OPEN.isdisjoint(after):
                self._settle(failure, "skip", "nothing_failed")

    def cancel_run(self) -> None:
        """Cancel what has not started, stop what has."""
        for node in self._graph.order:
            if self._now[node] in ("pending", "waiting"):
                self._settle(node, "cancel", "run_cancelled")
        self._cancel_last_tasks()
        self._moves["stop"] += [node for node, status in enumerate(self._now) if status == "active"]

    def _cancel_last_tasks(self) -> None:
        success, failure = self._graph.on_success, self._graph.on_failure
        if success is not None and self._now[success] == "pending":
            if all(self._now[node] in ("succeeded", "skipped") for node in self._graph.order):
                self._settle(success, "cancel", "run_cancelled")
            else:
                self._settle(success, "skip", "not_all_succeeded")
        if failure is not None and self._now[failure] == "pending":
            self._settle(failure, "skip", "run_cancelled")

    def result(self) -> Advance:
        """What was decided."""
        finish = roll_up(self._now) if OPEN.isdisjoint(self._now) else None
        return Advance(**{name: tuple(nodes) for name, nodes in self._moves.items()}, finish=finish, reasons=self._reasons)

    def _decide(self, node: int) -> None:
        above = self._graph.above[node]
        if above & self._lost:
            self._settle(node, "cancel", "parent_failed")
        elif above & self._open:
            return
        elif above and above & self._skipped == above:
            self._settle(node, "skip", "parents_skipped")
        else:
            self._by_conditions(node)

    def _by_conditions(self, node: int) -> None:
        gate = self._graph.rules[node]
        if gate is None:
            self._start(node)
            return
        test = _Test(node, self._state, self._holds)
        if gate.skip_if and test.rule(gate.skip_if):
            self._settle(node, "skip", "skip_if")
        elif gate.cancel_if and test.rule(gate.cancel_if):
            self._settle(node, "cancel", "cancel_if")
        elif test.rule(gate.wait_for):
            self._start(node)
        elif test.impossible(gate.wait_for):
            self._settle(node, "cancel", "wait_impossible")
        elif self._now[node] == "pending":
            self._now[node] = "waiting"
            self._moves["arm"].append(node)

    def _start(self, node: int) -> None:
        self._now[node] = "active"
        self._moves["start"].append(node)

    def _settle(self, node: int, how: Literal["skip", "cancel"], reason: Reason) -> None:
        status: Status = "skipped" if how == "skip" else "cancelled"
        self._now[node] = status
        self._moves[how].append(node)
        self._reasons[node] = reason
        self._open &= ~(1 << node)
        self._note(node, status)

    def _note(self, node: int, status: Status) -> None:
        bit = 1 << node
        if status in OPEN:
            self._open |= bit
        elif status == "skipped":
            self._skipped |= bit
        elif status != "succeeded":
            self._lost |= bit


def _rules(task: TaskDefinition) -> Iterator[Rule]:
    yield task.wait_for
    yield task.skip_if
    yield task.cancel_if


def _bits(nodes: Sequence[int]) -> int:
    bits = 0
    for node in nodes:
        bits |= 1 << node
    return bits


def _children(parents: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    children: list[list[int]] = [[] for _ in parents]
    for node, above in enumerate(parents):
        for parent in above:
            children[parent].append(node)
    return tuple(tuple(below) for below in children)


def _order(parents: Sequence[Sequence[int]], children: Sequence[Sequence[int]]) -> list[int]:
    missing = [len(above) for above in parents]
    order = [node for node, count in enumerate(missing) if count == 0]
    for node in order:  # grows while it is read
        for child in children[node]:
            missing[child] -= 1
            if missing[child] == 0:
                order.append(child)
    return order


def _below(graph: Graph, node: int) -> set[int]:
    found = {node}
    waiting = [node]
    while waiting:
        for child in graph.children[waiting.pop()]:
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found
