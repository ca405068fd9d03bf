"""The SDK's clients against a real server: filters, events, runs in bulk, replays, logs, workflows, retries in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from handlers_sdk import (
    ApiError,
    BulkCancelReplayOpts,
    BulkPushEventWithMetadata,
    ClientConfig,
    ConfigError,
    Context,
    CronWorkflowsOrderByField,
    DefaultFilter,
    Dispatcher,
    EmptyModel,
    RunFilter,
    ScheduledWorkflowsOrderByField,
    V1TaskStatus,
    V1UpdateFilterRequest,
    WorkflowRunOrderByDirection,
)
from tests.world.served import dispatcher_for, serving
from tests.world.world import Node, World, until


@dataclass
class Shop:
    """An app whose tasks do as the test says."""

    dispatcher: Dispatcher
    fails: bool = True
    payloads: list[dict[str, Any]] = field(default_factory=list)
    retried: list[int] = field(default_factory=list)

    def tasks(self) -> list[Any]:
        anna = DefaultFilter(expression="input.n > 1", scope="shop", payload={"main_character": "Anna"})

        @self.dispatcher.task(name="mail", on_events=["user:*"], default_filters=[anna])
        async def mail(input: EmptyModel, ctx: Context) -> None:
            self.payloads.append(ctx.filter_payload)

        @self.dispatcher.task(name="count")
        async def count(input: EmptyModel, ctx: Context) -> dict[str, int]:
            ctx.log(f"counting {ctx.input['n']}")
            if self.fails:
                raise ValueError("not today")
            return {"n": ctx.input["n"]}

        @self.dispatcher.task(name="patient", retry={"attempts": 3, "delay": 5000, "backoff": "exponential"})
        async def patient(input: EmptyModel, ctx: Context) -> None:
            self.retried.append(ctx.retry_count)
            raise ValueError("again")

        return [mail, count, patient]


@pytest.fixture
async def node(world: World) -> Node:
    """A dispatcher the SDK can call."""
    return await world.served_node()


@pytest.fixture
async def shop(world: World, node: Node) -> AsyncIterator[Shop]:
    """The shop, registered."""
    shop = Shop(dispatcher_for(node))
    async with serving(world, node, shop.dispatcher, shop.tasks, slots=200):
        yield shop


async def test_declared_filters_and_those_made_by_hand(world: World, shop: Shop) -> None:
    client = shop.dispatcher
    (declared,) = (await client.filters.aio_list()).rows
    assert (declared.workflow, declared.scope, declared.declared, declared.payload) == ("mail", "shop", True, {"main_character": "Anna"})
    made = await client.filters.aio_create("mail", "input.n > 2", "shop", {"main_character": "Kitty"})
    first = await client.event.aio_push("user:created", {"n": 3}, scope="shop")
    assert len(first.runs) == 2
    changed = await client.filters.aio_update(made.id, V1UpdateFilterRequest(expression="input.n > 10"))
    assert (changed.expression, changed.payload) == ("input.n > 10", {"main_character": "Kitty"})
    second = await client.event.aio_push("user:created", {"n": 3}, scope="shop")
    assert len(second.runs) == 1
    assert (await client.event.aio_push("user:created", {"n": 3})).runs == []
    for run_id in first.runs + second.runs:
        await world.over(str(run_id))
    assert sorted(payload["main_character"] for payload in shop.payloads) == ["Anna", "Anna", "Kitty"]
    assert (await client.filters.aio_delete(made.id)).id == made.id
    assert [one.id for one in (await client.filters.aio_list(workflow_ids=["mail"], scopes=["shop"], limit=5)).rows] == [declared.id]
    assert (await client.filters.aio_list(offset=1)).rows == []
    with pytest.raises(ApiError, match="declared by workflow"):
        await client.filters.aio_delete(declared.id)
    with pytest.raises(ApiError) as unknown:
        await client.filters.aio_create("nothing", "true", "s")
    assert unknown.value.problem_code == "unknown_workflow"


async def test_events_are_listed_read_and_replayed(world: World, shop: Shop) -> None:
    client = shop.dispatcher
    events = [BulkPushEventWithMetadata("user:created", {"n": n}, {"tag": f"t{n}"}, scope="shop") for n in (1, 5)]
    small, large = await client.event.aio_bulk_push(events)
    assert (len(small.runs), len(large.runs)) == (0, 1)
    assert [e.id for e in (await client.event.aio_list(matched=False)).rows] == [small.event_id]
    assert [e.id for e in (await client.event.aio_list(keys="user:created", additional_metadata={"tag": "t5"})).rows] == [large.event_id]
    assert [e.id for e in (await client.event.aio_list(scope="shop", limit=1)).rows] == [large.event_id]
    read = await client.event.aio_get(large.event_id)
    assert (read.data, read.scope, read.runs) == ({"n": 5}, "shop", 1)
    await world.over(str(large.runs[0]))
    (run,) = await client.event.aio_list_runs(large.event_id)
    assert (run.function, run.status, run.origin_run_id) == ("mail", "succeeded", None)
    again = await client.event.aio_replay(large.event_id)
    assert (again.event_id != large.event_id, len(again.runs)) == (True, 1)


async def test_runs_are_replayed_and_cancelled_in_bulk(world: World, node: Node, shop: Shop) -> None:
    client = shop.dispatcher
    made = [await client.runs.aio_create("count", {"n": n}, {"batch": "b"}) for n in range(3)]
    for run in made:
        await world.over(run.id)
    shop.fails = False
    wanted = BulkCancelReplayOpts(filters=RunFilter(statuses=["failed"], workflow_ids=["count"], additional_metadata={"batch": "b"}))
    assert await client.runs.aio_preview("replay", wanted) == 3
    begun = await client.runs.aio_bulk_replay(wanted)
    assert begun.matched == 3

    async def ended() -> bool:
        return (await client.runs.aio_get_bulk(begun.id)).ended

    await until(ended)
    assert [await client.runs.aio_get_result(run.id) for run in made] == [{"n": 0}, {"n": 1}, {"n": 2}]
    await client.runs.aio_replay(made[0].id)
    assert await client.runs.get_run_ref(made[0].id).aio_result() == {"n": 0}
    task = await client.runs.aio_get_task_run(made[0].id.replace("run_", "tsk_"))
    assert [attempt.number for attempt in task.attempts] == [1, 2, 3]
    with pytest.raises(ApiError) as missing:
        await client.runs.aio_replay("run_01j00000000000000000000000")
    assert missing.value.status == 404
    await node.call("PATCH", "/v1/endpoints/shop", {"paused": True})
    waiting = [(await client.runs.aio_create("count", {"n": n})).id for n in range(5)]
    await client.runs.aio_bulk_cancel_by_filters_with_pagination(sleep_time=0, chunk_size=2, workflow_ids=["count"])
    for run_id in waiting:
        assert (await world.over(run_id))["status"] == "cancelled"
    assert (await client.metrics.aio_get_queue_metrics())["count"]["queued"] == 0
    late = (await client.runs.aio_create("count", {"n": 9})).id
    assert (await client.metrics.aio_get_queue_metrics())["count"]["queued"] == 1
    stats = await client.metrics.aio_get_task_stats()
    assert (stats["count"].queued.total, stats["count"].running.total) == (1, 0)
    await client.runs.aio_cancel(late)
    stopped = await client.runs.aio_bulk_replay(BulkCancelReplayOpts(ids=[]))
    assert stopped.ended


async def test_run_many_of_2500_keeps_its_order(world: World, shop: Shop) -> None:
    shop.fails = False
    count = shop.dispatcher.stubs.task(name="count")
    items = [count.create_bulk_run_item({"n": n}) for n in range(2_500)]  # type: ignore[arg-type]
    refs = await count.aio_run_many_no_wait(items)
    ids = [ref.workflow_run_id for ref in refs]
    assert len(set(ids)) == 2_500

    async def over() -> dict[str, bytes] | None:
        rows = await world.database.fetch("select id, input from run_history where id = any($1)", ids)
        return {row["id"]: row["input"] for row in rows} if len(rows) == len(ids) else None

    inputs = await until(over, 60)
    assert [inputs[run_id] for run_id in ids] == [b'{"n":%d}' % n for n in range(2_500)]


async def test_log_lines_and_workflows_are_read(world: World, shop: Shop) -> None:
    client = shop.dispatcher
    shop.fails = False
    run = await client.runs.aio_create("count", {"n": 7})
    await world.over(run.id)
    for name in (run.id, run.id.replace("run_", "tsk_")):
        assert [line.message for line in (await client.logs.aio_list(name)).rows] == ["counting 7"]
    assert [line.run_id for line in (await client.logs.aio_search(search="counting 7")).rows] == [run.id]
    assert (await client.logs.aio_list(run.id, levels=["error"])).rows == []
    assert [one.name for one in (await client.workflows.aio_list()).rows] == ["count", "mail", "patient"]
    assert [one.id for one in (await client.workflows.aio_list("pat")).rows] == ["patient"]
    mail = await client.workflows.aio_get("mail")
    assert (mail.version, mail.on_events, mail.endpoints) == (1, ["user:*"], ["shop"])
    version = await client.workflows.aio_get_version("mail")
    assert version.definition["default_filters"][0]["scope"] == "shop"
    with pytest.raises(ApiError, match="no version 9"):
        await client.workflows.aio_get_version("mail", 9)


async def test_a_retry_waits_as_many_milliseconds_as_it_says(world: World, shop: Shop) -> None:
    run = await shop.dispatcher.runs.aio_create("patient", {})
    for number, seconds in ((1, 5), (2, 10), (3, 20)):
        await world.attempts(run.id, number)
        task = await world.task(run.id, state="scheduled")
        assert task["due_at"] == world.now + timedelta(seconds=seconds)
        await world.advance(timedelta(seconds=seconds))
    assert (await world.over(run.id))["status"] == "failed"
    assert shop.retried == [0, 1, 2, 3]


async def test_the_sync_face_does_the_same(shop: Shop) -> None:
    def use() -> list[Any]:
        client = shop.dispatcher
        made = client.filters.create("mail", "true", "sync")
        workflow = client.stubs.task(name="mail")
        second = workflow.create_filter("input.n == 1", "sync", {"a": 1})
        event = client.event.push("user:x", {"n": 1}, scope="sync")
        cancelled = client.runs.bulk_cancel(BulkCancelReplayOpts(ids=[]))
        return [
            client.filters.get(made.id).expression,
            client.filters.update(second.id, V1UpdateFilterRequest(scope="other")).scope,
            len(client.filters.list(scopes=["sync"]).rows),
            client.event.get(event.event_id).runs,
            len(client.event.list().rows),
            client.event.replay(event.event_id).duplicate,
            len(client.event.list_runs(event.event_id)),
            client.filters.delete(made.id).scope,
            client.runs.preview("cancel", BulkCancelReplayOpts(ids=["run_x"])),
            client.runs.get_bulk(cancelled.id).status,
            client.workflows.get("mail").id,
            client.logs.search("nothing").rows,
        ]

    said = await asyncio.to_thread(use)
    assert said == ["true", "other", 1, 2, 1, False, 2, "sync", 0, "finished", "mail", []]


async def test_runs_are_listed_by_workflows_offsets_and_with_payloads(world: World, shop: Shop) -> None:
    client, shop.fails = shop.dispatcher, False
    first, second = [(await client.runs.aio_create("count", {"n": n}, {"tag": f"t{n}"})).id for n in (1, 2)]
    await client.event.aio_push("user:created", {"n": 3}, scope="shop")
    for run_id in (first, second):
        await world.over(run_id)
    (mailed,) = (await client.runs.aio_list(workflow_ids=["mail"])).rows
    assert [run.id for run in await client.runs.aio_list(workflow_ids=["count", "mail"])] == [mailed.id, second, first]
    assert [run.id for run in await client.runs.aio_list(workflow_ids=["count", "mail"], offset=1, limit=1)] == [second]
    assert [run.id for run in await client.runs.aio_list(offset=2)] == [first]
    assert [run.id for run in await client.runs.aio_list(triggering_event_external_id=mailed.event_id)] == [mailed.id]
    assert [run.output for run in await client.runs.aio_list(workflow="count", include_payloads=True)] == [{"n": 2}, {"n": 1}]
    assert len(await client.runs.aio_list(statuses=[V1TaskStatus.COMPLETED], worker_id="shop", since=world.now - timedelta(hours=1))) == 3
    assert (await client.runs.aio_list(parent_task_external_id=f"tsk_{first[4:]}")).rows == []
    assert (await client.runs.aio_list(workflow_ids=[])).rows == []
    run = (await client.runs.aio_list(limit=1, workflow_ids=["count"]))[0]
    assert (run.metadata.id, run.metadata, run.additional_metadata) == (second, {"tag": "t2"}, {"tag": "t2"})
    assert run.status == V1TaskStatus.COMPLETED
    for bad in ({"only_tasks": True}, {"workflow": "count", "workflow_ids": ["mail"]}, {"cursor": "x", "workflow_ids": ["count", "mail"]}):
        with pytest.raises(ConfigError):
            await client.runs.aio_list(**bad)
    workflow = await client.workflows.aio_get("count")
    assert [one.id for one in await client.runs.aio_list(workflow_ids=[workflow.metadata.id])] == [second, first]


async def test_runs_are_counted_by_status(world: World, shop: Shop) -> None:
    client = shop.dispatcher
    await client.runs.aio_create("count", {"n": 1})
    run = await client.runs.aio_create("patient", {})
    for run_id in [one.id for one in await client.runs.aio_list(workflow="count")]:
        await world.over(run_id)
    await world.task(run.id, state="scheduled")
    counts = await client.metrics.aio_get_task_metrics()
    assert (counts.queued, counts.running, counts.completed, counts.failed, counts.cancelled) == (1, 0, 0, 1, 0)
    assert (await client.metrics.aio_get_task_metrics(workflow_ids=["count"])).queued == 0
    await world.advance(timedelta(days=2))
    assert (await client.metrics.aio_get_task_metrics()).failed == 0
    assert (await client.metrics.aio_get_task_metrics(since=world.now - timedelta(days=3))).failed >= 1
    assert (await client.metrics.aio_get_task_metrics(parent_task_external_id=f"tsk_{run.id[4:]}")).queued == 0
    assert "dispatcher_runs_created_total" in await client.metrics.aio_scrape_tenant_prometheus_metrics()
    with pytest.raises(ApiError):
        await client.metrics.aio_get_task_metrics(since=world.now, until=world.now - timedelta(days=1))


async def test_lists_are_put_in_order(world: World, shop: Shop) -> None:
    client, later = shop.dispatcher, world.now + timedelta(hours=1)
    for name, hours in (("b", 3), ("a", 1), ("c", 2)):
        await client.cron.aio_create("count", name, "0 0 1 1 *")
        await client.scheduled.aio_create("count", later + timedelta(hours=hours), {"name": name})
    by, down = CronWorkflowsOrderByField.NAME, WorkflowRunOrderByDirection.DESC
    assert [one.name for one in (await client.cron.aio_list(order_by_field=by)).rows] == ["a", "b", "c"]
    assert [one.name for one in (await client.cron.aio_list(order_by_field=by, order_by_direction=down, offset=1, limit=1)).rows] == ["b"]
    moment = ScheduledWorkflowsOrderByField.TRIGGERAT
    assert [(one.run_at - later).seconds // 3600 for one in (await client.scheduled.aio_list(order_by_field=moment)).rows] == [1, 2, 3]
    assert (await client.scheduled.aio_list(parent_workflow_run_id="run_x")).rows == []
    assert (await client.scheduled.aio_bulk_delete(workflow_id="count", parent_step_run_id="tsk_x")).ids == []
    assert len((await client.scheduled.aio_list()).rows) == 3


async def test_a_workflow_is_removed(world: World, shop: Shop) -> None:
    client = shop.dispatcher
    await client.workflows.aio_delete("count")
    assert [one.name for one in (await client.workflows.aio_list()).rows] == ["mail", "patient"]
    with pytest.raises(ApiError) as unknown:
        await client.runs.aio_create("count", {})
    assert unknown.value.problem_code == "unknown_workflow"


async def test_runs_have_the_default_metadata_of_their_workflow(world: World, node: Node) -> None:
    dispatcher = Dispatcher(ClientConfig(api_url=node.runtime.services.settings.base_url()))
    seen: list[dict[str, Any]] = []

    @dispatcher.task(name="tagged", on_events=["go"], on_crons=["0 0 * * *"], default_additional_metadata={"team": "a", "kind": "x"})
    async def tagged(input: EmptyModel, ctx: Context) -> None:
        seen.append(ctx.additional_metadata)

    flow = dispatcher.workflow("flow", default_additional_metadata={"team": "b"})

    @flow.task()
    async def first(input: EmptyModel, ctx: Context) -> None:
        seen.append(ctx.additional_metadata)

    app = dispatcher.app(workflows=[tagged, flow], slots=9, clock=lambda: int(world.now.timestamp()))
    await node.call("PUT", "/v1/endpoints/sdk", {"url": await world.serve(app)})
    await tagged.aio_run()
    await tagged.aio_run(additional_metadata={"kind": "y", "more": "z"})
    event = await dispatcher.event.aio_push("go", {}, {"more": "e"})
    await dispatcher.runs.aio_get_result(str(event.runs[0]))
    (cron,) = (await dispatcher.cron.aio_list()).rows
    await (await dispatcher.cron.aio_trigger(cron.id)).aio_result()
    await flow.aio_run()
    first_two = [{"team": "a", "kind": "x"}, {"team": "a", "kind": "y", "more": "z"}]
    assert seen == [*first_two, {"team": "a", "kind": "x", "more": "e"}, {"team": "a", "kind": "x"}, {"team": "b"}]
    assert len(await dispatcher.runs.aio_list(additional_metadata={"team": "a"})) == 4
    registered = await dispatcher.workflows.aio_get("flow")
    assert (registered.definition or {})["default_metadata"] == {"team": "b"}
    await dispatcher.aio_close()
