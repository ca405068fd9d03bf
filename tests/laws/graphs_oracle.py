"""What the documentation says becomes of a graph's tasks, written without a look at the engine, in the slowest way there is.

Time is whole numbers. A scenario says how long each task takes and how it ends, when events come, when the run is cancelled and when it is
replayed; the oracle answers for every task when it started, when it was over and as what. Each rule below is a sentence of the
documentation asked of one task at one moment; nothing is passed on from moment to moment but what the sentences speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

NEVER = 10_000
"""Later than anything happens."""
QUIET = 60
"""No event comes later than this."""
LONGEST_SLEEP = 20


@dataclass(frozen=True)
class Atom:
    """A condition: `after` so long, an event of `key`, or the output of `parent` being above `over` (None: an expression that errs)."""

    kind: Literal["sleep", "event", "parent"]
    after: int = 0
    key: str = ""
    parent: int = 0
    over: int | None = 0


Rule = Sequence[Sequence[Atom]]


@dataclass(frozen=True)
class Course:
    """How a task goes once it has started: so long, to this end, with this output."""

    takes: int
    ends: Literal["succeeded", "failed", "cancelled"]
    gives: int = 0


@dataclass(frozen=True)
class TaskSpec:
    """A task, and how it goes: the first time it is started, and the second."""

    courses: tuple[Course, Course]
    parents: tuple[int, ...] = ()
    wait_for: Rule = ()
    skip_if: Rule = ()
    cancel_if: Rule = ()


@dataclass(frozen=True)
class Scenario:
    """A run from its start at 0. `cancels` has the moment of a cancel before and after the replay; `replay` is (moment, task or None)."""

    tasks: tuple[TaskSpec, ...]
    on_failure: TaskSpec | None
    on_success: TaskSpec | None
    events: tuple[tuple[int, str], ...] = ()
    cancels: tuple[int, int] = (NEVER, NEVER)
    replay: tuple[int, int | None] | None = None

    @property
    def failure(self) -> int | None:
        """The number of the on-failure task: after the tasks."""
        return None if self.on_failure is None else len(self.tasks)

    @property
    def success(self) -> int | None:
        """The number of the on-success task: last."""
        return None if self.on_success is None else len(self.tasks) + (self.on_failure is not None)


@dataclass(frozen=True)
class Fate:
    """What became of one task: `started` and `over` are NEVER where it did not, or is not."""

    started: int
    over: int
    status: str
    gives: int = 0

    def at(self, moment: int) -> str:
        """The status as it was then, that of the moment included."""
        if self.over <= moment:
            return self.status
        return "active" if self.started <= moment else "not started"


@dataclass
class Oracle:
    """One run, or one replay of it, begun at `since`: `ran` are the tasks that had run by then, `kept` those that are not run again."""

    scenario: Scenario
    time: Literal[0, 1] = 0
    since: int = 0
    ran: frozenset[int] = frozenset()
    kept: dict[int, Fate] = field(default_factory=dict)
    fates: dict[int, Fate] = field(default_factory=dict)

    @property
    def cancel(self) -> int:
        """When the run is cancelled."""
        return self.scenario.cancels[self.time]

    def run(self) -> list[Fate]:
        """The fates of all tasks, the last ones last."""
        fates = [self.fate(number) for number in range(len(self.scenario.tasks))]
        success, failure = self.scenario.success, self.scenario.failure
        after = [] if success is None else [self._kept(success) or self.success(fates)]
        mended = [] if failure is None else [self._kept(failure) or self.failure([*fates, *after])]
        return [*fates, *mended, *after]

    def _kept(self, number: int) -> Fate | None:
        """The fate a task keeps, unless the run is cancelled while it is at work."""
        return self._cancelled_with_the_run(self.kept[number]) if number in self.kept else None

    # ---- one task

    def fate(self, number: int) -> Fate:
        """What becomes of a task. Its parents are asked first, as deep as it goes."""
        if number not in self.fates:
            self.fates[number] = self._kept(number) or self._cancelled_with_the_run(self._fate(number))
        return self.fates[number]

    def _fate(self, number: int) -> Fate:
        spec = self.scenario.tasks[number]
        parents = [self.fate(parent) for parent in spec.parents]
        lost = [max(parent.over, self.since) for parent in parents if parent.status in ("failed", "cancelled") and parent.over < NEVER]
        done = max([self.since, *(parent.over for parent in parents)])
        if lost and min(lost) < NEVER:
            return Fate(NEVER, min(lost), "cancelled")  # a failed or cancelled parent cancels, before any other rule
        if done >= NEVER:
            return Fate(NEVER, NEVER, "not started")
        if parents and all(parent.status == "skipped" for parent in parents):
            return Fate(NEVER, done, "skipped")
        return self._by_conditions(number, done)

    def _by_conditions(self, number: int, done: int) -> Fate:
        spec = self.scenario.tasks[number]
        for moment in range(done, max(done, QUIET) + LONGEST_SLEEP):
            if spec.skip_if and self._holds(spec.skip_if, done, moment):
                return Fate(NEVER, moment, "skipped")
            if spec.cancel_if and self._holds(spec.cancel_if, done, moment):
                return Fate(NEVER, moment, "cancelled")
            if self._holds(spec.wait_for, done, moment):
                course = spec.courses[number in self.ran]
                return Fate(moment, moment + course.takes, course.ends, course.gives)
            if any(all(atom.kind == "parent" and not self._true(atom, done, moment) for atom in group) for group in spec.wait_for):
                return Fate(NEVER, moment, "cancelled")  # nothing can end this wait
        return Fate(NEVER, NEVER, "waiting")

    def _holds(self, rule: Rule, done: int, moment: int) -> bool:
        """Every group by at least one of its conditions."""
        return all(any(self._true(atom, done, moment) for atom in group) for group in rule)

    def _true(self, atom: Atom, done: int, moment: int) -> bool:
        """A sleep counts from when the parents were done; an event counts when it came after that; what was skipped gives nothing."""
        if atom.kind == "sleep":
            return moment >= done + atom.after
        if atom.kind == "event":
            return any(done < at <= moment and key == atom.key for at, key in self.scenario.events)
        parent = self.fate(atom.parent)
        return atom.over is not None and parent.status == "succeeded" and parent.gives > atom.over

    def _cancelled_with_the_run(self, fate: Fate) -> Fate:
        """Cancelling a run cancels whatever is not over by then. What ends by itself at that moment has ended."""
        if fate.started < self.cancel and fate.over <= self.cancel:
            return fate
        if fate.over < self.cancel:
            return fate
        if self.cancel >= NEVER:
            return fate
        return Fate(fate.started if fate.started < self.cancel else NEVER, self.cancel, "cancelled")

    # ---- the tasks that come last

    def success(self, fates: Sequence[Fate]) -> Fate:
        """Runs when all tasks have succeeded or were skipped; else skipped."""
        spec, number = self.scenario.on_success, self.scenario.success
        assert spec is not None
        assert number is not None
        over = max([self.since, *(fate.over for fate in fates)])
        fine = all(fate.status in ("succeeded", "skipped") for fate in fates)
        if over >= NEVER:
            return Fate(NEVER, NEVER, "not started")
        if not fine:
            return Fate(NEVER, min(over, self.cancel), "skipped")
        return self._last(spec, number, over)

    def failure(self, fates: Sequence[Fate]) -> Fate:
        """Runs once, at the first failure, never on a cancel; skipped when there is none."""
        spec, number = self.scenario.on_failure, self.scenario.failure
        assert spec is not None
        assert number is not None
        failed = [max(fate.over, self.since) for fate in fates if fate.status == "failed"]
        if failed and min(failed) < self.cancel:
            return self._last(spec, number, min(failed))
        over = max([self.since, *(fate.over for fate in fates)])
        if over >= NEVER:
            return Fate(NEVER, NEVER, "not started")
        return Fate(NEVER, min(over, self.cancel), "skipped")

    def _last(self, spec: TaskSpec, number: int, start: int) -> Fate:
        course = spec.courses[number in self.ran]
        if start >= self.cancel:
            return Fate(NEVER, self.cancel, "cancelled")
        return self._cancelled_with_the_run(Fate(start, start + course.takes, course.ends))


def reaches(scenario: Scenario) -> list[list[bool]]:
    """Which task comes before which: the closure of the edges, by trying every one in between."""
    count = len(scenario.tasks)
    table = [[start in scenario.tasks[end].parents or start == end for end in range(count)] for start in range(count)]
    for between in range(count):
        for start in range(count):
            for end in range(count):
                table[start][end] = table[start][end] or (table[start][between] and table[between][end])
    return table


def replayed(scenario: Scenario, fates: Sequence[Fate], moment: int, node: int | None) -> set[int]:
    """Which tasks a replay runs again: all, or the task and all its descendants; none while one of them is at work.

    The on-success task is always decided anew, the on-failure task unless a failure stays that it has run for.
    """
    count, success, failure = len(scenario.tasks), scenario.success, scenario.failure
    if node is None:
        again = set(range(len(fates)))
    elif node == failure:
        again = {node}
    else:
        again = {end for end in range(count) if node < count and reaches(scenario)[node][end]} | {node}
        again |= {success} if success is not None else set()
        stays = any(fate.at(moment) == "failed" for number, fate in enumerate(fates) if number not in again and number != failure)
        again |= {failure} if failure is not None and not stays else set()
    return set() if any(fates[number].at(moment) == "active" for number in again) else again


def outcome(scenario: Scenario) -> list[Fate]:
    """What becomes of every task in the end, the replay included."""
    first = Oracle(scenario).run()
    if scenario.replay is None:
        return first
    moment, node = scenario.replay
    again = replayed(scenario, first, moment, node)
    if not again:  # refused: the run goes on as if nobody had asked
        return Oracle(replace(scenario, cancels=(min(scenario.cancels), NEVER))).run()
    kept = {number: fate for number, fate in enumerate(first) if number not in again and keeps(scenario, fate, number, moment)}
    ran = frozenset(number for number, fate in enumerate(first) if fate.started <= moment)
    return Oracle(scenario, 1, moment, ran, kept).run()


def keeps(scenario: Scenario, fate: Fate, number: int, moment: int) -> bool:
    """Whether a task that is not replayed goes on as it would have. The last tasks depend on all others until they have started."""
    return number not in (scenario.failure, scenario.success) or fate.at(moment) != "not started"


def status_of_the_run(fates: Sequence[Fate]) -> str:
    """Failed before cancelled before succeeded, once nothing is left to happen."""
    if any(fate.over >= NEVER for fate in fates):
        return "running"
    statuses = {fate.status for fate in fates}
    return "failed" if "failed" in statuses else "cancelled" if "cancelled" in statuses else "succeeded"
