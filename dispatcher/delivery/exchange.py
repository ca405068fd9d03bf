"""One request and its answer: sent, read within its bounds, and written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from dispatcher.delivery import failures, headers
from dispatcher.delivery.classify import Reading, Reply, media_type, too_large
from dispatcher.delivery.egress import EgressPolicy, check_url
from dispatcher.delivery.flight import Flight
from dispatcher.delivery.lines import Lines
from dispatcher.delivery.message import Push, Receipt, Target
from dispatcher.delivery.transport import FRAMING_ALLOWANCE, Transport, read_body, refused_encoding
from dispatcher.engine.answers import Accepted, Answer, Referred, Succeeded
from handlers_sdk import wire

_URLS_KEPT: Final = 1_024
_VERSION_LIMIT: Final = 200


@dataclass(frozen=True, slots=True)
class CourierBounds:
    """Bytes and seconds.

    `excerpt` is how much of an answer a receipt keeps, `error_body` how much of a refusal is read, `stream_factor` how many times the
    largest answer a stream may be in all, `batch_body` the largest batch answer in one piece. `finish` is how long a stream may take
    to end after its last line, so that the connection can be kept.
    """

    excerpt: int = 4_096
    error_body: int = 262_144
    stream_factor: int = 16
    batch_body: int = 33_554_432
    batch_overhead: int = 4_096
    finish: float = 0.1
    cancel: float = 5.0
    discover: float = 10.0
    manifest: int = 1_048_576


@dataclass(slots=True)
class Sender:
    """What all exchanges share. `clock` gives unix seconds, `monotonic` seconds to measure with."""

    transport: Transport
    egress: EgressPolicy
    clock: Callable[[], int]
    monotonic: Callable[[], float]
    user_agent: str
    bounds: CourierBounds
    _urls: dict[str, URL]

    def url(self, text: str) -> URL:
        """The parsed URL, judged once. EgressRefused when it may not be requested."""
        url = self._urls.get(text)
        if url is None:
            if len(self._urls) >= _URLS_KEPT:
                self._urls.clear()
            url = self._urls[text] = check_url(text, self.egress)
        return url

    def exchange(self, target: Target, party: str, limit: int) -> Exchange:
        """A new exchange whose name look-up counts against `party`, and whose answer has at most about `limit` bytes."""
        return Exchange(self, target, Flight(party, 2 * limit + FRAMING_ALLOWANCE), self.monotonic())


class Exchange:
    """One POST. `close` it in the end: that leaves a connection alone that has gone back to the pool."""

    __slots__ = ("_sender", "_started", "_target", "bounds", "flight", "response", "told")

    def __init__(self, sender: Sender, target: Target, flight: Flight, started: float) -> None:
        self._sender = sender
        self._target = target
        self._started = started
        self.bounds = sender.bounds
        self.flight = flight
        self.response: aiohttp.ClientResponse | None = None
        self.told = False  # whether a stream has said all there is to say

    async def send(self, identifier: str, body: bytes, push: Push | None = None) -> Answer | None:
        """Send, and read the head of the answer; what it means if none came or it will not be read on."""
        sender, target = self._sender, self._target
        try:
            fields = headers.common(target, sender.user_agent)
            if push is not None:
                headers.of_run(fields, push)
            headers.signed(fields, target.signers, identifier, sender.clock(), body)
            self.response = await sender.transport.open("POST", sender.url(target.url), fields, body, self.flight)
        except Exception as error:
            return failures.classify_failure(error, self.flight, target.response_limit)
        coding = refused_encoding(self.response)
        return failures.coded(coding) if coding else None

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream of lines."""
        response = self._answered
        return 200 <= response.status < 300 and media_type(response.headers) == wire.MEDIA_NDJSON

    async def reply(self, limit: int) -> Reply | Answer:
        """The whole answer. One that breaks off means its status if that is a refusal, else what the break means."""
        response = self._answered
        fine = 200 <= response.status < 300
        try:
            body, whole = await read_body(response, limit if fine else min(limit, self.bounds.error_body))
        except Exception as error:
            if fine:
                return failures.classify_failure(error, self.flight, limit)
            body, whole = b"", False
        if self.flight.overflow and fine:
            return too_large(limit)
        return Reply(response.status, response.headers, body, whole)

    def lines(self, total: int) -> Lines:
        """The lines of a stream of at most `total` bytes."""
        self.flight.allowance += 2 * total
        return Lines(self._answered.content, self._target.response_limit + self.bounds.batch_overhead, total)

    def cut(self) -> Answer:
        """What it means that a stream could not be read on."""
        return too_large(self._target.response_limit) if self.flight.overflow else failures.stream_cut()

    def reading(self) -> Reading:
        """What this answer is to be read with."""
        return Reading(self._sender.clock(), self._target.response_limit, self._target.allow_html)

    async def finish(self) -> None:
        """After a stream's last line: wait briefly for the response to end, so that its connection can be kept."""
        if self.told:
            with suppress(Exception):
                async with asyncio.timeout(self.bounds.finish):
                    while await self._answered.content.readany():
                        pass

    def receipt(self, answer: Answer, excerpt: bytes = b"") -> Receipt:
        """The record of this exchange, or of one task's share in it. A success keeps no excerpt: it has its output."""
        latency = round((self._sender.monotonic() - self._started) * 1_000) if self.flight.sent else None
        if self.response is None:
            return Receipt(answer, latency_ms=latency)
        kept = None if isinstance(answer, Succeeded | Referred | Accepted) else excerpt[: self.bounds.excerpt]
        version = self.response.headers.get(wire.HEADER_VERSION)
        return Receipt(answer, self.response.status, latency, kept, version[:_VERSION_LIMIT] if version else None)

    def timed_out(self, seconds: float) -> Receipt:
        """The record of an exchange, or of one task in it, that took too long."""
        return self.receipt(failures.timed_out(self.flight, seconds))

    def close(self) -> None:
        """Close the connection, unless it is back in the pool."""
        if self.response is not None:
            self.response.close()

    @property
    def _answered(self) -> aiohttp.ClientResponse:
        assert self.response is not None, "send() comes first, and must have answered None"
        return self.response
