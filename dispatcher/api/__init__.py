"""The HTTP face: routes by resource, no SQL, no rules. `ROUTES` is every route there is; what is not in it is answered 404."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from litestar import Litestar, Request, Response, asgi, route
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.types import Method, Receive, Scope, Send

from dispatcher.api import callbacks, endpoints, events, health, keys, metrics, openapi, runs, tokens, workflows
from dispatcher.api.auth import Guard
from dispatcher.api.bodies import BodyLimits
from dispatcher.api.edge import NO_STORE, Answer, Edge, Route, as_problem, by_method, method_not_allowed, problem_answer, send_answer
from dispatcher.errors import problem
from dispatcher.runtime.services import Services

__all__ = ["ROUTES", "create_app"]

_RESOURCES: Final = (
    *health.ROUTES,
    *metrics.ROUTES,
    *keys.ROUTES,
    *runs.ROUTES,
    *events.ROUTES,
    *workflows.ROUTES,
    *endpoints.ROUTES,
    *tokens.ROUTES,
    *callbacks.ROUTES,
)
ROUTES: Final = (*_RESOURCES, openapi.route(_RESOURCES))


def create_app(services: Services) -> Litestar:
    """The ASGI application of a running dispatcher.

    The busy routes are plain ASGI handlers under Litestar's router: its own handling of a request would cost as much as all of ours.
    """
    settings = services.settings
    limits = BodyLimits(settings.max_body_bytes, settings.max_bulk_bytes, settings.max_bulk_bytes, settings.max_json_depth)
    edge = Edge(services, Guard(settings, services.clock, services.database, services.directory), limits)
    by_path: dict[str, list[Route]] = {}
    for known in ROUTES:
        by_path.setdefault(known.path, []).append(known)
    handlers = [(_with_parameters if "{" in path else _plain)(edge, path, by_method(known)) for path, known in by_path.items()]
    return Litestar(
        handlers,
        openapi_config=None,
        exception_handlers={HTTPException: _refused, Exception: _failed},
        logging_config=None,
        debug=False,
    )


def _plain(edge: Edge, path: str, routes: Mapping[str, Route]) -> ASGIRouteHandler:
    """A path without parameters: straight through."""

    @asgi(path, copy_scope=False)
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await send_answer(await edge.answer(routes, scope, receive), send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "not a websocket"})

    return serve


def _with_parameters(edge: Edge, path: str, routes: Mapping[str, Route]) -> HTTPRouteHandler:
    """A path with parameters: Litestar's router gives their values to HTTP handlers only."""

    @route(path.replace("}", ":str}"), http_method=[cast(Method, method) for method in routes], status_code=200)
    async def serve(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _response(await edge.answer(routes, request.scope, request.receive))

    return serve


def _refused(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What Litestar itself refuses, before any route is found."""
    if isinstance(error, NotFoundException):
        return _response(problem_answer(problem("not_found", f"there is nothing at {request.url.path[:200]}")))
    if isinstance(error, MethodNotAllowedException):
        allowed = sorted((error.headers or {}).get("allow", "").split(", "))
        return _response(problem_answer(method_not_allowed(request.method, allowed)))
    return _response(problem_answer(problem("invalid_value", f"the request cannot be read: {error.detail}")))


def _failed(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return _response(problem_answer(as_problem(error)))


def _response(answer: Answer) -> Response[bytes]:
    headers = {name.decode(): value.decode("latin-1") for name, value in (*answer.headers, NO_STORE)}
    return Response(answer.body, status_code=answer.status, headers=headers, media_type=headers.pop("content-type", None))
