"""Handlers that are given many tasks at once: however one ends, every task of its batch hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher
from tests.sdk.pushing import batch, clock, config, item


class Number(BaseModel):
    n: int


def _stops(items: list[tuple[Number, Context]]) -> list[Any]:
    return [next(iter(())) for _ in items]


async def _awaits(items: list[tuple[Number, Context]]) -> list[Any]:
    raise asyncio.CancelledError


def _leaves(items: list[tuple[Number, Context]]) -> list[Any]:
    raise SystemExit(3)


async def _gives(items: list[tuple[Number, Context]]) -> list[Any]:
    return [StopIteration("none"), {"n": 1}]


@pytest.mark.parametrize(("fn", "failed"), [(_stops, 2), (_awaits, 2), (_leaves, 2), (_gives, 1)])
async def test_nobody_is_left_waiting(fn: Callable[..., Any], failed: int) -> None:
    dispatcher = Dispatcher(config())
    task = dispatcher.batch_task(batch_size=2, batch_interval="1s", name="many")(fn)
    app = dispatcher.app([task], clock=clock)
    entries = [{**item("many", {"n": n}, n), "batch": {"id": "bat_1", "size": 2}} for n in (1, 2)]
    async with asyncio.timeout(5):
        answer = await batch(app, *entries)
    assert sum(result["status"] != "ok" for result in answer.lines()) == failed
