"""What senders ask, what they are answered, and what they are not."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.webhooks.cases import URL
from webhooks import PROVIDERS, Request, VerificationError
from webhooks.handshakes import Handshake, answer, find

RECORDED = json.loads((Path(__file__).parent / "vectors" / "recorded.json").read_text())
PARAMS = {"verify_token": "t0k3n", "topic_arn": "arn:aws:sns:us-east-1:1:t"}


def ask(
    provider: str,
    body: object = b"",
    *,
    method: str = "POST",
    query: str = "",
    headers: dict[str, str] | None = None,
    verified: bool = True,
    secrets: Sequence[str] = ("secret",),
) -> Handshake | None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request.build(method, f"{URL}?{query}" if query else URL, headers or {}, raw)
    challenge = find(PROVIDERS[provider].challenges, request, verified=verified, secrets=secrets)
    return None if challenge is None else answer(challenge, request, PARAMS, "secret")


def text(made: Handshake | None) -> str:
    assert made is not None
    headers = dict(made.response.headers)
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    return made.response.body.decode()


def members(made: Handshake | None) -> object:
    assert made is not None
    assert dict(made.response.headers)["content-type"] == "application/json"
    return json.loads(made.response.body)


def status(made: Handshake | None) -> int:
    assert made is not None
    return made.response.status


def test_slack() -> None:
    question = {"type": "url_verification", "challenge": "3eZbrw1aB"}
    assert text(ask("slack", question)) == "3eZbrw1aB"
    assert ask("slack", question, verified=False) is None
    assert ask("slack", {"type": "event_callback", "challenge": "x"}) is None


def test_github_ping_is_no_event() -> None:
    assert status(ask("github", {"zen": "x"}, headers={"X-GitHub-Event": "ping"})) == 204
    assert ask("github", {"zen": "x"}, headers={"X-GitHub-Event": "push"}) is None
    assert ask("github", {"zen": "x"}, headers={"X-GitHub-Event": "ping"}, verified=False) is None


def test_discord() -> None:
    assert members(ask("discord", {"type": 1})) == {"type": 1}
    assert status(ask("discord", {"type": 0})) == 204
    assert ask("discord", {"type": 1, "event": {"type": "APPLICATION_AUTHORIZED"}}) is None
    assert ask("discord", {"type": 2}) is None
    assert ask("discord", {"type": 1}, verified=False) is None


def test_zoom_as_its_library_answers() -> None:
    entry = RECORDED["zoom_url_validation"]
    made = ask("zoom", entry["body"].encode())
    assert made is not None
    question = Request.build("POST", URL, {}, entry["body"].encode())
    challenge = find(PROVIDERS["zoom"].challenges, question, verified=True, secrets=["secret"])
    assert challenge is not None
    assert members(answer(challenge, question, {}, entry["secret"])) == entry["answer"]


@pytest.mark.parametrize("provider", ["meta", "whatsapp"])
def test_meta(provider: str) -> None:
    query = "hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token="
    assert text(ask(provider, method="GET", query=query + "t0k3n", verified=False)) == "1158201444"
    with pytest.raises(VerificationError, match="verify_token"):
        ask(provider, method="GET", query=query + "guess", verified=False)
    with pytest.raises(VerificationError):
        ask(provider, method="GET", query="hub.mode=subscribe&hub.verify_token=t0k3n", verified=False)


def test_dropbox() -> None:
    assert text(ask("dropbox", method="GET", query="challenge=%3Cscript%3E", verified=False)) == "<script>"
    assert ask("dropbox", method="POST", query="challenge=x", verified=False) is None


def test_x() -> None:
    made = ask("x", method="GET", query="crc_token=MWY0Nzk4&nonce=1", verified=False)
    digest = base64.b64encode(hmac.digest(b"secret", b"MWY0Nzk4", "sha256")).decode()
    assert members(made) == {"response_token": f"sha256={digest}"}


def test_x_signs_nothing_that_could_be_a_body() -> None:
    for token in ("%7B%22a%22%3A1%7D", "%5B%5D", "a%20b", "x" * 129):
        with pytest.raises(VerificationError):
            ask("x", method="GET", query=f"crc_token={token}", verified=False)


def test_microsoft_graph() -> None:
    query = "validationToken=Validation%3A+Testing+client+application+reachability+for+subscription+Request-Id%3A+1"
    assert text(ask("microsoft_graph", query=query, verified=False)).endswith("Request-Id: 1")


def test_event_grid() -> None:
    event = {"eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "data": {"validationCode": "512d38b6"}}
    assert members(ask("event_grid", [event])) == {"validationResponse": "512d38b6"}
    assert ask("event_grid", [event], verified=False) is None


@pytest.mark.parametrize("provider", ["cloudevents", "event_grid"])
def test_cloudevents(provider: str) -> None:
    made = ask(provider, method="OPTIONS", headers={"WebHook-Request-Origin": "eventemitter.example.com"}, verified=False)
    assert made is not None
    assert dict(made.response.headers)["webhook-allowed-origin"] == "eventemitter.example.com"
    with pytest.raises(VerificationError):
        ask(provider, method="OPTIONS", headers={"WebHook-Request-Origin": "a\r\nset-cookie: b"}, verified=False)


def test_twitch() -> None:
    headers = {"Twitch-Eventsub-Message-Type": "webhook_callback_verification"}
    assert text(ask("twitch", {"challenge": "pogchamp-kappa"}, headers=headers)) == "pogchamp-kappa"
    assert ask("twitch", {"challenge": "x"}, headers=headers, verified=False) is None


def test_sns_is_confirmed_at_amazon_only() -> None:
    url = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=1"
    made = ask("sns", {"Type": "SubscriptionConfirmation", "SubscribeURL": url})
    assert made is not None
    assert made.visit == url
    assert ask("sns", {"Type": "SubscriptionConfirmation", "SubscribeURL": url}, verified=False) is None
    for other in ("https://example.com/", "http://sns.us-east-1.amazonaws.com/?a", "https://sns.us-east-1.amazonaws.com.evil.org/?a"):
        with pytest.raises(VerificationError):
            ask("sns", {"Type": "SubscriptionConfirmation", "SubscribeURL": other})


def test_asana_secret_is_captured_once() -> None:
    headers = {"X-Hook-Secret": "b537207f20cbfa02357cf448134da559"}
    made = ask("asana", {}, headers=headers, verified=False, secrets=())
    assert made is not None
    assert made.capture == headers["X-Hook-Secret"]
    assert ("x-hook-secret", headers["X-Hook-Secret"]) in made.response.headers
    assert ask("asana", {}, headers=headers, verified=False) is None
    again = ask("asana", {}, headers=headers, verified=False, secrets=["other", headers["X-Hook-Secret"]])
    assert again is not None, "it did not hear the first answer"
    assert again.response == made.response


def test_notion_secret_is_captured_once() -> None:
    question = {"verification_token": "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl"}
    made = ask("notion", question, verified=False, secrets=())
    assert made is not None
    assert made.capture == question["verification_token"]
    assert made.response.body == b""
    assert ask("notion", question, verified=False) is None


def test_trello() -> None:
    assert status(ask("trello", method="HEAD", verified=False)) == 200
    assert ask("trello", method="POST", verified=False) is None


@pytest.mark.parametrize("length", [4096, 4097])
def test_echoes_are_capped(length: int) -> None:
    question = {"type": "url_verification", "challenge": "é" * (length // 2) + "a" * (length % 2)}
    if length <= 4096:
        assert len(text(ask("slack", question)).encode()) == length
    else:
        with pytest.raises(VerificationError, match="4096"):
            ask("slack", question)
