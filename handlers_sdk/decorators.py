"""What the declaring decorators are to a type checker: they keep the types of a handler's input and result, async or sync."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from handlers_sdk.context import Context
from handlers_sdk.durable import DurableContext
from handlers_sdk.state import StateContext
from handlers_sdk.workflow import Standalone, Task

I = TypeVar("I")  # noqa: E741 - the input
R = TypeVar("R")
P = ParamSpec("P")


class DeclareStandalone(Protocol):
    """`@dispatcher.task()`: the input's type is the handler's own."""

    @overload
    def __call__(self, fn: Callable[Concatenate[I, Context, P], Coroutine[Any, Any, R]], /) -> Standalone[I, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[I, Context, P], R], /) -> Standalone[I, R]: ...


class DeclareStandaloneOf(Protocol[I]):
    """`@dispatcher.task(input_validator=I)`: the handler must take an `I`."""

    @overload
    def __call__(self, fn: Callable[Concatenate[I, Context, P], Coroutine[Any, Any, R]], /) -> Standalone[I, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[I, Context, P], R], /) -> Standalone[I, R]: ...


class DeclareTask(Protocol[I]):
    """`@workflow.task()`: the handler must take the workflow's input."""

    @overload
    def __call__(self, fn: Callable[Concatenate[I, Context, P], Coroutine[Any, Any, R]], /) -> Task[I, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[I, Context, P], R], /) -> Task[I, R]: ...


class DeclareDurable(Protocol):
    """`@dispatcher.durable_task()`: the input's type is the handler's own."""

    def __call__(self, fn: Callable[Concatenate[I, DurableContext, P], Coroutine[Any, Any, R]], /) -> Standalone[I, R]: ...


class DeclareDurableOf(Protocol[I]):
    """`@dispatcher.durable_task(input_validator=I)`: the handler must take an `I`."""

    def __call__(self, fn: Callable[Concatenate[I, DurableContext, P], Coroutine[Any, Any, R]], /) -> Standalone[I, R]: ...


class DeclareReducer(Protocol):
    """`@dispatcher.durable_task(mode="state")`: what a reducer gives that is not a wait is the run's result."""

    def __call__(self, fn: Callable[Concatenate[I, StateContext, P], Coroutine[Any, Any, Any]], /) -> Standalone[I, Any]: ...


class DeclareDurableTask(Protocol[I]):
    """`@workflow.durable_task()`: the handler must take the workflow's input."""

    def __call__(self, fn: Callable[Concatenate[I, DurableContext, P], Coroutine[Any, Any, R]], /) -> Task[I, R]: ...
