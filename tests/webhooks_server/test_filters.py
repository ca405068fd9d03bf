"""Filters that go through lists have their say after the delivery is stored and answered; others before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from threading import Event

import pytest

from dispatcher.runtime.webhooks import deliveries, filtering, receiver
from dispatcher.runtime.webhooks.sources import Hook
from tests.api.world import World, open_world
from tests.webhooks_server.senders import PULL_REQUEST, Senders, encoded, github, numbered
from webhooks import Delivery

LABELLED = "input.labels.exists(l, l == 'bug')"
ENDLESS = "input.l.all(a, input.l.all(b, input.l.all(c, input.l.all(d, a + b + c + d >= 0))))"
BUG = encoded({**PULL_REQUEST, "labels": ["bug"]})


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Filters wait for this."""
    go_on, decide = Event(), receiver.filtered

    def slow(hook: Hook, delivery: Delivery) -> Delivery:
        assert not hook.filter_loops or go_on.wait(20)
        return decide(hook, delivery)

    monkeypatch.setattr(deliveries, "filtered", slow)
    yield go_on
    go_on.set()


@asynccontextmanager
async def _successor(senders: Senders) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = await open_world(senders.world.database, stack)
        world.clock.advance(filtering.FORGOTTEN_AFTER + timedelta(seconds=1))
        yield world


async def _status(senders: Senders) -> list[tuple[str, str | None]]:
    rows = (await senders.http.get("/v1/webhooks/github/deliveries")).json()["rows"]
    return [(row["status"], row["event_id"]) for row in rows]


async def test_the_sender_does_not_wait_for_it(senders: Senders, held: Event) -> None:
    await senders.webhook(filter_expression=LABELLED)
    answer = await senders.github(BUG)
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    assert await _status(senders) == [("filtering", None)]
    assert (await senders.github(BUG)).json()["status"] == "duplicate"
    held.set()
    [event] = await senders.events()
    assert (await senders.event(event["id"]))["data"]["labels"] == ["bug"]
    assert ("accepted", event["id"]) in await _status(senders)


async def test_nobody_else_waits_for_it(senders: Senders, held: Event) -> None:
    await senders.webhook(filter_expression=LABELLED)
    await senders.webhook("other")
    for number in range(30):
        await senders.github(encoded({**PULL_REQUEST, "labels": ["bug"], "n": number}))
    assert (await senders.github(numbered(1), name="other")).status_code == 200
    assert [row["type"] for row in (await senders.http.get("/v1/events")).json()["rows"]] == ["pull_request:opened"]
    held.set()
    assert len(await senders.events()) == 31


async def test_one_that_fails_keeps_the_delivery_for_another_time(senders: Senders) -> None:
    await senders.webhook(filter_expression=LABELLED)
    assert (await senders.github()).status_code == 200
    assert await senders.reason() == ("unrouted", "filter_failed")
    await senders.http.patch("/v1/webhooks/github", json={"filter_expression": "!has(input.labels) || " + LABELLED})
    assert (await senders.http.post("/v1/webhooks/github/reroute")).json()["routed"] == 1
    assert len(await senders.events()) == 1


async def test_one_without_end_costs_its_webhook_a_tenth_of_a_second(senders: Senders) -> None:
    await senders.webhook(filter_expression=ENDLESS)
    assert (await senders.github(encoded({"l": list(range(60))}))).status_code == 200
    assert await senders.reason() == ("unrouted", "filter_failed")
    assert "100 ms" in (row := (await senders.deliveries())[0])["detail"] or "steps" in row["detail"]


async def test_what_a_dead_process_left_behind_is_taken_up(senders: Senders, held: Event) -> None:
    await senders.webhook(filter_expression=LABELLED)
    first = (await senders.github(BUG)).json()["id"]
    await senders.world.services.webhooks._filtering.stop()
    held.set()
    async with _successor(senders) as later:
        await later.services.webhooks.refresh(later.clock.now())
        await later.services.webhooks.settled()
    [event] = (await senders.http.get("/v1/events")).json()["rows"]
    assert event["metadata"]["webhook_delivery"] == first
    assert await _status(senders) == [("accepted", event["id"])]


async def test_taken_up_by_two_it_is_one_event(senders: Senders, held: Event) -> None:
    await senders.webhook(filter_expression=LABELLED)
    for number in range(20):
        await senders.github(encoded({**PULL_REQUEST, "labels": ["bug"], "n": number}))
    async with _successor(senders) as later, _successor(senders) as another:
        for world in (later, another):
            await world.services.webhooks.refresh(world.clock.now())
        held.set()
        await asyncio.gather(*(world.services.webhooks.settled() for world in (later, another, senders.world)))
    assert len(await senders.events()) == 20
    assert {status for status, _ in await _status(senders)} == {"accepted"}


async def test_a_webhook_removed_meanwhile_starts_nothing(senders: Senders, held: Event) -> None:
    made = await senders.webhook(filter_expression=LABELLED)
    await senders.github(BUG)
    await senders.world.services.webhooks._filtering.stop()
    await senders.http.delete("/v1/webhooks/github")
    held.set()
    async with _successor(senders) as later:
        await later.services.webhooks.refresh(later.clock.now())
        await later.services.webhooks.settled()
    row = await senders.world.database.fetchrow("select status, reason from webhook_deliveries where webhook_id = $1", made["id"])
    assert row is not None
    assert tuple(row) == ("unrouted", "unknown_webhook")
    assert not await senders.events()


async def test_an_event_of_too_many_runs_waits_to_be_mended(senders: Senders) -> None:
    from dataclasses import replace

    await senders.world.register(handlers=[{"name": f"t{i}", "on_events": ["*"]} for i in range(3)])
    await senders.webhook(filter_expression=LABELLED)
    intake = senders.world.services.intake
    intake._settings = replace(intake._settings, max_fan_out=2)
    await senders.github(BUG)
    assert await senders.reason() == ("unrouted", "too_many_runs")
    intake._settings = replace(intake._settings, max_fan_out=3)
    assert (await senders.http.post("/v1/webhooks/github/reroute")).json()["routed"] == 1


async def test_a_sample_is_shown_with_what_the_filter_said(senders: Senders) -> None:
    await senders.webhook(filter_expression="[1, 2].exists(n, n == input.number)")
    for number, outcome, reason in ((2, "accepted", ""), (3, "accepted", "filtered")):
        sample = {"payload": {"number": number}, "headers": {"x-github-event": "a"}}
        answer = (await senders.http.post("/v1/webhooks/github/test", json={"sample": sample})).json()
        assert (answer["outcome"], answer["reason"] or "", answer["event_id"] is not None) == (outcome, reason, not reason)
    await senders.http.patch("/v1/webhooks/github", json={"filter_expression": "input.nothing.exists(n, n)"})
    failed = (await senders.http.post("/v1/webhooks/github/test", json={})).json()
    assert (failed["outcome"], failed["reason"], failed["event_id"]) == ("unrouted", "filter_failed", None)


def test_only_those_that_go_through_lists_come_later() -> None:
    from dispatcher.runtime.webhooks.sources import _loops

    found: Mapping[str, bool] = {text: _loops(text) for text in ("input.a == 1", LABELLED, "input.a in ['x', 'y']", "size(input.l) > 2")}
    assert found == {"input.a == 1": False, LABELLED: True, "input.a in ['x', 'y']": False, "size(input.l) > 2": False}


async def test_plain_ones_are_decided_on_the_way_in(senders: Senders) -> None:
    await senders.webhook(filter_expression="input.number > 1")
    body = encoded({**PULL_REQUEST, "number": 1})
    assert (await senders.post("github", body, github(body))).status_code == 200
    assert await _status(senders) == [("accepted", None)]
