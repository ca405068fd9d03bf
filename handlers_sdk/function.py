"""A handler function, analysed once: how to read its input, provide its dependencies, call it and write its result."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

from handlers_sdk.annotations import parameters_of, returned_by
from handlers_sdk.context import Accepted, Context
from handlers_sdk.depends import Provision, Threads, plan
from handlers_sdk.errors import IllegalTaskOutputError
from handlers_sdk.schemas import EmptyModel, codec_for


class HandlerFunction:
    """`fn(input, ctx, **dependencies)`, sync or async. ConfigError when its signature cannot be served."""

    __slots__ = ("_needs", "fn", "input", "input_type", "is_async", "output", "output_type")

    def __init__(self, fn: Callable[..., Any], input_type: Any = None, namespace: Mapping[str, Any] | None = None) -> None:
        self.fn = fn
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(fn))
        self._needs = plan(fn, namespace)
        self.input_type = _input_type(fn, namespace) if input_type is None else input_type
        self.output_type = returned_by(fn, namespace)
        self.input = codec_for(self.input_type)
        self.output = codec_for(self.output_type)

    @property
    def dependency_names(self) -> frozenset[str]:
        """Parameters that are provided."""
        return frozenset(self._needs)

    async def provided(
        self, value: Any, context: Context, threads: Threads, stack: AsyncExitStack, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The dependencies of one call, but for those that are `given`; what they opened is closed when `stack` is."""
        if not self._needs:
            return {}
        needs = {name: provider for name, provider in self._needs.items() if name not in given} if given else self._needs
        return {**await Provision(value, context, threads, stack).values(needs), **(given or {})}

    async def call(self, context: Context, threads: Threads) -> bytes | Accepted:
        """One attempt: JSON text of the validated result, or Accepted. Raises whatever the handler raises, and InvalidInputError."""
        value = self.input.parse(context.workflow_input)
        if self._needs:
            result = await self._call_provided(value, context, threads)
        elif self.is_async:
            result = await self.fn(value, context)
        else:
            result = await threads.run(self.fn, value, context)
        return result if result.__class__ is Accepted else self.output.dump(result)

    async def _call_provided(self, value: Any, context: Context, threads: Threads) -> Any:
        async with AsyncExitStack() as stack:
            arguments = await Provision(value, context, threads, stack).values(self._needs)
            if self.is_async:
                return await self.fn(value, context, **arguments)
            return await threads.run(lambda: self.fn(value, context, **arguments))
        raise IllegalTaskOutputError("output: none, because a dependency suppressed the handler's exception")


class WorkerThreads:
    """Threads for sync handlers and dependencies, at most `limit`, started as they are needed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pool: ThreadPoolExecutor | None = None

    def start(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """Begin a call in a worker thread, with the caller's context variables."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._limit, thread_name_prefix="task")
        return self._pool.submit(contextvars.copy_context().run, fn, *args)

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """The result of a call in a worker thread. Cancelling stops the wait, and the call if it has not begun."""
        return await asyncio.wrap_future(self.start(fn, *args))

    def close(self) -> None:
        """Wait for what is running and end the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


def _input_type(fn: Callable[..., Any], namespace: Mapping[str, Any] | None) -> Any:
    """The annotation of the first parameter; EmptyModel when there is none."""
    first = next(iter(parameters_of(fn, namespace).values()))
    return EmptyModel if first.annotation is Any else first.annotation
