"""What goes wrong: kills, freezes longer than a lease, and Postgres crashing, drawn from a seed."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from dataclasses import dataclass, field

from tests.bench.system import pause
from tests.chaos.fleet import LEASE, Fleet

_WHILE_STARTING = 0.05  # of those found starting are killed all the same; the others shall have got to work first


@dataclass(slots=True)
class Nemesis:
    """Strikes until it has made `kills` kills, at least one in `postgres_every` of them at Postgres."""

    fleet: Fleet
    rng: random.Random
    kills: int
    postgres_every: int
    longest_pause: float
    freezes: int = 20  # of a hundred strikes at dispatchers
    strikes: Counter[str] = field(default_factory=Counter)
    _thawing: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def made(self) -> int:
        """Kills so far; a freeze is none."""
        return self.strikes.total() - self.strikes["freeze"]

    async def run(self) -> None:
        """Strike, pause, strike again; returns once the last frozen dispatcher is thawed."""
        since_postgres = 0
        while self.made < self.kills:
            await pause(0.3 + self.rng.random() * self.longest_pause)
            postgres = since_postgres + 1 >= self.postgres_every
            name = self._choose(postgres)
            if await self._strike(name):
                self.strikes[name] += 1
                since_postgres = 0 if name.startswith("postgres") else since_postgres + (name != "freeze")
        if self._thawing:
            await asyncio.wait(self._thawing)

    def _choose(self, postgres: bool) -> str:
        if postgres:
            return self.rng.choice(["postgres kill -9", "postgres immediate stop"])
        return self.rng.choices(["dispatcher kill -9", "freeze"], [100 - self.freezes, self.freezes])[0]

    async def _strike(self, name: str) -> bool:
        if name == "postgres kill -9":
            return self.fleet.signal_postgres(signal.SIGKILL)
        if name == "postgres immediate stop":
            return self.fleet.signal_postgres(signal.SIGQUIT)
        number = self.rng.randrange(len(self.fleet.dispatchers))
        dispatcher = self.fleet.dispatchers[number]
        if dispatcher.frozen or not (dispatcher.at_work or self.rng.random() < _WHILE_STARTING):
            return False
        if name == "freeze":
            self.fleet.freeze(number)
            task = asyncio.create_task(self._thaw_later(number))
            self._thawing.add(task)
            task.add_done_callback(self._thawing.discard)
        else:
            await self.fleet.kill(number)
        return True

    async def _thaw_later(self, number: int) -> None:
        await pause(LEASE + 0.5 + self.rng.random() * 2)
        self.fleet.thaw(number)
