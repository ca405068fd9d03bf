"""/v1/webhooks: what can be made and changed, what is refused with the field named, and trying a webhook with a sample."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from tests.webhooks_server.senders import SECRET, Senders, encoded, github, numbered
from webhooks import PROVIDERS

GENERIC: dict[str, Any] = {"auth": {"type": "none"}, "event_key_expression": "'key'"}


async def test_made_shown_changed_removed(senders: Senders) -> None:
    made = await senders.webhook(params={"a": "1"}, static_payload={"x": 1}, scope_expression="headers['x-org']")
    shown = (await senders.http.get("/v1/webhooks/github")).json()
    assert {key: value for key, value in made.items() if key != "sample"} == shown
    assert SECRET not in json.dumps(shown)
    assert shown["event_key_expression"] == PROVIDERS["github"].event_key
    changed = (
        await senders.http.patch(
            "/v1/webhooks/github",
            json={"scope_expression": None, "event_key_expression": "'k'", "rate_limit": {"per_second": 1, "burst": 2}},
        )
    ).json()
    assert (changed["scope_expression"], changed["event_key_expression"], changed["static_payload"]) == (None, "'k'", {"x": 1})
    assert changed["rate_limit"] == {"per_second": 1, "burst": 2}
    listed = (await senders.http.get("/v1/webhooks", params={"source": "github"})).json()["rows"]
    assert [row["name"] for row in listed] == ["github"]
    assert not (await senders.http.get("/v1/webhooks", params={"name": "other"})).json()["rows"]
    assert (await senders.http.delete("/v1/webhooks/github")).status_code == 204
    for answer in (await senders.http.get("/v1/webhooks/github"), await senders.http.delete("/v1/webhooks/github")):
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_webhook")
    assert (await senders.github()).status_code == 401


async def test_one_name_once(senders: Senders) -> None:
    await senders.webhook()
    answer = await senders.http.post("/v1/webhooks", json={"name": "github", "source": "stripe"})
    assert (answer.status_code, answer.json()["code"]) == (409, "webhook_exists")


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"name": "a/b", "source": "github"}, "invalid_value", "name"),
        ({"name": "a", "source": "gitub"}, "invalid_value", "source"),
        ({"name": "a", "source": "generic"}, "invalid_value", "auth"),
        ({"name": "a", "source": "github", "auth": {"type": "none"}}, "invalid_value", "auth"),
        ({"name": "a", "source": "generic", "auth": {"type": "none"}}, "invalid_value", "event_key_expression"),
        ({"name": "a", "source": "generic", "event_key_expression": "'k'", "auth": {"type": "hmac"}}, "invalid_value", "auth.header"),
        ({"name": "a", "source": "generic", "event_key_expression": "'k'", "auth": {"type": "x"}}, "invalid_value", "auth"),
        ({"name": "a", "source": "github", "secrets": [""]}, "invalid_value", "secrets[0]"),
        ({"name": "a", "source": "standard_webhooks", "secrets": ["whsec_?"]}, "invalid_value", "secrets"),
        ({"name": "a", "source": "discord", "secrets": ["00"]}, "invalid_value", "secrets"),
        ({"name": "a", "source": "github", "secrets": [str(n) for n in range(9)]}, "invalid_value", "secrets"),
        ({"name": "a", "source": "sns"}, "invalid_value", "params"),
        ({"name": "a", "source": "github", "max_body_bytes": 10_485_761}, "invalid_value", "max_body_bytes"),
        ({"name": "a", "source": "github", "rate_limit": {"per_second": 0, "burst": 1}}, "invalid_value", "rate_limit"),
        ({"name": "a", "source": "github", "response": {"status": 302}}, "invalid_value", "response.status"),
        ({"name": "a", "source": "github", "response": {"content_type": "a\r\nb: c"}}, "invalid_value", "response.content_type"),
        ({"name": "a", "source": "github", "repeat_window": "soon"}, "invalid_value", "repeat_window"),
        ({"name": "a", "source": "github", "event_key_expression": "input.("}, "invalid_expression", "event_key_expression"),
        ({"name": "a", "source": "github", "event_key_expression": "'" + "\\n" * 200}, "invalid_expression", "event_key_expression"),
        ({"name": "a", "source": "github", "scope_expression": "output.x"}, "invalid_expression", "scope_expression"),
        ({"name": "a", "source": "github", "event_key_expression": "input.a.map(x, x)[0]"}, "invalid_expression", "event_key_expression"),
        ({"name": "a", "source": "github", "secret": "x"}, "unknown_field", "secret"),
    ],
)  # fmt: skip
async def test_refused(senders: Senders, body: dict[str, Any], code: str, field: str) -> None:
    answer = await senders.http.post("/v1/webhooks", json=body)
    assert (answer.json()["code"], answer.json()["field"]) == (code, field), answer.text
    assert not (await senders.http.get("/v1/webhooks")).json()["rows"]


async def test_saved_expressions_are_tried_and_the_key_is_shown(senders: Senders) -> None:
    made = await senders.webhook(
        event_key_expression="'github:' + headers['x-github-event'] + ':' + input.action", filter_expression="input.number > 1"
    )
    assert made["sample"] == {"event_key": "github:pull_request:opened", "scope": None, "passes": True, "errors": {}, "warnings": []}
    changed = (
        await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": "headers['X-GitHub-Event'] + input.nothing"})
    ).json()
    assert changed["sample"]["event_key"] is None
    assert changed["sample"]["errors"]["event_key_expression"]["code"] == "missing_key"
    assert changed["sample"]["warnings"]
    sample = {"payload": {"a": [1]}, "headers": {"X-Kind": "b"}}
    changed = (await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": "headers['x-kind']", "sample": sample})).json()
    assert changed["sample"]["event_key"] == "b"


SIGNABLE = sorted(name for name, provider in PROVIDERS.items() if provider.scheme.kind in {"hmac", "token", "basic"})
KEYS = {"base64": "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "hex": "4468629C9C2C4B2C"}


@pytest.mark.parametrize("source", SIGNABLE)
async def test_a_sample_of_every_sender_who_can_be_imitated(senders: Senders, source: str) -> None:
    """Signed with the webhook's own secret, taken in on the real way, routed by the sender's usual expression; each time anew."""
    provider = PROVIDERS[source]
    params = dict.fromkeys(provider.params, "value")
    more: dict[str, Any] = {} if provider.event_key else {"event_key_expression": "'key'"}
    made = await senders.webhook("it", source, secrets=[KEYS.get(provider.scheme.key, SECRET)], params=params, **more)
    known, answer = made["sample"]["event_key"], dict[str, Any]()
    for _ in range(2):
        answer = (await senders.http.post("/v1/webhooks/it/test", json={})).json()
        assert (answer["outcome"], answer["reason"]) in {("accepted", None), ("unrouted", "event_key_failed")}, answer
        assert (answer["outcome"] == "accepted") == (known is not None), (answer, made["sample"])
    if source in {"github", "stripe", "slack", "shopify", "linear", "twilio", "hubspot", "adyen", "mailgun"}:
        assert answer["event_key"] == known
        assert answer["event_id"]


async def test_a_sample_of_ones_own(senders: Senders) -> None:
    await senders.world.register(handlers=[{"name": "review", "on_events": ["issues:*"]}])
    await senders.webhook()
    sample = {"payload": {"action": "closed"}, "headers": {"x-github-event": "issues"}}
    answer = (await senders.http.post("/v1/webhooks/github/test", json={"sample": sample})).json()
    assert (answer["status"], answer["event_key"], len(answer["runs"])) == (200, "issues:closed", 1)
    assert json.loads(answer["answer"])["id"] == answer["delivery_id"]


async def test_who_cannot_be_imitated(senders: Senders) -> None:
    await senders.webhook("discord", "discord", secrets=["00" * 32])
    await senders.webhook("empty", "github", secrets=[])
    for name in ("discord", "empty"):
        answer = await senders.http.post(f"/v1/webhooks/{name}/test", json={})
        assert (answer.status_code, answer.json()["code"]) == (422, "not_signable")


async def test_secrets(senders: Senders) -> None:
    await senders.webhook()
    assert (await senders.http.post("/v1/webhooks/github/secrets", json={"secret": "two"})).json() == {"number": 2}
    for number in range(3, 9):
        assert (await senders.http.post("/v1/webhooks/github/secrets", json={})).json()["number"] == number
    answer = await senders.http.post("/v1/webhooks/github/secrets", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_secrets")
    for wanted, status in (("2", 204), ("2", 404), ("x", 404)):
        assert (await senders.http.delete(f"/v1/webhooks/github/secrets/{wanted}")).status_code == status
    await senders.webhook("clerk", "clerk", secrets=["whsec_" + KEYS["base64"]])
    assert (await senders.http.post("/v1/webhooks/clerk/secrets", json={})).json()["field"] == "secret"


async def test_secrets_are_sealed(senders: Senders) -> None:
    await senders.webhook()
    rows = await senders.world.database.fetch("select sealed from webhook_secrets")
    assert len(rows) == 1
    assert SECRET.encode() not in rows[0]["sealed"]


async def test_pages_of_deliveries(senders: Senders) -> None:
    await senders.webhook()
    for number in range(5):
        await senders.github(numbered(number))
        senders.world.clock.advance(timedelta(seconds=1))
    await senders.github(numbered(0))
    await senders.post("github", b"{}", {})
    everything = [row["id"] for row in await senders.deliveries(limit=100)]
    for order, wanted in (("newest", everything), ("oldest", everything[::-1])):
        found, cursor = list[str](), None
        while cursor is not None or not found:
            params = {"limit": "2", "order": order, **({"cursor": cursor} if cursor else {})}
            page = (await senders.http.get("/v1/webhooks/github/deliveries", params=params)).json()
            found += [row["id"] for row in page["rows"]]
            cursor = page["next_cursor"]
        assert found == wanted
    some = await senders.deliveries(status="duplicate,rejected")
    assert [row["status"] for row in some] == ["rejected", "duplicate"]
    since = (senders.world.clock.now() - timedelta(seconds=1)).isoformat()
    assert len(await senders.deliveries(since=since)) == 3
    assert (await senders.http.get("/v1/webhooks/github/deliveries", params={"status": "lost"})).status_code == 400


async def test_unknown_deliveries(senders: Senders) -> None:
    await senders.webhook()
    await senders.webhook("other")
    delivery = (await senders.github()).json()["id"]
    for path in (f"other/deliveries/{delivery}", "github/deliveries/dlv_x", "github/deliveries/dlv_01ja3z9k8q0000000000000000"):
        answer = await senders.http.get(f"/v1/webhooks/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_one_tenants_webhooks_are_not_anothers(senders: Senders) -> None:
    await senders.webhook()
    token = await senders.world.token("other")
    async with senders.world.client(token) as http:
        assert not (await http.get("/v1/webhooks")).json()["rows"]
        assert (await http.get("/v1/webhooks/github")).status_code == 404
        assert (await http.get("/v1/webhooks/github/deliveries")).status_code == 404
        assert (await http.post("/v1/webhooks/github/test", json={})).status_code == 404
        assert (await http.post("/v1/webhooks", json={"name": "github", "source": "github", "secrets": ["other"]})).status_code == 201
    body = encoded({"action": "a"})
    assert (await senders.http.post("/hooks/other/github", content=body, headers=github(body))).status_code == 401
    assert (await senders.http.post("/hooks/other/github", content=body, headers=github(body, "other"))).status_code == 200
    assert not await senders.events()


async def test_scopes_of_tokens(senders: Senders) -> None:
    await senders.webhook()
    token = await senders.world.token("default", "webhooks:read")
    async with senders.world.client(token) as http:
        assert (await http.get("/v1/webhooks/github")).status_code == 200
        assert (await http.delete("/v1/webhooks/github")).json()["code"] == "forbidden"


async def test_what_another_process_changed_is_known(senders: Senders) -> None:
    """A webhook made elsewhere, and a secret added elsewhere, are found when they are first asked for."""
    await senders.webhook()
    elsewhere = senders.world.services.webhooks
    sources, versions = elsewhere.sources._hooks, dict(elsewhere.sources._versions)
    elsewhere.sources._hooks = {}
    elsewhere.sources._versions = {tenant: version - 1 for tenant, version in versions.items()}
    senders.world.clock.advance(timedelta(seconds=1))
    assert (await senders.github()).status_code == 200
    await senders.http.post("/v1/webhooks/github/secrets", json={"secret": "new"})
    elsewhere.sources._hooks = sources
    elsewhere.sources._versions = {tenant: version - 1 for tenant, version in versions.items()}
    senders.world.clock.advance(timedelta(seconds=1))
    body = numbered(2)
    assert (await senders.post("github", body, github(body, "new"))).status_code == 200
