"""The cookbooks of webhooks, each run as its first line says: a signed request from outside becomes a finished run."""

from __future__ import annotations

import hmac
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from dispatcher.clock import SystemClock
from tests.cli.running import PATIENCE, Server, environment, invoke, new_database
from tests.examples.conftest import HERE

SECRET = "whsec_cookbook"


@contextmanager
def serving(module: str, dsn: str, data: Path, **variables: str) -> Iterator[tuple[str, list[str]]]:
    """`dispatcher dev` with an example beside it: (its address, the lines the example prints when it is run)."""
    with Server("dev", f"{module}:app", "--no-reload", "--data", str(data), cwd=HERE, DATABASE_URL=dsn) as dev:
        done = subprocess.run(
            [sys.executable, f"{module}.py"],
            cwd=HERE,
            env=environment(DISPATCHER_API_URL=dev.url, **variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        yield dev.url, done.stdout.split()


@asynccontextmanager
async def example(server: str, tmp_path: Path, module: str, **variables: str) -> AsyncIterator[tuple[str, list[str]]]:
    async with new_database(server) as dsn:
        with serving(module, dsn, tmp_path / "data", **variables) as started:
            yield started


def finished(url: str, path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """The one run a delivery starts, once it is over."""
    with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as http:
        assert http.post(path, content=body, headers=headers).status_code == 200
        name = path.rpartition("/")[2]
        [delivery] = http.get(f"/v1/webhooks/{name}/deliveries", params={"limit": 1}).json()["rows"]
        [run] = http.get("/v1/runs", params={"event_id": delivery["event_id"]}).json()["rows"]
        found: dict[str, Any] = http.get(f"/v1/runs/{run['id']}", params={"wait": "30s"}).json()
        return found


def answer(address: str, body: bytes, headers: dict[str, str]) -> str:
    return httpx.post(address, content=body, headers=headers, trust_env=False).text


def signed(text: bytes, prefix: str) -> str:
    return prefix + hmac.digest(SECRET.encode(), text, "sha256").hex()


async def test_stripe(server: str, tmp_path: Path) -> None:
    async with example(server, tmp_path, "webhooks_stripe", STRIPE_SECRET=SECRET) as (url, [address]):
        now = int(SystemClock().now().timestamp())
        payment = {"customer": "cus_1", "amount": 2000}
        body = json.dumps({"id": "evt_1", "type": "payment_intent.succeeded", "data": {"object": payment}}).encode()
        headers = {"content-type": "application/json", "stripe-signature": f"t={now}," + signed(f"{now}.".encode() + body, "v1=")}
        run = finished(url, address.removeprefix(url), body, headers)
        assert (run["workflow"], run["status"], run["output"]) == ("handle_stripe_payment", "succeeded", payment)
        tried = invoke("webhooks", "test", "stripe", "-o", "json", DISPATCHER_URL=url)
        assert (tried.code, tried.json["event_key"], len(tried.json["runs"])) == (0, "stripe:payment_intent.succeeded", 1)


async def test_github(server: str, tmp_path: Path) -> None:
    async with example(server, tmp_path, "webhooks_github", GITHUB_SECRET=SECRET) as (url, [address]):
        body = (HERE / "github_pull_request.json").read_bytes()
        headers = {"content-type": "application/json", "x-github-event": "pull_request", "x-hub-signature-256": signed(body, "sha256=")}
        run = finished(url, address.removeprefix(url), body, headers)
        assert (run["workflow"], run["status"], run["output"]) == (
            "handle_github_pr", "succeeded", {"repo": "octo-org/hello-world", "pr": 42},
        )  # fmt: skip


MENTION = {"type": "event_callback", "event": {"type": "app_mention", "user": "U1", "text": "hi", "channel": "C1"}}
COMMAND = {"command": "/deploy", "text": "production", "user_name": "ada", "response_url": "https://example.com/r"}
CLICK = {"type": "block_actions", "actions": [{"action_id": "approve"}], "user": {"username": "ada"}}
SLACK = [
    ("slack-events", json.dumps(MENTION), "application/json", {"handled": True}),
    ("slack-commands", urlencode(COMMAND), "application/x-www-form-urlencoded", {"command": "/deploy", "args": "production"}),
    ("slack-interactions", urlencode({"payload": json.dumps(CLICK)}), "application/x-www-form-urlencoded", {"action": "approve"}),
]


@pytest.mark.slow
async def test_slack(server: str, tmp_path: Path) -> None:
    async with example(server, tmp_path, "webhooks_slack", SLACK_SECRET=SECRET) as (url, addresses):
        now = int(SystemClock().now().timestamp())
        for (name, text, kind, output), address in zip(SLACK, addresses, strict=True):
            assert address == f"{url}/hooks/default/{name}"
            body = text.encode()
            signature = signed(f"v0:{now}:".encode() + body, "v0=")
            headers = {"content-type": kind, "x-slack-request-timestamp": str(now), "x-slack-signature": signature}
            run = finished(url, f"/hooks/default/{name}", body, headers)
            assert (run["status"], run["output"]) == ("succeeded", output)
        question = b'{"type":"url_verification","challenge":"abc"}'
        signature = signed(f"v0:{now}:".encode() + question, "v0=")
        headers = {"content-type": "application/json", "x-slack-request-timestamp": str(now), "x-slack-signature": signature}
        assert answer(addresses[0], question, headers) == "abc"
