"""Asking an endpoint what it serves, and every answer that is no manifest, each with advice."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from dispatcher.delivery import BatchLimits, Courier, CourierBounds, DiscoveryError, EgressPolicy, Manifest
from dispatcher.delivery.discovery import EndpointLimits, parse_manifest
from handlers_sdk.signing import HmacSigner, verify
from tests.delivery.authority import Authority
from tests.delivery.conftest import MakeCourier
from tests.delivery.endpoints import NOW, SECRET, ULID, Request, Script, Visit, endpoint, pouring, response, saying

MANIFEST = {
    "protocol": {"min": 1, "max": 1},
    "sdk": "py/0.1",
    "version": "4f2c",
    "verified": "v1",
    "features": ["async", "batch", "ndjson", "cancel-push", "of the future"],
    "limits": {"request_bytes": 4_000_000, "timeout_ms": 60_000},
    "batch": {"max_items": 100, "max_bytes": 1_000_000, "concurrency": 32},
    "handlers": [{"name": "resize", "kind": "task", "body": "v1", "input_schema": {}}],
    "more": {"of": "the future"},
}
AUDIENCE = f"ep_{ULID}"


def serving(manifest: dict[str, Any], *, echo: bool = True) -> Script:
    """A GET gets this manifest, with the challenge echoed."""

    async def script(visit: Visit) -> None:
        while True:
            request = await visit.request()
            challenge = {"challenge": request.headers["task-challenge"]} if echo else {}
            await visit.send(response(200, json.dumps(manifest | challenge).encode(), kind="application/vnd.tasks.manifest+json"))

    return script


async def ask(courier: Courier, script: Script) -> tuple[Manifest, Request]:
    async with endpoint(script) as served:
        manifest = await courier.discover(served.url, [HmacSigner(SECRET)], [("authorization", "Bearer x")], AUDIENCE)
        return manifest, served.requests[0]


async def refusal(courier: Courier, script: Script) -> DiscoveryError:
    with pytest.raises(DiscoveryError) as caught:
        await ask(courier, script)
    assert caught.value.message.endswith(".")
    assert "127.0.0.1" not in caught.value.message
    return caught.value


async def test_a_manifest(courier: Courier) -> None:
    manifest, request = await ask(courier, serving(MANIFEST))
    assert manifest == Manifest(
        protocol_min=1,
        protocol_max=1,
        sdk="py/0.1",
        version="4f2c",
        features=frozenset({"async", "batch", "ndjson", "cancel-push", "of the future"}),
        limits=EndpointLimits(request_bytes=4_000_000, timeout_ms=60_000),
        batch=BatchLimits(100, 1_000_000),
        handlers=[{"name": "resize", "kind": "task", "body": "v1", "input_schema": {}}],
        verified="v1",
        challenge_ok=True,
    )
    assert request.line == "GET /tasks HTTP/1.1"
    assert request.body == b""
    assert request.headers["accept"] == "application/vnd.tasks.manifest+json;v=1"
    assert request.headers["authorization"] == "Bearer x"
    assert len(request.headers["task-challenge"]) == 32
    assert verify(request.headers, b"", secrets=[SECRET], audience=AUDIENCE, now=NOW) == "v1"


async def test_each_challenge_is_new(courier: Courier) -> None:
    challenges = {(await ask(courier, serving(MANIFEST)))[1].headers["task-challenge"] for _ in range(3)}
    assert len(challenges) == 3


async def test_the_least_a_manifest_needs(courier: Courier) -> None:
    manifest, _ = await ask(courier, serving({"protocol": {"min": 0, "max": 9}, "version": "", "handlers": []}, echo=False))
    assert (manifest.verified, manifest.challenge_ok, manifest.batch, manifest.features) == (None, False, None, frozenset())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (response(404), "not_found"),
        (response(405), "not_found"),
        (response(501), "not_found"),
        (response(401), "unauthorized"),
        (response(403), "unauthorized"),
        (response(410), "gone"),
        (response(406), "unsupported_protocol"),
        (response(415), "unsupported_protocol"),
        (response(500), "server_error"),
        (response(429), "server_error"),
        (response(301, b"", "location: /elsewhere"), "redirect"),
        (response(200, b"<html>", kind="text/html"), "html"),
        (response(200, b"hello", kind="text/plain"), "no_manifest"),
        (response(204), "no_manifest"),
        (response(200, b"{"), "bad_json"),
        (response(200, b'"\\u0000"'), "bad_json"),
        (response(200, b"[" * 500 + b"]" * 500), "bad_json"),
        (response(200, b"{}"), "bad_manifest"),
        (response(200, b'{"ok":true}'), "bad_manifest"),
        (response(200, b"[]"), "bad_manifest"),
        (response(200, b"x", "content-encoding: gzip"), "content_encoding"),
        (b"SSH-2.0-OpenSSH\r\n", "bad_manifest"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", "connection_broken"),
    ],
)
async def test_no_manifest(courier: Courier, raw: bytes, code: str) -> None:
    assert (await refusal(courier, saying(raw))).code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"protocol": {"min": 2, "max": 3}}, "unsupported_protocol"),
        ({"protocol": 1}, "bad_manifest"),
        ({"version": 5}, "bad_manifest"),
        ({"version": "x" * 201}, "bad_manifest"),
        ({"version": "é"}, "bad_manifest"),
        ({"handlers": {}}, "bad_manifest"),
        ({"handlers": ["resize"]}, "bad_manifest"),
        ({"features": "batch"}, "bad_manifest"),
        ({"batch": {"max_items": 0, "max_bytes": 1}}, "bad_manifest"),
        ({"batch": {"max_items": "many", "max_bytes": 1}}, "bad_manifest"),
        ({"limits": {"timeout_ms": "60s"}}, "bad_manifest"),
    ],
)
async def test_a_manifest_that_is_wrong(courier: Courier, change: dict[str, Any], code: str) -> None:
    assert (await refusal(courier, serving(MANIFEST | change))).code == code


async def test_a_cached_manifest(courier: Courier) -> None:
    assert (await refusal(courier, serving(MANIFEST | {"challenge": "of yesterday"}, echo=False))).code == "wrong_challenge"


async def test_too_much(couriers: MakeCourier) -> None:
    courier = couriers(bounds=CourierBounds(manifest=10_000))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    assert (await refusal(courier, pouring(head, b" " * 65_536))).code == "too_large"


async def test_no_answer_in_time(couriers: MakeCourier) -> None:
    assert (await refusal(couriers(bounds=CourierBounds(discover=0.1)), saying(stay=True))).code == "timeout"


async def test_closed_without_an_answer(courier: Courier) -> None:
    assert (await refusal(courier, saying())).code == "unreachable"


async def test_nobody_there(courier: Courier) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(DiscoveryError) as caught:
            await courier.discover(f"http://127.0.0.1:{closed.getsockname()[1]}/", (), (), AUDIENCE)
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "http://app.example.com/", "https://user:pass@app.example.com/", "nonsense"])
async def test_destinations_that_are_not_allowed(couriers: MakeCourier, url: str) -> None:
    with pytest.raises(DiscoveryError) as caught:
        await couriers(EgressPolicy()).discover(url, (), (), AUDIENCE)
    assert caught.value.code == "destination_blocked"


async def test_a_certificate_nobody_trusts(couriers: MakeCourier, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    async with endpoint(serving(MANIFEST), tls=authority.server("app.test")) as served:
        with pytest.raises(DiscoveryError) as caught:
            await couriers().discover(served.url, (), (), AUDIENCE)
    assert caught.value.code == "tls"


async def test_a_name_that_does_not_exist(couriers: MakeCourier) -> None:
    from tests.delivery.nameserver import name_server

    async with name_server({}) as names:
        courier = couriers(resolver=names.resolver(EgressPolicy(dev=True)))
        with pytest.raises(DiscoveryError) as caught:
            await courier.discover("http://missing.test/", (), (), AUDIENCE)
    assert caught.value.code == "dns"


def test_handlers_are_left_as_they_came() -> None:
    entries = [{"name": "a", "retries": "many"}, {"nonsense": True}, {}]
    body = json.dumps({"protocol": {"min": 1, "max": 1}, "version": "1", "handlers": entries, "verified": "v9"}).encode()
    manifest = parse_manifest(body, "nonce")
    assert manifest.handlers == entries
    assert manifest.verified is None
