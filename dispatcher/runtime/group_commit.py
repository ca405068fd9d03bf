"""Group commit: callers that arrive while one set is being written share the next, and each answer waits for its commit.

A flush starts when the last one has ended and takes whatever has gathered. There is no timer, so an idle system writes at once
and a busy one writes large sets. If a set fails for a reason of its own data, it is split until the culprit stands alone, so
that no item ever fails for its neighbour's sake.

Nobody waits behind all that another has submitted: where more waits than a set takes, whose it is takes turns, an item a turn; and while a
set is written, those who have nothing in it need not wait for its end, there is a second lane for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dispatcher.runtime.fair_queue import FairQueue
from dispatcher.store.database import DatabaseUnavailable, is_transient

Item = TypeVar("Item")
Result = TypeVar("Result")

_LANES = 2  # sets that are written at once
_SHARED = 10  # a set of several is filled to this part of the most, whoever has more


class QueueFull(Exception):  # noqa: N818 - reads as what happened
    """More is waiting to be written than the bound allows."""


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    whose: Hashable
    weight: int
    future: asyncio.Future[Result]


class GroupCommit(Generic[Item, Result]):
    """Coalesces `submit` calls into calls of `write(items) -> results`, `most` weight at once.

    `weigh` says how much of a set an item fills; `bound` is how much may wait before QueueFull. `whose` says who takes turns: what one has
    submitted is written in its order, one set at a time, and of two sets that are written at once no two items belong to the same.
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
        self._waiting: FairQueue[_Waiting[Item, Result]] = FairQueue()
        self._weight = 0
        self._writers: set[asyncio.Task[None]] = set()
        self._lanes = 0  # writers that have not come to their end
        self._gathering = False  # whether a writer is about to take what waits

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """A future of the item's result, done once it is committed. Raises QueueFull at once when too much is waiting."""
        weight = self._weigh(item)
        if self._weight and self._weight + weight > self._bound:
            raise QueueFull
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        whose = self._whose(item)
        self._waiting.add(whose, _Waiting(item, whose, weight, future))
        self._weight += weight
        self._open_lane()
        return future

    @property
    def waiting(self) -> int:
        """Weight not yet taken into a set."""
        return self._weight

    @property
    def writers(self) -> list[asyncio.Task[None]]:
        """What is writing at the moment."""
        return list(self._writers)

    async def drain(self) -> None:
        """Wait until everything submitted so far has been written or has failed."""
        while self._writers:
            await asyncio.wait(list(self._writers))

    def _open_lane(self) -> None:
        if self._waiting and not self._gathering and self._lanes < _LANES:
            self._gathering = True
            self._lanes += 1
            writer = asyncio.get_running_loop().create_task(self._run())
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)

    async def _run(self) -> None:
        try:
            # Let everything that is ready to submit in this turn of the event loop join the first set.
            await asyncio.sleep(0)
            self._gathering = False
            while taken := self._take():
                theirs = dict.fromkeys(one.whose for one in taken)
                for whose in theirs:
                    self._waiting.hold(whose)
                self._open_lane()
                try:
                    await self._flush([one.item for one in taken], [one.future for one in taken])
                finally:
                    for whose in theirs:
                        self._waiting.let_go(whose)
        finally:
            self._lanes -= 1

    def _take(self) -> list[_Waiting[Item, Result]]:
        taken: list[_Waiting[Item, Result]] = []
        weight, shared = 0, self._waiting.contested
        while self._waiting and not (taken and weight + self._waiting.first.weight > self._most):
            if shared and not self._waiting.contested and weight >= self._most // _SHARED:
                break  # what only one has left keeps the others waiting no longer
            taken.append(self._waiting.pop())
            weight += taken[-1].weight
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
