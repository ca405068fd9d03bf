"""The way from a request to a stored delivery: nothing authentic is lost, nothing else is let in, and the sender learns no reason."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.webhooks.cases import NOW, URL, post
from tests.webhooks.documented import documented
from tests.webhooks.test_handshakes import RECORDED
from webhooks import (
    PROVIDERS,
    Delivery,
    Ingest,
    KeyCache,
    KeyRequest,
    Outcome,
    Request,
    Response,
    Source,
    Submitted,
    VerificationError,
    refuse_unknown,
)
from webhooks.ingest import UNAVAILABLE, UNVERIFIED

SECRET = "secret"
BODY = b'{"action":"opened","number":1}'


@dataclass(slots=True)
class Store:
    """What a database does: every dedupe key is unique, the first delivery wins."""

    held: dict[str, Delivery] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    async def submit(self, delivery: Delivery) -> Submitted:
        await asyncio.sleep(0)
        first = next((self.keys[key] for key in delivery.dedupe_keys if key in self.keys), None)
        if first is not None:
            return Submitted("duplicate", first)
        name = f"dlv_{len(self.held)}"
        self.held[name] = delivery
        self.keys.update(dict.fromkeys(delivery.dedupe_keys, name))
        return Submitted("unrouted" if delivery.status == "unrouted" else "accepted", name)


def key(value: Any, headers: Mapping[str, str]) -> str:
    return f"github:{headers['x-github-event']}:{value['action']}"


def source(provider: str = "github", **options: Any) -> Source:
    known = PROVIDERS[provider]
    given = {"secrets": (SECRET,), "event_key": key, "response": known.response, **options}
    return Source(name="source", scheme=known.scheme, challenges=known.challenges, **given)


def github(body: bytes = BODY, event: str = "pull_request", delivery: str = "guid-1", secret: str = SECRET, **headers: str) -> Request:
    signature = "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()
    sent = {"X-Hub-Signature-256": signature, "X-GitHub-Event": event, "X-GitHub-Delivery": delivery, "Content-Type": "application/json"}
    return post(sent | {name.replace("_", "-"): value for name, value in headers.items()}, body)


async def receive(request: Request, to: Source | None = None, store: Store | None = None, keys: KeyCache | None = None) -> Outcome:
    return await Ingest((store or Store()).submit, keys).receive(to or source(), request, NOW)


async def test_accepted() -> None:
    store = Store()
    outcome = await receive(github(Authorization="Bearer s3cret"), store=store)
    assert outcome.response.status == 200
    assert json.loads(outcome.response.body) == {"id": "dlv_0", "status": "accepted"}
    kept = store.held["dlv_0"]
    assert (kept.event_key, kept.routed, kept.secret_index, kept.body) == ("github:pull_request:opened", True, 0, BODY)
    assert kept.input == {"action": "opened", "number": 1}
    assert kept.dedupe_keys == ("id:guid-1", "sha256:" + hashlib.sha256(BODY).hexdigest())
    assert "authorization" not in kept.headers
    assert kept.received_at == NOW


async def test_the_same_delivery_again_is_a_duplicate_of_the_first() -> None:
    store = Store()
    first = await receive(github(), store=store)
    for again in (github(), github(delivery="guid-2"), github(event="push", delivery="guid-2")):
        outcome = await receive(again, store=store)
        assert outcome.delivery.status == "duplicate"
        assert json.loads(outcome.response.body) == {"id": json.loads(first.response.body)["id"], "status": "duplicate"}
        assert outcome.response.status == 200
    assert (await receive(github(body=b'{"action":"closed"}', delivery="guid-3"), store=store)).delivery.status == "accepted"


async def test_a_signed_id_is_the_only_key() -> None:
    store, body = Store(), b'{"event_id":"Ev1","type":"event_callback"}'
    signature = hmac.digest(SECRET.encode(), f"v0:{NOW}:".encode() + body, "sha256").hex()
    request = post({"X-Slack-Signature": "v0=" + signature, "X-Slack-Request-Timestamp": str(NOW)}, body)
    outcome = await receive(request, source("slack", event_key=lambda *_: "slack"), store)
    assert outcome.delivery.dedupe_keys == ("id:Ev1",)
    assert outcome.response == PROVIDERS["slack"].response


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"event_key": lambda value, _: value["missing"]}, "event_key_failed"),
        ({"event_key": lambda *_: 7}, "event_key_failed"),
        ({"event_key": lambda *_: ""}, "event_key_failed"),
        ({"event_key": lambda *_: "x" * 513}, "event_key_failed"),
        ({"scope": lambda *_: None}, "scope_failed"),
        ({"filter": lambda *_: "yes"}, "filter_failed"),
        ({"filter": lambda *_: 1 / 0}, "filter_failed"),
    ],
)
async def test_an_expression_that_fails_loses_nothing(option: dict[str, Any], reason: str) -> None:
    store = Store()
    outcome = await receive(github(), source(**option), store)
    assert outcome.response.status == 202
    assert json.loads(outcome.response.body)["status"] == "unrouted"
    kept = store.held["dlv_0"]
    assert (kept.status, kept.reason, kept.routed, kept.body) == ("unrouted", reason, False, BODY)
    assert kept.detail
    assert kept.input == json.loads(BODY)


async def test_a_custom_answer_stays_when_unrouted_except_for_its_status() -> None:
    response = Response(200, (("content-type", "text/plain"),), b"[accepted]")
    accepted = await receive(github(), source(response=response))
    assert accepted.response == response
    unrouted = await receive(github(), source(response=response, event_key=lambda *_: 1))
    assert unrouted.response == replace(response, status=202)


async def test_filter_and_scope() -> None:
    store = Store()
    outcome = await receive(github(), source(filter=lambda value, _: value["number"] > 1, scope=lambda *_: "acme"), store)
    assert outcome.delivery.status == "accepted"
    assert (store.held["dlv_0"].routed, store.held["dlv_0"].reason, store.held["dlv_0"].scope) == (False, "filtered", "acme")


REFUSED: dict[str, tuple[Request, str]] = {
    "wrong secret": (github(secret="wrong"), "mismatch"),
    "tampered": (replace(github(), body=BODY + b" "), "mismatch"),
    "no signature": (post({}, BODY), "missing_signature"),
    "not a signature": (post({"X-Hub-Signature-256": "sha256=☃"}, BODY), "malformed"),
    "two signatures": (replace(github(), headers=github().headers * 2), "duplicate"),
    "unsigned ping": (post({"X-GitHub-Event": "ping"}, BODY), "missing_signature"),
    "a get": (Request.build("GET", URL, {}), "missing_signature"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_every_unproven_request_gets_the_answer_of_an_unknown_address(name: str) -> None:
    request, reason = REFUSED[name]
    store = Store()
    outcome = await receive(request, store=store)
    assert outcome.response == refuse_unknown(request) == UNVERIFIED
    assert (outcome.delivery.status, outcome.delivery.reason) == ("rejected", reason)
    assert outcome.delivery.detail
    assert not store.held


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (github(b"{"), 400, "invalid_body"),
        (github(Content_Encoding="br"), 415, "content_encoding"),
        (replace(github(), method="DELETE"), 405, "method"),
        (github(b" " * (1024 * 1024 + 1)), 413, "too_large"),
    ],
)
async def test_authentic_requests_that_are_no_deliveries(request_: Request, status: int, reason: str) -> None:
    outcome = await receive(request_)
    assert (outcome.response.status, outcome.delivery.reason) == (status, reason)
    assert json.loads(outcome.response.body)["code"] == reason
    assert dict(outcome.response.headers).get("allow", "") == ("POST, PUT" if status == 405 else "")


async def test_no_success_without_a_commit() -> None:
    async def broken(_: Delivery) -> Submitted:
        raise ConnectionError("the database is gone")

    with pytest.raises(ConnectionError):
        await Ingest(broken).receive(source(), github(), NOW)


async def test_a_source_without_a_secret_refuses_everything() -> None:
    assert (await receive(github(), source(secrets=()))).delivery.reason == "no_secret"


def test_at_most_eight_secrets() -> None:
    with pytest.raises(ValueError, match="8"):
        source(secrets=("x",) * 9)


async def test_rotation_says_which_secret_matched() -> None:
    for index, secret in enumerate(("new", "old")):
        assert (await receive(github(secret=secret), source(secrets=("new", "old")))).delivery.secret_index == index


async def test_bodies_of_forms_and_arrays() -> None:
    form = github(b"payload=%7B%22action%22%3A%22form%22%7D", Content_Type="application/x-www-form-urlencoded")
    assert (await receive(form)).delivery.event_key == "github:pull_request:form"
    array = await receive(github(b'[{"action":"x"}]'), source(event_key=lambda value, _: value[0]["action"]))
    assert array.delivery.event_key == "x"
    static = await receive(github(), source(static_payload={"action": "static"}))
    assert static.delivery.event_key == "github:pull_request:static"


async def test_a_signed_handshake_is_no_event() -> None:
    store = Store()
    outcome = await receive(github(event="ping"), store=store)
    assert (outcome.response.status, outcome.delivery.status, outcome.delivery.reason) == (204, "handshake", "github_ping")
    assert not store.held


async def test_an_unsigned_handshake() -> None:
    to = source("meta", params={"verify_token": "t0k3n"})
    good = Request.build("GET", f"{URL}?hub.mode=subscribe&hub.verify_token=t0k3n&hub.challenge=42", {})
    assert (await receive(good, to)).response.body == b"42"
    bad = Request.build("GET", f"{URL}?hub.mode=subscribe&hub.verify_token=guess&hub.challenge=42", {})
    outcome = await receive(bad, to)
    assert (outcome.response, outcome.delivery.reason) == (UNVERIFIED, "mismatch")


async def test_a_secret_is_captured_while_there_is_none() -> None:
    question = post({"X-Hook-Secret": "b537207f20cbfa02357cf448134da559"}, b"{}")
    outcome = await receive(question, source("asana", secrets=()))
    assert outcome.capture == "b537207f20cbfa02357cf448134da559"
    assert "b537207f" not in json.dumps(dict(outcome.delivery.headers))
    later = await receive(question, source("asana"))
    assert (later.capture, later.response) == (None, UNVERIFIED)


@dataclass(slots=True)
class Web:
    """What can be fetched, and what was."""

    documents: dict[str, bytes | None]
    seen: list[str] = field(default_factory=list)

    async def fetch(self, wanted: KeyRequest) -> bytes:
        self.seen.append(wanted.url)
        await asyncio.sleep(0)
        found = self.documents.get(wanted.url)
        if found is None:
            raise OSError("no route")
        return found


def sns(name: str) -> tuple[Request, Source, dict[str, bytes | None], float]:
    entry = RECORDED[name]
    request = Request.build("POST", URL, entry["headers"], entry["body"].encode())
    documents: dict[str, bytes | None] = {json.loads(entry["body"])["SigningCertURL"]: entry["document"].encode()}
    return request, source("sns", secrets=(), params=entry["params"], event_key=lambda *_: "sns"), documents, entry["now"]


async def test_sns_fetches_its_certificate_once() -> None:
    request, to, documents, now = sns("sns_2")
    web, store = Web(documents), Store()
    ingest = Ingest(store.submit, KeyCache(web.fetch))
    outcomes = await asyncio.gather(*(ingest.receive(to, request, now) for _ in range(20)))
    assert sorted({outcome.delivery.status for outcome in outcomes}) == ["accepted", "duplicate"]
    assert len(store.held) == len(web.seen) == 1
    another = replace(to, params={"topic_arn": "arn:aws:sns:us-east-1:2:other"})
    assert (await ingest.receive(another, request, now)).delivery.reason == "mismatch"


async def test_sns_is_asked_to_try_again_while_its_certificate_cannot_be_fetched() -> None:
    request, to, _, now = sns("sns_2")
    outcome = await Ingest(Store().submit, KeyCache(Web({}).fetch)).receive(to, request, now)
    assert (outcome.response, outcome.delivery.reason) == (UNAVAILABLE, "key_unavailable")
    assert (await Ingest(Store().submit).receive(to, request, now)).response == UNAVAILABLE


async def test_sns_subscription_is_confirmed_once_proven() -> None:
    request, to, documents, now = sns("sns_confirmation")
    url = json.loads(request.body)["SubscribeURL"]
    web = Web({**documents, url: b"<ok/>"})
    outcome = await Ingest(Store().submit, KeyCache(web.fetch)).receive(to, request, now)
    assert (outcome.response.status, outcome.delivery.status) == (200, "handshake")
    assert web.seen[-1] == url
    failing = await Ingest(Store().submit, KeyCache(Web(documents).fetch)).receive(to, request, now)
    assert failing.response == UNAVAILABLE
    forged = replace(request, body=request.body.replace(b"Hello", b"Howdy"))
    web.seen.clear()
    assert (await Ingest(Store().submit, KeyCache(web.fetch)).receive(to, forged, now)).response == UNVERIFIED
    assert url not in web.seen


async def test_plaid_asks_for_the_key_its_token_names() -> None:
    case = documented()["plaid"]
    asked: list[KeyRequest] = []

    async def fetch(wanted: KeyRequest) -> bytes:
        asked.append(wanted)
        return case.document or b""

    to = source("plaid", params=case.params, event_key=lambda *_: "plaid")
    outcome = await Ingest(Store().submit, KeyCache(fetch)).receive(to, case.request, NOW)
    assert outcome.delivery.status == "accepted"
    assert asked[0].url == "https://sandbox.plaid.com/webhook_verification_key/get"
    assert json.loads(asked[0].body or b"") == {"client_id": "client", "secret": SECRET, "key_id": "bfbd5111"}


async def test_keys_that_were_rotated_are_fetched_again_but_not_at_every_request() -> None:
    case = documented()["event_grid_entra"]
    to = source("event_grid_entra", params=case.params, event_key=lambda *_: "grid")
    url = f"https://login.microsoftonline.com/{case.params['tenant_id']}/discovery/v2.0/keys"
    web = Web({url: b'{"keys":[]}'})
    ingest = Ingest(Store().submit, KeyCache(web.fetch))
    assert (await ingest.receive(to, case.request, NOW)).response == UNAVAILABLE
    web.documents[url] = case.document
    assert (await ingest.receive(to, case.request, NOW + 1)).response == UNAVAILABLE
    assert len(web.seen) == 1
    assert (await ingest.receive(to, case.request, NOW + 31)).delivery.status == "accepted"
    web.documents[url] = None
    assert (await ingest.receive(to, case.request, NOW + 3600)).delivery.status == "duplicate"
    assert len(web.seen) == 2


async def test_an_expired_document_serves_while_it_cannot_be_fetched_anew() -> None:
    web = Web({"u": b"old"})
    cache = KeyCache(web.fetch, size=2)
    assert await cache.get(KeyRequest("u"), NOW) == b"old"
    web.documents["u"] = None
    assert await cache.get(KeyRequest("u"), NOW + 3600) == b"old"
    for number in range(5):
        web.documents[str(number)] = b"x"
        await cache.get(KeyRequest(str(number)), NOW)
    assert len(cache._held) == 2


async def test_claims_are_the_input_when_the_event_is_inside_the_token() -> None:
    case = documented()["wix"]
    outcome = await receive(case.request, source("wix", secrets=(case.secret,), event_key=lambda value, _: value["data"]))
    assert outcome.delivery.event_key == '{"eventType":"created"}'


@pytest.mark.parametrize("respell", [lambda body: body + b"==", lambda body: body[:-1] + bytes([body[-1] ^ 1])])
async def test_a_token_that_is_spelled_differently_is_not_another_delivery(respell: Any) -> None:
    case = documented()["wix"]
    again = replace(case.request, body=respell(case.request.body))
    outcome = await receive(again, source("wix", secrets=(case.secret,), event_key=lambda *_: "wix"))
    assert outcome.delivery.status == "rejected"


async def test_documents_that_are_not_there_put_out_none_that_are() -> None:
    wanted, asked = KeyRequest("https://keys.example.com/good"), list[str]()

    async def fetch(request: KeyRequest) -> bytes:
        asked.append(request.url)
        if request != wanted:
            raise OSError("404")
        return b"good"

    cache = KeyCache(fetch, size=4)
    assert await cache.get(wanted, 0) == b"good"
    for number in range(20):
        with pytest.raises(VerificationError):
            await cache.get(KeyRequest(f"https://keys.example.com/{number}"), 1)
    assert await cache.get(wanted, 2) == b"good"
    assert asked.count(wanted.url) == 1


async def test_who_names_many_documents_makes_nobody_fetch_them_all_at_once() -> None:
    going, most = asyncio.Event(), 0

    async def fetch(_: KeyRequest) -> bytes:
        nonlocal most
        most += 1
        await going.wait()
        return b"key"

    cache = KeyCache(fetch, flights=3)
    tasks = [asyncio.ensure_future(cache.get(KeyRequest(f"https://keys.example.com/{number}"), 0)) for number in range(10)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    going.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert [result for result in results if isinstance(result, bytes)] == [b"key"] * 3
    assert {result.code for result in results if isinstance(result, VerificationError)} == {"key_unavailable"}


async def test_a_body_is_not_taken_apart_for_who_has_proven_nothing() -> None:
    """Linear signs its time in the body: what stands there counts once the signature does."""
    at = NOW * 1000
    for time, secret, reason in (
        (at, "other", "mismatch"),
        (at - 61_000, "other", "mismatch"),
        (at - 61_000, SECRET, "stale"),
        (at, SECRET, ""),
    ):
        body = json.dumps({"type": "Issue", "webhookTimestamp": time}).encode()
        request = post({"Linear-Signature": hmac.digest(secret.encode(), body, "sha256").hex()}, body)
        outcome = await receive(request, source("linear", event_key=lambda *_: "linear"))
        assert outcome.delivery.reason == reason
        assert ("json" in request._read) is (secret == SECRET)


async def test_a_copied_request_without_an_id_is_told_from_a_later_one_that_says_the_same() -> None:
    body, zoom = b'{"event":"meeting.started"}', source("zoom", event_key=lambda *_: "zoom")

    def signed(at: int) -> Request:
        signature = hmac.digest(SECRET.encode(), f"v0:{at}:".encode() + body, "sha256").hex()
        return post({"x-zm-signature": "v0=" + signature, "x-zm-request-timestamp": str(at)}, body)

    first, again, later = [(await receive(signed(at), zoom)).delivery.dedupe_keys for at in (NOW, NOW, NOW + 10)]
    assert first == again
    assert len(first) == len(later) == 2
    assert set(first) & set(later) == {"sha256:" + hashlib.sha256(body).hexdigest()}
