"""(gates) what limits cost where there is room: the same runs with no concurrency limit, with one and with two, over few keys and many; and
with a rate limit that is never reached.

With many calls in flight more is done in a second than with few, and what a limit costs is another part of it: both are told.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tests.bench.client import Client
from tests.bench.cpu import machine_ms
from tests.bench.loads import IN_FLIGHT, Measured, Recorded, check_once, clients, foreign, names
from tests.bench.system import System

_LIMIT_SECONDS = 120.0
_MANY_IN_FLIGHT: Final = 256


@dataclass(frozen=True, slots=True)
class Load:
    """Runs of one workflow, whose input spreads them over so many keys; so many calls are in flight."""

    flavour: str
    keys: int
    in_flight: int = _MANY_IN_FLIGHT

    @property
    def label(self) -> str:
        """Its name in the table."""
        calls = f", {self.in_flight} calls" if self.in_flight != _MANY_IN_FLIGHT else ""
        return f"gates {self.flavour.removeprefix('gates-')} {self.keys:,} keys{calls}"


NONE: Final = "gates-none"
LOADS: Final[Sequence[Load]] = (
    Load(NONE, 10),
    Load("gates-one", 10),
    Load("gates-two", 10),
    Load("gates-one", 10_000),
    Load("gates-two", 10_000),
    Load("gates-rate", 10),
    Load(NONE, 10, IN_FLIGHT),
    Load("gates-one", 10, IN_FLIGHT),
    Load("gates-two", 10, IN_FLIGHT),
)


def rotated(number: int) -> Sequence[Load]:
    """The loads of a round, another one first in each: what runs before leaves its rows and its vacuum to what runs after."""
    first = number % len(LOADS)
    return [*LOADS[first:], *LOADS[:first]]


async def measure(system: System, load: Load, count: int) -> Measured:
    """`count` runs, each its own call."""
    wanted, rng = names(count), random.Random(1)
    bodies = [
        msgspec.json.encode({"workflow": f"noop-{load.flavour}", "input": {"id": name, "key": f"k{rng.randrange(load.keys)}"}})
        for name in wanted
    ]
    measured = Measured(load.label, count)
    async with clients(system, load.in_flight) as pool, Recorded.of(system) as recorded:
        feed = iter(bodies)

        async def submit(client: Client) -> None:
            for body in feed:
                reply = await client.request("POST", "/v1/runs", body)
                if reply.status != 201:
                    raise RuntimeError(f"{reply.status} {reply.body[:500]!r}")

        system.sink.expect(count)
        before, busy, first = system.cpu(), machine_ms(), time.monotonic_ns()
        await asyncio.gather(*[submit(client) for client in pool])
        accepted = time.monotonic_ns()
        moments = check_once(await system.sink.collected(_LIMIT_SECONDS), wanted)
        await recorded.all(load.flavour)
        after = system.cpu()
        measured.foreign = foreign(before, after, machine_ms() - busy, time.monotonic_ns() - first)
    measured.rate = count / ((max(moments.values()) - first) / 1e9)
    measured.accepted_rate = count / ((accepted - first) / 1e9)
    measured.cpu = {part: (after[part] - before[part]) / count for part in after}
    return measured
