"""What a cancelled task undoes: steps that fail are tried again in the one turn there is for it, as long as that has time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from handlers_sdk import App, Cancelled, ClientConfig, Dispatcher, DurableContext, RetryableException
from handlers_sdk.testing import DurableTester, crash_everywhere
from tests.sdk.fake_api import FakeApi
from tests.sdk.pushing import AT, clock, push, said, turn

KIT = Dispatcher(ClientConfig())
CANCEL: dict[str, Any] = {"id": "cancel#0", "op": "cancel", "status": "ok", "value": {"reason": "enough"}, "at": AT}
BOOKED: list[dict[str, Any]] = [
    {"id": "book#0", "op": "step", "status": "ok", "value": 1, "at": AT},
    {"id": "sleep#0", "op": "sleep", "status": "pending", "ms": 86_400_000, "at": AT},
    CANCEL,
]


def trip(dispatcher: Dispatcher, failures: int, calls: Counter[str], after: str) -> Any:
    async def refund() -> str:
        calls["refund"] += 1
        if calls["refund"] <= failures:
            raise RetryableException("the bank is away", after=after)
        return "refunded"

    @dispatcher.durable_task(name="trip")
    async def trip(input: dict[str, Any], ctx: DurableContext) -> None:
        await ctx.run("book", lambda: 1)
        try:
            await ctx.aio_sleep_for("1d")
        except Cancelled:
            await ctx.run("refund", refund, retries=3)
            raise

    return trip


async def test_a_step_that_fails_is_tried_again_before_the_end() -> None:
    calls = Counter[str]()
    tester = DurableTester([trip(KIT, 2, calls, "2s")])
    tester.cancel(after="1h")
    run = await tester.run("trip")
    assert (run.status, calls["refund"]) == ("cancelled", 3)
    assert [(e["id"], e["status"]) for e in run.entries[-3:]] == [("refund#0", "retry"), ("refund#0", "retry"), ("refund#0", "ok")]


async def test_and_wherever_it_is_killed() -> None:
    def made(crash_at: int | None) -> DurableTester:
        tester = DurableTester([trip(KIT, 2, Counter(), "2s")], crash_at=crash_at)
        tester.cancel(after="1h")
        return tester

    assert await crash_everywhere(made, "trip") > 6


def app(dispatcher: Dispatcher, calls: Counter[str], after: str) -> App:
    return dispatcher.app([trip(dispatcher, 2, calls, after)], clock=clock)


async def test_it_waits_for_its_time_by_the_clock(api: FakeApi, dispatcher: Dispatcher) -> None:
    calls = Counter[str]()
    answer = said(await push(app(dispatcher, calls, "10ms"), turn("trip", BOOKED)))
    assert (answer["status"], calls["refund"]) == ("failed", 3)
    statuses = [op["status"] for event in api.events() for op in event["ops"]] + [op["status"] for op in answer["ops"]]
    assert statuses == ["retry", "retry", "ok"]


async def test_what_is_to_be_tried_again_too_late_is_left(dispatcher: Dispatcher) -> None:
    calls = Counter[str]()
    answer = said(await push(app(dispatcher, calls, "10m"), turn("trip", BOOKED, timeout_ms=5_000)))
    assert (answer["status"], answer["wake"], calls["refund"]) == ("wait", {"any": ["refund#0"]}, 1)
