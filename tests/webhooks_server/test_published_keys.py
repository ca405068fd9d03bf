"""Keys that senders publish: fetched under the egress guard, kept, and fetched anew when an unknown one is named."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dispatcher.delivery import Courier, EgressPolicy, EgressRefused
from dispatcher.delivery.documents import DOCUMENT_BYTES, DocumentError
from tests.webhooks_server.senders import Senders

JWKS = "https://keys.example.com/jwks"
AUTH = {"type": "jwt", "algorithms": ["EdDSA"], "jwks_url": JWKS, "audience": "me"}


def _url_safe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _token(key: Ed25519PrivateKey, name: str, until: int) -> str:
    parts = [{"alg": "EdDSA", "kid": name}, {"aud": "me", "exp": until}]
    signed = ".".join(_url_safe(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{_url_safe(key.sign(signed.encode()))}"


def _published(keys: dict[str, Ed25519PrivateKey]) -> bytes:
    rows = [
        {"kty": "OKP", "crv": "Ed25519", "kid": name, "x": _url_safe(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))}
        for name, key in keys.items()
    ]
    return json.dumps({"keys": rows}).encode()


async def test_a_token_signed_with_a_published_key(senders: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, asked = {"one": Ed25519PrivateKey.generate()}, list[str]()

    async def fetch(_courier: Courier, url: str, body: bytes | None, _party: str) -> bytes:
        asked.append(url)
        if not keys:
            raise OSError("away")
        return _published(keys)

    monkeypatch.setattr(Courier, "fetch", fetch)
    await senders.webhook("jwt", "generic", auth=AUTH, event_key_expression="'key'", secrets=[])

    async def deliver(name: str, key: Ed25519PrivateKey, number: int) -> int:
        headers = {"authorization": f"Bearer {_token(key, name, senders.now + 60)}", "content-type": "application/json"}
        return (await senders.post("jwt", json.dumps({"n": number}).encode(), headers)).status_code

    first = keys["one"]
    assert [await deliver("one", first, number) for number in range(3)] == [200, 200, 200]
    assert asked == [JWKS]
    assert await deliver("one", Ed25519PrivateKey.generate(), 3) == 401
    second = Ed25519PrivateKey.generate()
    keys.clear()
    assert await deliver("two", second, 4) == 503, "an unknown key that cannot be fetched now: the sender shall try again"
    assert await senders.reason("jwt") == ("rejected", "key_unavailable")
    keys["two"] = second
    from datetime import timedelta

    senders.world.clock.advance(timedelta(seconds=31))
    assert await deliver("two", second, 5) == 200


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that answers everything the same."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def _answer(body: bytes, head: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


async def test_documents_are_small_plain_and_where_they_may_be() -> None:
    courier = Courier(EgressPolicy.parse(dev=True, allow_http=True), clock=lambda: 0, user_agent="test")
    try:
        async with answering(_answer(b"{}")) as url:
            assert await courier.fetch(url, None, "t") == b"{}"
            assert await courier.fetch(url, b"{}", "t") == b"{}"
        for answer in (
            _answer(b"", "302 Found\r\nlocation: /"),
            _answer(bytes(DOCUMENT_BYTES + 1)),
            _answer(b"x", "200 OK\r\ncontent-encoding: gzip"),
        ):
            async with answering(answer) as url:
                with pytest.raises(DocumentError):
                    await courier.fetch(url, None, "t")
    finally:
        await courier.aclose()
    strict = Courier(EgressPolicy.parse(), clock=lambda: 0, user_agent="test")
    try:
        with pytest.raises(EgressRefused):
            await strict.fetch("http://169.254.169.254/latest", None, "t")
    finally:
        await strict.aclose()
