"""Apps made with the SDK, served at an address of the world and registered with one of its dispatchers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from handlers_sdk import App, ClientConfig, Dispatcher
from tests.world.world import Node, World


def dispatcher_for(node: Node) -> Dispatcher:
    """What calls this node."""
    return Dispatcher(ClientConfig(api_url=node.runtime.services.settings.base_url()))


@asynccontextmanager
async def serving(
    world: World, node: Node, dispatcher: Dispatcher, workflows: Callable[[], Sequence[Any]], *, slots: int = 50
) -> AsyncIterator[App]:
    """The endpoint `shop`, whose clock is the world's; closed afterwards, and its dispatcher with it."""
    app = dispatcher.app(workflows=[*workflows()], slots=slots, clock=lambda: int(world.now.timestamp()))
    await node.call("PUT", "/v1/endpoints/shop", {"url": await world.serve(app)})
    try:
        yield app
    finally:
        await app.handlers.host.postbox.aclose()
        await dispatcher.aio_close()
