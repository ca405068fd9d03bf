"""The HTTP face: routes by resource, no SQL, no rules. `ROUTES` is every route there is; what is not in it is answered 404."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

from litestar import Litestar, Request, Response, route
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, HTTPScope, LifeSpanReceive, LifeSpanScope, LifeSpanSend, Method, Receive, Scope, Send

from dispatcher.api import (
    audit,
    blobs,
    bulk,
    callbacks,
    crons,
    durable,
    endpoints,
    events,
    export,
    expressions,
    filters,
    health,
    hooks,
    keys,
    logs,
    metrics,
    openapi,
    problems,
    rate_limits,
    retention,
    runs,
    schedules,
    stats,
    streams,
    tokens,
    webhook_deliveries,
    webhooks,
    workflows,
)
from dispatcher.api.auth import Guard
from dispatcher.api.bodies import BodyLimits
from dispatcher.api.edge import NO_STORE, Answer, Edge, Route, as_problem, by_method, method_not_allowed, problem_answer, send_answer
from dispatcher.api.sending import send_stream
from dispatcher.errors import problem
from dispatcher.runtime.services import Services

__all__ = ["ROUTES", "App", "create_app"]

_RESOURCES: Final = (
    *health.ROUTES,
    *metrics.ROUTES,
    *keys.ROUTES,
    *runs.ROUTES,
    *bulk.ROUTES,
    *events.ROUTES,
    *streams.ROUTES,
    *logs.ROUTES,
    *export.ROUTES,
    *retention.ROUTES,
    *filters.ROUTES,
    *workflows.ROUTES,
    *endpoints.ROUTES,
    *rate_limits.ROUTES,
    *stats.ROUTES,
    *crons.ROUTES,
    *schedules.ROUTES,
    *webhooks.ROUTES,
    *webhook_deliveries.ROUTES,
    *hooks.ROUTES,
    *expressions.ROUTES,
    *tokens.ROUTES,
    *audit.ROUTES,
    *callbacks.ROUTES,
    *blobs.ROUTES,
    *durable.ROUTES,
    *problems.ROUTES,
)
ROUTES: Final = (*_RESOURCES, openapi.route(_RESOURCES))
_TABLES: Final[Mapping[str, Mapping[str, Route]]] = {
    path: by_method([known for known in ROUTES if known.path == path]) for path in dict.fromkeys(known.path for known in ROUTES)
}
_PLAIN: Final = {path: routes for path, routes in _TABLES.items() if "{" not in path}
_EDGE: Final = "dispatcher.edge"


def create_app(services: Services) -> App:
    """The ASGI application of a running dispatcher."""
    settings = services.settings
    limits = BodyLimits(settings.max_body_bytes, settings.max_bulk_bytes, settings.max_bulk_bytes, settings.max_json_depth)
    guard = Guard(settings, services.clock, services.database, services.directory)
    guard.attempts = services.durable.tokens.read
    _litestar()  # now, and not when the first caller waits for it
    return App(Edge(services, guard, limits))


class App:
    """Litestar behind a dictionary of the paths without parameters, and a look for those where senders post.

    Litestar finds the paths that have parameters and answers for those that do not exist. The others, all the busy ones among them,
    are found by the dictionary in front of it: its way to a handler costs 17 of the 70 µs a small call takes under uvicorn. Its table
    is made once for all dispatchers of a process, which takes it 65 ms of CPU; whose call it is stands in the scope.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge

    async def __call__(self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend) -> None:
        if scope["type"] != ScopeType.HTTP:
            await _litestar()(scope, receive, send)
            return
        http = cast(HTTPScope, scope)
        routes = _found(http)
        if routes is None:
            cast(dict[str, Any], scope)[_EDGE] = self.edge
            await _litestar()(scope, receive, send)
        else:
            answer = await self.edge.answer(routes, http, cast(Receive, receive))
            await respond(self.edge, answer, http, cast(Receive, receive), cast(Send, send))


def _found(scope: HTTPScope) -> Mapping[str, Route] | None:
    """The routes of a path that is found without Litestar: those where senders post are the busiest with parameters, and the keys of rate
    limits may hold slashes.
    """
    path = scope["path"]
    for room in (hooks, rate_limits):
        if path.startswith(room.PREFIX) and (parameters := room.parameters(path)) is not None:
            scope["path_params"] = parameters
            return _TABLES[room.PATH]
    return _PLAIN.get(path)


@cache
def _litestar() -> Litestar:
    return Litestar(
        [_with_parameters(path, routes) for path, routes in _TABLES.items() if "{" in path],
        openapi_config=None,
        exception_handlers={HTTPException: _refused, Exception: _failed},
        logging_config=None,
        debug=False,
    )


def _with_parameters(path: str, routes: Mapping[str, Route]) -> HTTPRouteHandler:
    """A path with parameters, whose values Litestar puts into the scope."""

    @route(path.replace("}", ":str}"), http_method=[cast(Method, method) for method in routes], status_code=200)
    async def serve(request: Request[Any, Any, Any]) -> ASGIApp:
        edge = cast(Edge, cast(dict[str, Any], request.scope)[_EDGE])
        answer = await edge.answer(routes, request.scope, request.receive)

        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(edge, answer, cast(HTTPScope, scope), receive, send)

        return answered

    return serve


async def respond(edge: Edge, answer: Answer, scope: HTTPScope, receive: Receive, send: Send) -> None:
    """Put an answer on the wire, whole or piece by piece."""
    if answer.stream is None:
        await send_answer(answer, send)
    else:
        await send_stream(answer, answer.stream, scope["method"] == "HEAD", receive, send, edge.services.settings.stream_stall)


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
