"""What is kept of a request, and what the event it becomes carries."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.store.webhook_deliveries import NewDelivery
from webhooks import BodyError, Delivery, JsonValue, Request, Scheme
from webhooks.body import is_credential
from webhooks.sources import parse_source

QUERY_CHARS_MAX: Final = 2_000
_ANY_DEPTH: Final = 1 << 30  # what was read was held to a depth by its reader
_DIGEST: Final = "sha256:"
REPLACEMENT: Final = "\ufffd"
# Beside odd numbers, what a body that has been read may hold and Postgres may not: NUL, and one half of a surrogate pair. What looks like
# one of these, or is hard to tell for a backslash before it, is looked at more closely by `strict_json`.
_ESCAPED: Final = re.compile(
    rb"\\(?:\\u[dD]|u(?:0000|[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]))))"
)
_AS_IT_IS: Final = json.JSONEncoder(ensure_ascii=False).encode
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def new_delivery(key: tuple[int, str], delivery_id: str, delivery: Delivery, request: Request, scheme: Scheme, at: datetime) -> NewDelivery:
    """The row of one request. Its body is cut or dropped by whoever knows that it is not to be kept whole."""
    return NewDelivery(
        tenant_id=key[0],
        webhook_id=key[1],
        id=delivery_id,
        status=delivery.status,
        received_at=at,
        method=delivery.method[:32],
        query=kept_query(request, scheme),
        headers=headers_text(delivery.headers),
        body=delivery.body,
        body_bytes=len(delivery.body),
        body_sha256=_digest(delivery),
        reason=delivery.reason or None,
        detail=storable(delivery.detail) or None,
        sender_id=delivery.delivery_id,
        event_key=delivery.event_key,
        scope=delivery.scope,
    )


def _digest(delivery: Delivery) -> bytes:
    """The SHA-256 of the body, which a dedupe key may hold already."""
    known = next((key for key in delivery.dedupe_keys if key.startswith(_DIGEST)), None)
    return bytes.fromhex(known.removeprefix(_DIGEST)) if known is not None else hashlib.sha256(delivery.body).digest()


def headers_text(headers: Mapping[str, str]) -> str:
    """Headers as a JSON object that Postgres can hold."""
    return storable(_AS_IT_IS(dict(headers))).replace("\\u0000", "\\ufffd")


def kept_query(request: Request, scheme: Scheme) -> str | None:
    """The query without what proves the sender; None when nothing of it may be kept."""
    if not request.query:
        return None
    secret = {place.name for place in parse_source(scheme.signature) if place.kind == "q"} if scheme.signature else set()
    try:
        fields = request.query_fields()
    except BodyError:
        return None
    kept = [(name, value) for name, value in fields if name not in secret and not is_credential(name.lower())]
    return urlencode(kept, errors="replace")[:QUERY_CHARS_MAX] or None


def event_data(request: Request, value: JsonValue, static: bool) -> tuple[bytes, bool]:
    """(the JSON text of a delivery's event, whether something in it had to be replaced).

    A body that is JSON goes on byte for byte. What Postgres cannot hold (NUL, half a surrogate pair) becomes U+FFFD: the body as it
    came is kept with the delivery.
    """
    untouched = not static and request.body[:1] in {b"{", b"["} and _is_the_body(request, value)
    if untouched and not request.odd_numbers and not _ESCAPED.search(request.body):
        return request.body, False
    text = request.body if untouched else _text(value)
    try:
        check(text, max_bytes=len(text), max_depth=_ANY_DEPTH)
    except JsonRefused:
        return _text(_cleaned(value)), True
    return text, False


def _is_the_body(request: Request, value: JsonValue) -> bool:
    """Whether the value was read from the body as it stands, not from what is encoded in it."""
    try:
        return request.json() is value
    except BodyError:
        return False


def _text(value: JsonValue) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _cleaned(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {storable(name): _cleaned(item) for name, item in value.items()}
    return value


def storable(text: str) -> str:
    """Text that UTF-8 and Postgres can hold."""
    return _UNSTORABLE.sub(REPLACEMENT, text)
