"""Values too large for a message: they travel by reference, and nobody who reads a run, a child or a parent can tell."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from handlers_sdk import BulkPushEventWithMetadata, ClientConfig, Context, Dispatcher, DurableContext, EmptyModel
from handlers_sdk.references import CALL_BYTES_MAX, RESPONSE_BYTES_MAX
from handlers_sdk.triggers import BULK_REFERRED_MAX
from tests.world.endpoint import Arrival
from tests.world.world import Node, World

LARGE = "x" * 50_000
HUGE = "y" * (RESPONSE_BYTES_MAX + 10)
LOOKS = {"$ref": {"url": "https://elsewhere.example/1", "sha256": "0" * 64, "size": 5}}


def manifest(*handlers: dict[str, Any], features: tuple[str, ...] = ("refs",), **members: Any) -> dict[str, Any]:
    entries = [{"kind": "task", "body": "v1", **handler} for handler in handlers]
    return {"protocol": {"min": 1, "max": 1}, "version": "v1", "features": list(features), "handlers": entries, **members}


def ref(text: bytes) -> dict[str, Any]:
    return {"$ref": {"sha256": hashlib.sha256(text).hexdigest(), "size": len(text)}}


async def kept(world: World) -> int:
    return int(await world.database.fetchval("select count(*) from blobs"))


@pytest.fixture
async def node(world: World) -> Node:
    return await world.served_node(inline_bytes=10_000)


# ---- to an endpoint


async def test_a_large_input_goes_by_reference_and_a_small_one_does_not(world: World, node: Node) -> None:
    endpoint = await world.discovered(node, manifest({"name": "read"}))
    await node.trigger("read", input={"text": "small"})
    small = await endpoint.next()
    assert small.json["input"] == {"text": "small"}
    assert "refs" not in small.json
    assert await kept(world) == 0
    small.answer(200, 1, task_protocol="1")
    await node.trigger("read", input={"text": LARGE})
    push = (await endpoint.next()).json
    assert push["refs"] == ["input"]
    target = push["input"]["$ref"]
    assert target["url"].startswith(push["api"] + "/v1/blobs/sha256-")
    headers = {"authorization": f"Bearer {push['token']}"}
    fetched = await node.api.get(target["url"].removeprefix(push["api"]), headers=headers)
    assert json.loads(fetched.content) == {"text": LARGE}
    assert (len(fetched.content), hashlib.sha256(fetched.content).hexdigest()) == (target["size"], target["sha256"])


@pytest.mark.parametrize(("features", "body"), [((), "v1"), (("refs",), "raw")])
async def test_an_endpoint_that_takes_no_references_gets_values(world: World, node: Node, features: tuple[str, ...], body: str) -> None:
    endpoint = await world.discovered(node, manifest({"name": "read", "body": body}, features=features))
    await node.trigger("read", input={"text": LARGE})
    came = (await endpoint.next()).json
    assert (came if body == "raw" else came["input"]) == {"text": LARGE}
    assert await kept(world) == 0


async def test_data_that_looks_like_a_reference_is_data(world: World, node: Node) -> None:
    endpoint = await world.discovered(node, manifest({"name": "echo"}))
    run_id = await node.trigger("echo", input=LOOKS)
    push = await endpoint.next()
    assert push.json["input"] == LOOKS
    assert "refs" not in push.json
    push.answer(200, LOOKS, task_protocol="1")
    await world.over(run_id)
    assert (await node.call("GET", f"/v1/runs/{run_id}"))["output"] == LOOKS


async def test_an_input_found_too_large_is_sent_again_by_reference_once(world: World, node: Node) -> None:
    endpoint = await world.discovered(node, manifest({"name": "read"}))
    run_id = await node.trigger("read", input={"text": "z" * 9_000})
    first = await endpoint.next()
    assert first.json["input"] == {"text": "z" * 9_000}
    first.answer(413)
    second = await endpoint.next()
    assert (second.json["refs"], second.json["attempt"]) == (["input"], 1)
    second.answer(413)
    over = await world.over(run_id)
    assert (over["status"], over["error"]["code"], over["epoch"]) == ("failed", "input_too_large", 1)
    assert len(endpoint.seen) == 2


async def test_one_too_large_for_an_endpoint_without_references_fails(world: World, node: Node) -> None:
    endpoint = await world.discovered(node, manifest({"name": "read"}, features=()))
    run_id = await node.trigger("read", input={"text": "z" * 9_000})
    (await endpoint.next()).answer(413)
    assert (await world.over(run_id))["error"]["code"] == "input_too_large"


async def test_of_a_batch_that_is_too_large_each_follows_by_reference(world: World, node: Node) -> None:
    offered = manifest({"name": "read"}, features=("refs", "batch"), batch={"max_items": 10, "max_bytes": 100_000})
    endpoint = await world.discovered(node, offered)
    sizes: list[int] = []

    def way(arrival: Arrival) -> None:
        if arrival.json["type"] == "batch":
            sizes.append(len(arrival.json["items"]))
            arrival.answer(413)
        else:
            arrival.answer(200, arrival.json["refs"], task_protocol="1")

    endpoint.way = way
    wanted = [{"workflow": "read", "input": {"text": str(n) * 9_000}} for n in range(2)]
    rows = (await node.call("POST", "/v1/runs/bulk", {"runs": wanted}))["rows"]
    for row in rows:
        assert (await world.over(row["id"]))["output"] == b'["input"]'
    assert sizes == [2, 1, 1]


async def test_a_large_input_in_a_batch_goes_by_reference(world: World, node: Node) -> None:
    offered = manifest({"name": "read"}, features=("refs", "batch"), batch={"max_items": 10, "max_bytes": 1_000_000})
    endpoint = await world.discovered(node, offered)
    wanted = [{"workflow": "read", "input": {"text": text}} for text in ("small", LARGE)]
    await node.call("POST", "/v1/runs/bulk", {"runs": wanted})
    small, large = (await endpoint.next()).json["items"]
    assert (small["input"], "refs" in small) == ({"text": "small"}, False)
    assert (set(large["input"]), large["refs"]) == ({"$ref"}, ["input"])


# ---- from an endpoint


@dataclass(slots=True)
class Answered:
    """A run whose attempt waits for its answer, and the token it speaks with."""

    world: World
    node: Node
    run_id: str
    arrival: Any
    token: str = field(init=False)

    def __post_init__(self) -> None:
        self.token = self.arrival.json["token"]

    async def upload(self, text: bytes, token: str | None = None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {token or self.token}", "content-type": "application/json"}
        reply = await self.node.api.put("/v1/blobs", content=text, headers=headers)
        assert reply.status_code in (200, 201), reply.text
        return dict(reply.json()["ref"])

    async def run(self) -> Any:
        await self.world.over(self.run_id)
        return await self.node.call("GET", f"/v1/runs/{self.run_id}")


@pytest.fixture
async def answered(world: World, node: Node) -> Answered:
    endpoint = await world.discovered(node, manifest({"name": "make"}))
    run_id = await node.trigger("make")
    return Answered(world, node, run_id, await endpoint.next())


async def test_an_output_answered_by_reference_is_the_output(answered: Answered) -> None:
    reference = await answered.upload(json.dumps([HUGE]).encode())
    answered.arrival.answer(200, reference, task_protocol="1", task_refs="output")
    run = await answered.run()
    assert (run["status"], run["output"]) == ("succeeded", [HUGE])


async def test_the_same_by_callback(answered: Answered) -> None:
    reference = await answered.upload(json.dumps([HUGE]).encode())
    await answered.node.callback(answered.token, {"type": "done", "output": reference, "refs": ["output"]})
    assert (await answered.run())["output"] == [HUGE]


async def test_the_same_as_the_end_of_a_stream(answered: Answered) -> None:
    reference = await answered.upload(b'{"n": 1}')
    answered.arrival.begin_stream()
    answered.arrival.line({"type": "done", "output": reference, "refs": ["output"]})
    answered.arrival.end_stream()
    assert (await answered.run())["output"] == {"n": 1}


async def test_without_being_said_it_is_data(answered: Answered) -> None:
    reference = await answered.upload(b'{"n": 1}')
    answered.arrival.answer(200, reference, task_protocol="1")
    assert (await answered.run())["output"] == reference


@pytest.mark.parametrize(
    ("output", "said", "code"),
    [
        (ref(b'"never uploaded"'), "output", "unknown_ref"),
        ({"$ref": {**ref(b"1")["$ref"], "size": 2}}, "output", "unknown_ref"),
        ({"$ref": {"sha256": "00", "size": 2}}, "output", "invalid_ref"),
        ({"$ref": {"size": 2}}, "output", "invalid_ref"),
        ({"$ref": {**ref(b"1")["$ref"], "size": 2**40}}, "output", "invalid_ref"),
        (ref(b"1"), "output, error", "invalid_ref"),
        (ref(b"1"), "input", "invalid_ref"),
    ],
)
async def test_a_reference_to_nothing_is_a_failure(answered: Answered, output: Any, said: str, code: str) -> None:
    await answered.upload(b"1")
    answered.arrival.answer(200, output, task_protocol="1", task_refs=said)
    run = await answered.run()
    assert (run["status"], run["error"]["code"]) == ("failed", code)


async def test_what_an_attempt_that_is_over_uploads_is_refused(answered: Answered) -> None:
    answered.arrival.answer(200, 1, task_protocol="1")
    await answered.run()
    headers = {"authorization": f"Bearer {answered.token}"}
    assert (await answered.node.api.put("/v1/blobs", content=b"1", headers=headers)).status_code == 410


async def test_an_output_waits_for_a_database_that_is_away(answered: Answered) -> None:
    blobs = answered.node.runtime.services.blobs
    reference = await answered.upload(b'"late"')
    away = asyncio.Event()
    resolve, calls = blobs.resolve, 0

    async def failing(tenant_id: int, answer: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            away.set()
            raise ConnectionError("away")
        return await resolve(tenant_id, answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(blobs), "resolve", lambda _self, tenant_id, answer: failing(tenant_id, answer))
        answered.arrival.answer(200, reference, task_protocol="1", task_refs="output")
        await asyncio.wait_for(away.wait(), 30)
        await answered.world.advance(timedelta(seconds=2))
        assert (await answered.run())["output"] == "late"


# ---- the SDK's own


@pytest.fixture
async def dispatcher(world: World, node: Node) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(ClientConfig(api_url=node.runtime.services.settings.base_url()))
    yield dispatcher
    await dispatcher.aio_close()


async def register(world: World, node: Node, dispatcher: Dispatcher, *workflows: Any) -> None:
    app = dispatcher.app(workflows=list(workflows), slots=20, clock=lambda: int(world.now.timestamp()))
    await node.call("PUT", "/v1/endpoints/sdk", {"url": await world.serve(app)})


async def test_an_sdk_handler_takes_and_gives_large_values(world: World, node: Node, dispatcher: Dispatcher) -> None:
    @dispatcher.task(name="copy")
    async def copy(input: dict[str, Any], ctx: Context) -> dict[str, Any]:
        return {"copied": input["text"], "length": len(input["text"])}

    await register(world, node, dispatcher, copy)
    result = await copy.aio_run({"text": HUGE})
    assert result == {"copied": HUGE, "length": len(HUGE)}
    assert len(HUGE) > RESPONSE_BYTES_MAX > CALL_BYTES_MAX


async def test_an_sdk_client_starts_many_with_large_inputs_and_pushes_large_events(
    world: World, node: Node, dispatcher: Dispatcher
) -> None:
    @dispatcher.task(name="measure", on_events=["text:added"])
    async def measure(input: dict[str, Any], ctx: Context) -> int:
        return len(input["text"])

    await register(world, node, dispatcher, measure)
    inputs = [{"text": HUGE}, {"text": "x"}, {"text": HUGE + "y"}, {"text": HUGE + "yy"}, {"text": HUGE + "yyy"}]
    results = await measure.aio_run_many([measure.create_bulk_run_item(one) for one in inputs])
    assert results == [len(one["text"]) for one in inputs]
    assert sum(results) > BULK_REFERRED_MAX
    pushed = [await dispatcher.event.aio_push("text:added", {"text": LARGE + HUGE})]
    pushed += await dispatcher.event.aio_bulk_push([BulkPushEventWithMetadata("text:added", one) for one in inputs])
    lengths = [await dispatcher.runs.aio_get_result(event.runs[0]) for event in pushed]
    assert lengths == [len(LARGE + HUGE), *results]


async def test_a_run_is_replayed_with_a_large_input(world: World, node: Node) -> None:
    endpoint = await world.discovered(node, manifest({"name": "read"}))
    run_id = await node.trigger("read")
    (await endpoint.next()).answer(200, None)
    await world.run_over(run_id)
    ref = (await node.call("PUT", "/v1/blobs", {"text": LARGE}))["ref"]
    nowhere = {"$ref": {"sha256": "0" * 64, "size": 3}}
    assert (await node.call("POST", f"/v1/runs/{run_id}/replay", {"input": nowhere, "refs": ["input"]}, expect=422))[
        "code"
    ] == "unknown_ref"
    assert (await node.call("POST", f"/v1/runs/{run_id}/replay", {"refs": ["input"]}, expect=400))["code"] == "invalid_ref"
    await node.call("POST", f"/v1/runs/{run_id}/replay", {"input": ref, "refs": ["input"]})
    (await endpoint.next()).answer(200, None)
    await world.run_over(run_id)
    assert (await node.call("GET", f"/v1/runs/{run_id}"))["input"] == {"text": LARGE}


async def test_a_graph_passes_large_values_on(world: World, node: Node, dispatcher: Dispatcher) -> None:
    flow = dispatcher.workflow(name="flow")

    @flow.task(name="make")
    async def make(input: EmptyModel, ctx: Context) -> dict[str, str]:
        return {"text": LARGE}

    @flow.task(name="measure", parents=[make])
    async def measure(input: EmptyModel, ctx: Context) -> dict[str, int]:
        return {"length": len(ctx.task_output(make)["text"])}

    await register(world, node, dispatcher, flow)
    result = await flow.aio_run()
    assert result["measure"] == {"length": len(LARGE)}
    assert await kept(world) == 1


async def test_a_durable_task_takes_and_gives_large_values(world: World, node: Node, dispatcher: Dispatcher) -> None:
    @dispatcher.task(name="child")
    async def child(input: EmptyModel, ctx: Context) -> dict[str, str]:
        return {"text": LARGE}

    @dispatcher.durable_task(name="parent")
    async def parent(input: dict[str, Any], ctx: DurableContext) -> dict[str, Any]:
        got = await child.aio_run(EmptyModel())
        return {"text": got["text"] + input["text"], "more": HUGE}

    await register(world, node, dispatcher, child, parent)
    result = await parent.aio_run({"text": LARGE})
    assert result == {"text": LARGE + LARGE, "more": HUGE}


async def test_a_large_event_starts_no_more_than_can_be_written(world: World) -> None:
    node = await world.served_node(max_fan_out_bytes=3_000_000)
    handlers = [{"name": name, "on_events": ["text:added"]} for name in ("one", "two")]
    await world.endpoint(node, handlers)
    refs = [(await node.call("PUT", "/v1/blobs", "x" * size))["ref"] for size in (1_400_000, 1_600_000)]
    sent = await node.call("POST", "/v1/events", {"type": "text:added", "data": refs[0], "refs": ["data"]})
    assert len(sent["runs"]) == 2
    refused = await node.call("POST", "/v1/events", {"type": "text:added", "data": refs[1], "refs": ["data"]}, expect=422)
    assert refused["code"] == "too_many_runs"


# ---- keeping


async def test_what_nobody_uses_goes_and_what_may_be_fetched_stays(world: World, node: Node) -> None:
    endpoint = await world.discovered(node, manifest({"name": "read", "execution_timeout": "24h"}))
    await node.call("PUT", "/v1/blobs", {"never": "used"})
    await world.advance(timedelta(hours=12))
    run_id = await node.trigger("read", input={"text": LARGE})
    arrival = await endpoint.next()
    await world.advance(timedelta(hours=13))
    await node.turn("maintenance")
    assert await kept(world) == 1
    target = arrival.json["input"]["$ref"]["url"].removeprefix(arrival.json["api"])
    assert (await node.api.get(target)).status_code == 200
    arrival.answer(500)
    await world.over(run_id)
    await world.advance(timedelta(hours=25))
    await node.turn("maintenance")
    assert await kept(world) == 0
    assert (await node.call("GET", f"/v1/runs/{run_id}"))["input"] == {"text": LARGE}


async def test_a_retry_makes_its_value_wait_anew(world: World, node: Node) -> None:
    endpoint = await world.discovered(node, manifest({"name": "read", "retries": 1, "backoff_factor": 1, "schedule_timeout": "72h"}))
    run_id = await node.trigger("read", input={"text": LARGE})
    (await endpoint.next()).answer(500)
    await world.attempts(run_id, 1)
    await world.database.execute("update blobs set used_at = used_at - interval '2 days'")
    await world.advance(timedelta(seconds=2))
    again = await endpoint.next()
    await node.turn("maintenance")
    assert (again.json["attempt"], await kept(world)) == (2, 1)


async def test_values_are_deleted_in_sets(world: World, node: Node) -> None:
    for n in range(230):
        await node.call("PUT", "/v1/blobs", n)
    assert await node.runtime.services.blobs.prune(world.now) == 0
    assert await node.runtime.services.blobs.prune(world.now + timedelta(days=1, seconds=1)) == 230
