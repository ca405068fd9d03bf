"""Streams in tables: appending under a stream's lock, and reading behind a position.

Positions are given out under the lock of the stream's row and become visible when it is let go. So they appear in their order, and a
reader that has seen one has been shown, or can read, everything before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher import ids
from dispatcher.engine.streams import Entry, Limits, Piece, RunFact, RunState, State, TaskFact, TaskState, Writer
from dispatcher.store.database import Connection, Database, retry_conflicts
from dispatcher.store.runs import CLOCK_SKEW
from dispatcher.store.statement import Statement

StreamKey = tuple[int, str]  # (tenant id, stream id)


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream as it is kept; `state` is JSON text."""

    tenant_id: int
    id: str
    last: int
    state: str


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task of a run of a stream; a run without any task is one row without `node`. `status` is the run's, None while it lives."""

    tenant_id: int
    stream_id: str
    run_id: str
    status: str | None
    node: int | None
    epoch: int
    running: bool


@dataclass(frozen=True, slots=True)
class EntryRow:
    """An entry as it is stored."""

    position: int
    kind: str
    run_id: str
    node: int
    attempt: int
    name: str
    seq: int
    data: bytes
    encoding: str | None


@dataclass(frozen=True, slots=True)
class PieceKey:
    """What makes a piece the same as another."""

    tenant_id: int
    run_id: str
    node: int
    attempt: int
    name: str
    seq: int


@dataclass(frozen=True, slots=True)
class StreamId:
    """Where a run's entries stand."""

    id: str


# A run without a stream named in its row has one of its own, named after it.
LOCK_OF_RUNS = Statement(
    """
    insert into streams as s (tenant_id, id, created_at, updated_at)
    select distinct g.tenant_id, coalesce(r.stream_id, 'str_' || substr(r.id, 5)) as stream_id, $3::timestamptz, $3::timestamptz
    from unnest($1::int[], $2::text[]) as g (tenant_id, run_id) join runs r on r.tenant_id = any (array[g.tenant_id]) and r.id = g.run_id
    order by 1, 2
    on conflict (tenant_id, id) do update set updated_at = excluded.updated_at
    returning s.tenant_id, s.id, s.last, s.state
    """,
    StreamRow,
)
LOCK = Statement(
    """
    insert into streams as s (tenant_id, id, created_at, updated_at) values ($1, $2, $3, $3)
    on conflict (tenant_id, id) do update set updated_at = excluded.updated_at
    returning s.tenant_id, s.id, s.last, s.state
    """,
    StreamRow,
)
STREAM = Statement("select tenant_id, id, last, state from streams where tenant_id = $1 and id = $2", StreamRow)
TASKS_OF_RUNS = Statement(
    """
    select g.tenant_id, coalesce(r.stream_id, 'str_' || substr(r.id, 5)) as stream_id, r.id as run_id, null::text as status, t.node,
           t.epoch, t.state = 'running' as running
    from unnest($1::int[], $2::text[]) as g (tenant_id, run_id)
    join runs r on r.tenant_id = any (array[g.tenant_id]) and r.id = g.run_id
    join tasks t on t.tenant_id = any (array[g.tenant_id]) and t.run_id = g.run_id
    """,
    TaskRow,
)
# The runs of a stream: those of the event it is named after, or the one run.
TASKS = Statement(
    """
    with run as (
        select id, null::text as status, null::timestamptz as finished_at from runs
        where tenant_id = $1 and id = 'run_' || substr($2, 5) and coalesce(stream_id, $2) = $2
        union all
        select id, null, null from runs where tenant_id = $1 and event_id = 'evt_' || substr($2, 5)
        union all
        select id, status, finished_at from run_history
        where tenant_id = $1 and id = 'run_' || substr($2, 5) and coalesce(stream_id, $2) = $2 and finished_at >= $3
        union all
        select id, status, finished_at from run_history where tenant_id = $1 and event_id = 'evt_' || substr($2, 5) and finished_at >= $3
    )
    select $1::int as tenant_id, $2::text as stream_id, r.id as run_id, r.status, t.node, coalesce(t.epoch, 0) as epoch,
           coalesce(t.running, false) as running
    from run r left join lateral (
        select node, epoch, state = 'running' as running from tasks where r.status is null and tenant_id = $1 and run_id = r.id
        union all
        select node, epoch, false from task_history
        where r.status is not null and tenant_id = $1 and run_id = r.id and finished_at >= $3
    ) t on true
    order by r.id, t.node
    """,
    TaskRow,
)
SEEN = Statement(
    """
    select c.tenant_id, c.run_id, c.node, c.attempt, c.stream as name, c.seq
    from unnest($1::int[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::bigint[])
        as g (tenant_id, run_id, node, attempt, name, seq)
    join chunks c on c.tenant_id = g.tenant_id and c.run_id = g.run_id and c.node = g.node and c.attempt = g.attempt
        and c.stream = g.name and c.seq = g.seq and c.kind = 'data'
    """,
    PieceKey,
)
WRITE = """
    with moved as (
        update streams s set last = g.last, state = g.state::jsonb
        from unnest($12::int[], $13::text[], $14::bigint[], $15::text[]) as g (tenant_id, id, last, state)
        where s.tenant_id = any (array[g.tenant_id]) and s.id = g.id
    )
    insert into chunks (tenant_id, stream_id, position, kind, run_id, node, attempt, stream, seq, data, encoding, at)
    select g.*, $16::timestamptz
    from unnest($1::int[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::smallint[], $7::int[], $8::text[], $9::bigint[],
                $10::bytea[], $11::text[]) as g
"""
# A page ends before it grows larger than $6 bytes; its first entry always fits, or nobody could get past it.
READ = Statement(
    """
    select position, kind, run_id, node, attempt, stream as name, seq, data, encoding
    from (select *, sum(octet_length(data)) over behind as bytes, row_number() over behind as number
          from (select * from chunks where tenant_id = $1 and stream_id = $2 and position > $3 and at >= $4
                order by position limit $5) page
          window behind as (order by position)) measured
    where bytes <= $6 or number = 1 order by position
    """,
    EntryRow,
)
OF_RUN = Statement(
    """
    select coalesce(stream_id, 'str_' || substr(id, 5)) as id from runs where tenant_id = $1 and id = $2
    union all
    select coalesce(stream_id, 'str_' || substr(id, 5)) from run_history where tenant_id = $1 and id = $2 and finished_at >= $3
    limit 1
    """,
    StreamId,
)
EXISTS = """
    select exists (select from events where tenant_id = $1 and id = 'evt_' || substr($2, 5) and created_at >= $3 and created_at < $4)
        or exists (select from runs where tenant_id = $1 and id = 'run_' || substr($2, 5) and coalesce(stream_id, $2) = $2)
        or exists (select from run_history where tenant_id = $1 and id = 'run_' || substr($2, 5) and finished_at >= $3
                   and coalesce(stream_id, $2) = $2)
"""
MOVED = Statement(
    """
    select s.tenant_id, s.id, s.last, s.state from unnest($1::int[], $2::text[], $3::bigint[]) as g (tenant_id, id, last)
    join streams s on s.tenant_id = any (array[g.tenant_id]) and s.id = g.id where s.last > g.last
    """,
    StreamRow,
)
CHANGED_RUNS = Statement(
    """
    select g.id from unnest($1::int[], $2::text[], $3::bigint[]) as g (tenant_id, id, epochs)
    where not exists (select from runs r where r.tenant_id = any (array[g.tenant_id]) and r.id = g.id)
       or (select coalesce(sum(t.epoch), 0) from tasks t where t.tenant_id = g.tenant_id and t.run_id = g.id) <> g.epochs
    """,
    StreamId,
)
PRUNE = """
    delete from streams s where (s.tenant_id, s.id) in (
        select tenant_id, id from streams o where created_at < $1 and updated_at < $1
               and not exists (select from runs r where r.tenant_id = o.tenant_id and r.id = 'run_' || substr(o.id, 5))
               and not exists (select from runs r where r.tenant_id = o.tenant_id and r.event_id = 'evt_' || substr(o.id, 5))
               and not exists (select from run_history r
                               where r.tenant_id = o.tenant_id and r.id = 'run_' || substr(o.id, 5) and r.finished_at >= $1)
               and not exists (select from run_history r
                               where r.tenant_id = o.tenant_id and r.event_id = 'evt_' || substr(o.id, 5) and r.finished_at >= $1)
        order by created_at limit $2)
"""


def began(stream_id: str) -> datetime | None:
    """From when on a stream can have entries, None if the text is no stream's id."""
    made = ids.created_at(stream_id)
    return made - CLOCK_SKEW if made is not None and stream_id.startswith("str_") else None


def read_state(text: str) -> State:
    """A stream's state from its JSON."""
    return {
        run_id: RunState(end, {int(node): TaskState(*values) for node, values in tasks.items()})
        for run_id, (end, tasks) in json.loads(text).items()
    }


def _state_json(state: State) -> str:
    return json.dumps(
        {
            run_id: [run.end, {node: [t.attempt, t.chunks, t.bytes, t.seq, t.full] for node, t in run.tasks.items()}]
            for run_id, run in state.items()
        }
    )


def facts_of(rows: Iterable[TaskRow]) -> list[RunFact]:
    """Runs from the rows of their tasks."""
    found: dict[str, tuple[str | None, dict[int, TaskFact]]] = {}
    for row in rows:
        _, tasks = found.setdefault(row.run_id, (row.status, {}))
        if row.node is not None:
            tasks[row.node] = TaskFact(row.epoch, row.running)
    return [RunFact(run_id, status, tasks) for run_id, (status, tasks) in found.items()]


async def append(db: Database, pieces: Sequence[tuple[int, Piece]], limits: Limits, now: datetime) -> dict[StreamKey, list[Entry]]:
    """Append pieces, each with its tenant, in this order; answers what each stream has gained. What no running attempt put is left out."""
    return await retry_conflicts(lambda: _append(db, pieces, limits, now)) if pieces else {}


async def _append(db: Database, pieces: Sequence[tuple[int, Piece]], limits: Limits, now: datetime) -> dict[StreamKey, list[Entry]]:
    keys = sorted({(tenant_id, piece.run_id) for tenant_id, piece in pieces})
    arrays = [tenant_id for tenant_id, _ in keys], [run_id for _, run_id in keys]
    async with db.transaction() as conn:
        locked = LOCK_OF_RUNS.read(await conn.fetch(LOCK_OF_RUNS.sql, *arrays, now))
        writers = {(row.tenant_id, row.id): Writer(read_state(row.state), row.last, limits) for row in locked}
        by_stream: dict[StreamKey, list[TaskRow]] = {}
        for row in TASKS_OF_RUNS.read(await conn.fetch(TASKS_OF_RUNS.sql, *arrays)):
            by_stream.setdefault((row.tenant_id, row.stream_id), []).append(row)
        stream_of = {(row.tenant_id, row.run_id): key for key, rows in by_stream.items() for row in rows}
        wanted = await _new(conn, pieces, stream_of, writers)
        for key, rows in by_stream.items():
            if key in writers:
                writers[key].observe(facts_of(rows), wanted.get(key, ()))
        await _write(conn, writers, now)
    return {key: writer.entries for key, writer in writers.items() if writer.entries}


async def _new(
    conn: Connection, pieces: Sequence[tuple[int, Piece]], stream_of: dict[tuple[int, str], StreamKey], writers: dict[StreamKey, Writer]
) -> dict[StreamKey, list[Piece]]:
    """The pieces by stream, without those that are there already: only one not behind the last of its attempt can be such."""
    chosen: dict[StreamKey, list[Piece]] = {}
    given: set[PieceKey] = set()
    doubtful: set[PieceKey] = set()
    for tenant_id, piece in pieces:
        stream = stream_of.get((tenant_id, piece.run_id))
        key = PieceKey(tenant_id, piece.run_id, piece.node, piece.attempt, piece.name, piece.seq)
        if stream is None or stream not in writers or key in given:
            continue
        given.add(key)
        chosen.setdefault(stream, []).append(piece)
        run = writers[stream].state.get(piece.run_id)
        task = run.tasks.get(piece.node) if run is not None else None
        if task is not None and task.attempt == piece.attempt and piece.seq <= task.seq:
            doubtful.add(key)
    if doubtful:
        columns = zip(*[(k.tenant_id, k.run_id, k.node, k.attempt, k.name, k.seq) for k in doubtful], strict=True)
        seen = {(k.tenant_id, k.run_id, k.node, k.attempt, k.name, k.seq) for k in SEEN.read(await conn.fetch(SEEN.sql, *columns))}
        for (tenant_id, _), some in chosen.items():
            some[:] = [p for p in some if (tenant_id, p.run_id, p.node, p.attempt, p.name, p.seq) not in seen]
    return chosen


async def _write(conn: Connection, writers: dict[StreamKey, Writer], now: datetime) -> None:
    rows = [(tenant_id, stream_id, entry) for (tenant_id, stream_id), writer in writers.items() for entry in writer.entries]
    await conn.execute(
        WRITE,
        [tenant_id for tenant_id, _, _ in rows],
        [stream_id for _, stream_id, _ in rows],
        [e.position for _, _, e in rows],
        [e.kind for _, _, e in rows],
        [e.run_id for _, _, e in rows],
        [e.node for _, _, e in rows],
        [e.attempt for _, _, e in rows],
        [e.name for _, _, e in rows],
        [e.seq for _, _, e in rows],
        [e.data for _, _, e in rows],
        [e.encoding for _, _, e in rows],
        [tenant_id for tenant_id, _ in writers],
        [stream_id for _, stream_id in writers],
        [writer.last for writer in writers.values()],
        [_state_json(writer.state) for writer in writers.values()],
        now,
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A stream as it stands: its last position, its state, and the facts of its runs."""

    last: int
    state: State
    facts: list[RunFact]


async def observe(db: Database, key: StreamKey, limits: Limits, now: datetime) -> Picture:
    """A stream as it is, with the marks its runs call for written now. Only a stream that lacks some is locked."""
    facts = await _facts(db.fetch, key)
    row = STREAM.first(await db.fetch(STREAM.sql, *key))
    last, state = (row.last, read_state(row.state)) if row is not None else (0, {})
    writer = Writer(state, last, limits)
    writer.observe(facts)
    if not writer.entries:
        return Picture(last, state, facts)
    return await retry_conflicts(lambda: _mark(db, key, limits, now))


async def _mark(db: Database, key: StreamKey, limits: Limits, now: datetime) -> Picture:
    async with db.transaction() as conn:
        row = LOCK.read(await conn.fetch(LOCK.sql, *key, now))[0]
        writer = Writer(read_state(row.state), row.last, limits)
        facts = await _facts(conn.fetch, key)
        writer.observe(facts)
        await _write(conn, {key: writer}, now)
    return Picture(writer.last, writer.state, facts)


async def _facts(fetch: Callable[..., Any], key: StreamKey) -> list[RunFact]:
    since = began(key[1])
    return facts_of(TASKS.read(await fetch(TASKS.sql, *key, since))) if since is not None else []


async def read(db: Database, key: StreamKey, after: int, limit: int, most_bytes: int) -> list[Entry]:
    """Entries behind position `after`, at most `limit` and about `most_bytes`; none only where there are none."""
    since = began(key[1])
    if since is None:
        return []
    rows = READ.read(await db.fetch(READ.sql, *key, after, since, limit, most_bytes))
    return [
        Entry(r.position, r.kind, r.run_id, r.node, r.attempt, r.name, r.seq, r.data, r.encoding)  # type: ignore[arg-type]  # the check says so
        for r in rows
    ]


async def of_run(db: Database, tenant_id: int, run_id: str) -> str | None:
    """The stream a run's entries stand in, None where there is no such run."""
    made = ids.created_at(run_id)
    if made is None or not run_id.startswith("run_"):
        return None
    row = OF_RUN.first(await db.fetch(OF_RUN.sql, tenant_id, run_id, made - CLOCK_SKEW))
    return row.id if row is not None else None


async def exists(db: Database, key: StreamKey) -> bool:
    """Whether there is an event or a run with this stream."""
    since = began(key[1])
    return since is not None and bool(await db.fetchval(EXISTS, *key, since, since + 2 * CLOCK_SKEW))


async def moved(db: Database, known: Iterable[tuple[StreamKey, int]]) -> list[StreamKey]:
    """Those of these streams that have entries behind the position given with them."""
    rows = [(tenant_id, stream_id, last) for (tenant_id, stream_id), last in known]
    if not rows:
        return []
    tenants, streams, positions = zip(*rows, strict=True)
    return [(row.tenant_id, row.id) for row in MOVED.read(await db.fetch(MOVED.sql, tenants, streams, positions))]


async def changed_runs(db: Database, known: Iterable[tuple[int, str, int]]) -> list[str]:
    """Those of these live runs (tenant id, run id, sum of the epochs of its tasks) that have ended or begun another attempt."""
    rows = list(known)
    if not rows:
        return []
    tenants, run_ids, epochs = zip(*rows, strict=True)
    return [row.id for row in CHANGED_RUNS.read(await db.fetch(CHANGED_RUNS.sql, tenants, run_ids, epochs))]


async def prune(db: Database, before: datetime, limit: int) -> int:
    """Forget at most `limit` streams that nobody has written to, and whose runs have all ended, before `before`; answers how many."""
    return int((await db.execute(PRUNE, before, limit)).split()[-1])
