"""The tasks of a workflow as a graph, checked before anything is served: unknown parents, circles, conditions on tasks that come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from handlers_sdk.conditions import ParentCondition, Rule, alternatives
from handlers_sdk.errors import ConfigError

RULES: Final = ("wait_for", "skip_if", "cancel_if")


@dataclass(frozen=True, slots=True)
class Edges:
    """What ties a task to the others of its workflow: the names of its parents, and its conditions."""

    parents: tuple[str, ...] = ()
    wait_for: Rule = ()
    skip_if: Rule = ()
    cancel_if: Rule = ()

    def __post_init__(self) -> None:
        if len(set(self.parents)) != len(self.parents):
            raise ConfigError(f"parents: {', '.join(self.parents)}: each is named once")

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules that were given, by name."""
        return {one.name: rule for one in fields(self) if one.name in RULES and (rule := getattr(self, one.name))}

    @property
    def asks(self) -> frozenset[str]:
        """The tasks its conditions ask about."""
        conditions = [condition for rule in self.rules.values() for group in rule for condition in alternatives(group)]
        return frozenset(condition.parent_name for condition in conditions if isinstance(condition, ParentCondition))


def check_graph(workflow: str, edges: Mapping[str, Edges]) -> None:
    """ConfigError for a parent there is not, a circle, with its path, or a condition on a task that need not be over by then."""
    for name, one in edges.items():
        for parent in one.parents:
            if parent not in edges:
                raise ConfigError(f"workflow {workflow}, task {name}: there is no parent {parent!r}; the tasks are {', '.join(edges)}")
    above: dict[str, frozenset[str]] = {}
    for name in _order(workflow, edges):
        parents = edges[name].parents
        above[name] = frozenset(parents).union(*(above[parent] for parent in parents))
        if beside := sorted(edges[name].asks - above[name]):
            raise ConfigError(f"workflow {workflow}, task {name}: a condition asks about {beside[0]!r}, which is not a task it comes after")


def _order(workflow: str, edges: Mapping[str, Edges]) -> list[str]:
    """Parents before children."""
    children: dict[str, list[str]] = {name: [] for name in edges}
    for name, one in edges.items():
        for parent in one.parents:
            children[parent].append(name)
    missing = {name: len(one.parents) for name, one in edges.items()}
    order = [name for name, count in missing.items() if count == 0]
    for name in order:  # grows while it is read
        for child in children[name]:
            missing[child] -= 1
            if missing[child] == 0:
                order.append(child)
    if len(order) < len(edges):
        path = " -> ".join(_circle(edges, {name for name, count in missing.items() if count}))
        raise ConfigError(f"workflow {workflow}: tasks wait for each other in a circle: {path}")
    return order


def _circle(edges: Mapping[str, Edges], stuck: set[str]) -> Sequence[str]:
    """One circle, from parent to child, beginning and ending with the same task. Every stuck task has a stuck parent."""
    walked = [next(name for name in edges if name in stuck)]
    while True:
        parent = next(parent for parent in edges[walked[-1]].parents if parent in stuck)
        if parent in walked:
            return [parent, *reversed(walked[walked.index(parent) :])]
        walked.append(parent)
