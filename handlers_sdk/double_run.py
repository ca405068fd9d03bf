"""A run as the dispatcher in memory (`double.py`) knows it: its log, what it waits for, and which turn it is at."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

_ENDED: Final = ("succeeded", "failed", "cancelled")


@dataclass(slots=True)
class DoubleRun:
    """A run of one task. `log` is text as it was sent, `entries` the same parsed."""

    id: str
    task_id: str
    workflow: str
    input: Any
    seed: str
    metadata: dict[str, Any] | None = None
    mode: str = "replay"
    status: str = "queued"
    output: Any = None
    error: dict[str, Any] | None = None
    log: list[bytes] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=lambda: [b""])
    settled: dict[str, str] = field(default_factory=dict)  # op id → status, of what is over
    open: dict[str, dict[str, Any]] = field(default_factory=dict)  # op id → what was asked
    due: dict[str, int] = field(default_factory=dict)  # op id → ms
    arrived: list[dict[str, Any]] = field(default_factory=list)  # completions for the next turn
    shipped: int = 0  # how much of the log the endpoint has seen
    opened: int = 0  # how long the log was when the turn was sent
    known: int = 0  # how long it was when the last turn ended, however often this one was sent
    wake: Any = None
    state: Any = None
    attempt: int = 0
    turn: int = 1
    started_at: int = 0
    first_at: int = 0
    failures: int = 0
    grown: int = 0
    not_before: int = 0
    parent: tuple[str, str] | None = None
    on_cancel: str = "propagate"
    children: dict[str, str] = field(default_factory=dict)
    inbox: deque[Any] = field(default_factory=deque)
    inbox_closed: bool = False
    checkpoint: Any = None
    has_checkpoint: bool = False
    cancelling: str | None = None
    cleaning: bool = False  # whether the turn to clean up in has been opened, or will be next

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status in _ENDED

    @property
    def begun(self) -> bool:
        """Whether there is something that could be undone."""
        return self.turn > 1 or bool(self.log)

    @property
    def results(self) -> list[dict[str, Any]]:
        """What has settled since the last turn ended."""
        return [entry for entry in self.entries[self.known :] if entry["status"] != "pending"]

    def write(self, text: bytes, entry: dict[str, Any]) -> None:
        """An entry more."""
        self.log.append(text)
        self.entries.append(entry)
        self.hashes.append(hashlib.sha256(self.hashes[-1] + text).digest())

    def shown(self, *, whole: bool) -> bytes:
        """The log as a turn is sent with it: as it was written, all of it or what the endpoint has not seen."""
        start = 0 if whole else self.shipped
        shown = [one for one, entry in zip(self.log[start:], self.entries[start:], strict=True) if not self._is_hidden(entry["id"])]
        hidden = len(self.log) - start - len(shown)
        self.shipped = len(self.log)
        return b'{"len":%d,"from":%d,"hidden":%d,"prefix":"%b","head":"%b","entries":[%b]}' % (
            len(self.log),
            start,
            hidden,
            self.hashes[start].hex().encode(),
            self.hashes[-1].hex().encode(),
            b",".join(shown),
        )

    def next_turn(self) -> None:
        """A turn is over that was answered. One that failed or was never heard of is sent again as the same."""
        self.turn += 1
        self.known = self.grown = len(self.log)
        self.failures = 0

    def begin_anew(self, input: Any, now: int) -> None:
        """An empty log."""
        self.input = input
        self.log, self.entries, self.hashes, self.shipped = [], [], [b""], 0
        self.settled, self.open, self.due, self.arrived, self.children = {}, {}, {}, [], {}
        self.first_at = self.first_at or self.started_at
        self.started_at = max(now, self.started_at + 1)

    def is_satisfied(self, wake: Any, now: int) -> bool:
        """Whether what it waits for has come."""
        if isinstance(wake, str):
            return wake in self.settled or (wake in self.open and self.open[wake]["op"] == "step" and self.due[wake] <= now)
        if "any" in wake:
            return any(self.is_satisfied(part, now) for part in wake["any"])
        if wake.get("fail_fast") and any(isinstance(part, str) and self.settled.get(part, "ok") != "ok" for part in wake["all"]):
            return True
        return all(self.is_satisfied(part, now) for part in wake["all"])

    def _is_hidden(self, id: str) -> bool:
        """Whether it was done inside a scope that is closed."""
        parts = id.split("/")
        return any("/".join(parts[:end]) in self.settled for end in range(1, len(parts)))
