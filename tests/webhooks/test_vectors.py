"""Signed examples that senders publish, and recordings of what libraries in other languages accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.webhooks.cases import Case, mutations, post
from webhooks import PROVIDERS, VerificationError, verify
from webhooks.request import Request
from webhooks.verify import document_request

RECORDED = json.loads((Path(__file__).parent / "vectors" / "recorded.json").read_text())


def test_github_documentation() -> None:
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    case = Case("github", post({"X-Hub-Signature-256": signature}, b"Hello, World!"), "It's a Secret to Everybody", "other")
    assert case.verify().secret_index == 0


def test_standard_webhooks_specification() -> None:
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    request = post(headers, b'{"test": 2432232314}')
    case = Case("standard_webhooks", request, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "", 1_614_265_330)
    assert case.verify().delivery_id == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert case.verify(case.secret, now=case.now + 300).secret_index == 0
    with pytest.raises(VerificationError, match="allowed either way"):
        case.verify(case.secret, now=case.now + 301)


def test_twilio_documentation() -> None:
    fields = b"CallSid=CA1234567890ABCDE&Caller=%2B12349013030&Digits=1234&From=%2B12349013030&To=%2B18005551212"
    headers = {"X-Twilio-Signature": "0/KCTR6DLpKmkAf8muzZqo1nDgQ=", "Content-Type": "application/x-www-form-urlencoded"}
    request = post(headers, fields, "https://mycompany.com/myapp.php?foo=1&bar=2")
    assert Case("twilio", request, "12345", "").verify().secret_index == 0


def _recorded(name: str) -> Case:
    entry = RECORDED[name]
    request = Request.build("POST", entry["url"], entry["headers"], entry["body"].encode())
    document = entry["document"].encode() if entry["document"] else None
    tampered = entry["tampered"].encode() if entry["tampered"] else None
    secrets = (entry["secret"], entry["secret"][::-1])
    return Case(entry["provider"], request, *secrets, entry["now"], entry["params"], document, tampered)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name: str) -> None:
    """Made, or accepted, by the library named in the file, with `record.mjs` beside it."""
    case = _recorded(name)
    assert case.verify().secret_index == (None if case.document else 0)
    outcomes = {kind: spoiled.code() for kind, spoiled in mutations(case)}
    assert "accepted" not in outcomes.values(), outcomes
    assert len(outcomes) >= 5


def test_every_recording_is_of_a_provider_marked_so() -> None:
    assert {entry["provider"] for entry in RECORDED.values()} == {"github", "line", "linear", "notion", "shopify", "sns", "zoom"}
    assert all(PROVIDERS[entry["provider"]].checked == "library" for entry in RECORDED.values())


def test_sns_certificate_is_asked_for_at_amazon_only() -> None:
    case = _recorded("sns_2")
    wanted = document_request(case.scheme, case.request, (), case.params)
    assert wanted is not None
    assert wanted.url.startswith("https://sns.us-east-1.amazonaws.com/")
    assert wanted.body is None


def test_verify_takes_no_other_arguments_than_it_says() -> None:
    case = _recorded("github")
    assert verify(case.scheme, case.request, [case.secret], case.now).delivery_id == "72d3162e"
