"""Reading an entry of a manifest field by field, each refused by its own path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
EVENT_KEY = re.compile(r"[^\x00-\x1f\x7f]{1,500}")

# Features whose rooms are not built yet: a definition that asks for one is refused by its name.
UNSUPPORTED: frozenset[str] = frozenset()


class DefinitionError(ValueError):
    """A definition that cannot be registered. `field` is the path of what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Reader:
    """One entry, `at` its path. A field that is not in `known` is refused."""

    def __init__(self, entry: object, at: str, known: set[str]) -> None:
        if not isinstance(entry, dict):
            raise DefinitionError(at, "an object")
        self._entry: dict[str, Any] = entry
        self.at = at
        unknown = sorted(set(entry) - known)
        if unknown:
            raise self.refuse(unknown[0], "unknown or not supported by this server")

    def refuse(self, field: str, message: str) -> DefinitionError:
        """The error of a field."""
        return DefinitionError(f"{self.at}.{field}", message)

    def get(self, field: str) -> Any:
        """The value as it came, None where it is missing."""
        return self._entry.get(field)

    def name(self, field: str = "name") -> str:
        """What may name a workflow or a task."""
        value = self._entry.get(field)
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise self.refuse(field, "required: 1 to 200 letters, digits and _ . : - (not starting with punctuation)")
        return value

    def choice(self, field: str, default: str, *allowed: str) -> str:
        """One of a few words."""
        value = self._entry.get(field, default)
        if value not in allowed:
            raise self.refuse(field, f"takes {' or '.join(repr(word) for word in allowed)}".replace("'", '"'))
        return str(value)

    def text(self, field: str, most: int = 10_000) -> str:
        """Text, empty where it is missing."""
        value = self._entry.get(field)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > most or "\x00" in value:
            raise self.refuse(field, f"text of at most {most:,} characters")
        return value

    def schema(self, field: str) -> Mapping[str, Any] | None:
        """A JSON Schema."""
        value = self._entry.get(field)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(field, "a JSON Schema object")
        return value or None

    def flag(self, field: str) -> bool:
        """True or false."""
        value = self._entry.get(field, False)
        if not isinstance(value, bool):
            raise self.refuse(field, "true or false")
        return value

    def whole(self, field: str, default: int, low: int, high: int) -> int:
        """A whole number."""
        value = self._entry.get(field)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(field, f"a whole number from {low} to {high}")
        return value

    def number(self, field: str, low: float, high: float) -> float | None:
        """A number."""
        value = self._entry.get(field)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(field, f"a number from {low:g} to {high:g}")
        return float(value)

    def items(self, field: str, most: int, what: str) -> list[Any]:
        """A list, empty where it is missing."""
        value = self._entry.get(field)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            raise self.refuse(field, f"a list of at most {most:,} {what}")
        return value

    def event_keys(self) -> tuple[str, ...]:
        """The keys of events that start the workflow, each once."""
        keys = self.items("on_events", 100, "event keys")
        for i, key in enumerate(keys):
            if not isinstance(key, str) or not EVENT_KEY.fullmatch(key):
                raise self.refuse(f"on_events[{i}]", "an event key: 1 to 500 characters, none of them control characters")
        return tuple(dict.fromkeys(keys))
