"""`dispatcher webhooks` and `dispatcher listen` against a development server, and the SDK's client."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from handlers_sdk import (
    ApiError,
    ClientConfig,
    Dispatcher,
    V1WebhookAPIKeyAuth,
    V1WebhookBasicAuth,
    V1WebhookHMACAuth,
    V1WebhookSourceName,
)
from handlers_sdk.webhooks import WebhooksClient
from tests.cli.running import BIN, Process, Server, invoke, new_database
from tests.webhooks_server.senders import SECRET, github, numbered


@pytest.fixture(scope="module")
async def own_dsn(server: str) -> AsyncIterator[str]:
    """A database that no other test empties."""
    async with new_database(server) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def url(own_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `dispatcher dev` answers."""
    data = tmp_path_factory.mktemp("dev")
    with Server("dev", "--data", str(data), cwd=data, DATABASE_URL=own_dsn) as dev:
        yield dev.url


class Laptop:
    """A program on this machine that remembers what it was sent, and answers 500 to whatever it dislikes."""

    def __init__(self, port: int = 0) -> None:
        received: list[tuple[dict[str, str], bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((dict(self.headers.items()), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.received = received
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def laptop() -> Iterator[Laptop]:
    program = Laptop()
    yield program
    program.close()


def _made(url: str, name: str) -> None:
    done = invoke("webhooks", "create", name, "github", "--secret", SECRET, "-o", "json", DISPATCHER_URL=url)
    assert done.code == 0, done.err


def _deliver(url: str, name: str, numbers: range) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http:
        for number in numbers:
            body = numbered(number)
            assert http.post(f"/hooks/default/{name}", content=body, headers=github(body)).status_code == 200


def test_a_webhook_from_making_to_mending(url: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    key = "'github:' + headers['x-github-event'] + ':' + input.action"
    done = invoke("webhooks", "create", "first", "github", "-s", f"@{tmp_path / 'secret'}", "-k", key, "-o", "table", DISPATCHER_URL=url)
    assert done.code == 0
    assert f"{url}/hooks/default/first" in done.out
    assert "github:pull_request:opened" in done.out
    tried = invoke("webhooks", "test", "first", "-o", "json", DISPATCHER_URL=url)
    assert (tried.code, tried.json["event_key"]) == (0, "github:pull_request:opened")
    lost = invoke("webhooks", "test", "first", "-p", '{"ref":"main"}', "-H", "x-github-event=push", "-o", "json", DISPATCHER_URL=url)
    assert (lost.code, lost.json["outcome"], lost.json["reason"]) == (1, "unrouted", "event_key_failed")
    assert invoke("webhooks", "reroute", "first", DISPATCHER_URL=url).code == 1
    mended = "'github:' + headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')"
    assert invoke("webhooks", "update", "first", "-k", mended, DISPATCHER_URL=url).code == 0
    done = invoke("webhooks", "reroute", "first", "--since", "1h", "-o", "table", DISPATCHER_URL=url)
    assert (done.code, done.out) == (0, "1 of 1 routed\n")
    rows = invoke("webhooks", "deliveries", "first", "-s", "accepted", "-o", "json", DISPATCHER_URL=url).json["rows"]
    assert [row["event_key"] for row in rows] == ["github:push", "github:pull_request:opened"]
    replayed = invoke("webhooks", "replay", "first", rows[0]["id"], rows[1]["id"], "-o", "json", DISPATCHER_URL=url)
    assert [json.loads(line)["status"] for line in replayed.out.splitlines()] == ["accepted", "accepted"]
    added = invoke("webhooks", "add-secret", "first", "--overlap", "1h", "-o", "json", DISPATCHER_URL=url).json
    assert invoke("webhooks", "remove-secret", "first", "1", DISPATCHER_URL=url).code == 0
    assert [s["number"] for s in invoke("webhooks", "get", "first", "-o", "json", DISPATCHER_URL=url).json["secrets"]] == [added["number"]]
    assert "first" in invoke("webhooks", "list", "-o", "table", DISPATCHER_URL=url).out
    assert invoke("webhooks", "delete", "first", DISPATCHER_URL=url).code == 0
    assert invoke("webhooks", "get", "first", DISPATCHER_URL=url).code == 3


def _listen(url: str, laptop: Laptop, name: str, *more: str) -> Process:
    command = [str(BIN / "dispatcher"), "listen", "--url", url, "--forward", laptop.url, "--webhook", name, "-o", "json", *more]
    return Process(command)


def _until(process: Process, laptop: Laptop, count: int) -> None:
    while len(laptop.received) < count:
        process.line('"delivery":')


def test_listen_brings_what_came_as_it_came_and_goes_on_where_it_ended(url: str, laptop: Laptop, tmp_path: Path) -> None:
    _made(url, "mine")
    _deliver(url, "mine", range(2))
    cursor = str(tmp_path / "place")
    with _listen(url, laptop, "mine", "--cursor", cursor) as process:
        process.line("Forwarding to")
        _deliver(url, "mine", range(2, 5))
        _until(process, laptop, 3)
        process.send(signal.SIGINT)
        process.wait()
    bodies = [body for _, body in laptop.received]
    assert bodies == [numbered(number) for number in range(2, 5)]
    headers = {name.lower(): value for name, value in laptop.received[0][0].items()}
    assert headers["x-hub-signature-256"] == github(bodies[0])["x-hub-signature-256"]
    assert headers["dispatcher-delivery"].startswith("dlv_")
    _deliver(url, "mine", range(5, 8))
    with _listen(url, laptop, "mine", "--cursor", cursor, "--count", "3") as process:
        assert process.wait() == 0
    assert [body for _, body in laptop.received] == [numbered(number) for number in range(2, 8)]


def test_listen_waits_for_the_program(url: str, laptop: Laptop) -> None:
    _made(url, "waiting")
    laptop.close()
    with _listen(url, laptop, "waiting", "--since", "1h", "--count", "1") as process:
        _deliver(url, "waiting", range(1))
        process.line("does not answer")
        again = Laptop(laptop.port)
        try:
            assert process.wait() == 0
            assert [body for _, body in again.received] == [numbered(0)]
        finally:
            again.close()


class Flaky:
    """A way to a port that breaks most connections after some hundred bytes of answer; `broken` counts them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections = 0
        self.broken = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._connections += 1
                server = socket.create_connection(("127.0.0.1", self._port))
                most = 6_000 if self._connections % 3 else 25_000
                Thread(target=self._carry, args=(client, server, 1_000_000_000), daemon=True).start()
                Thread(target=self._carry, args=(server, client, most), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, most: int) -> None:
        with suppress(OSError), source:
            while data := source.recv(512):
                most -= len(data)
                if most < 0:
                    self.broken += 1
                    target.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_listen_loses_nothing_over_dropped_connections(url: str, laptop: Laptop, tmp_path: Path) -> None:
    count = 20
    _made(url, "far")
    way = Flaky(int(url.rpartition(":")[2]))
    with _listen(way.url, laptop, "far", "--since", "1h", "--cursor", str(tmp_path / "place")) as process:
        _deliver(url, "far", range(count))
        _until(process, laptop, count)
        process.send(signal.SIGKILL)
        process.wait()
    way.close()
    assert way.broken >= 3, "the way was too good to prove anything"
    assert {body for _, body in laptop.received} == {numbered(number) for number in range(count)}
    assert len(laptop.received) <= count + 1


@pytest.fixture
def client(url: str) -> Iterator[WebhooksClient]:
    """The SDK's client."""
    dispatcher = Dispatcher(ClientConfig(api_url=url))
    yield dispatcher.webhooks
    dispatcher.close()


def test_the_client_of_the_sdk(url: str, client: WebhooksClient) -> None:
    made = client.create(V1WebhookSourceName.STRIPE, "sdk-a", "'stripe:' + input.type", V1WebhookHMACAuth(signing_secret="whsec_1"))
    assert (made.source, made.url) == ("stripe", f"{url}/hooks/default/sdk-a")
    assert made.sample is not None
    assert made.sample["event_key"] == "stripe:payment_intent.succeeded"
    basic = V1WebhookBasicAuth(username="u", password="p")
    client.create("postmark", "sdk-b", "input.RecordType", basic, static_payload={"a": 1})
    client.create(V1WebhookSourceName.GENERIC, "sdk-c", "'key'", V1WebhookAPIKeyAuth(header_name="x-key", api_key="k"), "headers['x-org']")
    names = ["sdk-a", "sdk-b", "sdk-c"]
    assert [row.name for row in client.list(webhook_names=names).rows] == names
    assert [row.name for row in client.list(limit=1, offset=1, webhook_names=names).rows] == ["sdk-b"]
    assert [row.name for row in client.list(source_names=[V1WebhookSourceName.GENERIC], webhook_names=names).rows] == ["sdk-c"]
    changed = client.update("sdk-c", event_key_expression="'other'", static_payload={"b": 2})
    assert (changed.event_key_expression, changed.scope_expression, changed.static_payload) == ("'other'", "headers['x-org']", {"b": 2})
    assert client.get("sdk-b").static_payload == {"a": 1}
    assert httpx.post(client.get("sdk-b").url, auth=("u", "p"), json={"RecordType": "Open"}, trust_env=False).status_code == 200
    assert client.delete("sdk-b").name == "sdk-b"
    with pytest.raises(ApiError) as caught:
        client.get("sdk-b")
    assert caught.value.problem_code == "unknown_webhook"


async def test_its_other_face(client: WebhooksClient) -> None:
    made = await client.aio_create("github", "sdk-d", "'key'", V1WebhookHMACAuth(signing_secret="s"))
    assert (await client.aio_get("sdk-d")).id == made.id
    assert (await client.aio_update("sdk-d", scope_expression="'s'")).scope_expression == "'s'"
    assert [row.name for row in (await client.aio_list(webhook_names=["sdk-d"])).rows] == ["sdk-d"]
    assert (await client.aio_delete("sdk-d")).name == "sdk-d"
