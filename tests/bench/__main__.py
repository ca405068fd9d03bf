"""`make bench`: what a run costs, in time and in processor time, beside a peer if one is named.

    python -m tests.bench [--phases abe,flat,gates,fair,graphs] [--rounds 3] [--runs 2000] [--quick]

PEER=restate measures that peer in the same rounds; PEERS_HOME says where its scripts are. Loads:
(a) runs each triggered by its own call, 32 in flight; (b) ten triggers a second, waiting for results; (e) triggers in bulk;
(flat) the same with 100,000 runs queued and 1,000,000 finished. Each with batches and with one POST per run.
(gates) what concurrency and rate limits cost where there is room;
(fair) fifty runs behind 100,000 of another tenant, and of another concurrency group;
(graphs) a chain of 200 tasks, a fan of 1,000, and many diamonds of 4, where a task counts as a run does.
(c) durable tasks of ten steps, (d) a parent of a hundred children; (suspended) what ten thousand tasks that sleep hold; (logs) what goes
over the wire for a task of 1,000 steps of 1 KB that waits 50 times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import durable, fairness, flat, gates, graphs, loads, logs, peer, report
from tests.bench.loads import Measured
from tests.bench.peer import PeerMeasured
from tests.bench.system import System, running, workspace

FLAVOURS = ("batched", "single")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each. `bulk_runs` is the size of (e), `queued` and `finished` what (flat) fills the store with."""

    phases: str = "abe,flat,gates,fair,graphs"
    rounds: int = 3
    runs: int = 2_000
    seconds: float = 8.0
    bulk_runs: int = 30_000
    durable: int = 400  # tasks of (c)
    suspended: int = 10_000
    queued: int = 100_000
    finished: int = 1_000_000
    diamonds: int = 500
    crowd: int = 100_000  # runs before fifty others
    times: int = 15  # these fifty
    signatures: str = "v1a"
    peer: str = ""


QUICK = Plan(rounds=1, runs=150, seconds=0.5, bulk_runs=1_500, queued=700, finished=1_000, diamonds=20, crowd=3_000, times=4)


@dataclass(slots=True)
class Bench:
    """One session: results gather by load, over rounds."""

    plan: Plan
    say: Callable[[str], None]
    ours: dict[str, list[Measured]] = field(default_factory=dict)
    peers: list[PeerMeasured] = field(default_factory=list)
    claims: list[flat.ClaimCost] = field(default_factory=list)
    idle: list[loads.Idle] = field(default_factory=list)
    suspended: list[durable.Suspended] = field(default_factory=list)
    fair: list[fairness.Fairness] = field(default_factory=list)
    logs: list[logs.LogCost] = field(default_factory=list)

    async def run(self, system: System) -> None:
        """All loads that were asked for."""
        for flavour in FLAVOURS:
            await loads.warm_up(system, flavour)
        for number in range(self.plan.rounds):
            self.say(f"round {number + 1} of {self.plan.rounds}")
            await self._round(system, number)
            if self.plan.peer:
                self.peers.append(await peer.measure(self.plan.peer, self.plan.runs, self.plan.seconds, self.plan.phases.split(",")[0]))
        self.idle.append(await loads.idle(system, self.plan.seconds))
        if "suspended" in self.plan.phases.split(","):
            self.suspended.append(await durable.suspended(system, self.plan.suspended, self.plan.seconds))
            self.say(f"  {self.suspended[-1]}")
        if "fair" in self.plan.phases.split(","):
            self.fair = await fairness.measure(system, self.plan.crowd, self.plan.times)
            for found in self.fair:
                self.say(f"  {found}")
        if "flat" in self.plan.phases:
            await self._flat(system)
            self.idle.append(await loads.idle(system, self.plan.seconds))

    async def _round(self, system: System, number: int) -> None:
        for flavour in FLAVOURS:
            if "a" in self.plan.phases.split(",")[0]:
                self._keep(await loads.throughput(system, flavour, self.plan.runs))
            if "b" in self.plan.phases.split(",")[0]:
                self._keep(await loads.latency(system, flavour, self.plan.seconds))
            if "e" in self.plan.phases.split(",")[0]:
                self._keep(await loads.bulk(system, flavour, self.plan.bulk_runs if flavour == "batched" else self.plan.bulk_runs // 3))
            if "c" in self.plan.phases.split(",")[0]:
                self._keep(await durable.steps(system, flavour, self.plan.durable))
            if "d" in self.plan.phases.split(",")[0]:
                self._keep(await durable.fanout(system, flavour))
        if "gates" in self.plan.phases.split(","):
            for limited in gates.rotated(number):
                self._keep(await gates.measure(system, limited, self.plan.runs))
        if "graphs" in self.plan.phases.split(","):
            for load in graphs.loads(self.plan.diamonds):
                self._keep(await graphs.measure(system, load))

    async def _flat(self, system: System) -> None:
        await loads.warm_up(system, flat.BACKLOG)
        few = await flat.enqueue(system, min(100, self.plan.queued))
        self.claims.append(await flat.claim_cost(system))
        self._keep(await flat.drain(system, few))
        many = await flat.enqueue(system, self.plan.queued)
        self.claims.append(await flat.claim_cost(system))
        await self._again(system, f"{self.plan.queued:,} queued")
        self._keep(await flat.drain(system, many))
        self.say(f"filling history with {self.plan.finished:,} finished runs")
        await flat.fill_history(system, self.plan.finished)
        await self._again(system, f"{self.plan.finished:,} finished")

    async def _again(self, system: System, what: str) -> None:
        for flavour in FLAVOURS:
            for _ in range(self.plan.rounds):
                self._keep(await loads.throughput(system, flavour, self.plan.runs), what)
                self._keep(await loads.latency(system, flavour, self.plan.seconds), what)

    def _keep(self, measured: Measured, what: str = "") -> None:
        measured.load += f" with {what}" if what else ""
        self.ours.setdefault(measured.load, []).append(measured)
        self.say(f"  {measured.load:40} {measured.rate:10,.0f} runs/s {measured.cpu_total:8.3f} CPU ms per run")

    def lines(self) -> list[report.Line]:
        """The table's rows."""
        found = [report.line(rounds) for rounds in self.ours.values()]
        return found + (report.peer_lines(self.peers, self.plan.runs) if self.peers else [])


async def bench(plan: Plan, say: Callable[[str], None]) -> tuple[Bench, str]:
    """Measure; the results, and which Postgres they are of. Raises AssertionError when a run was lost or ran twice."""
    if plan.peer:
        peer.home()
    session = Bench(plan, say)
    async with workspace() as directory, running(directory, plan.signatures) as system:
        await session.run(system)
    if "logs" in plan.phases.split(","):
        session.logs = await logs.costs(plan.signatures)
        for cost in session.logs:
            say(f"  {cost}")
    return session, system.postgres


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", default=Plan().phases, help="letters of loads, then what else, comma-separated (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=Plan().rounds)
    parser.add_argument("--runs", type=int, default=Plan().runs, help="of (a)")
    parser.add_argument("--seconds", type=float, default=Plan().seconds, help="of (b)")
    parser.add_argument("--bulk-runs", type=int, default=Plan().bulk_runs, help="of (e)")
    parser.add_argument("--signatures", choices=("v1a", "v1"), default=Plan().signatures, help="which the endpoint verifies")
    parser.add_argument("--quick", action="store_true", help="a little of everything, to see that it works; says nothing about speed")
    parser.add_argument("--results", type=Path, default=Path("bench-results"))
    return parser.parse_args()


def main() -> None:
    """Measure, print, keep."""
    arguments = _arguments()
    given = {name: getattr(arguments, name) for name in ("phases", "rounds", "runs", "seconds", "bulk_runs", "signatures")}
    plan = QUICK if arguments.quick else Plan(**given, peer=os.environ.get("PEER", ""))
    try:
        session, postgres = _run(plan)
    except peer.PeerFailed as failed:
        sys.exit(f"the peer failed: {failed}")
    about = {**report.machine(postgres), "signatures": plan.signatures}
    found = session.lines(), session.claims, session.idle, about
    print("\n" + report.table(*found))
    print(f"\nkept as {report.write(arguments.results, *found, datetime.now(UTC))}")


def _run(plan: Plan) -> tuple[Bench, str]:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bench(plan, lambda text: print(text, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    main()
