"""A year of crons and schedules on a clock that is moved by hand, with several dispatchers that come, go, and have wrong clocks.

`python -m tests.triggers.year` is the long form. What every look of theirs has to start is reckoned beside them, from ticks counted minute
by minute; at the end the runs there are and the runs there should be are the same list.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dispatcher.app import _join
from dispatcher.clock import ManualClock
from dispatcher.delivery import Courier, EgressPolicy
from dispatcher.runtime.directory import Directory
from dispatcher.runtime.keyring import Keyring
from dispatcher.runtime.services import Services
from dispatcher.runtime.tokens import TokenMaker
from dispatcher.sealing import Sealer
from dispatcher.settings import Settings
from dispatcher.store import partitions, registry
from dispatcher.store.database import Database
from dispatcher.store.embedded import EmbeddedPostgres
from dispatcher.store.migrate import migrate
from tests.bench.system import workspace
from tests.triggers.oracle import DAY, HOUR, MINUTE, counted

KEY = bytes(range(32))
SETTINGS = Settings(dev=True, api_url="http://localhost:8400")
GRACE, TOLERANCE = timedelta(seconds=SETTINGS.cron_grace), timedelta(seconds=SETTINGS.cron_tolerance)
MISFIRE = timedelta(seconds=SETTINGS.misfire_grace)

CRONS = [
    ("30 2 * * *", "America/New_York", "run_all"),
    ("30 1 * * *", "America/New_York", "skip"),
    ("*/20 1-3 * * *", "America/New_York", "run_all"),
    ("0 * * * *", "Australia/Lord_Howe", "run_once"),
    ("15 2 * * *", "Australia/Lord_Howe", "run_all"),
    ("15 */2 * * *", "Antarctica/Troll", "run_all"),
    ("0 0 * * *", "Africa/Cairo", "skip"),
    ("0 0 * * *", "America/Santiago", "run_once"),
    ("0 9 * * 1-5", "Europe/Berlin", "skip"),
    ("0 12 1 * *", "UTC", "run_once"),
    ("59 23 31 12 *", "UTC", "run_all"),
]


class OffClock:
    """A clock that shows another time than everybody's."""

    def __init__(self, base: ManualClock) -> None:
        self.base = base
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return self.base.now() + self.ahead

    async def sleep_until(self, moment: datetime) -> None:
        await self.base.sleep_until(moment - self.ahead)


@dataclass(slots=True)
class Dispatcher:
    """One that looks; `since` is when it began to."""

    clock: OffClock
    services: Services
    stack: AsyncExitStack
    since: datetime

    @classmethod
    async def start(cls, database: Database, base: ManualClock, name: str) -> Dispatcher:
        """A process without its loops: it looks when it is told to."""
        clock, stack = OffClock(base), AsyncExitStack()
        keyring = Keyring(database, Sealer(KEY))
        tenant = await registry.create_tenant(database, "default", "Default", clock.now())
        await keyring.create_first(tenant.id, clock.now())
        directory = Directory(database, SETTINGS, keyring)
        await directory.refresh(clock.now())
        egress = EgressPolicy.parse(dev=True, allow_http=True)
        courier = Courier(egress, clock=lambda: int(clock.now().timestamp()), user_agent="dispatcher/test")
        stack.push_async_callback(courier.aclose)
        parts = _join(SETTINGS, clock, database, directory, keyring, courier, egress, TokenMaker(KEY), name)
        await parts.membership.join()
        return cls(clock, parts.services, stack, clock.now())

    async def look(self) -> None:
        """Start what is due, until nothing is."""
        again: datetime | None = self.clock.now()
        while again is not None and again <= self.clock.now():
            again = await self.services.timetable.tick(self.clock.now())


@dataclass(slots=True)
class Expected:
    """The ticks of one cron that are still to come, and those that should have started a run."""

    policy: str
    ahead: list[datetime]
    runs: Counter[datetime] = field(default_factory=Counter)
    place: int = 0

    def look(self, now: datetime, since: datetime) -> None:
        """What somebody finds who looks now, and has looked since."""
        found = []
        while self.place < len(self.ahead) and self.ahead[self.place] <= now:
            found.append(self.ahead[self.place])
            self.place += 1
        late_from = min(max(since, now - GRACE), now - TOLERANCE)
        missed, late = [at for at in found if at < late_from], [at for at in found if at >= late_from]
        self.runs.update({"skip": [], "run_once": missed[-1:], "run_all": missed}[self.policy] + late)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how many dispatchers, and how often something happens that is out of the ordinary."""

    start: datetime
    days: int
    dispatchers: int
    seed: int
    often: float = 1.0


@dataclass(slots=True)
class Report:
    """What was started. `wrong` lists what was not as it should be."""

    runs: int = 0
    looks: int = 0
    happenings: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Year:
    """One simulation."""

    def __init__(self, database: Database, plan: Plan) -> None:
        self.database = database
        self.plan = plan
        self.clock = ManualClock(plan.start)
        self.end = plan.start + plan.days * DAY
        self.random = random.Random(plan.seed)
        self.dispatchers: list[Dispatcher] = []
        self.crons: dict[str, Expected] = {}
        self.schedules: dict[str, tuple[datetime, str]] = {}
        self.settled: dict[str, str] = {}
        self.report = Report()
        self._names = 0

    async def run(self) -> Report:
        """From the first day to the last."""
        for _ in range(self.plan.dispatchers):
            await self._join()
        await self._register()
        while self.clock.now() < self.end:
            await self._step()
        await self._compare()
        for one in self.dispatchers:
            await one.stack.aclose()
        return self.report

    async def _join(self) -> None:
        self._names += 1
        one = await Dispatcher.start(self.database, self.clock, f"year-{self._names}")
        self.dispatchers.append(one)
        await one.look()

    @property
    def _tenant_id(self) -> int:
        return self.dispatchers[0].services.directory.slugs["default"]

    async def _register(self) -> None:
        first = self.dispatchers[0].services
        triggers = [{"expression": e, "timezone": z, "missed": m, "name": f"{e} {z}"} for e, z, m in CRONS]
        entry: dict[str, Any] = {"name": "work", "on_crons": triggers}
        await first.registration.put(self._tenant_id, "plain", url="http://127.0.0.1:9/", handlers=[entry])
        rows = await self.database.fetch("select id, name from crons")
        ids = {row["name"]: row["id"] for row in rows}
        for expression, zone, missed in CRONS:
            ticks = counted(expression, zone, self.plan.start, self.end + 2 * DAY)
            self.crons[ids[f"{expression} {zone}"]] = Expected(missed, ticks)

    async def _step(self) -> None:
        """Mostly time goes on to what is due next; sometimes something happens before it."""
        chance = self.random.random() / self.plan.often
        if chance < 0.004:
            await self._restart_one()
        elif chance < 0.008:
            await self._all_away()
        elif chance < 0.010:
            await self._wrong_clock()
        elif chance < 0.012:
            await self._jump()
        elif chance < 0.03:
            await self._plan_run()
        await self._go_on()

    async def _go_on(self) -> None:
        """To the moment of the next tick, or a little behind it."""
        coming = [one.ahead[one.place] for one in self.crons.values() if one.place < len(one.ahead)]
        coming += [at for name, (at, _) in self.schedules.items() if name not in self.settled]
        behind = timedelta(seconds=self.random.choice([0, 0, 0, 1, 20]))
        self.clock.advance(max(min(coming, default=self.end) - self.clock.now(), timedelta(0)) + behind)
        await self._look()

    async def _look(self) -> None:
        """All look at once."""
        self.report.looks += 1
        await asyncio.gather(*(one.look() for one in self.dispatchers))
        now = max(one.clock.now() for one in self.dispatchers)
        since = min(one.since for one in self.dispatchers if one.clock.now() == now)
        for expected in self.crons.values():
            expected.look(now, since)
        for name, (at, missed) in self.schedules.items():
            if name not in self.settled and at <= now:
                late = at >= min(max(since, now - GRACE), now - TOLERANCE)
                self.settled[name] = "started" if late or (missed == "run_once" and now - at <= MISFIRE) else "missed"

    async def _restart_one(self) -> None:
        """One goes, in the middle of looking, and another comes."""
        self.report.happenings["restarts"] += 1
        one = self.random.choice(self.dispatchers)
        if one.clock.ahead or len(self.dispatchers) < 2:
            return
        self.dispatchers.remove(one)
        await one.stack.aclose()
        await self._join()

    async def _all_away(self) -> None:
        """Nobody is there for minutes, hours or days."""
        self.report.happenings["outages"] += 1
        for one in self.dispatchers:
            await one.stack.aclose()
        self.dispatchers.clear()
        self.clock.advance(self.random.choice([10 * MINUTE, HOUR, 5 * HOUR, DAY, 3 * DAY]) + timedelta(seconds=self.random.randrange(3600)))
        one = await Dispatcher.start(self.database, self.clock, "back")
        self.dispatchers.append(one)
        await self._look()
        for _ in range(self.plan.dispatchers - 1):
            await self._join()

    async def _wrong_clock(self) -> None:
        """One's clock runs ahead for a while, and is put right again: what it started early does not come again."""
        self.report.happenings["wrong clocks"] += 1
        one = self.random.choice(self.dispatchers)
        one.clock.ahead = self.random.choice([30 * MINUTE, 90 * MINUTE, 26 * HOUR])
        await self._look()
        for _ in range(3):
            self.clock.advance(20 * MINUTE)
            await self._look()
        one.clock.ahead = timedelta(0)
        await self._look()

    async def _jump(self) -> None:
        """Everybody's clock jumps, as after a suspended machine wakes."""
        self.report.happenings["jumps"] += 1
        self.clock.advance(self.random.choice([5 * MINUTE, 2 * HOUR, 7 * HOUR]))
        await self._look()

    async def _plan_run(self) -> None:
        from dispatcher.runtime.schedules import ScheduleWanted

        at = self.clock.now() + timedelta(seconds=self.random.randrange(60, 40 * 3600))
        missed = self.random.choice(["run_once", "skip"])
        wanted = ScheduleWanted("work", at, b"{}", None, None, missed, None)
        row = await self.random.choice(self.dispatchers).services.schedules.create(self._tenant_id, wanted)
        self.schedules[row.id] = (at, missed)
        self.report.happenings["schedules"] += 1

    async def _compare(self) -> None:
        rows = await self.database.fetch("select trigger, idempotency_key from runs")
        found: dict[str, Counter[datetime]] = {}
        for row in rows:
            name, _, tick = row["idempotency_key"].partition("@")
            found.setdefault(name, Counter())[datetime.fromisoformat(tick)] += 1
        self.report.runs = len(rows)
        for name, expected in self.crons.items():
            self._differ(name, expected.runs, found.get(name, Counter()))
        for row in await self.database.fetch("select id, status, run_at from schedules"):
            wanted = self.settled.get(row["id"], "scheduled")
            if row["status"] != wanted:
                self.report.wrong.append(f"{row['id']} is {row['status']} and should be {wanted}")
            started = Counter([row["run_at"]] if wanted == "started" else [])
            self._differ(row["id"], started, found.get(row["id"], Counter()))

    def _differ(self, name: str, expected: Counter[datetime], found: Counter[datetime]) -> None:
        for at in sorted({*expected, *found}):
            if expected[at] != found[at]:
                self.report.wrong.append(f"{name} at {at.isoformat()}: {found[at]} runs and not {expected[at]}")


async def simulate(database: Database, plan: Plan) -> Report:
    """One simulation on an empty database."""
    await partitions.make(database, plan.start.date(), 1)
    return await Year(database, plan).run()


async def _long(plan: Plan) -> bool:
    async with workspace() as directory:
        postgres = await EmbeddedPostgres.start(Path(directory) / "pg", settings={"fsync": "off", "synchronous_commit": "off"})
        try:
            await migrate(postgres.dsn, plan.start)
            async with await Database.open(postgres.dsn, min_size=2, max_size=12) as database:
                report = await simulate(database, plan)
        finally:
            await postgres.stop()
    happened = ", ".join(f"{count} {what}" for what, count in sorted(report.happenings.items()))
    print(
        f"{plan.dispatchers} dispatchers, {plan.days} days from {plan.start.date()}, seed {plan.seed}: {report.looks:,} looks, {happened}"
    )
    print(f"{report.runs:,} runs started, {len(report.wrong)} not as they should be")
    print("".join(f"  {line}\n" for line in report.wrong[:20]), end="")
    return not report.wrong


def main() -> None:
    """Two dispatchers for a year, then three; exit 1 when any tick was not as its policy says."""
    parser = argparse.ArgumentParser(prog="python -m tests.triggers.year", description=main.__doc__)
    parser.add_argument("--days", type=int, default=366)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--dispatchers", type=int, nargs="*", default=[2, 3])
    arguments = parser.parse_args()
    plan = Plan(datetime(2026, 2, 1, tzinfo=UTC), arguments.days, 2, arguments.seed)
    kept = [asyncio.run(_long(replace(plan, dispatchers=count))) for count in arguments.dispatchers]
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
