"""Batch tasks of the SDK, served by a real endpoint and sent by a real dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from handlers_sdk import Broadcast, ClientConfig, Context, DesiredWorkerLabel, Dispatcher, StickyStrategy
from tests.world.world import Node, World

SECOND = timedelta(seconds=1)


class Mail(BaseModel):
    to: str
    n: int = 0


class Sent(BaseModel):
    total: int


@asynccontextmanager
async def serving(world: World, node: Node, declare: Callable[[Dispatcher], list[Any]], slots: int = 50) -> AsyncIterator[None]:
    """An endpoint with these tasks, registered."""
    client = Dispatcher(ClientConfig(api_url=node.runtime.services.settings.base_url()))
    app = client.app(workflows=declare(client), slots=slots, clock=lambda: int(world.now.timestamp()))
    await node.call("PUT", "/v1/endpoints/sdk", {"url": await world.serve(app)})
    yield
    await client.aio_close()


async def _results(node: Node, run_ids: list[str]) -> list[Any]:
    runs = [await node.call("GET", f"/v1/runs/{run_id}?wait=10s") for run_id in run_ids]
    return [(run["status"], run["output"] if run["status"] == "succeeded" else run["error"]["message"]) for run in runs]


async def test_one_call_serves_a_batch_and_each_run_gets_its_own_result(world: World) -> None:
    one = await world.served_node()
    calls: list[list[int]] = []

    def declare(app: Dispatcher) -> list[Any]:

        @app.batch_task(batch_size=3, batch_interval="10s", name="send")
        async def send(items: list[tuple[Mail, Context]]) -> list[Sent]:
            calls.append([mail.n for mail, _ in items])
            return [Sent(total=mail.n * 2) for mail, _ in items]

        return [send]

    async with serving(world, one, declare):
        runs = [await one.trigger("send", input={"to": "ann", "n": n}) for n in range(6)]
        assert await _results(one, runs) == [("succeeded", {"total": n * 2}) for n in range(6)]
        assert sorted(map(len, calls)) == [3, 3]


async def test_one_that_fails_or_cannot_be_read_spoils_nothing_for_the_others(world: World) -> None:
    one = await world.served_node()

    def declare(app: Dispatcher) -> list[Any]:

        @app.batch_task(batch_size=3, batch_interval="10s", name="send")
        def send(items: list[tuple[Mail, Context]]) -> list[Any]:
            return [ValueError("nobody there") if mail.to == "nobody" else len(items) for mail, _ in items]

        return [send]

    async with serving(world, one, declare):
        runs = [await one.trigger("send", input=given) for given in ({"to": "ann"}, {"to": "nobody"}, {"wrong": 1})]
        good, failed, unread = await _results(one, runs)
        assert good == ("succeeded", 2)
        assert failed == ("failed", "nobody there")
        assert unread[0] == "failed"
        assert "to" in unread[1]


async def test_a_broadcast_is_everybodys_result_and_a_wrong_count_nobodys(world: World) -> None:
    one = await world.served_node()

    def declare(app: Dispatcher) -> list[Any]:

        @app.batch_task(batch_size=2, name="all")
        async def everybody(items: list[tuple[Mail, Context]]) -> Broadcast[str]:
            return Broadcast("done")

        @app.batch_task(batch_size=2, name="short")
        async def short(items: list[tuple[Mail, Context]]) -> list[int]:
            return [1]

        return [everybody, short]

    async with serving(world, one, declare):
        assert await _results(one, [await one.trigger("all", input={"to": "a"}) for _ in range(2)]) == [("succeeded", "done")] * 2
        (status, message), _ = await _results(one, [await one.trigger("short", input={"to": "a"}) for _ in range(2)])
        assert (status, "a list of 1 for a batch of 2" in message) == ("failed", True)


async def test_more_than_the_endpoint_has_slots(world: World) -> None:
    one = await world.served_node()

    def declare(app: Dispatcher) -> list[Any]:

        @app.batch_task(batch_size=50, name="send")
        async def send(items: list[tuple[Mail, Context]]) -> list[int]:
            await asyncio.sleep(0)
            return [len(items)] * len(items)

        return [send]

    async with serving(world, one, declare, slots=2):
        runs = [await one.trigger("send", input={"to": "a"}) for _ in range(50)]
        assert await _results(one, runs) == [("succeeded", 50)] * 50


async def test_placement_is_declared(world: World) -> None:
    one = await world.served_node()

    def declare(app: Dispatcher) -> list[Any]:

        @app.task(name="train", desired_worker_labels=[DesiredWorkerLabel("gpu", 1)], slot_cost=2, sticky=StickyStrategy.HARD)
        async def train(mail: Mail, ctx: Context) -> int:
            return 1

        return [train]

    async with serving(world, one, declare):
        definition = (await one.call("GET", "/v1/workflows/train"))["definition"]
        assert (definition["sticky"], definition["slot_cost"]) == ("hard", 2)
        assert definition["desired_labels"] == {"gpu": {"value": 1, "comparator": "EQUAL", "required": False, "weight": 100}}
