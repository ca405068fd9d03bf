"""A deadline ends its block with TimeoutError, and never swallows a cancel of somebody else's."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.delivery.deadline import Deadline


async def never() -> None:
    await asyncio.Event().wait()


async def test_a_block_that_takes_too_long() -> None:
    with pytest.raises(TimeoutError), Deadline(0.01) as deadline:
        await never()
    assert deadline.expired
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_in_time() -> None:
    with Deadline(30.0) as deadline:
        await asyncio.sleep(0)
    assert not deadline.expired
    deadline.expire()
    await asyncio.sleep(0)
    assert not deadline.expired


async def block(deadline: Deadline, error: Exception | None = None) -> None:
    """Is over at once; raises before it can be told, or waits."""
    with deadline:
        deadline.expire()
        deadline.expire()
        if error:
            raise error
        await never()


async def test_over_at_once() -> None:
    with pytest.raises(TimeoutError):
        await block(Deadline(30.0))


async def test_an_error_of_the_block_goes_first() -> None:
    with pytest.raises(ValueError, match="mine"):
        await block(Deadline(30.0), ValueError("mine"))
    await asyncio.sleep(0)


async def test_a_cancel_from_outside_stays_one() -> None:
    async def waits() -> None:
        with Deadline(30.0):
            await never()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancel_from_outside_at_the_same_moment_wins() -> None:
    async def waits(deadlines: list[Deadline]) -> None:
        with Deadline(30.0) as deadline:
            deadlines.append(deadline)
            await never()

    deadlines: list[Deadline] = []
    task = asyncio.create_task(waits(deadlines))
    await asyncio.sleep(0)
    deadlines[0].expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_inside_another() -> None:
    with pytest.raises(TimeoutError), Deadline(0.01) as outer, Deadline(30.0) as inner:
        await never()
    assert (outer.expired, inner.expired) == (True, False)
    with Deadline(30.0) as outer:
        with pytest.raises(TimeoutError), Deadline(0.01) as inner:
            await never()
        await asyncio.sleep(0)
    assert (outer.expired, inner.expired) == (False, True)
