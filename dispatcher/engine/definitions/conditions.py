"""Conditions of a task in a graph: what must have happened before it runs, is skipped or is cancelled.

A rule is a list of groups that must all hold; a group holds when any of its conditions does (conjunctive normal form). Written as
`{"sleep": "10s"}`, `{"event": "key", "expression": "input.x > 1", "scope": "…"}`, `{"parent": "name", "expression": "output.n > 50"}` and
`{"or": […]}`; a list is an AND of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dispatcher.engine.definitions.durations import format_duration, parse_duration
from dispatcher.engine.definitions.reading import EVENT_KEY, DefinitionError, Reader
from dispatcher.engine.expressions import Expression, ExpressionError

MOST_CONDITIONS = 100
MACROS = 4  # how many times a condition may go through a list


@dataclass(frozen=True, slots=True)
class Sleep:
    """So much time has passed since the task's parents were done."""

    duration: timedelta


@dataclass(frozen=True, slots=True)
class UserEvent:
    """An event of this key came after the task's parents were done, and its expression (CEL over `input`) holds."""

    key: str
    expression: str | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """The output of an ancestor satisfies a CEL expression over `output`."""

    node: int
    expression: str


Condition = Sleep | UserEvent | Parent
Group = tuple[Condition, ...]
Rule = tuple[Group, ...]


def parse_rule(value: object, at: str, nodes: Mapping[str, int]) -> Rule:
    """A rule as a manifest writes it; `nodes` are the tasks a parent condition may name."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST_CONDITIONS:
        raise DefinitionError(at, f"a list of at most {MOST_CONDITIONS} conditions")
    return tuple(_group(item, f"{at}[{i}]", nodes) for i, item in enumerate(value))


def _group(value: object, at: str, nodes: Mapping[str, int]) -> Group:
    if isinstance(value, dict) and "or" in value:
        alternatives = Reader(value, at, {"or"}).items("or", MOST_CONDITIONS, "conditions")
        if not alternatives:
            raise DefinitionError(f"{at}.or", "at least one condition")
        return tuple(_condition(item, f"{at}.or[{i}]", nodes) for i, item in enumerate(alternatives))
    return (_condition(value, at, nodes),)


def _condition(value: object, at: str, nodes: Mapping[str, int]) -> Condition:
    if isinstance(value, dict) and "sleep" in value:
        return Sleep(parse_duration(Reader(value, at, {"sleep"}).get("sleep"), f"{at}.sleep"))
    if isinstance(value, dict) and "event" in value:
        return _event(Reader(value, at, {"event", "expression", "scope"}))
    if isinstance(value, dict) and "parent" in value:
        return _parent(Reader(value, at, {"parent", "expression"}), nodes)
    raise DefinitionError(at, 'a condition: {"sleep": …}, {"event": …}, {"parent": …} or {"or": […]}')


def _event(reader: Reader) -> UserEvent:
    key = reader.get("event")
    if not isinstance(key, str) or not EVENT_KEY.fullmatch(key):
        raise reader.refuse("event", "an event key: 1 to 500 characters, none of them control characters")
    return UserEvent(key, _expression(reader, required=False), reader.text("scope", 500) or None)


def _parent(reader: Reader, nodes: Mapping[str, int]) -> Parent:
    name = reader.get("parent")
    if not isinstance(name, str) or name not in nodes:
        raise reader.refuse("parent", f"{name!r} is not a task this one comes after")
    expression = _expression(reader, required=True)
    assert expression is not None, "required"
    return Parent(nodes[name], expression)


def _expression(reader: Reader, *, required: bool) -> str | None:
    source = reader.text("expression")
    if not source:
        if required:
            raise reader.refuse("expression", "required: CEL that is true or false")
        return None
    try:
        compile_condition(source, parent=required)
    except ExpressionError as error:
        raise reader.refuse("expression", str(error)) from None
    return source


def compile_condition(source: str, *, parent: bool, clock: Callable[[], float] | None = None) -> Expression[bool]:
    """The expression of a condition: over a parent's `output`, or over an event's data as `input`. Raises ExpressionError."""
    return Expression(source, returns=bool, macros=MACROS, names=("output",) if parent else ("input",), clock=clock)


def dump_rule(rule: Rule, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The rule as `parse_rule` reads it."""
    return [_dump(group[0], names) if len(group) == 1 else {"or": [_dump(c, names) for c in group]} for group in rule]


def _dump(condition: Condition, names: Mapping[int, str]) -> dict[str, Any]:
    match condition:
        case Sleep(duration=duration):
            return {"sleep": format_duration(duration)}
        case UserEvent(key=key, expression=expression, scope=scope):
            said = {"event": key, "expression": expression, "scope": scope}
            return {name: value for name, value in said.items() if value is not None}
        case Parent(node=node, expression=expression):
            return {"parent": names[node], "expression": expression}
