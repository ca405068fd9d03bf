"""Reading bodies: never more bytes than allowed, never a JSON text that something further in would choke on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from litestar.types import Receive

from dispatcher.api.decoding import refusal
from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.errors import Problem, problem

T = TypeVar("T")

# The second is what `curl -d` says of any data; a body that is not JSON is found out anyway.
_ACCEPTED: Final = frozenset({b"", b"application/json", b"application/x-www-form-urlencoded", b"application/x-ndjson"})


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bytes of one body and of a bulk one, how much of a refused one is still read, and how deep JSON may nest."""

    body: int
    bulk: int
    drain: int
    depth: int


class ClientGone(Exception):  # noqa: N818 - not a fault
    """The client closed the connection before its body was complete: nobody is left to answer."""


async def read(receive: Receive, headers: Mapping[bytes, bytes], most: int, drain: int) -> bytes:
    """The whole body. Raises Problem body_too_large or unsupported_media_type, before reading where the headers tell."""
    _check_type(headers)
    return await read_any(receive, headers, most, drain)


async def read_any(receive: Receive, headers: Mapping[bytes, bytes], most: int, drain: int) -> bytes:
    """The whole body, whatever it is. Raises Problem body_too_large."""
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit() or len(declared) > 15 or int(declared) > most:
        if b"expect" not in headers:  # one that waits for our word has not begun to send
            await _discard(receive, drain)
        raise _too_large(most)
    body, more = await _chunk(receive)
    if not more and len(body) <= most:
        return body
    return await _read_on(receive, body, more, most, drain)


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there are more."""
    message: Any = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


async def _read_on(receive: Receive, first: bytes, more: bool, most: int, drain: int) -> bytes:
    parts, size = [first], len(first)
    while more and size <= most:
        part, more = await _chunk(receive)
        parts.append(part)
        size += len(part)
    if size > most:
        if more:
            await _discard(receive, drain)
        raise _too_large(most)
    return b"".join(parts)


async def _discard(receive: Receive, most: int) -> None:
    """Read on for a while and keep nothing: a client that is still sending would not see an answer."""
    size, more = 0, True
    while more and size <= most:
        part, more = await _chunk(receive)
        size += len(part)


def _too_large(most: int) -> Problem:
    return problem("body_too_large", f"the body is larger than {most:,} bytes")


def _check_type(headers: Mapping[bytes, bytes]) -> None:
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise problem("unsupported_media_type", f"content-encoding {coding.decode('latin-1')} is not taken; send the body as it is")
    given = headers.get(b"content-type", b"")
    if given in _ACCEPTED:
        return
    kind = given.partition(b";")[0].strip().lower()
    if kind not in _ACCEPTED and not kind.endswith(b"+json"):
        raise problem("unsupported_media_type", f"content-type {kind.decode('latin-1')} is not JSON")


def decode(body: bytes, decoder: msgspec.json.Decoder[T], depth: int) -> T:
    """A body as the decoder's type; an empty one counts as {}. Raises Problem for JSON that cannot be kept and for what does not fit."""
    body = body or b"{}"
    try:
        check(body, max_bytes=len(body), max_depth=depth)
    except JsonRefused as refused:
        raise _refused_json(refused) from None
    return decode_checked(body, decoder)


def decode_checked(body: Any, decoder: msgspec.json.Decoder[T], at: str = "") -> T:
    """The same for JSON text that is known to be sound; `at` is where it stands in the body."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise refusal(str(error), at, "unknown_field") from None


def check_item(text: bytes, at: str, limits: BodyLimits) -> None:
    """Hold one item of a list to the limits of a body of its own. Raises Problem."""
    try:
        check(text, max_bytes=limits.body, max_depth=limits.depth + 1)
    except JsonRefused as refused:
        raise _refused_json(refused, f"{at}: ") from None


def _refused_json(refused: JsonRefused, at: str = "") -> Problem:
    return problem("body_too_large" if refused.code == "too_large" else refused.code, f"{at}{refused.message}")
