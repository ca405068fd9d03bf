"""A dispatcher's HTTP face in a few lines, in process: it remembers what it was asked and answers as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from handlers_sdk import ClientConfig, Dispatcher

Reply = tuple[int, Any] | Exception


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: httpx.QueryParams
    headers: httpx.Headers
    content: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)

    @property
    def token(self) -> str:
        """The bearer token, empty when there is none."""
        return str(self.headers.get("authorization", "")).removeprefix("Bearer ")


@dataclass
class FakeApi(httpx.AsyncBaseTransport):
    """`answer` decides; by default callbacks are welcome and anything else is unknown."""

    answer: Callable[[Asked], Reply] = field(default=lambda _: (200, {"ok": True, "cancel": None}))
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    groups: bool = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request, without a network."""
        content = await request.aread()
        asked = Asked(request.method, request.url.path, request.url.params, request.headers, content)
        with self.lock:
            self.asked.append(asked)
        reply: Reply = problem(404, "not_found")
        if asked.path != "/v1/callbacks":
            reply = self.answer(asked)
        elif self.groups:
            reply = self._grouped(asked)
        if isinstance(reply, Exception):
            raise reply
        status, body = reply
        kind = "application/problem+json" if status >= 400 else "application/json"
        return httpx.Response(status, content=json.dumps(body).encode(), headers={"content-type": kind})

    def _grouped(self, asked: Asked) -> Reply:
        """Grouped callbacks: each attempt's answered as a callback of its own. What answers with an exception is not reached at all."""
        results = []
        for one in asked.json["items"]:
            headers = httpx.Headers({**asked.headers, "authorization": f"Bearer {one['token']}"})
            content = json.dumps({"events": one["events"]}).encode()
            reply = self.answer(Asked("POST", "/v1/callback", asked.query, headers, content))
            if isinstance(reply, Exception):
                return reply
            results.append({"status": reply[0], "body": reply[1]})
        return 200, {"results": results}

    def said(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """What was posted to the callbacks, in order: the token and its events."""
        posts: list[tuple[str, list[dict[str, Any]]]] = []
        for asked in self.asked:
            if asked.path == "/v1/callbacks":
                posts += [(one["token"], one["events"]) for one in asked.json["items"]]
            elif asked.path == "/v1/callback":
                posts.append((asked.token, asked.json.get("events", [asked.json])))
        return posts

    def events(self) -> list[dict[str, Any]]:
        """All events posted to the callbacks, in order."""
        return [event for _, events in self.said() for event in events]

    def dispatcher(self, **changes: Any) -> Dispatcher:
        """A Dispatcher whose calls come here."""
        settings: dict[str, Any] = {"api_url": "http://dispatcher.test", "retry_backoff": 0.0, "transport": self, **changes}
        return Dispatcher(ClientConfig(**settings))


def problem(status: int, code: str, **extra: Any) -> tuple[int, dict[str, Any]]:
    """A refusal."""
    return status, {"type": f"/errors/{code}", "title": code, "status": status, "code": code, "detail": f"because of {code}", **extra}
