"""Streams, logs, exports, bulk actions, retention and workflows of one tenant are nobody else's."""

from __future__ import annotations

from tests.api.world import World

RUNS = ("stream", "logs", "export")


async def test_what_runs_say_is_seen_by_their_tenant_alone(serving: World) -> None:
    await serving.register("acme")
    await serving.register("other")
    async with serving.client(await serving.token("acme")) as acme, serving.client(await serving.token("other")) as other:
        event = (await acme.post("/v1/events", json={"type": "user:created", "data": {}})).json()
        (run_id,) = event["runs"]
        paths = [f"/v1/streams/{event['stream_id']}/subscribe", *[f"/v1/runs/{run_id}/{of}" for of in RUNS]]
        for path in paths:
            assert (await other.get(path)).status_code == 404
            assert (await acme.head(path)).status_code == 200
        bulk = (await acme.post("/v1/runs/cancel", json={"ids": [run_id], "dry_run": False})).json()
        assert bulk["matched"] == 1
        assert (await other.post("/v1/runs/cancel", json={"ids": [run_id]})).json()["matched"] == 0
        assert (await other.get(f"/v1/bulk/{bulk['id']}")).status_code == 404
        assert (await other.post(f"/v1/bulk/{bulk['id']}/cancel", json={})).status_code == 404
        assert (await other.get("/v1/stats/runs")).json()["queued"] == 0
        assert (await acme.get("/v1/stats/runs")).json()["queued"] == 1
        assert (await other.put("/v1/retention", json={"days": 1})).json()["days"] == 1
        assert (await acme.get("/v1/retention")).json()["days"] is None
        assert (await other.delete("/v1/workflows/resize")).status_code == 204
        assert (await acme.get("/v1/workflows/resize")).status_code == 200


async def test_a_token_that_reads_neither_removes_nor_keeps_less(serving: World) -> None:
    await serving.register()
    async with serving.client(await serving.token("default", "runs:read", "endpoints:read")) as reader:
        assert (await reader.get("/v1/stats/runs")).status_code == 200
        assert (await reader.delete("/v1/workflows/resize")).json()["code"] == "forbidden"
        assert (await reader.put("/v1/retention", json={"days": 1})).json()["code"] == "forbidden"
    async with serving.client() as nobody:
        assert (await nobody.delete("/v1/workflows/resize")).status_code == 401
