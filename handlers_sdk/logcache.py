"""The logs of durable tasks this process has seen, so that the dispatcher needs to send only what is new.

A log is known by its rolling hash: what two processes hold under one hash is the same log. Bounded by bytes; what was not used for
longest goes.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from handlers_sdk.schemas import parse_json

BYTES_MAX: Final = 64_000_000
_BESIDE: Final = 200  # what an entry takes beside its text


@dataclass(slots=True)
class Known:
    """A log, entries parsed or still text. `marks` has, for a length of the log, its hash and how many entries are held of it;
    `sizes` are those of its entries as text.
    """

    entries: list[Any] = field(default_factory=list)
    marks: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    size: int = 0


class LogCache:
    """Logs by task id."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._logs: OrderedDict[str, Known] = OrderedDict()
        self._size = 0
        self._bytes_max = bytes_max

    def prefix(self, task_id: str, length: int, hash: str) -> list[Any] | None:
        """The first entries of a log whose hash is this; None when they are not known."""
        known = self._logs.get(task_id)
        if known is None or length not in known.marks:
            return None
        digest, count = known.marks[length]
        if digest.hex() != hash:
            return None
        self._logs.move_to_end(task_id)
        for index, entry in enumerate(known.entries):
            if entry.__class__ is bytes:
                known.entries[index] = parse_json(entry)
        return known.entries[:count]

    def keep(self, task_id: str, entries: Sequence[Any], length: int, head: str | None, appended: Sequence[bytes]) -> None:
        """A log as it was when a turn began, `length` and `head` those of all of it, and what was appended since."""
        before = self._logs.get(task_id, Known())
        self.forget(task_id)
        try:
            digest = bytes.fromhex(head or "")
        except ValueError:
            return
        if length and not digest:
            return
        sizes = [size for entry, same, size in zip(entries, before.entries, before.sizes, strict=False) if entry is same]
        sizes += map(_size, entries[len(sizes) :])  # what is the same is so from the start
        sizes += map(len, appended)
        known = Known([*entries, *appended], {length: (digest, len(entries))}, sizes, sum(sizes) + _BESIDE * len(sizes))
        for count, text in enumerate(appended, 1):
            digest = hashlib.sha256(digest + text).digest()
            known.marks[length + count] = (digest, len(entries) + count)
        self._logs[task_id] = known
        self._size += known.size
        while self._size > self._bytes_max and self._logs:
            self.forget(next(iter(self._logs)))

    def forget(self, task_id: str) -> None:
        """The log is of no use any more."""
        known = self._logs.pop(task_id, None)
        if known is not None:
            self._size -= known.size


def _size(entry: Any) -> int:
    return len(json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass"))
