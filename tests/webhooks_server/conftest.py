"""The world of the API, with senders of webhooks in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from dispatcher.store.database import Database
from tests.api.world import open_world
from tests.webhooks_server.senders import Senders


@pytest.fixture
async def senders(database: Database) -> AsyncIterator[Senders]:
    """A development server, and everybody who posts to it."""
    async with AsyncExitStack() as stack:
        world = await open_world(database, stack)
        client = await stack.enter_async_context(world.client())
        yield Senders(world, client)
        await world.services.webhooks.drain()
