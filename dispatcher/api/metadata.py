"""Metadata of runs and events: pairs to look for, and the keys that are the system's own.

Keys that start with `dispatcher__` (and `hatchet__`, for programs written for that) say what the system knows, so nobody else may set them:
they are left out of what callers send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from dispatcher.errors import problem

REPLAY_OF: Final = "dispatcher__replay_of"
_OWN: Final = ("dispatcher__", "hatchet__")
_MARKS: Final = (b"dispatcher__", b"hatchet__", b"\\u")  # a name may be written with escapes
_MOST_PAIRS: Final = 10
_members: Final = msgspec.json.Decoder(dict[str, Raw])


def metadata_pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The `key:value` of a query. Raises Problem."""
    check_pairs(len(texts), "metadata")
    pairs = []
    for text in texts:
        key, colon, value = text.partition(":")
        if not colon or not key:
            raise problem("invalid_value", f"metadata: {text!r} is not key:value", field="metadata")
        pairs.append((key, value))
    return pairs


def check_pairs(count: int, field: str) -> None:
    """Raises Problem for more pairs than are looked for at once."""
    if count > _MOST_PAIRS:
        raise problem("invalid_value", f"{field}: at most {_MOST_PAIRS} pairs", field=field)


def without_system_keys(text: bytes) -> bytes:
    """A JSON object without the members only the system may set."""
    if not any(mark in text for mark in _MARKS):
        return text
    members = _members.decode(text)
    kept = {name: value for name, value in members.items() if not name.startswith(_OWN)}
    return text if len(kept) == len(members) else msgspec.json.encode(kept)


def with_system_key(metadata: str | None, key: str, value: Any) -> str:
    """Metadata with one member of the system's own."""
    members: dict[str, Any] = _members.decode(metadata or "{}")
    return msgspec.json.encode({**members, key: value}).decode()
