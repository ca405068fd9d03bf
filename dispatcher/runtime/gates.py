"""Letting tasks through their gates, and sending away those a gate does not keep.

A task whose gates all have room takes its places in the statement that writes it. Where one has none, it is written to stand in line,
and this process remembers the gate as crowded: whoever comes next stands in line at once. Rows say when a gate has something to look at,
so any process can do it, and one that dies leaves nothing undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from dispatcher.engine.admission import Queue
from dispatcher.engine.concurrency import Member, dismissed
from dispatcher.runtime.cancellation import Cancellation
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory, Picture
from dispatcher.runtime.signals import Signals
from dispatcher.settings import Settings
from dispatcher.store import gate_limits, gates
from dispatcher.store.database import Database
from dispatcher.store.gates import Passed, Standing, Waking
from dispatcher.store.intake import ASIDE, NewRun

_log = logging.getLogger(__name__)

_SET = 200  # gates in one look, dealt out evenly to the tenants that have any
_PASS_AT_ONCE = 1_000
_ROUSED = 1_000  # gates of a limit that has ended, at a time
_CROWDED_KEPT = 100_000
_TIMED_EVERY = timedelta(seconds=1)
_LOCKED_SECONDS = 0.001
_LONGEST_LOCKED_SECONDS = 0.02
_LATE = "No place in its concurrency group became free within its schedule timeout."
RunKey = tuple[int, str]


class Gates:
    """One dispatcher's way of letting tasks through."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        capacity: Capacity,
        cancellation: Cancellation,
        signals: Signals,
        settings: Settings,
    ) -> None:
        self._misconfig_ttl = timedelta(seconds=settings.misconfig_ttl)
        self._database = database
        self._directory = directory
        self._capacity = capacity
        self._cancellation = cancellation
        self._signals = signals
        self._crowded: set[str] = set()
        self._queueing = True
        self._heard = 0
        self._stuck = 0.0
        self._timed_at: datetime | None = None
        self._looked: dict[int, str] = {}
        """The gate of each tenant that was looked at last."""
        self._rousing: dict[tuple[int, str], str] = {}
        """Shared limits that have ended, by tenant and name, and how far those are roused that wait for them."""
        self.wake: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_graphs: Callable[[list[RunKey]], None] = lambda _runs: None

    # ---- on the way in

    def assign(self, runs: Iterable[NewRun], crowded: set[str], now: datetime) -> None:
        """Say of new runs which take places in their gates at once: those with no crowded gate before them. They arrive in this order."""
        behind = set(crowded)
        for run in runs:
            if run.gates is None or self._aside(run):
                continue
            chain = run.gates.split(",")
            if run.run_at is not None and run.run_at > now:
                run.gates_held = 0
            elif self._returning(run) or any(gate in self._crowded or gate in behind for gate in chain):
                run.gates_held = 0
                behind.update(chain)
            else:
                run.gates_held = len(chain)

    def line_up(self, runs: Iterable[NewRun]) -> None:
        """Say of new runs that take no places at once which do not even stand in line, since nothing of their workflow can start."""
        for run in runs:
            if run.gates is not None and not self._aside(run):
                run.gates_held = 0

    def _returning(self, run: NewRun) -> bool:
        """Whether it may belong behind others that come back into line: who writes it finds out."""
        return run.requirement != "" and run.workflow_id in self._directory.pictures[run.tenant_id].returning

    def _aside(self, run: NewRun) -> bool:
        picture = self._directory.pictures[run.tenant_id]
        aside = run.workflow_id in picture.aside and not (run.workflow_id not in picture.paused and self._goes_on(run, picture))
        if aside:
            run.gates_held = ASIDE
        return aside

    def _goes_on(self, run: NewRun, picture: Picture) -> bool:
        """Whether it has to stay at an endpoint that is drained, as the child of one that does."""
        workflow = picture.by_id.get(run.workflow_id)
        hard = workflow is not None and workflow.definition.sticky == "hard"
        return hard and self._directory.goes_on(run.tenant_id, run.sticky_endpoint)

    def crowd(self, found: Iterable[str]) -> None:
        """These gates have been found to have no room."""
        if len(self._crowded) >= _CROWDED_KEPT:
            self._crowded.clear()
        self._crowded.update(found)

    def queued(self) -> None:
        """Somebody has come to stand in line: all dispatchers have to watch for places that become free."""
        self._signals.send("gated")
        self.heard()

    def freed(self, again: bool) -> None:
        """A task that held gates has let go of them, which matters where anybody waits. `again`: it comes back for them."""
        if again:
            self.queued()
        elif self._queueing:
            self.wake()

    def promoted(self, queues: Iterable[Queue]) -> None:
        """Tasks have come due: those that have gates to pass stand in line now."""
        for tenant_id, number, _ in set(queues):
            picture = self._directory.pictures.get(tenant_id)
            workflow = picture.by_id.get(abs(number)) if picture is not None else None
            if workflow is None or workflow.plan is not None:
                self.queued()
                return

    def heard(self) -> None:
        """Somebody waits, here or at another dispatcher."""
        self._queueing = True
        self._heard += 1
        self.wake()

    @property
    def attentive(self) -> bool:
        """Whether somebody is known to wait: then it is worth finding out when nobody does any more."""
        return self._queueing or bool(self._crowded)

    # ---- the loop

    async def tick(self, now: datetime) -> datetime | None:
        """Look at gates where something has happened; answers when to look again, where that is at once."""
        if self._timed_at is None or now >= self._timed_at:
            self._timed_at = now + _TIMED_EVERY
            await self._time(now)
        if self._rousing:
            await self._rouse()
        heard = self._heard
        waking = await gates.waking(self._database, max(_SET // (len(self._looked) or 1), 1), self._looked)
        self._looked = {gate.tenant_id: gate.id for gate in waking}
        if not waking:
            self._stuck = 0.0
            # Who came meanwhile may not be in the answer, and must be heard of when a place becomes free.
            if not await gates.anybody_waits(self._database) and self._heard == heard:
                self._queueing = False
                self._crowded.clear()
            return now if self._rousing else None
        going = await self._dismiss([gate for gate in waking if gate.strategy != "GROUP_ROUND_ROBIN"])
        passed = await gates.admit(self._database, waking, now, _PASS_AT_ONCE)
        self._announce(passed)
        if going or len(waking) >= _SET or any(row.gate is None for row in passed):
            self._stuck = 0.0
        else:  # where nobody could be let through, whoever is in the way needs a moment, and the longer it took the longer
            self._stuck = min(self._stuck * 2 + _LOCKED_SECONDS, _LONGEST_LOCKED_SECONDS)
            await asyncio.sleep(self._stuck)
        return now

    async def _time(self, now: datetime) -> None:
        """What happens because time passes: runs that are due stand in line, those that stood too long go, changed limits end."""
        await gates.enter(self._database, now, _PASS_AT_ONCE)
        ended = await gate_limits.expire(self._database, now)
        self._rousing |= {(row.tenant_id, row.name): gate_limits.FIRST for row in ended}
        for run in await gates.late(self._database, now, _PASS_AT_ONCE, self._misconfig_ttl):
            await self._cancellation.cancel(run.tenant_id, [run.id], _LATE)

    async def _rouse(self) -> None:
        """Have one more page of gates looked at whose limit has ended. Others are not to wait for all of them."""
        tenant_id, name = next(iter(self._rousing))
        last = await gate_limits.rouse(self._database, tenant_id, name, self._rousing[tenant_id, name], _ROUSED)
        if last is None:
            del self._rousing[tenant_id, name]
        else:
            self._rousing[tenant_id, name] = last

    async def _dismiss(self, preempting: Sequence[Waking]) -> bool:
        """Send away whom these gates do not keep; False where they keep all."""
        if not preempting:
            return False
        sent = False
        standing: dict[tuple[int, str], list[Standing]] = {}
        for row in await gates.standing(self._database, preempting):
            standing.setdefault((row.tenant_id, row.gate), []).append(row)
        for gate in preempting:
            members = [_member(row) for row in standing.get((gate.tenant_id, gate.id), ())]
            going = dismissed(gate.strategy, gate.most, members)
            reason = _reason(gate)
            sent = sent or bool(going)
            for member in going:
                if member.node is None:
                    await self._cancellation.cancel(gate.tenant_id, [member.run_id], reason)
            await self._cancellation.dismiss([(gate.tenant_id, m.run_id, m.node) for m in going if m.node is not None], reason)
        return sent

    def _announce(self, passed: Sequence[Passed]) -> None:
        ready, graphs = False, list[RunKey]()
        for row in passed:
            if row.gate is not None:
                if row.left > 0:
                    self._crowded.add(row.gate)
                else:
                    self._crowded.discard(row.gate)
            elif row.run_id is not None:
                graphs.append((row.tenant_id, row.run_id))
            elif row.workflow_id is not None:
                self._capacity.backlog.add((row.tenant_id, row.workflow_id, row.requirement))
                ready = True
        if ready:
            self.on_ready()
        if graphs:
            self.on_graphs(graphs)

    # ---- from time to time

    async def audit(self, now: datetime, keep: timedelta, limit: int) -> None:
        """Count again from the rows, and forget gates nobody has used for a while."""
        for drift in await gates.audit(self._database):
            _log.error(
                "gate %s of tenant %d counted %d held and %d waiting; its rows say %d and %d",
                drift.id, drift.tenant_id, drift.was_held, drift.was_waiting, drift.held, drift.waiting,
            )  # fmt: skip
        await gate_limits.follow(self._database)
        await gates.prune(self._database, now, now - keep, limit)
        self.heard()


def _member(row: Standing) -> Member:
    return Member(row.run_id, row.node, row.arrived_at, row.holds, row.leaving)


def _reason(gate: Waking) -> str:
    group = gate.name or gate.key
    which = f" {group!r}" if group else ""
    if gate.strategy == "CANCEL_NEWEST":
        return f"The concurrency group{which} was full (at most {gate.most}), and CANCEL_NEWEST keeps those that came first."
    return f"Newer runs took its place in the concurrency group{which} (at most {gate.most}): CANCEL_IN_PROGRESS keeps the last."
