"""Filters a workflow declares: which of the events it listens for start it, and what its handler is told of the one that matched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dispatcher.engine.definitions.reading import DefinitionError, Reader
from dispatcher.engine.expressions import Expression, ExpressionError

MOST_FILTERS: Final = 1_000
MOST_SCOPE: Final = 500
MOST_PAYLOAD: Final = 65_536
MACROS: Final = 4  # how many times a filter may go through a list
NAMES: Final = ("input", "payload", "additional_metadata", "metadata", "event_key")


@dataclass(frozen=True, slots=True)
class DefaultFilter:
    """A filter that comes with the workflow. `payload` is JSON text of an object."""

    expression: str
    scope: str
    payload: str | None = None


def compile_filter(source: str) -> Expression[bool]:
    """The expression of a filter, over the event's data as `input`, its metadata and key, and the filter's own `payload`.

    Raises ExpressionError. Its time is counted by whoever evaluates it.
    """
    return Expression(source, returns=bool, macros=MACROS, names=NAMES)


def canonical(payload: Mapping[str, Any] | None) -> str | None:
    """A payload as one text, whatever the order its members came in: what tells two filters apart."""
    return None if payload is None else json.dumps(payload, sort_keys=True, separators=(",", ":"))


def read_filters(reader: Reader) -> tuple[DefaultFilter, ...]:
    """`default_filters` of an entry, each once."""
    found: dict[DefaultFilter, None] = {}
    for i, item in enumerate(reader.items("default_filters", MOST_FILTERS, "filters")):
        found[_filter(Reader(item, f"{reader.at}.default_filters[{i}]", {"expression", "scope", "payload"}))] = None
    return tuple(found)


def _filter(reader: Reader) -> DefaultFilter:
    expression, scope, payload = reader.text("expression"), reader.text("scope", MOST_SCOPE), reader.get("payload")
    if not expression:
        raise reader.refuse("expression", "required: CEL that is true or false")
    if not scope:
        raise reader.refuse("scope", "required: the scope of the events it is for")
    try:
        compile_filter(expression)
    except ExpressionError as error:
        raise reader.refuse("expression", str(error)) from None
    return DefaultFilter(expression, scope, _payload(payload, f"{reader.at}.payload"))


def _payload(value: object, at: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise DefinitionError(at, "an object")
    text = canonical(value) or ""
    if len(text) > MOST_PAYLOAD:
        raise DefinitionError(at, f"at most {MOST_PAYLOAD:,} bytes")
    return text


def dump_filters(filters: Sequence[DefaultFilter]) -> list[dict[str, Any]]:
    """The filters as a manifest has them."""
    return [_dump(one) for one in filters]


def _dump(one: DefaultFilter) -> dict[str, Any]:
    said: dict[str, Any] = {"expression": one.expression, "scope": one.scope}
    return said if one.payload is None else {**said, "payload": json.loads(one.payload)}
