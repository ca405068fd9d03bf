"""Handlers that are given many tasks at once: the attempts of a batch meet here, and one call serves them all.

Each attempt is an execution like any other, with its own context, deadline and outcome. What it runs is `Gatherer.join`: it hands in its
input and waits. When all of its batch have come, or have ended without coming (an input that cannot be read, a deadline), the handler is
called once, and each gets its own part of the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar, get_args, get_origin

from handlers_sdk import wire
from handlers_sdk.annotations import parameters_of, returned_by
from handlers_sdk.context import Context
from handlers_sdk.durations import Duration, format_duration, parse_duration
from handlers_sdk.errors import ConfigError, IllegalTaskOutputError
from handlers_sdk.execution import Execution
from handlers_sdk.outcomes import Outcome

R = TypeVar("R")
Settle = Callable[[Execution, Outcome], None]
_LARGEST: Final = 1_000


@dataclass(frozen=True, slots=True)
class Broadcast(Generic[R]):
    """One result for every task of a batch."""

    value: R


@dataclass(frozen=True, slots=True)
class Batching:
    """How tasks are gathered: so many at once, or fewer after `interval`; by group, of which so many batches run at a time."""

    size: int
    interval: timedelta
    group_key: str | None = None
    group_max_runs: int | None = None

    @classmethod
    def of(cls, size: int, interval: Duration, group_key: str | None, group_max_runs: int | None) -> Batching:
        """As the decorator takes it. ConfigError for what cannot be meant."""
        if not 1 <= size <= _LARGEST:
            raise ConfigError(f"batch_size={size} is not 1 to {_LARGEST}")
        if group_max_runs is not None and group_max_runs < 1:
            raise ConfigError(f"batch_group_max_runs={group_max_runs} must be at least 1")
        try:
            parsed = parse_duration(interval)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if parsed <= timedelta(0):
            raise ConfigError("batch_interval must be above zero")
        return cls(size, parsed, group_key, group_max_runs)

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        said: dict[str, Any] = {"max_size": self.size, "interval": format_duration(self.interval)}
        if self.group_key is not None:
            said["group_key"] = self.group_key
        if self.group_max_runs is not None:
            said["group_max_runs"] = self.group_max_runs
        return {"batch": said}


@dataclass(slots=True)
class _Batch:
    key: str
    size: int
    members: list[tuple[Any, Context, asyncio.Future[Any]]] = field(default_factory=list)
    came: set[str] = field(default_factory=set)
    gone: int = 0

    @property
    def complete(self) -> bool:
        return len(self.members) + self.gone >= self.size


class Gatherer:
    """The batches of one task that are coming together. `fn(items)` gets a list of (input, context), sync or async."""

    def __init__(self, fn: Callable[..., Any], batching: Batching) -> None:
        self.fn = fn
        self.batching = batching
        self._open: dict[str, _Batch] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def member(self, namespace: Mapping[str, Any] | None, input_type: Any) -> Callable[..., Any]:
        """What each attempt of a batch runs, annotated with its own input and result."""

        async def member(input: Any, ctx: Context) -> Any:
            return await self._join(input, ctx)

        given = input_type if input_type is not None else _input_of(self.fn, namespace)
        member.__annotations__ = {"input": given, "ctx": Context, "return": _result_of(self.fn, namespace)}
        member.__name__ = getattr(self.fn, "__name__", "batch")
        return member

    def watched(self, item: wire.RunItem, settle: Settle) -> Settle:
        """`settle` for an attempt of a batch: one that ends without having come is not waited for."""
        batch = self._batch(item)

        def settled(execution: Execution, outcome: Outcome) -> None:
            self._left(batch, item)
            settle(execution, outcome)

        return settled

    def left(self, item: wire.RunItem) -> None:
        """An attempt of a batch will not come: the others wait for one fewer."""
        self._left(self._batch(item), item)

    def _left(self, batch: _Batch, item: wire.RunItem) -> None:
        if item["id"] not in batch.came:
            batch.came.add(item["id"])
            batch.gone += 1
            self._call_if_complete(batch)

    async def _join(self, input: Any, ctx: Context) -> Any:
        batch = self._batch(ctx.item)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        batch.members.append((input, ctx, future))
        batch.came.add(ctx.item["id"])
        self._call_if_complete(batch)
        return await future

    def _batch(self, item: wire.RunItem) -> _Batch:
        said = item.get("batch")
        if said is None:  # one that was sent on its own is a batch of one
            return self._open.setdefault(f"{item['id']}/{item['attempt']}", _Batch(f"{item['id']}/{item['attempt']}", 1))
        return self._open.setdefault(said["id"], _Batch(said["id"], said["size"]))

    def _call_if_complete(self, batch: _Batch) -> None:
        if not batch.complete:
            return
        self._open.pop(batch.key, None)
        if batch.members:
            call = asyncio.get_running_loop().create_task(self._call(batch.members))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, members: Sequence[tuple[Any, Context, asyncio.Future[Any]]]) -> None:
        items = [(value, ctx) for value, ctx, _ in members]
        try:
            is_async = asyncio.iscoroutinefunction(self.fn)
            given = await self.fn(items) if is_async else await asyncio.to_thread(_called, self.fn, items)
            results = _results(given, len(members))
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # whatever it is, it is what became of each of them
            results = [error] * len(members)
        for result, (_, _, future) in zip(results, members, strict=True):
            if future.done():
                continue
            if isinstance(result, StopIteration | asyncio.CancelledError):  # a future does not take these as what they are
                future.set_exception(RuntimeError(f"the handler raised {type(result).__name__}: {result}"))
            elif isinstance(result, Exception | SystemExit):
                future.set_exception(result)
            else:
                future.set_result(result)


def _called(fn: Callable[..., Any], items: Sequence[Any]) -> Any:
    """What a plain function gives. Its thread's future would never end with a StopIteration, and takes its loop along with a SystemExit."""
    try:
        return fn(items)
    except (StopIteration, SystemExit) as error:
        raise RuntimeError(f"the handler raised {type(error).__name__}: {error}") from error


def _results(given: Any, count: int) -> list[Any]:
    """A result for each task, in order. An exception in a place is what became of that task."""
    if isinstance(given, Broadcast):
        return [given.value] * count
    if not isinstance(given, list) or len(given) != count:
        what = f"a list of {len(given)}" if isinstance(given, list) else type(given).__name__
        raise IllegalTaskOutputError(f"output: {what} for a batch of {count}; return a list of {count}, or Broadcast(value)")
    return given


def _input_of(fn: Callable[..., Any], namespace: Mapping[str, Any] | None) -> Any:
    """`I` of `fn(items: list[tuple[I, Context]])`."""
    first = next(iter(parameters_of(fn, namespace).values()), None)
    items = get_args(first.annotation) if first is not None else ()
    pair = get_args(items[0]) if items and get_origin(items[0]) is tuple else ()
    if len(pair) != 2:
        raise ConfigError("a batch task takes one argument, a list of (input, Context); annotate it so, or give input_validator")
    return pair[0]


def _result_of(fn: Callable[..., Any], namespace: Mapping[str, Any] | None) -> Any:
    """`R` of a function that gives `list[R]`; anything where it says something else."""
    given = returned_by(fn, namespace)
    inner = get_args(given)
    return inner[0] if get_origin(given) in (list, Broadcast) and inner else Any
