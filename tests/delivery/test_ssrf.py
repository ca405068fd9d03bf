"""A canary listens on loopback. No spelling of a URL, and no answer of a name server, leads a courier of a normal deployment to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest
from yarl import URL

from dispatcher.delivery import Courier, DiscoveryError, EgressPolicy
from dispatcher.delivery.egress import BLOCKED, EgressRefused
from dispatcher.delivery.flight import Flight
from dispatcher.delivery.transport import Transport
from dispatcher.engine.answers import EndpointBroken, Succeeded
from tests.delivery import hostile
from tests.delivery.conftest import MakeCourier, make_courier
from tests.delivery.endpoints import Endpoint, answering, endpoint, no_events, push, response, target
from tests.delivery.nameserver import name_server

NAMES = {
    f"name{number}.test": [address] for number, address in enumerate([*hostile.NOT_GLOBAL_V4, *hostile.NOT_GLOBAL_V6, *hostile.METADATA])
}


@pytest.fixture
async def canary() -> AsyncIterator[Endpoint]:
    """Listens on 127.0.0.1 and ::1, on one port."""
    async with AsyncExitStack() as stack:
        four = await stack.enter_async_context(endpoint(answering(response(200, b"1"))))
        six = await stack.enter_async_context(endpoint(answering(response(200, b"1")), host="::1", port=four.port))
        four.visits = six.visits
        yield four


def production(canary: Endpoint) -> EgressPolicy:
    """As an operator would have it, but for http, and the canary's port being fine."""
    return EgressPolicy(allow_http=True, ports=frozenset({canary.port, 80, 443}))


async def test_the_canary_can_be_reached_where_it_may_be(canary: Endpoint, couriers: MakeCourier) -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        receipt = await couriers().push(target(f"http://{host}:{canary.port}/"), push(), no_events)
        assert receipt.answer == Succeeded(b"1")
    assert len(canary.visits) >= 2


async def test_no_spelling_reaches_the_canary(canary: Endpoint, couriers: MakeCourier) -> None:
    policy = production(canary)
    async with name_server({}) as names:
        courier = couriers(policy, resolver=names.resolver(policy))
        for url in hostile.urls(canary.port):
            receipt = await courier.push(target(url), push(timeout=2), no_events)
            assert isinstance(receipt.answer, EndpointBroken), url
            assert receipt.answer.code in {"destination_blocked", "dns"}, url
            assert receipt.latency_ms is None, url
    assert not canary.visits


@pytest.mark.parametrize(
    "environment", [{"HTTP_PROXY": "http://127.0.0.1:{}"}, {"http_proxy": "http://127.0.0.1:{}", "ALL_PROXY": "http://127.0.0.1:{}"}]
)
async def test_proxies_of_the_environment_are_not_used(
    canary: Endpoint, couriers: MakeCourier, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(canary.port))
    async with endpoint(answering(response(200, b"2"))) as served, name_server({"app.test": ["127.0.0.1"]}) as names:
        courier = couriers(resolver=names.resolver(EgressPolicy(dev=True)))
        receipt = await courier.push(target(f"http://app.test:{served.port}/"), push(), no_events)
    assert receipt.answer == Succeeded(b"2")
    assert not canary.visits


async def test_no_name_reaches_the_canary(canary: Endpoint, couriers: MakeCourier) -> None:
    policy = production(canary)
    async with name_server(NAMES) as names:
        courier = couriers(policy, resolver=names.resolver(policy))
        for name, addresses in NAMES.items():
            receipt = await courier.push(target(f"http://{name}:{canary.port}/"), push(), no_events)
            assert receipt.answer == EndpointBroken("destination_blocked", BLOCKED), addresses
    assert not canary.visits


async def test_a_mixed_answer_is_refused_whole(canary: Endpoint, couriers: MakeCourier) -> None:
    policy = production(canary)
    public = [f"93.184.216.{number}" for number in range(1, 30)]
    async with name_server({"mixed.test": [*public, "127.0.0.1"], "late.test": ["93.184.216.34", "::1"]}) as names:
        courier = couriers(policy, resolver=names.resolver(policy))
        for name in ("mixed.test", "late.test"):
            receipt = await courier.push(target(f"http://{name}:{canary.port}/"), push(timeout=0.5), no_events)
            assert receipt.answer == EndpointBroken("destination_blocked", BLOCKED)
    assert not canary.visits


async def test_a_name_that_changes_its_answer_is_judged_each_time(canary: Endpoint) -> None:
    """Rebinding: whatever was public a moment ago, the address about to be connected to is judged."""
    policy = production(canary)
    random_answers = random.Random(7)

    def answer(kind: str) -> Sequence[str]:
        return ["192.0.2.1" if random_answers.random() < 0.5 else "127.0.0.1"] if kind == "A" else []

    async with name_server({"rebind.test": answer}, ttl=0) as names:
        courier = make_courier(policy, resolver=names.resolver(policy))
        for _ in range(200):
            receipt = await courier.push(target(f"http://rebind.test:{canary.port}/"), push(), no_events)
            assert receipt.answer == EndpointBroken("destination_blocked", BLOCKED)
        await courier.aclose()
    assert not canary.visits


async def test_the_socket_is_judged_whatever_was_said_before(canary: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """URL and resolver look first; should either be wrong, no socket is made all the same."""
    policy = production(canary)
    monkeypatch.setattr("dispatcher.delivery.dns.judge_all", lambda *_: None)
    async with name_server({"inside.test": ["127.0.0.1", "::1"]}) as names:
        transport = Transport(policy, names.resolver(policy))
        for host in ("127.0.0.1", "[::1]", "inside.test", "localhost"):
            flight = Flight("a", 1_000)
            with pytest.raises(EgressRefused):
                await transport.open("POST", URL(f"http://{host}:{canary.port}/"), {}, b"{}", flight)
            assert not flight.sent
        await transport.close()
    assert not canary.visits


async def test_a_redirect_to_the_canary_is_not_followed(canary: Endpoint, courier: Courier) -> None:
    moved = [response(status, b"", f"location: http://127.0.0.1:{canary.port}/") for status in (301, 302, 303, 307, 308)]
    async with endpoint(answering(*moved)) as served:
        for _ in moved:
            receipt = await courier.push(target(served.url), push(), no_events)
            assert isinstance(receipt.answer, EndpointBroken)
            assert receipt.answer.code == "redirect"
        assert len(served.requests) == len(moved)
    assert not canary.visits


async def test_discovery_and_cancels_are_guarded_too(canary: Endpoint, couriers: MakeCourier) -> None:
    policy = production(canary)
    async with name_server({"inside.test": ["127.0.0.1"]}) as names:
        courier = couriers(policy, resolver=names.resolver(policy))
        for url in (f"http://127.0.0.1:{canary.port}/", f"http://inside.test:{canary.port}/"):
            with pytest.raises(DiscoveryError) as caught:
                await courier.discover(url, (), (), "ep_1")
            assert caught.value.code == "destination_blocked"
            assert "127.0.0.1" not in caught.value.message
            await courier.cancel(target(url, features=frozenset({"cancel-push"})), "tsk_1", 1, "why")
    await asyncio.sleep(0)
    assert not canary.visits
