"""Following deliveries: a request that waits is answered when something comes, wherever it came."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from tests.api.world import open_world
from tests.webhooks_server.senders import Senders, github, numbered
from tests.webhooks_server.test_races import until

PATH = "/v1/webhook-deliveries"


async def _asked(senders: Senders, **params: Any) -> asyncio.Task[list[dict[str, Any]]]:
    """A request that waits by now."""

    async def ask() -> list[dict[str, Any]]:
        answer = await senders.http.get(PATH, params=params)
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = answer.json()["rows"]
        return rows

    asked, waiting = asyncio.ensure_future(ask()), senders.world.services.webhooks.arrivals._waiting
    await until(lambda: bool(waiting) or asked.done())
    return asked


async def test_what_is_there_is_answered_at_once_in_the_order_it_came(senders: Senders) -> None:
    await senders.webhook()
    await senders.webhook("other")
    made = []
    for number, name in enumerate(["github", "other", "github", "other", "github"]):
        made.append((await senders.github(numbered(number), name=name)).json()["id"])
        senders.world.clock.advance(timedelta(seconds=1))
    await senders.post("github", b"{}", {})
    found, cursor = list[str](), None
    while cursor is not None or not found:
        params = {"limit": "2", "status": "accepted", **({"cursor": cursor} if cursor else {})}
        page = (await senders.http.get(PATH, params=params)).json()
        found += [row["id"] for row in page["rows"]]
        cursor = page["next_cursor"]
    assert found == made
    others = await (await _asked(senders, webhook="other", wait="60s"))
    assert [(row["id"], row["webhook"]) for row in others] == [(made[1], "other"), (made[3], "other")]
    since = (senders.world.clock.now() - timedelta(seconds=2)).isoformat()
    assert [row["id"] for row in await (await _asked(senders, since=since, status="accepted"))] == made[3:]


async def test_what_comes_later_wakes_who_waits_for_it(senders: Senders) -> None:
    await senders.webhook()
    await senders.webhook("other")
    asked = await _asked(senders, webhook="github", wait="60s")
    await senders.github(numbered(1), name="other")
    for _ in range(50):
        await asyncio.sleep(0)
    assert not asked.done()
    made = (await senders.github(numbered(2))).json()["id"]
    assert [row["id"] for row in await asked] == [made]


async def test_what_came_to_another_process_is_found_by_looking(senders: Senders) -> None:
    await senders.webhook()
    async with AsyncExitStack() as stack:
        other = await open_world(senders.world.database, stack)
        http = await stack.enter_async_context(other.client())
        asked = await _asked(senders, wait="60s")
        body = numbered(1)
        made = (await http.post("/hooks/default/github", content=body, headers=github(body))).json()["id"]
        await until(lambda: bool(senders.world.clock._sleepers))
        senders.world.clock.advance(timedelta(seconds=1))
        assert [row["id"] for row in await asked] == [made]
        await other.services.webhooks.settled()


async def test_what_was_made_earlier_and_written_later_wakes_too(senders: Senders) -> None:
    """It is not what was asked for, but a reason to look a little further back."""
    await senders.webhook()
    since = (senders.world.clock.now() + timedelta(seconds=5)).isoformat()
    asked = await _asked(senders, since=since, wait="60s")
    await senders.github(numbered(1))
    assert await asked == []


async def test_when_the_time_is_up_the_page_is_empty(senders: Senders) -> None:
    await senders.webhook()
    asked = await _asked(senders, wait="2s")
    for _ in range(2):
        await until(lambda: bool(senders.world.clock._sleepers))
        senders.world.clock.advance(timedelta(seconds=1))
    assert await asked == []
    assert not senders.world.services.webhooks.arrivals._waiting


async def test_a_server_that_ends_lets_nobody_wait(senders: Senders) -> None:
    await senders.webhook()
    asked = await _asked(senders, wait="60s")
    await senders.world.services.webhooks.drain()
    assert await asked == []
    assert await (await _asked(senders, wait="60s")) == []


@pytest.mark.parametrize("params", [{"wait": "soon"}, {"status": "lost"}, {"since": "now"}, {"cursor": "x"}, {"order": "newest"}])
async def test_bad_questions(senders: Senders, params: dict[str, str]) -> None:
    assert (await senders.http.get(PATH, params=params)).status_code == 400


async def test_one_tenants_deliveries_are_not_anothers(senders: Senders) -> None:
    await senders.webhook()
    await senders.github()
    async with senders.world.client(await senders.world.token("other")) as http:
        assert (await http.get(PATH)).json()["rows"] == []
