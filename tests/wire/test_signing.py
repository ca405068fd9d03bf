"""Signatures: the golden vectors, and the unmodified Standard Webhooks libraries as judges of what we sign."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import svix.webhooks
from hypothesis import given
from hypothesis import strategies as st

from handlers_sdk.signing import Ed25519Signer, HmacSigner, SignatureError, Signer, audience_of, new_secret, signature_header, verify

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("vectors.json").read_text())
ORACLES: list[Callable[[str], Any]] = [standardwebhooks.Webhook, svix.webhooks.Webhook]
MESSAGE_ID = "ep_01jgfjjz000000000000000001_01jgfjjz000000000000000002"
BODY = b'{"protocol":1,"type":"run","input":{"w":64}}'


def signed(signers: list[Signer], body: bytes = BODY, timestamp: int | None = None) -> dict[str, str]:
    stamp = int(time.time()) if timestamp is None else timestamp
    return {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": str(stamp),
        "webhook-signature": signature_header(signers, MESSAGE_ID, stamp, body),
    }


@pytest.mark.parametrize("case", VECTORS["signatures"], ids=lambda case: case["name"])
def test_signers_give_the_golden_signatures(case: dict[str, Any]) -> None:
    body = case["body"].encode()
    ed25519 = Ed25519Signer(base64.b64decode(case["seed"]))
    assert HmacSigner(case["secret"]).sign(case["id"], case["timestamp"], body) == case["v1"]
    assert ed25519.sign(case["id"], case["timestamp"], body) == case["v1a"]
    assert ed25519.public == case["public_key"]


@pytest.mark.parametrize("case", VECTORS["signatures"], ids=lambda case: case["name"])
@pytest.mark.parametrize("oracle", ORACLES)
def test_the_libraries_give_the_golden_v1(case: dict[str, Any], oracle: Callable[[str], Any]) -> None:
    moment = datetime.fromtimestamp(case["timestamp"], UTC)
    assert oracle(case["secret"]).sign(case["id"], moment, case["body"]) == case["v1"]


@pytest.mark.parametrize("case", VECTORS["verifications"], ids=lambda case: case["name"])
def test_verification_vectors(case: dict[str, Any]) -> None:
    def judge() -> str:
        try:
            return verify(
                case["headers"],
                case["body"].encode(),
                secrets=case["secrets"],
                public_keys=case["public_keys"],
                audience=case["audience"],
                now=case["now"],
            )
        except SignatureError as error:
            return error.code

    assert judge() == case["expect"]


@pytest.mark.parametrize("oracle", ORACLES)
def test_the_libraries_accept_v1_alone_and_after_v1a(oracle: Callable[[str], Any]) -> None:
    secret = new_secret()
    signer, tenant = HmacSigner(secret), Ed25519Signer(bytes(32))
    orders: list[list[Signer]] = [[signer], [tenant, signer], [signer, tenant]]
    for signers in orders:
        oracle(secret).verify(BODY, signed(signers))


@pytest.mark.parametrize("oracle", ORACLES)
def test_the_libraries_accept_both_secrets_during_rotation(oracle: Callable[[str], Any]) -> None:
    old, new = new_secret(), new_secret()
    headers = signed([Ed25519Signer(bytes(32)), HmacSigner(new), HmacSigner(old)])
    assert [token.partition(",")[0] for token in headers["webhook-signature"].split(" ")] == ["v1a", "v1", "v1"]
    oracle(new).verify(BODY, headers)
    oracle(old).verify(BODY, headers)


@pytest.mark.parametrize("oracle", ORACLES)
def test_the_libraries_refuse_what_we_refuse(oracle: Callable[[str], Any]) -> None:
    secret = new_secret()
    headers = signed([HmacSigner(secret)])
    for key, body in ((new_secret(), BODY), (secret, BODY + b" ")):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            oracle(key).verify(body, headers)
        with pytest.raises(SignatureError) as caught:
            verify(headers, body, secrets=[key], audience=None, now=int(headers["webhook-timestamp"]))
        assert caught.value.code == "mismatch"


def test_we_accept_what_the_library_signs() -> None:
    secret, now = new_secret(), datetime.now(UTC)
    token = standardwebhooks.Webhook(secret).sign(MESSAGE_ID, now, BODY.decode())
    headers = {"webhook-id": MESSAGE_ID, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": token}
    assert verify(headers, BODY, secrets=[secret], audience=None, now=int(now.timestamp())) == "v1"


def test_v1a_comes_first_whatever_the_order_given() -> None:
    secret, seed = HmacSigner(new_secret()), Ed25519Signer(bytes(range(32)))
    header = signature_header([secret, seed], MESSAGE_ID, 1, BODY)
    assert header == f"{seed.sign(MESSAGE_ID, 1, BODY)} {secret.sign(MESSAGE_ID, 1, BODY)}"


@pytest.mark.parametrize("secret", ["", "whsec_", "AAEC", "whsec_***", "whpk_AAEC"])
def test_a_secret_of_another_form_is_refused_when_it_is_given(secret: str) -> None:
    with pytest.raises(ValueError, match=r"whsec_|empty"):
        HmacSigner(secret)


def test_a_public_key_of_another_form_is_refused() -> None:
    headers = signed([Ed25519Signer(bytes(32))], timestamp=10)
    for key in ("whsec_AAEC", "whpk_AAEC", "whpk_***"):
        with pytest.raises(ValueError, match="whpk_"):
            verify(headers, BODY, public_keys=[key], audience=None, now=10)


def test_new_secrets_differ_and_hold_32_bytes() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32


def test_the_audience_is_the_id_up_to_its_last_underscore() -> None:
    assert audience_of(MESSAGE_ID) == "ep_01jgfjjz000000000000000001"
    assert audience_of("ep7f3_01JA3Z9K8Q") == "ep7f3"


@given(body=st.binary(max_size=2000), timestamp=st.integers(min_value=0, max_value=2**37), seed=st.binary(min_size=32, max_size=32))
def test_whatever_is_signed_verifies_and_a_flipped_bit_does_not(body: bytes, timestamp: int, seed: bytes) -> None:
    ed25519 = Ed25519Signer(seed)
    headers = signed([ed25519], body, timestamp)
    assert verify(headers, body, public_keys=[ed25519.public], audience=audience_of(MESSAGE_ID), now=timestamp) == "v1a"
    flipped = bytes([body[0] ^ 1]) + body[1:] if body else b"\0"
    with pytest.raises(SignatureError):
        verify(headers, flipped, public_keys=[ed25519.public], audience=None, now=timestamp)


@given(st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text(max_size=60)))
def test_hostile_headers_are_refused_not_crashed_on(headers: dict[str, str]) -> None:
    with pytest.raises(SignatureError):
        verify(headers, BODY, secrets=[new_secret()], public_keys=[Ed25519Signer(bytes(32)).public], audience="ep", now=0)
