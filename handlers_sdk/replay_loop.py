"""An event loop that does no I/O and reads no clock: what runs on it does the same every time.

A durable handler runs on one of these. `asyncio.gather`, `TaskGroup`, `wait` and `timeout` work as anywhere, because tasks, futures and
callbacks are asyncio's own; but callbacks run in the order they were made, until none is left, and time stands still between the entries
of the log. What a handler awaits beyond that belongs into a step, and is refused here with that advice.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from math import inf
from types import FrameType
from typing import Any, Final, NoReturn
from weakref import WeakSet

from handlers_sdk.errors import Cancelled, Interruption, NotDeterministicError
from handlers_sdk.generators import Generator, Generators

SPINS_MAX: Final = 1_000_000
"""Callbacks in one go. A handler that needs more never waits for anything."""

_OUTSIDE: Final = (
    "add_reader", "add_signal_handler", "add_writer", "call_soon_threadsafe", "connect_accepted_socket", "connect_read_pipe",
    "connect_write_pipe", "create_connection", "create_datagram_endpoint", "create_server", "create_unix_connection",
    "create_unix_server", "getaddrinfo", "getnameinfo", "remove_reader", "remove_writer", "run_forever", "run_in_executor",
    "run_until_complete", "sendfile", "sock_accept", "sock_connect", "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_sendall",
    "sock_sendfile", "sock_sendto", "start_tls", "subprocess_exec", "subprocess_shell",
)  # fmt: skip


class ReplayLoop(asyncio.AbstractEventLoop):
    """Callbacks in order. `timer(seconds, call)` is asked for what has to happen later; `seconds()` is the time."""

    def __init__(self, timer: Callable[[float, Callable[[], object]], asyncio.Future[Any]], seconds: Callable[[], float]) -> None:
        self.tasks: WeakSet[ReplayTask] = WeakSet()
        self._alive: set[ReplayTask] = set()  # not over: nobody else may know of one that waits for what is its own
        self.generators = Generators(self._end_generator)
        self.unwinding = False  # what asks for a task's end only marks it then, and who is owed hears
        self._refused: list[asyncio.Future[Any]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._timer = timer
        self._seconds = seconds
        self._made = 0

    def run_ready(self) -> None:
        """Run callbacks until none is left. NotDeterministicError when they do not end."""
        ready = self._ready
        if not ready:
            return
        outer = asyncio._get_running_loop()  # noqa: SLF001 - the documented way to be an event loop
        _set_running_loop(self)
        spins = 0
        try:
            while ready:
                ready.popleft()._run()  # noqa: SLF001 - what an event loop does with its handles
                spins += 1
                if spins > SPINS_MAX:
                    ready.clear()
                    raise NotDeterministicError("the handler goes round and round without waiting for anything durable")
        finally:
            _set_running_loop(outer)

    def forget(self) -> None:
        """Nothing will run here any more: let go of what this was made with, and of what knows it."""
        for ended in (*self.tasks, *self._refused):
            untrace(ended)
        self._alive.clear()
        self._refused.clear()
        del self._timer, self._seconds

    def _end_generator(self, generator: Generator) -> None:
        self.create_task(generator.aclose())

    # ---- what asyncio asks of a loop

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        """Run it after what is waiting already."""
        if self.unwinding and args and isinstance(task := getattr(callback, "__self__", None), ReplayTask):
            args = (task.woken_by(args[0]), *args[1:])
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """Run it when a sleep of the log has ended."""
        return self.call_at(self._seconds() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """Run it when a sleep of the log has ended; never where that is infinitely far."""
        handle = _Timer(when, callback, args, self, context)
        if when == inf:
            return handle
        handle.sleep = self._timer(max(0.0, when - self._seconds()), lambda: None if handle.cancelled() else self._ready.append(handle))
        return handle

    def time(self) -> float:
        """Seconds, as the log has them."""
        return self._seconds()

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any) -> Any:
        """A task; what is a future of this loop already, as an operation of a durable context is, stands for itself."""
        if isinstance(coro, asyncio.Future):
            return coro
        made: Coroutine[Any, Any, Any] = coro
        _refuse_disorder(made, sys._getframe(1))  # noqa: SLF001 - who asks is not told otherwise
        self._made += 1
        task = ReplayTask(made, -self._made, loop=self, name=name, context=context)
        self.tasks.add(task)
        self._alive.add(task)
        task.add_done_callback(self._alive.discard)
        return task

    def refusal(self, error: BaseException) -> asyncio.Future[Any]:
        """A future that has ended so."""
        future = self.create_future()
        future.set_exception(error)
        self._refused.append(future)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody retrieved is nobody's concern: a handler is put aside at every wait."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """See `call_exception_handler`."""

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """As far as its callbacks can tell."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, _Timer) and handle.sleep is not None:
            handle.sleep.cancel()


def new_loop(timer: Callable[[float, Callable[[], object]], asyncio.Future[Any]], seconds: Callable[[], float]) -> ReplayLoop:
    """A loop for one handler."""
    return ReplayLoop(timer, seconds)  # type: ignore[abstract]  # what is missing is refused


def untrace(ended: asyncio.Future[Any]) -> None:
    """Let what interrupted a handler forget where: its frames know what they waited for, which knows what interrupted it."""
    if ended.done() and not ended.cancelled() and _interrupts(ended.exception()):
        try:
            ended.result()  # a task has another reference to the traceback until then
        except BaseException as error:
            error.__traceback__ = None


def _interrupts(error: BaseException | None) -> bool:
    """Whether it only unwinds a handler. What fails one is left as it is: others may have kept it."""
    return isinstance(error, Interruption) or (isinstance(error, BaseExceptionGroup) and any(map(_interrupts, error.exceptions)))


class ReplayTask(asyncio.Task[Any]):
    """Hashed by when it was made: a set of tasks, as `asyncio.wait` gives it, has the same order every time."""

    unwanted = False  # asked to end while the handler unwinds
    told = 0  # how often it heard so where nothing would have brought it on
    owed: str | None = None  # why the run ended, which it hears where it waits, whatever it waits for comes to
    refusal: asyncio.Future[Any] | None = None  # what it will be woken by instead of that

    def __init__(self, coro: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self.number = number  # before asyncio puts it into a set of its own
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number

    def cancel(self, msg: Any | None = None) -> bool:
        """Ask it to end. While a cancelled handler unwinds, everybody has been asked already, and it is only marked as asked beside."""
        loop = self.get_loop()
        if not (isinstance(loop, ReplayLoop) and loop.unwinding):
            return super().cancel(msg)
        if self.done():
            end_twice(self)
            return False
        if not self.unwanted:
            self.unwanted = True
            self.add_done_callback(end_twice)
        blocker: Any = self._fut_waiter  # type: ignore[attr-defined]
        if blocker is not None and blocker.done():
            end_twice(self.refusal or blocker)  # what it waited for has been refused, which it has not heard yet
        return True

    def woken_by(self, ended: Any) -> Any:
        """What wakes it when `ended` is over: that, or where it waited for it as the run was cancelled, that this was."""
        if ended is not self._fut_waiter:  # type: ignore[attr-defined]
            return ended
        reason, self.owed, self.refusal = self.owed, None, None
        error = None if ended.cancelled() else ended.exception()
        if reason is None or isinstance(error, Interruption):
            return ended
        heard = self._cancelled(reason)
        heard.__cause__ = error
        self.refusal = self.get_loop().refusal(heard)  # type: ignore[attr-defined]
        return self.refusal

    def _cancelled(self, reason: str) -> Cancelled:
        return CancelledTwice(reason) if self.unwanted else Cancelled(reason)


class CancelledTwice(Cancelled, asyncio.CancelledError):
    """For one who was asked to end beside: by a TaskGroup that fails, where it is the run that ends, or by who will wait for its end."""


def end_twice(ended: asyncio.Future[Any]) -> None:
    """Who waits for one that was asked to end expects what asyncio ends it with, though the end of the handler came first."""
    if not ended.cancelled() and type(error := ended.exception()) is Cancelled:
        error.__class__ = CancelledTwice


class _Timer(asyncio.TimerHandle):
    """A callback that waits for a sleep of the log. Cancelled, the sleep wakes nobody."""

    __slots__ = ("sleep",)

    def __init__(self, when: float, callback: Callable[..., object], args: Any, loop: ReplayLoop, context: Context | None) -> None:
        super().__init__(when, callback, args, loop, context)
        self._scheduled = True  # so that `cancel` tells the loop
        self.sleep: asyncio.Future[Any] | None = None


_DISORDERLY: Final = {  # make a set of coroutines, which has another order every time
    asyncio.as_completed.__code__,
    getattr(asyncio.tasks, "_AsCompletedIterator", asyncio.Future).__init__.__code__ if sys.version_info >= (3, 13) else None,
}


def _refuse_disorder(coro: Coroutine[Any, Any, Any], frame: FrameType | None) -> None:
    for _ in range(4):  # as_completed, a comprehension, ensure_future and what that calls
        if frame is not None and frame.f_code in _DISORDERLY:
            coro.close()
            raise NotDeterministicError(
                "asyncio.as_completed begins coroutines in another order every time; give it tasks: "
                "`as_completed([asyncio.create_task(one) for one in …])`"
            )
        frame = frame.f_back if frame is not None else None


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NotDeterministicError(
            f"a durable handler awaited something outside of a step ({name}); call it in a step: `await ctx.run(name, function, …)`"
        )

    return refuse


for _name in _OUTSIDE:
    setattr(ReplayLoop, _name, _refusing(_name))
