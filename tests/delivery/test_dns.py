"""Look-ups: bounded, fair between parties, and never stalled by one hung server."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import dns.asyncbackend
import pytest

from dispatcher.delivery.dns import LookupsBusy, NameLookupFailed, parse_hosts
from dispatcher.delivery.egress import EgressPolicy, EgressRefused
from dispatcher.delivery.flight import FLIGHT, Flight
from tests.delivery.endpoints import soon
from tests.delivery.nameserver import HANG, SERVFAIL, name_server

POLICY = EgressPolicy()
DEV = EgressPolicy(dev=True)


async def test_both_families() -> None:
    async with name_server({"app.test": ["93.184.216.34", "2606:4700::1111"]}) as names:
        resolver = names.resolver(POLICY)
        assert sorted(await resolver.lookup("App.Test.", "a")) == ["2606:4700::1111", "93.184.216.34"]
        assert sorted(names.asked) == [("app.test", "A"), ("app.test", "AAAA")]


async def test_what_aiohttp_is_told() -> None:
    FLIGHT.set(Flight("a", 0))
    many = [f"93.184.216.{number}" for number in range(1, 30)]
    async with name_server({"app.test": many}) as names:
        results = await names.resolver(POLICY).resolve("app.test", 443)
    assert len(results) == 8
    assert {result["port"] for result in results} == {443}
    assert {result["family"] for result in results} == {socket.AF_INET}
    assert {result["hostname"] for result in results} == {"app.test"}


@pytest.mark.parametrize(
    ("name", "text"), [("missing.test", "does not exist"), ("broken.test", "name servers"), ("empty.test", "no address")]
)
async def test_names_without_addresses(name: str, text: str) -> None:
    async with name_server({"broken.test": SERVFAIL, "empty.test": []}) as names:
        with pytest.raises(NameLookupFailed, match=text):
            await names.resolver(POLICY).lookup(name, "a")


async def test_a_hung_name_ends_with_its_budget() -> None:
    async with name_server({"hung.test": HANG}) as names:
        with pytest.raises(NameLookupFailed, match="no answer"):
            await names.resolver(POLICY, budget=0.1).lookup("hung.test", "a")


async def test_hung_names_of_many_do_not_delay_another() -> None:
    """Fifty hung look-ups in flight, as many as there may be of each party, and one more of the same party queued."""
    table = {f"hung{number}.test": HANG for number in range(100)} | {"fine.test": ["93.184.216.34"]}
    async with name_server(table) as names:
        resolver = names.resolver(POLICY, budget=30.0)
        hung = [asyncio.create_task(resolver.lookup(f"hung{number}.test", f"attacker{number // 5}")) for number in range(50)]
        await names.first.wait()
        async with soon():
            assert await resolver.lookup("fine.test", "tenant") == ("93.184.216.34",)
        assert not any(task.done() for task in hung)
        await resolver.close()
        assert all(isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*hung, return_exceptions=True))


async def test_a_party_waits_for_its_own_only() -> None:
    table = {f"hung{number}.test": HANG for number in range(4)} | {"fine.test": ["93.184.216.34"]}
    async with name_server(table) as names:
        resolver = names.resolver(POLICY, budget=0.4)
        hung = [asyncio.create_task(resolver.lookup(f"hung{number}.test", "attacker")) for number in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(LookupsBusy):
            await resolver.lookup("fine.test", "attacker")
        assert await resolver.lookup("fine.test", "tenant") == ("93.184.216.34",)
        results = await asyncio.gather(*hung, return_exceptions=True)
        assert all(isinstance(result, NameLookupFailed) for result in results)
        assert await resolver.lookup("fine.test", "attacker") == ("93.184.216.34",)


async def test_a_party_does_not_wait_for_a_question_another_has_queued() -> None:
    table = {f"hung{number}.test": HANG for number in range(4)} | {"fine.test": ["93.184.216.34"]}
    async with name_server(table) as names:
        resolver = names.resolver(POLICY, budget=30.0)
        queued = [asyncio.create_task(resolver.lookup(name, "attacker")) for name in table]
        await names.first.wait()
        async with soon():
            assert await resolver.lookup("fine.test", "tenant") == ("93.184.216.34",)
        assert not any(task.done() for task in queued)
        await resolver.close()
        await asyncio.gather(*queued, return_exceptions=True)


async def test_all_together_are_bounded() -> None:
    async with name_server({"hung1.test": HANG, "hung2.test": HANG}) as names:
        resolver = names.resolver(POLICY, budget=0.3, at_once=1)
        results = await asyncio.gather(*[resolver.lookup(f"hung{n}.test", f"party{n}") for n in (1, 2)], return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["LookupsBusy", "NameLookupFailed"]


async def test_one_question_at_a_time_for_one_name() -> None:
    async with name_server({"app.test": ["93.184.216.34"]}, ttl=0) as names:
        resolver = names.resolver(POLICY)
        results = await asyncio.gather(*[resolver.lookup("app.test", "a") for _ in range(20)])
        assert set(results) == {("93.184.216.34",)}
        assert len(names.asked) == 2


async def test_who_stops_waiting_does_not_stop_the_others() -> None:
    async with name_server({"hung.test": HANG}) as names:
        resolver = names.resolver(POLICY, budget=0.2)
        first, second = (asyncio.create_task(resolver.lookup("hung.test", "a")) for _ in range(2))
        await names.first.wait()
        first.cancel()
        with pytest.raises(NameLookupFailed):
            await second
        assert first.cancelled()


async def test_a_family_that_never_answers_is_not_waited_for() -> None:
    def answer(kind: str) -> Sequence[str]:
        return ["93.184.216.34"] if kind == "A" else HANG

    async with name_server({"half.test": answer}) as names, soon():
        assert await names.resolver(POLICY, budget=30.0).lookup("half.test", "a") == ("93.184.216.34",)


async def test_answers_are_kept_as_long_as_they_say_and_no_longer_than_allowed() -> None:
    now = [1_000]
    async with name_server({"app.test": ["93.184.216.34"]}, ttl=3_600) as names:
        resolver = names.resolver(POLICY, clock=lambda: now[0], cache_seconds=30)
        for moment, asked in ((1_000, 2), (1_029, 2), (1_030, 4), (1_000, 6)):
            now[0] = moment
            await resolver.lookup("app.test", "a")
            assert len(names.asked) == asked
    async with name_server({"app.test": ["93.184.216.34"]}, ttl=0) as names:
        resolver = names.resolver(POLICY)
        await resolver.lookup("app.test", "a")
        await resolver.lookup("app.test", "a")
        assert len(names.asked) == 4


async def test_the_cache_is_bounded() -> None:
    table = {f"app{number}.test": ["93.184.216.34"] for number in range(10)}
    async with name_server(table) as names:
        resolver = names.resolver(POLICY, cache_entries=3)
        for name in table:
            await resolver.lookup(name, "a")
        assert list(resolver._cache) == ["app7.test", "app8.test", "app9.test"]
        assert not resolver._limits._parties
        assert not resolver._asking


async def test_localhost_is_known_and_never_asked_for() -> None:
    async with name_server({"localhost": ["93.184.216.34"]}) as names:
        resolver = names.resolver(DEV)
        for name in ("localhost", "LOCALHOST.", "app.localhost"):
            assert await resolver.lookup(name, "a") == ("127.0.0.1", "::1")
        assert not names.asked


@pytest.mark.parametrize("name", ["127.1", "2130706433", "0x7f000001", "a.b.0x7f", "::1", "1.2.3.4.5", "127.0.0.1"])
async def test_what_might_be_an_address_is_never_asked_for(name: str) -> None:
    async with name_server({}) as names:
        with pytest.raises(EgressRefused):
            await names.resolver(DEV).lookup(name, "a")
        assert not names.asked


async def test_the_hosts_file_comes_first_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    async with name_server({"app.test": ["93.184.216.34"]}) as names:
        resolver = names.resolver(POLICY, hosts=hosts, cache_seconds=0)
        assert await resolver.lookup("app.test", "a") == ("93.184.216.34",)
        hosts.write_text("10.0.0.5 app.test App2.test # mine\n")
        assert await resolver.lookup("APP.test", "a") == ("10.0.0.5",)
        assert await resolver.lookup("app2.test", "a") == ("10.0.0.5",)
        hosts.write_text("10.0.0.6 app.test\n")
        os.utime(hosts, ns=(1, 1))
        assert await resolver.lookup("app.test", "a") == ("10.0.0.6",)
        FLIGHT.set(Flight("a", 0))
        with pytest.raises(EgressRefused):
            await resolver.resolve("app.test", 443)


def test_lines_of_a_hosts_file() -> None:
    text = "127.0.0.1 localhost\n# 10.0.0.1 no\n\n10.0.0.1\tapp App2. #x\nnonsense y\nfd00::1 app\n"
    assert parse_hosts(text) == {"localhost": ("127.0.0.1",), "app": ("10.0.0.1", "fd00::1"), "app2": ("10.0.0.1",)}


async def test_a_machine_out_of_sockets_is_not_the_names_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exhausted(*_: object) -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(dns.asyncbackend.get_backend("asyncio"), "make_socket", exhausted)
    async with name_server({"app.test": ["93.184.216.34"]}) as names:
        with pytest.raises(OSError, match="Too many open files"):
            await names.resolver(POLICY, budget=0.5).lookup("app.test", "a")
