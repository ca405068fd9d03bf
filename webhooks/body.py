"""What an authentic request carries: its body as the value expressions call `input`, its headers as the map they call `headers`.

| the body                                  | `input`                                                                         |
|-------------------------------------------|---------------------------------------------------------------------------------|
| JSON, object or array                     | that value                                                                      |
| form with a field `payload` that is JSON  | that JSON (GitHub forms, Slack interactions)                                    |
| form                                      | an object of its fields; a repeated field is a list                             |
| multipart                                 | the same; a file is an object with filename, content_type, bytes and sha256     |
| a token (Wix)                             | its claims                                                                      |
| nothing                                   | `{}`                                                                            |
| anything else                             | `{"raw": text}`, or `{"raw_base64": …}` when it is not UTF-8                    |

Members of a static payload win over those of the body; beside an array they stand in an object that has it as `items`.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final

from webhooks.errors import BodyError
from webhooks.multipart import parse_parts
from webhooks.request import FORM, JsonValue, Request, parse_json
from webhooks.scheme import Scheme
from webhooks.sources import parse_source

DECODED_BYTES_MAX: Final = 10 * 1024 * 1024
STRIPPED_KINDS: Final = frozenset({"token", "basic", "jwt"})
CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "cookie2", "set-cookie"})
_CREDENTIAL: Final = re.compile(r"(^|[-_])(secret|token|password|passwd|credentials?|auth|authorization|jwt|api[-_]?key|apikey)([-_]|$)")


def read(
    request: Request,
    *,
    static_payload: Mapping[str, JsonValue] | None = None,
    claims: Mapping[str, JsonValue] | None = None,
    decoded_bytes_max: int = DECODED_BYTES_MAX,
) -> JsonValue:
    """The value of a verified request. Raises BodyError `invalid_body`, `too_large` or `content_encoding`."""
    value: JsonValue = dict(claims) if claims is not None else _read(decoded(request, decoded_bytes_max))
    if not static_payload:
        return value
    return {**(value if isinstance(value, dict) else {"items": value}), **static_payload}


def _read(request: Request) -> JsonValue:
    if not request.body:
        return {}
    if request.media_type == FORM:
        return _form(request)
    if request.media_type == "multipart/form-data":
        parts = parse_parts(request.body, request.header("content-type")[0])
        return _fields((part.name, part.summary()) for part in parts)
    return _json_or_raw(request)


def _json_or_raw(request: Request) -> JsonValue:
    declared = re.search(r"[/+]json$", request.media_type) is not None
    if declared or request.body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["}:
        try:
            value = request.json()
        except BodyError:
            if declared:
                raise
        else:
            if isinstance(value, dict | list):
                return value
    return _raw(request.body)


def _raw(body: bytes) -> JsonValue:
    try:
        return {"raw": body.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(body).decode()}


def _form(request: Request) -> JsonValue:
    payload = [value for name, value in request.form() if name == "payload"]
    if len(payload) == 1:
        try:
            inner = parse_json(payload[0].encode("utf-8", "replace"))
        except BodyError:
            inner = None
        if isinstance(inner, dict | list):
            return inner
    return _fields(request.form())


def _fields(pairs: Iterable[tuple[str, JsonValue]]) -> JsonValue:
    held: dict[str, list[JsonValue]] = {}
    for name, value in pairs:
        held.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in held.items()}


def decoded(request: Request, limit: int) -> Request:
    """The request with its content encoding undone: gzip or deflate, once. Signatures are checked before, on what was sent."""
    listed = ",".join(request.header("content-encoding")).lower().split(",")
    encodings = [name.strip() for name in listed if name.strip() not in {"", "identity"}]
    if not encodings:
        return request
    if len(encodings) > 1 or encodings[0] not in {"gzip", "x-gzip", "deflate"}:
        raise BodyError("content_encoding", "a body is encoded with gzip or deflate, once, or not at all")
    body = _inflate(request.body, encodings[0], limit)
    headers = tuple(pair for pair in request.headers if pair[0] != "content-encoding")
    return replace(request, headers=headers, body=body)


def _inflate(body: bytes, encoding: str, limit: int) -> bytes:
    inflater = zlib.decompressobj(zlib.MAX_WBITS if encoding == "deflate" else zlib.MAX_WBITS | 16)
    try:
        out = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise BodyError("invalid_body", f"the body is not {encoding}") from error
    if len(out) > limit:
        raise BodyError("too_large", f"the body is larger than {limit} bytes when decoded")
    if not inflater.eof or inflater.unused_data:
        raise BodyError("invalid_body", f"the body is cut short, or goes on after its {encoding} stream")
    return out


def kept_headers(request: Request, scheme: Scheme) -> dict[str, str]:
    """The headers that may be stored and shown to expressions: lower-case names, repeated values joined, credentials left out."""
    places = parse_source(scheme.signature) if scheme.kind in STRIPPED_KINDS else ()
    secret = CREDENTIALS | {place.name for place in places if place.kind == "h"}
    kept: dict[str, str] = {}
    for name, value in request.headers:
        if name not in secret and not is_credential(name):
            kept[name] = f"{kept[name]}, {value}" if name in kept else value
    return kept


@lru_cache(maxsize=1024)
def is_credential(name: str) -> bool:
    """Whether a header or a field of this name (lower case) holds something secret by the sound of it."""
    return "idempotency" not in name and _CREDENTIAL.search(name) is not None
