"""A peer, measured by its own script beside us: a directory named by PEERS_HOME that holds `bench_one.sh` and what it needs."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

_LIMIT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class PeerMeasured:
    """One round of a peer. Units as in `loads.Measured`; percentiles are its harness's own."""

    name: str
    rate: float
    cpu: dict[str, float]
    to_handler: tuple[float, float]
    to_result: tuple[float, float]
    foreign: float = 0.0
    steps: float = 0.0
    steps_cpu: float = 0.0
    fanout_ms: float = 0.0
    fanout_cpu: float = 0.0

    @property
    def cpu_total(self) -> float:
        """Of all its processes."""
        return sum(self.cpu.values())


class PeerFailed(Exception):  # noqa: N818 - it says what happened
    """The peer did not run to its end."""


def home() -> Path:
    """Where the peers are. Raises PeerFailed when nobody said."""
    given = os.environ.get("PEERS_HOME", "")
    if not (Path(given) / "bench_one.sh").exists():
        raise PeerFailed("PEERS_HOME names no directory with bench_one.sh; see its README for what has to be installed there")
    return Path(given)


async def measure(name: str, count: int, seconds: float, phases: str = "ab") -> PeerMeasured:
    """Start the peer, run loads (a) and (b), and (c) and (d) where they are among `phases`; stop it."""
    directory = home()
    wanted = "ab" + "".join(sorted({*phases} & {*"cd"}))
    environment = {**os.environ, "PEERS_HOME": str(directory), "PHASES": wanted, "N": str(count), "LAT_S": str(seconds)}
    process = await asyncio.create_subprocess_exec(
        str(directory / "bench_one.sh"),
        name,
        cwd=directory,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_LIMIT_SECONDS):
            out, _ = await process.communicate()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        raise PeerFailed(f"{name} took longer than {_LIMIT_SECONDS:.0f} s") from None
    return read(name, out.decode())


def read(name: str, output: str) -> PeerMeasured:
    """Its harness prints one JSON document per metric."""
    metrics = {document["metric"]: document for line in output.splitlines() if line.startswith("{") for document in [json.loads(line)]}
    try:
        a, handler, result = (metrics[m] for m in ("throughput_noop", "latency_trigger_to_handler", "latency_trigger_to_result"))
    except KeyError as missing:
        raise PeerFailed(f"{name} reported no {missing}:\n{output[-2000:]}") from None
    if a["done"] != a["n"]:
        raise PeerFailed(f"{name} finished {a['done']} of {a['n']} runs")
    ours = a["cpu_ms_per_op"] * a["done"] / 1e3 / a["total_s"]
    foreign = max((os.cpu_count() or 1) * a["cpu_busy"] - ours, 0.0)
    times = [(metric["p50"], metric["p99"]) for metric in (handler, result)]
    measured = PeerMeasured(name, a["value"], a["cpu_split_ms"], times[0], times[1], round(foreign, 2))
    c, d = metrics.get("durable_10_steps", {}), metrics.get("fanout_100", {})
    return replace(
        measured,
        steps=c.get("value") or 0.0,
        steps_cpu=c.get("cpu_ms_per_op") or 0.0,
        fanout_ms=d.get("p50_ms") or 0.0,
        fanout_cpu=d.get("cpu_ms_per_op") or 0.0,
    )
