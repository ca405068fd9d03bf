"""Going back in the log of a durable task: what of it stays, and what that says of the task as it stood there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec import Raw

from dispatcher.engine.journal import CLOSED, NAMED, Named


@dataclass(frozen=True, slots=True)
class Branch:
    """A log cut before one of its nodes: the entries that stay, and the operations among them that are still to be settled."""

    entries: tuple[bytes, ...]
    pending: tuple[bytes, ...]


def branch(entries: Sequence[bytes], node: str | None) -> Branch | None:
    """The log with everything that was first recorded at `node` or after it taken away; None where there is no such node.

    What had been asked for before stays, with what became of it, even where that came in later. Without a node everything stays. A log that
    was cancelled goes back at least to there: what cleaned up after the task is taken away, and nobody is told of a cancel any more.
    """
    kept: list[bytes] = []
    open_ops: dict[str, bytes] = {}
    known: set[str] = set()
    cut: set[str] = set()
    found, cutting = node is None, False
    for entry in entries:
        named = NAMED.decode(entry)
        found = found or named.id == node
        cutting = cutting or named.id == node or named.op == "cancel"
        if _tells_of_cancel(named):
            continue
        if cutting and named.id not in known:
            cut.add(named.id)
        known.add(named.id)
        if named.id in cut:
            continue
        kept.append(entry)
        if named.status in ("pending", "retry"):
            open_ops[named.id] = entry
        else:
            open_ops.pop(named.id, None)
    return Branch(tuple(kept), tuple(open_ops.values())) if found else None


def _tells_of_cancel(named: Named) -> bool:
    """Whether an entry is only there because its task was cancelled: who waited for a message was given that instead."""
    return named.op == "cancel" or (named.op == "message" and named.status == "cancel")


class _Stamped(msgspec.Struct):
    at: datetime | None = None
    run_id: str | None = None


class _Saved(msgspec.Struct):
    op: str
    value: Raw = Raw(b"null")


def moment_of(entry: bytes, earliest: datetime, latest: datetime) -> datetime:
    """When an entry says it was written, as far as that can be: its writer may have any clock, and say no offset from UTC."""
    at = msgspec.json.decode(entry, type=_Stamped).at
    if at is None:
        return latest
    return min(max(at if at.tzinfo is not None else at.replace(tzinfo=UTC), earliest), latest)


def run_of(entry: bytes) -> str | None:
    """The run that an entry has started."""
    return msgspec.json.decode(entry, type=_Stamped).run_id


def closed_by(entries: Sequence[bytes]) -> list[str]:
    """The scopes that entries close."""
    named = (NAMED.decode(entry) for entry in entries if b'"scope"' in entry)
    return [one.id for one in named if one.op == "scope" and one.status in ("ok", "error")]


def closes_inbox(entries: Sequence[bytes]) -> bool:
    """Whether one of these entries closes the inbox, and does not only tell that it is closed."""
    named = [NAMED.decode(entry) for entry in entries if b'"message"' in entry]
    asked = {one.id for one in named if one.status == "pending"}
    return any(one.op == "message" and one.status == CLOSED and one.id not in asked for one in named)


def saved_by(entries: Sequence[bytes]) -> bytes | None:
    """The last checkpoint in entries."""
    for entry in reversed(entries):
        if b'"checkpoint"' in entry and (saved := msgspec.json.decode(entry, type=_Saved)).op == "checkpoint":
            return bytes(saved.value)
    return None
