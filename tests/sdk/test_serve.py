"""Serving: registration at the dispatcher, and a process that ends as it should."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import uvicorn

from handlers_sdk import ApiError, ConfigError, Context, Dispatcher, EmptyModel, LifespanSetupError
from handlers_sdk.api import Api
from handlers_sdk.config import ClientConfig
from handlers_sdk.serve import Endpoint, Server, register
from tests.sdk.fake_api import FakeApi, problem
from tests.sdk.pushing import run_body

ENDPOINT = Endpoint(name="images/eu", url="http://10.0.0.7:8500", version="4f2c", slots=7, labels={"gpu": 2})


def api_of(fake: FakeApi) -> Api:
    return Api(ClientConfig(api_url="http://dispatcher.test", transport=fake, retry_backoff=0.0, token="t"))


async def test_registration_says_what_the_endpoint_is() -> None:
    fake = FakeApi(lambda _: (200, {"id": "ep_1", "endpoint": "ep_1", "name": "images/eu"}))
    answer = await register(api_of(fake), ENDPOINT)
    (asked,) = fake.asked
    assert (asked.method, asked.path, asked.token) == ("PUT", "/v1/endpoints/images/eu", "t")
    assert asked.json == {"url": "http://10.0.0.7:8500", "version": "4f2c", "slots": 7, "labels": {"gpu": 2}}
    assert answer["id"] == "ep_1"


async def test_registration_waits_for_a_dispatcher_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers_sdk.serve.REGISTER_PAUSE_SECONDS", 0.0)
    replies: list[Any] = [*[httpx.ConnectError("refused")] * 5, problem(500, "internal"), (200, {"id": "ep_1"})]
    fake = FakeApi(lambda _: replies[len(fake.asked) - 1])
    assert (await register(api_of(fake), ENDPOINT))["id"] == "ep_1"
    assert len(fake.asked) == 7


async def test_a_refused_registration_is_an_error() -> None:
    fake = FakeApi(lambda _: problem(422, "discovery_failed"))
    with pytest.raises(ApiError, match="discovery_failed"):
        await register(api_of(fake), ENDPOINT)


def server_for(host: str, fake: FakeApi) -> Server:
    app = fake.dispatcher().app([])
    config = uvicorn.Config(app, host, 0, log_level="critical", lifespan="on")
    return Server(config, app, api_of(fake), Endpoint("here", "", app.handlers.version, 1))


async def test_a_server_registers_where_it_listens_and_learns_its_id() -> None:
    fake = FakeApi(lambda _: (200, {"id": "ep_learned"}))
    server = server_for("127.0.0.1", fake)
    serving = asyncio.create_task(server._serve())
    while not fake.asked or server._registration is None or not server._registration.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    assert fake.asked[0].json["url"] == f"http://127.0.0.1:{port}"
    assert server._app.handlers.verifier is not None
    assert server._app.handlers.verifier._endpoint_ids == {"ep_learned"}
    server.handle_exit(signal.SIGTERM, None)
    assert server._app.handlers.draining
    await serving
    assert server.failure is None


async def test_a_server_that_cannot_be_registered_stops_and_says_why() -> None:
    refused = server_for("127.0.0.1", FakeApi(lambda _: problem(401, "unauthorized")))
    await refused._serve()
    assert isinstance(refused.failure, ApiError)
    everywhere = server_for("0.0.0.0", FakeApi())
    await everywhere._serve()
    assert isinstance(everywhere.failure, ConfigError)
    assert "say where the dispatcher reaches it" in str(everywhere.failure)


def test_a_second_signal_forces_the_end() -> None:
    server = server_for("127.0.0.1", FakeApi())
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server.force_exit) == (True, False)
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit


PROGRAM = """
    import asyncio
    from handlers_sdk import ClientConfig, Context, Dispatcher, EmptyModel

    dispatcher = Dispatcher(ClientConfig(api_url="{api}", verify_signatures=False))

    async def lifespan():
        print("up", flush=True)
        yield
        print("down", flush=True)

    @dispatcher.task()
    async def work(input: EmptyModel, ctx: Context) -> str:
        print("started", flush=True)
        await asyncio.to_thread(input_line)
        return "finished"

    def input_line() -> None:
        import sys
        sys.stdin.readline()

    dispatcher.serve("here", workflows=[work], lifespan=lifespan, port=0)
    print("over", flush=True)
"""


class Registrar(BaseHTTPRequestHandler):
    """A dispatcher that registers whoever comes."""

    urls: list[str] = []  # noqa: RUF012 - the class is the state

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.urls.append(body["url"])
        answer = b'{"id": "ep_1"}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        Thread(target=self.server.shutdown).start()

    def log_message(self, *_: object) -> None: ...


def test_sigterm_finishes_what_is_running_and_ends_normally(tmp_path: Path) -> None:
    registrar = HTTPServer(("127.0.0.1", 0), Registrar)
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(api=f"http://127.0.0.1:{registrar.server_port}")))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "up\n"
        registrar.serve_forever()
        with httpx.Client(base_url=Registrar.urls[0], timeout=30) as client:
            answers: list[httpx.Response] = []
            request = Thread(target=lambda: answers.append(client.post("/", json=run_body("work"))))
            request.start()
            assert process.stdout.readline() == "started\n"
            process.send_signal(signal.SIGTERM)
            process.stdin.write("\n")
            process.stdin.flush()
            request.join(30)
            assert answers[0].json() == "finished"
        assert process.stdout.read() == "down\nover\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        registrar.server_close()


def test_serve_says_that_the_app_could_not_start() -> None:
    async def failing() -> Any:
        raise ValueError("no database")
        yield

    dispatcher: Dispatcher = FakeApi().dispatcher()

    @dispatcher.task()
    async def work(input: EmptyModel, ctx: Context) -> None: ...

    with pytest.raises((LifespanSetupError, SystemExit)):  # newer versions of uvicorn leave by themselves
        dispatcher.serve("here", [work], lifespan=failing, port=0, register=False)
