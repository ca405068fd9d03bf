"""A dispatcher's side of the wire for tests of the SDK: signed requests to an app's core, answers read back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handlers_sdk import App, ClientConfig, Response
from handlers_sdk.signing import HmacSigner, Signer, new_secret, signature_header

NOW = 1_767_225_600
SECRET = new_secret()
ENDPOINT = "ep_01jgfjjz000000000000000001"
API = "http://dispatcher.test"
AT = "2026-01-01T00:00:00.000Z"
ULID = "01jgfjjz0000000000000000{:02d}"


def config(**changes: Any) -> ClientConfig:
    """A configuration that verifies with SECRET and reaches nothing by itself."""
    settings: dict[str, Any] = {"api_url": API, "signing_secrets": (SECRET,), "retry_backoff": 0.0, **changes}
    return ClientConfig(**settings)


def clock() -> int:
    """The moment all test signatures are made at."""
    return NOW


def item(name: str, input: Any = None, number: int = 1, **changes: Any) -> dict[str, Any]:
    """One attempt, as it stands in a batch."""
    return {
        "name": name,
        "id": f"tsk_{ULID.format(number)}",
        "run_id": f"run_{ULID.format(number)}",
        "attempt": 1,
        "retry_count": 0,
        "max_attempts": 4,
        "version": "v7",
        "input": {} if input is None else input,
        "deadline": "2026-01-01T00:01:00.000Z",
        "timeout_ms": 60_000,
        "token": f"atk1.token{number}.mac",
        "tenant": "default",
        "workflow": name,
        "metadata": None,
        "priority": 1,
        **changes,
    }


def run_body(name: str, input: Any = None, number: int = 1, **changes: Any) -> dict[str, Any]:
    """One attempt as a request of its own."""
    return {"protocol": 1, "type": "run", "audience": ENDPOINT, "api": API, **item(name, input, number, **changes)}


def headers_for(body: bytes, *signers: Signer, message_id: str = f"{ENDPOINT}_{ULID.format(99)}") -> dict[str, str]:
    """The three headers of a signed request."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(NOW),
        "webhook-signature": signature_header(signers or (HmacSigner(SECRET),), message_id, NOW, body),
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, its body read to the end."""

    status: int
    headers: dict[str, str]
    body: bytes
    writes: int

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def lines(self) -> list[dict[str, Any]]:
        """The body as NDJSON."""
        return [json.loads(line) for line in self.body.splitlines()]

    def by_id(self) -> dict[str, dict[str, Any]]:
        """A batch's results by the number of their task."""
        return {line["id"][-2:]: line for line in self.lines()}


async def send(app: App, body: dict[str, Any], *signers: Signer) -> Response:
    """Sign and hand over one request."""
    text = json.dumps(body).encode()
    return await app.handlers.handle("POST", headers_for(text, *signers), text)


async def push(app: App, body: dict[str, Any], *signers: Signer) -> Answer:
    """Sign and hand over one request, and read the answer to its end."""
    return await read(await send(app, body, *signers))


async def run(app: App, name: str, input: Any = None, **changes: Any) -> Answer:
    """Push one attempt."""
    return await push(app, run_body(name, input, **changes))


async def batch(app: App, *items: dict[str, Any], ordered: bool = False) -> Answer:
    """Push many."""
    return await push(app, batch_body(*items, ordered=ordered))


def batch_body(*items: dict[str, Any], ordered: bool = False) -> dict[str, Any]:
    """Many attempts in one request."""
    return {"protocol": 1, "type": "batch", "audience": ENDPOINT, "api": API, "ordered": ordered, "items": list(items)}


def cancel_body(number: int = 1, attempt: int = 1, reason: str = "no longer wanted") -> dict[str, Any]:
    """Notice that an attempt should stop."""
    return {
        "protocol": 1,
        "type": "cancel",
        "audience": ENDPOINT,
        "id": f"tsk_{ULID.format(number)}",
        "attempt": attempt,
        "reason": reason,
    }


async def until(condition: Callable[[], object]) -> None:
    """Give way to the loop until something is so."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event, and nothing is slept
        await asyncio.sleep(0)


async def idle(app: App) -> None:
    """Until no attempt is left."""
    await until(lambda: not app.handlers.host.running)


def expire(app: App) -> None:
    """The deadline of everything running is now."""
    for execution in list(app.handlers.host.running.values()):
        execution._expire()


async def read(response: Response) -> Answer:
    """A response with its body."""
    body = response.body
    chunks = [body] if isinstance(body, bytes) else [chunk async for chunk in body]
    return Answer(response.status, dict(response.headers), b"".join(chunks), len(chunks))


# ---- durable tasks


def turn(name: str, entries: list[dict[str, Any]] | None = None, input: Any = None, **changes: Any) -> dict[str, Any]:
    log = {"len": len(entries or []), "from": 0, "prefix": "", "head": "", "entries": entries or []}
    members = {"turn": 1, "now": AT, "started_at": AT, "seed": "5eed", "budget_ms": 50_000, "mode": "replay", "log": log}
    return {**item(name, input, **{**members, **changes}), "protocol": 1, "type": "turn", "audience": ENDPOINT, "api": API}


def said(answer: Answer) -> dict[str, Any]:
    assert (answer.status, answer.headers["task-protocol"]) == (200, "1"), answer.body
    document: dict[str, Any] = answer.json()
    return document
