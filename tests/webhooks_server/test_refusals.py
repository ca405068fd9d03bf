"""What is refused: each with its code, its reason written down, and nothing of it stored as an event."""

from __future__ import annotations

import gzip
import hmac
import statistics
import zlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import pytest

from dispatcher.clock import monotonic
from tests.webhooks_server.senders import PULL_REQUEST, SECRET, Senders, encoded, github, numbered, slack, stripe

BODY = encoded(PULL_REQUEST)


def _spoiled(**changes: str | None) -> dict[str, str]:
    headers = {**github(BODY), **{name.replace("_", "-"): value for name, value in changes.items() if value is not None}}
    return {name: value for name, value in headers.items() if changes.get(name.replace("-", "_"), "") is not None}


REFUSALS: dict[str, tuple[bytes, dict[str, str] | list[tuple[str, str]], int, str]] = {
    "wrong_secret": (BODY, github(BODY, "other"), 401, "mismatch"),
    "tampered_body": (b'{"action":"closed"}', github(BODY), 401, "mismatch"),
    "no_signature": (BODY, _spoiled(x_hub_signature_256=None), 401, "missing_signature"),
    "another_prefix": (BODY, _spoiled(x_hub_signature_256="sha1=" + "0" * 40), 401, "malformed"),
    "not_hex": (BODY, _spoiled(x_hub_signature_256="sha256=" + "z" * 64), 401, "malformed"),
    "two_signatures": (BODY, [*github(BODY).items(), ("x-hub-signature-256", "sha256=" + "0" * 64)], 401, "duplicate"),
    "not_json": (b"{", github(b"{"), 400, "invalid_body"),
    "not_utf8": (b'{"a":"\xff"}', github(b'{"a":"\xff"}'), 400, "invalid_body"),
    "two_encodings": (BODY, {**github(BODY), "content-encoding": "gzip, gzip"}, 415, "content_encoding"),
    "unknown_encoding": (BODY, {**github(BODY), "content-encoding": "br"}, 415, "content_encoding"),
    "not_gzip": (BODY, {**github(BODY), "content-encoding": "gzip"}, 400, "invalid_body"),
}


@pytest.mark.parametrize("case", REFUSALS, ids=str)
async def test_refused(senders: Senders, case: str) -> None:
    await _is_refused(senders, *REFUSALS[case])


async def test_so_is_a_bomb(senders: Senders) -> None:
    bomb = gzip.compress(bytes(200_000_000), 9)
    await _is_refused(senders, bomb, {**github(bomb), "content-encoding": "gzip"}, 413, "too_large")


async def _is_refused(senders: Senders, body: bytes, headers: dict[str, str] | list[tuple[str, str]], status: int, reason: str) -> None:
    await senders.webhook()
    answer = await senders.post("github", body, headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == ("unverified" if status == 401 else reason)
    assert await senders.reason() == ("rejected", reason)
    assert not await senders.events()
    assert (await senders.github()).json()["status"] == "accepted", "a refusal is in nobody's way"


@pytest.mark.parametrize(("age", "reason"), [(0, None), (299, None), (301, "stale"), (-299, None), (-301, "stale")])
async def test_times_are_held_to_both_ways(senders: Senders, age: int, reason: str | None) -> None:
    await senders.webhook("stripe", "stripe")
    body = b'{"id":"evt_1","type":"a"}'
    answer = await senders.post("stripe", body, stripe(body, SECRET, senders.now - age))
    assert answer.status_code == (401 if reason else 200)
    assert (await senders.reason("stripe"))[1] == reason


async def test_a_body_larger_than_allowed(senders: Senders) -> None:
    await senders.webhook(max_body_bytes=1000)
    body = encoded({"action": "a", "x": "x" * 1000})
    answer = await senders.post("github", body, github(body))
    assert (answer.status_code, answer.json()["code"], answer.headers["connection"]) == (413, "too_large", "close")
    [row] = await senders.deliveries()
    assert (row["status"], row["reason"], row["body_bytes"]) == ("rejected", "too_large", len(body))
    await senders.http.patch("/v1/webhooks/github", json={"max_body_bytes": 10_485_760})
    assert (await senders.post("github", body, github(body))).status_code == 200


async def test_two_hundred_megabytes_without_a_length(senders: Senders) -> None:
    """Read to its bound and a little on, never as a whole."""
    await senders.webhook()
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1_000_000
            yield bytes(1_000_000)

    answer = await senders.http.post("/hooks/default/github", content=pieces(), headers=github(b""))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert (await senders.deliveries())[0]["reason"] == "too_large"


async def test_arrays_and_other_bodies_are_taken(senders: Senders) -> None:
    await senders.webhook(event_key_expression="'key'")
    for body, headers, data in (
        (b'[{"a":1}]', {}, [{"a": 1}]),
        (b"", {}, {}),
        (b"plain", {"content-type": "text/plain"}, {"raw": "plain"}),
        (b"\xff\x00", {"content-type": "application/octet-stream"}, {"raw_base64": "/wA="}),
    ):
        answer = await senders.post("github", body, {**github(body), **headers})
        assert answer.status_code == 200
        [row] = [row for row in await senders.deliveries() if row["id"] == answer.json()["id"]]
        assert (await senders.event(row["event_id"]))["data"] == data


async def test_an_unknown_webhook_is_answered_as_a_wrong_secret(senders: Senders) -> None:
    await senders.webhook()
    known = await senders.post("github", BODY, github(BODY, "other"))
    unknown = await senders.post("nobody", BODY, github(BODY, "other"))
    elsewhere = await senders.http.post("/hooks/nowhere/github", content=BODY, headers=github(BODY))
    for answer in (unknown, elsewhere):
        assert (answer.status_code, answer.content, answer.headers) == (known.status_code, known.content, known.headers)
    large = bytes(2_000_000)
    first, second = [(await senders.post(name, large, {})) for name in ("nobody", "github")]
    assert (first.status_code, first.content) == (second.status_code, second.content)


@pytest.mark.slow
async def test_and_takes_as_long(senders: Senders) -> None:
    """Medians within a third of each other: both read the body, hash it, and answer the same."""
    await senders.webhook(rate_limit={"per_second": 10_000, "burst": 10_000})
    senders.world.services.webhooks.sources.rereading.pace = 0  # waiting for others would hide a difference
    body = numbered(1) + b" " * 20_000
    headers = github(body, "other")
    times: dict[str, list[float]] = {"github": [], "nobody": []}
    for name in ("github", "nobody") * 400:
        started = monotonic()
        await senders.post(name, body, headers)
        times[name].append(monotonic() - started)
    known, unknown = (statistics.median(times[name][50:]) for name in ("github", "nobody"))
    assert 0.67 < known / unknown < 1.5, f"{known * 1e6:.0f} µs and {unknown * 1e6:.0f} µs"


async def test_a_webhook_without_a_secret_refuses(senders: Senders) -> None:
    await senders.webhook(secrets=[])
    assert (await senders.github()).status_code == 401
    assert await senders.reason() == ("rejected", "no_secret")


async def test_methods(senders: Senders) -> None:
    await senders.webhook("open", "generic", auth={"type": "none"}, event_key_expression="'key'", secrets=[])
    answer = await senders.http.get("/hooks/default/open")
    assert (answer.status_code, answer.json()["code"], answer.headers["allow"]) == (405, "method", "POST, PUT")
    assert (await senders.http.delete("/hooks/default/open")).status_code == 405
    assert (await senders.http.put("/hooks/default/open", content=b"{}")).status_code == 200


async def test_too_many_deliveries_are_asked_to_wait(senders: Senders) -> None:
    await senders.webhook(rate_limit={"per_second": 2, "burst": 3})
    statuses = [(await senders.github(numbered(number))).status_code for number in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    late = await senders.github(numbered(9))
    assert (late.json()["code"], late.headers["retry-after"]) == ("rate_limited", "1")
    assert await senders.reason() == ("rejected", "rate_limited")
    senders.world.clock.advance(timedelta(seconds=1))
    assert [(await senders.github(numbered(number))).status_code for number in (3, 4, 5)] == [200, 200, 429]
    assert len(await senders.events()) == 5


async def test_strangers_use_up_nothing(senders: Senders) -> None:
    await senders.webhook(rate_limit={"per_second": 1, "burst": 1})
    for _ in range(20):
        assert (await senders.post("github", BODY, github(BODY, "other"))).status_code == 401
    assert (await senders.github()).status_code == 200


async def test_of_a_flood_of_refusals_a_sample_is_written_down(senders: Senders) -> None:
    await senders.webhook()
    large = BODY + b" " * 10_000
    for _ in range(70):
        await senders.post("github", large, github(large, "other"))
    rows = await senders.deliveries(status="rejected", limit=1000)
    assert len(rows) == 50
    assert (rows[0]["body_bytes"], rows[0]["event_id"]) == (len(large), None)
    kept = await senders.http.get(f"/v1/webhooks/github/deliveries/{rows[0]['id']}/body")
    assert kept.content == large[:4096]
    metrics = (await senders.http.get("/metrics")).text
    assert 'dispatcher_webhook_deliveries_total{status="rejected"} 70' in metrics
    assert "dispatcher_webhook_unrecorded_total 20" in metrics


async def test_deflate_is_read_too(senders: Senders) -> None:
    await senders.webhook()
    body = zlib.compress(BODY)
    assert (await senders.post("github", body, {**github(body), "content-encoding": "deflate"})).status_code == 200


async def test_a_replayed_slack_request_under_another_trigger_id(senders: Senders) -> None:
    """Slack signs its ids: one that was changed does not verify."""
    await senders.webhook("slack", "slack")
    body = b'{"type":"event_callback","event_id":"Ev1","event":{"type":"app_mention"}}'
    headers = slack(body, SECRET, senders.now)
    assert (await senders.post("slack", body, headers)).status_code == 200
    assert (await senders.post("slack", body.replace(b"Ev1", b"Ev2"), headers)).status_code == 401
    assert (await senders.post("slack", body, headers)).status_code == 200
    assert [row["status"] for row in await senders.deliveries("slack")] == ["duplicate", "rejected", "accepted"]


async def test_credentials_of_every_generic_kind(senders: Senders) -> None:
    await senders.webhook("basic", "generic", auth={"type": "basic", "username": "u"}, event_key_expression="'key'", secrets=["p:w"])
    await senders.webhook("bearer", "generic", auth={"type": "bearer"}, event_key_expression="'key'", secrets=["t"])
    await senders.webhook(
        "hmac",
        "generic",
        auth={"type": "hmac", "header": "X-Sig", "algorithm": "sha512", "encoding": "base64", "prefix": "v1=", "delivery_id": "{h:x-id}"},
        event_key_expression="'key'",
    )
    import base64

    signature = "v1=" + base64.b64encode(hmac.digest(SECRET.encode(), BODY, "sha512")).decode()
    good = {
        "basic": {"authorization": "Basic " + base64.b64encode(b"u:p:w").decode()},
        "bearer": {"authorization": "Bearer t"},
        "hmac": {"x-sig": signature, "x-id": "1"},
    }
    for name, headers in good.items():
        assert (await senders.post(name, BODY, headers)).status_code == 200, name
        bad = {key: value[:-2] + ("A=" if value[-2:] != "A=" else "Q=") for key, value in headers.items()}
        assert (await senders.post(name, BODY, bad)).status_code == 401, name


async def test_a_copied_request_is_a_repetition_for_as_long_as_it_is_fresh(senders: Senders) -> None:
    """Its body is forgotten sooner: a later request may say the same."""
    auth = {"type": "hmac", "header": "x-sig", "signed": "{h:x-at}.{body}", "timestamp": "h:x-at", "tolerance": 86_400}
    await senders.webhook("own", "generic", auth=auth, event_key_expression="'key'", repeat_window="60s")

    def signed(at: int) -> dict[str, str]:
        return {"x-at": str(at), "x-sig": hmac.digest(SECRET.encode(), f"{at}.".encode() + BODY, "sha256").hex()}

    first, statuses = signed(senders.now), list[str]()
    for hours in (0, 1, 10, 12.9):
        senders.world.clock.advance(timedelta(hours=hours))
        statuses.append((await senders.post("own", BODY, first)).json()["status"])
    assert statuses == ["accepted", "duplicate", "duplicate", "duplicate"]
    assert (await senders.post("own", BODY, signed(senders.now))).json()["status"] == "accepted"
    senders.world.clock.advance(timedelta(hours=1))
    assert (await senders.post("own", BODY, first)).status_code == 401


async def test_each_of_several_processes_takes_its_share(senders: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    await senders.webhook(rate_limit={"per_second": 6, "burst": 6})
    for live, taken in ((1, 6), (2, 3), (3, 2), (7, 1)):
        monkeypatch.setattr(senders.world.services.webhooks.receiver, "live", partial(int, live))
        senders.world.clock.advance(timedelta(seconds=10))
        statuses = [(await senders.github(numbered(100 * live + number))).status_code for number in range(8)]
        assert statuses == [200] * taken + [429] * (8 - taken)
        senders.world.clock.advance(timedelta(seconds=live / 6 + 0.001))
        assert [(await senders.github(numbered(100 * live + number))).status_code for number in (8, 9)] == [200, 429]
