"""Other orders of the same events: statements, transactions and pushes wait at random, before they are sent and after they are answered,
and keep what they have locked from others for a while. In each order some kinds always do, and everything else overtakes them.

`make jitter SEED=7` makes races show that a quiet machine hides. A test that fails here and
passes without it awaits less than it relies on, or the product does.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from dispatcher.delivery import Courier
from dispatcher.store.database import Connection, Database

_SLOW = 0.2  # of all kinds of statements, transactions and pushes
_CHANCE = 0.05  # that one of another kind waits
_LONGEST_SECONDS = 0.05
_RARE = 0.02
_RARE_SECONDS = 0.4  # longer than all else in most tests: what should have happened by then has not


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--jitter-seed` names one order."""
    parser.addoption("--jitter-seed", type=int, default=0, help="which order of events to try")


@dataclass(slots=True)
class Order:
    """One order of events: who waits, and for how long."""

    seed: str
    chance: random.Random

    def slow(self, kind: object) -> bool:
        """Whether one of a kind waits now."""
        return self.chance.random() < _CHANCE or random.Random(f"{self.seed} {kind}").random() < _SLOW

    async def hesitate(self) -> None:
        """Let others go first."""
        await asyncio.sleep(self.chance.random() * (_RARE_SECONDS if self.chance.random() < _RARE else _LONGEST_SECONDS))


@pytest.fixture(autouse=True)
def _jitter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = f"{request.config.getoption('--jitter-seed')} {request.node.nodeid}"
    order = Order(seed, random.Random(seed))
    watcher = request.getfixturevalue("database") if "kept" in request.fixturenames else None
    monkeypatch.setattr(Database, "_run", _statements(Database._run, order, watcher))
    monkeypatch.setattr(Database, "transaction", _transactions(Database.transaction, order))
    monkeypatch.setattr(Courier, "push", _pushes(Courier.push, order))


def _statements(run: Callable[..., Awaitable[Any]], order: Order, watcher: Database | None) -> Callable[..., Awaitable[Any]]:
    """Those of the test itself, which looks at what the others do, are as quick as ever."""

    async def hesitant(self: Database, lane: str, method: Callable[..., Awaitable[Any]], sql: str, args: tuple[object, ...]) -> Any:
        async def held(connection: Connection, sql: str, *args: object) -> Any:
            transaction = connection.transaction()
            await transaction.start()
            try:
                result = await method(connection, sql, *args)
                await order.hesitate()
            except Exception:  # who is cancelled says nothing more over the wire, as ever
                if not connection.is_closed():
                    await transaction.rollback()
                raise
            await transaction.commit()
            return result

        if self is watcher or not order.slow(sql):
            return await run(self, lane, method, sql, args)
        await order.hesitate()
        result = await run(self, lane, held, sql, args)
        await order.hesitate()
        return result

    return hesitant


def _transactions(
    transaction: Callable[..., AbstractAsyncContextManager[Connection]], order: Order
) -> Callable[..., AbstractAsyncContextManager[Connection]]:
    @asynccontextmanager
    async def slowly(ordinary: AbstractAsyncContextManager[Connection]) -> AsyncIterator[Connection]:
        await order.hesitate()
        async with ordinary as connection:
            yield connection
            await order.hesitate()
        await order.hesitate()

    def hesitant(self: Database, **named: Any) -> AbstractAsyncContextManager[Connection]:
        ordinary = transaction(self, **named)
        return slowly(ordinary) if order.slow(sys._getframe(1).f_code.co_qualname) else ordinary

    return hesitant


def _pushes(push: Callable[..., Awaitable[Any]], order: Order) -> Callable[..., Awaitable[Any]]:
    async def hesitant(self: object, *args: Any) -> Any:
        if not order.slow("push"):
            return await push(self, *args)
        await order.hesitate()
        result = await push(self, *args)
        await order.hesitate()
        return result

    return hesitant
