"""Senders of webhooks: they sign as the real ones do, and remember nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from dataclasses import dataclass
from typing import Any

import httpx

from tests.api.world import World

SECRET = "It's a Secret to Everybody"
PULL_REQUEST = {"action": "opened", "number": 1, "pull_request": {"title": "x"}}


def github(body: bytes, secret: str = SECRET, *, event: str = "pull_request", delivery: str = "") -> dict[str, str]:
    """Headers GitHub sends with a body."""
    return {
        "content-type": "application/json",
        "x-github-event": event,
        "x-github-delivery": delivery or str(uuid.uuid4()),
        "x-hub-signature-256": "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex(),
    }


def stripe(body: bytes, secret: str, at: int) -> dict[str, str]:
    """Headers Stripe sends with a body."""
    signature = hmac.digest(secret.encode(), f"{at}.".encode() + body, "sha256").hex()
    return {"content-type": "application/json", "stripe-signature": f"t={at},v1={signature}"}


def slack(body: bytes, secret: str, at: int, kind: str = "application/json") -> dict[str, str]:
    """Headers Slack sends with a body."""
    signature = hmac.digest(secret.encode(), f"v0:{at}:".encode() + body, "sha256").hex()
    return {"content-type": kind, "x-slack-request-timestamp": str(at), "x-slack-signature": f"v0={signature}"}


def lines(headers: dict[str, str]) -> bytes:
    """Headers as a client that writes its own requests takes them; what is sent as JSON says so already."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name != "content-type").encode()


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def numbered(number: int) -> bytes:
    """A pull request like no other."""
    return encoded({**PULL_REQUEST, "number": number, "salt": hashlib.sha256(str(number).encode()).hexdigest()})


@dataclass
class Senders:
    """The server, and a client that is both its user and everybody who posts to it."""

    world: World
    http: httpx.AsyncClient

    @property
    def now(self) -> int:
        return int(self.world.clock.now().timestamp())

    async def webhook(self, name: str = "github", source: str = "github", **members: Any) -> dict[str, Any]:
        """Make a webhook."""
        members.setdefault("secrets", [SECRET])
        answer = await self.http.post("/v1/webhooks", json={"name": name, "source": source, **members})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def post(self, name: str, body: bytes, headers: dict[str, str] | list[tuple[str, str]], query: str = "") -> httpx.Response:
        """Deliver."""
        return await self.http.post(f"/hooks/default/{name}{query}", content=body, headers=headers)

    async def github(self, body: bytes | None = None, name: str = "github", **more: Any) -> httpx.Response:
        """Deliver as GitHub does."""
        body = encoded(PULL_REQUEST) if body is None else body
        return await self.post(name, body, github(body, **more))

    async def deliveries(self, name: str = "github", **params: Any) -> list[dict[str, Any]]:
        """What came, newest first."""
        await self.world.services.webhooks.settled()
        answer = await self.http.get(f"/v1/webhooks/{name}/deliveries", params=params)
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = answer.json()["rows"]
        return rows

    async def events(self) -> list[dict[str, Any]]:
        """Every event there is, newest first."""
        await self.world.services.webhooks.settled()
        rows: list[dict[str, Any]] = (await self.http.get("/v1/events", params={"limit": 1000})).json()["rows"]
        return rows

    async def event(self, event_id: str) -> dict[str, Any]:
        """An event with its data."""
        found: dict[str, Any] = (await self.http.get(f"/v1/events/{event_id}")).json()
        return found

    async def reason(self, name: str = "github") -> tuple[str, str | None]:
        """(status, reason) of the newest delivery."""
        newest = (await self.deliveries(name))[0]
        return newest["status"], newest["reason"]
