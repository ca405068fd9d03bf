"""Random acts at dispatchers of which one is killed: what every storm needs, whatever comes in it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import ClassVar

from tests.world.test_concurrency import MORTAL
from tests.world.world import Node, World, until

MILLISECOND = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)


class RandomActs(ABC):
    """A storm. Its acts are told by its seed; what may be wrong is judged by whoever makes it, from what the endpoints have recorded."""

    loops: ClassVar[tuple[str, ...]]
    """What dispatchers do as time goes on."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)

    @property
    def node(self) -> Node:
        return self.rng.choice(self.world.nodes)

    @abstractmethod
    async def act(self) -> None:
        """Something happens."""

    async def acts(self, count: int) -> None:
        for _ in range(count):
            await self.act()

    async def two_nodes(self) -> Node:
        """Two dispatchers that die soon after they are killed; answers the one that is to be."""
        first = await self.world.node("one", **MORTAL)
        await self.world.node("two", **MORTAL)
        return first

    async def known(self) -> None:
        """Let every dispatcher hear of what has been registered, and have its share of it."""
        for node in self.world.nodes:
            await node.turn("registry", "slots")

    async def live(self, steps: int = 1, step: timedelta = SECOND) -> None:
        """Let time go on."""
        for _ in range(steps):
            self.world.clock.advance(step)
            for node in self.world.nodes:
                await node.turn(*self.loops)

    async def end(self, answer: Callable[[], None], runs: Iterable[str] | None = None) -> None:
        """Answer what comes until nothing of these runs is left, or of any."""
        ids = list(runs) if runs is not None else None

        async def over() -> bool:
            answer()
            await self.live()
            return not await self.world.database.fetchval("select count(*) from runs where $1::text[] is null or id = any($1)", ids)

        await until(over, 60)
