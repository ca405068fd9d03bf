"""Group commit: callers that arrive while one set is being written share the next, and each answer waits for its commit.

A flush starts when the last one has ended and takes whatever has gathered. There is no timer, so an idle system writes at once
and a busy one writes large sets. If a set fails for a reason of its own data, it is split until the culprit stands alone, so
that no item ever fails for its neighbour's sake.

Where more waits than a set takes, whose it is takes turns, an item a turn, so that nobody waits behind all that another has submitted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from dispatcher.store.database import DatabaseUnavailable, is_transient

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFull(Exception):  # noqa: N818 - reads as what happened
    """More is waiting to be written than the bound allows."""


class GroupCommit(Generic[Item, Result]):
    """Coalesces `submit` calls into calls of `write(items) -> results`, one at a time, `most` weight at once.

    `weigh` says how much of a set an item fills; `bound` is how much may wait before QueueFull. `whose` says who takes turns: what one has
    submitted is written in its order.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        most: int,
        bound: int,
        weigh: Callable[[Item], int] = lambda _item: 1,
        whose: Callable[[Item], Hashable] = lambda _item: None,
    ) -> None:
        self._write = write
        self._most = most
        self._bound = bound
        self._weigh = weigh
        self._whose = whose
        self._waiting: OrderedDict[Hashable, deque[tuple[Item, int, asyncio.Future[Result]]]] = OrderedDict()  # whose turn is next first
        self._weight = 0
        self._writer: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """A future of the item's result, done once it is committed. Raises QueueFull at once when too much is waiting."""
        weight = self._weigh(item)
        if self._waiting and self._weight + weight > self._bound:
            raise QueueFull
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        whose = self._whose(item)
        line = self._waiting.get(whose)
        if line is None:
            line = self._waiting[whose] = deque()
        line.append((item, weight, future))
        self._weight += weight
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._run())
        return future

    @property
    def waiting(self) -> int:
        """Weight not yet taken into a set."""
        return self._weight

    async def drain(self) -> None:
        """Wait until everything submitted so far has been written or has failed."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    async def _run(self) -> None:
        # Let everything that is ready to submit in this turn of the event loop join the first set.
        await asyncio.sleep(0)
        try:
            while self._waiting:
                taken = self._take()
                await self._flush([item for item, _, _ in taken], [future for _, _, future in taken])
        finally:
            self._writer = None

    def _take(self) -> list[tuple[Item, int, asyncio.Future[Result]]]:
        taken: list[tuple[Item, int, asyncio.Future[Result]]] = []
        weight = 0
        while self._waiting:
            whose = next(iter(self._waiting))
            line = self._waiting[whose]
            if taken and weight + line[0][1] > self._most:
                break
            taken.append(line.popleft())
            weight += taken[-1][1]
            if not line:
                del self._waiting[whose]
            elif len(self._waiting) > 1:
                self._waiting.move_to_end(whose)
        self._weight -= weight
        return taken

    async def _flush(self, items: list[Item], futures: list[asyncio.Future[Result]]) -> None:
        try:
            results = await self._write(items)
        except Exception as error:  # whatever it is, the waiters must hear of it
            if len(items) > 1 and not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                half = len(items) // 2
                await self._flush(items[:half], futures[:half])
                await self._flush(items[half:], futures[half:])
                return
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            if not future.done():
                future.set_result(result)
