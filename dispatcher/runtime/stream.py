"""What one NDJSON answer says before its end: written a set at a time, while the next lines are read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

import msgspec

from dispatcher.clock import Clock
from dispatcher.runtime.group_commit import QueueFull
from dispatcher.runtime.recorder import CallbackEvent, Entry, EventRefused, Recorder, weight
from dispatcher.store.database import DatabaseUnavailable, is_transient
from dispatcher.store.outcomes import Guard

_log = logging.getLogger(__name__)

_RECORDED = ("log", "chunk", "progress")
_MOST_WAITING = 500  # as a commit is weighed: entries, or 4 MB of large ones
_TRY_AGAIN = timedelta(seconds=1)


class Stream:
    """The lines of one attempt. `is_over` says when nobody waits for it any more.

    A line that makes no sense costs the handler that line, nothing else. While the database is away the stream waits, which the
    endpoint feels as back-pressure; what was on its way when the database went may be kept twice.
    """

    def __init__(self, recorder: Recorder, clock: Clock, guard: Guard, is_over: Callable[[], bool]) -> None:
        self._recorder = recorder
        self._clock = clock
        self._guard = guard
        self._is_over = is_over
        self._waiting: list[Entry] = []
        self._weight = 0
        self._writer: asyncio.Task[None] | None = None

    async def say(self, line: bytes) -> None:
        """Take a line. Returns before it is durable, unless as many wait already as may."""
        try:
            event = msgspec.json.decode(line, type=CallbackEvent)
            entry = self._recorder.entry(self._guard, event) if event.type in _RECORDED else None
        except (msgspec.DecodeError, EventRefused) as refused:
            _log.info("a line of the answer for %s was dropped: %s", self._guard.run_id, refused)
            return
        if entry is None:
            return
        self._waiting.append(entry)
        self._weight += weight(entry)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._run())
        if self._weight >= _MOST_WAITING:
            await self.flush()

    async def flush(self) -> None:
        """Wait until everything said is durable, or nobody waits for it any more."""
        if self._writer is not None:
            await self._writer

    async def _run(self) -> None:
        try:
            while self._waiting:
                entries, self._waiting, self._weight = self._waiting, [], 0
                await self._written(entries)
        finally:
            self._writer = None

    async def _written(self, entries: list[Entry]) -> None:
        while not self._is_over():
            try:
                await self._recorder.write(entries)
            except Exception as error:
                if not (isinstance(error, DatabaseUnavailable | QueueFull) or is_transient(error)):
                    _log.exception("%d lines of the answer for %s could not be kept", len(entries), self._guard.run_id)
                    return
                await self._clock.sleep_until(self._clock.now() + _TRY_AGAIN)
            else:
                return
