"""The system under test as real processes: Postgres, a dispatcher, an endpoint, and the collector of what its handlers did."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from dispatcher.store.embedded import EmbeddedPostgres
from tests.bench.client import Client
from tests.bench.cpu import Part, spent
from tests.bench.endpoint import FLAVOURS, GATES, GRAPHS, REPLAYS, SLOTS
from tests.bench.sink import Sink

HOST = "127.0.0.1"
_READY_SECONDS = 60.0
_STOP_SECONDS = 40.0
_POLL_SECONDS = 0.05


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """A command installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


async def pause(seconds: float) -> None:
    """Let time pass: what is waited for lies in another process, which cannot signal this one."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


def server_environment(dsn: str, port: int, master_key: str, **settings: object) -> dict[str, str]:
    """Variables of a production server on loopback. `settings` are fields of Settings by name."""
    chosen = {"port": port, "master_key": master_key, "allow_http": "true", "egress_allow": "127.0.0.0/8", **settings}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    return {
        **inherited,
        "DATABASE_URL": dsn,
        "LOG_LEVEL": "WARNING",
        **{f"DISPATCHER_{name.upper()}": str(value) for name, value in chosen.items()},
    }


def new_master_key() -> str:
    """Base64 of 32 random bytes."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


async def launch(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> asyncio.subprocess.Process:
    """Start a process that dies with nobody: whoever launches it ends it."""
    return await asyncio.create_subprocess_exec(*command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log)


async def end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL when that was not enough."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def until_ready(port: int, path: str, process: asyncio.subprocess.Process, log: Path) -> None:
    """Wait until GET `path` is 200. Raises RuntimeError with the end of the log when the process ends or takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _READY_SECONDS
    while process.returncode is None and loop.time() < deadline:
        client = Client(HOST, port)
        try:
            async with asyncio.timeout(2):
                if (await client.request("GET", path)).status == 200:
                    return
        except (OSError, TimeoutError):
            pass
        finally:
            client.close()
        await pause(_POLL_SECONDS)
    raise RuntimeError(f"{path} on port {port} was never 200 (exit code {process.returncode}):\n{log.read_text()[-4000:]}")


async def create_token(dsn: str, environment: Mapping[str, str]) -> str:
    """A token of the default tenant, made by the command line."""
    command = [program("dispatcher"), "token", "create", "bench", "-o", "json"]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    found = re.search(rb"dsp_live_\w+", out)
    if found is None:
        raise RuntimeError(f"{' '.join(command)} on {dsn}: {out!r} {err.decode()[-2000:]}")
    return found[0].decode()


@dataclass(slots=True)
class System:
    """Everything that runs, and how to talk to it."""

    dsn: str
    port: int
    endpoint_port: int
    token: str
    sink: Sink
    parts: Mapping[str, Part]
    postgres: str
    directory: Path
    master_key: str

    def client(self) -> Client:
        """One more connection to the API."""
        return Client(HOST, self.port, self.token)

    def cpu(self) -> dict[str, float]:
        """Milliseconds used so far by server, endpoint, Postgres and client."""
        return spent(self.parts)

    async def register(self, flavour: str, slots: int = SLOTS) -> dict[str, Any]:
        """Register one flavour of the endpoint under its own name; answers what the server says."""
        client = self.client()
        url = f"http://{HOST}:{self.endpoint_port}/{flavour}"
        document: dict[str, Any] = await client.expect("PUT", f"/v1/endpoints/{flavour}", {"url": url, "slots": slots})
        client.close()
        return document


@asynccontextmanager
async def running(directory: Path, signatures: str = "v1a", settings: Mapping[str, object] = MappingProxyType({})) -> AsyncIterator[System]:
    """Start everything in `directory`, register the endpoint's flavours, and end everything afterwards. `settings` are the server's.

    Tokens are checked and signatures verified: `v1a`, which the SDK does without being told anything, or `v1`, which it does once it
    has the secrets that registering has answered.
    """
    async with AsyncExitStack() as stack:
        postgres = await EmbeddedPostgres.start(directory / "pg")
        stack.push_async_callback(postgres.stop)
        postmaster = int((directory / "pg" / "data" / "postmaster.pid").read_text().split()[0])
        log, path = directory / "endpoint.log", directory / "sink.sock"
        sink = await Sink.start(path)
        stack.push_async_callback(sink.stop)
        port, endpoint_port = free_port(), free_port()
        master_key = new_master_key()
        environment = server_environment(postgres.dsn, port, master_key, **settings)
        server = await _start(stack, directory / "server.log", [program("dispatcher"), "serve"], environment)
        await until_ready(port, "/readyz", server, directory / "server.log")
        token = await create_token(postgres.dsn, environment)
        endpoint = await start_endpoint(stack, log, path, port, endpoint_port, token)
        parts = {
            "server": Part(trees=(server.pid,)),
            "endpoint": Part(trees=(endpoint.pid,)),
            "postgres": Part(trees=(postmaster,)),
            "client": Part(trees=(sink.pid,), alone=(os.getpid(),)),
        }
        system = System(postgres.dsn, port, endpoint_port, token, sink, parts, postgres.version, directory, master_key)
        try:
            flavours = (*FLAVOURS, GRAPHS, GATES, REPLAYS)
            secrets_given = [(await system.register(flavour))["secret"] for flavour in flavours]
            if signatures == "v1":
                await end(endpoint)
                given = {"DISPATCHER_SIGNING_SECRETS": ",".join(secrets_given)}
                endpoint = await start_endpoint(stack, log, path, port, endpoint_port, token, **given)
                parts["endpoint"] = Part(trees=(endpoint.pid,))
            for flavour in flavours:
                document = await system.register(flavour)
                assert document["verified"] == signatures, document
            yield system
        except Exception as error:
            for kept in directory.glob("*.log"):
                error.add_note(f"--- {kept.name}\n{kept.read_text()[-3000:]}")
            raise


async def _start(stack: AsyncExitStack, log: Path, command: list[str], environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    with log.open("wb") as file:
        process = await launch(command, environment, file)
    stack.push_async_callback(end, process)
    return process


async def start_endpoint(
    stack: AsyncExitStack, log: Path, sink: Path, port: int, endpoint_port: int, token: str, **more: str
) -> asyncio.subprocess.Process:
    """One more process of the endpoint, for the tenant of `token`. `more` are variables of its environment."""
    environment = {
        **os.environ,
        "BENCH_SINK": str(sink),
        "DISPATCHER_API_URL": f"http://{HOST}:{port}",
        "DISPATCHER_TOKEN": token,
        **more,
    }
    command = [program("uvicorn"), "--factory", "tests.bench.endpoint:create", "--host", HOST, "--port", str(endpoint_port)]
    command += ["--no-access-log", "--lifespan", "off", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
    process = await _start(stack, log, command, environment)
    await _listening(endpoint_port, process, log)
    return process


async def _listening(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _READY_SECONDS
    while process.returncode is None and loop.time() < deadline:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await pause(_POLL_SECONDS)
        else:
            writer.close()
            return
    raise RuntimeError(f"nothing listens on port {port}:\n{log.read_text()[-4000:]}")


@asynccontextmanager
async def workspace() -> AsyncIterator[Path]:
    """A directory for everything, gone afterwards. Postgres may run as another user, who must be able to reach it."""
    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)
