"""Log lines and chunks are written as sets; a chunk sent again is the chunk that is there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dispatcher.ids import IdMaker
from dispatcher.store import logs
from dispatcher.store.database import Database
from dispatcher.store.logs import NewChunk, NewLine

NOW = datetime(2026, 6, 1, tzinfo=UTC)
RUN = IdMaker().make("run", NOW)


async def test_lines_keep_the_order_of_writing(database: Database) -> None:
    lines = [NewLine(1, RUN, 0, 1 + i // 2, NOW - timedelta(seconds=i), "info", f"line {i}\n\u00e9") for i in range(4)]
    await logs.append(database, lines[:3])
    await logs.append(database, [])
    await logs.append(database, [*lines[3:], NewLine(2, RUN, 0, 1, NOW, "info", "another tenant's")])
    read = await logs.lines(database, 1, RUN, 0, 10)
    assert [(line.message, line.attempt, line.at) for line in read] == [(line.message, line.attempt, line.at) for line in lines]
    assert await logs.lines(database, 1, RUN, read[1].seq, 1) == read[2:3]
    assert await logs.lines(database, 1, "no id", 0, 10) == []


async def test_a_chunk_sent_again_is_there_once(database: Database) -> None:
    chunks = [NewChunk(1, RUN, 0, 1, "out", seq, b'"%d"' % seq, NOW) for seq in range(3)]
    await logs.append_chunks(database, chunks[:2])
    await logs.append_chunks(database, [])
    again = [NewChunk(1, RUN, 0, 1, "out", seq, b'"other"', NOW + timedelta(seconds=9)) for seq in range(2)]
    await logs.append_chunks(database, [*again, chunks[2], NewChunk(1, RUN, 0, 2, "out", 0, b'"of the retry"', NOW)])
    rows = await database.fetch("select attempt, seq, data from chunks order by attempt, seq")
    assert [tuple(row) for row in rows] == [(1, 0, b'"0"'), (1, 1, b'"1"'), (1, 2, b'"2"'), (2, 0, b'"of the retry"')]
