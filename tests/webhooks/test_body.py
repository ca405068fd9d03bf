"""What expressions are given of a request."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.webhooks.cases import post
from webhooks import PROVIDERS, BodyError, Scheme
from webhooks.body import kept_headers, read
from webhooks.request import DEPTH_MAX

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def value(body: bytes, content_type: str = "", **options: Any) -> Any:
    return read(post({"Content-Type": content_type} if content_type else {}, body), **options)


def code(body: bytes, content_type: str = "", headers: dict[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(BodyError) as caught:
        read(post({"Content-Type": content_type, **(headers or {})}, body), **options)
    return caught.value.code


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"a":1}', JSON, {"a": 1}),
        (b'[{"a":1}]', "application/json; charset=utf-8", [{"a": 1}]),
        (b'\xef\xbb\xbf {"a":1}', "application/vnd.api+json", {"a": 1}),
        (b'{"a":1}', "text/plain; charset=UTF-8", {"a": 1}),
        (b'{"a":1}', "", {"a": 1}),
        (b"", JSON, {}),
        (b'"text"', JSON, {"raw": '"text"'}),
        (b"{not json", "text/plain", {"raw": "{not json"}),
        (b"<xml/>", "application/xml", {"raw": "<xml/>"}),
        (b"\xff\x00", "application/octet-stream", {"raw_base64": "/wA="}),
        (b"a=1&b=&a=2&c=%E2%98%83", FORM, {"a": ["1", "2"], "b": "", "c": "☃"}),
        (urlencode({"payload": '{"type":"block_actions"}'}).encode(), FORM, {"type": "block_actions"}),
        (b"payload=not+json&x=1", FORM, {"payload": "not json", "x": "1"}),
        (b"payload=1&payload=2", FORM, {"payload": ["1", "2"]}),
        (b"command=%2Fdeploy&text=now", FORM, {"command": "/deploy", "text": "now"}),
        (b"a=%FF", FORM, {"a": "\ufffd"}),
        (rb'{"a":"\u0000\ud800"}', JSON, {"a": "\x00\ud800"}),
    ],
)
def test_bodies(body: bytes, content_type: str, expected: object) -> None:
    assert value(body, content_type) == expected


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", JSON),
        (b"{}x", JSON),
        (b'{"a":NaN}', JSON),
        (b'{"a":1e999}', JSON),
        (b'{"a":' + b"1" * 5_000 + b"}", JSON),
        (b"\xff", JSON),
        ('{"a":1}'.encode("utf-16"), JSON),
        (b"[" * (DEPTH_MAX + 2) + b"]" * (DEPTH_MAX + 2), JSON),
        (b"[" * 100_000, JSON),
        (b'{"a":' * 100_000, JSON),
        (b"&".join([b"a=1"] * 1_001), FORM),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=b"),
        (b"--b\r\nno end", "multipart/form-data; boundary=b"),
        (b"--b\r\n\r\nno name\r\n--b--", "multipart/form-data; boundary=b"),
        (b"--b\r\n" * 300 + b"--b--", "multipart/form-data; boundary=b"),
    ],
)
def test_bodies_that_are_not_what_they_say(body: bytes, content_type: str) -> None:
    assert code(body, content_type) == "invalid_body"


def test_depth_is_bounded_and_width_is_not() -> None:
    assert value(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, JSON)
    assert len(value(b"[" + b"[]," * 10_000 + b"[]]", JSON)) == 10_001


def test_multipart() -> None:
    body = (
        b'preamble\r\n--b\r\nContent-Disposition: form-data; name="to"\r\n\r\nh\xc3\xa9llo\r\n'
        b'--b\r\nContent-Disposition: form-data; name="a \\"b\\""\r\n\r\nline\r\n--c\r\n'
        b'--b\r\ncontent-disposition: form-data; name=file; filename="x;y.bin"\r\nContent-Type: image/png\r\n\r\n\x00\xff\r\n--b--\r\n'
    )
    file = {"filename": "x;y.bin", "content_type": "image/png", "bytes": 2}
    found = value(body, 'multipart/form-data; boundary="b"')
    digest = found["file"].pop("sha256")
    assert len(digest) == 64
    assert found == {"to": "héllo", 'a "b"': "line\r\n--c", "file": file}


def test_static_payload_wins() -> None:
    assert value(b'{"a":1,"b":2}', JSON, static_payload={"b": 3, "c": 4}) == {"a": 1, "b": 3, "c": 4}
    assert value(b"[1]", JSON, static_payload={"c": 4}) == {"items": [1], "c": 4}
    assert value(b"x", "", static_payload={"raw": 4}) == {"raw": 4}
    assert value(b"token", "", claims={"a": 1}, static_payload={"b": 2}) == {"a": 1, "b": 2}


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate", "identity", "identity, gzip"])
def test_content_encodings(encoding: str) -> None:
    raw = b'{"a":1}'
    sent = gzip.compress(raw, mtime=0) if "gzip" in encoding.lower() else zlib.compress(raw) if encoding == "deflate" else raw
    assert read(post({"Content-Type": JSON, "Content-Encoding": encoding}, sent)) == {"a": 1}


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "content_encoding"),
        ("br", b"{}", "content_encoding"),
        ("gzip", b"{}", "invalid_body"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-3], "invalid_body"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", "invalid_body"),
    ],
)
def test_content_encodings_that_are_refused(encoding: str, body: bytes, expected: str) -> None:
    assert code(body, JSON, {"Content-Encoding": encoding}) == expected


def test_bombs_are_refused() -> None:
    assert code(gzip.compress(b" " * 200_000_000, 9, mtime=0), JSON, {"Content-Encoding": "gzip"}) == "too_large"
    assert code(zlib.compress(b" " * 20_000_000), JSON, {"Content-Encoding": "deflate"}) == "too_large"


def test_two_encoding_headers_count_as_two() -> None:
    request = post({"Content-Type": JSON}, gzip.compress(b"{}", mtime=0))
    headers = (*request.headers, ("content-encoding", "gzip"), ("content-encoding", "gzip"))
    with pytest.raises(BodyError, match="once"):
        read(type(request)("POST", request.url, headers, "", request.body))


def test_credentials_are_not_kept() -> None:
    headers = {
        **dict.fromkeys(("Authorization", "Cookie", "X-Api-Key", "X-Gitlab-Token", "X-Hook-Secret", "X-Goog-Channel-Token"), "s3cret"),
        **dict.fromkeys(("X-Telegram-Bot-Api-Secret-Token", "apikey", "Proxy-Authorization", "X-Auth", "my-password"), "s3cret"),
        "X-GitHub-Event": "push",
        "I-Twilio-Idempotency-Token": "kept",
        "X-Author": "kept",
        "X-Forwarded-For": "10.0.0.1",
    }
    kept = kept_headers(post(headers, b""), PROVIDERS["github"].scheme)
    assert "s3cret" not in json.dumps(kept)
    assert sorted(kept) == ["i-twilio-idempotency-token", "x-author", "x-forwarded-for", "x-github-event"]


def test_the_header_that_carries_the_secret_is_not_kept_whatever_its_name() -> None:
    request = post({"X-Anything": "s3cret", "X-Other": "1"}, b"")
    assert kept_headers(request, Scheme(kind="token", signature="h:x-anything")) == {"x-other": "1"}
    assert kept_headers(request, Scheme(kind="hmac", signature="h:x-anything")) == {"x-anything": "s3cret", "x-other": "1"}
    repeated = type(request)("POST", request.url, (("a", "1"), ("a", "2")), "", b"")
    assert kept_headers(repeated, PROVIDERS["github"].scheme) == {"a": "1, 2"}
