"""The server process of `dev` and `serve`: one event loop that holds Postgres, the dispatcher and its HTTP face, and ends them in order.

It listens first, so that it can say what it waits for. On the first SIGTERM or SIGINT it stops taking work, lets open attempts end,
and leaves; on the second it leaves at once (a child process, Postgres among them, ends with it).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import uvicorn

from dispatcher.app import Runtime, start
from dispatcher.cli.addresses import forget_stalled, listen, url_of
from dispatcher.cli.answering import Protocol
from dispatcher.cli.front import Application, Front
from dispatcher.cli.local import explained, postgres_directory
from dispatcher.cli.steps import Steps
from dispatcher.clock import Clock, SystemClock
from dispatcher.settings import Settings
from dispatcher.store.database import DatabaseUnavailable, is_transient
from dispatcher.store.embedded import EmbeddedPostgres
from dispatcher.store.migrate import migrate

T = TypeVar("T")

HTTP_GRACE_SECONDS = 4
KEEP_ALIVE_SECONDS = 60  # longer than clients keep an idle connection, so that none of them writes into one just being closed
_PAUSE_FIRST = timedelta(milliseconds=200)
_PAUSE_LAST = timedelta(seconds=3)
_YOUNG_OBJECTS = 20_000  # a collection looks at some megabytes and takes a few milliseconds


class Interrupted(Exception):  # noqa: N818 - no error: the server was told to stop before it was ready
    """Told to stop while starting."""


@dataclass(slots=True)
class Serving:
    """One server process. `grace` is how long open attempts get at the end, `patience` how long to wait for a database that is away."""

    settings: Settings
    steps: Steps
    grace: timedelta
    patience: timedelta | None = None
    clock: Clock = field(default_factory=SystemClock)

    async def run(self, ready: Callable[[Runtime, str, AsyncExitStack], Awaitable[None]]) -> None:
        """Serve until told to stop. `ready(runtime, url, stack)` is called once requests are answered."""
        stop = asyncio.Event()
        front = Front()
        bound = listen(self.settings.host, self.settings.port)
        self.settings = replace(self.settings, port=bound.getsockname()[1])
        forget_stalled(bound, self.settings.stream_stall)
        with _signals(stop), suppress(Interrupted):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(http_server(front, bound, stop))
                dsn = await _unless(stop, self._postgres(stack))
                beside = await stack.enter_async_context(AsyncExitStack())  # ends after the runtime has let its attempts end
                runtime = await _unless(stop, self._start(dsn, front))
                stack.push_async_callback(self._stop, runtime, front)
                _collect_rarely()
                front.app, front.reason = cast(Application, runtime.app), ""
                await _unless(stop, ready(runtime, url_of(bound), beside))
                await stop.wait()

    async def _stop(self, runtime: Runtime, front: Front) -> None:
        front.reason = "the server is stopping"
        self.steps.stopping(f"open attempts have {self.grace.total_seconds():g} s to end, another signal ends it at once")
        await runtime.stop(self.grace)
        front.app = None

    async def _postgres(self, stack: AsyncExitStack) -> str:
        """The DSN to use; the embedded server is started for it unless one is configured."""
        if self.settings.database_url:
            return self.settings.database_url
        postgres = await EmbeddedPostgres.start(postgres_directory(self.settings))
        stack.push_async_callback(postgres.stop)
        whose = "" if postgres.owner else ", which another process runs"
        self.steps.done(f"Postgres {postgres.version} in {postgres_directory(self.settings)}{whose}", version=postgres.version)
        return postgres.dsn

    async def _start(self, dsn: str, front: Front) -> Runtime:
        """A runtime on a migrated database, tried again while the database is away."""
        pause, waited = _PAUSE_FIRST, timedelta()
        while True:
            try:
                return await self._start_once(dsn)
            except Exception as error:
                failure = explained(error)
                away = isinstance(error, DatabaseUnavailable | OSError | TimeoutError) or is_transient(error)
                if failure is None or not away or (self.patience is not None and waited >= self.patience):
                    raise
                if front.reason != failure.message:
                    self.steps.failed(f"{failure.message}; trying again")
                front.reason = failure.message
            await self.clock.sleep_until(self.clock.now() + pause)
            waited += pause
            pause = min(pause * 2, _PAUSE_LAST)

    async def _start_once(self, dsn: str) -> Runtime:
        applied = await migrate(dsn, self.clock.now())
        where = " at DATABASE_URL" if self.settings.database_url else ""
        self.steps.done(
            f"schema{where}, {len(applied)} new migrations" if applied else f"schema{where} up to date", migrations=len(applied)
        )
        return await start(replace(self.settings, database_url=dsn), self.clock)


def _collect_rarely() -> None:
    """Nearly all a request makes is freed as soon as nobody refers to it, and what start-up has made stays: so look for cycles rarely, and
    never in that. With Python's own thresholds a busy server spends a fifth of its time looking.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


@asynccontextmanager
async def http_server(app: Any, bound: socket.socket, stop: asyncio.Event) -> AsyncIterator[None]:
    """Serve `app` on a bound socket for as long as the block lasts. A server that ends by itself sets `stop`."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=HTTP_GRACE_SECONDS,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[bound]), name="http server")
    serving.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        server.should_exit = True
        await serving


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    def told() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _unless(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """The result of `work`, or Interrupted as soon as `stop` is set."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    both: list[asyncio.Future[Any]] = [task, stopped]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Interrupted
        return task.result()
    finally:
        for future in both:
            future.cancel()
        await asyncio.wait(both)


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop, where there is one. Raises Failure for what is wrong with the installation."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(main)
    except Exception as error:
        failure = explained(error)
        if failure is None:
            raise
        raise failure from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
