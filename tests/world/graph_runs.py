"""What tests of graphs share: an endpoint that answers each task by its name, and looks at runs from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from tests.world.endpoint import Arrival, Endpoint
from tests.world.world import Node, World, until

Answer = Callable[[Arrival], None]


def gives(output: object) -> Answer:
    """Answer with this output."""
    return lambda arrival: arrival.answer(200, output)


def fails(arrival: Arrival) -> None:
    """Fail for good."""
    arrival.answer(422, {"detail": "no"})


def answer(endpoint: Endpoint, **by_task: Answer) -> None:
    """Answer each task by its name within its workflow; by its own name where nothing is said."""

    def way(arrival: Arrival) -> None:
        name = arrival.json["name"].partition(":")[2]
        by_task.get(name, gives({"from": name}))(arrival)

    endpoint.way = way


async def graph(world: World, node: Node, *tasks: dict[str, Any], name: str = "flow", **more: Any) -> Endpoint:
    """An endpoint that serves one workflow of these tasks, and answers all of them."""
    endpoint = await world.endpoint(node, [{"name": name, "kind": "workflow", "tasks": list(tasks), **more}], name=name)
    answer(endpoint)
    return endpoint


async def look(node: Node, run_id: str) -> Any:
    """A run as it is."""
    return await node.call("GET", f"/v1/runs/{run_id}")


async def finished(node: Node, run_id: str) -> Any:
    """A run once it is over."""

    async def over() -> Any:
        run = await look(node, run_id)
        return run if run["finished_at"] else None

    return await until(over)


async def settled(node: Node, run_id: str, **wanted: str) -> Any:
    """A run once these tasks have these statuses."""

    async def there() -> Any:
        run = await look(node, run_id)
        found = statuses(run)
        return run if all(found[name] == status for name, status in wanted.items()) else None

    return await until(there)


async def armed(node: Node, run_id: str, *names: str) -> Any:
    """A run once these tasks wait for nothing but their conditions."""

    async def there() -> Any:
        run = await look(node, run_id)
        waiting = [task(run, name).get("waiting_for", []) for name in names]
        return run if all(groups and not any("parent" in group for group in groups) for groups in waiting) else None

    return await until(there)


async def moved(world: World, **delta: float) -> None:
    """Let so much time pass, and let what has come due happen."""
    world.clock.advance(timedelta(**delta))
    for node in world.nodes:
        await node.turn("timers", "waits", "graphs", "claim")


async def pushed(node: Node, key: str, data: object = None, **more: Any) -> None:
    """Push an event, and let it be brought to whoever waits."""
    await node.call("POST", "/v1/events", {"type": key, "data": {} if data is None else data, **more})
    await node.turn("waits", "graphs")


def task(run: Mapping[str, Any], name: str) -> Any:
    """One task of a run."""
    return next(one for one in run["tasks"] if one["name"] == name)


def statuses(run: Mapping[str, Any]) -> dict[str, str]:
    """The statuses of a run's tasks, by name."""
    return {one["name"]: one["status"] for one in run["tasks"]}


def seen(endpoint: Endpoint) -> Sequence[str]:
    """The tasks that were delivered, in order."""
    return [arrival.json["name"].partition(":")[2] for arrival in endpoint.seen]


async def nothing_is_left(world: World) -> None:
    """No row of a live run, of its tasks or of what they waited for."""
    for table in ("runs", "tasks", "waits"):
        assert await world.database.fetchval(f"select count(*) from {table}") == 0, table
