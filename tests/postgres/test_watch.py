"""The look for all loops sees each thing that one of them would find, and nothing where there is nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.store import watch
from dispatcher.store.database import Database

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
THEN = NOW + timedelta(minutes=5)
ME, OTHER = 7, 8

TASK = "tenant_id, run_id, node, workflow_id, workflow_version, priority, execution_ms"
WAIT = "tenant_id, run_id, node, id, graph, kind, created_at"
RUN = "tenant_id, id, workflow_id, workflow_version, input, priority, trigger, created_at"
GATE = "tenant_id, id, rule, key, strategy, most"
ENDPOINT = "tenant_id, id, name, version, slots, labels, static, created_at, updated_at"
LIMIT = "tenant_id, id, key, fixed, most, duration, window_ms, value, refilled_at, updated_at"
CRON = """
    insert into crons (tenant_id, id, workflow_id, name, expression, timezone, input, missed, enabled, declared, due_at, due_wall, rules,
                       created_at, updated_at)
    values (1, 'c', 1, 'c', '* * * * *', 'UTC', '1', 'skip', true, false, $2, '2026-01-01', '', $1, $1)
"""
SCHEDULE = """
    insert into schedules (tenant_id, id, workflow_id, status, run_at, input, missed, grace_ms, created_at, updated_at)
    values (1, 's', 1, 'scheduled', $2, '1', 'skip', 0, $1, $1)
"""
BULK = "insert into bulk_actions (tenant_id, id, kind, status, reason, matched, created_at) values (1, 'b', 'cancel', 'running', '', 1, $1)"
WORKFLOW = """
    with t as (insert into tenants (slug, name, created_at) values ('w', 'w', $1) returning id)
    insert into workflows (tenant_id, name, version, created_at, updated_at, aside) select id, 'w', 1, $1, $1"""
RENEWAL = """
    with t as (
        insert into tenants (slug, name, created_at) values ('w', 'w', $1) returning id
    ), w as (
        insert into workflows (tenant_id, name, version, created_at, updated_at) select id, 'w', 1, $1, $1 from t returning tenant_id, id
    )
    insert into renewals (tenant_id, workflow_id, began_at, looked_at) select tenant_id, id, $1, $1 from w
"""
UNSCHEDULABLE = """
    with t as (insert into tenants (slug, name, created_at) values ('w', 'w', $1) returning id)
    insert into unschedulable (tenant_id, queue, requirement, aside_at, aside) select id, 1, 'r', $1"""
PROBE = f"""
    insert into endpoints ({ENDPOINT}, circuit, circuit_since, probe_at)
    values (1, 'e', 'e', '1', 1, '{{}}', false, $1, $1, 'open', $1, $2)
"""

# What is there, who sees it, and when there is something to do about it. $1 is now, $2 then, $3 this dispatcher, $4 another.
CASES: dict[str, tuple[str, tuple[str, ...], datetime]] = {
    "a retry": (f"insert into tasks ({TASK}, state, due_at) values (1, 'r', 0, 1, 1, 1, 1, 'scheduled', $2)", ("timers",), THEN),
    "a schedule timeout": (
        f"insert into tasks ({TASK}, state, due_at, schedule_deadline) values (1, 'r', 0, 1, 1, 1, 1, 'queued', $1, $2)",
        ("timers",),
        THEN,
    ),
    "a lease": (
        f"insert into tasks ({TASK}, state, due_at, lease_until) values (1, 'r', 0, 1, 1, 1, 1, 'running', $1, $2)",
        ("timers",),
        THEN,
    ),
    "a mark": (
        f"insert into tasks ({TASK}, state, due_at, durable, wake_at) values (1, 'r', 0, 1, 1, 1, 1, 'waiting', $1, true, $2)",
        ("waits",),
        THEN,
    ),
    "a sleep": (f"insert into waits ({WAIT}, due_at) values (1, 'r', 0, 'w', false, 'sleep', $1, $2)", ("waits",), THEN),
    "a look back": (f"insert into waits ({WAIT}, look_at) values (1, 'r', 0, 'w', false, 'event', $1, $2)", ("waits",), THEN),
    "a run that is doomed": (f"insert into runs ({RUN}, doomed_at) values (1, 'r', 1, 1, '1', 1, 'api', $1, $2)", ("waits",), THEN),
    "an event somebody waits for": (
        "insert into events (tenant_id, id, type, data, stream_id, runs, created_at, wakes) values (1, 'e', 'e', '1', 's', 0, $1, true)",
        ("waits",),
        NOW,
    ),
    "a graph": (
        f"insert into runs ({RUN}, graph, advance_at) values (1, 'r', 1, 1, '1', 1, 'api', $1, '-', $2)",
        ("graphs", "gates"),
        THEN,
    ),
    "a run in line": (
        f"""insert into runs ({RUN}, gates, gate_wait, schedule_deadline)
            select 1, 'r', 1, 1, '1', 1, 'api', $1, array[id], id, $2 from gen_random_uuid() as g (id)""",
        ("gates",),
        THEN,
    ),
    "a run that is aside": (
        f"insert into runs ({RUN}, gates, schedule_deadline) values (1, 'r', 1, 1, '1', 1, 'api', $1, array[gen_random_uuid()], $2)",
        ("gates",),
        THEN,
    ),
    "a workflow that is about to open": (
        f"{WORKFLOW}, 'clearing' from t",
        ("asides",),
        NOW,
    ),
    "a workflow that opens": (
        f"{WORKFLOW}, 'opening' from t",
        ("asides",),
        NOW,
    ),
    "a workflow that has its time again": (RENEWAL, ("renewals",), NOW),
    "a queue that something can take again": (
        f"{UNSCHEDULABLE}, 'clearing' from t",
        ("asides",),
        NOW,
    ),
    "a queue whose tasks come back": (
        f"{UNSCHEDULABLE}, 'opening' from t",
        ("asides",),
        NOW,
    ),
    "a gate awake": (
        f"insert into gates ({GATE}, wake) values (1, gen_random_uuid(), 'r', 'k', 'GROUP_ROUND_ROBIN', 1, true)",
        ("gates",),
        NOW,
    ),
    "a window": (
        f"insert into rate_limits ({LIMIT}, refill_at) values (1, gen_random_uuid(), 'k', true, 1, 'HOUR', 1, 0, $1, $1, $2)",
        ("rates",),
        THEN,
    ),
}
UNSEEN = {
    "a task that waits its turn": f"insert into tasks ({TASK}, state, due_at) values (1, 'r', 0, 1, 1, 1, 1, 'queued', $1)",
    "an attempt": f"insert into tasks ({TASK}, state, due_at, dispatcher_id) values (1, 'r', 0, 1, 1, 1, 1, 'running', $1, $3)",
    "a workflow that is closed": f"{WORKFLOW}, 'closed' from t",
    "a queue that nothing can take": f"{UNSCHEDULABLE}, 'closed' from t",
    "a wait that is over": f"insert into waits ({WAIT}, due_at, settled_at) values (1, 'r', 0, 'w', false, 'sleep', $1, $2, $1)",
    "a gate at rest": f"insert into gates ({GATE}, held) values (1, gen_random_uuid(), 'r', 'k', 'GROUP_ROUND_ROBIN', 1, 1)",
    "an event": "insert into events (tenant_id, id, type, data, stream_id, runs, created_at) values (1, 'e', 'e', '1', 's', 0, $1)",
}
CANCELLED = f"insert into tasks ({TASK}, state, due_at, dispatcher_id, cancel_at) values (1, 'r', 0, 1, 1, 1, 1, 'running', $1, $3, $2)"


async def _given(database: Database, sql: str) -> None:
    values: list[Any] = [NOW, THEN, ME, OTHER]
    used = [(n, value) for n, value in enumerate(values, start=1) if f"${n}" in sql]
    for place, (n, _) in enumerate(used, start=1):
        sql = sql.replace(f"${n}", f"${place}")
    await database.execute(sql, *[value for _, value in used])


async def test_nothing_is_seen_where_there_is_nothing(database: Database) -> None:
    assert (await watch.look(database, ME, NOW)).moments() == {}


@pytest.mark.parametrize("case", CASES)
async def test_what_a_loop_would_find_is_seen(database: Database, case: str) -> None:
    sql, loops, moment = CASES[case]
    await _given(database, sql)
    assert (await watch.look(database, ME, NOW)).moments() == dict.fromkeys(loops, moment)


@pytest.mark.parametrize("case", UNSEEN)
async def test_what_asks_for_nothing_is_not_seen(database: Database, case: str) -> None:
    await _given(database, UNSEEN[case])
    assert (await watch.look(database, ME, NOW)).moments() == {}


async def test_a_cancel_is_seen_by_who_holds_the_attempt_and_its_end_by_all(database: Database) -> None:
    await _given(database, CANCELLED)
    assert (await watch.look(database, ME, NOW)).moments() == {"timers": THEN, "cancels": NOW}
    assert (await watch.look(database, OTHER, NOW)).moments() == {"timers": THEN}


OF_TENANT: dict[str, tuple[str, tuple[str, ...], datetime]] = {
    "a probe": (PROBE, ("probe",), THEN),
    "a limit for a time": ("insert into concurrency_limits values (1, 'l', 1, $2, $1)", ("gates",), THEN),
    "a cron": (CRON, ("timetable",), THEN),
    "a schedule": (SCHEDULE, ("timetable",), THEN),
    "a bulk action": (BULK, ("bulk",), NOW),
}


@pytest.mark.parametrize("case", OF_TENANT)
async def test_what_is_of_a_tenant_is_seen(database: Database, case: str) -> None:
    sql, loops, moment = OF_TENANT[case]
    await database.execute("insert into tenants (id, slug, name, created_at) overriding system value values (1, 't', 't', $1)", NOW)
    await database.execute("insert into workflows overriding system value values (1, 1, 'w', 1, $1, $1)", NOW)
    await _given(database, sql)
    assert (await watch.look(database, ME, NOW)).moments() == dict.fromkeys(loops, moment)
