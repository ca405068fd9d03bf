"""Receives GitHub's webhooks and sends each one that is proven to come from GitHub to the dispatcher, as an event."""

import os
import time
from collections.abc import Mapping
from typing import Any

import httpx
import litestar

from webhooks import PROVIDERS, Delivery, Ingest, Request, Source, Submitted

DISPATCHER_URL = os.environ["DISPATCHER_URL"]
GITHUB = PROVIDERS["github"]


def event_key(payload: Any, headers: Mapping[str, str]) -> str:
    """`pull_request:opened`; `push` and others have no action."""
    return headers["x-github-event"] + (f":{payload['action']}" if "action" in payload else "")


async def submit(delivery: Delivery) -> Submitted:
    """Store one event for each delivery, however often it comes. GitHub is answered after this, and only then takes it as delivered."""
    event = {
        "type": delivery.event_key or "github:unrouted",
        "data": delivery.input,
        "metadata": {"github_delivery": delivery.delivery_id},
        "idempotency_key": delivery.dedupe_keys[-1],  # a hash of the body: GitHub signs that, and not the delivery's id
    }
    async with httpx.AsyncClient(base_url=DISPATCHER_URL, trust_env=False) as http:
        answer = (await http.post("/v1/events", json=event)).raise_for_status().json()
    if answer.get("duplicate"):
        return Submitted("duplicate", answer["event_id"])
    return Submitted("accepted" if delivery.event_key else "unrouted", answer["event_id"])


SOURCE = Source(
    name="github", scheme=GITHUB.scheme, challenges=GITHUB.challenges, secrets=(os.environ["GITHUB_SECRET"],), event_key=event_key
)
INGEST = Ingest(submit)


@litestar.post("/hooks/github")
async def receive(request: litestar.Request[Any, Any, Any]) -> litestar.Response[bytes]:
    arrived = Request.build("POST", str(request.url), tuple(request.headers.multi_items()), await request.body())
    answer = (await INGEST.receive(SOURCE, arrived, time.time())).response
    return litestar.Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


app = litestar.Litestar([receive], openapi_config=None)
