"""A world for every test, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import dispatcher.app
from dispatcher.store.database import Database
from tests.world.kept import Kept
from tests.world.world import Node, World


@pytest.fixture(scope="session")
async def kept(_migrated_dsn: str) -> AsyncIterator[Kept]:
    """The connections that dispatchers leave to each other."""
    kept = Kept(_migrated_dsn)
    yield kept
    await kept.close()


@pytest.fixture
async def world(dsn: str, database: Database, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world without a dispatcher."""
    monkeypatch.setattr(dispatcher.app, "_database", kept.open)
    world = World(dsn, database)
    yield world
    await world.close()


@pytest.fixture
async def one(world: World) -> Node:
    """Its first dispatcher."""
    return await world.node()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many dispatchers have died for it."""
    reports = terminalreporter.stats.get("passed", [])
    kills = [int(value) for report in reports for name, value in getattr(report, "user_properties", ()) if name == "kills"]
    if kills:
        terminalreporter.write_line(f"{sum(kills)} dispatchers were killed")
