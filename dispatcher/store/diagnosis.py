"""What `dispatcher doctor` asks a Postgres about itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from dispatcher.store.lane import Connection
from dispatcher.store.statement import Statement

_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Facts:
    """A server as it describes itself. `moment` is when it began to answer, by its own clock."""

    version: str
    version_number: int
    moment: datetime
    is_replica: bool
    synchronous_commit: str
    fsync: str
    max_connections: int


# The activity view holds when the running statement arrived: the server's clock, read without asking it for the time.
FACTS = Statement(
    """
    select current_setting('server_version') as version, current_setting('server_version_num')::int as version_number,
           a.query_start as moment, pg_is_in_recovery() as is_replica, current_setting('synchronous_commit') as synchronous_commit,
           current_setting('fsync') as fsync, current_setting('max_connections')::int as max_connections
    from pg_stat_activity a where a.pid = pg_backend_pid()
    """,
    Facts,
)


async def facts(dsn: str) -> Facts:
    """Ask over a connection of its own. Raises asyncpg's errors, and OSError where there is no server."""
    connection: Connection = await asyncpg.connect(dsn, timeout=_CONNECT_SECONDS)
    try:
        return FACTS.read(await connection.fetch(FACTS.sql))[0]
    finally:
        await connection.close(timeout=_CONNECT_SECONDS)
