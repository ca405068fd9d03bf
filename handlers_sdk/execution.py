"""Attempts being worked on: started, bounded by their deadline, told to stop, and settled exactly once.

An attempt is settled by whatever comes first: its handler's end, its deadline, or a stop. A handler that outlives its attempt (a thread
cannot be interrupted, and a coroutine may take its time to clean up) stays in the ledger until it ends, so that the same attempt is never
run twice at once and a shutdown waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.api import Api
from handlers_sdk.channel import Channel
from handlers_sdk.context import CURRENT, Accepted, Context, WorkerInfo
from handlers_sdk.errors import DispatcherError
from handlers_sdk.function import HandlerFunction, WorkerThreads
from handlers_sdk.logcache import LogCache
from handlers_sdk.outcomes import Done, Outcome, Refuse, Turned, cancelled, failure, timed_out
from handlers_sdk.portal import PORTAL
from handlers_sdk.postbox import Postbox
from handlers_sdk.posting import Posting
from handlers_sdk.references import RESPONSE_BYTES_MAX, fetch_refs, upload

FLUSH_SECONDS: Final = 5.0
STALE: Final = "this attempt no longer owns its task"
SHUTTING_DOWN: Final = Refuse(503, "shutting_down", "the endpoint is shutting down")

logger = logging.getLogger("handlers_sdk")


@dataclass(slots=True)
class Host:
    """What all attempts of one app share. `lifespan` is set once the lifespan generator has yielded, `draining` when the end has begun."""

    api: Api
    worker: WorkerInfo
    threads: WorkerThreads
    lifespan: Any = None
    draining: bool = False
    running: dict[tuple[str, int], Execution] = field(default_factory=dict)
    home: threading.Thread | None = None
    response_bytes: int = RESPONSE_BYTES_MAX
    postbox: Postbox = field(init=False)
    logs: LogCache = field(default_factory=LogCache)
    time: Callable[[], float] | None = None  # seconds of a clock that stands still in tests; None: the event loop's
    on_step: Callable[[str, str], None] = lambda _task, _step: None  # told of each call of a durable step, before it is made

    def __post_init__(self) -> None:
        self.postbox = Postbox(Api(self.api.config, Posting()))  # connections of its own: those of `api` belong to another event loop


class Execution:
    """One attempt. `settle` is called once, on the event loop, with what it came to."""

    __slots__ = (
        "_armed",
        "_base",
        "_blocking",
        "_channel",
        "_due",
        "_function",
        "_host",
        "_item",
        "_loop",
        "_settle",
        "_task",
        "_timer",
        "context",
    )

    def __init__(
        self,
        host: Host,
        function: HandlerFunction,
        task_name: str,
        item: wire.RunItem,
        base: str,
        settle: Callable[[Execution, Outcome], None],
    ) -> None:
        self._host = host
        self._function = function
        self._item = item
        self._base = base
        self._settle: Callable[[Execution, Outcome], None] | None = settle
        self._channel: Channel | None = None
        self._blocking: list[Future[Any]] = []
        self.context = self._make_context(task_name)

    def _make_context(self, task_name: str) -> Context:
        return Context(self._item, self, task_name)

    @property
    def task_id(self) -> str:
        """`tsk_…`."""
        return self._item["id"]

    def start(self, received: float) -> None:
        """Begin. `received` is when the request came, by the loop's clock: the attempt's time has been running since."""
        self._loop = asyncio.get_running_loop()
        self._host.home = threading.current_thread()
        self._due = received + self._item["timeout_ms"] / 1000
        self._host.running[self._item["id"], self._item["attempt"]] = self
        self._arm()
        self._task = self._loop.create_task(self._main())

    # ---- what a context asks for

    @property
    def lifespan(self) -> Any:
        """What the app's lifespan generator yielded."""
        return self._host.lifespan

    @property
    def worker(self) -> WorkerInfo:
        """This process."""
        return self._host.worker

    @property
    def home(self) -> threading.Thread | None:
        """The thread the event loop runs in."""
        return self._host.home

    def emit(self, event: wire.Event) -> None:
        """Queue an event for the dispatcher, from any thread."""
        if self._channel is None:
            self._channel = Channel(self._host.postbox, loop=self._loop, base=self._base, token=self._item["token"], on_stop=self.stop)
        self._channel.put(event)

    def flushed(self) -> Future[None]:
        """Done when everything emitted so far has arrived."""
        if self._channel is not None:
            return self._channel.flushed()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def extend(self, ms: int) -> None:
        """Move the deadline, from any thread."""
        self._loop.call_soon_threadsafe(self._extend, ms / 1000)

    def stop(self, reason: str) -> None:
        """Stop, from any thread: set the context's flag at once, interrupt the handler as soon as the loop gets to it."""
        context: Context | None = getattr(self, "context", None)
        if context is not None:  # else it is over
            context._stop(reason)  # noqa: SLF001 - the context belongs to its execution
            self._loop.call_soon_threadsafe(self._interrupt, cancelled(reason))

    def leave(self) -> Outcome:
        """Stop because the endpoint has no more time; what the dispatcher is told."""
        outcome = self._left()
        self.context._stop(SHUTTING_DOWN.message)  # noqa: SLF001 - the context belongs to its execution
        Execution._interrupt(self, outcome)
        return outcome

    def _left(self) -> Outcome:
        return SHUTTING_DOWN

    def cancel_run(self) -> Future[None]:
        """Ask the dispatcher to cancel the run, with the configured token."""
        return PORTAL.submit(self._cancel_run())

    async def _cancel_run(self) -> None:
        content = b'{"reason":"cancelled by the task itself"}'
        await self._host.api.request("POST", f"/v1/runs/{self._item['run_id']}/cancel", content=content, repeatable=True)

    # ---- the attempt's life

    async def _main(self) -> None:
        CURRENT.set(self.context)
        outcome: Outcome
        try:
            refused = await self._fetch_refs() if "refs" in self._item else None
            outcome = refused or await self._work()
            if _output_bytes(outcome) > self._host.response_bytes:
                outcome = await self._by_reference(outcome)
        except asyncio.CancelledError as error:
            if self._task.cancelling():
                self._finish(SHUTTING_DOWN)
                self._release_when_idle()
                raise
            outcome = failure(error)  # the handler awaited something that somebody else cancelled
        except (Exception, SystemExit) as error:
            outcome = failure(error)
        if self._channel is not None:
            await self._flush(self._channel)
        self._release_when_idle()  # a durable task may have left a blocking step behind
        self._finish(outcome)

    async def _work(self) -> Outcome:
        result = await self._function.call(self.context, self)
        return result if isinstance(result, Accepted) else Done(result)

    async def _fetch_refs(self) -> Outcome | None:
        """What is sent by reference takes its place. Where it is not to be had nothing has run, and the attempt is asked for again."""
        try:
            await fetch_refs(self._host.api, self._item, self._base)
        except DispatcherError as error:
            return Refuse(503, error.code, str(error))
        return None

    async def _by_reference(self, outcome: Outcome) -> Outcome:
        """The outcome with its output uploaded, where the dispatcher takes that."""
        assert isinstance(outcome, Done | Turned)
        text = outcome.output if isinstance(outcome, Done) else outcome.answer[-1 - outcome.output_bytes : -1]
        reference = await upload(self._host.api, text, token=self._item["token"], base=self._base)
        if reference is None:
            return outcome
        if isinstance(outcome, Done):
            return Done(reference, referred=True)
        answer = b'%b%b,"refs":["output"]}' % (outcome.answer[: -1 - outcome.output_bytes], reference)
        return Turned(answer, outcome.hit)

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Blocking code of this attempt, in a worker thread."""
        call = self._host.threads.start(fn, *args)
        self._blocking.append(call)
        call.add_done_callback(self._blocking.remove)
        try:
            return await asyncio.wrap_future(call)
        finally:
            del call  # whose exception knows this frame

    async def _flush(self, channel: Channel) -> None:
        """Log lines arrive before the result does; losing them does not change it."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await asyncio.wrap_future(channel.flushed())
        except Exception as error:
            logger.warning("%s: %s", self.task_id, str(error) or "its log lines are still under way")

    def _arm(self) -> None:
        self._armed = self._due
        self._timer = self._loop.call_at(self._due, self._expire)

    def _expire(self) -> None:
        if self._due > self._armed:  # the deadline moved meanwhile
            self._arm()
            return
        outcome = timed_out(self._item["timeout_ms"])
        self.context._stop(outcome.error["message"])  # noqa: SLF001 - the context belongs to its execution
        self._interrupt(outcome)

    def _extend(self, seconds: float) -> None:
        self._due += seconds

    def _interrupt(self, outcome: Outcome) -> None:
        self._finish(outcome)
        task: asyncio.Task[None] | None = getattr(self, "_task", None)
        if task is not None:  # else it is over
            task.add_done_callback(lambda _: self._release_when_idle())  # also when the handler never got to run
            task.cancel()

    def _finish(self, outcome: Outcome) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            self._timer.cancel()
            settle(self, outcome)

    def _release_when_idle(self) -> None:
        call = next(iter(self._blocking), None)
        if call is None:
            self._release()
        else:
            call.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._release_when_idle))

    def _release(self) -> None:
        """Over: nobody finds it any more, and its context and its task are let go, which know it too and would wait for the collector."""
        if self._host.running.pop((self._item["id"], self._item["attempt"]), None) is not None:
            del self.context, self._task
            if self._channel is not None:
                self._channel.let_go()


def _output_bytes(outcome: Outcome) -> int:
    if isinstance(outcome, Done):
        return len(outcome.output)
    return outcome.output_bytes if isinstance(outcome, Turned) else 0
