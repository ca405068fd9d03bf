"""Random graphs on the whole system, then replayed from a random task: what becomes of every task is what the oracle says.

The oracle's time plays no part here: without sleeps, events and cancels the documentation leaves only one outcome, whatever the order.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.laws.graphs_oracle import Course, Rule, Scenario, TaskSpec, outcome
from tests.laws.graphs_world import entry_of, scenario
from tests.world.endpoint import Arrival
from tests.world.graph_runs import finished, nothing_is_left, statuses
from tests.world.world import Node, World

COUNT = 40
LATER = 500


def timeless(it: Scenario, rng: random.Random) -> Scenario:
    """The scenario with conditions on outputs only, tasks that succeed or fail, and a replay once it is over."""
    tasks = tuple(_timeless(task) for task in it.tasks)
    last = [replace(task, courses=_courses(task)) if task is not None else None for task in (it.on_failure, it.on_success)]
    names = len(it.tasks) + (it.on_failure is not None) + (it.on_success is not None)
    return Scenario(tasks, last[0], last[1], replay=(LATER, rng.choice((None, *range(names)))))


def _timeless(task: TaskSpec) -> TaskSpec:
    wait_for, skip_if, cancel_if = map(_asking, (task.wait_for, task.skip_if, task.cancel_if))
    return TaskSpec(_courses(task), task.parents, wait_for, skip_if, cancel_if)


def _asking(rule: Rule) -> Rule:
    groups = (tuple(atom for atom in group if atom.kind == "parent") for group in rule)
    return tuple(group for group in groups if group)


def _courses(task: TaskSpec) -> tuple[Course, Course]:
    first, second = (replace(course, ends="failed") if course.ends == "cancelled" else course for course in task.courses)
    return first, second


def name_of(it: Scenario, number: int) -> str:
    """A task's name within its workflow."""
    return {it.failure: "on_failure", it.success: "on_success"}.get(number, f"t{number}")


class Players:
    """The endpoint's side of all workflows: every task goes its course, by how often it has been tried."""

    def __init__(self, scenarios: dict[str, Scenario]) -> None:
        self._courses = {
            f"{flow}:{name_of(it, number)}": spec.courses for flow, it in scenarios.items() for number, spec in enumerate(_specs(it))
        }

    def __call__(self, arrival: Arrival) -> None:
        push = arrival.json
        course = self._courses[push["name"]][push["attempt"] - 1]
        arrival.answer(422 if course.ends == "failed" else 200, {"n": course.gives})


def _specs(it: Scenario) -> list[TaskSpec]:
    return [spec for spec in (*it.tasks, it.on_failure, it.on_success) if spec is not None]


def expected(it: Scenario) -> dict[str, str]:
    """What the oracle says of each task."""
    return {name_of(it, number): fate.status for number, fate in enumerate(outcome(it))}


@pytest.mark.parametrize("seed", range(3))
async def test_random_graphs_and_their_replays(world: World, one: Node, seed: int) -> None:
    rng = random.Random(seed)
    scenarios = {f"flow{n}": timeless(scenario(rng), rng) for n in range(COUNT)}
    endpoint = await world.endpoint(one, [entry_of(it, flow) for flow, it in scenarios.items()])
    endpoint.way = Players(scenarios)
    rows: list[Any] = (await one.call("POST", "/v1/runs/bulk", {"runs": [{"workflow": flow} for flow in scenarios]}))["rows"]
    runs = {flow: row["id"] for flow, row in zip(scenarios, rows, strict=True)}
    for flow, it in scenarios.items():
        assert statuses(await finished(one, runs[flow])) == expected(replace(it, replay=None)), (flow, it)
    for flow, it in scenarios.items():
        assert it.replay is not None
        node = it.replay[1]
        await one.call("POST", f"/v1/runs/{runs[flow]}/replay", {} if node is None else {"task": name_of(it, node)})
    for flow, it in scenarios.items():
        assert statuses(await finished(one, runs[flow])) == expected(it), (flow, it)
    await nothing_is_left(world)
