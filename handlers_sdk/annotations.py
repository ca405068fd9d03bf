"""The annotations of a function as objects, also where they are text (PEP 563) and name things local to the place of definition."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, get_type_hints

from handlers_sdk.errors import ConfigError


def calling_namespace(frame: FrameType | None) -> dict[str, Any]:
    """The names visible where a decorator stands: the caller's locals. Empty when the frame is unknown."""
    return dict(frame.f_locals) if frame is not None else {}


def parameters_of(fn: Callable[..., Any], namespace: Mapping[str, Any] | None = None) -> dict[str, inspect.Parameter]:
    """Parameters in order, each annotation resolved; `Any` where there is none."""
    hints = _hints(fn, namespace)
    parameters = inspect.signature(fn).parameters
    return {name: parameter.replace(annotation=hints.get(name, Any)) for name, parameter in parameters.items()}


def returned_by(fn: Callable[..., Any], namespace: Mapping[str, Any] | None = None) -> Any:
    """The return annotation resolved; `Any` when there is none."""
    return _hints(fn, namespace).get("return", Any)


def _hints(fn: Callable[..., Any], namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    target = fn if inspect.isroutine(fn) else type(fn).__call__
    try:
        return get_type_hints(target, localns=dict(namespace or {}), include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"{getattr(fn, '__qualname__', fn)}: an annotation names {error.name!r}, which cannot be found at run time; "
            "import it outside `if TYPE_CHECKING`, or define it before the decorator"
        ) from None
