"""One look at what each loop goes by, for a dispatcher that has nothing to do: a statement instead of thirty.

A column is what its loop finds, or more than that: a moment in the past means that it is worth looking now. Each is the first entry of an
index, so a look costs the same whatever there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Database
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Seen:
    """When there is something to do for each loop, None where nothing is known to come. `moments` has them by the names of the loops."""

    timers: datetime | None
    timetable: datetime | None
    graphs: datetime | None
    waits: datetime | None
    gates: datetime | None
    rates: datetime | None
    probe: datetime | None
    cancels: datetime | None
    bulk: datetime | None
    asides: datetime | None
    renewals: datetime | None
    pins: datetime | None

    def moments(self) -> dict[str, datetime]:
        """The loops that have something to do, now or later."""
        return {name: moment for name in self.__slots__ if (moment := getattr(self, name)) is not None}


LOOK = Statement(
    """
    select least((select min(lease_until) from tasks where lease_until is not null),
                 (select min(schedule_deadline) from tasks where schedule_deadline is not null),
                 (select min(cancel_at) from tasks where cancel_at is not null),
                 (select min(due_at) from tasks where state = 'scheduled')) as timers,
           least((select min(due_at) from crons), (select min(run_at) from schedules where status = 'scheduled')) as timetable,
           (select min(advance_at) from runs where advance_at is not null) as graphs,
           least((select min(due_at) from waits where due_at is not null and settled_at is null),
                 (select min(look_at) from waits where look_at is not null and settled_at is null),
                 (select min(wake_at) from tasks where wake_at is not null and state = 'waiting'),
                 (select min(doomed_at) from runs where doomed_at is not null),
                 case when exists (select from events where wakes) then $1::timestamptz end) as waits,
           least(case when exists (select from gates where wake) then $1 end,
                 (select min(advance_at) from runs where advance_at is not null),
                 (select min(schedule_deadline) from runs
                  where gates is not null and gates_held < cardinality(gates) and advance_at is null),
                 (select min(until) from concurrency_limits where until is not null)) as gates,
           (select min(refill_at) from rate_limits where refill_at is not null) as rates,
           (select min(probe_at) from endpoints where probe_at is not null) as probe,
           case when exists (select from tasks where dispatcher_id = $2 and cancel_at is not null) then $1 end as cancels,
           case when exists (select from bulk_actions where status = 'running') then $1 end as bulk,
           case when exists (select from workflows where aside in ('clearing', 'opening'))
                     or exists (select from unschedulable where aside <> 'closed') then $1 end as asides,
           case when exists (select from renewals) then $1 end as renewals,
           case when exists (select from endpoints e where e.draining and exists (
               select from tasks t where t.tenant_id = e.tenant_id and t.pin_endpoint = e.id and t.pin_endpoint is not null
                 and t.state = 'queued' and not starts_with(t.requirement, '{"pin":'))) then $1 end as pins
    """,
    Seen,
)


async def look(db: Database, dispatcher_id: int, now: datetime) -> Seen:
    """What there is to do for a dispatcher."""
    return LOOK.read(await db.fetch(LOOK.sql, now, dispatcher_id))[0]
