"""Many attempts in one request: at most so many at once, each reported as soon as it is settled.

Items that settle while the answer's writer waits its turn leave in one write: a batch of quick tasks is one piece, a slow one a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from handlers_sdk.execution import Execution
from handlers_sdk.outcomes import Outcome, to_line

Settle = Callable[[Execution, Outcome], None]
Begin = Callable[[Any, Settle], Execution | Outcome]


class Batch:
    """One batch being worked on. Its lines are taken with `some`, then `rest`."""

    def __init__(self, items: Sequence[Any], begin: Begin, concurrency: int) -> None:
        self._items = iter(items)
        self._begin = begin
        self._free = concurrency
        self._unsettled = len(items)
        self._lines: list[bytes] = []
        self._running: set[Execution] = set()
        self._gathered: set[Execution] = set()
        self._writer: asyncio.Future[None] | None = None
        self._fill()

    @property
    def finished(self) -> bool:
        """Whether every item is settled and taken."""
        return self._unsettled == 0 and not self._lines

    async def some(self) -> bytes:
        """The lines settled so far, at least one unless there is none to come. Cancelling this stops the batch."""
        if not self._lines and self._unsettled:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            except asyncio.CancelledError:
                self.stop()
                raise
            finally:
                self._writer = None
        lines, self._lines = self._lines, []
        return b"".join(lines)

    def rest(self, first: bytes) -> Rest:
        """`first`, then lines as they settle, to the end."""
        return Rest(self, first)

    def stop(self) -> None:
        """Stop what is running and start nothing more: nobody reads the answer."""
        self._items = iter(())
        for execution in list(self._running):
            execution.stop("the request was abandoned")

    def _fill(self) -> None:
        while self._free > 0:
            item = next(self._items, None)
            if item is None:
                return
            begun = self._begin(item, self._settle)
            if isinstance(begun, Execution):
                if "batch" in item:  # they are served by one call, which waits for all of them
                    self._gathered.add(begun)
                else:
                    self._free -= 1
                self._running.add(begun)
            else:
                self._report(str(item.get("id", "")) if isinstance(item, dict) else "", begun)

    def _settle(self, execution: Execution, outcome: Outcome) -> None:
        self._running.discard(execution)
        if execution in self._gathered:
            self._gathered.discard(execution)
        else:
            self._free += 1
        self._report(execution.task_id, outcome)
        self._fill()

    def _report(self, task_id: str, outcome: Outcome) -> None:
        self._lines.append(to_line(task_id, outcome))
        self._unsettled -= 1
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)


class Rest:
    """What is still to come of a batch's answer. Closing it stops what is unfinished, even when nothing was read."""

    def __init__(self, batch: Batch, first: bytes) -> None:
        self._batch = batch
        self._first = first

    def __aiter__(self) -> Rest:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._batch.finished:
            raise StopAsyncIteration
        return await self._batch.some()

    async def aclose(self) -> None:
        """Stop the batch."""
        self._batch.stop()
