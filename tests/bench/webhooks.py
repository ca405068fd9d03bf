"""What a verified delivery costs, split into verifying, reading, routing and storing, beside POST /v1/events in the same run.

    python -m tests.bench.webhooks [--rounds 3] [--seconds 5] [--connections 32]

The steps before the store are measured alone, in this process; server and Postgres by their processor time while deliveries come in.
Nothing listens for the events, so that both ways end with one event and no run.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dispatcher.engine.expressions import Expression
from tests.bench.system import System, running, workspace
from webhooks import PROVIDERS, Request, body, verify

SECRET = "a secret of the bench"
EXPRESSION = "'github:' + headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')"
PLAIN = "input.action"
EXAMPLE = Path(__file__).parents[1] / "examples" / "github_pull_request.json"
Parts = dict[str, float]


def payload(number: int) -> bytes:
    """A pull request of GitHub's, unlike any other."""
    return json.dumps({**json.loads(EXAMPLE.read_bytes()), "salt": number}).encode()


def signature(text: bytes) -> str:
    """As GitHub signs."""
    return "sha256=" + hmac.digest(SECRET.encode(), text, "sha256").hex()


def _headers(text: bytes, number: int) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "user-agent": "GitHub-Hookshot/1",
        "x-github-event": "pull_request",
        "x-github-delivery": f"bench-{number}",
        "x-hub-signature-256": signature(text),
    }


def _cpu(step: Callable[[], object], count: int) -> float:
    """Microseconds of processor time one call takes."""
    step()
    started = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - started) / count * 1e6


def steps(count: int = 2_000) -> Parts:
    """Microseconds of each step before the store, for one delivery."""
    text = payload(0)
    pairs = tuple(_headers(text, 0).items())
    scheme = PROVIDERS["github"].scheme

    def request() -> Request:
        return Request.build("POST", "https://example.com/hooks/default/github", pairs, text)

    value, kept = body.read(request()), body.kept_headers(request(), scheme)
    routed, plain = Expression(EXPRESSION, returns=str), Expression(PLAIN, returns=str)
    return {
        "verify": _cpu(lambda: verify(scheme, request(), [SECRET], 0), count),
        "verify with two secrets": _cpu(lambda: verify(scheme, request(), ["other", SECRET], 0), count),
        "read (JSON and headers)": _cpu(lambda: (body.read(request()), body.kept_headers(request(), scheme)), count),
        "expression": _cpu(lambda: routed(input=value, headers=kept), count),
        "expression that is a path": _cpu(lambda: plain(input=value, headers=kept), count),
    }


@dataclass(frozen=True, slots=True)
class Load:
    """One round of one way in."""

    rate: float
    server_us: float
    postgres_us: float
    p50_ms: float
    p99_ms: float


def _numbers(start: int) -> Iterator[int]:
    return itertools.count(start)


async def measure(system: System, way: str, seconds: float, connections: int, numbers: Iterator[int]) -> Load:
    """Send by `way` ("events" or "hooks") over so many connections for a while. Raises RuntimeError for anything but success."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    until = loop.time() + seconds
    before, started = system.cpu(), loop.time()

    async def one() -> None:
        client = system.client()
        while loop.time() < until:
            number = next(numbers)
            text = payload(number)
            head, path = b"", "/v1/events"
            if way == "hooks":
                path = "/hooks/default/bench"
                head = "".join(f"{n}: {v}\r\n" for n, v in _headers(text, number).items() if n != "content-type").encode()
            else:
                text = b'{"type":"bench:none","data":' + text + b"}"
            sent = loop.time()
            reply = await client.request("POST", path, text, head)
            latencies.append(loop.time() - sent)
            if reply.status not in {200, 201} or b"duplicate" in reply.body:
                raise RuntimeError(f"{path}: {reply.status} {reply.body[:300]!r}")
        client.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    elapsed, after, count = loop.time() - started, system.cpu(), len(latencies)
    used = {name: (after[name] - before[name]) * 1000 / count for name in after}
    cuts = statistics.quantiles(latencies, n=100)
    return Load(count / elapsed, used["server"], used["postgres"], cuts[49] * 1000, cuts[98] * 1000)


async def bench(rounds: int, seconds: float, connections: int) -> dict[str, list[Load]]:
    """Rounds of both ways in turn, after a short one of each to warm up."""
    found: dict[str, list[Load]] = {"events": [], "hooks": []}
    numbers = _numbers(1)
    async with workspace() as directory, running(directory) as system:
        client = system.client()
        limits = {"per_second": 10_000, "burst": 10_000}
        made = {"name": "bench", "source": "github", "secrets": [SECRET], "event_key_expression": EXPRESSION, "rate_limit": limits}
        await client.expect("POST", "/v1/webhooks", made)
        client.close()
        for way in found:
            await measure(system, way, min(seconds, 1.0), connections, numbers)
        for _ in range(rounds):
            for way, loads in found.items():
                loads.append(await measure(system, way, seconds, connections, numbers))
    return found


def report(parts: Parts, found: dict[str, list[Load]]) -> str:
    """The figures as lines: medians over the rounds."""
    lines = [f"{name:28} {microseconds:8.1f} µs" for name, microseconds in parts.items()]
    for way, loads in found.items():
        middle = {name: statistics.median(getattr(load, name) for load in loads) for name in Load.__slots__}
        lines.append(
            f"{way:7} {middle['rate']:7,.0f} /s   server {middle['server_us']:6.0f} µs   postgres {middle['postgres_us']:6.0f} µs"
            f"   p50 {middle['p50_ms']:5.1f} ms   p99 {middle['p99_ms']:5.1f} ms"
        )
    hooks = statistics.median(load.server_us for load in found["hooks"])
    before = parts["verify"] + parts["read (JSON and headers)"] + parts["expression"]
    postgres = statistics.median(load.postgres_us for load in found["hooks"])
    lines.append(f"store: {hooks - before:.0f} µs in the server, HTTP included, and {postgres:.0f} µs in Postgres")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.webhooks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=32)
    arguments = parser.parse_args()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(bench(arguments.rounds, arguments.seconds, arguments.connections))
    sys.stdout.write(report(steps(), found) + "\n")


if __name__ == "__main__":
    main()
