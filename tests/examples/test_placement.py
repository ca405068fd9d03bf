"""The example of placement does what README says it does, behind a real server: one deployment takes over from another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import KEY, Server, invoke
from tests.examples.test_examples import CURL, shell

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url(examples_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `dispatcher dev` answers with the example registered."""
    data, target = tmp_path_factory.mktemp("dev"), ("tests.examples.placement_endpoint:app", "--name", "first", "--no-reload")
    with Server("dev", *target, "--data", str(data), cwd=ROOT, DATABASE_URL=examples_dsn, DISPATCHER_MASTER_KEY=KEY) as dev:
        yield dev.url


@CURL
def test_a_deployment_takes_over_from_another(url: str, tmp_path: Path) -> None:
    def ask(*arguments: str) -> Any:
        return invoke(*arguments, "-o", "json", DISPATCHER_URL=url)

    here = ask("endpoints", "get", "first").json["url"]
    assert ask("endpoints", "add", "blue", here).code == 0
    assert ask("endpoints", "drain", "first", "--wait", "1m").json["health"] == "drained"
    begun = [ask("trigger", name).json["id"] for name in ("remind", "film")]
    trained = ask("trigger", "train", "-i", '{"name": "owl"}').json["id"]  # waits for a GPU
    with shell("deployments_with_curl.sh", tmp_path / "out", DISPATCHER_URL=url, GREEN=here) as [blue, green, draining, drained]:
        assert (blue["labels"], blue["slots"]) == ({"gpu": True, "region": "eu"}, 8)
        assert (green["name"], draining["draining"]) == ("green", True)
        assert (drained["health"], drained["remaining"], drained["in_use"]) == ("drained", 0, 0)
    for run_id in [*begun, trained]:
        assert invoke("runs", "tail", run_id, DISPATCHER_URL=url).code == 0
    after = [ask("trigger", "film", "--wait").json["id"] for _ in range(2)]
    places = {run_id: _places(ask("runs", "get", run_id).json) for run_id in (*begun, *after)}
    assert [places[run_id] for run_id in begun] == [{"blue"}] * 2
    assert [places[run_id] for run_id in after] == [{"green"}] * 2


def _places(run: Any) -> set[str]:
    return {attempt["endpoint"] for task in run["tasks"] for attempt in task["attempts"]}
