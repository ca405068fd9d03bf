"""Long-running tasks: started at once, spoken to, saved, restored, bounded, tried again, and stopped."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from handlers_sdk import ClientConfig, ConfigError, Dispatcher, NonRetryableError
from handlers_sdk.durable import DurableContext
from handlers_sdk.longrunning import TaskInfo, options_of, task_status
from handlers_sdk.runs import Run
from handlers_sdk.testing import DurableTester, crash_everywhere
from tests.sdk.fake_api import Asked, FakeApi, problem

dispatcher = Dispatcher(ClientConfig())
ULID = "01jgfjjz000000000000000001"


async def echo(value: Any) -> Any:
    return value


@dispatcher.durable_task()
async def worker(input: dict[str, Any], ctx: DurableContext) -> Any:
    done = []
    while (message := await ctx.receive(timeout="1h")) is not None:
        if message in ("shutdown", {"$cancel": True}):
            await ctx.close_inbox()
            break
        done.append(await ctx.run("process", echo, message))
        await ctx.checkpoint({"done": done})
    return done


@dispatcher.durable_task()
async def etl(input: dict[str, Any], ctx: DurableContext) -> Any:
    state = await ctx.restore() or {"offset": 0}
    while state["offset"] < 3:
        if state["offset"] == input.get("fails_at") and (await ctx.run("tries", echo, 1)) and ctx.now().timestamp() < input["until"]:
            raise ConnectionError(f"at {state['offset']}")
        await ctx.run("batch", echo, state["offset"])
        state = {"offset": state["offset"] + 1}
        await ctx.checkpoint(state)
    return state


@dispatcher.durable_task()
async def supervisor(input: dict[str, Any], ctx: DurableContext) -> Any:
    info = await worker.aio_start({})
    sent = [await ctx.send(info.id, {"n": 1}), await ctx.send(info.id, "shutdown")]
    await ctx.aio_sleep_for("1m")
    return [sent, await ctx.restore(info.id), await ctx.send(info.id, "too late"), info.origin_run_id == ctx.workflow_run_id]


SERVED = [worker, etl, supervisor]


def world(**options: Any) -> DurableTester:
    return DurableTester(SERVED, **options)


async def test_messages_come_in_order_and_the_inbox_closes() -> None:
    tester = world()
    for n in range(3):
        tester.send({"n": n}, after="1s")
    tester.send("shutdown", after="2s")
    run = await tester.run(worker)
    assert run.output == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert run.checkpoint == {"done": run.output}
    assert not tester.double.message(run.id, "late")


async def test_a_wait_for_messages_ends() -> None:
    run = await world().run(worker)
    assert (run.status, run.output) == ("succeeded", [])


async def test_cancel_is_a_message_and_says_whether_it_was_in_time() -> None:
    tester = world()
    tester.send({"n": 0}, after="1s")
    tester.cancel(after="2s")
    run = await tester.run(worker)
    assert (run.status, run.output, run.checkpoint) == ("cancelled", None, {"done": [{"n": 0}]})
    assert tester.double.cancel(run.id) is False


@pytest.mark.parametrize("retry", [{"attempts": 2, "delay": 5_000}, {"attempts": 3, "delay": 2_000, "backoff": "exponential"}])
async def test_a_try_goes_on_from_what_was_saved(retry: dict[str, Any]) -> None:
    tester = world()
    given = {"fails_at": 1, "until": tester.double.now / 1000 + 6}
    run = await tester.run(etl, given, options_of(None, retry))
    assert (run.status, run.output) == ("succeeded", {"offset": 3})
    batches = [step for _, step in tester.double.steps.elements() if step.startswith("batch")]
    assert batches == ["batch#0", "batch#1", "batch#2"], "what was saved is not done again"
    assert await crash_everywhere(lambda at: world(crash_at=at), etl, {}) > 5


async def test_tries_end_and_some_failures_are_final() -> None:
    given = {"fails_at": 0, "until": 9e9}
    run = await world().run(etl, given, options_of(None, 2))
    assert (run.status, run.error and run.error["message"]) == ("failed", "at 0")
    assert sum(1 for entry in run.entries if entry["op"] == "sleep" and entry["status"] == "ok") == 2


async def test_a_timeout_bounds_the_waits_too() -> None:
    run = await world().run(worker, {}, options_of("30m", None))
    assert (run.status, run.error) == ("failed", {"code": "timed_out", "message": "Task exceeded timeout of 0:30:00"})


@dispatcher.durable_task()
async def pages(input: dict[str, Any], ctx: DurableContext) -> int:
    page = int(input.get("page", 0))
    await ctx.aio_sleep_for("25m")
    await ctx.run("page", echo, page)
    if page < 3:
        ctx.continue_as_new({"page": page + 1})
    return page


@pytest.mark.parametrize(
    ("timeout", "ended"), [("1h", ("failed", 2)), ("50m", ("failed", 1)), ("99m", ("failed", 3)), ("101m", ("succeeded", 4))]
)
async def test_a_timeout_goes_on_where_a_task_begins_anew(timeout: str, ended: tuple[str, int]) -> None:
    options = options_of(timeout, None)
    tester = DurableTester([pages])
    run = await tester.run(pages, {}, options)
    assert (run.status, sum(tester.double.steps.values())) == ended
    for point in range(tester.double.points):
        again = await DurableTester([pages], crash_at=point).run(pages, {}, options)
        assert (again.status, again.output, again.error, again.entries[:1]) == (run.status, run.output, run.error, run.entries[:1])


@dispatcher.durable_task()
async def stubborn(input: dict[str, Any], ctx: DurableContext) -> None:
    if "again" not in input:
        with suppress(asyncio.CancelledError):
            await ctx.aio_sleep_for("10h")
        ctx.continue_as_new({"again": True})
    try:
        async with asyncio.timeout(60):
            await ctx.aio_sleep_for("10s")
    finally:
        await ctx.run("undo", echo, 1)
        await ctx.run("undo more", echo, 1)


async def test_one_that_begins_anew_when_its_time_is_over_replays() -> None:
    options = options_of("2h", None)
    tester = DurableTester([stubborn])
    run = await tester.run(stubborn, {}, options)
    assert (run.status, run.error and run.error["code"]) == ("failed", "timed_out")
    for point in range(tester.double.points):
        again = await DurableTester([stubborn], crash_at=point).run(stubborn, {}, options)
        assert (again.status, again.error) == (run.status, run.error), point


async def test_tasks_speak_to_tasks() -> None:
    run = await world().run(supervisor)
    assert run.output == [[True, True], {"done": [{"n": 1}]}, False, True]


@pytest.mark.parametrize(("timeout", "retry"), [("90", None), (None, {"attempts": 0}), (None, {"attempts": 1, "pause": 1})])
def test_options_that_cannot_be_meant(timeout: Any, retry: Any) -> None:
    with pytest.raises(ConfigError):
        options_of(timeout, retry)


# ---- the client


def answers(asked: Asked) -> tuple[int, Any]:
    if asked.path.endswith("/cancel"):
        return problem(409, "run_finished") if "02" in asked.path[-9:] else (202, {})
    if asked.path.endswith("/messages"):
        return problem(409, "inbox_closed") if asked.json["data"] == "late" else (202, {"delivered": True})
    if asked.path.endswith("/checkpoint"):
        return problem(404, "no_checkpoint") if "02" in asked.path[-13:] else (200, {"value": {"n": 1}, "at": "2026-01-01T00:00:00Z"})
    return 201, {"id": f"run_{ULID}", "status": "queued", "stream_id": f"str_{ULID}"}


async def test_start_returns_at_once_and_the_rest_speaks_of_the_run() -> None:
    api = FakeApi(answers)
    client = api.dispatcher()
    task = client.stubs.task("worker", dict[str, Any])
    assert await task.aio_start({"url": "x"}, timeout="1h", retry=3) == TaskInfo(f"run_{ULID}", f"str_{ULID}", None)
    assert task.start(additional_metadata={"of": "a"}) == TaskInfo(f"run_{ULID}", f"str_{ULID}", None)
    first, second = (asked.json for asked in api.asked)
    retry = {"attempts": 3, "delay": 1000, "backoff": "fixed", "jitter": False}
    assert first["metadata"] == {"$task": {"timeout_ms": 3_600_000, "retry": retry}}
    assert second["metadata"] == {"of": "a"}
    other = f"run_{ULID[:-1]}2"
    assert [client.runs.cancel(f"run_{ULID}"), await client.runs.aio_cancel(other)] == [True, False]
    assert [client.runs.send(other, {"n": 1}), await client.runs.aio_send(other, "late")] == [True, False]
    assert [client.runs.restore(f"run_{ULID}"), await client.runs.aio_restore(other)] == [{"n": 1}, None]


async def test_journals_resets_and_resumes_are_asked_for() -> None:
    api = FakeApi(lambda asked: (200, {"id": "run_1", "entries": [], "logs": []} if asked.method == "GET" else {"id": "run_1"}))
    runs = api.dispatcher().runs
    assert runs.journal("run_1") == await runs.aio_journal("run_1")
    runs.reset("run_1", "charge#0")
    await runs.aio_reset("run_1")
    runs.resume("run_1")
    await runs.aio_resume("run_1")
    assert [(asked.path.rpartition("/")[2], asked.content) for asked in api.asked if asked.method == "POST"] == [
        ("reset", b'{"journal_node":"charge#0"}'), ("reset", b"{}"), ("resume", b"{}"), ("resume", b"{}"),
    ]  # fmt: skip


def test_states_have_their_documented_names() -> None:
    def named(status: str, code: str = "") -> str:
        return task_status(Run.model_validate({"id": "run_1", "status": status, "error": {"code": code, "message": ""} if code else None}))

    assert [named(one) for one in ("queued", "running", "waiting", "pending_retry", "succeeded", "cancelled")] == [
        "queued", "running", "running", "running", "completed", "cancelled",
    ]  # fmt: skip
    assert [named("failed", "handler_failed"), named("failed", "timed_out")] == ["failed", "timed_out"]


async def test_a_failure_that_is_final_is_not_tried_again() -> None:
    @dispatcher.durable_task()
    async def refusing(input: dict[str, Any], ctx: DurableContext) -> None:
        raise NonRetryableError("no")

    run = await DurableTester([refusing]).run(refusing, {}, options_of(None, 5))
    assert (run.status, run.turn) == ("failed", 1)
