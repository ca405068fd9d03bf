"""Writing what became of attempts. Every statement takes a set and is guarded by (epoch, state): who comes late changes nothing.

A finished task and its run move from the live tables to history in the statement that ends them, with the attempt's row.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dispatcher.engine.attempts import Change, CleanUp, Error, Finish, Hold, MarkCancelling, Requeue, State, Yield
from dispatcher.engine.journal import CANCELLED_MESSAGE, leaves, parse_wake
from dispatcher.store import blocks
from dispatcher.store.database import Database
from dispatcher.store.statement import Statement

TaskKey = tuple[int, str, int]  # (tenant id, run id, node)


@dataclass(slots=True)
class Guard:
    """The task a change is for, and what it must still be for the change to apply. `requirement` says where it would wait again."""

    tenant_id: int
    run_id: str
    node: int
    epoch: int
    state: State
    requirement: str = ""

    @property
    def key(self) -> TaskKey:
        """Which task."""
        return (self.tenant_id, self.run_id, self.node)


@dataclass(slots=True)
class AttemptFacts:
    """What was seen of the attempt's request; all None where there was none to see."""

    http_status: int | None = None
    latency_ms: int | None = None
    response: bytes | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """A task whose change was applied."""

    tenant_id: int
    run_id: str
    node: int


FINISH = Statement(
    """
    with given as (
        select * from unnest(
            $1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::text[],
            $10::text[], $11::smallint[], $12::int[], $13::bytea[]
        ) as g (tenant_id, run_id, node, epoch, state, status, attempt, output, output_type, error, http_status, latency_ms, response)
    ), ended as (
        delete from tasks t using given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = g.state
          and (t.cancel_at is null or g.status = 'cancelled')
        returning t.tenant_id, t.run_id, t.node, t.epoch, t.app_retries, t.infra_retries, t.endpoint_id, t.endpoint_version,
                  t.started_at, t.progress, t.durable, t.log_since, t.generation, t.input, t.retry_base,
                  g.status, g.attempt, g.output, g.output_type, g.error::jsonb as error,
                  g.http_status, g.latency_ms, g.response
    ), closed as (
        delete from runs r using ended e where r.tenant_id = any (array[e.tenant_id]) and r.id = e.run_id
        returning r.*, e.status, e.started_at, e.output, e.output_type, e.error
    ), told as (
        update waits w
        set settled_at = $14, position = nextval('wait_positions'),
            outcome = case c.status when 'succeeded' then 'ok' when 'failed' then 'error' else 'cancelled' end,
            value = case when c.status = 'failed' then convert_to(c.error::text, 'UTF8')
                         when c.status = 'succeeded' and c.output_type <> 'application/json'
                             then convert_to(to_json(convert_from(c.output, 'UTF8'))::text, 'UTF8')
                         when c.status = 'succeeded' then coalesce(c.output, 'null') end
        from closed c
        cross join lateral (
            select w.tenant_id, w.run_id, w.node, w.id from waits w
            where c.parent_wait is not null and w.tenant_id = c.tenant_id and w.event_key = c.id and w.kind = 'child'
              and w.settled_at is null offset 0
        ) l
        where w.tenant_id = any (array[l.tenant_id]) and w.run_id = l.run_id and w.node = l.node and w.id = l.id and w.settled_at is null
          and (w.tenant_id, w.run_id, w.node) not in (select tenant_id, run_id, node from ended)
        returning w.tenant_id, w.run_id, w.node
    ), woken as (
        update tasks t set wake_at = $14, marks = coalesce(t.marks, 0) + 1
        from (select distinct tenant_id, run_id, node from told) w
        where t.tenant_id = any (array[w.tenant_id]) and t.run_id = w.run_id and t.node = w.node
          and (t.tenant_id, t.run_id, t.node) not in (select tenant_id, run_id, node from ended)
        returning t.tenant_id, t.run_id
    ), doomed as (
        update runs r set doomed_at = $14
        from closed c
        cross join lateral (
            select r.tenant_id, r.id from runs r
            where c.status = 'cancelled' and r.tenant_id = c.tenant_id and r.parent_run_id = c.id and r.on_its_own is null offset 0
        ) l
        where r.tenant_id = any (array[l.tenant_id]) and r.id = l.id
          and (r.tenant_id, r.id) not in (select tenant_id, run_id from ended)
        returning r.tenant_id, r.id
    ), log_rows as (
        delete from journal j using ended e
        where e.durable and j.tenant_id = any (array[e.tenant_id]) and j.run_id = e.run_id and j.node = e.node
        returning j.*, case when j.generation = coalesce(e.generation, 0) then e.log_since end as log_since,
                  case when j.generation = coalesce(e.generation, 0) then e.input end as task_input
    ), logs as (
        insert into journal_history (tenant_id, run_id, node, generation, count, entries, checkpoint, checkpoint_at, since, input,
                                     finished_at)
        select tenant_id, run_id, node, generation, sum(count), string_agg(entries, ','::bytea order by base),
               (array_agg(checkpoint order by base desc) filter (where checkpoint is not null))[1],
               max(at) filter (where checkpoint is not null), log_since, task_input, $14
        from log_rows group by tenant_id, run_id, node, generation, log_since, task_input
    ), waits_left as (
        delete from waits w using ended e
        where e.durable and w.tenant_id = any (array[e.tenant_id]) and w.run_id = e.run_id and w.node = e.node
    ), messages_left as (
        delete from messages m using ended e
        where e.durable and m.tenant_id = any (array[e.tenant_id]) and m.run_id = e.run_id and m.node = e.node
    ), attempt_rows as (
        insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, response, error,
                              endpoint_id, endpoint_version, started_at, finished_at)
        select tenant_id, run_id, node, epoch, attempt, http_status, latency_ms, response,
               case when status <> 'succeeded' then error end, endpoint_id, endpoint_version, started_at, $14
        from ended where attempt is not null
    ), task_rows as (
        insert into task_history (tenant_id, run_id, node, status, output, output_type, error, epoch, app_retries,
                                  infra_retries, endpoint_id, endpoint_version, started_at, finished_at, progress, durable,
                                  retry_base)
        select tenant_id, run_id, node, status, output, output_type, error, epoch, app_retries,
               infra_retries, endpoint_id, endpoint_version, started_at, $14, progress, durable, retry_base
        from ended
    ), run_rows as (
        insert into run_history (tenant_id, id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id,
                                 parent_run_id, stream_id, idempotency_key, created_at, started_at, finished_at,
                                 parent_node, parent_wait, filter_payload, labels, sticky_endpoint)
        select tenant_id, id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id,
               parent_run_id, stream_id, idempotency_key, created_at, started_at, $14,
               parent_node, parent_wait, filter_payload, labels, sticky_endpoint
        from closed
    )
    select tenant_id, run_id, node from ended
    union all select tenant_id, run_id, -1 from woken
    union all select tenant_id, id, -1 from doomed
    """,
    Applied,
)

# The same for tasks that stand alone, which is most of them: with no log, in a run that is not cancelled and that nobody waits for.
# What a statement could do costs time whether it does it or not. A task that does not stand alone is not touched.
FINISH_ALONE = Statement(
    """
    with given as (
        select * from unnest(
            $1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::text[],
            $10::text[], $11::smallint[], $12::int[], $13::bytea[]
        ) as g (tenant_id, run_id, node, epoch, state, status, attempt, output, output_type, error, http_status, latency_ms, response)
    ), ended as (
        delete from tasks t using given g, runs r
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = g.state
          and t.cancel_at is null and g.status <> 'cancelled' and not t.durable
          and r.tenant_id = any (array[g.tenant_id]) and r.id = g.run_id and r.parent_wait is null
        returning t.tenant_id, t.run_id, t.node, t.epoch, t.app_retries, t.infra_retries, t.endpoint_id, t.endpoint_version,
                  t.started_at, t.progress, t.retry_base, g.status, g.attempt, g.output, g.output_type, g.error::jsonb as error,
                  g.http_status, g.latency_ms, g.response
    ), closed as (
        delete from runs r using ended e where r.tenant_id = any (array[e.tenant_id]) and r.id = e.run_id
        returning r.*, e.status, e.started_at
    ), attempt_rows as (
        insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, response, error,
                              endpoint_id, endpoint_version, started_at, finished_at)
        select tenant_id, run_id, node, epoch, attempt, http_status, latency_ms, response,
               case when status <> 'succeeded' then error end, endpoint_id, endpoint_version, started_at, $14
        from ended where attempt is not null
    ), task_rows as (
        insert into task_history (tenant_id, run_id, node, status, output, output_type, error, epoch, app_retries,
                                  infra_retries, endpoint_id, endpoint_version, started_at, finished_at, progress, retry_base)
        select tenant_id, run_id, node, status, output, output_type, error, epoch, app_retries,
               infra_retries, endpoint_id, endpoint_version, started_at, $14, progress, retry_base
        from ended
    ), run_rows as (
        insert into run_history (tenant_id, id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id,
                                 parent_run_id, stream_id, idempotency_key, created_at, started_at, finished_at,
                                 parent_node, filter_payload, labels, sticky_endpoint)
        select tenant_id, id, workflow_id, workflow_version, status, input, metadata, priority, trigger, event_id,
               parent_run_id, stream_id, idempotency_key, created_at, started_at, $14,
               parent_node, filter_payload, labels, sticky_endpoint
        from closed
    )
    select tenant_id, run_id, node from ended
    """,
    Applied,
)

# The end of one task of a graph: its row stays for those that need its output, and the graph's rules are to look at the run.
SETTLE = Statement(
    """
    with given as (
        select * from unnest(
            $1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::text[],
            $10::text[], $11::smallint[], $12::int[], $13::bytea[]
        ) as g (tenant_id, run_id, node, epoch, state, status, attempt, output, output_type, error, http_status, latency_ms, response)
    ), ended as (
        update tasks t
        set state = 'settled', status = g.status, output = g.output, output_type = g.output_type, error = g.error::jsonb,
            finished_at = $14, dispatcher_id = null, lease_until = null, lease = null, schedule_deadline = null, cancel_at = null
        from given g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = g.state
          and (t.cancel_at is null or g.status = 'cancelled')
        returning t.tenant_id, t.run_id, t.node, t.epoch, t.endpoint_id, t.endpoint_version, t.started_at, t.status, g.attempt, t.error,
                  t.durable, g.http_status, g.latency_ms, g.response
    ), attempt_rows as (
        insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, response, error,
                              endpoint_id, endpoint_version, started_at, finished_at)
        select tenant_id, run_id, node, epoch, attempt, http_status, latency_ms, response,
               case when status <> 'succeeded' then error end, endpoint_id, endpoint_version, started_at, $14
        from ended where attempt is not null
    ), waits_left as (
        delete from waits w using ended e
        where e.durable and w.tenant_id = any (array[e.tenant_id]) and w.run_id = e.run_id and w.node = e.node and not w.graph
    ), messages_left as (
        delete from messages m using ended e
        where e.durable and m.tenant_id = any (array[e.tenant_id]) and m.run_id = e.run_id and m.node = e.node
    ), seen as (
        update runs r set advance_at = $14, revision = r.revision + 1
        from (select distinct tenant_id, run_id from ended) e
        where r.tenant_id = any (array[e.tenant_id]) and r.id = e.run_id
    )
    select tenant_id, run_id, node from ended
    """,
    Applied,
)

REQUEUE = Statement(
    """
    with given as (
        select * from unnest(
            $1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::smallint[], $8::int[], $9::bytea[],
            $10::timestamptz[], $11::smallint[], $12::int[], $13::int[], $14::timestamptz[], $15::timestamptz[], $17::text[]
        ) as g (tenant_id, run_id, node, epoch, attempt, error, http_status, latency_ms, response,
                due_at, priority, app_retries, infra_retries, spared_since, schedule_deadline, spared_by)
    ), before as (
        select g.*, t.endpoint_id, t.endpoint_version, t.started_at
        from given g join tasks t on t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node
        where t.epoch = g.epoch and t.state = 'running' for update of t
    ), freed as (
        update tasks t
        set state = case when g.due_at > $16 then 'scheduled' else 'queued' end, due_at = g.due_at, priority = g.priority,
            app_retries = g.app_retries, infra_retries = g.infra_retries, spared_since = g.spared_since, spared_by = g.spared_by,
            schedule_deadline = g.schedule_deadline, dispatcher_id = null, endpoint_id = null, endpoint_version = null,
            log_since = case when t.durable then coalesce(t.log_since, t.started_at) end,
            started_at = null, deadline = null, lease_until = null, lease = null, slot_released = false, gates_held = 0, units_taken = false
        from before g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
          and t.state = 'running' and t.cancel_at is null
        returning t.tenant_id, t.run_id, t.node, t.epoch, g.endpoint_id, g.endpoint_version, g.started_at, g.attempt, g.error,
                  g.http_status, g.latency_ms, g.response
    ), attempt_rows as (
        insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, response, error,
                              endpoint_id, endpoint_version, started_at, finished_at)
        select tenant_id, run_id, node, epoch, attempt, http_status, latency_ms, response, error::jsonb,
               endpoint_id, endpoint_version, started_at, $16
        from freed
    )
    select tenant_id, run_id, node from freed
    """,
    Applied,
)

HOLD = Statement(
    """
    update tasks t set dispatcher_id = null, lease_until = g.lease_until, lease = g.lease, deadline = g.deadline
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::timestamptz[], $6::interval[], $7::timestamptz[])
        as g (tenant_id, run_id, node, epoch, lease_until, lease, deadline)
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = 'running'
    returning t.tenant_id, t.run_id, t.node
    """,
    Applied,
)

# The end of a durable task's turn that is not the end of the task. It does not land while the task is being cancelled, nor when it would
# wait for something that is not there to be waited for. A task that waits is marked if it may be `met` already: what is settled and cannot
# be seen here has left its mark on the row, which stays. A log that begins anew does so later than the one before: that tells them apart.
YIELD = Statement(
    """
    with given as (
        select * from unnest(
            $1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::smallint[], $8::int[], $9::bytea[],
            $10::text[], $11::bytea[], $12::text[], $13::bytea[], $14::bytea[], $15::boolean[], $16::boolean[]
        ) as g (tenant_id, run_id, node, epoch, attempt, error, http_status, latency_ms, response,
                state, wake, named, memory, input, whole, pinned)
    ), before as (
        select g.*, t.endpoint_id, t.endpoint_version, t.started_at, exists (
                   select from waits w where w.tenant_id = g.tenant_id and w.run_id = g.run_id and w.node = g.node and not w.graph
                   and (w.settled_at is not null or w.kind = 'message') offset 0) as met
        from given g join tasks t on t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node
        where t.epoch = g.epoch and t.state = 'running' for update of t
    ), freed as (
        update tasks t
        set state = g.state, due_at = $17, schedule_deadline = null, wake = g.wake,
            wake_at = case when g.state = 'waiting' then coalesce(t.wake_at, case when g.met then $17::timestamptz end) end,
            marks = coalesce(t.marks, 0) + 1,
            turn = coalesce(t.turn, 1) + case when g.state = 'blocked' then 0 else 1 end,
            known_len = case when g.whole or g.input is not null then 0 when g.state = 'blocked' then t.known_len else t.log_len end,
            generation = coalesce(t.generation, 0) + case when g.input is not null then 1 else 0 end,
            log_len = case when g.input is null then t.log_len end, log_bytes = case when g.input is null then t.log_bytes end,
            log_since = case when g.input is null then coalesce(t.log_since, t.started_at)
                             else greatest($17, coalesce(t.log_since, t.started_at) + interval '1 millisecond') end,
            hashed_len = case when g.input is null then t.hashed_len end, hashed = case when g.input is null then t.hashed end,
            memory = case when g.input is null then coalesce(g.memory, t.memory) end, input = coalesce(g.input, t.input),
            pin_endpoint = case when g.pinned and g.state <> 'blocked' then coalesce(t.pin_endpoint, t.endpoint_id)
                                else t.pin_endpoint end,
            pin_version = case when g.pinned and g.state <> 'blocked' then coalesce(t.pin_version, t.endpoint_version)
                               else t.pin_version end,
            error = g.error::jsonb, app_retries = 0, infra_retries = 0, spared_since = null, spared_by = null,
            dispatcher_id = null, endpoint_id = null, endpoint_version = null, started_at = null, deadline = null,
            lease_until = null, lease = null, slot_released = false
        from before g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch
          and t.state = 'running' and t.cancel_at is null
          and (g.named is null or not exists (
               select from jsonb_array_elements_text(g.named::jsonb) as named (id)
               where not exists (select from waits w where w.tenant_id = g.tenant_id and w.run_id = g.run_id and w.node = g.node
                                 and w.id = named.id and not w.graph offset 0))) -- each looked up, not held against all others
        returning t.tenant_id, t.run_id, t.node, t.epoch, g.endpoint_id, g.endpoint_version, g.started_at, g.attempt, g.error,
                  g.http_status, g.latency_ms, g.response, g.input
    ), forgotten as (
        delete from waits w using freed f
        where f.input is not null and w.tenant_id = any (array[f.tenant_id]) and w.run_id = f.run_id and w.node = f.node and not w.graph
    ), attempt_rows as (
        insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, response, error,
                              endpoint_id, endpoint_version, started_at, finished_at)
        select tenant_id, run_id, node, epoch, attempt, http_status, latency_ms, response, error::jsonb,
               endpoint_id, endpoint_version, started_at, $17
        from freed
    )
    select tenant_id, run_id, node from freed
    """,
    Applied,
)

CLEAN_UP = Statement(
    """
    with given as (
        select * from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::text[], $7::int[], $8::timestamptz[],
                             $11::smallint[], $12::int[], $13::bytea[], $14::text[])
            as g (tenant_id, run_id, node, epoch, state, reason, grace_ms, until, http_status, latency_ms, response, attempt)
    ), before as (
        select g.*, t.endpoint_id, t.endpoint_version, t.started_at
        from given g join tasks t on t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node
        where t.epoch = g.epoch and t.state = g.state for update of t
    ), freed as (
        update tasks t
        set state = 'queued', due_at = $9, priority = 4, schedule_deadline = g.until, execution_ms = g.grace_ms, cleanup = true,
            cancel_at = null, cancel_reason = coalesce(t.cancel_reason, g.reason), wake_at = null, marks = coalesce(t.marks, 0) + 1,
            turn = coalesce(t.turn, 1) + case when g.state = 'running' then 1 else 0 end, units_taken = true,
            dispatcher_id = null, endpoint_id = null, endpoint_version = null, started_at = null, deadline = null,
            lease_until = null, lease = null, slot_released = false
        from before g
        where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = g.state
        returning t.tenant_id, t.run_id, t.node, t.epoch, g.state, g.endpoint_id, g.endpoint_version, g.started_at,
                  g.http_status, g.latency_ms, g.response, g.attempt
    ), attempt_rows as (
        insert into attempts (tenant_id, run_id, node, number, status, http_status, latency_ms, response,
                              endpoint_id, endpoint_version, started_at, finished_at)
        select tenant_id, run_id, node, epoch, attempt, http_status, latency_ms, response,
               endpoint_id, endpoint_version, started_at, $9
        from freed where state = 'running'
    ), inbox as (
        update waits w set settled_at = $9, position = nextval('wait_positions'), outcome = 'cancel', value = $10
        from freed f
        where w.tenant_id = any (array[f.tenant_id]) and w.run_id = f.run_id and w.node = f.node and w.kind = 'message'
          and w.settled_at is null
    )
    select tenant_id, run_id, node from freed
    """,
    Applied,
)

MARK_CANCELLING = Statement(
    """
    update tasks t set cancel_at = g.cancel_at, cancel_reason = g.reason
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::timestamptz[], $6::text[])
        as g (tenant_id, run_id, node, epoch, cancel_at, reason)
    where t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id and t.node = g.node and t.epoch = g.epoch and t.state = 'running'
      and t.cancel_at is null
    returning t.tenant_id, t.run_id, t.node
    """,
    Applied,
)


@dataclass(slots=True)
class Outcome:
    """A change and the task it is for, with what was seen of the attempt. A task `of_graph` that is over stays until its run is; one
    that is `pinned` stays with the version its first turn went to. `alone` says that it is not durable and its run has no parent.
    """

    guard: Guard
    change: Change
    facts: AttemptFacts
    of_graph: bool = False
    pinned: bool = False
    alone: bool = False


def error_json(error: Error | None) -> str | None:
    """How an error is stored and shown: code, message, and `detail` as the endpoint reported it (already checked JSON).

    NUL and lone surrogates cannot be stored: they are shown as the replacement character.
    """
    if error is None:
        return None
    message = error.message.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    document = json.dumps({"code": error.code, "message": message}, ensure_ascii=False)
    if error.detail is None:
        return document
    return f'{document[:-1]},"detail":{error.detail.decode("utf-8")}}}'


async def apply(db: Database, outcomes: Sequence[Outcome], now: datetime, note: Callable[[TaskKey], None] = lambda _key: None) -> bool:
    """Apply a set of changes, a statement for each kind, and note each task whose change landed as soon as it has.

    One task may appear once. A task that is not noted had moved on: its outcome was stale. True when others are concerned as well: runs
    that waited for one that has ended, or that end with it.
    """
    concerned, ended = False, await _finish_alone(db, outcomes, now, note)
    left = [o for o in outcomes if o.guard.key not in ended] if ended else outcomes
    for kind, which, write in _WRITERS:
        chosen = [o for o in left if type(o.change) is kind and (which is None or which(o))]
        for record in await write(db, chosen, now) if chosen else ():
            if record[2] < 0:
                concerned = True
            else:
                note((record[0], record[1], record[2]))
    return concerned


async def _finish_alone(db: Database, outcomes: Sequence[Outcome], now: datetime, note: Callable[[TaskKey], None]) -> set[TaskKey]:
    """End tasks that stand alone, where those that end all do; answers those that have. The others are for the whole statement."""
    ends = [(o, o.change) for o in outcomes if isinstance(o.change, Finish) and not o.of_graph]
    if not ends or not all(o.alone and change.status != "cancelled" for o, change in ends):
        return set()
    ended = {(record[0], record[1], record[2]) for record in await _end(db, FINISH_ALONE.sql, [o for o, _ in ends], now)}
    for key in ended:
        note(key)
    return ended


def _keys(outcomes: Sequence[Outcome]) -> tuple[list[int], list[str], list[int], list[int]]:
    guards = [o.guard for o in outcomes]
    return [g.tenant_id for g in guards], [g.run_id for g in guards], [g.node for g in guards], [g.epoch for g in guards]


async def _finish(db: Database, outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    return await _end(db, FINISH.sql, outcomes, now)


async def _settle(db: Database, outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    return await _end(db, SETTLE.sql, outcomes, now)


async def _end(db: Database, statement: str, outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    changes: list[Finish] = [o.change for o in outcomes]  # type: ignore[misc]  # apply() groups by kind
    facts = [o.facts for o in outcomes]
    return await db.fetch(
        statement,
        *_keys(outcomes),
        [o.guard.state for o in outcomes],
        [c.status for c in changes],
        [c.attempt for c in changes],
        [c.output for c in changes],
        [c.output_type for c in changes],
        [error_json(c.error) for c in changes],
        [f.http_status for f in facts],
        [f.latency_ms for f in facts],
        [f.response for f in facts],
        now,
        lane="settle",
    )


async def _requeue(db: Database, outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    changes: list[Requeue] = [o.change for o in outcomes]  # type: ignore[misc]  # apply() groups by kind
    facts = [o.facts for o in outcomes]
    return await db.fetch(
        REQUEUE.sql,
        *_keys(outcomes),
        [c.attempt for c in changes],
        [error_json(c.error) for c in changes],
        [f.http_status for f in facts],
        [f.latency_ms for f in facts],
        [f.response for f in facts],
        [c.due_at for c in changes],
        [c.priority for c in changes],
        [c.app_retries for c in changes],
        [c.infra_retries for c in changes],
        [c.spared_since for c in changes],
        [c.schedule_deadline for c in changes],
        now,
        [c.spared_by for c in changes],
        lane="settle",
    )


async def _hold(db: Database, outcomes: Sequence[Outcome], _now: datetime) -> list[Any]:
    changes: list[Hold] = [o.change for o in outcomes]  # type: ignore[misc]  # apply() groups by kind
    return await db.fetch(
        HOLD.sql,
        *_keys(outcomes),
        [c.lease_until for c in changes],
        [c.lease for c in changes],
        [c.deadline for c in changes],
        lane="settle",
    )


async def _mark_cancelling(db: Database, outcomes: Sequence[Outcome], _now: datetime) -> list[Any]:
    changes: list[MarkCancelling] = [o.change for o in outcomes]  # type: ignore[misc]  # apply() groups by kind
    return await db.fetch(MARK_CANCELLING.sql, *_keys(outcomes), [c.cancel_at for c in changes], [c.reason for c in changes], lane="settle")


async def _yield(db: Database, outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    return await db.fetch(YIELD.sql, *_yielded(outcomes, now), lane="settle")


async def _block(db: Database, outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    """What the registration of another version would have let go on, had it come later, goes on at once: it is queued, not blocked."""
    attempts = {o.guard.key: o.guard.epoch for o in outcomes}
    async with db.transaction(lane="settle") as conn:
        outdated = await blocks.outdated(conn, list(attempts.items()))
        landed = await conn.fetch(YIELD.sql, *_yielded(outcomes, now))
        again = outdated & {(record[0], record[1], record[2]) for record in landed}
        if again:
            await blocks.let_go(conn, [(key, attempts[key]) for key in again], now)
    for outcome in outcomes:
        if outcome.guard.key in again and isinstance(outcome.change, Yield):
            outcome.change = replace(outcome.change, to="queued")
    return landed


def _yielded(outcomes: Sequence[Outcome], now: datetime) -> tuple[Any, ...]:
    changes: list[Yield] = [o.change for o in outcomes]  # type: ignore[misc]  # apply() groups by kind
    facts = [o.facts for o in outcomes]
    return (
        *_keys(outcomes),
        [c.attempt for c in changes],
        [error_json(c.error) for c in changes],
        [f.http_status for f in facts],
        [f.latency_ms for f in facts],
        [f.response for f in facts],
        [c.to for c in changes],
        [c.wake for c in changes],
        [json.dumps(list(dict.fromkeys(leaves(parse_wake(c.wake))))) if c.wake is not None else None for c in changes],
        [c.memory for c in changes],
        [c.input for c in changes],
        [c.whole for c in changes],
        [o.pinned for o in outcomes],
        now,
    )


async def _clean_up(db: Database, outcomes: Sequence[Outcome], now: datetime) -> list[Any]:
    changes: list[CleanUp] = [o.change for o in outcomes]  # type: ignore[misc]  # apply() groups by kind
    return await db.fetch(
        CLEAN_UP.sql,
        *_keys(outcomes),
        [o.guard.state for o in outcomes],
        [c.reason for c in changes],
        [round(c.grace.total_seconds() * 1000) for c in changes],
        [c.before for c in changes],
        now,
        CANCELLED_MESSAGE,
        [o.facts.http_status for o in outcomes],
        [o.facts.latency_ms for o in outcomes],
        [o.facts.response for o in outcomes],
        [c.attempt for c in changes],
        lane="settle",
    )


def _blocks(outcome: Outcome) -> bool:
    return isinstance(outcome.change, Yield) and outcome.change.to == "blocked"


_Writer = Callable[[Database, Sequence[Outcome], datetime], Awaitable[list[Any]]]
_WRITERS: tuple[tuple[type[Change], Callable[[Outcome], bool] | None, _Writer], ...] = (
    (Finish, lambda o: not o.of_graph, _finish),
    (Finish, lambda o: o.of_graph, _settle),
    (Requeue, None, _requeue),
    (Hold, None, _hold),
    (MarkCancelling, None, _mark_cancelling),
    (Yield, lambda o: not _blocks(o), _yield),
    (Yield, _blocks, _block),
    (CleanUp, None, _clean_up),
)
