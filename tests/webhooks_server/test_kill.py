"""kill -9 of the server while webhooks come in: whatever was answered 2xx is there, once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from tests.bench.client import Client
from tests.bench.system import HOST, create_token, end, free_port, launch, new_master_key, program, server_environment, until_ready
from tests.cli.running import new_database
from tests.webhooks_server.senders import SECRET, github, lines, numbered

SENDERS = 12
KILLS = 3
BETWEEN = 150  # deliveries answered before each kill


@dataclass
class Storm:
    """Senders that never give up: each delivery is sent under its own id until it is answered 2xx."""

    port: int
    answered: dict[int, str] = field(default_factory=dict)
    retried: int = 0
    over: bool = False
    _next: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self) -> None:
        """One sender."""
        client = Client(HOST, self.port)
        while not self.over:
            self._next += 1
            number = self._next
            while number not in self.answered:
                try:
                    await self._deliver(client, number)
                except (OSError, ConnectionError):
                    self.retried += 1
                    client.close()
                    client = Client(HOST, self.port)
                    await asyncio.wait([asyncio.ensure_future(self._news.wait())], timeout=0.05)
        client.close()

    async def _deliver(self, client: Client, number: int) -> None:
        body = numbered(number)
        headers = lines(github(body, delivery=f"delivery-{number}"))
        reply = await client.request("POST", "/hooks/default/github", body, headers)
        if reply.status == 200:
            self.answered[number] = reply.json()["id"]
            self._news.set()
        else:
            assert reply.status in {429, 503}, reply.body

    async def reached(self, count: int) -> None:
        """Wait until so many have been answered."""
        while len(self.answered) < count:
            self._news.clear()
            await self._news.wait()


@pytest.mark.slow
async def test_every_2xx_is_a_stored_event(server: str, tmp_path: Path) -> None:
    async with new_database(server) as dsn:
        port, key = free_port(), new_master_key()
        environment = server_environment(dsn, port, key, webhook_rate=10_000, webhook_burst=10_000)
        log = tmp_path / "server.log"
        with log.open("ab") as file:
            process = await launch([program("dispatcher"), "serve"], environment, file)
            await until_ready(port, "/readyz", process, log)
            client = Client(HOST, port, await create_token(dsn, environment))
            await client.expect("POST", "/v1/webhooks", {"name": "github", "source": "github", "secrets": [SECRET]})
            client.close()
            storm = Storm(port)
            senders = [asyncio.create_task(storm.send()) for _ in range(SENDERS)]
            for _ in range(KILLS):
                await storm.reached(len(storm.answered) + BETWEEN)
                process.kill()
                await process.wait()
                process = await launch([program("dispatcher"), "serve"], environment, file)
                await until_ready(port, "/readyz", process, log)
            await storm.reached(len(storm.answered) + BETWEEN)
            storm.over = True
            await asyncio.gather(*senders)
            await end(process)
        await _all_there(dsn, storm)


async def _all_there(dsn: str, storm: Storm) -> None:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select id, event_id from webhook_deliveries where status = 'accepted'")
        events = {row["id"] for row in await connection.fetch("select id from events")}
    finally:
        await connection.close()
    stored = {row["id"]: row["event_id"] for row in rows}
    assert storm.retried, "nothing was ever lost on the way: the kills came at the wrong moments"
    assert set(storm.answered.values()) == set(stored), "a 2xx names a delivery that is not there, or one is there twice"
    assert len(storm.answered) == len(stored), "two deliveries were answered with the same id"
    assert set(stored.values()) == events
