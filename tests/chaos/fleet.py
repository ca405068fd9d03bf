"""The processes that are killed, and the ones that are not: dispatchers and Postgres, endpoints."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dispatcher.store.embedded import EmbeddedPostgres
from tests.bench.client import Client
from tests.bench.system import HOST, create_token, end, free_port, launch, new_master_key, pause, program, server_environment, until_ready
from tests.chaos.plain import HANDLERS

LEASE, HEARTBEAT = 3.0, 1.0
_SETTINGS = {
    "lease": LEASE, "heartbeat": HEARTBEAT, "poll": 0.5, "probe_seconds": 1, "probe_max_seconds": 2, "database_connections": 6,
    "database_timeout": 3,
}  # fmt: skip


@dataclass(slots=True)
class Dispatcher:
    """One dispatcher's place in the fleet; processes come and go in it, its port stays."""

    port: int
    process: asyncio.subprocess.Process | None = None
    frozen: bool = False
    answering: asyncio.Task[None] | None = None

    @property
    def at_work(self) -> bool:
        """Whether the process in this place has come up and is not frozen."""
        return not self.frozen and self.answering is not None and self.answering.done()


@dataclass(slots=True)
class Fleet:
    """Everything that runs."""

    directory: Path
    postgres: EmbeddedPostgres
    environment: Mapping[str, str]
    dispatchers: list[Dispatcher]
    endpoints: list[asyncio.subprocess.Process] = field(default_factory=list)
    token: str = ""
    master_key: str = ""

    @property
    def requests(self) -> Path:
        """The endpoints' record."""
        return self.directory / "requests.log"

    def log_of(self, number: int) -> Path:
        """Where a dispatcher's processes write."""
        return self.directory / f"dispatcher-{number}.log"

    async def start(self, number: int) -> None:
        """Start a process in a dispatcher's place."""
        dispatcher = self.dispatchers[number]
        environment = server_environment(self.postgres.dsn, dispatcher.port, self.master_key, **_SETTINGS)
        with self.log_of(number).open("ab") as log:
            dispatcher.process = await launch([program("dispatcher"), "serve"], environment, log)
        dispatcher.frozen = False
        if dispatcher.answering is not None:
            dispatcher.answering.cancel()
        dispatcher.answering = asyncio.create_task(_answers(dispatcher.port))

    async def ready(self) -> None:
        """Wait until every dispatcher answers, starting those that do not run."""
        for number, dispatcher in enumerate(self.dispatchers):
            self.thaw(number)
            if dispatcher.process is None or dispatcher.process.returncode is not None:
                await self.start(number)
        for number, dispatcher in enumerate(self.dispatchers):
            assert dispatcher.process is not None
            await until_ready(dispatcher.port, "/readyz", dispatcher.process, self.log_of(number))

    async def kill(self, number: int) -> None:
        """SIGKILL a dispatcher, wait until it is gone, and start another in its place."""
        process = self.dispatchers[number].process
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await self.start(number)

    def freeze(self, number: int) -> None:
        """SIGSTOP: it knows nothing of the time that passes until it is thawed."""
        process = self.dispatchers[number].process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGSTOP)
            self.dispatchers[number].frozen = True

    def thaw(self, number: int) -> None:
        """SIGCONT."""
        dispatcher = self.dispatchers[number]
        if dispatcher.frozen and dispatcher.process is not None and dispatcher.process.returncode is None:
            dispatcher.process.send_signal(signal.SIGCONT)
        dispatcher.frozen = False

    def signal_postgres(self, number: signal.Signals) -> bool:
        """Send a signal to the postmaster, if there is one; its supervisor starts another. Whether it was sent."""
        try:
            first = (self.directory / "pg" / "data" / "postmaster.pid").read_text().split()[0]
            pid = int(first)
            if pid == os.getpid():
                return False  # between two servers: the supervisor has put its own number there
            os.kill(pid, number)
        except (OSError, ValueError, IndexError):
            return False
        return True

    async def register(self) -> None:
        """Make both endpoints known."""
        client = Client(HOST, self.dispatchers[0].port, self.token)
        sdk, plain = (f"http://{HOST}:{port}" for port in self._endpoint_ports)
        await client.expect("PUT", "/v1/endpoints/sdk", {"url": sdk, "slots": 60})
        await client.expect("PUT", "/v1/endpoints/plain", {"url": plain, "slots": 40, "handlers": HANDLERS})
        client.close()

    _endpoint_ports: tuple[int, int] = (0, 0)

    async def start_endpoints(self) -> None:
        """The SDK's and the plain one."""
        self._endpoint_ports = free_port(), free_port()
        sdk, plain = self._endpoint_ports
        ports = [str(dispatcher.port) for dispatcher in self.dispatchers]
        environment = {
            **os.environ,
            "CHAOS_REQUESTS": str(self.requests),
            "DISPATCHER_API_URL": f"http://{HOST}:{ports[0]}",
            "DISPATCHER_TOKEN": self.token,
        }
        command = [program("uvicorn"), "--factory", "tests.chaos.endpoint:create", "--host", HOST, "--port", str(sdk), "--no-access-log"]
        with (self.directory / "endpoints.log").open("ab") as log:
            self.endpoints.append(await launch([*command, "--lifespan", "off", "--log-level", "warning"], environment, log))
            command = [sys.executable, "-m", "tests.chaos.plain", str(plain), str(self.requests), *ports]
            self.endpoints.append(await launch(command, environment, log))
        for port, process in zip(self._endpoint_ports, self.endpoints, strict=True):
            await _listening(port, process)

    async def stop(self) -> None:
        """End everything."""
        for number, dispatcher in enumerate(self.dispatchers):
            self.thaw(number)
            if dispatcher.answering is not None:
                dispatcher.answering.cancel()
            if dispatcher.process is not None and dispatcher.process.returncode is None:
                dispatcher.process.kill()
                await dispatcher.process.wait()
        for endpoint in self.endpoints:
            await end(endpoint)
        await self.postgres.stop()


async def _answers(port: int) -> None:
    """Until GET /readyz is 200."""
    while True:
        client = Client(HOST, port)
        try:
            async with asyncio.timeout(1):
                if (await client.request("GET", "/readyz")).status == 200:
                    return
        except (OSError, TimeoutError):
            pass
        finally:
            client.close()
        await pause(0.1)


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    for _ in range(300):
        if process.returncode is not None:
            break
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.1)
        else:
            writer.close()
            return
    raise RuntimeError(f"nothing listens on port {port} (exit code {process.returncode})")


@asynccontextmanager
async def running(directory: Path, dispatchers: int, *, endpoints: bool = True) -> AsyncIterator[Fleet]:
    """A fleet, with its endpoints registered unless somebody brings others; everything is ended afterwards."""
    postgres = await EmbeddedPostgres.start(directory / "pg")
    fleet = Fleet(directory, postgres, {}, [Dispatcher(free_port()) for _ in range(dispatchers)], master_key=new_master_key())
    try:
        await fleet.ready()
        fleet.token = await create_token(postgres.dsn, server_environment(postgres.dsn, 0, fleet.master_key))
        if endpoints:
            await fleet.start_endpoints()
            await fleet.register()
        yield fleet
    finally:
        await fleet.stop()
