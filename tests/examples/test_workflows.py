"""The example workflows do what README says they do, in real time, behind a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handlers_sdk import ClientConfig, Dispatcher, EmptyModel
from tests.cli.running import KEY, Server, invoke
from tests.examples.workflow_children import Album, Picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url(examples_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `dispatcher dev` answers with all the example workflows registered."""
    data = tmp_path_factory.mktemp("dev")
    target = "tests.examples.workflow_examples:app"
    with Server("dev", target, "--no-reload", "--data", str(data), cwd=ROOT, DATABASE_URL=examples_dsn, DISPATCHER_MASTER_KEY=KEY) as dev:
        yield dev.url


@pytest.fixture
def client(url: str) -> Iterator[Dispatcher]:
    """A program that starts runs."""
    client = Dispatcher(ClientConfig(api_url=url))
    yield client
    client.close()


def trigger(url: str, workflow: str, input: object) -> Any:
    """A run, to its end."""
    done = invoke("trigger", workflow, "-i", json.dumps(input), "--wait", "-o", "json", DISPATCHER_URL=url)
    assert done.out, done.err
    return done.json


def statuses(run: Any) -> dict[str, str]:
    return {task["name"]: task["status"] for task in run["tasks"]}


def test_a_small_order_is_shipped_without_asking(url: str) -> None:
    run = trigger(url, "order", {"number": 1, "items": 2})
    assert run["status"] == "succeeded"
    assert run["output"] == {
        "price": {"total": 19.0},
        "stock": {"missing": 0},
        "reserve": {"total": 19.0, "missing": 0},
        "approve": {"skipped": True},
        "ship": {"shipped": "without asking"},
    }


def test_an_order_nobody_can_fill(url: str) -> None:
    run = trigger(url, "order", {"number": 2, "items": 2000})
    assert run["status"] == "failed"
    assert statuses(run) == {
        "price": "succeeded", "stock": "failed", "reserve": "cancelled", "approve": "cancelled", "ship": "cancelled",
        "apologise": "succeeded",
    }  # fmt: skip
    assert run["output"] == {"price": {"total": 19000.0}, "apologise": {"stock": "nobody has that many"}}


@pytest.mark.parametrize("approved", [True, False], ids=["by an event", "by time"])
def test_a_large_order_waits_to_be_approved(url: str, client: Dispatcher, approved: bool) -> None:
    ref = client.stubs.workflow("order").run_no_wait(EmptyModel(number=3, items=30))
    if approved:
        while not waits(client, ref.workflow_run_id, "approve"):
            pass
        client.event.push("order:approved", {})
    assert ref.result(30)["ship"] == {"shipped": "as approved"}


def waits(client: Dispatcher, run_id: str, name: str) -> bool:
    """Whether a task of a run waits for nothing but its conditions."""
    task: Any = next(task for task in client.runs.get(run_id).tasks if task.name == name)
    waiting = [needed for needed in task.waiting_for if "parent" not in needed] if task.status == "pending" else []
    return bool(waiting)


def test_a_game_with_an_event(url: str, client: Dispatcher) -> None:
    ref = client.stubs.workflow("game").run_no_wait()
    while not (waits(client, ref.workflow_run_id, "bonus") and waits(client, ref.workflow_run_id, "called")):
        pass
    client.event.push("game:enough", {})
    client.event.push("game:next", {})
    output = ref.result(30)
    assert output["bonus"] == {"skipped": True}
    assert output["low" if output["rested"]["n"] > 50 else "high"] == {"skipped": True}
    points = [task["n"] for name, task in output.items() if name != "total" and "n" in task]
    assert (len(points), output["total"]) == (4, {"points": sum(points)})


def test_a_game_in_which_nothing_happens_but_time(client: Dispatcher) -> None:
    output = client.stubs.workflow("game").run()
    assert sum("skipped" in task for task in output.values()) == 1
    assert output["total"]["points"] == sum(task["n"] for task in output.values() if "n" in task)


def test_an_album_runs_a_workflow_for_each_of_its_pictures(client: Dispatcher) -> None:
    album = client.stubs.workflow("album", input_validator=Album)
    ref = album.run_no_wait(Album(pictures=12))
    output = ref.result(60)
    assert output["develop"] == {"framed": [f"p{n}.small.framed" for n in range(12)]}
    assert output["cover"] == {"cover": "cover.small.framed"}
    children: Any = client.runs.get(ref.workflow_run_id)
    assert len(children.children) == 12 + 2
    assert {client.runs.get(child).parent_run_id for child in children.children} == {ref.workflow_run_id}


def test_many_runs_at_once(client: Dispatcher) -> None:
    picture = client.stubs.workflow("picture", input_validator=Picture)
    items = [picture.create_bulk_run_item(Picture(name=name)) for name in ("a", "broken", "c")]
    first, failed, last = picture.run_many(items, return_exceptions=True)
    assert isinstance(failed, Exception)
    assert re.search("shrink: not a picture", str(failed))
    assert [one["frame"]["framed"] for one in (first, last) if isinstance(one, dict)] == ["a.small.framed", "c.small.framed"]
    refs = picture.run_many_no_wait(items[::2])
    assert [ref.result(30)["shrink"]["small"] for ref in refs] == ["a.small", "c.small"]
    assert client.stubs.task("greet_all").run() == {"texts": ["hello, sun", "hello, moon", "hello, mars"]}


def test_a_workflow_is_drawn(url: str) -> None:
    drawn = invoke("workflows", "graph", "order", "--format", "mermaid", DISPATCHER_URL=url)
    assert '"approve<br/>waits for (order:approved or 2s)<br/>skipped if price [output.total #lt; 50.0]"' in drawn.out
    assert invoke("workflows", "graph", "order", "--format", "svg", DISPATCHER_URL=url).out.startswith("<svg")
    shape = invoke("workflows", "graph", "order", "-o", "json", DISPATCHER_URL=url).json
    assert [node["name"] for node in shape["nodes"]][-1] == "apologise"
    assert {"from": "reserve", "to": "approve"} in shape["edges"]
