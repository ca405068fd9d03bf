"""Whatever arrives, `verify` answers or raises VerificationError; nothing else, and never for a request nobody signed."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.webhooks.cases import NOW
from tests.webhooks.documented import documented
from webhooks import PROVIDERS, Request, VerificationError, verify
from webhooks.handshakes import answer, find
from webhooks.sources import parse_source, places
from webhooks.verify import document_request

CASES = documented()
PARAMS = {name: "x" for provider in PROVIDERS.values() for name in provider.params}
SECRETS = ("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "00" * 32)
NUMBERS = st.integers(NOW - 400, NOW + 400).map(str)
TEXTS = st.one_of(
    st.text(max_size=40),
    NUMBERS,
    st.binary(max_size=70).map(lambda raw: raw.hex()),
    st.binary(max_size=70).map(lambda raw: base64.b64encode(raw).decode()),
    st.sampled_from(
        ["2026-01-01T00:00:00Z", "t=1767225600,v1=ab", "v1,YWI=", "ts=1767225600;h1=ab", "a.b.c", "e30.e30.", "Bearer e30.e30.e30"]
    ),
    st.builds(
        lambda prefix, text: prefix + text, st.sampled_from(["sha256=", "v0=", "v1,", "Basic ", "Bearer ", "t=1767225600,v1="]), st.text()
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def _member(path: str, value: object, into: dict[str, object]) -> None:
    """Put `value` at a dotted path, lists where a step is a number."""
    name, _, rest = path.partition(".")
    if not rest:
        into[name] = value
        return
    inner: dict[str, object] = {}
    _member(rest.partition(".")[2] if rest[0].isdigit() else rest, value, inner)
    into[name] = [inner] if rest[0].isdigit() else {**(held if isinstance(held := into.get(name), dict) else {}), **inner}


@st.composite
def requests(draw: st.DrawFn, provider: str) -> Request:
    """Requests whose headers and members have the names this provider reads."""
    scheme = PROVIDERS[provider].scheme
    wanted = set(parse_source(scheme.signature)) | places(scheme.signed) | places(scheme.delivery_id) | places("{b:SigningCertURL}")
    headers = [(name, draw(TEXTS)) for kind, name in sorted(wanted) if kind == "h" and draw(st.integers(0, 9))]
    headers += draw(st.lists(st.tuples(st.sampled_from(["content-type", "x", *[name for name, _ in headers]]), TEXTS), max_size=2))
    body: dict[str, object] = draw(st.dictionaries(st.text(max_size=8), JSON, max_size=2))
    for kind, name in sorted(wanted):
        if kind == "b":
            _member(name, draw(st.one_of(TEXTS, JSON)), body)
    raw = draw(st.one_of(st.binary(max_size=200), st.just(json.dumps(body).encode())))
    form = draw(st.sampled_from([(), (("content-type", "application/x-www-form-urlencoded"),)]))
    method = draw(st.sampled_from(["POST", "GET", "OPTIONS", "HEAD"]))
    return Request.build(method, "https://example.com/?" + draw(st.text(max_size=60)), (*headers, *form), raw)


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_verify_raises_only_its_own_error(provider: str, data: st.DataObject) -> None:
    request = data.draw(requests(provider))
    scheme = PROVIDERS[provider].scheme
    document = data.draw(st.one_of(st.none(), st.binary(max_size=50), st.just(CASES["plaid"].document)))

    def attempt() -> None:
        document_request(scheme, request, SECRETS, PARAMS)
        verify(scheme, request, SECRETS, NOW, PARAMS, document=document)

    with pytest.raises(VerificationError) as caught:
        attempt()
    assert caught.value.code.isidentifier()
    assert caught.value.message


@pytest.mark.parametrize("provider", sorted(name for name in CASES if PROVIDERS[name].scheme.covers_body))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_the_body_is_noticed(provider: str, data: st.DataObject) -> None:
    case = CASES[provider]
    body = bytearray(case.request.body)
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    assert case.with_request(body=bytes(body)).code() != "accepted"


@pytest.mark.parametrize("provider", sorted(name for name, provider in PROVIDERS.items() if provider.challenges))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_handshakes_raise_only_their_own_error(provider: str, data: st.DataObject) -> None:
    request = data.draw(requests(provider))
    for verified in (False, True):
        challenge = find(PROVIDERS[provider].challenges, request, verified=verified, secrets=data.draw(st.sampled_from([(), ("secret",)])))
        if challenge is not None:
            try:
                made = answer(challenge, request, PARAMS, "secret")
            except VerificationError:
                continue
            assert len(made.response.body) <= 4096
            assert all("\r" not in value and "\n" not in value for _, value in made.response.headers)
