"""Sources described through the API."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from pydantic import ValidationError

from tests.webhooks.cases import NOW, post
from webhooks import VerificationError, verify
from webhooks.generic import AUTH
from webhooks.keys import check_secret

BODY = b'{"id":"evt_1"}'


def read(**members: object) -> object:
    return AUTH.validate_python(members)


@pytest.mark.parametrize(
    ("auth", "headers", "secret"),
    [
        ({"type": "hmac", "header": "X-Sig", "algorithm": "sha512", "encoding": "base64url"}, None, "secret"),
        ({"type": "basic", "username": "user"}, {"Authorization": "Basic " + base64.b64encode(b"user:pa:ss").decode()}, "pa:ss"),
        ({"type": "api_key", "header": "X-API-Key"}, {"X-Api-Key": "key"}, "key"),
        ({"type": "api_key", "header": "Authorization", "prefix": "Token "}, {"Authorization": "token key"}, "key"),
        ({"type": "bearer"}, {"Authorization": "Bearer key"}, "key"),
        ({"type": "none"}, {}, "unused"),
    ],
)
def test_described_sources(auth: dict[str, object], headers: dict[str, str] | None, secret: str) -> None:
    described = AUTH.validate_python(auth)
    digest = hmac.digest(b"secret", BODY, "sha512")
    sent = {"X-Sig": base64.urlsafe_b64encode(digest).decode()} if headers is None else headers
    verify(described.scheme(), post(sent, BODY), [secret], NOW, described.params())
    if auth["type"] != "none":
        with pytest.raises(VerificationError, match="no active secret"):
            verify(described.scheme(), post(sent, BODY), ["other"], NOW, described.params())


def test_api_key_in_the_query() -> None:
    scheme = AUTH.validate_python({"type": "api_key", "query": "k"}).scheme()
    request = post({}, BODY, "https://example.com/?k=a%20b")
    assert verify(scheme, request, ["a b"], NOW).secret_index == 0
    with pytest.raises(VerificationError, match="2 times"):
        verify(scheme, post({}, BODY, "https://example.com/?k=a&k=b"), ["a"], NOW)


PUBLIC = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


def test_public_keys() -> None:
    rsa_key, ec_key, ed_key = (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    )
    signatures = {
        "rsa": (rsa_key.sign(BODY, padding.PKCS1v15(), hashes.SHA512()), rsa_key.public_key().public_bytes(*PUBLIC)),
        "ecdsa": (ec_key.sign(BODY, ec.ECDSA(hashes.SHA512())), ec_key.public_key().public_bytes(*PUBLIC)),
        "ed25519": (ed_key.sign(BODY), ed_key.public_key().public_bytes(*PUBLIC)),
    }
    for kind, (signature, public) in signatures.items():
        scheme = AUTH.validate_python({"type": kind, "header": "X-Sig", "algorithm": "sha512", "encoding": "base64"}).scheme()
        request = post({"X-Sig": base64.b64encode(signature).decode()}, BODY)
        check_secret(scheme, public.decode())
        assert verify(scheme, request, ["-----BEGIN nothing", public.decode()], NOW).secret_index == 1
        other = next(pem for name, (_, pem) in signatures.items() if name != kind)
        with pytest.raises(VerificationError) as caught:
            verify(scheme, request, [other.decode()], NOW)
        assert caught.value.code == "bad_secret"
        with pytest.raises(ValueError, match=kind):
            check_secret(scheme, other.decode())


def test_short_rsa_keys_are_refused() -> None:
    pem = rsa.generate_private_key(65537, 1024).public_key().public_bytes(*PUBLIC).decode()
    with pytest.raises(ValueError, match="2048"):
        check_secret(AUTH.validate_python({"type": "rsa", "header": "x"}).scheme(), pem)


def _token(header: Mapping[str, object], claims: Mapping[str, object], secret: bytes = b"secret") -> str:
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims))
    return f"{text}.{base64.urlsafe_b64encode(hmac.digest(secret, text.encode(), 'sha256')).decode().rstrip('=')}"


HS = {"type": "jwt", "algorithms": ["HS256"], "issuer": "us", "audience": "them"}
GOOD = {"iss": "us", "aud": ["others", "them"], "exp": NOW + 10}


@pytest.mark.parametrize(
    ("header", "claims", "code"),
    [
        ({"alg": "HS256"}, GOOD, "accepted"),
        ({"alg": "none"}, GOOD, "mismatch"),
        ({"alg": "HS512"}, GOOD, "mismatch"),
        ({"alg": "HS256", "crit": ["b64"]}, GOOD, "malformed"),
        ({"alg": "HS256"}, {**GOOD, "iss": "them"}, "mismatch"),
        ({"alg": "HS256"}, {**GOOD, "aud": "others"}, "mismatch"),
        ({"alg": "HS256"}, {"iss": "us", "aud": "them"}, "missing_field"),
        ({"alg": "HS256"}, {**GOOD, "exp": NOW - 61}, "stale"),
        ({"alg": "HS256"}, {**GOOD, "nbf": NOW + 61}, "stale"),
        ({"alg": "HS256"}, {**GOOD, "iat": NOW + 301}, "stale"),
        ({"alg": "HS256"}, {**GOOD, "exp": "never"}, "malformed"),
        ({"alg": "HS256"}, {**GOOD, "exp": True}, "malformed"),
        ({"alg": "HS256"}, {**GOOD, "exp": 10**400}, "malformed"),
        ({"alg": "HS256"}, {**GOOD, "exp": None}, "malformed"),
    ],
)
def test_tokens(header: dict[str, object], claims: dict[str, object], code: str) -> None:
    scheme = AUTH.validate_python(HS).scheme()
    request = post({"Authorization": "Bearer " + _token(header, claims)}, BODY)
    try:
        verify(scheme, request, ["secret"], NOW)
        outcome = "accepted"
    except VerificationError as error:
        outcome = error.code
    assert outcome == code


def test_a_public_key_is_never_a_shared_secret() -> None:
    """The classic confusion: a token signed with HS256 under the text of the public key."""
    pem = rsa.generate_private_key(65537, 2048).public_key().public_bytes(*PUBLIC)
    scheme = AUTH.validate_python({**HS, "algorithms": ["RS256"]}).scheme()
    request = post({"Authorization": "Bearer " + _token({"alg": "HS256"}, GOOD, pem)}, BODY)
    with pytest.raises(VerificationError, match="RS256"):
        verify(scheme, request, [pem.decode()], NOW)


@pytest.mark.parametrize(
    "members",
    [
        {"type": "hmac"},
        {"type": "hmac", "header": "x y"},
        {"type": "hmac", "header": "x", "algorithm": "sha3"},
        {"type": "hmac", "header": "x", "signed": "{body"},
        {"type": "hmac", "header": "x", "timestamp": "h:x-time"},
        {"type": "hmac", "header": "x", "tolerance": 0},
        {"type": "hmac", "header": "x", "key": "pem"},
        {"type": "hmac", "header": "x", "surprise": 1},
        {"type": "basic", "username": "a:b"},
        {"type": "api_key"},
        {"type": "api_key", "header": "a", "query": "b"},
        {"type": "jwt", "algorithms": ["none"]},
        {"type": "jwt", "algorithms": []},
        {"type": "jwt", "algorithms": ["HS256", "RS256"]},
        {"type": "jwt", "algorithms": ["RS256"], "jwks_url": "https://example.com/keys"},
        {"type": "jwt", "algorithms": ["HS256"], "jwks_url": "https://example.com/keys", "audience": "us"},
        {"type": "jwt", "algorithms": ["RS256"], "jwks_url": "http://example.com/keys", "audience": "us"},
        {"type": "jwt", "algorithms": ["RS256"], "jwks_url": "https://{h:host}/keys", "audience": "us"},
        {"type": "jwt", "algorithms": ["HS256"], "audience": "{h:x}"},
        {"type": "magic"},
    ],
)
def test_descriptions_that_could_not_be_enforced_are_refused(members: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        read(**members)
