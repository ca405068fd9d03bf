"""The world the tests of the API live in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from dispatcher.store.database import Database
from tests.api.world import World, open_world


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """A development server: callers on this machine need no token."""
    async with AsyncExitStack() as stack:
        yield await open_world(database, stack)


@pytest.fixture
async def serving(database: Database) -> AsyncIterator[World]:
    """A server in production: everybody needs a token."""
    async with AsyncExitStack() as stack:
        yield await open_world(database, stack, dev=False)


@pytest.fixture
async def api(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """The developer on this machine."""
    async with world.client() as client:
        yield client
