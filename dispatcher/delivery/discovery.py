"""Asking an endpoint what it serves: a signed GET, which no plain handler mistakes for work, and a challenge it must echo.

The echoed nonce shows that the endpoint is there and wants these deliveries; `verified` that it checks signatures, and which kind.
An endpoint that answers no GET is registered with its handlers written out, and is never asked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import aiohttp
import msgspec

from dispatcher.delivery import failures
from dispatcher.delivery.classify import is_json, media_type
from dispatcher.delivery.exchange import Sender
from dispatcher.delivery.flight import Flight
from dispatcher.delivery.headers import message_id, signed
from dispatcher.delivery.message import BatchLimits
from dispatcher.delivery.transport import FRAMING_ALLOWANCE, read_body, refused_encoding
from dispatcher.engine.answers import EndpointBroken, Failed, LocalFault, Unreachable
from dispatcher.engine.strict_json import JsonRefused, check
from handlers_sdk import wire
from handlers_sdk.signing import Signer

PLAIN_HINT: Final = "If it is a plain endpoint that serves no manifest, register it with its handlers written out."

DiscoveryCode = Literal[
    "bad_json",
    "bad_manifest",
    "connection_broken",
    "content_encoding",
    "destination_blocked",
    "dns",
    "gone",
    "html",
    "local_fault",
    "no_manifest",
    "not_found",
    "redirect",
    "server_error",
    "timeout",
    "tls",
    "too_large",
    "unauthorized",
    "unreachable",
    "unsupported_protocol",
    "wrong_challenge",
]


class DiscoveryError(Exception):
    """The endpoint could not be asked, or its answer is no manifest. `code` is stable; the text says what to do."""

    def __init__(self, code: DiscoveryCode, message: str) -> None:
        super().__init__(message)
        self.code: DiscoveryCode = code
        self.message = message


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """What an endpoint says it can take; None where it does not say."""

    request_bytes: int | None = None
    response_bytes: int | None = None
    timeout_ms: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an endpoint serves. `handlers` are its entries as they came; whoever registers them validates them.

    `verified` is the signature scheme it says it checked this request with. `challenge_ok` is False for one that echoes no challenge.
    """

    protocol_min: int
    protocol_max: int
    sdk: str
    version: str
    features: frozenset[str]
    limits: EndpointLimits
    batch: BatchLimits | None
    handlers: list[dict[str, Any]]
    verified: Literal["v1", "v1a"] | None
    challenge_ok: bool


class _Range(msgspec.Struct):
    min: int
    max: int


class _Limits(msgspec.Struct):
    request_bytes: int | None = None
    response_bytes: int | None = None
    timeout_ms: int | None = None
    concurrency: int | None = None


class _Batch(msgspec.Struct):
    max_items: int
    max_bytes: int


class _Manifest(msgspec.Struct):
    protocol: _Range
    version: Annotated[str, msgspec.Meta(max_length=200, pattern="^[ -~]*$")]
    handlers: list[dict[str, Any]]
    sdk: str = ""
    challenge: str | None = None
    verified: str | None = None
    features: list[str] = []
    limits: _Limits | None = None
    batch: _Batch | None = None


_decode: Final = msgspec.json.Decoder(_Manifest).decode
_REFUSALS: Final[Mapping[int, tuple[DiscoveryCode, str]]] = {
    401: ("unauthorized", "The endpoint refused our signature or credentials. Check that it holds this endpoint's secret or public key."),
    402: ("unauthorized", "The endpoint's platform asks for payment; the deployment may be disabled."),
    403: ("unauthorized", "The endpoint refuses access. Check its auth setting, and any firewall or deployment protection before it."),
    404: ("not_found", f"Nothing answers GET at this URL. Check the path. {PLAIN_HINT}"),
    405: ("not_found", f"The URL does not take GET. {PLAIN_HINT}"),
    406: ("unsupported_protocol", "The endpoint serves no manifest of version 1 of the protocol. Update one side."),
    410: ("gone", "The endpoint says it is gone for good. Register the URL that took its place."),
    415: ("unsupported_protocol", "The endpoint does not speak version 1 of the protocol. Update one side."),
    501: ("not_found", f"The URL does not take GET. {PLAIN_HINT}"),
}


async def discover(sender: Sender, url: str, signers: Sequence[Signer], headers: Sequence[tuple[str, str]], audience: str) -> Manifest:
    """The manifest behind `url`. DiscoveryError says what is wrong and what to do."""
    nonce = secrets.token_hex(16)
    flight = Flight(audience, 2 * sender.bounds.manifest + FRAMING_ALLOWANCE)
    try:
        async with asyncio.timeout(sender.bounds.discover):
            status, kind, body = await _get(sender, url, _fields(sender, signers, headers, audience, nonce), flight)
    except TimeoutError:
        raise DiscoveryError(
            "timeout", f"The endpoint did not answer GET within {sender.bounds.discover:g} s. Check that it is up."
        ) from None
    _check_answer(status, kind, body)
    return parse_manifest(body, nonce)


def _fields(sender: Sender, signers: Sequence[Signer], headers: Sequence[tuple[str, str]], audience: str, nonce: str) -> dict[str, str]:
    fields = {
        "accept": wire.ACCEPT_MANIFEST,
        "accept-encoding": "identity",
        "user-agent": sender.user_agent,
        wire.HEADER_PROTOCOL: str(wire.PROTOCOL_VERSION),
        wire.HEADER_CHALLENGE: nonce,
        **dict(headers),
    }
    return signed(fields, signers, message_id(audience, nonce), sender.clock(), b"")


async def _get(sender: Sender, url: str, fields: dict[str, str], flight: Flight) -> tuple[int, str, bytes]:
    """(status, media type, body)."""
    response: aiohttp.ClientResponse | None = None
    try:
        response = await sender.transport.open("GET", sender.url(url), fields, None, flight)
        flight.sent = True
        coding = refused_encoding(response)
        if coding:
            raise DiscoveryError("content_encoding", _sentence(failures.coded(coding).message))
        body, whole = await read_body(response, sender.bounds.manifest)
    except DiscoveryError:
        raise
    except Exception as error:
        raise _failure(error, flight, sender.bounds.manifest) from None
    finally:
        if response is not None:
            response.close()
    if not whole or flight.overflow:
        raise DiscoveryError("too_large", f"The endpoint's manifest is larger than {sender.bounds.manifest:,} bytes.")
    return response.status, media_type(response.headers), body


def _failure(error: Exception, flight: Flight, limit: int) -> DiscoveryError:
    """A failed GET in the words of discovery. Nothing is at stake in a GET, so it does not matter whether it was sent."""
    answer = failures.classify_failure(error, flight, limit)
    if isinstance(error, aiohttp.ClientResponseError) and not flight.overflow:
        return DiscoveryError("bad_manifest", "The endpoint's answer is not valid HTTP. Check the scheme and port of its URL.")
    match answer:
        case EndpointBroken(code=code, message=message):
            known: dict[str, DiscoveryCode] = {"dns": "dns", "tls": "tls", failures.BLOCKED_CODE: "destination_blocked"}
            return DiscoveryError(known.get(code, "unreachable"), _sentence(message))
        case Failed(message=message):
            return DiscoveryError("too_large", _sentence(message))
        case LocalFault(message=message):
            return DiscoveryError("local_fault", f"{_sentence(message)} Try again.")
        case Unreachable(message=message):
            return DiscoveryError("unreachable", f"{_sentence(message)} Check that it is up, and its host and port.")
        case _:
            return DiscoveryError("connection_broken", "The endpoint closed the connection without an answer. Look at its log.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _check_answer(status: int, kind: str, body: bytes) -> None:
    if 300 <= status < 400:
        raise DiscoveryError("redirect", f"The URL answers {status}, and redirects are not followed. Register the final URL.")
    if status in _REFUSALS:
        raise DiscoveryError(*_REFUSALS[status])
    if not 200 <= status < 300:
        raise DiscoveryError("server_error", f"The endpoint answered GET with {status}. Look at its log.")
    if kind == "text/html":
        raise DiscoveryError("html", f"The URL answers GET with a page: a login or protection page, or not the handlers' URL. {PLAIN_HINT}")
    if not is_json(kind) or not body:
        raise DiscoveryError("no_manifest", f"The endpoint's answer to GET is {kind or 'of no type'}, not a manifest. {PLAIN_HINT}")


def parse_manifest(body: bytes, nonce: str) -> Manifest:
    """Validate a manifest's frame. DiscoveryError as above."""
    try:
        check(body, max_bytes=len(body))
    except JsonRefused as refused:
        raise DiscoveryError("bad_json", f"The manifest cannot be read: {refused.message}.") from None
    try:
        manifest = _decode(body)
    except msgspec.DecodeError as error:
        raise DiscoveryError("bad_manifest", f"The endpoint's answer is not a manifest: {error}. {PLAIN_HINT}") from None
    if not manifest.protocol.min <= wire.PROTOCOL_VERSION <= manifest.protocol.max:
        spoken = f"{manifest.protocol.min} to {manifest.protocol.max}"
        raise DiscoveryError(
            "unsupported_protocol", f"The endpoint speaks versions {spoken} of the protocol, this dispatcher speaks 1. Update one side."
        )
    if manifest.challenge not in {None, nonce}:
        raise DiscoveryError(
            "wrong_challenge", "The manifest echoes another challenge than was sent: is it cached? It must be made anew for each GET."
        )
    return _manifest(manifest, nonce)


def _manifest(manifest: _Manifest, nonce: str) -> Manifest:
    limits, batch = manifest.limits or _Limits(), manifest.batch
    if batch is not None and (batch.max_items < 1 or batch.max_bytes < 1):
        raise DiscoveryError("bad_manifest", "The manifest's batch limits must be at least 1.")
    return Manifest(
        protocol_min=manifest.protocol.min,
        protocol_max=manifest.protocol.max,
        sdk=manifest.sdk,
        version=manifest.version,
        features=frozenset(manifest.features),
        limits=EndpointLimits(limits.request_bytes, limits.response_bytes, limits.timeout_ms, limits.concurrency),
        batch=None if batch is None else BatchLimits(batch.max_items, batch.max_bytes),
        handlers=manifest.handlers,
        verified="v1a" if manifest.verified == "v1a" else "v1" if manifest.verified == "v1" else None,
        challenge_ok=manifest.challenge == nonce,
    )
