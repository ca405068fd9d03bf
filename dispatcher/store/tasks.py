"""Live tasks one by one or by what has come due: for callbacks, cancels and the reaper. Finding them never decides anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.engine.attempts import Final, Sparer, State, TaskState
from dispatcher.store.database import Database
from dispatcher.store.outcomes import Applied, Guard, TaskKey
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class LiveTask:
    """A task that is not over, or `settled` while its run is not: then `status` says how it ended."""

    tenant_id: int
    run_id: str
    node: int
    workflow_id: int
    workflow_version: int
    state: State
    epoch: int
    priority: int
    app_retries: int
    infra_retries: int
    spared_since: datetime | None
    spared_by: Sparer | None
    due_at: datetime
    schedule_deadline: datetime | None
    dispatcher_id: int | None
    endpoint_id: str | None
    endpoint_version: str | None
    started_at: datetime | None
    deadline: datetime | None
    lease_until: datetime | None
    lease: timedelta | None
    slot_released: bool
    cancel_at: datetime | None
    cancel_reason: str | None
    status: Final | None
    begun: bool
    cleanup: bool
    durable: bool
    requirement: str

    def rules(self) -> TaskState:
        """The part the rules look at."""
        return TaskState(
            self.state,
            self.epoch,
            self.priority,
            self.app_retries,
            self.infra_retries,
            self.spared_since,
            self.spared_by,
            self.deadline,
            self.lease_until,
            self.lease,
            self.cancel_at is not None,
            self.begun,
            self.cleanup,
            self.durable,
        )

    def guard(self) -> Guard:
        """What a change decided on this row requires of it."""
        return Guard(self.tenant_id, self.run_id, self.node, self.epoch, self.state, self.requirement)


@dataclass(frozen=True, slots=True)
class Overdue(LiveTask):
    """A task past its schedule timeout, with how its workflow stands."""

    paused_at: datetime | None
    queue_ttl_ms: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """A running attempt whose request a dispatcher holds, and what may have become of it by a callback that another has taken."""

    tenant_id: int
    run_id: str
    node: int
    epoch: int
    deadline: datetime
    slot_released: bool

    @property
    def key(self) -> TaskKey:
        """Which task."""
        return (self.tenant_id, self.run_id, self.node)


@dataclass(frozen=True, slots=True)
class Cancelling:
    """A running attempt asked to end by `cancel_at`."""

    tenant_id: int
    run_id: str
    node: int
    epoch: int
    cancel_at: datetime
    reason: str


_LIVE = """ t.tenant_id, t.run_id, t.node, t.workflow_id, t.workflow_version, t.state, t.epoch, t.priority, t.app_retries,
           t.infra_retries, t.spared_since, t.spared_by, t.due_at, t.schedule_deadline, t.dispatcher_id, t.endpoint_id, t.endpoint_version,
           t.started_at, t.deadline, t.lease_until, t.lease, t.slot_released, t.cancel_at, t.cancel_reason, t.status,
           coalesce(t.turn, 1) > 1 or coalesce(t.log_len, 0) > 0 as begun, coalesce(t.cleanup, false) as cleanup, t.durable,
           t.requirement
"""


def _live(sql: str) -> Statement[LiveTask]:
    """What is found is read in the statement that finds it: read after it, it may be the next attempt, which has nothing to do with it."""
    return Statement(f"select{_LIVE}{sql}", LiveTask)


LOAD = _live(
    """
    from unnest($1::int[], $2::text[], $3::smallint[]) as g (tenant_id, run_id, node)
    join tasks t on t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node
    """
)

OF_RUNS = _live(
    """
    from tasks t where t.tenant_id = $1 and t.run_id = any($2::text[]) and t.state <> 'settled'
    """
)

LEASES_ENDED = _live(
    """
    from tasks t where t.lease_until <= $1 order by t.lease_until limit $2
    """
)

HELD_SINCE = Statement(
    """
    select tenant_id, run_id, node, epoch, deadline, slot_released from tasks where dispatcher_id = $1 and started_at <= $2
    """,
    Held,
)

ORPHANS = _live(
    """
    from tasks t where t.dispatcher_id = any($1::bigint[]) limit $2
    """
)

# Where every route leads to an endpoint that is broken, paused or drained nobody could have taken the task, unless it has to stay at one
# that is drained: it waits on, up to $2 since it came due. What may be about to have its time again is left alone. Whether a workflow is
# paused is read here: by a picture that is older, or newer, what has just been paused or resumed might be given up.
OVERDUE = Statement(
    f"""
    select{_LIVE}, w.paused_at, w.queue_ttl_ms
    from tasks t join workflows w on w.tenant_id = t.tenant_id and w.id = t.workflow_id
    where t.schedule_deadline <= $1
      and not exists (select from renewals n where n.tenant_id = t.tenant_id and n.workflow_id = t.workflow_id)
      and (t.due_at + $2::interval <= $1
           or not exists (select from routes r join endpoints e on e.tenant_id = r.tenant_id and e.id = r.endpoint_id
                          where r.tenant_id = t.tenant_id and r.workflow_id = t.workflow_id
                            and (e.circuit <> 'closed' or e.paused or e.draining))
           or exists (select from routes r join endpoints e on e.tenant_id = r.tenant_id and e.id = r.endpoint_id
                      where r.tenant_id = t.tenant_id and r.workflow_id = t.workflow_id and e.circuit = 'closed' and not e.paused
                        and not e.draining)
           or exists (select from endpoints e where e.tenant_id = t.tenant_id and e.id = stays_at(t.requirement, t.pin_endpoint)
                      and e.draining and e.circuit = 'closed' and not e.paused))
    order by t.schedule_deadline limit $3
    """,
    Overdue,
)

# An attempt some dispatcher holds open is that dispatcher's to end; it is helped out only when that is long overdue.
CANCELS_DUE = _live(
    """
    from tasks t where t.cancel_at <= $1 and (t.dispatcher_id is null or t.cancel_at <= $2) order by t.cancel_at limit $3
    """
)

CANCELLING = Statement(
    """
    select tenant_id, run_id, node, epoch, cancel_at, cancel_reason as reason from tasks
    where dispatcher_id = $1 and cancel_at is not null
    """,
    Cancelling,
)

RENEW = Statement(
    """
    update tasks set lease_until = $8, deadline = $9, slot_released = $10
    where tenant_id = $1 and run_id = $2 and node = $3 and epoch = $4 and state = 'running'
      and lease_until is not distinct from $5 and deadline = $6 and slot_released = $7
    returning tenant_id, run_id, node
    """,
    Applied,
)

PROGRESS = """
    update tasks set progress = $5::jsonb
    where tenant_id = $1 and run_id = $2 and node = $3 and epoch = $4 and state = 'running'
"""


NEXT_TIMER = """
    select least((select min(lease_until) from tasks where lease_until is not null),
                 (select min(schedule_deadline) from tasks where schedule_deadline is not null),
                 (select min(cancel_at) from tasks where cancel_at is not null),
                 (select min(due_at) from tasks where state = 'scheduled'))
"""


async def next_timer(db: Database) -> datetime | None:
    """When the next live task comes due for anything."""
    moment: datetime | None = await db.fetchval(NEXT_TIMER)
    return moment


async def load(db: Database, keys: Sequence[TaskKey]) -> list[LiveTask]:
    """The tasks that are still live, in no particular order."""
    if not keys:
        return []
    return LOAD.read(await db.fetch(LOAD.sql, [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]))


async def load_one(db: Database, key: TaskKey) -> LiveTask | None:
    """One task, or None when it is over or never was."""
    found = await load(db, [key])
    return found[0] if found else None


async def of_runs(db: Database, tenant_id: int, run_ids: Sequence[str]) -> list[LiveTask]:
    """The live tasks of runs."""
    return OF_RUNS.read(await db.fetch(OF_RUNS.sql, tenant_id, list(run_ids)))


async def leases_ended(db: Database, now: datetime, limit: int) -> list[LiveTask]:
    """Running tasks whose own lease is over."""
    return LEASES_ENDED.read(await db.fetch(LEASES_ENDED.sql, now, limit))


async def orphans(db: Database, dispatchers: Sequence[int], limit: int) -> list[LiveTask]:
    """Running tasks of dispatchers that are no more."""
    return ORPHANS.read(await db.fetch(ORPHANS.sql, list(dispatchers), limit))


async def held_since(db: Database, dispatcher_id: int, before: datetime) -> list[Held]:
    """Running tasks leased to a dispatcher at or before a moment."""
    return HELD_SINCE.read(await db.fetch(HELD_SINCE.sql, dispatcher_id, before))


async def overdue(db: Database, now: datetime, misconfig_ttl: timedelta, limit: int) -> list[Overdue]:
    """Tasks past their schedule timeout that an endpoint in good health could have taken."""
    return OVERDUE.read(await db.fetch(OVERDUE.sql, now, misconfig_ttl, limit))


async def cancels_due(db: Database, now: datetime, long_overdue: datetime, limit: int) -> list[LiveTask]:
    """Running tasks whose grace after a cancel is over and whose dispatcher, if any, has not ended them since `long_overdue`."""
    return CANCELS_DUE.read(await db.fetch(CANCELS_DUE.sql, now, long_overdue, limit))


async def cancelling(db: Database, dispatcher_id: int) -> list[Cancelling]:
    """Attempts of this dispatcher that have been asked to end."""
    return CANCELLING.read(await db.fetch(CANCELLING.sql, dispatcher_id))


async def renew(db: Database, seen: LiveTask, wanted: LiveTask) -> bool:
    """Change a running attempt's lease, deadline and slot to what is wanted; False when they are not as they were seen."""
    key = (seen.tenant_id, seen.run_id, seen.node, seen.epoch)
    before = (seen.lease_until, seen.deadline, seen.slot_released)
    after = (wanted.lease_until, wanted.deadline, wanted.slot_released)
    return bool(await db.fetch(RENEW.sql, *key, *before, *after))


async def set_progress(db: Database, guard: Guard, progress: str) -> None:
    """Keep the latest progress of a running attempt."""
    await db.execute(PROGRESS, guard.tenant_id, guard.run_id, guard.node, guard.epoch, progress)
