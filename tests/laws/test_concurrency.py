"""The rules of concurrency groups: who stays, and which group a run is in."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.engine.concurrency import Member, declared_by, dismissed, gate, gate_id, rule_of
from dispatcher.engine.definitions import STORED, Concurrency, DefinitionError, dump, parse_definition
from dispatcher.engine.definitions.flow import STRATEGIES
from dispatcher.engine.flow import Flow, FlowError, Plan, refuse_hopeless

START = datetime(2026, 3, 1, tzinfo=UTC)


def member(n: int, *, holds: bool = False, leaving: bool = False) -> Member:
    return Member(f"run_{n:03}", 0, START + timedelta(seconds=n), holds, leaving)


def names(members: list[Member]) -> list[int]:
    return [int(m.run_id[4:]) for m in members]


def test_round_robin_dismisses_nobody() -> None:
    assert dismissed("GROUP_ROUND_ROBIN", 1, [member(n) for n in range(9)]) == []


def test_cancel_in_progress_keeps_the_newest_by_arrival() -> None:
    members = [member(0, holds=True), member(1, holds=True), member(3), member(2)]
    assert names(dismissed("CANCEL_IN_PROGRESS", 2, members)) == [0, 1]
    assert names(dismissed("CANCEL_IN_PROGRESS", 1, members)) == [0, 1, 2]
    assert dismissed("CANCEL_IN_PROGRESS", 4, members) == []


def test_those_already_leaving_are_not_counted_and_not_told_again() -> None:
    members = [member(0, holds=True, leaving=True), member(1, holds=True), member(2)]
    assert names(dismissed("CANCEL_IN_PROGRESS", 2, members)) == []
    assert names(dismissed("CANCEL_IN_PROGRESS", 1, members)) == [1]


def test_cancel_newest_keeps_the_oldest_and_preempts_nobody() -> None:
    members = [member(0, holds=True), member(1, holds=True), member(2), member(3)]
    assert names(dismissed("CANCEL_NEWEST", 2, members)) == [2, 3]
    assert names(dismissed("CANCEL_NEWEST", 3, members)) == [3]
    assert names(dismissed("CANCEL_NEWEST", 1, members)) == [2, 3]  # lowered below what runs: that goes on


@pytest.mark.parametrize("seed", range(50))
def test_what_is_kept_is_right_whatever_comes(seed: int) -> None:
    rng = random.Random(seed)
    most = rng.randint(1, 5)
    members = [member(n, holds=rng.random() < 0.5, leaving=rng.random() < 0.2) for n in rng.sample(range(30), rng.randint(0, 15))]
    going = {m.run_id for m in dismissed("CANCEL_IN_PROGRESS", most, members)}
    staying = [m for m in members if not m.leaving and m.run_id not in going]
    assert len(staying) <= most
    assert all(m.run_id not in going or all(m.arrived_at < s.arrived_at for s in staying) for m in members)
    going = {m.run_id for m in dismissed("CANCEL_NEWEST", most, members)}
    older = sorted(members, key=lambda m: m.arrived_at)[:most]
    assert all(m.run_id not in going for m in members if m.holds or m.leaving or m in older)
    assert going == {m.run_id for m in members if not m.holds and not m.leaving and m not in older}


# ---- which groups a run is in


def flow(entry: Mapping[str, object], given: object, metadata: object = None, workflow: int = 1) -> Flow:
    plan = Plan.of(workflow, parse_definition({"name": "w", **entry}, STORED, static=True))
    assert plan is not None
    return plan.ask(given, metadata)


def test_groups_are_told_by_rule_and_key() -> None:
    both = {"concurrency": [{"expression": "input.a", "max_runs": 1}, {"expression": "metadata.b", "max_runs": "input.n"}]}
    first, second = flow(both, {"a": "x", "n": 3}, {"b": "x"}).tasks[0].gates
    assert (first.key, first.most, second.key, second.most) == ("x", 1, "x", 3)
    assert first.id != second.id
    assert flow(both, {"a": "x", "n": 1}, {"b": "y"}).tasks[0].gates[0].id == first.id
    assert flow(both, {"a": "x", "n": 1}, {"b": "y"}, workflow=2).tasks[0].gates[0].id != first.id
    assert gate_id("rule", "k" * 100_000) != gate_id("rule", "k" * 100_001)


def test_shared_limits_come_last_and_are_the_same_everywhere() -> None:
    chain = [{"name": "b", "max_runs": 1}, {"name": "a", "max_runs": 1}, {"expression": "input.a", "max_runs": 1}, {"max_runs": 9}]
    gates = flow({"concurrency": chain}, {"a": "x"}).tasks[0].gates
    assert [(g.name, g.rule.split(":")[-1]) for g in gates] == [(None, "input.a"), (None, ""), ("a", "=a"), ("b", "=b")]
    other = flow({"concurrency": [{"name": "a", "max_runs": 5}]}, {}, workflow=7).tasks[0].gates[0]
    assert other.id == gates[2].id


def test_a_workflow_of_one_task_has_one_chain() -> None:
    entry = {
        "kind": "workflow", "concurrency": 2,
        "tasks": [{"name": "t", "concurrency": {"expression": "input.a", "max_runs": 1}}],
    }  # fmt: skip
    given = flow(entry, {"a": "x"})
    assert given.run.gates == ()
    assert [gate.most for gate in given.tasks[0].gates] == [2, 1]


def test_a_graph_holds_its_own_apart_from_those_of_its_tasks() -> None:
    entry = {
        "kind": "workflow", "concurrency": 2,
        "tasks": [{"name": "t", "concurrency": 1}, {"name": "u", "rate_limits": [{"static_key": "k"}]}],
    }  # fmt: skip
    given = flow(entry, {})
    assert ([g.most for g in given.run.gates], [g.most for g in given.tasks[0].gates]) == ([2], [1])
    assert [d.key for d in given.tasks[1].demands] == ["k"]


@pytest.mark.parametrize(
    ("entry", "given", "says"),
    [
        ({"concurrency": {"expression": "input.a", "max_runs": 1}}, {}, "concurrency 'input.a'"),
        ({"concurrency": {"expression": "input.a", "max_runs": 1}}, {"a": 7}, "it gives an int, not a string"),
        ({"concurrency": {"expression": "input.a", "max_runs": 1}}, {"a": ""}, "empty"),
        ({"concurrency": {"expression": "input.a", "max_runs": 1}}, [], "input.a"),
        ({"concurrency": {"max_runs": "input.n"}}, {"n": 0}, "it gives 0"),
        ({"concurrency": {"max_runs": "input.n"}}, {"n": -3}, "it gives -3"),
        ({"concurrency": {"max_runs": "input.n"}}, {"n": "3"}, "not an int"),
        ({"rate_limits": [{"dynamic_key": "input.a", "limit": 3}]}, {"a": None}, "not a string"),
        ({"rate_limits": [{"dynamic_key": "input.a", "limit": "input.n"}]}, {"a": "x", "n": 0}, "it gives 0"),
        ({"rate_limits": [{"dynamic_key": "input.a", "limit": 3, "units": "input.n"}]}, {"a": "x", "n": 4}, "could never start"),
        ({"rate_limits": [{"dynamic_key": "input.a", "limit": 3, "units": "input.n"}]}, {"a": "x", "n": -1}, "it gives -1"),
        ({"rate_limits": [{"dynamic_key": "input.a", "limit": 3}]}, {"a": "k" * 10_240}, "rate limit 'input.a'"),
        ({"rate_limits": [{"dynamic_key": "input.a", "limit": 3}]}, {}, "rate limit 'input.a'"),
        ({"rate_limits": [{"static_key": "k", "units": "input.n"}]}, {}, "units 'input.n'"),
        ({"concurrency": {"max_runs": "input.n"}}, {}, "max_runs 'input.n'"),
    ],
)
def test_what_cannot_be_told_says_of_what(entry: dict[str, object], given: object, says: str) -> None:
    with pytest.raises(FlowError) as caught:
        flow(entry, given)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "at"),
    [
        ({"concurrency": 0}, "handlers[0].concurrency.max_runs"),
        ({"concurrency": -1}, "handlers[0].concurrency.max_runs"),
        ({"concurrency": True}, "handlers[0].concurrency.max_runs"),
        ({"concurrency": 1.5}, "handlers[0].concurrency"),
        ({"concurrency": [{"max_runs": 1}] * 11}, "handlers[0].concurrency"),
        ({"concurrency": [{"max_runs": 1}, {"max_runs": 2}]}, "handlers[0].concurrency[1]"),
        (
            {"concurrency": [{"name": "a", "max_runs": 1}, {"name": "a", "max_runs": 2, "expression": "input.x"}]},
            "handlers[0].concurrency[1]",
        ),
        ({"concurrency": {"expression": "input.", "max_runs": 1}}, "handlers[0].concurrency.expression"),
        ({"concurrency": {"expression": "output.x", "max_runs": 1}}, "handlers[0].concurrency.expression"),
        ({"concurrency": {"max_runs": 1, "limit_strategy": "QUEUE"}}, "handlers[0].concurrency.limit_strategy"),
        ({"concurrency": {"max_runs": 1, "key": "x"}}, "handlers[0].concurrency.key"),
        ({"rate_limits": {"static_key": "a"}}, "handlers[0].rate_limits"),
        ({"rate_limits": [{"units": 1}]}, "handlers[0].rate_limits[0].static_key"),
        ({"rate_limits": [{"static_key": "a", "dynamic_key": "input.x"}]}, "handlers[0].rate_limits[0].static_key"),
        ({"rate_limits": [{"static_key": "a", "limit": 5}]}, "handlers[0].rate_limits[0].limit"),
        ({"rate_limits": [{"static_key": ""}]}, "handlers[0].rate_limits[0].static_key"),
        ({"rate_limits": [{"static_key": "a", "units": 0}]}, "handlers[0].rate_limits[0].units"),
        ({"rate_limits": [{"static_key": "a", "units": -1}]}, "handlers[0].rate_limits[0].units"),
        ({"rate_limits": [{"static_key": "k" * 10_240}]}, "handlers[0].rate_limits[0].static_key"),
        ({"rate_limits": [{"dynamic_key": "input.x", "limit": 0}]}, "handlers[0].rate_limits[0].limit"),
        ({"rate_limits": [{"dynamic_key": "input.x", "limit": -1}]}, "handlers[0].rate_limits[0].limit"),
        ({"concurrency": {"max_runs": 0}}, "handlers[0].concurrency.max_runs"),
        ({"concurrency": {"name": "a", "max_runs": -1}}, "handlers[0].concurrency.max_runs"),
        ({"rate_limits": [{"dynamic_key": "input.x"}]}, "handlers[0].rate_limits[0].limit"),
        ({"rate_limits": [{"dynamic_key": "input.x", "limit": 1, "duration": "fortnight"}]}, "handlers[0].rate_limits[0].duration"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused_by_their_path(entry: dict[str, object], at: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_definition({"name": "w", **entry}, STORED, static=True)
    assert caught.value.field == at


def test_shared_limits_are_for_runs_or_for_tasks() -> None:
    """A run that holds one while its tasks wait for another would meet one that does it the other way round."""
    tasks = [{"name": "t", "concurrency": {"name": "b", "max_runs": 1}}, {"name": "u"}]
    with pytest.raises(DefinitionError, match="not for both"):
        parse_definition(
            {"name": "w", "kind": "workflow", "concurrency": {"name": "a", "max_runs": 1}, "tasks": tasks}, STORED, static=True
        )


def test_a_definition_is_read_back_as_it_was_written() -> None:
    entry = {
        "name": "w", "kind": "workflow", "concurrency": [3, {"expression": "input.a", "max_runs": "input.n", "name": "x"}],
        "tasks": [
            {"name": "t", "concurrency": {"expression": "input.b", "max_runs": 1, "limit_strategy": "CANCEL_NEWEST"}},
            {"name": "u", "rate_limits": [{"static_key": "k", "units": "input.n"}, {"dynamic_key": "input.a", "limit": 2}]},
        ],
    }  # fmt: skip
    definition = parse_definition(entry, STORED, static=True)
    assert parse_definition(dump(definition), STORED, static=False) == definition


def test_a_hundred_thousand_keys_are_as_many_groups_and_are_not_all_kept_in_memory() -> None:
    one = Plan.of(1, parse_definition({"name": "w", "concurrency": {"expression": "input.a", "max_runs": 1}}, STORED, static=False))
    assert one is not None
    ids = {one.ask({"a": f"key {n}"}, {}).tasks[0].gates[0].id for n in range(100_000)}
    assert len(ids) == 100_000
    assert gate.cache_info().currsize < 100_000


@pytest.mark.parametrize("task", ["", "charge", "billing:charge"])
@pytest.mark.parametrize("expression", ["", "input.key", "'a:GROUP_ROUND_ROBIN:b'"])
def test_a_rule_says_who_declares_it_whatever_colons_are_in_it(task: str, expression: str) -> None:
    for strategy in STRATEGIES:
        assert declared_by(rule_of(Concurrency(expression, 1, strategy), 12, task), strategy) == (12, expression)


HOPELESS: list[dict[str, Any]] = [
    {"concurrency": {"expression": "1", "max_runs": 1}},
    {"concurrency": {"expression": "''", "max_runs": 1}},
    {"concurrency": {"expression": "input.k", "max_runs": "'a'"}},
    {"concurrency": {"expression": "input.k", "max_runs": "1 - 1"}},
    {"rate_limits": [{"dynamic_key": "input.k", "limit": 2, "units": 3}]},
    {"rate_limits": [{"dynamic_key": "input.k", "limit": "1 + 1", "units": "3"}]},
    {"rate_limits": [{"dynamic_key": "true", "limit": 2}]},
    {"rate_limits": [{"static_key": "a", "units": "'many'"}]},
    {"rate_limits": [{"static_key": ".."}]},
    {"batch": {"max_size": 3, "group_key": "7"}},
]


@pytest.mark.parametrize("fields", HOPELESS, ids=str)
def test_what_no_run_could_pass_is_refused(fields: dict[str, Any]) -> None:
    definition = parse_definition({"name": "work", **fields}, STORED, static=False)  # what was accepted once can still be read
    with pytest.raises(DefinitionError) as refused:
        refuse_hopeless(definition)
    assert refused.value.field == f"work.{next(iter(fields))}"


def test_what_some_run_could_pass_is_not_refused() -> None:
    limits = [{"dynamic_key": "input.k", "limit": 2, "units": "input.n"}, {"dynamic_key": "'k'", "limit": "1 + 1", "units": 2}]
    groups = [{"expression": "'k'", "max_runs": "2"}, {"expression": "input.k", "max_runs": "input.n"}, {"max_runs": 3}]
    refuse_hopeless(parse_definition({"name": "work", "rate_limits": limits, "concurrency": groups}, STORED, static=False))
