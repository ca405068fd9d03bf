"""N7: certificates are checked against the URL's name, whatever address it led to."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.delivery import EgressPolicy
from dispatcher.delivery.transport import TransportBounds, default_tls
from dispatcher.engine.answers import EndpointBroken, Failed, Lost, Succeeded, Unreachable
from tests.delivery.authority import Authority
from tests.delivery.conftest import MakeCourier
from tests.delivery.endpoints import Script, answering, endpoint, no_events, push, response, saying, target
from tests.delivery.nameserver import name_server

ONE = answering(response(200, b"1"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def served_as(couriers: MakeCourier, authority: Authority, tls: ssl.SSLContext | None, script: Script = ONE) -> AsyncIterator[Any]:
    """(deliver to a host, the endpoint): every host name leads to the endpoint."""
    async with endpoint(script, tls=tls) as served, name_server({"app.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}) as names:
        resolver = names.resolver(EgressPolicy(dev=True))
        courier = couriers(tls=authority.client(), resolver=resolver, transport=TransportBounds(connect=0.3))

        async def deliver(host: str) -> Any:
            return (await courier.push(target(f"https://{host}:{served.port}/tasks"), push(), no_events)).answer

        yield deliver, served


async def test_a_good_certificate_with_the_name_in_sni(couriers: MakeCourier, authority: Authority) -> None:
    tls = authority.server("app.test")
    asked: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with served_as(couriers, authority, tls) as (deliver, served):
        assert await deliver("app.test") == Succeeded(b"1")
        assert await deliver("app.test") == Succeeded(b"1")
        assert asked == ["app.test"], "one handshake, then the connection is used again"
        assert served.requests[0].headers["host"] == f"app.test:{served.port}"


@pytest.mark.parametrize(
    ("host", "certificate", "text"),
    [
        ("other.test", {"host": "app.test"}, "Hostname mismatch"),
        ("app.test", {"host": "app.test", "ago": 20, "days": 10}, "expired"),
        ("app.test", {"host": "app.test", "ago": -5}, "not yet valid"),
        ("app.test", {"host": "app.test", "self_signed": True}, "self-signed"),
        ("127.0.0.1", {"host": "app.test"}, "IP address mismatch"),
    ],
)
async def test_bad_certificates(couriers: MakeCourier, authority: Authority, host: str, certificate: dict[str, Any], text: str) -> None:
    async with served_as(couriers, authority, authority.server(**certificate)) as (deliver, served):
        answer = await deliver(host)
        assert isinstance(answer, EndpointBroken)
        assert answer.code == "tls"
        assert text in answer.message
        assert not served.requests


async def test_an_authority_nobody_trusts(couriers: MakeCourier, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority.make(tmp_path)
    async with served_as(couriers, authority, stranger.server("app.test")) as (deliver, _):
        answer = await deliver("app.test")
        assert isinstance(answer, EndpointBroken)
        assert answer.code == "tls"


async def test_plain_http_where_tls_was_expected(couriers: MakeCourier, authority: Authority) -> None:
    async def script(visit: Any) -> None:
        await visit.reader.read(1)
        await visit.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    async with served_as(couriers, authority, None, script) as (deliver, _):
        answer = await deliver("app.test")
        assert isinstance(answer, EndpointBroken)
        assert answer.code == "tls"


async def test_tls_where_plain_http_was_expected(couriers: MakeCourier, authority: Authority) -> None:
    async with endpoint(ONE, tls=authority.server("app.test")) as served:
        receipt = await couriers().push(target(f"http://127.0.0.1:{served.port}/"), push(), no_events)
        assert isinstance(receipt.answer, Failed | Lost)


async def test_a_handshake_that_never_ends(couriers: MakeCourier, authority: Authority) -> None:
    async def script(visit: Any) -> None:
        await visit.gone()

    async with served_as(couriers, authority, None, script) as (deliver, _):
        answer = await deliver("app.test")
        assert isinstance(answer, Unreachable)
        assert answer.code == "connect_timeout"


async def test_a_handshake_cut_short(couriers: MakeCourier, authority: Authority) -> None:
    async def script(visit: Any) -> None:
        await visit.reader.read(1)

    async with served_as(couriers, authority, None, script) as (deliver, _):
        answer = await deliver("app.test")
        assert isinstance(answer, Unreachable)
        assert answer.code == "connection_reset"


def test_old_versions_are_refused() -> None:
    assert default_tls().minimum_version >= ssl.TLSVersion.TLSv1_2
    assert default_tls().verify_mode == ssl.CERT_REQUIRED
    assert default_tls().check_hostname


async def test_a_stream_cut_under_tls_is_lost(couriers: MakeCourier, authority: Authority) -> None:
    async with served_as(couriers, authority, authority.server("app.test"), saying()) as (deliver, _):
        assert isinstance(await deliver("app.test"), Lost)
