"""Fetching a small document under the egress guard: the keys senders of webhooks publish."""

from __future__ import annotations

import asyncio
from typing import Final

from dispatcher.delivery.exchange import Sender
from dispatcher.delivery.flight import Flight
from dispatcher.delivery.transport import FRAMING_ALLOWANCE, read_body, refused_encoding

DOCUMENT_BYTES: Final = 102_400
DOCUMENT_SECONDS: Final = 5.0


class DocumentError(Exception):
    """The answer is not the document: its status, its size or its coding."""


async def fetch(sender: Sender, url: str, body: bytes | None, party: str) -> bytes:
    """What a GET of `url`, or a POST of JSON, answers with 200. Raises DocumentError, or what broke the connection."""
    fields = {"user-agent": sender.user_agent, "accept-encoding": "identity"}
    if body is not None:
        fields["content-type"] = "application/json"
    flight = Flight(party, 2 * DOCUMENT_BYTES + FRAMING_ALLOWANCE)
    async with asyncio.timeout(DOCUMENT_SECONDS):
        response = await sender.transport.open("GET" if body is None else "POST", sender.url(url), fields, body, flight)
        try:
            if response.status != 200 or refused_encoding(response) is not None:
                raise DocumentError(f"the answer has status {response.status}, or is encoded")
            text, whole = await read_body(response, DOCUMENT_BYTES)
        finally:
            response.close()
    if not whole:
        raise DocumentError(f"the answer is larger than {DOCUMENT_BYTES:,} bytes")
    return text
