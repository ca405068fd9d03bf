"""Deadlines of open attempts, in buckets of a tenth of a second, so that adding and removing one costs next to nothing."""

from __future__ import annotations

import heapq
import math
from datetime import UTC, datetime
from typing import Generic, TypeVar

Item = TypeVar("Item")
_PER_SECOND = 10


class Deadlines(Generic[Item]):
    """Items by the moment they are due; none is given out early, each at most a tenth of a second late."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[int, Item]] = {}
        self._order: list[int] = []

    def add(self, item: Item, moment: datetime) -> int:
        """Note an item; answers the bucket, which `discard` wants."""
        bucket = math.ceil(moment.timestamp() * _PER_SECOND)
        items = self._buckets.get(bucket)
        if items is None:
            items = self._buckets[bucket] = {}
            heapq.heappush(self._order, bucket)
        items[id(item)] = item
        return bucket

    def discard(self, item: Item, bucket: int) -> None:
        """Forget an item."""
        items = self._buckets.get(bucket)
        if items is not None:
            items.pop(id(item), None)

    def due(self, now: datetime) -> list[Item]:
        """Take out everything due at `now`."""
        found: list[Item] = []
        limit = now.timestamp() * _PER_SECOND
        while self._order and self._order[0] <= limit:
            found.extend(self._buckets.pop(heapq.heappop(self._order)).values())
        return found

    def next(self) -> datetime | None:
        """When something may be due next."""
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heapq.heappop(self._order)]
        return datetime.fromtimestamp(self._order[0] / _PER_SECOND, UTC) if self._order else None
