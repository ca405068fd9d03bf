"""What was measured as a table to read and as JSON to keep: medians over rounds, and ratios to a peer of the same rounds."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.flat import ClaimCost
from tests.bench.loads import Idle, Measured, percentile
from tests.bench.peer import PeerMeasured

_PACKAGES = ("handlers-dispatcher", "litestar", "uvicorn", "asyncpg", "aiohttp", "msgspec", "pydantic", "uvloop")


@dataclass(slots=True)
class Line:
    """One row of the table: medians of every round of one load. Rates per second, CPU and times in milliseconds."""

    load: str
    runs: int
    rate: float
    cpu: float
    split: dict[str, float]
    foreign: float = 0.0
    handler: tuple[float, float] | None = None
    result: tuple[float, float] | None = None
    rounds: list[float] = field(default_factory=list)


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def _split(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: _median(cpu.get(part, 0.0) for cpu in rounds) for part in rounds[0]}


def line(rounds: Sequence[Measured]) -> Line:
    """The medians of one load."""
    handler = [(percentile(m.to_handler, 50), percentile(m.to_handler, 99)) for m in rounds if m.to_handler]
    result = [(percentile(m.to_result, 50), percentile(m.to_result, 99)) for m in rounds if m.to_result]
    return Line(
        rounds[0].load,
        rounds[0].runs,
        _median(m.rate for m in rounds),
        _median(m.cpu_total for m in rounds),
        _split([m.cpu for m in rounds]),
        _median(m.foreign for m in rounds),
        _pair(handler),
        _pair(result),
        [round(m.rate, 1) for m in rounds],
    )


def peer_lines(rounds: Sequence[PeerMeasured], runs: int) -> list[Line]:
    """The same for a peer: one row for throughput, one for latency."""
    name = rounds[0].name
    rates = [round(m.rate, 1) for m in rounds]
    cpu, busy = _split([m.cpu for m in rounds]), _median(m.foreign for m in rounds)
    throughput = Line(f"a {name}", runs, _median(m.rate for m in rounds), _median(m.cpu_total for m in rounds), cpu, busy, rounds=rates)
    latency = Line(f"b {name}", runs, 10.0, 0.0, {}, 0.0, _pair([m.to_handler for m in rounds]), _pair([m.to_result for m in rounds]))
    durable = []
    if rounds[0].steps:
        steps = [round(m.steps, 1) for m in rounds]
        durable.append(Line(f"c {name}", 0, _median(steps), _median(m.steps_cpu for m in rounds), {}, busy, rounds=steps))
    if rounds[0].fanout_ms:
        times = [round(m.fanout_ms, 1) for m in rounds]
        pair = (_median(times), max(times))
        durable.append(Line(f"d {name}", 0, 0.0, _median(m.fanout_cpu for m in rounds), {}, busy, pair, rounds=times))
    return [throughput, latency, *durable]


def _pair(values: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    return (_median(a for a, _ in values), _median(b for _, b in values)) if values else None


def machine(postgres: str) -> dict[str, Any]:
    """What it was measured on."""
    model = next((entry.partition(":")[2].strip() for entry in _proc("cpuinfo") if entry.startswith("model name")), platform.machine())
    memory = next((int(entry.split()[1]) / 1e6 for entry in _proc("meminfo") if entry.startswith("MemTotal")), 0.0)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "load_average": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": f"{postgres} (embedded; fsync on, synchronous_commit on)",
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _proc(name: str) -> list[str]:
    path = Path("/proc", name)
    return path.read_text().splitlines() if path.exists() else []


def table(lines: Sequence[Line], claims: Sequence[ClaimCost], idle: Sequence[Idle], about: Mapping[str, Any]) -> str:
    """Everything as text."""
    machine = f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, {about['system']}, Python {about['python']}"
    head = f"{machine}; signatures {about.get('signatures', 'v1a')}"
    rows = [head, f"Postgres {about['postgres']}; {', '.join(f'{n} {v}' for n, v in about['packages'].items())}", ""]
    columns = f"{'load':34} {'runs':>7} {'runs/s':>8} {'CPU ms':>7} {'foreign':>7}"
    rows.append(f"{columns}  {'→ handler p50/p99':>18} {'→ result p50/p99':>18}  split of CPU ms per run")
    rows += [_row(one) for one in lines]
    rows += [f"claim of 100 with {c.queued:,} queued: {c.ms:.2f} ms, {c.pages:,} pages" for c in claims]
    rows += [f"idle: {_shares(one.cpu)} of a core; the server holds {one.server_mb:.0f} MB" for one in idle]
    rows.append("foreign: processors others kept busy meanwhile; with much of that only CPU ms mean anything")
    return "\n".join([*rows, "", *ratios(lines)])


def _shares(cpu: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {share:.1f} %" for part, share in cpu.items())


def _row(one: Line) -> str:
    split = " ".join(f"{part} {ms:.3f}" for part, ms in one.split.items())
    cpu = f"{one.cpu:7.3f}" if one.cpu else f"{'–':>7}"
    rates = f"{one.load:34} {one.runs:7,} {one.rate:8,.0f} {cpu} {one.foreign:7.2f}"
    return f"{rates}  {_times(one.handler):>18} {_times(one.result):>18}  {split}"


def _times(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.1f} / {pair[1]:.1f} ms" if pair else "–"


def ratios(lines: Sequence[Line]) -> list[str]:
    """How each of our loads compares with every peer's, and with its own on an empty store."""
    by_load = {one.load: one for one in lines}
    ours = ("batched", "single")
    peers = [one.load[2:] for one in lines if one.load.startswith("a ") and one.load[2:].split()[0] not in ours]
    said: list[str] = []
    for name in peers:
        for flavour in ours:
            if f"a {flavour}" in by_load:
                mine, theirs = by_load[f"a {flavour}"], by_load[f"a {name}"]
                said.append(
                    f"(a) {flavour}: {mine.rate / theirs.rate:.2f} × {name}'s runs/s, {mine.cpu / theirs.cpu:.2f} × its CPU per run"
                )
            if f"c {flavour}" in by_load and f"c {name}" in by_load:
                said.append(f"(c) {flavour}: {by_load[f'c {flavour}'].rate / by_load[f'c {name}'].rate:.2f} × {name}'s steps/s")
            if f"d {flavour}" in by_load and f"d {name}" in by_load:
                took, peer_took = by_load[f"d {flavour}"].handler, by_load[f"d {name}"].handler
                assert took is not None
                assert peer_took is not None
                said.append(f"(d) {flavour}: {took[0] / peer_took[0]:.2f} × {name}'s time for a hundred children")
            if f"b {flavour}" in by_load:
                said.append(_latency_ratio(by_load[f"b {flavour}"], by_load[f"b {name}"]))
    for one in lines:
        base = by_load.get(one.load.partition(" with ")[0])
        if " with " in one.load and base is not None:
            said.append(_against_empty(one, base))
    for one in lines:
        base = by_load.get(re.sub(r"^gates \S+ [\d,]+ keys", "gates none 10 keys", one.load))
        if base is not None and base is not one:
            said.append(_against_none(one, base))
    return said


def _against_none(one: Line, base: Line) -> str:
    by_round = _median(own / other for own, other in zip(one.rounds, base.rounds, strict=True))
    by_time = sum(1 / rate for rate in base.rounds) / sum(1 / rate for rate in one.rounds)
    return f"({one.load}): {by_round:.3f} × the rate of none (median of rounds; {by_time:.3f} by time), {one.cpu / base.cpu:.2f} × its CPU"


def _against_empty(one: Line, base: Line) -> str:
    if one.result is None or base.result is None:
        return f"({one.load[0]}){one.load[1:]}: {one.rate / base.rate:.2f} × the rate, {one.cpu / base.cpu:.2f} × the CPU of an empty store"
    p50, p99 = (own / other for own, other in zip(one.result, base.result, strict=True))
    return f"({one.load[0]}){one.load[1:]}: trigger → result p50 {p50:.2f} ×, p99 {p99:.2f} × an empty store's"


def _latency_ratio(mine: Line, theirs: Line) -> str:
    assert mine.result is not None
    assert theirs.result is not None
    p50, p99 = (own / other for own, other in zip(mine.result, theirs.result, strict=True))
    return f"(b) {mine.load[2:]}: trigger → result p50 {p50:.2f} ×, p99 {p99:.2f} × {theirs.load[2:]}'s"


def write(
    directory: Path, lines: Sequence[Line], claims: Sequence[ClaimCost], idle: Sequence[Idle], about: Mapping[str, Any], now: datetime
) -> Path:
    """Keep everything as one JSON file; its path."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{now:%Y%m%d-%H%M%S}.json"
    measured: dict[str, Sequence[Line | ClaimCost | Idle]] = {"lines": lines, "claims": claims, "idle": idle}
    documents = {name: [_document(one) for one in found] for name, found in measured.items()}
    path.write_text(json.dumps({"at": now.isoformat(), "machine": about, **documents, "ratios": ratios(lines)}, indent=1))
    return path


def _document(one: Line | ClaimCost | Idle) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}
