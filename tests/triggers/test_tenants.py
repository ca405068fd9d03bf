"""Crons and schedules of one tenant are nobody else's, and a token may do with them what its scopes say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from dispatcher.store.database import Database
from tests.api.world import World, open_world


@pytest.fixture
async def api(database: Database) -> AsyncIterator[World]:
    """A dispatcher without its loops."""
    async with AsyncExitStack() as stack:
        yield await open_world(database, stack, dev=False)


async def test_they_are_seen_by_their_tenant_alone(api: World) -> None:
    await api.register("acme")
    await api.register("other")
    cron = {"workflow": "resize", "name": "mine", "expression": "@daily"}
    async with api.client(await api.token("acme")) as acme, api.client(await api.token("other")) as other:
        paths = [
            f"/v1/crons/{(await acme.post('/v1/crons', json=cron)).json()['id']}",
            f"/v1/schedules/{(await acme.post('/v1/schedules', json={'workflow': 'resize', 'in': '1h'})).json()['id']}",
        ]
        assert (await other.post("/v1/crons", json=cron)).status_code == 201
        for path in paths:
            assert (await acme.get(path)).status_code == 200
            assert (await other.get(path)).status_code == 404
            assert (await other.delete(path)).status_code == 404
            assert (await other.post(f"{path}/trigger")).status_code == 404
        assert (await other.patch(paths[0], json={"enabled": False})).status_code == 404
        assert (await other.patch(paths[1], json={"in": "2h"})).status_code == 404
        named = {"ids": [paths[1].rpartition("/")[2]]}
        assert (await other.post("/v1/schedules/delete", json=named)).json()["ids"] == []
        assert (await other.post("/v1/schedules/update", json={**named, "in": "2h"})).json()["ids"] == []
        assert len((await other.get("/v1/crons")).json()["rows"]) == 1
        assert (await other.get("/v1/schedules")).json()["rows"] == []


async def test_a_token_that_reads_does_not_write(api: World) -> None:
    await api.register()
    async with (
        api.client(await api.token("default", "runs:read")) as reader,
        api.client(await api.token("default", "events:write")) as sender,
    ):
        for path in ("/v1/crons", "/v1/schedules"):
            assert (await reader.get(path)).status_code == 200
            assert (await reader.post(path, json={})).json()["code"] == "forbidden"
            assert (await sender.get(path)).json()["code"] == "forbidden"
    async with api.client() as nobody:
        assert (await nobody.get("/v1/crons")).status_code == 401
