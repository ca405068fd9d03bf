"""Whether anything answers at a URL at all: for plain endpoints, of which nothing else can be asked."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import aiohttp

from dispatcher.delivery.dns import LookupsBusy, NameLookupFailed
from dispatcher.delivery.egress import EgressRefused
from dispatcher.delivery.exchange import Sender
from dispatcher.delivery.flight import Flight
from dispatcher.delivery.transport import FRAMING_ALLOWANCE, ResponseOverflow

REACH_SECONDS: Final = 5.0


async def reachable(sender: Sender, url: str, party: str) -> bool:
    """Whether a HEAD gets any HTTP answer, whatever it says. HEAD is safe: no handler takes it for work."""
    failures = (aiohttp.ClientError, EgressRefused, NameLookupFailed, LookupsBusy, ResponseOverflow, TimeoutError, OSError, ValueError)
    with suppress(*failures):
        async with asyncio.timeout(REACH_SECONDS):
            headers = {"user-agent": sender.user_agent, "accept-encoding": "identity"}
            flight = Flight(party, FRAMING_ALLOWANCE)
            response = await sender.transport.open("HEAD", sender.url(url), headers, None, flight)
            response.close()
            return True
    return False
