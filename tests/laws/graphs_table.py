"""The life of one task of a graph, written by hand: what everything that can happen does to it in every state it can be in.

Nothing here is computed by the engine. The task is `n`; it comes after `p` and `q`, and `c` comes after it. `test_graphs.py` asks every
cell, compares the arrows with those that random runs walk, and draws them: the diagram of dispatcher/ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

State = Literal["pending", "waiting", "active", "succeeded", "failed", "cancelled", "skipped"]
STATES: Final[tuple[State, ...]] = ("pending", "waiting", "active", "succeeded", "failed", "cancelled", "skipped")
Kind = Literal["parents", "conditions", "answer", "run", "replay"]

WAIT: Final = {"wait_for": [{"event": "go"}], "skip_if": [{"event": "skip"}], "cancel_if": [{"event": "stop"}]}
"""Conditions 0, 1 and 2."""
TRUE: Final = {"parent": "p", "expression": "output.n == 1"}
FALSE: Final = {"parent": "p", "expression": "output.n == 2"}
ERRS: Final = {"parent": "p", "expression": "output.none == 1"}
OF_Q: Final = {"parent": "q", "expression": "true"}


@dataclass(frozen=True)
class Row:
    """One thing that happens. `now` has what it leads to, for the states it does anything in. In all others it is stale, and changes
    nothing: what comes true of a condition belongs to a task that waits, an answer to one that is active.

    `parents` are the statuses of p and q, `met` the conditions of n that have come true, `of` who answers or is replayed.
    """

    name: str
    kind: Kind
    now: Mapping[State, State] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[State, State] = ("succeeded", "succeeded")
    met: frozenset[int] = frozenset()
    of: str = "n"
    answer: State = "succeeded"

    def expected(self, state: State) -> State:
        """What the task is afterwards."""
        return self.now.get(state, state)


def _open(then: State, met: State | None = None) -> dict[State, State]:
    """For a task that has not started, and what a waiting one comes to where that is something else."""
    return {"pending": then, "waiting": met or then}


def _parents(name: str, p: State, q: State, then: State | None, **rules: Any) -> Row:
    return Row(name, "parents", _open(then) if then else {}, rules, (p, q))


def _waiting(name: str, then: State, *met: int) -> Row:
    """A task whose conditions have come true while it waited. One that does not wait yet has seen nothing of them: it begins to wait."""
    return Row(name, "conditions", _open("waiting", then), WAIT, met=frozenset(met))


REPLAYED: Final[dict[State, State]] = {state: "pending" for state in STATES if state not in ("pending", "active")}

CANCELLED: Final[dict[State, State]] = {"pending": "cancelled", "waiting": "cancelled", "active": "cancelled"}

TABLE: Final[tuple[Row, ...]] = (
    # what becomes of its parents
    _parents("a parent is at work", "active", "succeeded", None),
    _parents("a parent is at work, the other was skipped", "skipped", "active", None),
    _parents("a parent waits", "waiting", "succeeded", None),
    _parents("all parents succeeded", "succeeded", "succeeded", "active"),
    _parents("some parents were skipped", "skipped", "succeeded", "active"),
    _parents("all parents were skipped", "skipped", "skipped", "skipped"),
    _parents("all parents were skipped, whatever else is asked", "skipped", "skipped", "skipped", cancel_if=[TRUE], skip_if=[TRUE]),
    _parents("a parent failed", "failed", "succeeded", "cancelled"),
    _parents("a parent failed, the other is at work", "failed", "active", "cancelled"),
    _parents("a parent failed, the other was skipped", "failed", "skipped", "cancelled"),
    _parents("a parent failed, whatever else is asked", "failed", "succeeded", "cancelled", skip_if=[OF_Q]),
    _parents("a parent was cancelled", "succeeded", "cancelled", "cancelled"),
    # what its parents gave
    _parents("skip_if holds of an output", "succeeded", "succeeded", "skipped", skip_if=[TRUE]),
    _parents("skip_if does not hold of an output", "succeeded", "succeeded", "active", skip_if=[FALSE]),
    _parents("skip_if errs", "succeeded", "succeeded", "active", skip_if=[ERRS]),
    _parents("skip_if holds of one of two", "succeeded", "succeeded", "active", skip_if=[TRUE, FALSE]),
    _parents("skip_if asks what was skipped", "skipped", "succeeded", "active", skip_if=[{"parent": "p", "expression": "true"}]),
    _parents("cancel_if holds of an output", "succeeded", "succeeded", "cancelled", cancel_if=[TRUE]),
    _parents("cancel_if errs", "succeeded", "succeeded", "active", cancel_if=[ERRS]),
    _parents("skip_if and cancel_if hold", "succeeded", "succeeded", "skipped", skip_if=[TRUE], cancel_if=[TRUE]),
    _parents("all three hold", "succeeded", "succeeded", "skipped", skip_if=[TRUE], cancel_if=[TRUE], wait_for=[TRUE]),
    _parents("wait_for holds of an output", "succeeded", "succeeded", "active", wait_for=[TRUE]),
    _parents("wait_for can never hold", "succeeded", "succeeded", "cancelled", wait_for=[FALSE]),
    _parents("wait_for can never hold, for it errs", "succeeded", "succeeded", "cancelled", wait_for=[{"or": [ERRS, FALSE]}]),
    _parents("one group of wait_for can never hold", "succeeded", "succeeded", "cancelled", wait_for=[FALSE, {"event": "go"}]),
    _parents("wait_for may still hold", "succeeded", "succeeded", "waiting", wait_for=[{"or": [FALSE, {"event": "go"}]}]),
    _parents("skip_if may hold later, and nothing is waited for", "succeeded", "succeeded", "active", skip_if=[{"event": "skip"}]),
    # what comes true while it waits
    _waiting("nothing has come true", "waiting"),
    _waiting("wait_for comes true", "active", 0),
    _waiting("skip_if comes true", "skipped", 1),
    _waiting("cancel_if comes true", "cancelled", 2),
    _waiting("wait_for and skip_if come true", "skipped", 0, 1),
    _waiting("wait_for and cancel_if come true", "cancelled", 0, 2),
    _waiting("skip_if and cancel_if come true", "skipped", 1, 2),
    _waiting("everything comes true", "skipped", 0, 1, 2),
    # how its last attempt ends
    Row("it succeeds", "answer", {"active": "succeeded"}, answer="succeeded"),
    Row("it fails for good", "answer", {"active": "failed"}, answer="failed"),
    Row("it is cancelled, or was not scheduled in time", "answer", {"active": "cancelled"}, answer="cancelled"),
    # what becomes of the run
    Row("the run is cancelled", "run", CANCELLED),
    Row("the run is cancelled with a parent at work", "run", CANCELLED, parents=("active", "skipped")),
    Row("the run is cancelled with all parents skipped", "run", CANCELLED, parents=("skipped", "skipped")),
    Row("the task is replayed", "replay", REPLAYED, of="n"),
    Row("a parent is replayed", "replay", REPLAYED, of="p"),
    Row("the run is replayed", "replay", REPLAYED, of=""),
    Row("a task that comes after it is replayed", "replay", {}, of="c"),
)  # fmt: skip


def arrows() -> dict[tuple[State, State], list[str]]:
    """Every change of state the table knows, with what brings it about."""
    found: dict[tuple[State, State], list[str]] = {}
    for row in TABLE:
        for before, after in row.now.items():
            if before != after and not _by_chance(row, before):
                found.setdefault((before, after), []).append(row.name)
    return found


def _by_chance(row: Row, before: State) -> bool:
    """A waiting task's parents are done, and what they gave was asked when it began to wait: rows about parents say nothing new of it."""
    return before == "waiting" and row.kind == "parents"


_SHORT: Final[Mapping[tuple[State, State], str]] = {
    ("pending", "active"): "parents done, wait_for holds",
    ("pending", "waiting"): "parents done, wait_for may still hold",
    ("pending", "skipped"): "all parents skipped, or skip_if",
    ("pending", "cancelled"): "a parent failed or was cancelled, cancel_if, wait_for can never hold, run cancelled",
    ("waiting", "active"): "wait_for",
    ("waiting", "skipped"): "skip_if",
    ("waiting", "cancelled"): "cancel_if, run cancelled",
    ("waiting", "pending"): "replayed",
    ("active", "succeeded"): "success",
    ("active", "failed"): "final failure",
    ("active", "cancelled"): "cancelled, not scheduled in time",
}


def diagram() -> str:
    """The arrows as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    for before, after in sorted(arrows(), key=lambda arrow: (STATES.index(arrow[0]), STATES.index(arrow[1]))):
        lines.append(f"    {before} --> {after}: {_SHORT.get((before, after), 'replayed')}")
    return "\n".join([*lines, *(f"    {state} --> [*]" for state in STATES if state in ("succeeded", "failed", "cancelled", "skipped"))])
