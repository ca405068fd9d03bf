"""Conditions: what a task of a workflow waits for, is skipped by or is cancelled by, and what a durable task can wait for.

A list of conditions means all of them; `or_` makes a group any of which is enough. So `[or_(a, b), or_(a, c)]` is (a or b) and (a or c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from handlers_sdk import wire
from handlers_sdk.durations import Duration, format_duration, parse_duration
from handlers_sdk.errors import ConfigError


class Named(Protocol):
    """A task of the workflow: what `@<workflow>.task()` gives."""

    @property
    def name(self) -> str:
        """Its name within the workflow."""


@dataclass(frozen=True, slots=True)
class SleepCondition:
    """So much time has passed, counted from when the task's parents were done, or from the wait of a durable task."""

    duration: Duration

    def __post_init__(self) -> None:
        try:
            positive = parse_duration(self.duration) > timedelta(0)
        except ValueError as error:
            raise ConfigError(f"SleepCondition: {error}") from None
        if not positive:
            raise ConfigError("SleepCondition: a sleep is longer than nothing")


@dataclass(frozen=True, slots=True)
class UserEventCondition:
    """An event of this key has arrived, and `expression` (CEL over the event's data as `input`) holds.

    A condition with a `scope` is met by events of that scope only, one without by events of any. A task of a workflow sees events that
    arrive after its parents were done.
    """

    event_key: str
    expression: str | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class ParentCondition:
    """The output of a task that comes before satisfies `expression` (CEL over `output`). What was skipped or failed satisfies nothing."""

    parent: Named | str
    expression: str

    @property
    def parent_name(self) -> str:
        """The parent's name within the workflow."""
        return self.parent if isinstance(self.parent, str) else self.parent.name


Condition = SleepCondition | UserEventCondition | ParentCondition


@dataclass(frozen=True, slots=True)
class OrGroup:
    """Conditions any of which is enough; made by `or_`."""

    conditions: tuple[Condition, ...]


def or_(*conditions: Condition) -> OrGroup:
    """A group that holds as soon as any of these conditions does."""
    if not conditions:
        raise ConfigError("or_() of no conditions would never hold; give it at least one")
    return OrGroup(conditions)


Rule = Sequence[Condition | OrGroup]
"""Conditions and groups that must all hold."""


def alternatives(group: Condition | OrGroup) -> tuple[Condition, ...]:
    """The conditions any of which satisfies this part of a rule."""
    return group.conditions if isinstance(group, OrGroup) else (group,)


def rule_entries(rule: Rule, namespaced: Callable[[str], str]) -> list[wire.RuleEntry]:
    """A rule as the manifest writes it; `namespaced` gives an event key as the dispatcher knows it."""
    entries: list[wire.RuleEntry] = []
    for group in rule:
        conditions = [_entry(condition, namespaced) for condition in alternatives(group)]
        entries.append({"or": conditions} if isinstance(group, OrGroup) else conditions[0])
    return entries


def _entry(condition: Condition, namespaced: Callable[[str], str]) -> wire.ConditionEntry:
    match condition:
        case SleepCondition():
            return {"sleep": format_duration(parse_duration(condition.duration))}
        case UserEventCondition():
            entry: wire.EventConditionEntry = {"event": namespaced(condition.event_key)}
            if condition.expression is not None:
                entry["expression"] = condition.expression
            if condition.scope is not None:
                entry["scope"] = condition.scope
            return entry
        case ParentCondition():
            return {"parent": condition.parent_name, "expression": condition.expression}
    raise ConfigError(f"{condition!r} is not a condition: SleepCondition, UserEventCondition, ParentCondition, or or_() of them")
