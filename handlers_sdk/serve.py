"""An app as a process of its own: uvicorn, registration at the dispatcher, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Final
from urllib.parse import quote

import uvicorn

from handlers_sdk.api import Api
from handlers_sdk.asgi import App
from handlers_sdk.errors import ApiError, ApiUnreachableError, ConfigError, DispatcherError, LifespanSetupError
from handlers_sdk.portal import PORTAL
from handlers_sdk.schemas import dump_json

REGISTER_PAUSE_SECONDS: Final = 1.0
REGISTER_PAUSE_MAX_SECONDS: Final = 15.0
_EVERY_ADDRESS: Final = ("", "0.0.0.0", "::")  # noqa: S104 - what is refused as a URL

logger = logging.getLogger("handlers_sdk")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is registered: `PUT /v1/endpoints/{name}`."""

    name: str
    url: str
    version: str
    slots: int
    labels: Mapping[str, str | int] = field(default_factory=dict)
    durable_slots: int | None = None


def serve(app: App, api: Api | None, endpoint: Endpoint, host: str, port: int, shutdown_seconds: int) -> None:
    """Run until told to stop; with `api`, register once the socket listens. Raises what made registration impossible."""
    config = uvicorn.Config(
        app, host, port, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=shutdown_seconds
    )
    server = Server(config, app, api, endpoint)
    server.run()
    if server.failure is not None:
        raise server.failure
    if not server.started:
        raise LifespanSetupError("the app did not start; the reason is in the log above")


class Server(uvicorn.Server):
    """uvicorn, registering itself, refusing new work from the first signal on, and ending normally after one."""

    def __init__(self, config: uvicorn.Config, app: App, api: Api | None, endpoint: Endpoint) -> None:
        super().__init__(config)
        self.failure: DispatcherError | None = None
        self._app = app
        self._api = api
        self._endpoint = endpoint
        self._registration: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then register: the dispatcher answers a registration by asking for the manifest."""
        await super().startup(sockets=sockets)
        if self._api is not None and not self.should_exit:
            self._registration = asyncio.create_task(self._register(self._api))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is running."""
        self._app.handlers.draining = True
        if self._registration is not None:
            self._registration.cancel()
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal stops taking work at once. It is not raised again at the end: this is a normal end."""
        self._app.handlers.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True

    async def _register(self, api: Api) -> None:
        try:
            endpoint = replace(self._endpoint, url=self._endpoint.url or self._own_url())
            answer = await register(api, endpoint)
        except DispatcherError as error:
            self.failure = error
            self.should_exit = True
            return
        endpoint_id = answer.get("id") or answer.get("endpoint")
        if self._app.handlers.verifier is not None and isinstance(endpoint_id, str):
            self._app.handlers.verifier.trust_endpoint(endpoint_id)
        logger.info("registered as %s at %s", endpoint.name, endpoint.url)

    def _own_url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        if self.config.host in _EVERY_ADDRESS:
            raise ConfigError(f"serve listens on every address ({host}); say where the dispatcher reaches it: url='http://<host>:{port}'")
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def register(api: Api, endpoint: Endpoint) -> dict[str, Any]:
    """Register an endpoint, waiting for a dispatcher that cannot be reached. ApiError when it refuses."""
    body = {"url": endpoint.url, "version": endpoint.version, "slots": endpoint.slots}
    durable = {} if endpoint.durable_slots is None else {"durable_slots": endpoint.durable_slots}
    content = dump_json(body | durable | ({"labels": endpoint.labels} if endpoint.labels else {}))
    pause = REGISTER_PAUSE_SECONDS
    while True:
        try:
            _, answer = await PORTAL.aio_call(api.request("PUT", f"/v1/endpoints/{quote(endpoint.name, safe='')}", content=content))
            return dict(answer)
        except ApiUnreachableError as error:
            logger.warning("not registered yet: %s", error)
        except ApiError as error:
            if error.status < 500:
                raise
            logger.warning("not registered yet: %s", error)
        await asyncio.sleep(pause)
        pause = min(REGISTER_PAUSE_MAX_SECONDS, pause * 2)
