"""Tenants that keep their history for less time than the server does: what is older is deleted, in batches, oldest first.

Everything else ends with its partition. Ids hold the moment they were made, so the oldest rows are the first of their primary key.
What belongs to a run that still lives, or is still kept, is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.store.database import Database
from dispatcher.store.runs import first_id
from dispatcher.store.statement import Statement


@dataclass(frozen=True, slots=True)
class Keeps:
    """For how many days a tenant keeps its history; None as long as the server does."""

    tenant_id: int
    days: int | None


KEEPS = Statement("select id as tenant_id, retention_days as days from tenants where id = $1", Keeps)
SHORTER = Statement("select id as tenant_id, retention_days as days from tenants where retention_days < $1", Keeps)
SET = "update tenants set retention_days = $2 where id = $1"
RUNS = """
    delete from run_history h where (h.tenant_id, h.id, h.finished_at) in (
        select tenant_id, id, finished_at from run_history where tenant_id = $1 and id < $2 and finished_at < $3 order by id limit $4)
"""
TASKS = """
    delete from task_history h where (h.tenant_id, h.run_id, h.node, h.finished_at) in (
        select tenant_id, run_id, node, finished_at from task_history t where tenant_id = $1 and run_id < $2 and finished_at < $3
               and not exists (select from runs r where r.tenant_id = $1 and r.id = t.run_id) order by run_id limit $4)
"""
ATTEMPTS = """
    delete from attempts h where (h.tenant_id, h.run_id, h.node, h.number, h.finished_at) in (
        select tenant_id, run_id, node, number, finished_at from attempts a where tenant_id = $1 and run_id < $2 and finished_at < $3
               and not exists (select from runs r where r.tenant_id = $1 and r.id = a.run_id)
               and not exists (select from run_history r where r.tenant_id = $1 and r.id = a.run_id and r.finished_at >= $3)
        order by run_id limit $4)
"""
LOGS = """
    delete from logs h where (h.tenant_id, h.run_id, h.seq, h.at) in (
        select tenant_id, run_id, seq, at from logs l where tenant_id = $1 and run_id < $2 and at < $3
               and not exists (select from runs r where r.tenant_id = $1 and r.id = l.run_id)
               and not exists (select from run_history r where r.tenant_id = $1 and r.id = l.run_id and r.finished_at >= $3)
        order by run_id limit $4)
"""
CHUNKS = """
    delete from chunks h where (h.tenant_id, h.run_id, h.node, h.attempt, h.stream, h.seq, h.at) in (
        select tenant_id, run_id, node, attempt, stream, seq, at from chunks c where tenant_id = $1 and run_id < $2 and at < $3
               and not exists (select from runs r where r.tenant_id = $1 and r.id = c.run_id)
               and not exists (select from run_history r where r.tenant_id = $1 and r.id = c.run_id and r.finished_at >= $3)
        order by run_id limit $4)
"""
EVENTS = """
    delete from events h where (h.tenant_id, h.id, h.created_at) in (
        select tenant_id, id, created_at from events e where tenant_id = $1 and id < $2 and created_at < $3
               and not exists (select from runs r where r.tenant_id = $1 and r.event_id = e.id)
               and not exists (select from run_history r where r.tenant_id = $1 and r.event_id = e.id and r.finished_at >= $3)
        order by id limit $4)
"""
DELIVERIES = """
    delete from webhook_deliveries h where (h.tenant_id, h.id, h.received_at) in (
        select tenant_id, id, received_at from webhook_deliveries
        where tenant_id = $1 and id < $2 and received_at < $3 order by id limit $4)
"""
_STEPS = ((RUNS, "run"), (TASKS, "run"), (ATTEMPTS, "run"), (LOGS, "run"), (CHUNKS, "run"), (EVENTS, "evt"), (DELIVERIES, "dlv"))


async def keeps(db: Database, tenant_id: int) -> int | None:
    """For how many days a tenant keeps its history, None where it has not said."""
    row = KEEPS.first(await db.fetch(KEEPS.sql, tenant_id))
    return row.days if row is not None else None


async def keep(db: Database, tenant_id: int, days: int | None) -> None:
    """Set for how many days a tenant keeps its history; None for as long as the server does."""
    await db.execute(SET, tenant_id, days)


async def delete_expired(db: Database, now: datetime, server_days: int, limit: int) -> int:
    """Delete what tenants keep no longer, `limit` rows in a statement; answers how many."""
    deleted = 0
    for tenant in SHORTER.read(await db.fetch(SHORTER.sql, server_days)):
        before = now - timedelta(days=tenant.days or server_days)
        for sql, prefix in _STEPS:
            while some := int((await db.execute(sql, tenant.tenant_id, first_id(prefix, before), before, limit)).split()[-1]):
                deleted += some
                if some < limit:
                    break
    return deleted
