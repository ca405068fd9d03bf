"""Which workflows an event starts: exact keys by dictionary, keys with `*` by pattern. Every other character is literal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

WILDCARD = "*"


def pattern(key: str) -> re.Pattern[str]:
    """What a key with `*` matches: any run of characters for each star, also none. `_`, `.` and `%` mean themselves."""
    return re.compile(".*".join(re.escape(part) for part in key.split(WILDCARD)), re.DOTALL)


@dataclass(frozen=True, slots=True)
class EventIndex:
    """Event keys of one tenant's workflows, ready to be asked."""

    exact: dict[str, tuple[str, ...]]
    wild: tuple[tuple[re.Pattern[str], str], ...]

    @staticmethod
    def build(declared: Iterable[tuple[str, Iterable[str]]]) -> EventIndex:
        """From (workflow name, its event keys)."""
        exact: dict[str, tuple[str, ...]] = {}
        wild: list[tuple[re.Pattern[str], str]] = []
        for workflow, keys in declared:
            for key in keys:
                if WILDCARD in key:
                    wild.append((pattern(key), workflow))
                else:
                    exact[key] = (*exact.get(key, ()), workflow)
        return EventIndex(exact, tuple(wild))

    def match(self, event_type: str) -> tuple[str, ...]:
        """Names of the workflows to run, each once however many of its keys match, in a stable order."""
        found = dict.fromkeys(self.exact.get(event_type, ()))
        for compiled, workflow in self.wild:
            if workflow not in found and compiled.fullmatch(event_type):
                found[workflow] = None
        return tuple(found)
