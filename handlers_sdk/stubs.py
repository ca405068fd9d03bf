"""Tasks whose code lives elsewhere: declared by name and types, run like any other."""

from __future__ import annotations

from typing import Any, TypeVar, cast, overload

from handlers_sdk.api import Api
from handlers_sdk.runnables import Runnable
from handlers_sdk.schemas import EmptyModel, codec_for

I = TypeVar("I")  # noqa: E741 - the input
R = TypeVar("R")


class Stubs:
    """`dispatcher.stubs`. Names and types must be those of the implementation: nothing checks that they agree."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @overload
    def task(self, name: str, input_validator: type[I], output_validator: type[R]) -> Runnable[I, R]: ...
    @overload
    def task(self, name: str, input_validator: None = None, *, output_validator: type[R]) -> Runnable[EmptyModel, R]: ...
    @overload
    def task(self, name: str, input_validator: type[I], output_validator: None = None) -> Runnable[I, Any]: ...
    @overload
    def task(self, name: str, input_validator: None = None, output_validator: None = None) -> Runnable[EmptyModel, Any]: ...
    def task(self, name: str, input_validator: Any = None, output_validator: Any = None) -> Runnable[Any, Any]:
        """A standalone task. Its results are validated as `output_validator`, or left as parsed JSON."""
        output = codec_for(Any if output_validator is None else output_validator)
        accepts = codec_for(input_validator or EmptyModel)
        return Runnable(self._api, self._api.config.namespaced(name), accepts, lambda value: output.parse(value, "output"))

    @overload
    def workflow(self, name: str, input_validator: type[I]) -> Runnable[I, dict[str, Any]]: ...
    @overload
    def workflow(self, name: str, input_validator: None = None) -> Runnable[EmptyModel, dict[str, Any]]: ...
    def workflow(self, name: str, input_validator: Any = None) -> Runnable[Any, dict[str, Any]]:
        """A workflow. Its results are the run's output as the dispatcher reports it."""
        accepts = codec_for(input_validator or EmptyModel)
        return Runnable(self._api, self._api.config.namespaced(name), accepts, lambda value: cast("dict[str, Any]", value))
