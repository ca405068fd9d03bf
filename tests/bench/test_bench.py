"""The bench itself: a little of every load, each run exactly once, and a table with all of it. Nothing here is about speed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.bench import peer, report
from tests.bench.__main__ import FLAVOURS, QUICK, bench
from tests.bench.loads import Measured, check_once, percentile
from tests.bench.peer import PeerMeasured


@pytest.mark.slow
async def test_every_load_runs_every_run_exactly_once(tmp_path: Path) -> None:
    session, postgres = await bench(QUICK, lambda _: None)
    loads = set(session.ours)
    assert {f"{phase} {flavour}" for phase in "abe" for flavour in FLAVOURS} <= loads
    assert {
        f"{phase} {flavour} with {what}" for phase in "ab" for flavour in FLAVOURS for what in ("700 queued", "1,000 finished")
    } <= loads
    assert {"graphs chain of 200", "graphs fan of 1,000", "graphs 20 × diamond of 4"} <= loads
    assert [cost.queued for cost in session.claims] == [100, 700]
    assert [(found.crowd, len(found.alone)) for found in session.fair] == [(3_000, 4)] * 2  # a tenant's, and a group's
    assert all(found.behind for found in session.fair)
    about = report.machine(postgres)
    found = session.lines(), session.claims, session.idle, about
    kept = report.write(tmp_path / "results", *found, datetime(2026, 1, 1, tzinfo=UTC))
    assert {line["load"] for line in json.loads(kept.read_text())["lines"]} == loads
    assert "a batched" in report.table(*found)


def test_a_lost_or_repeated_run_is_noticed() -> None:
    assert check_once({"a": [1], "b": [2]}, ["a", "b"]) == {"a": 1, "b": 2}
    with pytest.raises(AssertionError, match="1 never ran"):
        check_once({"a": [1]}, ["a", "b"])
    with pytest.raises(AssertionError, match="ran twice"):
        check_once({"a": [1], "b": [2, 3]}, ["a", "b"])


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 99) == 7


def test_ratios_are_of_medians() -> None:
    rounds = [Measured("a batched", 10, rate, cpu={"server": 0.5, "client": 0.5}) for rate in (900, 3000, 3100)]
    theirs = [PeerMeasured("other", rate, {"server": 2.0}, (5, 7), (7, 11)) for rate in (1000, 1000, 9000)]
    lines = [report.line(rounds), *report.peer_lines(theirs, 10)]
    assert report.ratios(lines) == ["(a) batched: 3.00 × other's runs/s, 0.50 × its CPU per run"]


def test_what_limits_cost_is_told_by_round_and_by_time() -> None:
    def measured(load: str, *rates: float) -> report.Line:
        return report.line([Measured(load, 10, rate, cpu={"server": 300 / rate}) for rate in rates])

    none, one = measured("gates none 10 keys", 1000, 2000, 4000), measured("gates one 10 keys", 900, 1000, 3800)
    few, many = measured("gates none 10 keys, 32 calls", 500), measured("gates one 10,000 keys", 800, 1800, 3000)
    assert report.ratios([none, one, few, many]) == [
        "(gates one 10 keys): 0.900 × the rate of none (median of rounds; 0.737 by time), 2.00 × its CPU",
        "(gates one 10,000 keys): 0.800 × the rate of none (median of rounds; 0.818 by time), 1.11 × its CPU",
    ]


def test_a_peers_report_is_read() -> None:
    output = """# 05:40:42 other load1=0.84
{"peer": "other", "metric": "throughput_noop", "value": 894.4, "n": 200, "done": 200, "total_s": 0.25, \
"cpu_ms_per_op": 0.15, "cpu_busy": 0.0, "cpu_split_ms": {"client": 0.15}}
{"peer": "other", "metric": "latency_trigger_to_handler", "p50": 2.79, "p99": 31.33}
{"peer": "other", "metric": "latency_trigger_to_result", "p50": 4.74, "p99": 34.69}
"""
    assert peer.read("other", output) == PeerMeasured("other", 894.4, {"client": 0.15}, (2.79, 31.33), (4.74, 34.69))
    with pytest.raises(peer.PeerFailed, match="finished 199 of 200"):
        peer.read("other", output.replace('"done": 200', '"done": 199'))
    with pytest.raises(peer.PeerFailed, match="no 'throughput_noop'"):
        peer.read("other", "run.sh failed")


def test_without_peers_home_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEERS_HOME", raising=False)
    with pytest.raises(peer.PeerFailed, match="PEERS_HOME"):
        peer.home()
