"""(graphs) what a task costs that is part of a graph: 200 one after another, and 1,000 beside each other between one and one.

A task counts as one run does elsewhere, so that times and processor time stand beside (a).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.client import Client
from tests.bench.cpu import machine_ms
from tests.bench.endpoint import SHAPES, Shape
from tests.bench.loads import Measured, check_once, foreign, names
from tests.bench.system import System, pause

_LIMIT_SECONDS = 180.0
_POLL_SECONDS = 0.01


CHAIN: Final = SHAPES["graph-chain"]
FAN: Final = SHAPES["graph-fan"]
DIAMOND: Final = SHAPES["graph-diamond"]


@dataclass(frozen=True, slots=True)
class Load:
    """So many runs of a workflow at a time."""

    shape: Shape
    runs: int = 1

    @property
    def label(self) -> str:
        """Its name in the table."""
        return f"graphs {f'{self.runs} × ' if self.runs > 1 else ''}{self.shape.label}"


def loads(runs: int) -> Sequence[Load]:
    """What is measured; the last one is what many small graphs cost when there is enough to do."""
    return Load(CHAIN), Load(FAN), Load(DIAMOND, runs)


async def measure(system: System, load: Load) -> Measured:
    """Start runs and wait until all their tasks have run, each once, and all are recorded."""
    runs = names(load.runs)
    wanted = [f"{run}.{task}" for run in runs for task in load.shape.parents]
    measured = Measured(load.label, len(wanted))
    client = system.client()
    try:
        system.sink.expect(len(wanted))
        before, busy, first = system.cpu(), machine_ms(), time.monotonic_ns()
        body = {"runs": [{"workflow": load.shape.workflow, "input": {"id": run}} for run in runs]}
        rows = (await client.expect("POST", "/v1/runs/bulk", body))["rows"]
        accepted = time.monotonic_ns()
        moments = check_once(await system.sink.collected(_LIMIT_SECONDS), wanted)
        for row in rows:
            await _succeeded(client, row["id"])
        after = system.cpu()
        measured.foreign = foreign(before, after, machine_ms() - busy, time.monotonic_ns() - first)
    finally:
        client.close()
    measured.rate = len(wanted) / ((max(moments.values()) - first) / 1e9)
    measured.accepted_rate = load.runs / ((accepted - first) / 1e9)
    measured.cpu = {part: (after[part] - before[part]) / len(wanted) for part in after}
    return measured


async def _succeeded(client: Client, run_id: str) -> None:
    async with asyncio.timeout(_LIMIT_SECONDS):
        while (run := await client.expect("GET", f"/v1/runs/{run_id}"))["finished_at"] is None:
            await pause(_POLL_SECONDS)
    assert run["status"] == "succeeded", run["error"]
