"""What logs cost on the wire: a task of 1,000 steps of 1 KB that waits 50 times, with logs sent by what is new and sent whole.

Deliveries are requests of turns; MB are those of their bodies; step replays are results the handler was given again instead of by a call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.bench.client import Client
from tests.bench.endpoint import KILOBYTES, WAITS
from tests.bench.loads import clients
from tests.bench.system import HOST, System, running, workspace

CHECKPOINTS = ("step", "turn")
WHOLE = 32_000_000
_LIMIT = "60s"


@dataclass(frozen=True, slots=True)
class LogCost:
    """One task's way to its end. Milliseconds are of processor time, of all parts."""

    checkpoint: str
    delta: bool
    deliveries: int
    sent_mb: float
    replays: int
    calls: int
    seconds: float
    cpu_ms: float

    def __str__(self) -> str:
        what = f"a checkpoint a {self.checkpoint}, {'what is new' if self.delta else 'the whole log'} sent"
        counts = f"{self.deliveries} deliveries, {self.sent_mb:.3f} MB sent, {self.replays:,} step replays, {self.calls:,} calls"
        return f"{KILOBYTES:,} steps of 1 KB, {WAITS} waits, {what}: {counts}, {self.seconds:.2f} s, {self.cpu_ms:.0f} CPU ms"


async def costs(signatures: str) -> list[LogCost]:
    """Every way, each in a system of its own: what a log may have to be sent whole is a setting of the server."""
    found = []
    for delta in (True, False):
        settings: dict[str, object] = {} if delta else {"log_inline_bytes": WHOLE}
        async with workspace() as directory, running(directory, signatures, settings) as system:
            for checkpoint in CHECKPOINTS:
                await _cost(system, checkpoint, delta=delta)  # plans are made, modules loaded
                found.append(await _cost(system, checkpoint, delta=delta))
    return found


async def _cost(system: System, checkpoint: str, *, delta: bool) -> LogCost:
    endpoint = Client(HOST, system.endpoint_port)
    async with clients(system, 1) as (client,):
        await endpoint.expect("GET", "/counts")
        before, began = system.cpu(), time.monotonic_ns()
        document = await client.expect("POST", f"/v1/runs?wait={_LIMIT}", {"workflow": f"replays-{checkpoint}", "input": {"id": "log"}})
        seconds, after = (time.monotonic_ns() - began) / 1e9, system.cpu()
        counts = await endpoint.expect("GET", "/counts")
    endpoint.close()
    if document.get("status") != "succeeded":
        raise RuntimeError(f"a durable run did not succeed: {document.get('status')} {document.get('error')}")
    assert counts["calls"] == KILOBYTES, counts
    cpu = sum(after[part] - before[part] for part in after)
    replays = counts["given"] - counts["calls"]
    return LogCost(checkpoint, delta, counts["deliveries"], counts["bytes"] / 1e6, replays, counts["calls"], seconds, cpu)
