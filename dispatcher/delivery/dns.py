"""Names to addresses, for the transport: bounded in time, in number, and between tenants.

`loop.getaddrinfo` runs in a small pool of threads that no timeout frees, so one hung server stalls every tenant's look-ups. Here a look-up
is a task on the loop with a total budget; each party has few at a time, so its hung ones only ever delay its own.

The hosts file and `localhost` are answered first, as a C library would, because dnspython knows neither.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
from aiohttp.abc import AbstractResolver, ResolveResult

from dispatcher.delivery.egress import EgressPolicy, EgressRefused, ends_in_number, judge_all
from dispatcher.delivery.flight import FLIGHT

LOCAL_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EAGAIN})
"""Out of descriptors, memory or ports: our own fault, not the other side's."""

_Key = tuple[str, str]


class NameLookupFailed(Exception):  # noqa: N818 - reads as what happened
    """The name has no usable address. The text says which way and holds no address."""


class LookupsBusy(Exception):  # noqa: N818 - reads as what happened
    """Our own limits left no time to ask: says nothing about the name."""


@dataclass(frozen=True, slots=True)
class LookupBounds:
    """Seconds, and how many. `second_wait` is how long one address family waits for the other once it has an answer (RFC 8305, 3).

    `looked_at` addresses of a name are judged, `addresses` of them are connected to.
    """

    budget: float = 2.0
    second_wait: float = 0.05
    looked_at: int = 64
    addresses: int = 8
    at_once: int = 64
    at_once_per_party: int = 4
    cache_entries: int = 1_024
    cache_seconds: int = 30


@dataclass(frozen=True, slots=True)
class _Cached:
    addresses: tuple[str, ...]
    stored: int
    ttl: int


class NameResolver(AbstractResolver):
    """The resolver of the transport's connector. `clock` gives unix seconds, for the ages of cached answers only."""

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        clock: Callable[[], int],
        bounds: LookupBounds | None = None,
        resolver: dns.asyncresolver.Resolver | None = None,
        hosts: Path = Path("/etc/hosts"),
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._bounds = bounds or LookupBounds()
        self._resolver = resolver
        self._hosts = HostsFile(hosts)
        self._limits = _Limits(self._bounds.at_once, self._bounds.at_once_per_party)
        self._cache: dict[str, _Cached] = {}
        self._asking: dict[_Key, asyncio.Task[tuple[str, ...]]] = {}

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Every address of the name, all of them judged: one that is refused refuses the name."""
        addresses = await self.lookup(host, FLIGHT.get().party)
        reason = judge_all(addresses, port, self._policy)
        if reason:
            raise EgressRefused(reason)
        return [_result(host, port, address) for address in addresses[: self._bounds.addresses]]

    async def lookup(self, host: str, party: str) -> tuple[str, ...]:
        """Literal addresses, at most `bounds.looked_at`. NameLookupFailed, LookupsBusy, or OSError of our own machine."""
        name = host.rstrip(".").lower()
        if ends_in_number(name) or ":" in name:
            raise EgressRefused("numeric_host")
        if name == "localhost" or name.endswith(".localhost"):
            return ("127.0.0.1", "::1")
        known = self._hosts.find(name) or self._remembered(name)
        if known:
            return known
        # One party's question is asked once; parties do not share one, or a name queued behind A's hung look-ups would hang for B.
        key = (party, name)
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(host, name, party))
            task.add_done_callback(lambda done: self._answered(key, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the look-ups still under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, host: str, name: str, party: str) -> tuple[str, ...]:
        """Half of the budget may go into waiting for a turn, so that a question asked has time for its answer."""
        budget = self._bounds.budget
        try:
            async with asyncio.timeout(budget), self._limits.turn(party, budget / 2):
                return await self._query(host, name)
        except TimeoutError:
            raise NameLookupFailed(f"no answer for the host name within {budget:g} s") from None

    async def _query(self, host: str, name: str) -> tuple[str, ...]:
        """Both families at once; the slower one is waited for only briefly."""
        queries = [asyncio.create_task(self._family(host, kind)) for kind in (dns.rdatatype.A, dns.rdatatype.AAAA)]
        try:
            done, pending = await asyncio.wait(queries, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                found = any(not query.exception() and query.result()[0] for query in done)
                await asyncio.wait(pending, timeout=self._bounds.second_wait if found else None)
            return self._collect(name, [query for query in queries if query.done()])
        finally:
            for query in queries:
                query.cancel()

    async def _family(self, host: str, kind: dns.rdatatype.RdataType) -> tuple[tuple[str, ...], int]:
        if self._resolver is None:
            self._resolver = dns.asyncresolver.Resolver()
        try:
            answer = await self._resolver.resolve(host, kind, lifetime=self._bounds.budget, raise_on_no_answer=False, search=True)
        except dns.resolver.NXDOMAIN:
            raise NameLookupFailed("the host name does not exist") from None
        except dns.exception.DNSException as error:
            _raise_local(error)
            raise NameLookupFailed("the host name cannot be resolved: its name servers do not answer or answer with an error") from None
        rows = answer.rrset or ()
        return tuple(row.to_text() for row in rows), answer.rrset.ttl if answer.rrset is not None else 0

    def _collect(self, name: str, queries: Iterable[asyncio.Task[tuple[tuple[str, ...], int]]]) -> tuple[str, ...]:
        failures = [error for query in queries if (error := query.exception())]
        answers = [query.result() for query in queries if not query.exception()]
        addresses = tuple(address for found, _ in answers for address in found)[: self._bounds.looked_at]
        if not addresses:
            raise failures[0] if failures else NameLookupFailed("the host name has no address")
        self._remember(name, addresses, min(ttl for found, ttl in answers if found))
        return addresses

    def _remembered(self, name: str) -> tuple[str, ...] | None:
        entry = self._cache.get(name)
        if entry is not None and 0 <= self._clock() - entry.stored < entry.ttl:
            return entry.addresses
        return None

    def _remember(self, name: str, addresses: tuple[str, ...], ttl: int) -> None:
        self._cache.pop(name, None)
        if ttl <= 0:
            return
        if len(self._cache) >= self._bounds.cache_entries:
            del self._cache[next(iter(self._cache))]
        self._cache[name] = _Cached(addresses, self._clock(), min(ttl, self._bounds.cache_seconds))

    def _answered(self, key: _Key, task: asyncio.Task[tuple[str, ...]]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # mark it as seen: whoever asked may be gone


class HostsFile:
    """A hosts file, read again whenever its modification time changes; a missing one is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at: int | None = None
        self._names: dict[str, tuple[str, ...]] = {}

    def find(self, name: str) -> tuple[str, ...]:
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._read_at:
                self._names = parse_hosts(self._path.read_text("utf-8", "replace"))
                self._read_at = changed
        except OSError:
            return ()
        return self._names.get(name, ())


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Lower-case names to addresses in the order of the file; lines that do not begin with an address are skipped."""
    names: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *rest = line.partition("#")[0].split() or [""]
        if _is_address(address):
            for name in rest:
                key = name.rstrip(".").lower()
                names[key] = (*names.get(key, ()), address)
    return names


class _Limits:
    """How many look-ups run at once, in all and for one party."""

    def __init__(self, at_once: int, per_party: int) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._per_party = per_party
        self._parties: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, party: str, wait: float) -> AsyncIterator[None]:
        """A turn, or LookupsBusy when none comes within `wait` seconds."""
        own, users = self._parties.get(party) or (asyncio.Semaphore(self._per_party), 0)
        self._parties[party] = (own, users + 1)
        try:
            await self._acquire(own, wait)
            try:
                yield
            finally:
                self._all.release()
                own.release()
        finally:
            self._leave(party, own)

    async def _acquire(self, own: asyncio.Semaphore, wait: float) -> None:
        try:
            async with asyncio.timeout(wait):
                await own.acquire()
                try:
                    await self._all.acquire()
                except BaseException:
                    own.release()
                    raise
        except TimeoutError:
            raise LookupsBusy("too many name look-ups at once") from None

    def _leave(self, party: str, own: asyncio.Semaphore) -> None:
        _, users = self._parties[party]
        if users > 1:
            self._parties[party] = (own, users - 1)
        else:
            del self._parties[party]


def _result(host: str, port: int, address: str) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _raise_local(error: dns.exception.DNSException) -> None:
    """Name servers that could not be asked because this machine is out of something are not the name's fault."""
    for entry in getattr(error, "kwargs", {}).get("errors") or ():
        cause = entry[3] if len(entry) > 3 else None
        if isinstance(cause, OSError) and cause.errno in LOCAL_ERRNOS:
            raise cause
