"""The endpoint made with the SDK. Run as `uvicorn --factory tests.chaos.endpoint:create`; CHAOS_REQUESTS names its record.

A wrapper notes every attempt it is sent, batches item by item, and hands the handler the nonce its result has to carry.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher
from tests.chaos.witness import Witness

SLOTS = 60
EVENT = "chaos.order.created"
RUNS_PER_EVENT = 2
WORKFLOWS = ("quick", "flaky")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Order(BaseModel):
    """The input; its number is of no importance."""

    n: int = 0


def _handlers(dispatcher: Dispatcher, nonces: dict[tuple[str, int], str]) -> list[Any]:
    @dispatcher.task(name="quick", on_events=["chaos.*"], retries=3)
    async def quick(input: Order, ctx: Context) -> dict[str, str]:
        await _work(random.random() * 0.03)
        return {"nonce": nonces[ctx.workflow_run_id, ctx.attempt_number]}

    @dispatcher.task(name="flaky", on_events=["chaos.order.*"], retries=8)
    async def flaky(input: Order, ctx: Context) -> dict[str, str]:
        await _work(random.random() * 0.4)
        if random.random() < 0.25:
            raise RuntimeError("it happens")
        return {"nonce": nonces[ctx.workflow_run_id, ctx.attempt_number]}

    return [quick, flaky]


async def _work(seconds: float) -> None:
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


def create() -> Application:
    """The app, its record in front of it."""
    witness, nonces = Witness(os.environ["CHAOS_REQUESTS"]), dict[tuple[str, int], str]()
    dispatcher = Dispatcher()
    app = dispatcher.app(workflows=_handlers(dispatcher, nonces), slots=SLOTS)

    async def noting(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        body = await _body(receive)
        for run_id, attempt in _attempts(body):
            nonces[run_id, attempt] = witness.saw(run_id, attempt)
        await app(scope, _again(body, receive), send)

    return noting


def _attempts(body: bytes) -> Iterator[tuple[str, int]]:
    push = json.loads(body)
    if push["type"] != "cancel":
        for item in push.get("items", [push]):
            yield item["run_id"], item["attempt"]


async def _body(receive: Receive) -> bytes:
    chunks, more = [], True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


def _again(body: bytes, receive: Receive) -> Receive:
    """What was read once already, then the rest."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
