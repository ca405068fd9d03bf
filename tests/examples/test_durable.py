"""The durable example of README, on a clock that jumps, and killed everywhere."""

from __future__ import annotations

import pytest

from handlers_sdk.testing import DurableTester, crash_everywhere
from tests.examples.durable_order import durable_order, ship


def world(crash_at: int | None = None) -> DurableTester:
    tester = DurableTester([ship, durable_order], crash_at=crash_at)
    tester.push("order/9/paid", {"amount": 5}, after="2d")
    return tester


async def test_an_order_that_is_paid_is_shipped() -> None:
    run = await world().run(durable_order, {"number": 9, "parcels": 2})
    assert run.output == {"shipped": ["parcel 0", "parcel 1"], "receipt": "receipt-9", "at": "2026-01-03T00:00:01+00:00"}
    assert await crash_everywhere(world, durable_order, {"number": 9, "parcels": 2}) > 5


@pytest.mark.parametrize(("after", "entries"), [("1d", 0), ("172800500ms", 1)])
async def test_a_cancelled_one_gives_the_money_back(after: str, entries: int) -> None:
    tester = world()
    tester.cancel(after=after)
    run = await tester.run(durable_order, {"number": 9})
    assert run.status == "cancelled"
    assert [entry["id"] for entry in run.entries if entry["id"].startswith("refund")] == ["refund#0"] * entries


async def test_one_that_is_not_paid_ends() -> None:
    assert (await world().run(durable_order, {"number": 8})).output == {"shipped": []}
