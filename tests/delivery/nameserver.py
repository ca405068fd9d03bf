"""A name server on loopback that answers from a table, or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from dispatcher.delivery.dns import LookupBounds, NameResolver
from dispatcher.delivery.egress import EgressPolicy
from tests.delivery.endpoints import NOW

HANG = "hang"
SERVFAIL = "servfail"
Answers = Sequence[str] | Callable[[str], Sequence[str]] | str
NO_HOSTS = Path("/nonexistent/hosts")


@dataclass(slots=True)
class NameServer(asyncio.DatagramProtocol):
    """`table` maps names to addresses, to a function of the query's type, to HANG or to SERVFAIL; other names do not exist."""

    table: Mapping[str, Answers]
    ttl: int = 60
    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    transport: Any = None

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        self.first.set()
        answers = self.table.get(name)
        if callable(answers):
            answers = answers(kind)
        if answers == HANG:
            return
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if answers is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif answers == SERVFAIL:
            reply.set_rcode(dns.rcode.SERVFAIL)
        else:
            fitting = [answer for answer in answers if (":" in answer) == (kind == "AAAA")]
            if fitting:
                reply.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *fitting))
        self.transport.sendto(reply.to_wire(), addr)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def resolver(
        self, policy: EgressPolicy, *, clock: Callable[[], int] = lambda: NOW, hosts: Path = NO_HOSTS, **bounds: Any
    ) -> NameResolver:
        """A resolver that asks only this server."""
        asking = dns.asyncresolver.Resolver(configure=False)
        asking.nameservers = ["127.0.0.1"]
        asking.port = self.port
        return NameResolver(policy, clock=clock, resolver=asking, hosts=hosts, bounds=LookupBounds(**bounds))


@asynccontextmanager
async def name_server(table: Mapping[str, Answers], ttl: int = 60) -> AsyncIterator[NameServer]:
    """A name server as long as the block lasts."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(table, ttl), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
        await asyncio.sleep(0)
