"""The rules of graphs: against the hand-written table, against an oracle written from the documentation alone, and at their bounds."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from dispatcher.engine.definitions import STORED, Definition, Parent, compile_condition, parse_definition
from dispatcher.engine.expressions import ExpressionError
from dispatcher.engine.graphs import REASONS, Advance, Graph, GraphState, Status, advance, awaited, conditions, ended, reset, roll_up
from tests.laws.graphs_oracle import outcome, status_of_the_run
from tests.laws.graphs_table import STATES, TABLE, Row, State, arrows, diagram
from tests.laws.graphs_world import Run, scenario

ROOT = Path(__file__).resolve().parents[2]


def definition(*tasks: dict[str, Any], **more: Any) -> Definition:
    """A workflow of these tasks."""
    return parse_definition({"name": "flow", "kind": "workflow", "tasks": list(tasks), **more}, STORED, static=False)


def asking(definition: Definition, outputs: dict[int, Any]) -> Callable[[int, Parent], bool]:
    """Parent conditions asked of these outputs."""

    def holds(_: int, condition: Parent) -> bool:
        try:
            return compile_condition(condition.expression, parent=True)(output=outputs.get(condition.node))
        except ExpressionError:
            return False

    return holds


def after(change: Advance, node: int, status: Status) -> Status:
    """What a node is once a decision is carried out."""
    moves: dict[Status, tuple[int, ...]] = {
        "active": change.start,
        "waiting": change.arm,
        "skipped": change.skip,
        "cancelled": (*change.cancel, *change.stop),
    }
    return next((then for then, nodes in moves.items() if node in nodes), status)


# ---- the table -----------------------------------------------------------------------------------------------------------------

P, Q, N, C = range(4)
CELLS = [(row, state) for row in TABLE for state in STATES]


def ask(row: Row, state: State) -> State:
    """What the engine says of one cell."""
    tasks = [{"name": "p"}, {"name": "q"}, {"name": "n", "parents": ["p", "q"], **row.rules}, {"name": "c", "parents": ["n"]}]
    it = definition(*tasks)
    graph = Graph.of(it)
    statuses: tuple[Status, ...] = (*row.parents, state, "pending")
    if row.kind == "replay":
        node = {"n": N, "p": P, "c": C, "": None}[row.of]
        again = reset(graph, (*row.parents, state, "succeeded"), node)
        return "pending" if N in again else state
    if row.kind == "answer":
        return ended(statuses, [(N, row.answer)])[N]
    change = advance(graph, GraphState(statuses, {N: row.met}, row.kind == "run"), asking(it, {P: {"n": 1}, Q: {"n": 1}}))
    return after(change, N, state)


@pytest.mark.parametrize(("row", "state"), CELLS, ids=lambda value: value.name.replace(" ", "_") if isinstance(value, Row) else value)
def test_cell(row: Row, state: State) -> None:
    assert ask(row, state) == row.expected(state)


def test_the_names_of_rows_are_different() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)


# ---- the oracle ----------------------------------------------------------------------------------------------------------------

CHUNKS = 20


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_runs_come_out_as_the_documentation_says(chunk: int, graphs: int) -> None:
    """Random graphs with failures, skips, cancels and replays: who started when, who was over when and as what, and how the run ended."""
    for seed in range(chunk, graphs, CHUNKS):
        it = scenario(random.Random(seed))
        expected, run = outcome(it), Run(it).go()
        found = [(fate.started, fate.over, fate.status) for fate in run.fates()]
        assert found == [(fate.started, fate.over, fate.status) for fate in expected], f"seed {seed}"
        assert status_of_the_run(expected) == (run.finish or "running"), f"seed {seed}"


def test_random_runs_walk_every_arrow_of_the_table_and_no_other() -> None:
    walked = {arrow for seed in range(1_500) for arrow in Run(scenario(random.Random(seed))).go().arrows}
    assert walked == set(arrows())


def test_the_diagram_in_the_documents_is_that_of_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in (ROOT / "dispatcher/ARCHITECTURE.md").read_text()


# ---- groups --------------------------------------------------------------------------------------------------------------------

A, B, TIME = {"parent": "top", "expression": "output.n > 50"}, {"event": "paid"}, {"sleep": "30s"}
CNF = [{"or": [A, TIME]}, {"or": [A, B]}]


@pytest.mark.parametrize("rule", ["wait_for", "skip_if", "cancel_if"])
@pytest.mark.parametrize(("a", "b", "c"), list(product((False, True), repeat=3)))
def test_a_or_b_and_a_or_c(rule: str, a: bool, b: bool, c: bool) -> None:
    """The documentation's example, every combination, for each rule: A is an output above 50, B a sleep, C an event."""
    gate = {} if rule == "wait_for" else {"wait_for": [{"event": "never"}]}
    it = definition({"name": "top"}, {"name": "task", "parents": ["top"], rule: CNF, **gate})
    numbers = {condition: number for number, condition in enumerate(map(str, conditions(it.tasks[1])))}
    sleep, event = (next(n for text, n in numbers.items() if word in text) for word in ("Sleep", "paid"))
    met = frozenset({sleep} if b else set()) | frozenset({event} if c else set())
    change = advance(Graph.of(it), GraphState(("succeeded", "waiting"), {1: met}), asking(it, {0: {"n": 51 if a else 50}}))
    then: dict[str, Status] = {"wait_for": "active", "skip_if": "skipped", "cancel_if": "cancelled"}
    assert after(change, 1, "waiting") == (then[rule] if (a or b) and (a or c) else "waiting")


def test_conditions_are_numbered_through_the_rules() -> None:
    it = definition(
        {"name": "t", "wait_for": [TIME, {"or": [B, {"event": "x"}]}], "skip_if": [{"event": "y"}], "cancel_if": [{"event": "z"}]}
    )
    assert [getattr(one, "key", "sleep") for one in conditions(it.tasks[0])] == ["sleep", "paid", "x", "y", "z"]


def test_what_is_still_awaited() -> None:
    it = definition({"name": "top"}, {"name": "task", "parents": ["top"], "wait_for": CNF, "skip_if": [B], "cancel_if": [A]})
    graph = Graph.of(it)

    def numbers(n: int, *met: int, status: Status = "waiting") -> list[list[tuple[int, ...]]]:
        gate = awaited(graph, GraphState(("succeeded", status), {1: frozenset(met)}), 1, asking(it, {0: {"n": n}}))
        return [[tuple(number for number, _ in clause) for clause in rule] for rule in (gate.wait_for, gate.skip_if, gate.cancel_if)]

    assert numbers(1) == [[(0, 1), (2, 3)], [(4,)], [(5,)]]
    assert numbers(1, 1) == [[(2, 3)], [(4,)], [(5,)]]
    assert numbers(99) == [[], [(4,)], []]
    assert numbers(1, status="pending") == numbers(1, status="active") == [[], [], []]
    assert awaited(graph, GraphState(("active", "pending")), 0, asking(it, {})).wait_for == ()


@pytest.mark.parametrize("output", [None, [], [1, 2], "text", 7, True, {}, {"n": None}, {"n": "51"}, {"other": 51}])
def test_an_output_that_is_not_what_a_condition_expects_is_no(output: Any) -> None:
    it = definition({"name": "top"}, {"name": "task", "parents": ["top"], "skip_if": [A]})
    assert advance(Graph.of(it), GraphState(("succeeded", "pending")), asking(it, {0: output})).start == (1,)


# ---- the ends of runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statuses", list(product(("succeeded", "failed", "cancelled", "skipped"), repeat=3)))
def test_how_runs_end(statuses: tuple[Status, ...]) -> None:
    it = definition({"name": "a"}, {"name": "b"}, {"name": "c"})
    worst: Status = next((one for one in ("failed", "cancelled") if one in statuses), "succeeded")
    assert roll_up(statuses) == worst
    assert advance(Graph.of(it), GraphState(statuses), asking(it, {})).finish == worst


@pytest.mark.parametrize("open_", ["pending", "waiting", "active"])
def test_a_run_does_not_end_before_its_tasks(open_: Status) -> None:
    it = definition({"name": "a"}, {"name": "b", "wait_for": [{"event": "x"}]})
    assert advance(Graph.of(it), GraphState(("failed", open_)), asking(it, {})).finish is None


def test_every_reason_has_words() -> None:
    given = {reason for seed in range(500) for reason in Run(scenario(random.Random(seed))).go().reasons}
    assert given == set(REASONS)


# ---- bounds --------------------------------------------------------------------------------------------------------------------


def fan(width: int) -> Definition:
    """One task, then `width` of them, then one that comes after all."""
    between = [{"name": f"m{n}", "parents": ["first"]} for n in range(width)]
    return definition({"name": "first"}, *between, {"name": "last", "parents": [task["name"] for task in between]})


def layers(width: int, depth: int) -> Definition:
    """Every task of a layer comes after all of the layer before."""
    names = [[f"l{layer}.{n}" for n in range(width)] for layer in range(depth)]
    return definition(*({"name": name, "parents": names[i - 1] if i else []} for i, layer in enumerate(names) for name in layer))


def best_of(count: int, call: Callable[[], object]) -> float:
    """The shortest of some times, in seconds: what the work takes when nobody else has the machine."""
    times = []
    for _ in range(count):
        begun = perf_counter()
        call()
        times.append(perf_counter() - begun)
    return min(times)


@pytest.mark.parametrize("made", [lambda: fan(998), lambda: layers(200, 5)], ids=["1000 wide", "200 parents each"])
def test_one_more_end_in_a_graph_of_a_thousand_costs_a_millisecond(made: Callable[[], Definition]) -> None:
    it = made()
    graph, count = Graph.of(it), len(it.tasks)
    statuses: tuple[Status, ...] = tuple(
        "succeeded" if n < count // 2 else "active" if n < count * 3 // 4 else "pending" for n in range(count)
    )
    assert best_of(20, lambda: advance(graph, GraphState(statuses), asking(it, {}))) < 0.002


def test_a_skip_runs_down_a_chain_of_a_thousand_at_once() -> None:
    tasks: list[dict[str, Any]] = [{"name": f"t{n}", "parents": [f"t{n - 1}"] if n else []} for n in range(1_000)]
    tasks[1]["skip_if"] = [{"parent": "t0", "expression": "true"}]
    it = definition(*tasks)
    pending: list[Status] = ["pending"] * 999
    change = advance(Graph.of(it), GraphState(("succeeded", *pending)), asking(it, {}))
    assert (len(change.skip), change.finish) == (999, "succeeded")


def test_two_hundred_parents_are_all_waited_for() -> None:
    it = fan(200)
    graph = Graph.of(it)
    for left in (1, 0):
        between: list[Status] = ["active" if n < left else "succeeded" for n in range(200)]
        assert advance(graph, GraphState(("succeeded", *between, "pending")), asking(it, {})).start == (() if left else (201,))
