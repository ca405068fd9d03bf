"""Senders ask before they deliver, and are answered; what they ask for is no event."""

from __future__ import annotations

import hmac
import json

import pytest

from tests.webhooks_server.senders import SECRET, Senders, github, slack


async def test_slack_is_answered_once_its_signature_is_checked(senders: Senders) -> None:
    await senders.webhook("slack", "slack")
    body = b'{"type":"url_verification","challenge":"3eZbrw1a"}'
    answer = await senders.post("slack", body, slack(body, SECRET, senders.now))
    assert (answer.status_code, answer.text) == (200, "3eZbrw1a")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await senders.post("slack", body, slack(body, "other", senders.now))).status_code == 401
    assert [row["status"] for row in await senders.deliveries("slack")] == ["rejected", "handshake"]
    assert not await senders.events()


async def test_ping_of_github(senders: Senders) -> None:
    await senders.webhook()
    body = b'{"zen":"Design for failure."}'
    answer = await senders.post("github", body, github(body, event="ping"))
    assert (answer.status_code, answer.content) == (204, b"")
    assert await senders.reason() == ("handshake", "github_ping")


async def test_zoom_gets_a_signed_answer(senders: Senders) -> None:
    await senders.webhook("zoom", "zoom")
    body = b'{"event":"endpoint.url_validation","payload":{"plainToken":"abc"}}'
    signature = hmac.digest(SECRET.encode(), f"v0:{senders.now}:".encode() + body, "sha256").hex()
    headers = {"x-zm-request-timestamp": str(senders.now), "x-zm-signature": f"v0={signature}", "content-type": "application/json"}
    answer = await senders.post("zoom", body, headers)
    assert answer.json() == {"plainToken": "abc", "encryptedToken": hmac.digest(SECRET.encode(), b"abc", "sha256").hex()}


@pytest.mark.parametrize(
    ("source", "params", "method", "query", "headers", "text"),
    [
        ("meta", {"verify_token": "v"}, "GET", "?hub.mode=subscribe&hub.verify_token=v&hub.challenge=42", {}, "42"),
        ("dropbox", {}, "GET", "?challenge=xyz", {}, "xyz"),
        ("microsoft_graph", {}, "POST", "?validationToken=a%20b", {}, "a b"),
        ("trello", {}, "HEAD", "", {}, ""),
        ("cloudevents", {}, "OPTIONS", "", {"webhook-request-origin": "example.com"}, ""),
    ],
)
async def test_unsigned_questions(
    senders: Senders, source: str, params: dict[str, str], method: str, query: str, headers: dict[str, str], text: str
) -> None:
    await senders.webhook("it", source, params=params)
    answer = await senders.http.request(method, f"/hooks/default/it{query}", headers=headers)
    assert (answer.status_code, answer.text) == (200, text)
    assert (await senders.reason("it"))[0] == "handshake"
    if source == "cloudevents":
        assert answer.headers["webhook-allowed-origin"] == "example.com"


async def test_meta_with_another_token(senders: Senders) -> None:
    await senders.webhook("it", "meta", params={"verify_token": "v"})
    answer = await senders.http.get("/hooks/default/it?hub.mode=subscribe&hub.verify_token=w&hub.challenge=42")
    assert answer.status_code == 401
    assert await senders.reason("it") == ("rejected", "mismatch")


async def test_x_gets_an_answer_signed_with_its_secret(senders: Senders) -> None:
    await senders.webhook("it", "x", event_key_expression="'x'")
    answer = await senders.http.get("/hooks/default/it?crc_token=abc")
    import base64

    assert answer.json() == {"response_token": "sha256=" + base64.b64encode(hmac.digest(SECRET.encode(), b"abc", "sha256")).decode()}


async def test_a_secret_the_sender_tells_is_kept_and_shown_until_it_is_used(senders: Senders) -> None:
    await senders.webhook("notion", "notion", secrets=[])
    told = "secret_" + "a" * 32
    body = json.dumps({"verification_token": told}).encode()
    assert (await senders.post("notion", body, {"content-type": "application/json"})).status_code == 200
    [secret] = (await senders.http.get("/v1/webhooks/notion")).json()["secrets"]
    assert secret["secret"] == told
    delivery = b'{"id":"1","type":"page.created"}'
    signed = {"content-type": "application/json", "x-notion-signature": "sha256=" + hmac.digest(told.encode(), delivery, "sha256").hex()}
    assert (await senders.post("notion", delivery, signed)).json()["status"] == "accepted"
    await senders.world.services.webhooks.drain()
    [secret] = (await senders.http.get("/v1/webhooks/notion")).json()["secrets"]
    assert "secret" not in secret
    other = json.dumps({"verification_token": "secret_" + "b" * 32}).encode()
    assert (await senders.post("notion", other, {"content-type": "application/json"})).status_code == 401


async def test_asana_gets_its_secret_back(senders: Senders) -> None:
    await senders.webhook("asana", "asana", secrets=[])
    answer = await senders.post("asana", b"{}", {"x-hook-secret": "b537207f20cbfa02357cf448134da559"})
    assert (answer.status_code, answer.headers["x-hook-secret"]) == (200, "b537207f20cbfa02357cf448134da559")
    body = b'{"events":[]}'
    headers = {"x-hook-signature": hmac.digest(b"b537207f20cbfa02357cf448134da559", body, "sha256").hex()}
    assert (await senders.post("asana", body, headers)).status_code == 200
    assert (await senders.deliveries("asana"))[0]["event_key"] == "heartbeat"
