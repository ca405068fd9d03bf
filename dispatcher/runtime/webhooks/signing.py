"""Signing a request as its sender would: for trying a webhook with its own secret. Public-key senders cannot be imitated."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from webhooks import Request, Scheme
from webhooks.canonical import CANONICAL, Signed
from webhooks.keys import symmetric
from webhooks.request import FORM, Pairs
from webhooks.sources import Place, Reader, parse_source, parse_template, places

SIGNABLE: Final = frozenset({"hmac", "token", "basic", "none"})


class NotSignable(Exception):  # noqa: N818 - a fact about the sender, not a fault
    """Requests of this sender can only be made by who holds its private key."""


def sign(scheme: Scheme, request: Request, secret: str, params: dict[str, str], now: datetime, unique: str) -> Request:
    """`request` with everything the scheme asks for: times, ids, the signature. `unique` becomes the sender's id of the delivery.

    Raises NotSignable.
    """
    if scheme.kind not in SIGNABLE:
        raise NotSignable(f"{scheme.kind} requests are signed with a key only the sender has")
    request = _with_required(scheme, request, params)
    request = _with_ids(scheme, request, unique)
    if scheme.kind == "hmac":
        return _with_signature(scheme, _with_time(scheme, request, now), secret, params, _moment(scheme, now))
    if scheme.kind == "basic":
        name = params.get("username")
        pair = secret if name is None else f"{name}:{secret}"
        return _put(request, Place("h", "authorization"), "Basic " + base64.b64encode(pair.encode()).decode())
    return _put(request, parse_source(scheme.signature)[0], scheme.prefix + secret) if scheme.kind == "token" else request


def _moment(scheme: Scheme, now: datetime) -> str:
    if scheme.unit == "iso":
        return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(int(now.timestamp() * (1000 if scheme.unit == "ms" else 1)))


def _with_required(scheme: Scheme, request: Request, params: dict[str, str]) -> Request:
    for source, name in scheme.require:
        request = _put(request, parse_source(source)[0], params.get(name, ""))
    return request


def _with_ids(scheme: Scheme, request: Request, unique: str) -> Request:
    """The sender's id, and whatever else the signed text has from headers."""
    unfit = "b" if request.media_type == FORM else "f"
    for source in [*_sources(scheme.delivery_id), *_sources(scheme.signed)]:
        fitting = [place for place in source if place.kind in {"h", "b", "f", "q"} and place.kind != unfit]
        if fitting and all(Reader(request, {}).first(f"{place.kind}:{place.name}") is None for place in fitting):
            request = _put(request, fitting[0], unique)
    return request


def _sources(template: str) -> list[tuple[Place, ...]]:
    return [part for part in parse_template(template) if not isinstance(part, str)]


def _with_time(scheme: Scheme, request: Request, now: datetime) -> Request:
    if not scheme.timestamp:
        return request
    place = parse_source(scheme.timestamp)[0]
    return request if place.kind == "sig" else _put(request, place, _moment(scheme, now))


def _with_signature(scheme: Scheme, request: Request, secret: str, params: dict[str, str], moment: str) -> Request:
    items = {place.name: [moment] for place in places(scheme.signed) if place.kind == "sig"}
    reader = Reader(request, params, items)
    signed = CANONICAL[scheme.canonical].make(reader) if scheme.canonical else Signed((reader.render(scheme.signed),))
    digest = hmac.digest(symmetric(scheme, secret), signed.messages[0], signed.algorithm or scheme.algorithm)
    text = scheme.prefix + _encoded(scheme, digest)
    if scheme.items is not None:
        separator, equals, wanted = scheme.items
        parts = [*(f"{name}{equals}{values[0]}" for name, values in items.items()), f"{wanted}{equals}{text}"]
        text = separator.join(parts)
    return _put(request, parse_source(scheme.signature)[0], text)


def _encoded(scheme: Scheme, digest: bytes) -> str:
    if scheme.encoding == "hex":
        return digest.hex()
    text = base64.b64encode(digest).decode()
    return text if scheme.encoding == "base64" else text.replace("+", "-").replace("/", "_").rstrip("=")


def _put(request: Request, place: Place, value: str) -> Request:
    """The request with a value at a place. A new object, so that nothing read before is remembered."""
    if place.kind == "h":
        headers: Pairs = tuple(pair for pair in request.headers if pair[0] != place.name)
        return Request(request.method, request.url, (*headers, (place.name, value)), request.query, request.body)
    if place.kind == "q":
        field = f"{quote(place.name)}={quote(value)}"
        query = f"{request.query}&{field}" if request.query else field
        return Request(request.method, f"{request.url.partition('?')[0]}?{query}", request.headers, query, request.body)
    if place.kind == "f":
        return replace(request, body=request.body + f"&{quote(place.name)}={quote(value)}".encode())
    body: Any = json.loads(request.body or b"{}")
    _set(body, place.name.split("."), value)
    return replace(request, body=json.dumps(body, separators=(",", ":")).encode())


def _set(holder: Any, path: list[str], value: str) -> None:
    """Set a member deep in a JSON value, making objects on the way."""
    step = path[0]
    if isinstance(holder, list):
        _set_item(holder, int(step), path[1:], value)
    elif len(path) == 1:
        holder[step] = value
    else:
        _set(holder.setdefault(step, [{}] if path[1].isdigit() else {}), path[1:], value)


def _set_item(holder: list[Any], index: int, rest: list[str], value: str) -> None:
    while len(holder) <= index:
        holder.append({})
    if rest:
        _set(holder[index], rest, value)
    else:
        holder[index] = value
