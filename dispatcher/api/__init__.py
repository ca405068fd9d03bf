"""The HTTP face: routes by resource, no SQL, no rules. `ROUTES` is every route there is; what is not in it is answered 404."""

from __future__ import annotations

from typing import Any, Final

from litestar import Litestar, Request, Response, asgi
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import ASGIRouteHandler

from dispatcher.api import callbacks, endpoints, events, health, keys, metrics, openapi, runs, tokens, workflows
from dispatcher.api.auth import Guard
from dispatcher.api.bodies import BodyLimits
from dispatcher.api.edge import Answer, Edge, Route, as_problem, mounted, problem_answer
from dispatcher.errors import Problem, problem
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

    Routes are plain ASGI handlers under Litestar's router: its own handling of requests, which would be done twice here, costs four
    times as much as all the rest of a small call.
    """
    settings = services.settings
    limits = BodyLimits(settings.max_body_bytes, settings.max_bulk_bytes, settings.max_bulk_bytes, settings.max_json_depth)
    edge = Edge(services, Guard(settings, services.clock, services.database, services.directory), limits)
    by_path: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, {})[route.method] = route
    handlers = [_handler(edge, path, routes) for path, routes in by_path.items()]
    return Litestar(
        handlers,
        openapi_config=None,
        exception_handlers={HTTPException: _refused, Exception: _failed},
        logging_config=None,
        debug=False,
    )


def _handler(edge: Edge, path: str, routes: dict[str, Route]) -> ASGIRouteHandler:
    return asgi(path.replace("}", ":str}"), copy_scope=False)(mounted(edge, routes))


def _refused(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """What Litestar itself refuses, before any route is found."""
    if isinstance(error, NotFoundException):
        return _response(problem_answer(problem("not_found", f"there is nothing at {request.url.path[:200]}")))
    if isinstance(error, MethodNotAllowedException):
        return _response(problem_answer(Problem("method_not_allowed", f"{request.method} is not defined here")))
    return _response(problem_answer(problem("invalid_value", f"the request cannot be read: {error.detail}")))


def _failed(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return _response(problem_answer(as_problem(error)))


def _response(answer: Answer) -> Response[bytes]:
    headers = {name.decode(): value.decode("latin-1") for name, value in answer.headers if name != b"content-type"}
    return Response(answer.body, status_code=answer.status, headers=headers, media_type="application/problem+json")
