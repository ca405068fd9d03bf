"""What attempts say while they run: log lines, and chunks of streams. Written as sets, read in the order of writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.store.database import Connection, Database
from dispatcher.store.runs import ended_after
from dispatcher.store.statement import Statement


@dataclass(slots=True)
class NewLine:
    """A log line of an attempt; `at` is when the handler says it was written."""

    tenant_id: int
    run_id: str
    node: int
    attempt: int
    at: datetime
    level: str
    message: str


@dataclass(slots=True)
class NewChunk:
    """A piece of one of an attempt's streams. `seq` is the sender's count: the same number is the same chunk."""

    tenant_id: int
    run_id: str
    node: int
    attempt: int
    stream: str
    seq: int
    data: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class Line:
    """A log line as it is read."""

    seq: int
    node: int
    attempt: int
    at: datetime
    level: str
    message: str


APPEND = """
    insert into logs (tenant_id, run_id, node, attempt, at, level, message)
    select * from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::timestamptz[], $6::text[], $7::text[])
"""
# A chunk that was sent again after a lost answer has the number it had; only its time may differ, which is why no key finds it.
APPEND_CHUNKS = """
    insert into chunks (tenant_id, run_id, node, attempt, stream, seq, data, at)
    select * from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::bigint[], $7::bytea[], $8::timestamptz[])
        as g (tenant_id, run_id, node, attempt, stream, seq, data, at)
    where not exists (select from chunks c where c.tenant_id = g.tenant_id and c.run_id = g.run_id and c.node = g.node
                      and c.attempt = g.attempt and c.stream = g.stream and c.seq = g.seq)
    on conflict do nothing
"""
LINES = Statement(
    """
    select seq, node, attempt, at, level, message from logs
    where tenant_id = $1 and run_id = $2 and seq > $3 and at >= $4 order by seq limit $5
    """,
    Line,
)


async def append(db: Database | Connection, lines: Sequence[NewLine]) -> None:
    """Write log lines in this order."""
    if not lines:
        return
    await db.execute(
        APPEND,
        [line.tenant_id for line in lines],
        [line.run_id for line in lines],
        [line.node for line in lines],
        [line.attempt for line in lines],
        [line.at for line in lines],
        [line.level for line in lines],
        [line.message for line in lines],
    )


async def append_chunks(db: Database | Connection, chunks: Sequence[NewChunk]) -> None:
    """Write chunks; those already there are left as they are."""
    if not chunks:
        return
    await db.execute(
        APPEND_CHUNKS,
        [chunk.tenant_id for chunk in chunks],
        [chunk.run_id for chunk in chunks],
        [chunk.node for chunk in chunks],
        [chunk.attempt for chunk in chunks],
        [chunk.stream for chunk in chunks],
        [chunk.seq for chunk in chunks],
        [chunk.data for chunk in chunks],
        [chunk.at for chunk in chunks],
    )


async def lines(db: Database, tenant_id: int, run_id: str, after: int, limit: int) -> list[Line]:
    """Log lines of a run behind number `after`, at most `limit`, in the order they were written."""
    since = ended_after(run_id)
    if since is None:
        return []
    return LINES.read(await db.fetch(LINES.sql, tenant_id, run_id, after, since, limit))
