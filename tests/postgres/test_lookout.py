"""Which queues of a workflow are looked at, where there are more than are looked at at once: all of them, by turns."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dispatcher.engine.admission import Queue
from dispatcher.runtime.lookout import Lookout
from dispatcher.store.database import Database

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MOST = 3
FILL = """
    insert into tasks (tenant_id, run_id, node, workflow_id, workflow_version, state, priority, due_at, execution_ms, durable, requirement)
    select 1, format('run_%s_%s_%s', $1::int, $2::boolean, r), 0, $1, 1, 'queued', 1, $3, 1000, $2, r from unnest($4::text[]) as r
"""


def named(queues: list[Queue], number: int) -> str:
    """What the queues of one number ask for, in the order in which they were found."""
    return "".join(requirement for _, n, requirement in queues if n == number)


@pytest.mark.parametrize(
    ("letters", "looks"), [("abc", ["abc", "abc"]), ("abcd", ["abc", "dab", "cda"]), ("abcdefg", ["abc", "def", "gab"])]
)
async def test_every_queue_has_its_turn(database: Database, letters: str, looks: list[str]) -> None:
    await database.execute(FILL, 1, False, NOW, list(letters))
    await database.execute(FILL, 2, False, NOW, ["x"])
    lookout = Lookout(database, MOST)
    for expected in looks:
        found = await lookout.look([(1, 1), (1, 2)])
        assert (named(found, 1), named(found, 2)) == (expected, "x")
        assert lookout.whole is (len(letters) <= MOST)
    await database.execute("delete from tasks")


async def test_durable_tasks_have_turns_of_their_own(database: Database) -> None:
    await database.execute(FILL, 1, False, NOW, list("abcd"))
    await database.execute(FILL, 1, True, NOW, list("qrstu"))
    lookout = Lookout(database, MOST)
    for plain, durable in (("abc", "qrs"), ("dab", "tuq"), ("cda", "rst")):
        found = await lookout.look([(1, 1)])
        assert (named(found, 1), named(found, -1)) == (plain, durable)
    await database.execute("delete from tasks")


async def test_what_is_looked_at_again_is_what_is_there_then(database: Database) -> None:
    await database.execute(FILL, 1, False, NOW, list("bcdef"))
    lookout = Lookout(database, MOST)
    assert named(await lookout.look([(1, 1)]), 1) == "bcd"
    await database.execute("delete from tasks where requirement in ('d', 'e', 'f')")
    assert (named(await lookout.look([(1, 1)]), 1), lookout.whole) == ("bc", True)
    await database.execute(FILL, 1, False, NOW, ["a"])
    assert (named(await lookout.look([(1, 1)]), 1), lookout.whole) == ("abc", True)
    assert await lookout.look([(1, 2)]) == []
    await database.execute("delete from tasks")
