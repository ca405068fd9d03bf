"""From a request to an event: verified, routed, stored once, answered after the commit."""

from __future__ import annotations

import asyncio
import gzip
import json
from contextlib import AsyncExitStack
from urllib.parse import urlencode

import pytest

from tests.api.world import open_world
from tests.webhooks_server.senders import PULL_REQUEST, SECRET, Senders, encoded, github, numbered, slack, stripe


async def test_a_delivery_becomes_an_event_and_its_runs(senders: Senders) -> None:
    await senders.world.register(handlers=[{"name": "review", "on_events": ["github:pull_request:*"]}])
    made = await senders.webhook(event_key_expression="'github:' + headers['x-github-event'] + ':' + input.action")
    assert made["url"] == "http://localhost:8400/hooks/default/github"
    answer = await senders.github()
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    [row] = await senders.deliveries()
    assert (row["id"], row["status"], row["reason"]) == (answer.json()["id"], "accepted", None)
    assert row["event_key"] == "github:pull_request:opened"
    event = await senders.event(row["event_id"])
    assert (event["type"], event["data"]) == ("github:pull_request:opened", PULL_REQUEST)
    assert event["metadata"] == {"webhook": "github", "webhook_delivery": row["id"]}
    runs = (await senders.http.get("/v1/runs", params={"event_id": row["event_id"]})).json()["rows"]
    assert [run["workflow"] for run in runs] == ["review"]


async def test_the_body_goes_on_and_is_kept_byte_for_byte(senders: Senders) -> None:
    await senders.webhook()
    body = b'{ "action" : "opened",  "n": 1.50, "u": "\\u00e9" }'
    delivery = (await senders.github(body)).json()["id"]
    document = (await senders.http.get(f"/v1/webhooks/github/deliveries/{delivery}")).json()
    assert document["body_kept"]
    assert document["body_bytes"] == len(body)
    download = await senders.http.get(f"/v1/webhooks/github/deliveries/{delivery}/body")
    assert download.content == body
    assert download.headers["content-disposition"].startswith("attachment")
    assert download.headers["content-type"] == "application/octet-stream"
    event = await senders.http.get(f"/v1/events/{document['event_id']}")
    assert body in event.content


async def test_headers_that_are_credentials_are_nowhere(senders: Senders) -> None:
    await senders.webhook("token", "generic", auth={"type": "api_key", "header": "x-key"}, event_key_expression="'t:' + headers['x-kind']")
    headers = {"x-key": SECRET, "x-kind": "a", "authorization": "Bearer abc", "cookie": "c=1", "x-gitlab-token": "t"}
    delivery = (await senders.post("token", b"{}", headers)).json()["id"]
    document = (await senders.http.get(f"/v1/webhooks/token/deliveries/{delivery}")).json()
    assert document["headers"]["x-kind"] == "a"
    assert not {"x-key", "authorization", "cookie", "x-gitlab-token"} & set(document["headers"])
    assert SECRET not in json.dumps(document)


async def test_a_secret_in_the_address_is_not_kept(senders: Senders) -> None:
    await senders.webhook("list", "mailchimp")
    answer = await senders.post(
        "list", b'{"type":"subscribe"}', {"content-type": "application/json"}, f"?{urlencode({'secret': SECRET, 'a': 1})}"
    )
    document = (await senders.http.get(f"/v1/webhooks/list/deliveries/{answer.json()['id']}")).json()
    assert document["query"] == "a=1"


async def test_a_static_payload_wins(senders: Senders) -> None:
    await senders.webhook(static_payload={"action": "static", "environment": "production"}, scope_expression="input.environment")
    await senders.github()
    [row] = await senders.deliveries()
    assert (row["event_key"], row["scope"]) == ("pull_request:static", "production")
    event = await senders.event(row["event_id"])
    assert event["data"] == {**PULL_REQUEST, "action": "static", "environment": "production"}
    assert event["scope"] == "production"


async def test_a_filter_keeps_the_delivery_and_starts_nothing(senders: Senders) -> None:
    await senders.webhook(filter_expression="input.labels.exists(l, l.name == 'bug')")
    assert not await senders.events()
    await senders.github(encoded({**PULL_REQUEST, "labels": [{"name": "docs"}]}))
    assert await senders.reason() == ("accepted", "filtered")
    assert not await senders.events()
    await senders.github(encoded({**PULL_REQUEST, "labels": [{"name": "bug"}]}))
    assert len(await senders.events()) == 1
    answer = await senders.github(encoded({**PULL_REQUEST, "labels": "none"}))
    assert (answer.status_code, await senders.reason()) == (200, ("unrouted", "filter_failed")), "it was answered before it was filtered"


async def test_a_filter_without_loops(senders: Senders) -> None:
    await senders.webhook(filter_expression="input.number > 1")
    assert [(await senders.github(numbered(number))).status_code for number in (1, 2)] == [200, 200]
    assert [row["reason"] for row in await senders.deliveries()] == [None, "filtered"]


async def test_forms_of_slack_and_github(senders: Senders) -> None:
    await senders.webhook("commands", "slack", event_key_expression="'slack:command:' + input.command")
    command = urlencode({"command": "/deploy", "text": "production", "trigger_id": "1.2"}).encode()
    answer = await senders.post("commands", command, slack(command, SECRET, senders.now, "application/x-www-form-urlencoded"))
    assert (answer.status_code, answer.content) == (200, b"")
    [row] = await senders.deliveries("commands")
    assert (row["event_key"], row["sender_id"]) == ("slack:command:/deploy", "1.2")
    assert (await senders.event(row["event_id"]))["data"]["text"] == "production"
    await senders.webhook()
    form = urlencode({"payload": json.dumps(PULL_REQUEST)}).encode()
    await senders.post("github", form, {**github(form), "content-type": "application/x-www-form-urlencoded"})
    assert (await senders.deliveries())[0]["event_key"] == "pull_request:opened"


async def test_a_body_in_gzip_is_verified_as_sent_and_read_as_meant(senders: Senders) -> None:
    await senders.webhook()
    body = gzip.compress(encoded(PULL_REQUEST))
    answer = await senders.post("github", body, {**github(body), "content-encoding": "gzip"})
    assert answer.status_code == 200
    [row] = await senders.deliveries()
    assert (await senders.event(row["event_id"]))["data"] == PULL_REQUEST


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (rb'{"action":"a\u0000b"}', {"action": "a\ufffdb"}),
        (rb'{"action":"a","x":"\ud800"}', {"action": "a", "x": "\ufffd"}),
        (rb'{"action":"a","x":1e-20000}', {"action": "a", "x": 0.0}),
    ],
)
async def test_what_postgres_cannot_hold_is_replaced_and_the_body_kept(senders: Senders, body: bytes, data: object) -> None:
    await senders.webhook(event_key_expression="'key'")
    delivery = (await senders.github(body)).json()["id"]
    [row] = await senders.deliveries()
    assert (row["status"], row["reason"]) == ("accepted", "characters_replaced")
    assert (await senders.event(row["event_id"]))["data"] == data
    assert (await senders.http.get(f"/v1/webhooks/github/deliveries/{delivery}/body")).content == body


async def test_the_same_delivery_again_is_a_duplicate(senders: Senders) -> None:
    await senders.webhook()
    body = encoded(PULL_REQUEST)
    first = (await senders.github(body, delivery="one")).json()["id"]
    again = await senders.github(body, delivery="one")
    assert (again.status_code, again.json()) == (200, {"id": first, "status": "duplicate"})
    other = await senders.github(body, delivery="two")  # GitHub does not sign the id: a replay may change it
    assert other.json() == {"id": first, "status": "duplicate"}
    same_id = await senders.github(numbered(2), delivery="one")
    assert same_id.json()["status"] == "duplicate"
    assert len(await senders.events()) == 1
    rows = await senders.deliveries()
    assert [row["status"] for row in rows] == ["duplicate"] * 3 + ["accepted"]
    assert {row["first_id"] for row in rows[:3]} == {first}


async def test_the_same_body_without_an_id_is_a_repetition_for_a_while(senders: Senders) -> None:
    await senders.webhook("line", "lemon_squeezy", repeat_window="60s")
    import hmac
    from datetime import timedelta

    body = b'{"meta":{"event_name":"order_created"}}'
    headers = {"content-type": "application/json", "x-signature": hmac.digest(SECRET.encode(), body, "sha256").hex()}
    statuses = []
    for wait in (0, 59, 2):
        senders.world.clock.advance(timedelta(seconds=wait))
        statuses.append((await senders.post("line", body, headers)).json()["status"])
    assert statuses == ["accepted", "duplicate", "accepted"]


async def test_a_thousand_at_once_are_one_event(senders: Senders) -> None:
    await senders.webhook(rate_limit={"per_second": 5000, "burst": 5000})
    body = encoded(PULL_REQUEST)
    headers = github(body)
    answers = await asyncio.gather(*(senders.post("github", body, headers) for _ in range(1000)))
    statuses = [answer.json()["status"] for answer in answers]
    assert {answer.status_code for answer in answers} == {200}
    assert (statuses.count("accepted"), statuses.count("duplicate")) == (1, 999)
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await senders.events()) == 1


async def test_a_thousand_at_two_processes_are_one_event(senders: Senders) -> None:
    async with AsyncExitStack() as stack:
        other = await open_world(senders.world.database, stack)
        http = await stack.enter_async_context(other.client())
        await senders.webhook(rate_limit={"per_second": 5000, "burst": 5000})
        body = encoded(PULL_REQUEST)
        headers = github(body)
        posts = (client.post("/hooks/default/github", content=body, headers=headers) for client in (senders.http, http) * 500)
        answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.json()["status"] for answer in answers].count("accepted") == 1
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await senders.events()) == 1


async def test_an_expression_that_fails_keeps_the_delivery(senders: Senders) -> None:
    await senders.webhook(event_key_expression="headers['x-github-event'] + ':' + input.action")
    answer = await senders.github(b'{"ref":"main"}', event="push")
    assert (answer.status_code, answer.json()["status"]) == (202, "unrouted")
    [row] = await senders.deliveries()
    assert (row["status"], row["reason"], row["event_id"]) == ("unrouted", "event_key_failed", None)
    assert "action" in row["detail"]
    assert not await senders.events()
    again = await senders.github(b'{"ref":"main"}', event="push")
    assert again.json()["status"] == "duplicate"


@pytest.mark.parametrize("key", ["'hot:call'", "'call'", "'schedule:new'"])
async def test_a_reserved_key_is_unrouted(senders: Senders, key: str) -> None:
    await senders.webhook(event_key_expression=key)
    assert (await senders.github()).status_code == 202
    assert await senders.reason() == ("unrouted", "event_key_reserved")


async def test_an_event_of_too_many_runs_is_unrouted(senders: Senders) -> None:
    from dataclasses import replace

    await senders.world.register(handlers=[{"name": f"t{i}", "on_events": ["*"]} for i in range(3)])
    await senders.webhook()
    intake = senders.world.services.intake
    intake._settings = replace(intake._settings, max_fan_out=2)
    assert (await senders.github()).status_code == 202
    assert await senders.reason() == ("unrouted", "too_many_runs")


async def test_the_answer_can_be_chosen(senders: Senders) -> None:
    await senders.webhook(response={"status": 201, "body": "<ok/>", "content_type": "text/xml"})
    answer = await senders.github()
    assert (answer.status_code, answer.text, answer.headers["content-type"].partition(";")[0]) == (201, "<ok/>", "text/xml")


async def test_stripe_with_two_secrets(senders: Senders) -> None:
    await senders.webhook("stripe", "stripe", secrets=["whsec_new", "whsec_old"], event_key_expression="'stripe:' + input.type")
    for secret, number in (("whsec_old", 1), ("whsec_new", 2)):
        body = encoded({"id": f"evt_{number}", "type": "payment_intent.succeeded"})
        assert (await senders.post("stripe", body, stripe(body, secret, senders.now))).status_code == 200
        assert (await senders.deliveries("stripe"))[0]["secret_number"] == number
    found = (await senders.http.get("/v1/webhooks/stripe")).json()["secrets"]
    assert [(secret["number"], secret["last_used_at"] is not None) for secret in found] == [(2, True), (1, True)]
