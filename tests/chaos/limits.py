"""Limits in real time, while the dispatchers that keep them are killed: `python -m tests.chaos.limits`.

All that is judged was seen at the endpoints: when each attempt came, and until when its request was open. One workflow has a rate limit
with more waiting than it ever allows, so that a unit too many would show at once; others share places in concurrency groups. Dispatchers
are killed as the units of a window go out, and in its middle.

What is promised, and looked after here:

- A window starts no more than its limit. A dispatcher killed between taking a unit and sending the request takes the unit with it: that
  window starts one fewer, the next ones do not. An attempt that was under way is sent again by others once its dispatcher's lease is over,
  and takes a unit of the window it starts in, as any retry does.
- At no instant are more requests open than a group or an endpoint has room for. A place belongs to the task and outlives its dispatcher;
  what counts is the request: killing a dispatcher closes its connections, and the attempt that follows comes a lease later. An attempt
  whose successor has come is over, whatever its handler still does.
- Afterwards nothing is held: no place in any group, and every slot can be filled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg

from dispatcher.clock import SystemClock
from dispatcher.engine.definitions.flow import SECONDS, Duration
from dispatcher.store.database import Connection
from tests.bench.client import Client
from tests.bench.system import HOST, pause, workspace
from tests.chaos.fleet import Fleet, running
from tests.world.endpoint import Arrival, Endpoint

SLOTS = 12
SHARED = {"name": "shared", "max_runs": 3}
GROUPS: dict[str, list[dict[str, Any]]] = {
    "queue": [{"expression": "input.key", "max_runs": 2}],
    "chain": [{"expression": "input.key", "max_runs": 1}, SHARED],
    "shared": [SHARED],
}
RATED, FILLING = "rated", "filling"
COMMON: dict[str, Any] = {"body": "v1", "schedule_timeout": "2h", "execution_timeout": "30s", "retries": 3}
EARLY = timedelta(milliseconds=10)  # windows may be shorter by this: clocks and timers are not exacter
LATE = timedelta(seconds=1)  # after the end of a window a start of it may come
SHORT = timedelta(seconds=10)  # windows in which a busy machine may not get to start all they allow
_POLL_SECONDS = 0.02
_QUIET_SECONDS = 60.0
_clock = SystemClock()


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and how hard: windows with kills, and how many a window allows."""

    seed: int
    duration: Duration = "MINUTE"
    allowed: int = 10
    windows: int = 3
    dispatchers: int = 3

    @property
    def window(self) -> timedelta:
        """How long one is."""
        return timedelta(seconds=SECONDS[self.duration])


@dataclass(slots=True)
class Seen:
    """What the endpoints saw: starts of what is rate limited, requests open at each moment, and what was too many."""

    rng: random.Random
    starts: list[tuple[datetime, str, int]] = field(default_factory=list)
    attempts: set[tuple[str, int]] = field(default_factory=set)
    open: list[Arrival] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    most: Counter[tuple[str, ...]] = field(default_factory=Counter)
    done: set[str] = field(default_factory=set)
    left: Counter[str] = field(default_factory=Counter)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)

    def rated(self, arrival: Arrival) -> None:
        """A start that took a unit."""
        self.starts.append((_clock.now(), arrival.json["run_id"], arrival.json["attempt"]))
        self._note(arrival)
        self._later(arrival, 0.0 if self.rng.random() < 0.8 else 0.4)

    def grouped(self, arrival: Arrival) -> None:
        """A request that fills places until it is answered or hung up on, or its successor comes."""
        self._note(arrival)
        run_id = arrival.json["run_id"]
        self.open = [a for a in self.open if not a.answered.is_set() and not a.hung_up.is_set() and a.json["run_id"] != run_id]
        self.open.append(arrival)
        self._count()
        if arrival.json["workflow"] != FILLING:
            self._later(arrival, self.rng.choice([0.02, 0.05, 0.1, 1.0]))

    def _note(self, arrival: Arrival) -> None:
        attempt = arrival.json["run_id"], arrival.json["attempt"]
        if attempt in self.attempts:
            self.wrong.append(f"attempt {attempt[1]} of {attempt[0]} came twice")
        self.attempts.add(attempt)
        self.stirred.set()

    def _count(self) -> None:
        held, room = Counter[tuple[str, ...]](), dict[tuple[str, ...], int]()
        for arrival in self.open:
            for group, most in _groups(arrival.json):
                held[group] += 1
                room[group] = most
        self.wrong += [f"{group}: {n} of {room[group]}" for group, n in held.items() if n > room[group]]
        self.most |= held

    def _later(self, arrival: Arrival, seconds: float) -> None:
        def answer() -> None:
            if arrival.hung_up.is_set():
                return
            if self.rng.random() < 0.1 and arrival.json["attempt"] == 1:
                arrival.answer(500, {"error": {"message": "once"}}, task_retry="true")
            else:
                if arrival.json["run_id"] not in self.done:
                    self.done.add(arrival.json["run_id"])
                    self.left[arrival.json["workflow"]] -= 1
                arrival.answer(200, 1)

        asyncio.get_running_loop().call_later(seconds, answer)


def _groups(push: dict[str, Any]) -> list[tuple[tuple[str, ...], int]]:
    """What an attempt fills a place of, by the test's own reading of what is declared."""
    found: list[tuple[tuple[str, ...], int]] = [(("slots",), SLOTS)]
    for rule in GROUPS.get(push["workflow"], ()):
        name = ("shared",) if "name" in rule else (push["workflow"], push["input"]["key"])
        found.append((name, rule["max_runs"]))
    return found


@dataclass(frozen=True, slots=True)
class Window:
    """One window: when it began, how many starts came in it, how many of them right at its beginning, and how many attempts were leased in
    it that no endpoint has seen: a killed dispatcher may have taken a unit for each.
    """

    begun: datetime
    starts: int
    early: int
    lost: int


@dataclass(frozen=True, slots=True)
class Report:
    """What happened. `broken` is empty when every promise was kept. `calm` is how many started in each full window after the last
    kill, while more waited.
    """

    windows: list[Window]
    calm: list[int]
    kills: int
    resent: int
    grouped: int
    most: Counter[tuple[str, ...]]
    broken: list[str]


@dataclass(slots=True)
class Storm:
    """A fleet, what its endpoints see, and what is done to it."""

    plan: Plan
    fleet: Fleet
    seen: Seen
    rng: random.Random
    begun: list[datetime] = field(default_factory=list)
    stopping: bool = False
    kills: int = 0
    _made: int = 0

    async def run(self, connection: Connection) -> Report:
        """Kill for so many windows, let what is left come to its end, and report."""
        feeding = asyncio.create_task(self._feed())
        watching = asyncio.create_task(self._watch(connection))
        try:
            for n in range(1, self.plan.windows + 1):
                await self._strike(n)
            await self.fleet.ready()
            await self._until(_UNBURIED, len(self.fleet.dispatchers))
            calm, self.stopping = _clock.now(), True
            await feeding
            await self._start(RATED, max(3 * self.plan.allowed - self.seen.left[RATED], 1))
            await self._until(_LIVE)
            await self._fill()
        finally:
            for task in (feeding, watching):
                task.cancel()
            await asyncio.wait([feeding, watching])
        return await self._report(connection, calm)

    async def _strike(self, n: int) -> None:
        """Kill somebody as the first units of a window go out, and somebody in its middle."""
        while len(self.begun) < n or not self.seen.starts or self.seen.starts[-1][0] < self.begun[n - 1]:
            self.seen.stirred.clear()
            await asyncio.wait([asyncio.ensure_future(self.seen.stirred.wait())], timeout=_POLL_SECONDS)
        await self._kill()
        middle = self.begun[n - 1] + self.plan.window / 2
        await pause(max((middle - _clock.now()).total_seconds(), 0))
        await self._kill()

    async def _kill(self) -> None:
        """One of those at work, so long as another is."""
        living = [n for n, dispatcher in enumerate(self.fleet.dispatchers) if dispatcher.at_work]
        if len(living) > 1:
            await self.fleet.kill(self.rng.choice(living))
            self.kills += 1

    async def _watch(self, connection: Connection) -> None:
        """Note when windows begin. Their counts are left to the scheduler."""
        while True:
            moment = await connection.fetchval("select refilled_at from rate_limits where key = $1", RATED)
            if moment is not None and moment not in self.begun[-1:]:
                self.begun.append(moment)
                self.seen.stirred.set()
            await pause(_POLL_SECONDS)

    async def _feed(self) -> None:
        """Keep more waiting than may start."""
        while not self.stopping:
            for workflow, least in ((RATED, 2 * self.plan.allowed), *((name, 20) for name in GROUPS)):
                if self.seen.left[workflow] < least:
                    await self._start(workflow, least // 2)
            await pause(0.1)

    async def _start(self, workflow: str, count: int) -> None:
        self._made += 1
        runs = [
            {"workflow": workflow, "input": {"key": self.rng.choice("ab")}, "idempotency_key": f"{self._made}-{n}"} for n in range(count)
        ]
        while not await self._sent({"runs": runs}):
            await pause(0.1)
        self.seen.left[workflow] += count

    async def _sent(self, document: dict[str, Any]) -> bool:
        """Whether a bulk was taken by one of the dispatchers at work."""
        living = [dispatcher for dispatcher in self.fleet.dispatchers if dispatcher.at_work]
        client = Client(HOST, self.rng.choice(living or self.fleet.dispatchers).port, self.fleet.token)
        try:
            async with asyncio.timeout(2):
                reply = await client.request("POST", "/v1/runs/bulk", json.dumps(document).encode())
        except (OSError, TimeoutError):
            return False
        finally:
            client.close()
        assert reply.status < 400 or reply.status >= 500, reply.body
        return reply.status < 400 and all("id" in row for row in reply.json()["rows"])

    async def _until(self, sql: str, *arguments: object) -> None:
        """Wait until there is none of it any more; windows still pass meanwhile."""
        async with asyncio.timeout(_QUIET_SECONDS + 6 * self.plan.window.total_seconds()):
            connection: Connection = await asyncpg.connect(self.fleet.postgres.dsn)
            try:
                while await connection.fetchval(sql, *arguments):
                    await pause(0.05)
            finally:
                connection.terminate()

    async def _fill(self) -> None:
        """Every slot can be filled, at once: none was lost on the way."""
        await self._start(FILLING, SLOTS)
        async with asyncio.timeout(_QUIET_SECONDS):
            while sum(arrival.json["workflow"] == FILLING for arrival in self.seen.open) < SLOTS:
                await pause(_POLL_SECONDS)
        for arrival in self.seen.open:
            arrival.answer(200, 1)
        await self._until(_LIVE)

    async def _report(self, connection: Connection, calm: datetime) -> Report:
        rows = await connection.fetch(_LOST, RATED)
        lost = [row["started_at"] for row in rows if (row["run_id"], row["number"]) not in self.seen.attempts]
        windows = _windows(self.begun, self.seen.starts, lost)
        fresh = max(at for at, _, number in self.seen.starts if number == 1)  # this one waited all the time
        full = [one.starts for one, after in pairwise(windows) if one.begun > calm and after.begun <= fresh]
        idle = [count for count in full if count < self.plan.allowed and self.plan.window > SHORT]
        held = await connection.fetch("select key, held, waiting from gates where held <> 0 or waiting <> 0")
        failed = await connection.fetch("select id, status from run_history where status <> 'succeeded'")
        broken = [
            *self.seen.wrong,
            *_broken(self.plan, windows),
            *[f"{count} started in a calm window, though more waited" for count in idle],
            *[f"places are held by nobody: {dict(row)}" for row in held],
            *[f"run {row['id']} is {row['status']}" for row in failed],
        ]
        resent = sum(number > 1 for _, number in self.seen.attempts)
        return Report(windows, full, self.kills, resent, len(self.seen.attempts) - len(self.seen.starts), self.seen.most, broken)


# Dispatchers that were killed and are not buried yet, and what they have left.
_UNBURIED = """
    select greatest((select count(*) from dispatchers) - $1::int, 0)
           + (select count(*) from slot_grants g where not exists (select from dispatchers d where d.id = g.dispatcher_id))
           + (select count(*) from tasks t where t.dispatcher_id is not null
              and not exists (select from dispatchers d where d.id = t.dispatcher_id))
"""
_LIVE = "select (select count(*) from tasks) + (select count(*) from runs)"
_LOST = """
    select a.run_id, a.number, a.started_at from attempts a join run_history r on r.tenant_id = a.tenant_id and r.id = a.run_id
    join workflows w on w.tenant_id = r.tenant_id and w.id = r.workflow_id where w.name = $1 and a.status = 'lost'
"""


def _windows(begun: Sequence[datetime], starts: Sequence[tuple[datetime, str, int]], lost: Sequence[datetime]) -> list[Window]:
    found = []
    for begin, end in zip(begun, [*begun[1:], datetime.max.replace(tzinfo=UTC)], strict=True):
        came = [at for at, _, _ in starts if begin <= at < end]
        found.append(Window(begin, len(came), sum(at < begin + LATE for at in came), sum(begin <= at < end for at in lost)))
    return found


def _broken(plan: Plan, windows: Sequence[Window]) -> list[str]:
    """Windows that began too early, or started more than they may; or fewer, where that cannot have been a matter of moments.

    A unit taken right before the end of a window may come right after it.
    """
    wrong, room = [], 0
    for n, window in enumerate(windows):
        if n and window.begun - windows[n - 1].begun < plan.window - EARLY:
            wrong.append(f"window {n + 1} began {window.begun - windows[n - 1].begun} after the last")
        late = min(max(window.starts - plan.allowed, 0), window.early, room)
        room = plan.allowed - (window.starts - late)
        if room < 0:
            wrong.append(f"{window.starts} of {plan.allowed} started in window {n + 1}")
        if n < plan.windows and plan.window > SHORT and room > window.lost:
            wrong.append(
                f"{window.starts} of {plan.allowed} started in window {n + 1}, though more waited and {window.lost} may have been lost"
            )
    return wrong


async def storm(directory: Path, plan: Plan) -> Report:
    """Run one."""
    rng = random.Random(plan.seed)
    seen = Seen(random.Random(plan.seed + 1))
    async with running(directory, plan.dispatchers, endpoints=False) as fleet:
        rated, grouped = await Endpoint.start(), await Endpoint.start()
        rated.way, grouped.way = seen.rated, seen.grouped
        connection: Connection = await asyncpg.connect(fleet.postgres.dsn)
        try:
            await _register(fleet, plan, rated.url, grouped.url)
            return await Storm(plan, fleet, seen, rng).run(connection)
        finally:
            connection.terminate()
            await rated.close()
            await grouped.close()


async def _register(fleet: Fleet, plan: Plan, rated: str, grouped: str) -> None:
    client = Client(HOST, fleet.dispatchers[0].port, fleet.token)
    await client.expect("PUT", f"/v1/rate-limits/{RATED}", {"limit": plan.allowed, "duration": plan.duration})
    limited = [{"name": RATED, "rate_limits": [{"static_key": RATED, "units": 1}], **COMMON}]
    await client.expect("PUT", "/v1/endpoints/rated", {"url": rated, "slots": 600, "handlers": limited})
    handlers = [{"name": name, "concurrency": rules, **COMMON} for name, rules in GROUPS.items()]
    await client.expect(
        "PUT", "/v1/endpoints/grouped", {"url": grouped, "slots": SLOTS, "handlers": [*handlers, {"name": FILLING, **COMMON}]}
    )
    client.close()


def _tell(plan: Plan, report: Report) -> None:
    print(f"{plan.allowed} a {plan.duration.lower()}, {plan.dispatchers} dispatchers, {report.kills} kills, seed {plan.seed}")
    for n, window in enumerate(report.windows, 1):
        lost = f", {window.lost} lost with a dispatcher" if window.lost else ""
        print(f"  window {n} from {window.begun:%H:%M:%S.%f}: {window.starts} started{lost}")
    print(f"{report.calm} started in full windows after the last kill; {report.resent} attempts sent again")
    most = ", ".join(f"{' '.join(group)} {n}" for group, n in sorted(report.most.items()))
    print(f"{report.grouped} requests in groups; most at once: {most}")
    print("\n".join(report.broken) or "every promise kept")


async def _run(plan: Plan) -> bool:
    async with workspace() as directory:
        report = await storm(directory, plan)
    _tell(plan, report)
    return not report.broken


def main() -> None:
    """Ten a minute over three windows, with two kills in each; exit 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.limits", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--duration", choices=["SECOND", "MINUTE", "HOUR"], default="MINUTE")
    parser.add_argument("--allowed", type=int, default=10)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--dispatchers", type=int, default=3)
    plan = Plan(**vars(parser.parse_args()))
    sys.exit(0 if asyncio.run(_run(plan)) else 1)


if __name__ == "__main__":
    main()
