"""Keys a sender publishes: which address to fetch, and what to make of the answer. The fetching itself is the caller's.

An address that comes with the request is fetched only when all of it matches the sender's own pattern: otherwise anybody could name a
certificate of their own.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from webhooks.errors import BodyError, VerificationError
from webhooks.keys import KIND_OF, PublicKey, from_jwk
from webhooks.request import JsonValue, parse_json
from webhooks.scheme import KeyDocument
from webhooks.sources import Reader

KEYS_MAX: Final = 100  # keys of one key set
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A GET of `url`, or a POST of `body` (JSON) when it is not None."""

    url: str
    body: bytes | None = None


Fetch = Callable[[KeyRequest], Awaitable[bytes]]
"""Fetches one document of at most some 100 KB over TLS, without following redirects. Any exception means: not available now."""


def key_request(keys: KeyDocument, reader: Reader) -> KeyRequest:
    """What to fetch to verify this request. Raises VerificationError `untrusted_key` or `missing_field`."""
    url = reader.render(keys.url).decode("utf-8", "replace")
    if keys.allowed and not re.fullmatch(keys.allowed, url, flags=re.ASCII):
        raise VerificationError("untrusted_key", "the address of the key is not one of the sender's")
    members = {name: reader.render(template).decode() for name, template in keys.post}
    return KeyRequest(url, json.dumps(members).encode() if members else None)


def certificate_key(document: bytes | None, kind: str, now: float) -> PublicKey:
    """The key of a PEM certificate that is valid at `now`. Raises VerificationError `key_unavailable` or `untrusted_key`."""
    if document is None:
        raise VerificationError("key_unavailable", "the sender's certificate has not been fetched")
    try:
        certificate = x509.load_pem_x509_certificate(document)
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise VerificationError("key_unavailable", f"the sender's certificate cannot be read: {error}") from error
    moment = datetime.fromtimestamp(now, UTC)
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc or not isinstance(key, KIND_OF[kind]):
        raise VerificationError("untrusted_key", "the sender's certificate is out of date or of another kind")
    return key


def set_key(document: bytes | None, key_id: str | None) -> PublicKey:
    """The key named `key_id` of a JSON Web Key Set, or of an answer `{"key": {…}}` with one key.

    Raises VerificationError `key_unavailable`: also for an unknown id, since the sender may just have rotated its keys.
    """
    if document is None:
        raise VerificationError("key_unavailable", "the sender's keys have not been fetched")
    try:
        return from_jwk(_chosen(parse_json(document), key_id))
    except (ValueError, BodyError, UnsupportedAlgorithm) as error:
        raise VerificationError("key_unavailable", f"the sender's keys cannot be used: {error}") from error


def _chosen(document: JsonValue, key_id: str | None) -> Mapping[str, object]:
    if not isinstance(document, dict):
        raise ValueError("not a key set")  # noqa: TRY004 - the document is wrong, not its Python type
    keys = document.get("keys", [document.get("key")])
    known = [key for key in keys[:KEYS_MAX] if isinstance(key, dict)] if isinstance(keys, list) else []
    named = [key for key in known if key.get("kid") == key_id]
    if len(named) != 1:
        raise ValueError(f"there is not exactly one key {key_id!r}")
    return named[0]


@dataclass(slots=True)
class KeyCache:
    """Documents by request, bounded and timed; one fetch at a time for each. While one cannot be fetched anew the old one serves.

    What cannot be fetched is remembered apart from what can, and at most `flights` are under way: who names documents that are not there
    puts out none that is in use, and makes nobody ask for more than that.
    """

    fetch: Fetch
    ttl: float = 3_600.0
    retry: float = 30.0
    size: int = 256
    flights: int = 16
    _held: OrderedDict[KeyRequest, tuple[float, bytes]] = field(default_factory=OrderedDict, init=False)
    _failed: OrderedDict[KeyRequest, float] = field(default_factory=OrderedDict, init=False)
    _flying: dict[KeyRequest, asyncio.Future[bytes]] = field(default_factory=dict, init=False)

    async def get(self, wanted: KeyRequest, now: float, *, fresh: bool = False) -> bytes:
        """The document, from memory when not older than `ttl` (`retry` when `fresh`, or when it failed), in seconds.

        Raises VerificationError `key_unavailable`.
        """
        since, known = self._held.get(wanted, (-math.inf, None))
        if known is not None and now - since < (self.retry if fresh else self.ttl):
            self._held.move_to_end(wanted)
            return known
        if now - self._failed.get(wanted, -math.inf) >= self.retry:
            try:
                found = await self._shared(wanted)
            except VerificationError:
                _keep(self._failed, wanted, now, self.size)
            else:
                _keep(self._held, wanted, (now, found), self.size)
                return found
        if known is None:
            raise VerificationError("key_unavailable", "the sender's keys could not be fetched just now")
        self._held.move_to_end(wanted)
        return known

    async def visit(self, wanted: KeyRequest) -> None:
        """Fetch without keeping anything. Raises VerificationError `key_unavailable`."""
        await self._fetch(wanted)

    async def _shared(self, wanted: KeyRequest) -> bytes:
        flight = self._flying.get(wanted)
        if flight is None:
            if len(self._flying) >= self.flights:
                raise VerificationError("key_unavailable", "too many of the sender's keys are being fetched at the moment")
            flight = self._flying[wanted] = asyncio.ensure_future(self._fetch(wanted))
            flight.add_done_callback(lambda done: self._landed(wanted, done))
        return await asyncio.shield(flight)  # a sender that hangs up does not end the fetch others wait for

    def _landed(self, wanted: KeyRequest, flight: asyncio.Future[bytes]) -> None:
        del self._flying[wanted]
        if not flight.cancelled():
            flight.exception()  # looked at, even when everybody who waited is gone

    async def _fetch(self, wanted: KeyRequest) -> bytes:
        try:
            return await self.fetch(wanted)
        except Exception as error:
            raise VerificationError("key_unavailable", f"the sender's keys could not be fetched: {error}") from error


def _keep(held: OrderedDict[KeyRequest, T], wanted: KeyRequest, value: T, size: int) -> None:
    held[wanted] = value
    held.move_to_end(wanted)
    while len(held) > size:
        held.popitem(last=False)
