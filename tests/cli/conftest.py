"""A development server of its own database, shared by the tests of this room; each test uses names of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cli.running import KEY, Server, new_database

APP = """
from handlers_sdk import Context, Dispatcher, EmptyModel, NonRetryableError
from pydantic import BaseModel

dispatcher = Dispatcher()


class Size(BaseModel):
    width: int


@dispatcher.task(on_events=["picture:*"])
def resize(input: Size, ctx: Context) -> dict[str, int]:
    ctx.log(f"width {input.width}")
    return {"width": input.width * 2}


@dispatcher.task()
def fail(input: EmptyModel, ctx: Context) -> None:
    raise NonRetryableError("it cannot be done")


@dispatcher.task(execution_timeout="60s")
async def wait(input: EmptyModel, ctx: Context) -> None:
    import asyncio

    await asyncio.Event().wait()


app = dispatcher.app(workflows=[resize, fail, wait])
"""


@pytest.fixture(scope="session")
async def own_dsn(server: str) -> AsyncIterator[str]:
    """A database that no other test empties."""
    async with new_database(server) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def dev(own_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`dispatcher dev app:app` on that database, ready."""
    directory = tmp_path_factory.mktemp("dev")
    (directory / "app.py").write_text(APP)
    with Server(
        "dev", "app:app", "--data", str(directory / "data"), cwd=directory, DATABASE_URL=own_dsn, DISPATCHER_MASTER_KEY=KEY
    ) as running:
        yield running


@pytest.fixture(scope="session")
def url(dev: Server) -> str:
    """Where it answers."""
    return dev.url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
