"""/openapi.json: the description of the API, made from the routes and the structs they take and answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from dispatcher.api.edge import Answer, Call, NoQuery, Route
from dispatcher.errors import CODES

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_REF: Final = "#/components/schemas/{name}"
_PROBLEM: Final = {
    "type": "object",
    "title": "Problem",
    "description": "A problem document after RFC 9457. `code` is stable; `detail` says what exactly is wrong, `hint` what to do.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "enum": sorted(CODES)},
        "detail": {"type": "string"},
        "hint": {"type": "string"},
        "field": {"type": "string"},
        "request_id": {"type": "string"},
    },
}
_WITH_SCOPE: Final = ("unauthorized", "forbidden", "host_not_allowed", "database_unavailable")
_WITH_QUERY: Final = ("invalid_value", "unknown_parameter")
_WITH_BODY: Final = (
    "invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8", "body_too_large",
    "unsupported_media_type",
)  # fmt: skip


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    kinds = _kinds(routes)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_kind = {_key(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for route in routes:
        operation = {"operationId": _operation_id(route, names), **_operation(route, by_kind, components)}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    queries = {route.query.__name__ for route in routes}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Dispatcher", "version": _version(), "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": paths,
        "components": {
            "schemas": {**{name: schema for name, schema in components.items() if name not in queries}, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "An API token, dsp_live_…"}},
        },
    }


def _operation_id(route: Route, taken: set[str]) -> str:
    """The handler's name; with the method behind it where a handler takes several, since an operation's id is its own."""
    name = str(getattr(route.handler, "__name__", ""))
    chosen = f"{name}_{route.method.lower()}" if name in taken else name
    taken.add(chosen)
    return chosen


def _key(kind: Any) -> str:
    return repr(kind)


def _kinds(routes: Iterable[Route]) -> list[Any]:
    wanted: dict[str, Any] = {}
    for route in routes:
        for kind in (route.query, route.body, *route.answers.values()):
            if kind is not None:
                wanted[_key(kind)] = kind
    return list(wanted.values())


def _operation(route: Route, by_kind: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "tags": [_tag(route.path)],
        "parameters": [*_path_parameters(route.path), *_query_parameters(route, components)],
        "responses": _responses(route, by_kind),
    }
    if route.body is not None:
        needed = bool(components.get(getattr(route.body, "__name__", ""), {}).get("required"))
        operation["requestBody"] = {"required": needed, "content": {"application/json": {"schema": by_kind[_key(route.body)]}}}
    if route.scope is not None:
        operation["security"] = [{"token": []}]
        operation["x-scope"] = route.scope
    return operation


def _tag(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[1] if parts[0] == "v1" else "server"


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _PARAMETER.findall(path)]


def _query_parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is NoQuery:
        return []
    properties = components[route.query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _responses(route: Route, by_kind: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, kind in route.answers.items():
        described: dict[str, Any] = {"description": "done" if status == 204 else "the answer"}
        if kind is not None:
            media = "text/plain" if kind is str else "application/json"
            described["content"] = {media: {"schema": by_kind[_key(kind)]}}
        if route.streams and status == 200:
            described.setdefault("content", {})["text/event-stream"] = {}
        responses[str(status)] = described
    for code in _codes(route):
        known = responses.setdefault(str(CODES[code].status), {"description": ""})
        known["description"] = ", ".join(filter(None, [known["description"], f"`{code}`"]))
        known.setdefault("content", {})["application/problem+json"] = {"schema": {"$ref": _REF.format(name="Problem")}}
    return responses


def _codes(route: Route) -> dict[str, None]:
    """The problems a route can answer: its own, and those that come with what it takes."""
    codes = [*route.problems]
    if route.body is not None:
        codes += _WITH_BODY
    if not route.raw:
        codes += _WITH_QUERY
    if "{" in route.path:
        codes.append("not_found")
    if route.scope is not None:
        codes += _WITH_SCOPE
    return dict.fromkeys([*codes, "internal"])


def _version() -> str:
    try:
        return version("handlers-dispatcher")
    except PackageNotFoundError:
        return "0"


def route(others: Sequence[Route]) -> Route:
    """The route that serves the description of these routes, and of itself. It is made once, when it is first asked for."""
    made: list[bytes] = []

    async def openapi(call: Call) -> Answer:
        """This description of the API, as OpenAPI 3.1."""
        if not made:
            made.append(msgspec.json.encode(document([*others, own])))
        return Answer(200, made[0])

    own = Route("GET", "/openapi.json", openapi, None, {200: dict[str, Any]})
    return own
