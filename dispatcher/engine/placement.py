"""Which endpoints may run a task, and which should.

A task's `Requirement` is what it asks: labels, an endpoint it should (`soft`) or must (`hard`) go back to, how many slots it fills. `tiers`
sorts the endpoints that serve a workflow by it: those of the first tier are taken before any of the second, those of one take turns. Sticky
goes before labels. One that is drained is taken only for what has to stay there. A requirement is written as text and stands with the task,
so that tasks of one requirement make one queue. A durable task that is pinned, and might be claimed for another endpoint, is given its pin
with what it asked before, as long as it has one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from dispatcher.engine.definitions import Definition, DefinitionError
from dispatcher.engine.definitions.placement import DesiredLabel, DesiredLabels, Label, Sticky, dump_desired_labels, parse_desired_labels

MOST_TEXT: Final = 2_000
"""How long the text of a requirement may be, in bytes: it is part of an index."""
_RESERVED: Final = 600
"""What the name of an endpoint and the group of a batch may take of it."""
_STICKY_RANK: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a task asks of the endpoint it runs at. `endpoint` is the id of the one its run began at, `batch` the group it is run with,
    `pin` the id of the one a durable task itself began at, where it stays whatever else it asks.
    """

    labels: DesiredLabels = field(default_factory=dict)
    endpoint: str | None = None
    sticky: Sticky | None = None
    slots: int = 1
    batch: str | None = None
    pin: str | None = None

    def text(self) -> str:
        """As it stands with a task; empty for a task that asks nothing. Equal requirements have one text. The pin comes first: statements
        that end it take it away there, and leave the text that was before. `sticky` comes last: `stays_at` looks for it there.
        """
        said: dict[str, object] = {}
        if self.labels:
            said["labels"] = _briefly(self.labels)
        if self.sticky is not None:
            said |= {"sticky": self.sticky} | ({"endpoint": self.endpoint} if self.endpoint is not None else {})
        if self.slots != 1:
            said["slots"] = self.slots
        if self.batch is not None:
            said["batch"] = self.batch
        own = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False) if said else ""
        return own if self.pin is None else f'{{"pin":"{self.pin}"' + (f",{own[1:]}" if own else "}")

    @property
    def unbound(self) -> bool:
        """Whether it is of a run that stays where it begins, and there was no endpoint for it yet: it is bound before it is leased."""
        return self.sticky is not None and self.endpoint is None and self.pin is None

    @property
    def home(self) -> str | None:
        """The id of the endpoint where the task has to stay: that of its pin, or where its run began if that stays there; None without."""
        return self.pin or (self.endpoint if self.sticky == "hard" else None)

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """What `text` has written."""
        if not text:
            return ASKS_NOTHING
        said = json.loads(text)
        sticky: Sticky | None = said.get("sticky")
        labels = parse_desired_labels(said.get("labels"), "labels")
        return cls(labels, said.get("endpoint"), sticky, said.get("slots", 1), said.get("batch"), said.get("pin"))


def requirement_of(definition: Definition, node: int, labels: DesiredLabels, endpoint: str | None, batch: str | None = None) -> Requirement:
    """What a task of a run asks: what its definition and its trigger say, where its run began, and what it is batched with."""
    task = definition.tasks[node]
    if not (task.desired_labels or labels or task.slot_cost != 1 or batch is not None or definition.sticky):
        return ASKS_NOTHING
    bound = endpoint if definition.sticky else None
    return Requirement({**task.desired_labels, **labels}, bound, definition.sticky, task.slot_cost, batch)


ASKS_NOTHING: Final = Requirement()


def moved_to(requirement: str, endpoint: str) -> str | None:
    """What a task of a soft run asks that begins at another endpoint than its run was made for: to stay there. Else None."""
    if '"soft"' not in requirement:
        return None
    asked = Requirement.parse(requirement)
    if asked.sticky != "soft" or asked.pin is not None or asked.endpoint in (None, endpoint):
        return None
    return replace(asked, endpoint=endpoint).text()


def refuse_long(definition: Definition, labels: DesiredLabels, at: str) -> None:
    """Raises DefinitionError where what a task asks, with the labels of a trigger, is longer than a requirement may be."""
    for node, task in enumerate(definition.tasks):
        size = len(Requirement({**task.desired_labels, **labels}).text().encode())
        if size > MOST_TEXT - _RESERVED:
            name = definition.task_name(node)
            raise DefinitionError(at, f"the labels {name!r} asks for are {size:,} bytes; at most {MOST_TEXT - _RESERVED:,} are taken")


def _briefly(labels: DesiredLabels) -> dict[str, object]:
    """Labels as `parse_desired_labels` reads them, without what goes without saying."""
    plain = dump_desired_labels({"": DesiredLabel("")})[""]
    return {
        name: {key: value for key, value in said.items() if key == "value" or value != plain[key]}
        for name, said in dump_desired_labels(labels).items()
    }


@dataclass(frozen=True, slots=True)
class Host:
    """An endpoint that takes work: its id, its labels, how many slots it has for tasks of one kind, and whether it is drained: it goes on
    with what has to stay there, and takes nothing else.
    """

    endpoint: str
    labels: Mapping[str, Label]
    slots: int = 1
    draining: bool = False


def rank(requirement: Requirement, host: Host) -> int | None:
    """How well an endpoint suits: the higher the better, None where it may not be taken at all."""
    if requirement.pin is not None and requirement.pin != host.endpoint:
        return None
    if host.draining and requirement.home != host.endpoint:
        return None
    if requirement.endpoint == host.endpoint:
        return _STICKY_RANK
    if requirement.endpoint is not None and requirement.sticky == "hard":
        return None
    total = 0
    for name, desired in requirement.labels.items():
        if _satisfies(desired, host.labels.get(name)):
            total += desired.weight
        elif desired.required:
            return None
    return total if total >= 0 else None


def startable(requirement: Requirement, hosts: Sequence[Host]) -> bool:
    """Whether a task may start at any of these, be it when nothing else runs there."""
    return any(requirement.slots <= host.slots and rank(requirement, host) is not None for host in hosts)


def unsatisfied(requirement: Requirement, host: Host) -> str | None:
    """Why an endpoint may not be taken at all, in words; None where it may."""
    if rank(requirement, host) is not None:
        return None
    if requirement.pin is not None and requirement.pin != host.endpoint:
        return "the task is pinned to the endpoint where it began"
    if requirement.endpoint is not None and requirement.sticky == "hard" and requirement.endpoint != host.endpoint:
        return "its run has to stay at the endpoint where it began"
    if host.draining:
        return "it is drained: it goes on with what has to stay there, and takes nothing else"
    asked, labels = requirement.labels, host.labels
    lacking = [name for name, desired in asked.items() if desired.required and not _satisfies(desired, labels.get(name))]
    if not lacking:
        return "the weights of the labels it has make less than nothing"
    return "; ".join(_wanted(name, asked[name], labels.get(name)) for name in lacking)


def _wanted(name: str, desired: DesiredLabel, label: Label | None) -> str:
    has = "is not there" if label is None else f"is {json.dumps(label)}"
    return f"label {name!r} {has}; {desired.comparator} {json.dumps(desired.value)} is required"


def tiers(requirement: Requirement, hosts: Sequence[Host]) -> tuple[tuple[str, ...], ...]:
    """The endpoints that may run a task, the best first, equals together in the order given."""
    by_rank: dict[int, list[str]] = {}
    for host in hosts:
        suits = rank(requirement, host)
        if suits is not None:
            by_rank.setdefault(suits, []).append(host.endpoint)
    return tuple(tuple(by_rank[value]) for value in sorted(by_rank, reverse=True))


def _satisfies(desired: DesiredLabel, label: Label | None) -> bool:
    """A label that is missing, or of another type than is asked for, satisfies nothing but NOT_EQUAL."""
    if desired.comparator == "EQUAL":
        return _same(desired.value, label)
    if desired.comparator == "NOT_EQUAL":
        return not _same(desired.value, label)
    if isinstance(label, str | bool) or label is None or isinstance(desired.value, str | bool):
        return False
    order: Literal[-1, 0, 1] = -1 if label < desired.value else 1 if label > desired.value else 0
    return order in _ORDERS[desired.comparator]


_ORDERS: Final[Mapping[str, tuple[int, ...]]] = {
    "GREATER_THAN": (1,),
    "GREATER_THAN_OR_EQUAL": (0, 1),
    "LESS_THAN": (-1,),
    "LESS_THAN_OR_EQUAL": (-1, 0),
}


def _same(wanted: Label, label: Label | None) -> bool:
    """Equal and of one kind: 1 is not true, and neither is "1"."""
    return wanted == label and isinstance(wanted, bool) is isinstance(label, bool) and isinstance(wanted, str) is isinstance(label, str)
