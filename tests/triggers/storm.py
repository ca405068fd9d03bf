"""Crons of one second in real time, while dispatchers are killed: `python -m tests.triggers.storm`.

Three crons, one of each policy. Every tick may have one run at most; with run_all every tick has one. A dispatcher that is killed is
started again at once, in its place.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg

from dispatcher.store.database import Connection
from tests.bench.client import Client
from tests.bench.system import HOST, pause, workspace
from tests.chaos.fleet import Fleet, running

POLICIES = ("skip", "run_once", "run_all")
SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of one cron: ticks from its first to its last, those without a run, runs too many, how late runs were written."""

    policy: str
    ticks: int
    missing: int
    doubles: int
    late: list[float] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether a promise was."""
        return self.doubles > 0 or (self.policy == "run_all" and self.missing > 0) or self.ticks == 0


async def storm(directory: Path, seconds: float, every: float, dispatchers: int, seed: int) -> tuple[list[Kept], int]:
    """What became of each cron, and how many dispatchers were killed."""
    chosen = random.Random(seed)
    async with running(directory, dispatchers) as fleet:
        names = await _make(fleet)
        loop = asyncio.get_running_loop()
        end, kills = loop.time() + seconds, 0
        while (left := end - loop.time()) > 0:
            await pause(min(every, left))
            if loop.time() < end:
                await fleet.kill(chosen.randrange(dispatchers))
                kills += 1
        await fleet.ready()
        await _disable(fleet, names)
        return await _kept(fleet, names), kills


async def _make(fleet: Fleet) -> dict[str, str]:
    client = Client(HOST, fleet.dispatchers[0].port, fleet.token)
    names = {}
    for policy in POLICIES:
        cron = {"workflow": "plain", "name": policy, "expression": "* * * * * *", "missed": policy}
        names[(await client.expect("POST", "/v1/crons", cron))["id"]] = policy
    client.close()
    return names


async def _disable(fleet: Fleet, names: dict[str, str]) -> None:
    client = Client(HOST, fleet.dispatchers[0].port, fleet.token)
    for cron_id in names:
        await client.expect("PATCH", f"/v1/crons/{cron_id}", {"enabled": False})
    client.close()


async def _kept(fleet: Fleet, names: dict[str, str]) -> list[Kept]:
    connection: Connection = await asyncpg.connect(fleet.postgres.dsn)
    try:
        rows = await connection.fetch(_RUNS)
        claimed = await connection.fetchval("select count(*) from cron_ticks")
    finally:
        connection.terminate()
    assert claimed == len({row["idempotency_key"] for row in rows}), "a tick was claimed without its run, or the other way round"
    return [
        _of_cron(policy, [row for row in rows if row["idempotency_key"].startswith(f"{cron_id}@")]) for cron_id, policy in names.items()
    ]


_RUNS = """
    select idempotency_key, created_at from runs where trigger = 'cron'
    union all select idempotency_key, created_at from run_history where trigger = 'cron'
"""


def _of_cron(policy: str, rows: list[asyncpg.Record]) -> Kept:
    moments = [(datetime.fromisoformat(row["idempotency_key"].partition("@")[2]), row["created_at"]) for row in rows]
    counts = Counter(tick for tick, _ in moments)
    if not counts:
        return Kept(policy, 0, 0, 0)
    ticks = (max(counts) - min(counts)) // SECOND + 1
    late = sorted((written - tick).total_seconds() for tick, written in moments)
    return Kept(policy, ticks, ticks - len(counts), sum(counts.values()) - len(counts), late)


async def _run(seconds: float, every: float, dispatchers: int, seed: int) -> bool:
    async with workspace() as directory:
        kept, kills = await storm(directory, seconds, every, dispatchers, seed)
    print(f"{seconds:.0f} s, {dispatchers} dispatchers, {kills} kills, one every {every:.0f} s, seed {seed}")
    for one in kept:
        late = [one.late[int(len(one.late) * share)] if one.late else 0.0 for share in (0.5, 0.99)]
        print(
            f"  {one.policy:9} {one.ticks:5} ticks, {one.missing} without a run, {one.doubles} doubles;"
            f" late by {late[0] * 1000:.0f} ms (median), {late[1] * 1000:.0f} ms (p99), {max(one.late, default=0) * 1000:.0f} ms at most"
        )
    return not any(one.broken for one in kept)


def main() -> None:
    """Five minutes, a kill every ten seconds; exit 1 when a tick was run twice, or with run_all not at all."""
    parser = argparse.ArgumentParser(prog="python -m tests.triggers.storm", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--dispatchers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    arguments = parser.parse_args()
    kept = asyncio.run(_run(arguments.seconds, arguments.every, arguments.dispatchers, arguments.seed))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
