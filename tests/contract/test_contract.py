"""The short form of `make contract`: the API is what it says it is, whatever it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import KEY, Server, new_database
from tests.contract.asking import ask

SEED = 20260101
APP = """
from handlers_sdk import Context, Dispatcher, EmptyModel, NonRetryableError

dispatcher = Dispatcher()


@dispatcher.task(on_events=["picture:*"])
def resize(input: EmptyModel, ctx: Context) -> dict[str, int]:
    ctx.log("resized")
    return {"width": 2}


@dispatcher.task()
def fail(input: EmptyModel, ctx: Context) -> None:
    raise NonRetryableError("it cannot be done")


app = dispatcher.app(workflows=[resize, fail])
"""


@pytest.mark.slow
async def test_the_api_is_what_its_description_says(server: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    async with new_database(server) as dsn:
        options = {"DATABASE_URL": dsn, "DISPATCHER_MASTER_KEY": KEY, "DISPATCHER_MAX_WAIT": "1"}
        with Server("dev", "app:app", "--data", str(tmp_path / "data"), cwd=tmp_path, **options) as running:
            report = ask(running.url, tmp_path, examples=1, seconds=16, seed=SEED)
    print(f"{report.requests:,} requests to {report.operations} operations")
    assert not report.failures, report.text
    assert report.operations > 80
    assert report.requests > report.operations  # how many more is a matter of how fast the machine is
