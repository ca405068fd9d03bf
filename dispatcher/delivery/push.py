"""The courier: signed POSTs, one per attempt or one per batch, and what came back of them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from dispatcher.clock import monotonic as process_time
from dispatcher.delivery.batch import BatchDelivery, Settle, Turn
from dispatcher.delivery.classify import Reply, classify, classify_event, classify_turn, too_large
from dispatcher.delivery.deadline import Deadline
from dispatcher.delivery.discovery import Manifest, discover
from dispatcher.delivery.dns import NameResolver
from dispatcher.delivery.documents import fetch
from dispatcher.delivery.egress import EgressPolicy
from dispatcher.delivery.envelope import cancel_body, chunks, parse_event, run_body, run_item
from dispatcher.delivery.exchange import CourierBounds, Exchange, Sender
from dispatcher.delivery.headers import joint_message_id, run_message_id
from dispatcher.delivery.lines import LineTooLong
from dispatcher.delivery.message import Push, Receipt, Target
from dispatcher.delivery.reach import reachable
from dispatcher.delivery.transport import Transport, TransportBounds
from dispatcher.engine.answers import Failed
from handlers_sdk import wire
from handlers_sdk.signing import Signer

Events = Callable[[bytes], Awaitable[None]]


async def _at_once() -> None:
    """Nobody else is waited for."""


class Courier:
    """Owns the guarded connections. Make it inside the running loop, and close it.

    `clock` gives unix seconds, for signatures and dates; `monotonic` seconds to measure latency with; `tls` replaces the system's
    certificate authorities; `resolver` is for unusual networks and tests.
    """

    def __init__(
        self,
        egress: EgressPolicy,
        *,
        clock: Callable[[], int],
        user_agent: str,
        monotonic: Callable[[], float] = process_time,
        tls: ssl.SSLContext | None = None,
        resolver: NameResolver | None = None,
        transport: TransportBounds | None = None,
        bounds: CourierBounds | None = None,
    ) -> None:
        guarded = Transport(egress, resolver or NameResolver(egress, clock=clock), tls=tls, bounds=transport)
        self._sender = Sender(guarded, egress, clock, monotonic, user_agent, bounds or CourierBounds(), {})

    async def aclose(self) -> None:
        """Close every connection. Requests still under way end as if their connections had broken."""
        await self._sender.transport.close()

    async def push(self, target: Target, push: Push, events: Events) -> Receipt:
        """Deliver one attempt and wait for its answer, at most `push.wait`.

        Lines of a streamed answer before its last go to `events`, as JSON text, one at a time; what `events` raises is raised here.
        Cancelling closes the connection.
        """
        exchange = self._sender.exchange(target, push.tenant, target.response_limit)
        seconds = push.wait.total_seconds()
        deadline = Deadline(seconds)
        try:
            with deadline:
                receipt = await _deliver(exchange, target, push, events)
            await exchange.finish()
        except TimeoutError:
            if not deadline.expired:
                raise
            return exchange.timed_out(seconds)
        else:
            return receipt
        finally:
            exchange.close()

    async def push_batch(self, target: Target, pushes: Sequence[Push], settle: Settle, turn: Turn = _at_once) -> None:
        """Deliver many attempts to one endpoint: in one POST, or in several where its limits or a 413 ask for smaller ones.

        `settle(index, receipt)` is called exactly once for each, as its result arrives, each within its own timeout; of many that arrive
        together some at a time, each part after a `turn`. Returns when all are settled. When cancelled the connection is closed, and what
        is not settled by then never will be.
        """
        if not pushes:
            return
        items = [run_item(push, target.version) for push in pushes]
        delivery = BatchDelivery(self._sender, target, pushes, items, settle, turn)
        overhead = self._sender.bounds.batch_overhead + len(target.api)
        first, *others = chunks([len(item) for item in items], target.batch, overhead)
        if not others:
            await delivery.deliver(first)
            return
        async with asyncio.TaskGroup() as group:
            for indexes in (first, *others):
                group.create_task(delivery.deliver(indexes))

    async def cancel(self, target: Target, task_id: str, attempt: int, reason: str) -> None:
        """Tell an endpoint that listens for it that an attempt should stop. What comes of it is not known here."""
        if wire.FEATURE_CANCEL_PUSH not in target.features:
            return
        bounds = self._sender.bounds
        exchange = self._sender.exchange(target, target.endpoint_id, bounds.error_body)
        identifier = joint_message_id(target, wire.PUSH_CANCEL, (task_id, str(attempt)))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(bounds.cancel):
                    if await exchange.send(identifier, cancel_body(target, task_id, attempt, reason)) is None:
                        await exchange.reply(bounds.error_body)
        finally:
            exchange.close()

    async def discover(self, url: str, signers: Sequence[Signer], headers: Sequence[tuple[str, str]], audience: str) -> Manifest:
        """Ask an endpoint what it serves: a signed GET with a challenge. DiscoveryError says what is wrong and what to do."""
        return await discover(self._sender, url, signers, headers, audience)

    async def fetch(self, url: str, body: bytes | None, party: str) -> bytes:
        """A small document behind a URL, asked for by GET, or by POST of JSON. Raises whatever keeps it from being had."""
        return await fetch(self._sender, url, body, party)

    async def reachable(self, url: str, party: str) -> bool:
        """Whether anything answers at a URL; the name look-up counts against `party`."""
        return await reachable(self._sender, url, party)


async def _deliver(exchange: Exchange, target: Target, push: Push, events: Events) -> Receipt:
    body = push.input if push.raw else run_body(target, push)
    exchange.flight.progress = (push.progress,)
    failure = await exchange.send(run_message_id(target, push.task_id), body, push)
    if failure is not None:
        return exchange.receipt(failure)
    if exchange.streamed and push.turn is None:
        return await _read_stream(exchange, target, events)
    reply = await exchange.reply(target.response_limit)
    if not isinstance(reply, Reply):
        return exchange.receipt(reply)
    judge = classify if push.turn is None else classify_turn
    return exchange.receipt(judge(reply, exchange.reading()), reply.body)


async def _read_stream(exchange: Exchange, target: Target, events: Events) -> Receipt:
    """Every line but the last goes to `events`; the last says what the attempt came to."""
    reading = exchange.reading()
    lines = exchange.lines(target.response_limit * exchange.bounds.stream_factor)
    while True:
        try:
            arrived = await lines.more()
        except LineTooLong:
            return exchange.receipt(too_large(target.response_limit))
        except Exception:
            return exchange.receipt(exchange.cut())
        if not arrived:
            return exchange.receipt(exchange.cut())
        for line in arrived:
            event = parse_event(line)
            if event is None:
                return exchange.receipt(Failed("bad_response", "a line of the endpoint's stream is not a JSON object with a type"), line)
            answer = classify_event(event, reading)
            if answer is not None:
                exchange.told = True
                return exchange.receipt(answer, line)
            await events(line)
