"""Unrouted deliveries find their place once the expression is mended; others can be replayed; secrets change without a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.runtime.webhooks.deliveries import Deliveries
from dispatcher.store.webhook_deliveries import StoredDelivery
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
    assert tried == {"matched": 5, "routed": 0, "unrouted": 5, "errors": {"event_key_failed": 5}, "next_cursor": None}
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    done = (await senders.http.post("/v1/webhooks/github/reroute")).json()
    assert done == {"matched": 5, "routed": 5, "unrouted": 0, "errors": {}, "next_cursor": None}
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


async def _replay(senders: Senders, **body: Any) -> dict[str, Any]:
    answer = await senders.http.post("/v1/webhooks/github/replay", json=body)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


def _counts(report: dict[str, Any]) -> list[int]:
    return [report[name] for name in ("matched", "accepted", "unrouted", "duplicate", "refused")]


async def test_many_are_replayed_by_their_ids(senders: Senders) -> None:
    await senders.webhook(rate_limit={"per_second": 1_000, "burst": 1_000})
    made = [(await senders.github(numbered(number))).json()["id"] for number in range(120)]
    await senders.github(numbered(0))
    duplicate = (await senders.deliveries())[0]["id"]
    gone = "dlv_01kt1gw6g0f5609d18vkpbmhap"
    report = await _replay(senders, ids=[*made, duplicate, gone, "nonsense", made[0]])
    assert _counts(report) == [123, 120, 0, 0, 3]
    assert report["errors"] == {"not_replayable": 1, "not_found": 2}
    assert [row["delivery_id"] for row in report["rows"]] == [*made, duplicate, gone, "nonsense"]
    assert len(await senders.events()) == 240
    replays = {row["id"]: row["first_id"] for row in await senders.deliveries(limit=1000) if row["reason"] == "replay"}
    assert replays == {row["id"]: row["delivery_id"] for row in report["rows"][:120]}


async def test_many_are_replayed_by_what_they_are(senders: Senders) -> None:
    await senders.webhook(event_key_expression=NAIVE, filter_expression="input.number != 2")
    for number in range(3):
        await senders.github(numbered(number))
    await _pushes(senders, 2)
    senders.world.clock.advance(timedelta(hours=1))
    since = senders.world.clock.now().isoformat()
    await senders.github(numbered(4))
    assert _counts(await _replay(senders, status=["accepted"], since=since)) == [1, 1, 0, 0, 0]
    assert _counts(await _replay(senders, status=["accepted"], reason=["filtered"])) == [1, 1, 0, 0, 0]
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED, "filter_expression": None})
    report = await _replay(senders, status=["accepted", "unrouted"], until=since)
    assert _counts(report) == [5, 5, 0, 0, 0]
    assert sorted(row["event_key"] for row in report["rows"]) == ["github:pull_request:opened"] * 3 + ["github:push"] * 2
    assert not [row for row in await senders.deliveries(limit=100) if row["status"] == "unrouted"]


async def test_a_replay_goes_on_where_it_ended_and_never_into_itself(senders: Senders) -> None:
    await senders.webhook()
    for number in range(7):
        await senders.github(numbered(number))
    cursor, seen = None, list[str]()
    while cursor is not None or not seen:
        senders.world.clock.advance(timedelta(minutes=1))
        page = await _replay(senders, status=["accepted"], limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [row["delivery_id"] for row in page["rows"]]
        cursor = page["next_cursor"]
    assert len(seen) == len(set(seen)) == 7
    assert len(await senders.events()) == 14
    answer = await senders.http.post("/v1/webhooks/github/replay", json={"status": ["unrouted"], "cursor": "x"})
    assert (answer.status_code, answer.json()["field"]) == (400, "cursor")


async def test_a_replay_with_a_key_is_one_however_often_it_is_sent(senders: Senders) -> None:
    await senders.webhook()
    first = (await senders.github()).json()["id"]
    reports = await asyncio.gather(*(_replay(senders, ids=[first], key="once") for _ in range(10)))
    assert sorted(report["accepted"] for report in reports) == [0] * 9 + [1]
    assert len({report["rows"][0]["id"] for report in reports}) == 1
    assert len(await senders.events()) == 2
    assert len(await senders.deliveries()) == 2
    assert (await _replay(senders, ids=[first], key="twice"))["accepted"] == 1


async def test_a_reroute_is_done_in_parts(senders: Senders) -> None:
    await senders.webhook(event_key_expression=NAIVE)
    await _pushes(senders, 5)
    cursor, looked = None, 0
    while cursor is not None or not looked:
        body = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        part = (await senders.http.post("/v1/webhooks/github/reroute", json=body)).json()
        looked, cursor = looked + part["matched"], part["next_cursor"]
    assert looked == 5, "those that still fail are not looked at twice"


@pytest.mark.parametrize(
    "body",
    [
        {}, {"ids": ["a"], "status": ["accepted"]}, {"status": ["rejected"]}, {"ids": ["a"], "since": "2026-01-01T00:00:00Z"},
        {"ids": ["a"] * 1001}, {"status": ["accepted"], "limit": 0}, {"status": ["accepted"], "key": ""}, {"ids": [1]},
    ],
)  # fmt: skip
async def test_a_replay_says_what_it_means(senders: Senders, body: dict[str, Any]) -> None:
    await senders.webhook()
    answer = await senders.http.post("/v1/webhooks/github/replay", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_value"), answer.text


async def test_a_body_is_kept_once_and_shown_wherever_it_is_asked_for(senders: Senders) -> None:
    """Where the event holds it byte for byte, the delivery does not."""
    await senders.webhook()
    body = numbered(1)
    first = (await senders.github(body)).json()["id"]
    again = (await senders.github(body)).json()["id"]
    assert again == first
    duplicate = (await senders.deliveries())[0]["id"]
    replay = (await senders.http.post(f"/v1/webhooks/github/deliveries/{first}/replay")).json()["id"]
    stored = await senders.world.database.fetch("select id from webhook_deliveries where body is not null")
    assert not stored
    for delivery in (first, duplicate, replay):
        shown = (await senders.http.get(f"/v1/webhooks/github/deliveries/{delivery}")).json()
        assert shown["body_kept"]
        assert (await senders.http.get(f"/v1/webhooks/github/deliveries/{delivery}/body")).content == body


async def test_what_was_routed_since_it_was_chosen_is_not_replayed_besides(senders: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    await senders.webhook(event_key_expression=NAIVE)
    await _pushes(senders, 3)
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    load = Deliveries.load
    chosen = asyncio.Event()

    async def later(deliveries: Deliveries, tenant_id: int, webhook_id: str, delivery_ids: Sequence[str]) -> list[StoredDelivery]:
        if not chosen.is_set():
            chosen.set()
            assert (await senders.http.post("/v1/webhooks/github/reroute")).json()["routed"] == 3
        return await load(deliveries, tenant_id, webhook_id, delivery_ids)

    monkeypatch.setattr(Deliveries, "load", later)
    done = (await senders.http.post("/v1/webhooks/github/reroute")).json()
    assert (done["matched"], done["routed"]) == (3, 3)
    assert len(await senders.events()) == 3
