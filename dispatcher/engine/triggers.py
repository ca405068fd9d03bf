"""Which workflows an event starts: exact keys by dictionary, keys with `*` by pattern. Every other character is literal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

WILDCARD = "*"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A key with `*`: what stands before the first star, between stars, and behind the last.

    Matching takes each middle part at its first place behind the one before. That is enough, because a star takes anything, and
    it costs no more than the text is long, whatever a tenant writes into a key.
    """

    head: str
    middle: tuple[str, ...]
    tail: str

    @staticmethod
    def parse(key: str) -> Pattern:
        """The pattern of a key that holds at least one star."""
        head, *middle, tail = key.split(WILDCARD)
        return Pattern(head, tuple(part for part in middle if part), tail)

    def matches(self, text: str) -> bool:
        """Whether the whole text fits: any run of characters for each star, also none."""
        end = len(text) - len(self.tail)
        at = len(self.head)
        if end < at or not text.startswith(self.head) or not text.endswith(self.tail):
            return False
        for part in self.middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


@dataclass(frozen=True, slots=True)
class EventIndex:
    """Event keys of one tenant's workflows, ready to be asked."""

    exact: dict[str, tuple[str, ...]]
    wild: tuple[tuple[Pattern, str], ...]

    @staticmethod
    def build(declared: Iterable[tuple[str, Iterable[str]]]) -> EventIndex:
        """From (workflow name, its event keys)."""
        exact: dict[str, tuple[str, ...]] = {}
        wild: list[tuple[Pattern, str]] = []
        for workflow, keys in declared:
            for key in keys:
                if WILDCARD in key:
                    wild.append((Pattern.parse(key), workflow))
                else:
                    exact[key] = (*exact.get(key, ()), workflow)
        return EventIndex(exact, tuple(wild))

    def match(self, event_type: str) -> tuple[str, ...]:
        """Names of the workflows to run, each once however many of its keys match, in a stable order."""
        found = dict.fromkeys(self.exact.get(event_type, ()))
        for pattern, workflow in self.wild:
            if workflow not in found and pattern.matches(event_type):
                found[workflow] = None
        return tuple(found)
