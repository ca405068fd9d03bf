"""Other orders of the same events: every statement and every push waits a little at random, before it is sent and after it is answered.

`make jitter SEED=7` makes races show that a quiet machine hides. A test that fails here and
passes without it awaits less than it relies on, or the product does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from dispatcher.delivery import Courier
from dispatcher.store.database import Connection, Database

_CHANCE = 0.3
_LONGEST_SECONDS = 0.03
_RARE = 0.01
_RARE_SECONDS = 0.4  # longer than all else in most tests: what should have happened by then has not


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--jitter-seed` names one order."""
    parser.addoption("--jitter-seed", type=int, default=0, help="which order of events to try")


@pytest.fixture(autouse=True)
def _jitter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(f"{request.config.getoption('--jitter-seed')} {request.node.nodeid}")

    async def hesitate() -> None:
        drawn = chance.random()
        if drawn < _CHANCE:
            await asyncio.sleep(chance.random() * (_RARE_SECONDS if drawn < _RARE else _LONGEST_SECONDS))

    monkeypatch.setattr(Database, "_run", _hesitant(Database._run, hesitate))
    monkeypatch.setattr(Courier, "push", _hesitant(Courier.push, hesitate))
    monkeypatch.setattr(Database, "transaction", _transactions(Database.transaction, hesitate))


def _hesitant(run: Callable[..., Awaitable[Any]], hesitate: Callable[[], Awaitable[None]]) -> Callable[..., Awaitable[Any]]:
    async def hesitant(self: object, *args: Any) -> Any:
        await hesitate()
        result = await run(self, *args)
        await hesitate()
        return result

    return hesitant


def _transactions(
    transaction: Callable[..., AbstractAsyncContextManager[Connection]], hesitate: Callable[[], Awaitable[None]]
) -> Callable[..., AbstractAsyncContextManager[Connection]]:
    @asynccontextmanager
    async def hesitant(self: Database, **named: Any) -> AsyncIterator[Connection]:
        await hesitate()
        async with transaction(self, **named) as connection:
            yield connection
            await hesitate()  # its locks are held a little longer
        await hesitate()

    return hesitant
