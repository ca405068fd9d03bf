"""A stream goes through the SDK, and through a backend of one's own, as it was put."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from handlers_sdk import ClientConfig, Dispatcher
from tests.cli.running import KEY, Server
from tests.examples.conftest import HERE

WORDS = [f"{word} " for word in ["Once", "upon", "a", "time", "there", "was", "a", "fox."]]


@pytest.fixture(scope="module")
def streaming(examples_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `dispatcher dev stream_endpoint:app` answers."""
    data = tmp_path_factory.mktemp("streaming")
    with Server(
        "dev", "stream_endpoint:app", "--no-reload", "--data", str(data), cwd=HERE, DATABASE_URL=examples_dsn, DISPATCHER_MASTER_KEY=KEY
    ) as dev:
        yield dev.url


@pytest.fixture
def client(streaming: str) -> Iterator[Dispatcher]:
    """A client of that server."""
    dispatcher = Dispatcher(ClientConfig(api_url=streaming))
    yield dispatcher
    dispatcher.close()


def test_the_sync_face_reads_what_was_put(client: Dispatcher) -> None:
    ref = client.stubs.task("write", dict[str, str]).run({"subject": "a fox"}, wait_for_result=False)
    assert list(client.runs.subscribe_to_stream(ref.workflow_run_id)) == WORDS
    assert list(client.runs.subscribe_to_stream(ref.workflow_run_id)) == WORDS  # whoever comes late reads the same
    types = [event.type for event in client.runs.stream_events(ref.workflow_run_id)]
    assert types == ["run:start", *["stream:data"] * len(WORDS), "run:stop"]


async def test_the_async_face_may_stop_early(client: Dispatcher) -> None:
    ref = await client.stubs.task("write", dict[str, str]).aio_run({"subject": "a fox"}, wait_for_result=False)
    stream = client.runs.subscribe_to_stream(ref.workflow_run_id)
    async for word in stream:
        assert word == WORDS[0]
        break
    assert [word async for word in stream] == WORDS


@pytest.mark.parametrize("backend", ["stream_fastapi", "stream_litestar"])
async def test_a_backend_passes_the_stream_on(backend: str, streaming: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_API_URL", streaming)
    example: Any = _loaded(backend, monkeypatch)
    transport = httpx.ASGITransport(example.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://backend") as http:
        reply = await http.get("/stories/a fox")
    assert (reply.status_code, reply.text) == (200, "".join(WORDS))
    assert reply.headers["content-type"].startswith("text/plain")
    await example.dispatcher.aio_close()


def _loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(HERE, f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
