"""A run of a graph without a server: what the engine decides is done at once, on a clock of whole numbers; and random scenarios for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from dispatcher.engine.definitions import STORED, Definition, Parent, Sleep, UserEvent, compile_condition, parse_definition
from dispatcher.engine.expressions import ExpressionError
from dispatcher.engine.graphs import Finish, Graph, GraphState, Reason, Status, advance, conditions, ended, reset
from tests.laws.graphs_oracle import NEVER, QUIET, Atom, Course, Fate, Rule, Scenario, TaskSpec


def definition_of(scenario: Scenario) -> Definition:
    """The scenario as the server reads it."""
    return parse_definition(entry_of(scenario), STORED, static=False)


def entry_of(scenario: Scenario, name: str = "flow") -> dict[str, Any]:
    """The scenario as an endpoint would register it."""
    entry: dict[str, Any] = {"name": name, "kind": "workflow"}
    entry["tasks"] = [
        {
            "name": f"t{number}",
            "parents": [f"t{parent}" for parent in task.parents],
            **{name: [_group(group) for group in getattr(task, name)] for name in ("wait_for", "skip_if", "cancel_if")},
        }
        for number, task in enumerate(scenario.tasks)
    ]
    for last in ("on_failure", "on_success"):
        if getattr(scenario, last) is not None:
            entry[last] = {"name": last}
    return entry


def _group(group: tuple[Atom, ...]) -> dict[str, Any]:
    members = [_written(atom) for atom in group]
    return members[0] if len(members) == 1 else {"or": members}


def _written(atom: Atom) -> dict[str, Any]:
    if atom.kind == "sleep":
        return {"sleep": f"{atom.after}s"}
    if atom.kind == "event":
        return {"event": atom.key}
    return {"parent": f"t{atom.parent}", "expression": "output.missing > 0" if atom.over is None else f"output.n > {atom.over}"}


@dataclass
class Run:
    """One run: the engine's decisions carried out, and what is to happen by itself, by the moment it does."""

    scenario: Scenario
    now: int = 0
    cancelled: bool = False
    finish: Finish | None = None
    due: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    arrows: set[tuple[Status, Status]] = field(default_factory=set)
    """The changes of state that have been seen, of the tasks that do not come last."""

    def __post_init__(self) -> None:
        self.definition = definition_of(self.scenario)
        self.graph = Graph.of(self.definition)
        count = len(self.definition.tasks)
        self.statuses: list[Status] = ["pending"] * count
        self.started = [NEVER] * count
        self.over = [NEVER] * count
        self.starts = [0] * count
        self.met: dict[int, set[int]] = {}
        self.armed: dict[int, int] = {}
        self.reasons: set[Reason] = set()
        specs = [*self.scenario.tasks, self.scenario.on_failure, self.scenario.on_success]
        self.specs = [spec for spec in specs if spec is not None]

    def go(self) -> Run:
        """From start to end, the replay included."""
        for at, key in self.scenario.events:
            self.at(at, partial(self.event, key))
        self.at(self.scenario.cancels[0], self.cancel)
        self.at(self.scenario.cancels[1], self.cancel)
        self.settle_down()
        moments = sorted({*self.due, *((self.scenario.replay[0],) if self.scenario.replay else ())})
        while moments:
            self.now = moments[0]
            for occurrence in self.due.pop(self.now, []):
                occurrence()
            self.settle_down()
            if self.scenario.replay is not None and self.scenario.replay[0] == self.now:
                self.replay(self.scenario.replay[1])
            coming = {self.scenario.replay[0]} if self.scenario.replay is not None else set()
            moments = sorted(moment for moment in {*self.due, *coming} if moment > self.now)
        return self

    def at(self, moment: int, occurrence: Callable[[], None]) -> None:
        """Let something happen then."""
        if moment < NEVER:
            self.due.setdefault(moment, []).append(occurrence)

    # ---- what happens by itself

    def event(self, key: str) -> None:
        """An event comes: conditions of tasks that wait for it are met, and nothing else notices."""
        for node in self.armed:
            for number, condition in enumerate(conditions(self.definition.tasks[node])):
                if isinstance(condition, UserEvent) and condition.key == key:
                    self.met.setdefault(node, set()).add(number)

    def cancel(self) -> None:
        """Somebody cancels the run, if it is not over."""
        self.cancelled = self.finish is None

    def replay(self, node: int | None) -> None:
        """Somebody replays the run."""
        for again in reset(self.graph, self.statuses, node):
            self.started[again], self.over[again] = NEVER, NEVER
            self.become(again, "pending")
            self.disarm(again)
            self.finish, self.cancelled = None, False
        self.settle_down()

    # ---- what the engine decides

    def settle_down(self) -> None:
        """Ask the engine until it has nothing more to say; what it says is done in the moment."""
        while self.finish is None:
            change = advance(self.graph, self.state(), self.holds)
            self.reasons |= set(change.reasons.values())
            for node in change.start:
                self.start(node)
            for node in change.arm:
                self.arm(node)
            for nodes, status in ((change.skip, "skipped"), (change.cancel, "cancelled"), (change.stop, "cancelled")):
                for node in nodes:
                    self.end(node, status)  # type: ignore[arg-type]  # the words are above
            self.finish = change.finish
            if not (change.start or change.arm or change.skip or change.cancel or change.stop):
                return

    def state(self) -> GraphState:
        """What the engine is told."""
        return GraphState(tuple(self.statuses), {node: frozenset(met) for node, met in self.met.items()}, self.cancelled)

    def holds(self, node: int, condition: Parent) -> bool:
        """A parent condition, asked of what the parent gave."""
        given = self.specs[condition.node].courses[self.starts[condition.node] - 1].gives
        try:
            return compile_condition(condition.expression, parent=True)(output={"n": given})
        except ExpressionError:
            return False

    def start(self, node: int) -> None:
        """The task starts, and will end as its course says."""
        self.disarm(node)
        course = self.specs[node].courses[self.starts[node]]
        self.starts[node] += 1
        self.become(node, "active")
        self.started[node] = self.now
        number = self.starts[node]
        self.at(self.now + course.takes, partial(self.ended, node, number, course.ends))

    def ended(self, node: int, number: int, status: Status) -> None:
        """A task's answer arrives. One of an earlier start, or of a task that was stopped, is refused."""
        if self.starts[node] == number and ended(self.statuses, [(node, status)])[node] != self.statuses[node]:
            self.end(node, status)

    def end(self, node: int, status: Status) -> None:
        """The task is over."""
        self.disarm(node)
        self.become(node, status)
        self.over[node] = self.now

    def become(self, node: int, status: Status) -> None:
        """The task changes its state."""
        if node < len(self.scenario.tasks):
            self.arrows.add((self.statuses[node], status))
        self.statuses[node] = status

    def arm(self, node: int) -> None:
        """The task waits: its sleeps count from now."""
        self.become(node, "waiting")
        self.armed[node] = armed = self.armed.get(node, 0) + 1000 * self.now + 1
        for number, condition in enumerate(conditions(self.definition.tasks[node])):
            if isinstance(condition, Sleep):
                after = self.now + condition.duration // timedelta(seconds=1)
                self.at(after, partial(self.slept, node, armed, number))

    def slept(self, node: int, armed: int, number: int) -> None:
        """A sleep is over, if its task still waits for it."""
        if self.armed.get(node) == armed:
            self.met.setdefault(node, set()).add(number)

    def disarm(self, node: int) -> None:
        """Nothing is waited for any more."""
        self.armed.pop(node, None)
        self.met.pop(node, None)

    def fates(self) -> list[Fate]:
        """How it came out, in the oracle's words."""
        return [
            Fate(self.started[node], self.over[node], _WORDS.get(status, status), self._gave(node))
            for node, status in enumerate(self.statuses)
        ]

    def _gave(self, node: int) -> int:
        return self.specs[node].courses[self.starts[node] - 1].gives if self.started[node] < NEVER else 0


_WORDS = {"pending": "not started"}


# ---- scenarios -----------------------------------------------------------------------------------------------------------------


def scenario(rng: random.Random) -> Scenario:
    """A random run: sparse and dense graphs, whose tasks stand in any order, with anything that can happen to them."""
    count = rng.randint(1, 12)
    names = rng.sample(range(count), count)
    density = rng.choice((0.15, 0.4, 0.8))
    parents = {names[i]: tuple(names[j] for j in range(i) if rng.random() < density) for i in range(count)}
    above: dict[int, tuple[int, ...]] = {}
    for name in names:
        above[name] = tuple(sorted({*parents[name], *(far for parent in parents[name] for far in above[parent])}))
    conditional = rng.choice((0.0, 0.5, 0.9))
    tasks = tuple(_task(rng, parents[name], above[name], conditional) for name in range(count))
    events = tuple(sorted((rng.randint(1, QUIET), rng.choice("xyz")) for _ in range(rng.randint(0, 10))))
    last = [_task(rng, (), (), 0.0) if rng.random() < 0.5 else None for _ in range(2)]
    return _interfered(rng, Scenario(tasks, last[0], last[1], events))


def _interfered(rng: random.Random, it: Scenario) -> Scenario:
    """Cancels and replays. A run is replayed while it goes on, or once nothing of it can be under way any more."""
    first = rng.choice((NEVER, NEVER, rng.randint(1, 40)))
    if rng.random() < 0.5:
        return Scenario(it.tasks, it.on_failure, it.on_success, it.events, (first, NEVER))
    after = first + 1 if first < NEVER else 0
    moment = rng.choice((rng.randint(after, 60), rng.randint(after, 60), 500))
    second = rng.choice((NEVER, NEVER, moment + rng.randint(1, 40)))
    node = rng.choice((None, *range(len(it.tasks) + (it.on_failure is not None) + (it.on_success is not None))))
    return Scenario(it.tasks, it.on_failure, it.on_success, it.events, (first, second), (moment, node))


def _task(rng: random.Random, parents: tuple[int, ...], above: tuple[int, ...], conditional: float) -> TaskSpec:
    rules = {name: _rule(rng, above) if rng.random() < conditional * share else () for name, share in _SHARES}
    return TaskSpec((_course(rng), _course(rng)), parents, **rules)


_SHARES = (("wait_for", 0.8), ("skip_if", 0.5), ("cancel_if", 0.3))


def _course(rng: random.Random) -> Course:
    luck = rng.random()
    return Course(rng.randint(1, 6), "failed" if luck < 0.08 else "cancelled" if luck < 0.12 else "succeeded", rng.randint(0, 3))


def _rule(rng: random.Random, above: tuple[int, ...]) -> Rule:
    return tuple(tuple(_atom(rng, above) for _ in range(rng.choice((1, 1, 2, 3)))) for _ in range(rng.choice((1, 1, 2))))


def _atom(rng: random.Random, above: tuple[int, ...]) -> Atom:
    kind = rng.choice(("sleep", "event", "event", "parent", "parent") if above else ("sleep", "event"))
    if kind == "sleep":
        return Atom("sleep", after=rng.randint(1, 15))
    if kind == "event":
        return Atom("event", key=rng.choice("xyz"))
    return Atom("parent", parent=rng.choice(above), over=rng.choice((None, 0, 1, 2)))
