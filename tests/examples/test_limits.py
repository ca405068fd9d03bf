"""The example of limits does what README says it does, behind a real server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import KEY, Server, invoke
from tests.examples.test_examples import CURL, shell

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url(examples_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `dispatcher dev` answers with the example registered."""
    data = tmp_path_factory.mktemp("dev")
    target = "tests.examples.limits_endpoint:app"
    with Server("dev", target, "--no-reload", "--data", str(data), cwd=ROOT, DATABASE_URL=examples_dsn, DISPATCHER_MASTER_KEY=KEY) as dev:
        yield dev.url


def started(url: str, run_id: str) -> datetime:
    run: Any = invoke("runs", "get", run_id, "-o", "json", DISPATCHER_URL=url).json
    return datetime.fromisoformat(run["started_at"])


def bulk(url: str, runs: list[dict[str, Any]]) -> list[str]:
    request = urllib.request.Request(f"{url}/v1/runs/bulk", json.dumps({"runs": runs}).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return [row["id"] for row in json.load(answer)["rows"]]


@CURL
def test_no_second_starts_more_reports_than_the_model_takes(url: str, tmp_path: Path) -> None:
    with shell("limits_with_curl.sh", tmp_path / "out", DISPATCHER_URL=url) as [rate, shared]:
        assert (rate["limit"], rate["duration"], rate["value"]) == (3, "SECOND", 3)
        assert (shared["name"], shared["max_runs"]) == ("reports", 20)
    runs = bulk(url, [{"workflow": "report", "input": {"customer": f"c{n}"}} for n in range(7)])
    for run_id in runs:
        assert invoke("runs", "tail", run_id, DISPATCHER_URL=url).code == 0
    moments = sorted(started(url, run_id) for run_id in runs)
    assert (moments[6] - moments[0]).total_seconds() > 0.95  # the seventh is in the third window at the earliest
    listed = invoke("rate-limits", "list", "-o", "json", DISPATCHER_URL=url).json["rows"]
    assert {"model", "c0", "c6"} <= {row["key"] for row in listed}
    assert "succeeded" in invoke("runs", "explain", runs[0], "-o", "table", DISPATCHER_URL=url).out


def test_a_review_without_a_document_is_refused(url: str) -> None:
    refused = invoke("trigger", "review", "-i", '{"text": "once"}', DISPATCHER_URL=url)
    assert refused.code != 0
    assert "input.document" in refused.err
