"""A development server that runs sdk_endpoint.py, shared by the tests of the examples."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cli.running import KEY, Server, new_database

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
async def examples_dsn(server: str) -> AsyncIterator[str]:
    """A database that no other test empties."""
    async with new_database(server) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def url(examples_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `dispatcher dev sdk_endpoint:app` answers."""
    data = tmp_path_factory.mktemp("dev")
    with Server(
        "dev", "sdk_endpoint:app", "--no-reload", "--data", str(data), cwd=HERE, DATABASE_URL=examples_dsn, DISPATCHER_MASTER_KEY=KEY
    ) as dev:
        yield dev.url
