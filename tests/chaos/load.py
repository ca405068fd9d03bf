"""The client: runs and events with idempotency keys, each sent until it is acknowledged, each acknowledgement written down."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.client import Client, Reply
from tests.bench.system import HOST, pause
from tests.chaos.endpoint import EVENT
from tests.chaos.ledger import Ack

_WORKFLOWS = ("quick", "flaky", "raw", "plain")
_CALL_SECONDS = 4.0
_REPEATED = 0.05  # of acknowledged calls are made again, as clients do that were not sure
_BULK = 8


class Refused(Exception):  # noqa: N818 - it says what happened
    """A call was refused for good, which no call here deserves."""


@dataclass(slots=True)
class Load:
    """Workers that send until told to stop. `answers` counts what calls came back as."""

    ports: list[int]
    token: str
    acks: Path
    rng: random.Random
    stopping: bool = False
    answers: Counter[str] = field(default_factory=Counter)
    acked: int = 0
    _made: int = 0
    _descriptor: int = -1

    async def run(self, workers: int) -> None:
        """Send until `stopping`; what is under way then is sent until it is acknowledged."""
        self._descriptor = os.open(self.acks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            await asyncio.gather(*[self._work() for _ in range(workers)])
        finally:
            os.close(self._descriptor)

    async def _work(self) -> None:
        while not self.stopping:
            kind = self.rng.choices(["run", "event", "bulk"], [6, 2, 1])[0]
            path, body = self._call(kind)
            await self._until_acknowledged(path, body)
            if self.rng.random() < _REPEATED:
                await self._until_acknowledged(path, body)
            await pause(self.rng.random() * 0.15)

    def _call(self, kind: str) -> tuple[str, dict[str, Any]]:
        if kind == "event":
            return "/v1/events", {"type": EVENT, "data": {"n": 1}, "idempotency_key": self._key()}
        if kind == "run":
            return "/v1/runs", self._run()
        return "/v1/runs/bulk", {"runs": [self._run() for _ in range(_BULK)]}

    def _run(self) -> dict[str, Any]:
        return {"workflow": self.rng.choice(_WORKFLOWS), "input": {"n": self.rng.randrange(100)}, "idempotency_key": self._key()}

    def _key(self) -> str:
        self._made += 1
        return f"key-{self._made}"

    async def _until_acknowledged(self, path: str, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        while True:
            reply = await self._try(path, encoded)
            if reply is not None and reply.status in (200, 201) and self._note(path, body, reply.json()):
                return
            if reply is not None and 400 <= reply.status < 500 and reply.status != 429:
                raise Refused(f"POST {path}: {reply.status} {reply.body[:500]!r}")
            await pause(0.1 + self.rng.random() * 0.2)

    async def _try(self, path: str, body: bytes) -> Reply | None:
        client = Client(HOST, self.rng.choice(self.ports), self.token)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                reply = await client.request("POST", path, body)
        except (OSError, TimeoutError) as error:
            self.answers[type(error).__name__] += 1
            return None
        finally:
            client.close()
        self.answers[str(reply.status)] += 1
        return reply

    def _note(self, path: str, body: dict[str, Any], answer: dict[str, Any]) -> bool:
        """Write down what was acknowledged; whether that was all of it."""
        if path == "/v1/events":
            self._write(Ack(body["idempotency_key"], answer["event_id"], len(answer["runs"]), event=True))
            return True
        rows = answer.get("rows", [answer])
        runs = body.get("runs", [body])
        for run, row in zip(runs, rows, strict=True):
            if "id" in row:
                self._write(Ack(run["idempotency_key"], row["id"]))
            elif row["status"] < 500:
                raise Refused(f"POST {path}: {row}")
        return all("id" in row for row in rows)

    def _write(self, ack: Ack) -> None:
        self.acked += 1
        os.write(self._descriptor, f"{ack.key} {ack.id} {ack.runs} {int(ack.event)}\n".encode())


def read(path: Path) -> list[Ack]:
    """Everything that was acknowledged."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [Ack(key, identifier, int(runs), bool(int(event))) for key, identifier, runs, event in lines]
