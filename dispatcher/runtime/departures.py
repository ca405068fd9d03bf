"""The start of leased attempts, some at a time: so much of it would keep everything else that happens here waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

from dispatcher.runtime.pace import Pace
from dispatcher.runtime.work import Assignment

_AT_ONCE = 100  # fills one request to an endpoint that takes batches


class Departures:
    """Hands leased attempts to `start`."""

    def __init__(self, start: Callable[[Sequence[Assignment]], None], pace: Pace) -> None:
        self._start = start
        self._pace = pace

    async def begin(self, assignments: Sequence[Assignment]) -> None:
        """Start all of these, a part in each turn. Of several tenants the one that has got the fewest goes first."""
        many = Counter([assignment.tenant_id for assignment in assignments])
        if len(many) > 1:
            assignments = sorted(assignments, key=lambda assignment: many[assignment.tenant_id])
        left = iter(assignments)
        try:
            for first in range(0, len(assignments), _AT_ONCE):
                await self._pace.turn(assignments[first].tenant_id)
                self._start(list(islice(left, _AT_ONCE)))
        finally:
            if rest := list(left):  # what is leased is sent, also when nobody waits for it any more
                self._start(rest)
