"""Hints: who wakes whom, within this process and from others. Nothing depends on one; every loop would find its work without."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.app.parts import Parts
from dispatcher.engine.admission import Queue
from dispatcher.loops import Loop

_RECOUNT = timedelta(milliseconds=50)  # slots freed by callbacks are counted together, not one by one


@dataclass(slots=True)
class Hints:
    """What is done when something has happened somewhere."""

    parts: Parts
    loops: dict[str, Loop]

    def wire(self) -> None:
        """Tell every part whom to tell."""
        self._wire_work()
        self._wire_limits()
        self._wire_graphs_and_waits()
        self._wire_triggers()
        self._wire_signals()

    def _wire_work(self) -> None:
        parts, services, loops = self.parts, self.parts.services, self.loops
        parts.capacity.on_free = self._work
        parts.claims.on_stuck = loops["asides"].wake
        parts.membership.on_capacity = self._shared
        parts.settlement.on_requeued = self._requeued
        services.intake.on_backlog = parts.graphs.on_ready = self._backlogged
        parts.deliveries.on_deadline = loops["deadlines"].wake_by
        services.callbacks.on_detached_end = lambda: loops["slots"].wake_by(services.clock.now() + _RECOUNT)
        services.cancellation.on_marked = loops["cancels"].wake
        services.directory.on_change = self._registry_changed
        services.renewals.on_renewed = self._renewed

    def _wire_limits(self) -> None:
        services, loops = self.parts.services, self.loops
        services.gates.wake = services.limits.on_gates = loops["gates"].wake
        services.gates.on_ready = services.rates.on_ready = self._backlogged
        services.gates.on_graphs = self.parts.graphs.hint
        services.rates.on_parked = loops["rates"].wake_by
        services.limits.on_rates = loops["rates"].wake
        self.parts.deliveries.on_unsent = services.rates.unsent
        self.parts.settlement.on_freed = services.gates.freed
        self.parts.graphs.on_gated = services.gates.queued

    def _wire_graphs_and_waits(self) -> None:
        parts, services, wake_waits = self.parts, self.parts.services, self.loops["waits"].wake
        parts.settlement.on_waits = services.durable.on_waits = wake_waits
        parts.settlement.on_marked = self.loops["marks"].wake
        parts.waits.on_ready = services.durable.on_ready = self._backlogged
        parts.waits.cancel = services.cancellation.cancel
        parts.graphs.on_armed = lambda _: wake_waits()
        services.intake.on_awaited = lambda _: wake_waits()
        parts.graphs.on_stop = services.cancellation.stop
        for teller in (parts.waits, services.intake, services.cancellation):
            teller.on_graphs = parts.graphs.hint
        parts.settlement.on_task_over = parts.graphs.hint

    def _wire_triggers(self) -> None:
        services, loops = self.parts.services, self.loops
        services.timetable.drops = services.directory.drops
        services.crons.on_due = services.schedules.on_due = loops["timetable"].wake_by
        services.replays.on_ready = self._revived
        services.replays.on_graphs = self._graphs_revived
        services.bulk.on_made = loops["bulk"].wake
        services.bulk.go_on = lambda tenant_id, run_id: services.durable.reset(tenant_id, run_id, None, None)

    def _wire_signals(self) -> None:
        services, signals, loops = self.parts.services, self.parts.signals, self.loops
        signals.on("ready", lambda _: self._sweep())
        signals.on("gated", lambda _: services.gates.heard())
        signals.on("registry", lambda _: loops["registry"].wake())
        signals.on("finished", services.streams.finished_ids)
        signals.on("stream", services.streams.hinted)
        signals.on("cancel", lambda _: loops["cancels"].wake())
        signals.on("bulk", lambda _: loops["bulk"].wake())
        signals.on("lease", self._lease)

    # ---- what is done

    def _work(self) -> None:
        """There may be something to claim."""
        self.loops["claim"].wake()
        if self.parts.batches.wanted or self.parts.capacity.kept:
            self.loops["batches"].wake()

    def _backlogged(self) -> None:
        self._work()
        self.parts.signals.send("ready")

    def _requeued(self, queue: Queue, due_at: datetime) -> None:
        if due_at <= self.parts.services.clock.now():
            self.parts.capacity.backlog.add(queue)
            self._work()
        else:
            self.loops["timers"].wake_by(due_at)

    def _revived(self) -> None:
        self._backlogged()
        self.parts.services.gates.queued()

    def _graphs_revived(self, runs: list[tuple[int, str]]) -> None:
        self.parts.graphs.hint(runs)
        self.parts.services.gates.queued()

    def _registry_changed(self) -> None:
        self.parts.claims.sweep()
        self.parts.services.asides.look_again()
        for name in ("slots", "timetable", "gates", "asides", "renewals", "pins"):
            self.loops[name].wake()

    def _renewed(self) -> None:
        self.loops["asides"].wake()
        self.parts.claims.sweep()
        self._backlogged()

    def _shared(self, grown: bool) -> None:
        if grown:
            self._sweep()
        else:
            self._work()

    def _sweep(self) -> None:
        """There may be something to claim that this process has not heard of, or could not do anything about when it did."""
        self.parts.claims.sweep()
        self._work()

    def _lease(self, arguments: list[str]) -> None:
        for argument in arguments:
            tenant, run_id, node, epoch, moment, released = argument.split(":")
            deadline = datetime.fromtimestamp(float(moment), self.parts.services.clock.now().tzinfo)
            self.parts.deliveries.extend((int(tenant), run_id, int(node)), int(epoch), deadline, released == "1")
