"""What the waiting tasks of workflows ask of their endpoints: found a page at a time where there is more than one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from dispatcher.engine.admission import Queue
from dispatcher.store import queue
from dispatcher.store.database import Database

Workflow = tuple[int, int]
"""(tenant id, workflow id); negative where its durable tasks are meant."""


class Lookout:
    """Looks at no more than `most` queues of a workflow at once. Where there are more the next look begins behind the last of them, and
    after the last of all come the first again, so that nobody is overlooked for ever.
    """

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._most = most
        self._behind: dict[Workflow, str] = {}
        self.whole = True
        """Whether the last look was at all there is."""

    async def look(self, workflows: Sequence[Workflow]) -> list[Queue]:
        """Queues of tasks that ask something, of these workflows and their durable tasks."""
        begun, self._behind = self._behind, {}
        found = await self._found(workflows, begun)
        ended = [number for number in begun if len(found.get(number, ())) <= self._most]
        if again := [w for w in workflows if w in ended or (w[0], -w[1]) in ended]:
            first = await self._found(again, {})
            for number in ended:
                found[number] = found.get(number, []) + [q for q in first.get(number, ()) if q[2] <= begun[number]]
        for number, queues in found.items():
            if len(queues) > self._most:
                del queues[self._most :]
                self._behind[number] = queues[-1][2]
        self.whole = not self._behind
        return [q for queues in found.values() for q in queues]

    async def _found(
        self, workflows: Sequence[tuple[int, int]], after: Mapping[tuple[int, int], str]
    ) -> dict[tuple[int, int], list[Queue]]:
        queues = await queue.requirements(self._database, workflows, self._most + 1, after)
        return {number: list(some) for number, some in groupby(sorted(queues), key=lambda q: q[:2])}
