"""Couriers for delivery tests."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from dispatcher.delivery import Courier, EgressPolicy
from tests.delivery.endpoints import NOW

MakeCourier = Callable[..., Courier]


def make_courier(policy: EgressPolicy | None = None, **options: Any) -> Courier:
    """A courier in development mode, unless told otherwise."""
    return Courier(policy or EgressPolicy(dev=True), clock=lambda: NOW, user_agent="dispatcher/test", **options)


@pytest.fixture
async def couriers() -> AsyncIterator[MakeCourier]:
    """Makes couriers that are closed when the test ends."""
    async with AsyncExitStack() as stack:

        def make(policy: EgressPolicy | None = None, **options: Any) -> Courier:
            courier = make_courier(policy, **options)
            close: Callable[[], Awaitable[None]] = functools.partial(courier.aclose)
            stack.push_async_callback(close)
            return courier

        yield make


@pytest.fixture
async def courier(couriers: MakeCourier) -> Courier:
    return couriers()
