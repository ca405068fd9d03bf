"""What `verify` refuses and with which code, whoever the sender is."""

from __future__ import annotations

import base64
import hmac
import json
import zlib
from dataclasses import replace

import pytest

from tests.webhooks.cases import NOW, URL, Case, post
from webhooks import PROVIDERS, Request, Scheme, VerificationError, verify
from webhooks.scheme import Jwt
from webhooks.verify import document_request

BODY = b'{"id":"evt_1","at":1767225600,"ok":true,"rate":1.5,"nested":{"list":["a","b"]}}'
PLAIN = Scheme(kind="hmac", signature="h:x-signature")


def hexed(message: bytes, key: bytes = b"secret", algorithm: str = "sha256") -> str:
    return hmac.digest(key, message, algorithm).hex()


def signed(scheme: Scheme, message: bytes, headers: dict[str, str] | None = None) -> Request:
    digest = hmac.digest(b"secret", message, scheme.algorithm)
    text = {"hex": digest.hex(), "base64": base64.b64encode(digest).decode(), "base64url": base64.urlsafe_b64encode(digest).decode()}
    return post({"X-Signature": scheme.prefix + text[scheme.encoding], **(headers or {})}, BODY)


def refused(scheme: Scheme, request: Request, *secrets: str, now: float = NOW, **params: str) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(scheme, request, secrets or ("secret",), now, params)
    return caught.value.code


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64", "base64url"])
def test_every_algorithm_in_every_encoding(algorithm: str, encoding: str) -> None:
    scheme = replace(PLAIN, algorithm=algorithm, encoding=encoding, prefix="v9=")  # type: ignore[arg-type]
    request = signed(scheme, BODY)
    assert verify(scheme, request, ["secret"], NOW).secret_index == 0
    assert refused(scheme, replace(request, body=BODY + b" ")) == "mismatch"
    assert refused(scheme, request, "other") == "mismatch"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{body}", BODY),
        ("{url}.{body}", f"{URL}?a=%2F%20b.".encode() + BODY),
        ("{uri}", f"{URL}?a=/%20b".encode()),
        ("{method}{body}", b"POST" + BODY),
        ("{crc32}", str(zlib.crc32(BODY)).encode()),
        ("{h:x-id}:{body}", b"7:" + BODY),
        ("{h:x-none||h:x-id}:{body}", b"7:" + BODY),
        ("{b:id}-{b:at}-{b:ok}-{b:nested.list.1}", b"evt_1-1767225600-true-b"),
        ("{q:a}{p:account}{body}", b"/ bacme" + BODY),
        ("héllo {body}", "héllo ".encode() + BODY),
    ],
)
def test_templates(template: str, message: bytes) -> None:
    scheme = replace(PLAIN, signed=template)
    request = Request.build("POST", f"{URL}?a=%2F%20b", {"X-Signature": hexed(message), "X-Id": "7"}, BODY)
    assert verify(scheme, request, ["secret"], NOW, {"account": "acme"}).secret_index == 0


@pytest.mark.parametrize(
    "template", ["{h:x-none}{body}", "{b:none}{body}", "{b:rate}{body}", "{b:nested}{body}", "{q:x}{body}", "{p:x}{body}"]
)
def test_an_absent_part_is_an_error_and_not_an_empty_string(template: str) -> None:
    assert refused(replace(PLAIN, signed=template), signed(PLAIN, BODY)) == "missing_field"


def test_letter_case_and_padding_do_not_matter() -> None:
    upper = post({"X-Signature": hexed(BODY).upper()}, BODY)
    assert verify(PLAIN, upper, ["secret"], NOW).secret_index == 0
    scheme = replace(PLAIN, encoding="base64")
    bare = base64.b64encode(hmac.digest(b"secret", BODY, "sha256")).decode().rstrip("=")
    assert verify(scheme, post({"X-Signature": bare}, BODY), ["secret"], NOW).secret_index == 0


@pytest.mark.parametrize(
    ("encoding", "signature", "code"),
    [
        ("hex", "zz", "malformed"),
        ("hex", "abc", "malformed"),
        ("hex", "ab cd", "malformed"),
        ("hex", "ab", "mismatch"),
        ("hex", "é" * 64, "malformed"),
        ("base64", "ab*d", "malformed"),
        ("base64", "ab-_", "malformed"),
        ("base64", "ab\ncd", "malformed"),
        ("base64", "abcd====", "malformed"),
        ("base64", "ab", "malformed"),
        ("base64", "aQ", "mismatch"),
        ("base64url", "ab+/", "malformed"),
        ("hex", "", "missing_signature"),
        ("hex", "a" * 20_000, "malformed"),
    ],
)
def test_decoding_is_strict(encoding: str, signature: str, code: str) -> None:
    assert refused(replace(PLAIN, encoding=encoding), post({"X-Signature": signature}, BODY)) == code  # type: ignore[arg-type]


def test_a_missing_prefix_is_malformed() -> None:
    assert refused(replace(PLAIN, prefix="sha256="), signed(PLAIN, BODY)) == "malformed"
    assert refused(replace(PLAIN, prefix="sha256="), post({"X-Signature": "sha1=" + hexed(BODY, algorithm="sha1")}, BODY)) == "malformed"


def test_doubled_headers_that_take_part_are_refused() -> None:
    scheme = replace(PLAIN, signed="{h:x-id}{body}")
    request = post({"X-Signature": hexed(b"7" + BODY), "X-Id": "7"}, BODY)
    assert verify(scheme, request, ["secret"], NOW).secret_index == 0
    for name in ("x-signature", "x-id"):
        again = (*request.headers, (name, dict(request.headers)[name]))
        assert refused(scheme, replace(request, headers=again)) == "duplicate"


def test_a_body_that_names_a_signed_member_twice_is_read_as_its_reader_reads_it() -> None:
    scheme = replace(PLAIN, signature="b:sig", signed="{b:value}")
    body = b'{"value":"forged","value":"real","sig":"' + hexed(b"real").encode() + b'"}'
    assert verify(scheme, post({}, body), ["secret"], NOW).secret_index == 0
    assert post({}, body).json() == {"value": "real", "sig": hexed(b"real")}


def test_at_most_eight_candidates() -> None:
    scheme = PROVIDERS["stripe"].scheme
    good, bad = "v1=" + hexed(f"{NOW}.".encode() + BODY), "v1=" + "0" * 64
    assert verify(scheme, post({"Stripe-Signature": ",".join([f"t={NOW}", *[bad] * 7, good])}, BODY), ["secret"], NOW).secret_index == 0
    assert refused(scheme, post({"Stripe-Signature": ",".join([f"t={NOW}", *[bad] * 8, good])}, BODY)) == "malformed"


def test_an_unreadable_candidate_does_not_hide_a_good_one() -> None:
    header = f"t={NOW},v1=not hex,v1={hexed(f'{NOW}.'.encode() + BODY)},v0=x"
    assert verify(PROVIDERS["stripe"].scheme, post({"Stripe-Signature": header}, BODY), ["secret"], NOW).secret_index == 0


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("t=1,t=1767225600,v1=ab", "duplicate"),
        ("v1=ab", "missing_field"),
        ("t=1767225600", "missing_signature"),
        ("t=1767225600,v1=ab", "mismatch"),
        ("t=,v1=ab", "malformed"),
        ("t=-1767225600,v1=ab", "malformed"),
        ("t=1767225600.5,v1=ab", "malformed"),
        ("t=١٧٦٧٢٢٥٦٠٠,v1=ab", "malformed"),
        ("t=17672256000000000000000,v1=ab", "malformed"),
        ("t=1767225299,v1=ab", "stale"),
        ("t=1767225901,v1=ab", "stale"),
        (",,,=,", "missing_signature"),
    ],
)
def test_codes_of_a_signature_with_items(header: str, code: str) -> None:
    assert refused(PROVIDERS["stripe"].scheme, post({"Stripe-Signature": header}, BODY)) == code


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2026-01-01T00:00:00Z", 0), ("2026-01-01T00:00:00.123456789Z", 0), ("2026-01-01T01:00:00+01:00", 0), ("2026-01-01T00:00:00", 0)],
)
def test_iso_timestamps(text: str, seconds: int) -> None:
    scheme = replace(PLAIN, signed="{h:x-time}{body}", timestamp="h:x-time", unit="iso", tolerance=1)
    request = post({"X-Signature": hexed(text.encode() + BODY), "X-Time": text}, BODY)
    assert verify(scheme, request, ["secret"], NOW + seconds).secret_index == 0
    assert refused(scheme, request, now=NOW + 3) == refused(scheme, request, now=NOW - 3) == "stale"


@pytest.mark.parametrize("text", ["", "yesterday", "0001-01-01T00:00:00+23:00", "1767225600"])
def test_bad_iso_timestamps(text: str) -> None:
    scheme = replace(PLAIN, signed="{h:x-time}{body}", timestamp="h:x-time", unit="iso")
    assert refused(scheme, post({"X-Signature": "ab", "X-Time": text}, BODY)) in {"malformed", "stale"}


def test_secrets_that_are_missing_or_cannot_be_read() -> None:
    request = signed(PLAIN, BODY)
    with pytest.raises(VerificationError, match="no secret yet"):
        verify(PLAIN, request, [], NOW)
    assert refused(PLAIN, request, "") == "bad_secret"
    assert refused(replace(PLAIN, key="hex"), request, "not hex") == "bad_secret"
    assert verify(replace(PLAIN, key="base64"), request, ["***", base64.b64encode(b"secret").decode()], NOW).secret_index == 1


def test_settings_that_bind_a_shared_key_are_required() -> None:
    scheme = replace(PLAIN, require=(("b:id", "account"),))
    assert verify(scheme, signed(PLAIN, BODY), ["secret"], NOW, {"account": "evt_1"}).secret_index == 0
    assert refused(scheme, signed(PLAIN, BODY), account="evt_2") == "mismatch"
    assert refused(scheme, signed(PLAIN, BODY)) == refused(scheme, signed(PLAIN, BODY), account="") == "missing_param"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{h:x-delivery}", "d-1"),
        ("{b:id}", "evt_1"),
        ("{b:id}:{b:at}", "evt_1:1767225600"),
        ("{b:none}", None),
        ("{b:id}:{b:none}", None),
        ("{h:x-long}", "sha256:e4ee6e4d5d6b0ebcd5f9d6b8aa2a8fcef9e3a2b46b5e2e8e7b17f24b1a0e6b0f"),
    ],
)
def test_delivery_ids(template: str, expected: str | None) -> None:
    request = signed(PLAIN, BODY, {"X-Delivery": "d-1", "X-Long": "x" * 201})
    found = verify(replace(PLAIN, delivery_id=template), request, ["secret"], NOW).delivery_id
    if expected is not None and expected.startswith("sha256:"):
        assert found is not None
        assert found.startswith("sha256:")
        assert len(found) == 71
    else:
        assert found == expected


def test_a_delivery_id_never_carries_control_characters() -> None:
    body = rb'{"id":"a\u0000b\ud800"}'
    found = verify(replace(PLAIN, delivery_id="{b:id}"), post({"X-Signature": hexed(body)}, body), ["secret"], NOW).delivery_id
    assert found is not None
    assert found.isprintable()


def test_basic() -> None:
    scheme = PROVIDERS["postmark"].scheme

    def request(pair: str) -> Request:
        return post({"Authorization": "basic " + base64.b64encode(pair.encode()).decode()}, BODY)

    assert verify(scheme, request("user:pass:word ☃"), ["pass:word ☃"], NOW, {"username": "user"}).secret_index == 0
    assert verify(scheme, request("user:pass"), ["user:pass"], NOW).secret_index == 0
    assert refused(scheme, request("admin:pass"), "pass", username="user") == "mismatch"
    assert refused(scheme, request("user:"), "", username="user") == "bad_secret"
    assert refused(scheme, post({"Authorization": "Basic ☃"}, BODY), "pass") == "malformed"
    assert refused(scheme, post({"Authorization": "Bearer abc"}, BODY), "pass") == "malformed"


def test_none_is_explicit() -> None:
    assert verify(Scheme(kind="none", delivery_id="{h:x-id}"), post({"X-Id": "1"}, BODY), [], NOW).delivery_id == "1"


@pytest.mark.parametrize(
    ("scheme", "signed_id", "covers_body"),
    [
        (Scheme(kind="hmac", signature="h:s", delivery_id="{b:id}"), True, True),
        (Scheme(kind="hmac", signature="h:s", delivery_id="{h:id}"), False, True),
        (Scheme(kind="hmac", signature="h:s", signed="{h:id}.{body}", delivery_id="{h:id}"), True, True),
        (Scheme(kind="hmac", signature="h:s", signed="{h:id}.{body}", delivery_id="{h:id||h:other}"), False, True),
        (Scheme(kind="hmac", signature="h:s", signed="{b:token}", delivery_id="{b:token}"), True, False),
        (Scheme(kind="token", signature="h:s", delivery_id="{b:id}"), False, False),
        (Scheme(kind="jwt", signature="h:s", jwt=Jwt(algorithms=("HS256",)), delivery_id="{b:id}"), False, False),
        (Scheme(kind="jwt", signature="h:s", jwt=Jwt(algorithms=("HS256",), body_hash="h"), delivery_id="{c:jti}"), True, True),
    ],
)
def test_what_a_proof_covers(scheme: Scheme, signed_id: bool, covers_body: bool) -> None:
    assert (scheme.id_signed, scheme.covers_body) == (signed_id, covers_body)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "rot13"},
        {"signature": "x-signature"},
        {"signature": "z:name"},
        {"signature": "h:"},
        {"algorithm": "crc32"},
        {"encoding": "base32"},
        {"signed": "constant"},
        {"signed": "{body"},
        {"signed": "{nothing}"},
        {"canonical": "none such"},
        {"tolerance": 0},
        {"timestamp": "h:x-time"},
        {"key": "pem"},
        {"kind": "jwt"},
        {"delivery_id": "{b:}"},
    ],
)
def test_a_scheme_that_could_not_be_enforced_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Scheme(**{"kind": "hmac", "signature": "h:x-signature", **options})  # type: ignore[arg-type]


def test_sns_of_another_topic_is_refused() -> None:
    case = Case("sns", post({}, b'{"Type":"Notification"}'), "", "")
    assert case.code() == "missing_signature"


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.us-east-1.amazonaws.com/x.pem",
        "https://sns.us-east-1.amazonaws.com.example.com/x.pem",
        "https://sns.us-east-1.amazonaws.com@example.com/x.pem",
        "https://example.com/sns.us-east-1.amazonaws.com/x.pem",
        "https://sns.us-east-1.amazonaws.com:8443/x.pem",
        "https://sns.us-east-1.amazonaws.com/../x.pem?.pem#.pem",
        "https://bucket.s3.amazonaws.com/x.pem",
        "https://sns.us-east-1.amazonaws.com/x.pem\n",
        "https://sns.us-east-1.amazonaws.com\\@example.com/x.pem",
        "",
    ],
)
def test_certificates_of_other_hosts_are_never_fetched(url: str) -> None:
    body = {"Type": "Notification", "TopicArn": "t", "Signature": "ab", "SigningCertURL": url}
    with pytest.raises(VerificationError) as caught:
        document_request(PROVIDERS["sns"].scheme, post({}, json.dumps(body).encode()), (), {"topic_arn": "t"})
    assert caught.value.code == "untrusted_key"


def test_adyen_with_a_second_item_is_refused() -> None:
    item = {"NotificationRequestItem": {"additionalData": {"hmacSignature": "abcd"}, "amount": {}}}
    body = json.dumps({"notificationItems": [item, item]}).encode()
    assert refused(PROVIDERS["adyen"].scheme, post({}, body), "00" * 32) == "malformed"
