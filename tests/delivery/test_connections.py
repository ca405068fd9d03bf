"""Which connections are used again: never one that was closed, that holds bytes nobody asked for, or that the server will close."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from dispatcher.delivery import Courier, transport
from dispatcher.delivery.transport import TransportBounds
from dispatcher.engine.answers import Lost, Succeeded, Unreachable
from tests.delivery.conftest import MakeCourier
from tests.delivery.endpoints import Endpoint, Visit, answering, endpoint, no_events, push, response, soon, target

ONE = response(200, b"1")


async def deliver(courier: Courier, served: Endpoint, number: int = 0) -> Any:
    return (await courier.push(target(served.url), push(number), no_events)).answer


async def test_one_the_server_has_closed_is_not_used(courier: Courier) -> None:
    """The end has arrived in the kernel, but the event loop has not had a turn to notice."""
    async with endpoint(answering(ONE)) as served:
        for number in range(5):
            assert await deliver(courier, served, number) == Succeeded(b"1")
            served.visits[-1].shut()
        assert len(served.visits) == 5
        assert len(served.requests) == 5


async def test_many_closed_ones_are_dropped_at_once(courier: Courier) -> None:
    async with endpoint(answering(ONE)) as served:
        assert set(await asyncio.gather(*[deliver(courier, served, number) for number in range(10)])) == {Succeeded(b"1")}
        for visit in served.visits:
            visit.shut()
        assert await deliver(courier, served) == Succeeded(b"1")
        assert len(served.requests) == 11


async def test_one_closed_before_the_first_byte_is_made_up_for(courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes between the look at it and the first byte: nothing was sent, so the request goes out once on a new connection."""
    looked: list[bool] = []

    def closes_just_now(protocol: Any) -> bool:
        looked.append(True)
        protocol.transport.abort()
        return True

    async with endpoint(answering(ONE)) as served:
        assert await deliver(courier, served) == Succeeded(b"1")
        monkeypatch.setattr(transport, "_is_clean", closes_just_now)
        assert await deliver(courier, served, 1) == Succeeded(b"1")
        assert looked == [True]
        assert [request.json()["id"][-1] for request in served.requests] == ["0", "1"]
        assert len(served.visits) == 2


async def test_after_the_first_byte_nothing_is_sent_again(courier: Courier) -> None:
    """The server takes a second request on a kept connection, and dies: it may have run."""

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(ONE)
        await visit.request()

    async with endpoint(script) as served:
        assert await deliver(courier, served) == Succeeded(b"1")
        assert isinstance(await deliver(courier, served, 1), Lost)
        assert len(served.requests) == 2
        assert len(served.visits) == 1


async def test_a_new_connection_that_closes_at_once(courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made for this request and gone before its first byte: nothing ran, and there is no second try."""
    connect = transport._GuardedConnector.connect

    async def gone(self: Any, *arguments: Any, **named: Any) -> Any:
        connection = await connect(self, *arguments, **named)
        assert connection.transport is not None
        connection.transport.abort()
        return connection

    monkeypatch.setattr(transport._GuardedConnector, "connect", gone)
    async with endpoint(answering(ONE)) as served:
        assert isinstance(await deliver(courier, served), Unreachable)
        assert not served.requests


async def test_an_answer_nobody_asked_for_is_never_taken_for_the_next(courier: Courier) -> None:
    evil = response(200, b'"evil"')
    async with endpoint(answering(ONE + evil, response(200, b"2"))) as served:
        assert await deliver(courier, served) == Succeeded(b"1")
        assert await deliver(courier, served, 1) == Succeeded(b"2")
        assert len(served.visits) == 2


@pytest.mark.parametrize("turns", [0, 50])
async def test_an_answer_sent_while_idle_is_never_taken_for_the_next(courier: Courier, turns: int) -> None:
    """Whether it still lies in the kernel or the loop has read it already."""
    async with endpoint(answering(ONE)) as served:
        assert await deliver(courier, served) == Succeeded(b"1")
        served.visits[0].writer.write(response(200, b'"evil"'))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await deliver(courier, served, 1) == Succeeded(b"1")
        assert len(served.visits) == 2


@pytest.mark.parametrize(
    ("hint", "visits"), [("timeout=5", 1), ("timeout=4", 2), ("timeout=1, max=100", 2), ("max=3", 1), ("Timeout = 0", 2)]
)
async def test_the_servers_hint_is_heeded(couriers: MakeCourier, hint: str, visits: int) -> None:
    courier = couriers(transport=TransportBounds(keep_alive=4.0))
    async with endpoint(answering(response(200, b"1", f"keep-alive: {hint}"))) as served:
        await deliver(courier, served)
        await deliver(courier, served)
        assert len(served.visits) == visits


async def test_connection_close_is_heeded(courier: Courier) -> None:
    async with endpoint(answering(response(200, b"1", "connection: close"))) as served:
        await deliver(courier, served)
        await deliver(courier, served)
        assert len(served.visits) == 2


async def test_idle_connections_end(couriers: MakeCourier) -> None:
    courier = couriers(transport=TransportBounds(keep_alive=0.05))

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(ONE)
        await visit.gone()

    async with endpoint(script) as served:
        await deliver(courier, served)
        async with soon():
            await served.closed.wait()


async def test_closing_the_courier_closes_its_connections(courier: Courier) -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(ONE)
        await visit.gone()

    async with endpoint(script) as served:
        await deliver(courier, served)
        await courier.aclose()
        async with soon():
            await served.closed.wait()


async def test_a_server_that_is_gone_without_a_word_is_noticed(couriers: MakeCourier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its power is cut, and nothing comes back any more: the kernel asks after 20 s, and gives up after four times 5 s."""
    used: list[socket.socket] = []
    make = transport._make_socket

    def kept(*given: Any) -> socket.socket:
        used.append(make(*given))
        return used[-1]

    monkeypatch.setattr(transport, "_make_socket", kept)
    courier = couriers()
    async with endpoint(answering(ONE)) as served:
        assert await deliver(courier, served) == Succeeded(b"1")
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [used[0].getsockopt(socket.IPPROTO_TCP, option) for option in options] == [20, 5, 4]
        assert used[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
