"""One request, from the ASGI server to a handler and back. Every route goes this way, the busiest as well as the rarest.

Litestar finds the route; what follows is kept to what a route needs: who is calling, the query as a struct, the handler, the answer.
A handler raises Problem, or lets any other exception pass: all become problem documents here, and nothing of an unexpected one leaks.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from litestar.types import HTTPScope, Receive, Send

from dispatcher.api.auth import Caller, Guard
from dispatcher.api.bodies import BodyLimits, ClientGone, decode, read
from dispatcher.api.decoding import parse_query
from dispatcher.errors import Problem, problem
from dispatcher.runtime.services import Services
from dispatcher.store.database import DatabaseUnavailable, is_transient

_log = logging.getLogger(__name__)

_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", b"application/problem+json")
# Answers are of the moment and some hold secrets: nobody on the way may keep them.
NO_STORE: Final = (b"cache-control", b"no-store")
_MOST_PARAMETERS: Final = 100
_ANY_DEPTH: Final = 1 << 30
_NO_PARAMETERS: Final[dict[str, str]] = {}

Headers = Mapping[bytes, bytes]


@dataclass(slots=True)
class Answer:
    """What goes back: a status, JSON text (or another type, named in `headers`), and headers of its own."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)
    stream: AsyncIterator[bytes] | None = None
    """What follows the headers piece by piece, in place of a body."""


class NoQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The query of a route that takes none."""


@dataclass(slots=True)
class Call:
    """A request as its handler sees it. `path` holds the values of the path's parameters, `query` the route's query struct."""

    services: Services
    guard: Guard
    caller: Caller
    headers: Headers
    path: dict[str, str]
    query: Any
    limits: BodyLimits
    receive: Receive
    scope: HTTPScope

    @property
    def tenant_id(self) -> int:
        """Whose data this call is about."""
        return self.caller.tenant_id

    async def body(self, most_bytes: int | None = None) -> bytes:
        """The body as it came, refused when it is larger than `most_bytes` or in a coding."""
        return await read(self.receive, self.headers, most_bytes or self.limits.body, self.limits.drain)

    async def json(self, decoder: msgspec.json.Decoder[Any]) -> Any:
        """The body as the decoder's type. The caller's own values lie one level deep in it."""
        return decode(await self.body(), decoder, self.limits.depth + 1)

    async def json_items(self, decoder: msgspec.json.Decoder[Any]) -> Any:
        """The body of a bulk call. How deep its items nest is left to be checked for each."""
        return decode(await self.body(self.limits.bulk), decoder, _ANY_DEPTH)


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method on a path, and what the documentation says of it. The first line of the handler's docstring is the summary.

    `scope` is what a token must allow; None leaves the route open. `answers` maps statuses to what they carry (None: nothing).
    A `raw` route reads its query, and headers that may be repeated, from the call's ASGI scope.
    """

    method: str
    path: str
    handler: Handler
    scope: str | None
    answers: Mapping[int, Any]
    query: type[msgspec.Struct] = NoQuery
    body: Any = None
    problems: tuple[str, ...] = ()
    tag: str = ""
    raw: bool = False
    attempts: bool = False
    """Whether the token of a running attempt is enough."""
    streams: bool = False
    """Whether it answers, or may answer, with server-sent events."""

    @property
    def summary(self) -> str:
        """What the route does, in a line."""
        return (self.handler.__doc__ or "").strip().split("\n")[0]


@dataclass(slots=True)
class Edge:
    """What all routes share."""

    services: Services
    guard: Guard
    limits: BodyLimits

    async def answer(self, routes: Mapping[str, Route], scope: HTTPScope, receive: Receive) -> Answer:
        """Answer one request to a path that has these routes by method. Raises nothing but what cancels."""
        try:
            return await self._answer(routes, scope, receive)
        except ClientGone:
            return _GONE
        except Exception as error:
            return problem_answer(as_problem(error))

    async def _answer(self, routes: Mapping[str, Route], scope: HTTPScope, receive: Receive) -> Answer:
        route = routes.get(scope["method"])
        if route is None:
            raise method_not_allowed(scope["method"], sorted(routes))
        headers = dict(scope["headers"])
        caller = self.guard.known(headers, scope["client"]) if route.scope is not None else self.guard.nobody
        if caller is None:
            caller = await self.guard.identify(headers, scope["client"])
        if route.scope is not None and not caller.may(route.scope) and not (route.attempts and caller.attempt is not None):
            raise problem("forbidden", f"this token does not have the scope {route.scope}")
        path = scope.get("path_params", _NO_PARAMETERS)
        if any("\x00" in value for value in path.values()):
            raise problem("not_found", "no id and no name holds a NUL character")
        raw = scope["query_string"]
        query = parse_query(_pairs(raw), route.query) if raw and not route.raw else route.query()
        return await route.handler(Call(self.services, self.guard, caller, headers, path, query, self.limits, receive, scope))


_GONE: Final = Answer(499, b"", ())  # nobody is left to read it
_encode: Final = msgspec.json.Encoder().encode


def json_answer(status: int, value: Any, *headers: tuple[bytes, bytes]) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, _encode(value), (_JSON, *headers))


def problem_answer(problem: Problem) -> Answer:
    """A problem as its document."""
    headers = [_PROBLEM]
    if problem.retry_after is not None:
        headers.append((b"retry-after", str(problem.retry_after).encode()))
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if problem.status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body may still be on its way
    if problem.code == "method_not_allowed" and problem.extra:
        headers.append((b"allow", ", ".join(problem.extra["allow"]).encode()))
    return Answer(problem.status, _encode(problem.document()), tuple(headers))


def as_problem(error: Exception) -> Problem:
    """What the caller is told of an exception. One that nobody expected is logged under the id the caller gets."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, DatabaseUnavailable) or is_transient(error):
        _log.warning("a request met an absent database: %s", error)
        return problem("database_unavailable", "the database cannot be reached at the moment")
    request_id = f"req_{secrets.token_hex(8)}"
    _log.error("request %s failed", request_id, exc_info=error)
    return Problem("internal", "something went wrong that is not your fault", extra={"request_id": request_id})


def method_not_allowed(method: str, allowed: Sequence[str]) -> Problem:
    """A method that the path does not have."""
    return Problem("method_not_allowed", f"{method} is not defined here", extra={"allow": list(allowed)})


def by_method(routes: Iterable[Route]) -> dict[str, Route]:
    """The routes of one path. HEAD is answered as GET; the server leaves the body out."""
    table = {route.method: route for route in routes}
    return {**table, "HEAD": table["GET"]} if "GET" in table else table


async def send_answer(answer: Answer, send: Send) -> None:
    """Put an answer on the wire."""
    length = (b"content-length", str(len(answer.body)).encode())
    await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, NO_STORE, length]})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _pairs(raw: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise problem("invalid_value", f"the query string is not percent-encoded UTF-8 of at most {_MOST_PARAMETERS} parameters") from None
