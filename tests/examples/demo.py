"""`make demo`: a webhook as GitHub sends it and an event from curl become signed POSTs to two handlers, and come back as recorded results.

Everything runs on this machine, on free ports and in a temporary directory, and ends with the demo: the dispatcher with its own Postgres,
an endpoint of the standard library (plain_endpoint.py), one made with the SDK (sdk_endpoint.py), and a receiver for GitHub's webhooks
(github_receiver.py). What passes between dispatcher and endpoints is heard by a tap. Exits 0 when everything came out as it should.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dispatcher.clock import monotonic
from tests.cli.running import PATIENCE, Process, Server
from tests.examples.wiretap import Exchange, Tap, tapped

HERE = Path(__file__).parent
PAYLOAD = HERE / "github_pull_request.json"
SIGNED = ("webhook-id", "webhook-timestamp", "webhook-signature")
SHOWN = 130  # characters of a line


class Surprise(Exception):  # noqa: N818 - the demo did not go as it should
    """What came out is not what should have."""


@dataclass(slots=True)
class World:
    """Everything that runs."""

    url: str
    http: httpx.Client
    receiver: str
    github_secret: str
    plain: Tap
    sdk: Tap


def main() -> int:
    """The demo."""
    started = monotonic()
    try:
        with ExitStack() as stack:
            world = build(stack)
            github(world)
            curl(world)
            listed(world)
    except (Surprise, AssertionError, httpx.HTTPError) as error:
        print(f"\nThe demo did not come out as it should: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {monotonic() - started:.1f} s. Next: README.md, or `make dev` for a server of your own.")
    return 0


# ---- building


def build(stack: ExitStack) -> World:
    """Start everything, and register the two endpoints."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dispatcher-demo-", ignore_cleanup_errors=True)))
    directory.chmod(0o755)  # for root, whose Postgres runs as another user
    title("1. A dispatcher, with a Postgres of its own")
    before = monotonic()
    server = stack.enter_context(Server("dev", "--data", str(directory)))
    say(f"{server.url} is ready after {monotonic() - before:.1f} s (GET /readyz is 200)")
    http = stack.enter_context(httpx.Client(base_url=server.url, timeout=30, trust_env=False))

    title("2. Two endpoints, registered by PUT /v1/endpoints/{name}")
    plain = stack.enter_context(tapped("plain", free_port()))
    sdk = stack.enter_context(tapped("sdk", free_port()))
    receiver, secret = free_port(), secrets.token_hex(20)
    stack.enter_context(app("github_receiver:app", receiver, DISPATCHER_URL=server.url, GITHUB_SECRET=secret))
    stack.enter_context(app("sdk_endpoint:app", sdk.target, DISPATCHER_API_URL=server.url))
    register_plain(stack, http, plain)
    register_sdk(http, sdk)
    await_port(receiver)
    return World(server.url, http, f"http://127.0.0.1:{receiver}", secret, plain, sdk)


def register_plain(stack: ExitStack, http: httpx.Client, tap: Tap) -> None:
    """A static manifest; the answer holds the secret that the endpoint is started with."""
    answer = put(http, "plain", {"url": tap.url, "handlers": [{"name": "audit", "on_events": ["*"], "retries": 3}]})
    stack.enter_context(program("plain_endpoint.py", PORT=str(tap.target), WEBHOOK_SECRET=answer["secret"]))
    await_port(tap.target)
    say("plain: plain_endpoint.py, the standard library and the standardwebhooks package")
    say("       audit, on every event; registered with its handlers, and given its secret once")


def register_sdk(http: httpx.Client, tap: Tap) -> None:
    """Asked for its manifest by a signed GET, it says itself what it runs; it verifies with the published key and needs no secret."""
    await_port(tap.target)
    answer = put(http, "sdk", {"url": tap.url})
    say("sdk:   sdk_endpoint.py, made with handlers_sdk")
    say(f"       {' and '.join(answer['handlers'])}, each on its event; discovered by a signed GET, verifies {answer['verified']}")


def put(http: httpx.Client, name: str, body: Any) -> dict[str, Any]:
    response = http.put(f"/v1/endpoints/{name}", json=body)
    expect(response.is_success, f"PUT /v1/endpoints/{name} answered {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def app(target: str, port: int, **variables: str) -> Process:
    """An ASGI app of this directory, on uvicorn."""
    return program("-m", "uvicorn", target, "--log-level", "warning", "--port", str(port), **variables)


def program(*arguments: str, **variables: str) -> Process:
    """A Python program of this directory."""
    return Process([sys.executable, *arguments], cwd=HERE, variables={**variables, "PYTHONPATH": str(HERE.parents[1])})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int) -> None:
    """Wait until something listens."""
    started, never = monotonic(), threading.Event()
    while monotonic() - started < PATIENCE:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        never.wait(0.02)
    raise Surprise(f"nothing listens on port {port}")


# ---- the two ways in


def github(world: World) -> None:
    """A pull request is opened."""
    body = PAYLOAD.read_bytes()
    title("3. GitHub sends a webhook: a pull request was opened in octo-org/hello-world")
    signature = "sha256=" + hmac.digest(world.github_secret.encode(), body, "sha256").hex()
    headers = {"x-github-event": "pull_request", "x-github-delivery": str(uuid.uuid4()), "x-hub-signature-256": signature}
    event_id = deliver(world, body, headers, 200, "accepted")
    runs = results(world, event_id)
    expect({"audit", "review"} == set(runs), f"the event started {sorted(runs)}")
    expect(runs["review"]["output"]["review"] == "by two", f"review said {runs['review']['output']}")
    say("The same delivery again, and one that GitHub did not sign:")
    expect(deliver(world, body, headers, 200, "duplicate") == event_id, "a repeated delivery made another event")
    deliver(world, body, headers | {"x-hub-signature-256": "sha256=" + hashlib.sha256(body).hexdigest()}, 401, "unverified")


def deliver(world: World, body: bytes, headers: Mapping[str, str], status: int, word: str) -> str:
    """POST as GitHub does; the id of the event."""
    arrow("→", f"POST /hooks/github   {len(body):,} bytes")
    details(headers)
    sent = dict(headers) | {"content-type": "application/json", "user-agent": "GitHub-Hookshot/demo"}
    answer = httpx.post(f"{world.receiver}/hooks/github", content=body, headers=sent, timeout=30, trust_env=False)
    arrow("←", f"{answer.status_code} {answer.text}")
    expect(answer.status_code == status and word in answer.text, f"{status} {word} was expected")
    return str(answer.json().get("id"))


def curl(world: World) -> None:
    """An event by hand."""
    title("4. curl sends an event: a user was created")
    event = {"type": "user:created", "data": {"login": "octocat"}, "metadata": {"source": "curl"}}
    answer = by_curl(f"{world.url}/v1/events", json.dumps(event))
    arrow("←", answer)
    runs = results(world, json.loads(answer)["event_id"])
    expect({"audit", "welcome"} == set(runs), f"the event started {sorted(runs)}")
    expect(runs["welcome"]["output"] == {"text": "Welcome, octocat!", "attempts": 2}, f"welcome said {runs['welcome']['output']}")
    log = world.http.get(f"/v1/runs/{runs['welcome']['id']}/logs").json()["rows"]
    say("What the handler logged: " + "; ".join(line["message"] for line in log))


def by_curl(url: str, body: str) -> str:
    """POST with curl, or in its place where it is not installed."""
    arrow("$", f"curl {url} -d '{body}'")
    if shutil.which("curl") is None:
        say("(curl is not installed here: sent by Python)")
        return httpx.post(url, content=body, timeout=30, trust_env=False).text
    done = subprocess.run(["curl", "-sS", url, "-d", body], capture_output=True, text=True, timeout=30, check=False)
    expect(done.returncode == 0, done.stderr)
    return done.stdout


# ---- what became of it


def results(world: World, event_id: str) -> dict[str, Any]:
    """The runs of an event by workflow, once all are over, told together with the requests they were made of."""
    ids = {row["origin_run_id"] or row["run_id"] for row in world.http.get(f"/v1/events/{event_id}/runs").json()["rows"]}
    runs = [world.http.get(f"/v1/runs/{run_id}", params={"wait": "30s"}).json() for run_id in sorted(ids)]
    for exchange in taken(world):
        show(exchange)
    for one in runs:
        recorded(one)
        expect(one["status"] == "succeeded", f"{one['id']} is {one['status']}: {one['error']}")
    return {one["workflow"]: one for one in runs}


def taken(world: World) -> Iterator[Exchange]:
    """What the taps heard since the last time, discovery left out, in the order of the signatures' moments."""
    heard = [exchange for tap in (world.plain, world.sdk) for exchange in tap.heard if exchange.method == "POST"]
    for tap in (world.plain, world.sdk):
        tap.heard.clear()
    yield from sorted(heard, key=lambda exchange: exchange.headers["webhook-timestamp"])


def show(exchange: Exchange) -> None:
    """One signed request, and its answer."""
    headers = exchange.headers
    arrow("→", f"POST to {exchange.endpoint}: {headers['task-name']}, attempt {headers['task-attempt']}   {len(exchange.body):,} bytes")
    details({name: headers[name] for name in SIGNED})
    arrow("←", f"{exchange.status} {exchange.answer.decode()}")


def recorded(one: Mapping[str, Any]) -> None:
    """A run as GET /v1/runs/{id} tells it."""
    attempts = [attempt for task in one["tasks"] for attempt in task["attempts"]]
    told = ", ".join(
        f"{attempt['number']} {attempt['status']} {attempt['http_status']} in {attempt['latency_ms']} ms" for attempt in attempts
    )
    arrow("=", f"{one['id']} {one['workflow']} {one['status']} (attempts: {told})   {json.dumps(one['output'])}")


def listed(world: World) -> None:
    """What is kept."""
    title("5. What is recorded: GET /v1/runs")
    rows = world.http.get("/v1/runs").json()["rows"]
    for row in reversed(rows):
        say(f"{row['id']}  {row['workflow']:8} {row['status']}  {row['event_id']}")
    expect([row["status"] for row in rows] == ["succeeded"] * 4, "four runs should have succeeded")


# ---- telling


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def say(text: str) -> None:
    print(f"   {text}", flush=True)


def arrow(mark: str, text: str) -> None:
    """A line, cut where nobody would read on."""
    print(f"   {mark} {text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'}", flush=True)


def details(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        print(f"       {name}: {value}", flush=True)


def expect(holds: object, otherwise: str) -> None:
    if not holds:
        raise Surprise(otherwise)


if __name__ == "__main__":
    sys.exit(main())
