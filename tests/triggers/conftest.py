"""A world for every test, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dispatcher.store.database import Database
from tests.world.world import Node, World


@pytest.fixture
async def world(dsn: str, database: Database) -> AsyncIterator[World]:
    """A world without a dispatcher."""
    world = World(dsn, database)
    yield world
    await world.close()


@pytest.fixture
async def one(world: World) -> Node:
    """Its first dispatcher."""
    return await world.node()
