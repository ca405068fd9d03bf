"""Unrouted deliveries find their place once the expression is mended; others can be replayed; secrets change without a refusal."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

from tests.api.world import open_world
from tests.webhooks_server.senders import SECRET, Senders, encoded, github, numbered

NAIVE = "'github:' + headers['x-github-event'] + ':' + input.action"
MENDED = "'github:' + headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')"


async def _pushes(senders: Senders, count: int) -> None:
    for number in range(count):
        assert (await senders.github(encoded({"ref": "main", "n": number}), event="push")).status_code == 202


async def test_a_mended_expression_brings_them_home(senders: Senders) -> None:
    await senders.world.register(handlers=[{"name": "deploy", "on_events": ["github:push"]}])
    await senders.webhook(event_key_expression=NAIVE)
    await _pushes(senders, 5)
    await senders.github()
    tried = (await senders.http.post("/v1/webhooks/github/reroute")).json()
    assert tried == {"matched": 5, "routed": 0, "unrouted": 5, "errors": {"event_key_failed": 5}}
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    done = (await senders.http.post("/v1/webhooks/github/reroute")).json()
    assert done == {"matched": 5, "routed": 5, "unrouted": 0, "errors": {}}
    rows = await senders.deliveries()
    assert [row["status"] for row in rows] == ["accepted"] * 6
    assert len({row["event_id"] for row in rows}) == 6
    events = await senders.events()
    assert [event["runs"] for event in events if event["type"] == "github:push"] == [1] * 5
    assert (await senders.http.post("/v1/webhooks/github/reroute")).json()["matched"] == 0


async def test_by_time(senders: Senders) -> None:
    await senders.webhook(event_key_expression=NAIVE)
    await _pushes(senders, 2)
    senders.world.clock.advance(timedelta(hours=1))
    since = senders.world.clock.now()
    await senders.github(b'{"ref":"later"}', event="push")
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    done = (await senders.http.post("/v1/webhooks/github/reroute", json={"since": since.isoformat()})).json()
    assert (done["matched"], done["routed"]) == (1, 1)
    done = (await senders.http.post("/v1/webhooks/github/reroute", json={"until": since.isoformat()})).json()
    assert (done["matched"], done["routed"]) == (2, 2)


async def test_routed_by_many_at_once_they_are_one_event_each(senders: Senders) -> None:
    await senders.webhook(event_key_expression=NAIVE)
    await _pushes(senders, 20)
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    await asyncio.gather(*(senders.http.post("/v1/webhooks/github/reroute") for _ in range(5)))
    assert len(await senders.events()) == 20
    rows = await senders.deliveries(limit=100)
    known = {event["id"] for event in await senders.events()}
    assert {row["event_id"] for row in rows} == known


async def test_replaying_an_accepted_delivery_makes_one_more_event(senders: Senders) -> None:
    await senders.webhook()
    first = (await senders.github()).json()["id"]
    replay = (await senders.http.post(f"/v1/webhooks/github/deliveries/{first}/replay")).json()
    assert (replay["status"], replay["event_key"]) == ("accepted", "pull_request:opened")
    rows = await senders.deliveries()
    assert [(row["id"], row["first_id"], row["reason"]) for row in rows] == [(replay["id"], first, "replay"), (first, None, None)]
    assert len(await senders.events()) == 2
    body = await senders.http.get(f"/v1/webhooks/github/deliveries/{replay['id']}/body")
    assert body.content == (await senders.http.get(f"/v1/webhooks/github/deliveries/{first}/body")).content
    again = (await senders.http.post(f"/v1/webhooks/github/deliveries/{replay['id']}/replay")).json()
    assert (await senders.deliveries())[0]["first_id"] == first
    assert again["id"] != replay["id"]


async def test_replaying_an_unrouted_one_brings_it_home(senders: Senders) -> None:
    await senders.webhook(event_key_expression=NAIVE)
    await _pushes(senders, 1)
    [row] = await senders.deliveries()
    path = f"/v1/webhooks/github/deliveries/{row['id']}/replay"
    assert (await senders.http.post(path)).json()["status"] == "unrouted"
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    became = (await senders.http.post(path)).json()
    assert (became["id"], became["status"], became["event_key"]) == (row["id"], "accepted", "github:push")
    assert len(await senders.events()) == 1


async def test_what_was_refused_is_not_replayed(senders: Senders) -> None:
    await senders.webhook()
    body = numbered(1)
    await senders.post("github", body, github(body, "other"))
    await senders.github(body)
    await senders.github(body)
    for row in await senders.deliveries():
        answer = await senders.http.post(f"/v1/webhooks/github/deliveries/{row['id']}/replay")
        assert answer.status_code == (200 if row["status"] == "accepted" else 409), row["status"]


async def test_secrets_change_under_load_without_a_refusal(senders: Senders) -> None:
    """The new secret is added, the sender switches over, the old one is removed once nothing has used it."""
    await senders.webhook(rate_limit={"per_second": 10_000, "burst": 10_000})
    secret, statuses, number = SECRET, list[int](), 0
    switched = asyncio.Event()

    async def sender() -> None:
        nonlocal number
        while number < 400:
            number += 1
            body = numbered(number)
            statuses.append((await senders.post("github", body, github(body, secret))).status_code)
            if number > 200:
                switched.set()

    tasks = [asyncio.create_task(sender()) for _ in range(8)]
    added = (await senders.http.post("/v1/webhooks/github/secrets", json={})).json()
    secret = added["secret"]
    await switched.wait()
    old = next(s for s in (await senders.http.get("/v1/webhooks/github")).json()["secrets"] if s["number"] != added["number"])
    await asyncio.gather(*tasks)
    assert (await senders.http.delete(f"/v1/webhooks/github/secrets/{old['number']}")).status_code == 204
    assert set(statuses) == {200}
    assert len(statuses) >= 400
    body = numbered(9_999)
    assert (await senders.post("github", body, github(body))).status_code == 401
    assert (await senders.post("github", body, github(body, secret))).status_code == 200


async def test_a_secret_added_at_one_process_is_known_at_the_other(senders: Senders) -> None:
    """No hint, no poll: the first delivery signed with it makes the other process look."""
    await senders.webhook(rate_limit={"per_second": 10_000, "burst": 10_000})
    async with AsyncExitStack() as stack:
        other = await open_world(senders.world.database, stack)
        http = await stack.enter_async_context(other.client())
        secret, statuses = SECRET, list[int]()

        async def send(number: int) -> None:
            body = numbered(number)
            statuses.append((await http.post("/hooks/default/github", content=body, headers=github(body, secret))).status_code)

        for turn in range(5):
            await asyncio.gather(*(send(100 * turn + number) for number in range(50)))
            secret = (await senders.http.post("/v1/webhooks/github/secrets", json={})).json()["secret"]
            other.clock.advance(timedelta(milliseconds=51))
            await asyncio.gather(*(send(100 * turn + number) for number in range(50, 100)))
        await other.services.webhooks.drain()
    assert statuses == [200] * 500


async def test_an_old_secret_ends_by_itself(senders: Senders) -> None:
    await senders.webhook()
    await senders.http.post("/v1/webhooks/github/secrets", json={"secret": "new", "overlap": "1h"})
    for hours, body, status in ((0, numbered(1), 200), (0.9, numbered(2), 200), (0.2, numbered(3), 401)):
        senders.world.clock.advance(timedelta(hours=hours))
        assert (await senders.post("github", body, github(body))).status_code == status
    body = numbered(4)
    assert (await senders.post("github", body, github(body, "new"))).status_code == 200
    await senders.world.services.webhooks.drain()
    shown = (await senders.http.get("/v1/webhooks/github")).json()["secrets"]
    assert [(s["number"], s["active"], s["last_used_at"] is not None) for s in shown] == [(2, True, True), (1, False, True)]
