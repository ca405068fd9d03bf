"""Dependency injection: `name: Annotated[T, Depends(provider)]` or `name: T = Depends(provider)` in a handler's signature, provided afresh
for every attempt.

A provider takes the input and the context, as a handler does, and may itself have dependencies. It is a function, sync or async, or a
generator (with or without `contextmanager` / `asynccontextmanager`) whose part after `yield` runs when the attempt ends, errors included.
Within one attempt a provider runs once, however often it is asked for. Sync providers run in the thread pool.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args

from handlers_sdk.annotations import parameters_of
from handlers_sdk.errors import ConfigError

if TYPE_CHECKING:
    from handlers_sdk.context import Context


class Threads(Protocol):
    """Where blocking code runs."""

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """The result of `fn(*args)`, called in a worker thread with the caller's context variables."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What `Depends` leaves on a parameter."""

    provider: Callable[..., Any]


def Depends(provider: Callable[..., Any]) -> Any:  # noqa: N802 - stands where a type does; Any, so that it may be the default of one
    """Marks a parameter after the input and the context as provided by `provider(input, ctx)`.

    It stands in the annotation, `db: Annotated[Session, Depends(session)]`, or is the default, `db: Session = Depends(session)`.
    """
    return Marker(provider)


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider as the plan of one handler knows it: as declared, as called, and what it needs in turn."""

    declared: Callable[..., Any]
    fn: Callable[..., Any]
    is_async: bool
    is_context_manager: bool
    needs: Mapping[str, Provider]


def plan(fn: Callable[..., Any], namespace: Mapping[str, Any] | None = None) -> dict[str, Provider]:
    """Parameter name → provider, for each parameter after the first two; ConfigError when one has no provider or they form a ring."""
    return _plan(fn, namespace, ())


def _plan(fn: Callable[..., Any], namespace: Mapping[str, Any] | None, path: tuple[Callable[..., Any], ...]) -> dict[str, Provider]:
    if fn in path:
        raise ConfigError(f"dependencies form a ring: {' → '.join(_name(one) for one in (*path, fn))}")
    parameters = list(parameters_of(fn, namespace).values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2 or any(_markers(one) for one in parameters[:2]):
        raise ConfigError(f"{_name(fn)} must take two positional arguments: the input and the context")
    needed = {one.name: _marked(fn, one) for one in parameters[2:]}
    return {name: _provider(marker.provider, namespace, (*path, fn)) for name, marker in needed.items() if marker is not None}


def _marked(fn: Callable[..., Any], parameter: inspect.Parameter) -> Marker | None:
    markers = _markers(parameter)
    if len(markers) > 1:
        raise ConfigError(f"{_name(fn)}: {parameter.name!r} has more than one Depends; give it one, in its annotation or as its default")
    if markers:
        return markers[0]
    if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise ConfigError(f"{_name(fn)}: nothing provides {parameter.name!r}; annotate it as Annotated[<type>, Depends(<function>)]")
    return None


def _markers(parameter: inspect.Parameter) -> list[Marker]:
    return [one for one in (*get_args(parameter.annotation)[1:], parameter.default) if isinstance(one, Marker)]


def _provider(fn: Callable[..., Any], namespace: Mapping[str, Any] | None, path: tuple[Callable[..., Any], ...]) -> Provider:
    inner = inspect.unwrap(fn)
    is_generator, is_async_generator = inspect.isgeneratorfunction(inner), inspect.isasyncgenfunction(inner)
    provide = fn
    if fn is inner and is_generator:
        provide = contextlib.contextmanager(fn)
    elif fn is inner and is_async_generator:
        provide = contextlib.asynccontextmanager(fn)
    return Provider(
        declared=fn,
        fn=provide,
        is_async=is_async_generator or inspect.iscoroutinefunction(inner),
        is_context_manager=is_generator or is_async_generator,
        needs=_plan(fn, namespace, path),
    )


class Provision:
    """One attempt's provided values; what they opened is closed when `stack` is."""

    __slots__ = ("_context", "_input", "_provided", "_stack", "_threads")

    def __init__(self, input: Any, context: Context, threads: Threads, stack: contextlib.AsyncExitStack) -> None:
        self._input = input
        self._context = context
        self._threads = threads
        self._stack = stack
        self._provided: dict[Callable[..., Any], Any] = {}

    async def values(self, needs: Mapping[str, Provider]) -> dict[str, Any]:
        """Keyword arguments for whoever has these needs."""
        return {name: await self._value(provider) for name, provider in needs.items()}

    async def _value(self, provider: Provider) -> Any:
        if provider.declared not in self._provided:
            self._provided[provider.declared] = await self._provide(provider, await self.values(provider.needs))
        return self._provided[provider.declared]

    async def _provide(self, provider: Provider, arguments: dict[str, Any]) -> Any:
        def call() -> Any:
            return provider.fn(self._input, self._context, **arguments)

        if provider.is_context_manager:
            return await self._stack.enter_async_context(call() if provider.is_async else _Threaded(call(), self._threads))
        return await _awaited(call()) if provider.is_async else await self._threads.run(call)


class _Threaded:
    """A sync context manager entered and left in the thread pool, so that its blocking parts do not stall the loop."""

    def __init__(self, manager: contextlib.AbstractContextManager[Any], threads: Threads) -> None:
        self._manager = manager
        self._threads = threads

    async def __aenter__(self) -> Any:
        return await self._threads.run(self._manager.__enter__)

    async def __aexit__(self, *error: object) -> bool | None:
        result: bool | None = await self._threads.run(self._manager.__exit__, *error)
        return result


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", repr(fn))
