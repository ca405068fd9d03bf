"""Log lines are written as sets, and read in the order of writing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.ids import IdMaker
from dispatcher.store import logs
from dispatcher.store.database import Database
from dispatcher.store.logs import EVERY_LINE, LineFilter, NewLine
from tests.world.world import until

NOW = datetime(2026, 6, 1, tzinfo=UTC)
RUN = IdMaker().make("run", NOW)


async def test_lines_keep_the_order_of_writing(database: Database) -> None:
    lines = [NewLine(1, RUN, 0, 1 + i // 2, NOW - timedelta(seconds=i), "info", f"line {i}\n\u00e9") for i in range(4)]
    await logs.append(database, lines[:3])
    await logs.append(database, [])
    await logs.append(database, [*lines[3:], NewLine(2, RUN, 0, 1, NOW, "info", "another tenant's")])
    read = (await logs.lines(database, 1, RUN, EVERY_LINE, 0, 10, 100)).lines
    assert [(line.message, line.attempt, line.at) for line in read] == [(line.message, line.attempt, line.at) for line in lines]
    page = await logs.lines(database, 1, RUN, EVERY_LINE, read[1].seq, 1, 100)
    assert (page.lines, page.position, page.more) == (read[2:3], read[2].seq, True)
    assert (await logs.lines(database, 1, "no id", EVERY_LINE, 0, 10, 100)).lines == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (LineFilter(levels=["error"]), [3, 6, 9]),
        (LineFilter(levels=["error", "info"], search="LINE 1"), [1]),
        (LineFilter(attempt=2), [2, 5, 8]),
        (LineFilter(node=1), []),
        (LineFilter(since=NOW + timedelta(seconds=3), until=NOW + timedelta(seconds=5)), [3, 4]),
        (LineFilter(search="%_'\\"), [7]),
    ],
)
async def test_lines_are_chosen(database: Database, wanted: LineFilter, found: list[int]) -> None:
    def line(n: int) -> NewLine:
        text = "odd %_'\\ signs" if n == 7 else f"Line {n}"
        return NewLine(1, RUN, 0, n % 3, NOW + timedelta(seconds=n), "info" if n % 3 else "error", text)

    await logs.append(database, [line(n) for n in range(1, 10)])
    numbers = [(line.at - NOW).seconds for line in (await logs.lines(database, 1, RUN, wanted, 0, 10, 100)).lines]
    assert numbers == found
    if wanted.node is None and wanted.attempt is None:
        latest = [(line.at - NOW).seconds for line in (await logs.tenant_lines(database, 1, wanted, None, 10, 100)).lines]
        assert latest == found[::-1]


async def test_lines_of_a_tenant_are_paged_by_time_and_number(database: Database) -> None:
    """Lines of one moment are told apart by their numbers; what is written meanwhile does not move what is left."""
    moments = [0, 1, 1, 1, 0, 2, 1]
    await logs.append(database, [NewLine(1, RUN, 0, 1, NOW + timedelta(seconds=s), "info", f"{n}") for n, s in enumerate(moments)])
    seen: list[str] = []
    before, more = None, True
    while more:
        page = await logs.tenant_lines(database, 1, LineFilter(search="1" if seen == ["5"] else None), before, 1, 2)
        seen += [line.message for line in page.lines]
        before, more = page.position or before, page.more
        await logs.append(database, [NewLine(1, RUN, 0, 1, NOW + timedelta(seconds=3), "info", "late")])
    assert seen == ["5", "1", "4", "0"]


async def test_a_search_looks_at_so_many_lines_and_says_where_it_stopped(database: Database) -> None:
    await logs.append(database, [NewLine(1, RUN, 0, 1, NOW, "info", f"line {n}") for n in range(1, 10)])
    seen: list[str] = []
    after, pages, more = 0, 0, True
    while more:
        page = await logs.lines(database, 1, RUN, LineFilter(search="line 9"), after, 5, 4)
        seen += [line.message for line in page.lines]
        after, pages, more = page.position or after, pages + 1, page.more
    assert (seen, pages) == (["line 9"], 3)


async def test_numbers_of_a_run_appear_in_their_order(database: Database) -> None:
    """A second writer waits for the first to commit before it is given its numbers."""
    async with database.transaction() as conn:
        await logs.append(conn, [NewLine(1, RUN, 0, 1, NOW, "info", "first")])
        second = asyncio.ensure_future(logs.append(database, [NewLine(1, RUN, 0, 1, NOW, "info", "second")]))
        await until(lambda: _waits(database))
        assert not second.done()
    await second
    assert [line.message for line in (await logs.lines(database, 1, RUN, EVERY_LINE, 0, 10, 100)).lines] == ["first", "second"]


async def _waits(database: Database) -> bool:
    return bool(await database.fetchval("select exists (select from pg_locks where locktype = 'advisory' and not granted)"))


class _Meanwhile:
    """A database on which another line is written after every reading of lines."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.written = 0

    async def fetch(self, sql: str, *values: Any) -> Any:
        rows = await self._database.fetch(sql, *values)
        if "from logs" in sql and self.written < 20:
            self.written += 1
            text = f"meanwhile {self.written}"
            await logs.append(self._database, [NewLine(1, RUN, 0, 1, NOW + timedelta(minutes=self.written), "info", text)])
        return rows

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        async with self._database.transaction() as conn:
            other = _Meanwhile(self._database)
            other.written = self.written

            async def fetch(sql: str, *values: Any) -> Any:
                rows = await conn.fetch(sql, *values)
                await other.fetch(sql, *values)
                self.written = other.written
                return rows

            yield SimpleNamespace(execute=conn.execute, fetch=fetch)


async def test_a_line_written_while_lines_are_chosen_is_not_missed(database: Database) -> None:
    await logs.append(database, [NewLine(1, RUN, 0, 1, NOW, level, level) for level in ("debug", "info")])
    meanwhile, seen, after = _Meanwhile(database), list[str](), 0
    for _ in range(30):
        page = await logs.lines(cast(Database, meanwhile), 1, RUN, LineFilter(levels=["info"]), after, 10, 100)
        seen += [line.message for line in page.lines]
        after = page.position or after
    assert seen == ["info", *[f"meanwhile {n}" for n in range(1, 21)]]


async def test_a_line_written_while_those_of_a_tenant_are_chosen_moves_nothing(database: Database) -> None:
    await logs.append(database, [NewLine(1, RUN, 0, 1, NOW + timedelta(seconds=n), "info", f"{n}") for n in range(40)])
    meanwhile, seen, before = _Meanwhile(database), list[str](), None
    for _ in range(9):
        page = await logs.tenant_lines(cast(Database, meanwhile), 1, LineFilter(levels=["info"]), before, 20, 5)
        seen += [line.message for line in page.lines]
        before = page.position
        if not page.more:
            break
    assert seen == [f"{n}" for n in reversed(range(40))]
