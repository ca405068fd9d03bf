"""One campaign: load and nemesis together, then quiet, then the three witnesses compared."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from dispatcher.store.database import Connection
from tests.bench.system import pause
from tests.chaos import load, witness
from tests.chaos.fleet import Fleet, running
from tests.chaos.ledger import Attempt, Ledger, Run, check
from tests.chaos.load import Load
from tests.chaos.nemesis import Nemesis

_STUCK_SECONDS = 25.0  # without any progress: several times what a lease, a probe, a timeout and a backoff take here
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """How hard. `kills` counts dispatchers and Postgres; one in `postgres_every` is Postgres."""

    seed: int
    kills: int = 200
    dispatchers: int = 3
    workers: int = 10
    postgres_every: int = 8
    longest_pause: float = 2.0
    freezes: int = 20  # of a hundred strikes at dispatchers


@dataclass(slots=True)
class Result:
    """What happened. `broken` is empty when every promise was kept."""

    broken: list[str]
    acknowledged: int
    runs: Counter[str]
    attempts: Counter[str]
    strikes: Counter[str]
    answers: Counter[str]
    requests: int
    quiet_after: float
    most_attempts: int = 0
    stuck: list[str] = field(default_factory=list)


async def campaign(plan: Plan, directory: Path, say: Callable[[str], None]) -> Result:
    """Run one. Raises Refused when a dispatcher refused a call it should have taken or answered 5xx to."""
    async with running(directory, plan.dispatchers) as fleet:
        sender = Load([d.port for d in fleet.dispatchers], fleet.token, directory / "acks.log", random.Random(plan.seed))
        nemesis = Nemesis(fleet, random.Random(plan.seed + 1), plan.kills, plan.postgres_every, plan.longest_pause, plan.freezes)
        await _storm(sender, nemesis, plan, say)
        say(f"{sender.acked} acknowledged, {dict(nemesis.strikes)}; waiting for quiet")
        begun = asyncio.get_running_loop().time()
        await fleet.ready()
        await _quiet(fleet)
        quiet_after = asyncio.get_running_loop().time() - begun
        ledger, stuck = await _witnesses(fleet, sender.acks)
    return _result(ledger, sender, nemesis, quiet_after, stuck)


async def _storm(sender: Load, nemesis: Nemesis, plan: Plan, say: Callable[[str], None]) -> None:
    sending = asyncio.create_task(sender.run(plan.workers))
    striking = asyncio.create_task(nemesis.run())
    told = asyncio.create_task(_tell(sender, nemesis, say))
    try:
        await asyncio.wait([sending, striking], return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()  # a worker gave up: say why
        striking.result()
        await nemesis.fleet.ready()
        sender.stopping = True
        await sending
    finally:
        for task in (sending, striking, told):
            task.cancel()
        await asyncio.wait([sending, striking, told])


async def _tell(sender: Load, nemesis: Nemesis, say: Callable[[str], None]) -> None:
    while True:
        await pause(10)
        say(f"{nemesis.made} kills, {sender.acked} acknowledged, {dict(sender.answers)}")


async def _quiet(fleet: Fleet) -> None:
    """Until nothing is live and the dead are buried; gives up when nothing has moved for long, which the checker then reports."""
    loop = asyncio.get_running_loop()
    moved, last = loop.time(), ()
    while loop.time() - moved < _STUCK_SECONDS:
        try:
            connection: Connection = await asyncpg.connect(fleet.postgres.dsn, timeout=5)
        except (OSError, asyncpg.PostgresError):
            await pause(_POLL_SECONDS)
            continue
        try:
            row = tuple(await connection.fetchrow(_PROGRESS, len(fleet.dispatchers)) or ())
        finally:
            connection.terminate()
        if row[:3] == (0, 0, 0):
            return
        if row != last:
            moved, last = loop.time(), row
        await pause(_POLL_SECONDS)


_PROGRESS = """
    select (select count(*) from tasks), (select count(*) from runs),
           (select count(*) from slot_grants g where not exists (select from dispatchers d where d.id = g.dispatcher_id))
           + (select greatest(count(*) - $1::int, 0) from dispatchers),
           (select count(*) from run_history), (select count(*) from attempts)
"""


async def _witnesses(fleet: Fleet, acks: Path) -> tuple[Ledger, list[str]]:
    connection: Connection = await asyncpg.connect(fleet.postgres.dsn)
    try:
        runs = [
            Run(row["id"], row["status"], row["idempotency_key"], row["event_id"], row["epoch"], _nonce(row["output"]))
            for row in await connection.fetch(_RUNS)
        ]
        attempts = [Attempt(*row) for row in await connection.fetch(_ATTEMPTS)]
        events = {row["id"]: row["idempotency_key"] for row in await connection.fetch("select id, idempotency_key from events")}
        live = await connection.fetchval("select (select count(*) from tasks) + (select count(*) from runs)")
        unowned = await connection.fetchval(_UNOWNED)
        stuck = [str(dict(row)) for row in await connection.fetch("select * from tasks")]
        grants = await connection.fetchval(_DEAD_GRANTS, [d.process.pid for d in fleet.dispatchers if d.process is not None])
    finally:
        connection.terminate()
    return Ledger(load.read(acks), witness.read(fleet.requests), runs, attempts, events, int(live), int(grants), int(unowned)), stuck


_RUNS = """
    select r.id, r.status, r.idempotency_key, r.event_id, t.epoch, t.output
    from run_history r left join task_history t on t.tenant_id = r.tenant_id and t.run_id = r.id
"""
_ATTEMPTS = "select run_id, number, status, started_at, finished_at from attempts"
_UNOWNED = """
    select count(*) from tasks t where t.dispatcher_id is not null and not exists (select from dispatchers d where d.id = t.dispatcher_id)
"""
# A dispatcher's name ends with the number of its process.
_DEAD_GRANTS = """
    select count(*) from slot_grants g left join dispatchers d on d.id = g.dispatcher_id
    where d.id is null or not substring(d.name from '[0-9]+$')::int = any ($1::int[])
"""


def _nonce(output: bytes | None) -> str | None:
    document = json.loads(output) if output is not None else None
    return document.get("nonce") if isinstance(document, dict) else None


def _result(ledger: Ledger, sender: Load, nemesis: Nemesis, quiet_after: float, stuck: list[str]) -> Result:
    return Result(
        check(ledger),
        len({ack.key for ack in ledger.acks}),
        Counter(run.status for run in ledger.runs),
        Counter(attempt.status for attempt in ledger.attempts),
        nemesis.strikes,
        sender.answers,
        len(ledger.requests),
        quiet_after,
        max((run.epoch for run in ledger.runs), default=0),
        stuck,
    )
