"""Where runs are, and which workflows ask something of the endpoints of their tasks."""

from __future__ import annotations

from dispatcher.store import registry
from dispatcher.store.database import Database

# A run that is bound to an endpoint names it; of another the task that began last says where it is.
ENDPOINT_OF = """
    select coalesce(r.sticky_endpoint, (
        select t.endpoint_id from tasks t where t.tenant_id = $1 and t.run_id = $2 and t.endpoint_id is not null
        order by t.started_at desc nulls last limit 1
    ))
    from runs r where r.tenant_id = $1 and r.id = $2
"""


async def endpoint_of(db: Database, tenant_id: int, run_id: str) -> str | None:
    """The endpoint a live run is at; None where it has not begun or is over."""
    found: str | None = await db.fetchval(ENDPOINT_OF, tenant_id, run_id)
    return found


async def mark_asking(db: Database, tenant_id: int, workflow_id: int) -> None:
    """Let every dispatcher look for the queues of tasks of a workflow that ask something."""
    async with db.transaction() as conn:
        await registry.bump(conn, tenant_id)
        await registry.mark_asking(conn, tenant_id, workflow_id)
