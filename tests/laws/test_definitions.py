"""Definitions: every refusal names its field, and what is stored parses back to what it was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.definitions import (
    STORED,
    Batching,
    Concurrency,
    DefaultFilter,
    Definition,
    DefinitionError,
    DesiredLabel,
    Limits,
    Parent,
    RateLimit,
    Sleep,
    TaskDefinition,
    checksum,
    content_checksum,
    dump,
    format_duration,
    parse_definition,
    parse_definitions,
    parse_duration,
)

LIMITS = Limits(
    max_retries=100, execution_timeout=timedelta(seconds=60), schedule_timeout=timedelta(minutes=5), max_execution_timeout=timedelta(days=1)
)
TASK: dict[str, Any] = {"name": "resize"}
WORKFLOW: dict[str, Any] = {"name": "order", "kind": "workflow", "tasks": [{"name": "charge"}]}


def _workflow(**task: Any) -> dict[str, Any]:
    return {**WORKFLOW, "tasks": [{"name": "charge", **task}]}


DURATIONS = [
    ("1ms", 0.001), ("250ms", 0.25), ("1s", 1), ("1.5s", 1.5), ("90s", 90), ("42m30s", 2550), ("1h30m", 5400), ("2d", 172_800),
    ("1d1h1m1s1ms", 90_061.001), ("3650d", 315_360_000),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text, "f") == timedelta(seconds=seconds)


NOT_DURATIONS: list[object] = [
    "", "5", 5, 5.0, None, True, "-5s", "+5s", "5 s", " 5s", "5s ", "s", "5x", "5ns", "5us", "1h-5m", "1e3s", ".5s", "5.s", "0s", "0ms",
    "3651d", "9" * 400 + "d", "5S", "5sec", ["5s"], "٣s", "0.4ms", "0.0001ms", "1.0005s",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_DURATIONS, ids=repr)
def test_no_duration(text: object) -> None:
    """Bare numbers, signs and what is finer than the millisecond it is kept in are refused rather than rounded."""
    with pytest.raises(DefinitionError) as refused:
        parse_duration(text, "handlers[3].execution_timeout")
    assert refused.value.field == "handlers[3].execution_timeout"


@given(st.integers(1, 315_360_000_000))
def test_durations_round_trip(millis: int) -> None:
    value = timedelta(milliseconds=millis)
    assert parse_duration(format_duration(value), "f") == value


def test_a_bare_name_is_a_definition_completed_from_the_limits() -> None:
    it = parse_definition(TASK, LIMITS, static=False)
    (task,) = it.tasks
    assert (it.name, it.task_name(0), task.raw, task.retries, task.backoff_factor, it.default_priority) == (
        "resize",
        "resize",
        False,
        0,
        None,
        1,
    )
    assert (task.execution_timeout, task.schedule_timeout) == (LIMITS.execution_timeout, LIMITS.schedule_timeout)


def test_what_was_registered_under_other_bounds_lasts_as_long_as_can_be_stored() -> None:
    task = parse_definition({**TASK, "execution_timeout": "30d"}, STORED, static=False).tasks[0]
    assert task.execution_timeout == timedelta(days=24)
    assert task.execution_timeout / timedelta(milliseconds=1) < 2**31


def test_a_static_handlers_body_is_its_input_unless_it_says_otherwise() -> None:
    assert parse_definition(TASK, LIMITS, static=True).tasks[0].raw
    assert not parse_definition({**TASK, "body": "v1"}, LIMITS, static=True).tasks[0].raw


def test_a_workflow_has_its_tasks_policies_and_its_own_triggers() -> None:
    entry = {**_workflow(retries=2, backoff_factor=2, backoff_max_seconds=60), "on_events": ["a.*", "b", "a.*"], "default_priority": 3}
    it = parse_definition(entry, LIMITS, static=False)
    (task,) = it.tasks
    assert (it.task_name(0), task.retries, task.backoff_factor, task.backoff_max_seconds) == ("order:charge", 2, 2.0, 60.0)
    assert (it.on_events, it.default_priority) == (("a.*", "b"), 3)


LARGE = {"a": "x" * 70_000}
REFUSED: list[tuple[object, str]] = [
    ({**TASK, "default_filters": {}}, "handlers[0].default_filters"),
    ({**TASK, "default_filters": ["true"]}, "handlers[0].default_filters[0]"),
    ({**TASK, "default_filters": [{"scope": "s"}]}, "handlers[0].default_filters[0].expression"),
    ({**TASK, "default_filters": [{"expression": "true"}]}, "handlers[0].default_filters[0].scope"),
    ({**TASK, "default_filters": [{"expression": "input.", "scope": "s"}]}, "handlers[0].default_filters[0].expression"),
    ({**TASK, "default_filters": [{"expression": "output.x == 1", "scope": "s"}]}, "handlers[0].default_filters[0].expression"),
    ({**TASK, "default_filters": [{"expression": "true", "scope": "s", "payload": []}]}, "handlers[0].default_filters[0].payload"),
    (
        {**TASK, "default_filters": [{"expression": "true", "scope": "s", "payload": LARGE}]},
        "handlers[0].default_filters[0].payload",
    ),
    ({**TASK, "default_filters": [{"expression": "true", "scope": "s", "name": "x"}]}, "handlers[0].default_filters[0].name"),
    ({**TASK, "default_filters": [{"expression": "true", "scope": "s"}] * 1_001}, "handlers[0].default_filters"),
    ("resize", "handlers[0]"),
    (None, "handlers[0]"),
    ([], "handlers[0]"),
    ({}, "handlers[0].name"),
    ({"name": ""}, "handlers[0].name"),
    ({"name": 5}, "handlers[0].name"),
    ({"name": "a b"}, "handlers[0].name"),
    ({"name": "-a"}, "handlers[0].name"),
    ({"name": "a/b"}, "handlers[0].name"),
    ({"name": "a\n"}, "handlers[0].name"),
    ({"name": "a" * 201}, "handlers[0].name"),
    ({**TASK, "sticky": "glue"}, "handlers[0].sticky"),
    ({**TASK, "slot_cost": 0}, "handlers[0].slot_cost"),
    ({**TASK, "batch": 3}, "handlers[0].batch"),
    ({**TASK, "batch": {}}, "handlers[0].batch.max_size"),
    ({**TASK, "batch": {"max_size": 0}}, "handlers[0].batch.max_size"),
    ({**TASK, "batch": {"max_size": 3, "interval": "2h"}}, "handlers[0].batch.interval"),
    ({**TASK, "batch": {"max_size": 3, "group_key": "input."}}, "handlers[0].batch.group_key"),
    ({**TASK, "batch": {"max_size": 3, "group_max_runs": 0}}, "handlers[0].batch.group_max_runs"),
    ({**TASK, "batch": {"max_size": 3}, "kind": "durable"}, "handlers[0].batch"),
    ({**TASK, "batch": {"max_size": 3}, "rate_limits": [{"static_key": "a"}]}, "handlers[0].batch"),
    (_workflow(batch={"max_size": 3}), "handlers[0].tasks[0].batch"),
    ({**TASK, "desired_labels": {"gpu": {"value": "x", "comparator": "LESS_THAN"}}}, "handlers[0].desired_labels.gpu.value"),
    ({**TASK, "kind": None}, "handlers[0].kind"),
    ({**TASK, "retrys": 3}, "handlers[0].retrys"),
    ({**TASK, "tasks": []}, "handlers[0].tasks"),
    ({**TASK, "concurrency": "x"}, "handlers[0].concurrency"),
    ({**TASK, "body": "v2"}, "handlers[0].body"),
    ({**TASK, "body": None}, "handlers[0].body"),
    ({**TASK, "description": 5}, "handlers[0].description"),
    ({**TASK, "description": 0}, "handlers[0].description"),
    ({**TASK, "description": []}, "handlers[0].description"),
    ({**TASK, "description": "a\0"}, "handlers[0].description"),
    ({**TASK, "description": "a" * 10_001}, "handlers[0].description"),
    ({**TASK, "input_schema": []}, "handlers[0].input_schema"),
    ({**TASK, "input_schema": True}, "handlers[0].input_schema"),
    ({**TASK, "output_schema": "object"}, "handlers[0].output_schema"),
    ({**TASK, "retries": -1}, "handlers[0].retries"),
    ({**TASK, "retries": 101}, "handlers[0].retries"),
    ({**TASK, "retries": 1.5}, "handlers[0].retries"),
    ({**TASK, "retries": True}, "handlers[0].retries"),
    ({**TASK, "retries": "3"}, "handlers[0].retries"),
    ({**TASK, "backoff_factor": 0.5}, "handlers[0].backoff_factor"),
    ({**TASK, "backoff_factor": 1001}, "handlers[0].backoff_factor"),
    ({**TASK, "backoff_factor": float("nan")}, "handlers[0].backoff_factor"),
    ({**TASK, "backoff_factor": float("inf")}, "handlers[0].backoff_factor"),
    ({**TASK, "backoff_factor": True}, "handlers[0].backoff_factor"),
    ({**TASK, "backoff_factor": 10**400}, "handlers[0].backoff_factor"),
    ({**TASK, "backoff_max_seconds": 0}, "handlers[0].backoff_max_seconds"),
    ({**TASK, "backoff_max_seconds": 86_401}, "handlers[0].backoff_max_seconds"),
    ({**TASK, "execution_timeout": 60}, "handlers[0].execution_timeout"),
    ({**TASK, "execution_timeout": "-1s"}, "handlers[0].execution_timeout"),
    ({**TASK, "execution_timeout": "2d"}, "handlers[0].execution_timeout"),
    ({**TASK, "schedule_timeout": "soon"}, "handlers[0].schedule_timeout"),
    ({**TASK, "on_events": "order.created"}, "handlers[0].on_events"),
    ({**TASK, "on_events": {}}, "handlers[0].on_events"),
    ({**TASK, "on_events": False}, "handlers[0].on_events"),
    ({**TASK, "on_events": ["a", ""]}, "handlers[0].on_events[1]"),
    ({**TASK, "on_events": ["a", 5]}, "handlers[0].on_events[1]"),
    ({**TASK, "on_events": ["a\tb"]}, "handlers[0].on_events[0]"),
    ({**TASK, "on_events": ["a" * 501]}, "handlers[0].on_events[0]"),
    ({**TASK, "on_events": ["a"] * 101}, "handlers[0].on_events"),
    ({**TASK, "default_priority": 0}, "handlers[0].default_priority"),
    ({**TASK, "default_priority": 4}, "handlers[0].default_priority"),
    ({**TASK, "default_metadata": []}, "handlers[0].default_metadata"),
    ({**TASK, "default_metadata": "x"}, "handlers[0].default_metadata"),
    ({**TASK, "default_metadata": {"hatchet__x": 1}}, "handlers[0].default_metadata"),
    ({**TASK, "default_metadata": {"x": "y" * 5_000}}, "handlers[0].default_metadata"),
    ({**TASK, "idempotent": "yes"}, "handlers[0].idempotent"),
    ({**TASK, "allow_html": 1}, "handlers[0].allow_html"),
    ({**WORKFLOW, "tasks": None}, "handlers[0].tasks"),
    ({**WORKFLOW, "tasks": []}, "handlers[0].tasks"),
    ({**WORKFLOW, "tasks": ["charge"]}, "handlers[0].tasks[0]"),
    ({**WORKFLOW, "tasks": [{"name": "a"}, {"name": "a"}]}, "handlers[0].tasks[1].name"),
    ({**WORKFLOW, "tasks": [{"name": "a"}] * 2_001}, "handlers[0].tasks"),
    ({**WORKFLOW, "on_failure": {"name": "charge"}}, "handlers[0].on_failure.name"),
    ({**WORKFLOW, "on_failure": "charge"}, "handlers[0].on_failure"),
    ({**WORKFLOW, "on_success": {"name": "x", "parents": ["charge"]}}, "handlers[0].on_success.parents"),
    (_workflow(parents="charge"), "handlers[0].tasks[0].parents"),
    (_workflow(parents=["other"]), "handlers[0].tasks[0].parents[0]"),
    (_workflow(parents=["charge"]), "handlers[0].tasks[0].parents"),
    (_workflow(wait_for={"sleep": "1s"}), "handlers[0].tasks[0].wait_for"),
    (_workflow(wait_for=[{"sleep": "1"}]), "handlers[0].tasks[0].wait_for[0].sleep"),
    (_workflow(wait_for=[{"sleep": "1s", "event": "a"}]), "handlers[0].tasks[0].wait_for[0].event"),
    (_workflow(wait_for=[{"or": []}]), "handlers[0].tasks[0].wait_for[0].or"),
    (_workflow(wait_for=[{"or": [{"or": [{"sleep": "1s"}]}]}]), "handlers[0].tasks[0].wait_for[0].or[0]"),
    (_workflow(wait_for=[{"event": ""}]), "handlers[0].tasks[0].wait_for[0].event"),
    (_workflow(wait_for=[{"event": "a", "expression": "input."}]), "handlers[0].tasks[0].wait_for[0].expression"),
    (_workflow(wait_for=[{"event": "a", "expression": "nobody.x"}]), "handlers[0].tasks[0].wait_for[0].expression"),
    (_workflow(skip_if=[{"parent": "charge", "expression": "true"}]), "handlers[0].tasks[0].skip_if[0].parent"),
    (_workflow(cancel_if=["x"]), "handlers[0].tasks[0].cancel_if[0]"),
    (_workflow(cancel_if=[{"sleep": "1s"}] * 101), "handlers[0].tasks[0].cancel_if"),
    ({**WORKFLOW, "retries": 3}, "handlers[0].retries"),
    (_workflow(name="b c"), "handlers[0].tasks[0].name"),
    (_workflow(retries=-1), "handlers[0].tasks[0].retries"),
    (_workflow(on_events=["a"]), "handlers[0].tasks[0].on_events"),
    (_workflow(kind="workflow"), "handlers[0].tasks[0].kind"),
    (_workflow(execution_timeout="1"), "handlers[0].tasks[0].execution_timeout"),
]


@pytest.mark.parametrize(("entry", "field"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_each_refusal_names_its_field(entry: object, field: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_definition(entry, LIMITS, static=False)
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_definitions([TASK, {"name": "other"}, _workflow() | {"name": "resize"}], LIMITS, static=False)
    assert refused.value.field == "handlers[2].name"


@pytest.mark.parametrize("entries", [None, {}, "resize", 5])
def test_handlers_are_a_list(entries: object) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_definitions(entries, LIMITS, static=False)
    assert refused.value.field == "handlers"


# ---- what is stored --------------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,30}", fullmatch=True)
plain = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | plain
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(plain, v, max_size=3), max_leaves=8)
schemas = st.dictionaries(plain, values, max_size=3)
spans = st.integers(1, 86_400_000).map(lambda millis: format_duration(timedelta(milliseconds=millis)))
of_task = st.fixed_dictionaries(
    {},
    optional={
        "body": st.sampled_from(["raw", "v1"]),
        "output_schema": schemas,
        "retries": st.integers(0, 100),
        "backoff_factor": st.floats(1, 1000),
        "backoff_max_seconds": st.floats(0.001, 86_400),
        "execution_timeout": spans,
        "schedule_timeout": spans,
        "idempotent": st.booleans(),
        "allow_html": st.booleans(),
    },
)
of_workflow = st.fixed_dictionaries(
    {"name": names},
    optional={
        "description": plain,
        "input_schema": schemas,
        "on_events": st.lists(plain.filter(bool), max_size=4),
        "default_priority": st.integers(1, 3),
        "default_filters": st.lists(
            st.fixed_dictionaries(
                {"expression": st.sampled_from(["true", "input.a == payload.b"]), "scope": plain.filter(bool)},
                optional={"payload": st.none() | st.dictionaries(plain, values, max_size=3)},
            ),
            max_size=3,
        ),
    },
)
entries = st.one_of(
    st.builds(lambda w, t: {**w, **t}, of_workflow, of_task),
    st.builds(lambda w, t, n: {**w, "kind": "workflow", "tasks": [{"name": n, **t}]}, of_workflow, of_task, names),
)


@given(entries, st.booleans())
def test_what_is_dumped_parses_back(entry: dict[str, Any], static: bool) -> None:
    definition = parse_definition(entry, LIMITS, static=static)
    stored = json.loads(json.dumps(dump(definition)))
    assert parse_definition(stored, LIMITS, static=not static) == definition
    assert checksum(definition) == content_checksum(stored)


@given(entries)
def test_the_checksum_is_of_the_content_not_of_its_spelling(entry: dict[str, Any]) -> None:
    backwards = dict(reversed(entry.items()))
    assert checksum(parse_definition(entry, LIMITS, static=False)) == checksum(parse_definition(backwards, LIMITS, static=False))


def test_the_checksum_sees_every_field() -> None:
    graph = {**WORKFLOW, "tasks": [{"name": "charge"}, {"name": "ship", "parents": ["charge"]}, {"name": "mail"}, {"name": "tell"}]}
    base, second, rule = parse_definition(graph, LIMITS, static=False), timedelta(seconds=1), ((Sleep(timedelta(seconds=1)),),)
    of_task: dict[str, Any] = {
        "name": "x", "durable": True, "raw": True, "description": "x", "input_schema": {"a": 1}, "output_schema": {"a": 1}, "retries": 1,
        "backoff_factor": 2.0, "backoff_max_seconds": 2.0, "execution_timeout": second, "schedule_timeout": second,
        "idempotent": True, "allow_html": True, "parents": (2,), "wait_for": rule, "skip_if": rule, "cancel_if": rule,
        "concurrency": (Concurrency("input.a", 1),), "rate_limits": (RateLimit("a", None, 1),), "slot_cost": 2,
        "batch": Batching(3),
        "desired_labels": {"gpu": DesiredLabel(1)},
    }  # fmt: skip
    durable: dict[str, Any] = {"mode": "state", "pin": "latest"}
    assert of_task.keys() | durable.keys() == set(TaskDefinition.__slots__)
    tasks = [replace(base.tasks[1], **{field: value}) for field, value in of_task.items()]
    tasks += [replace(base.tasks[1], durable=True, **{field: value}) for field, value in durable.items()]
    changed = [replace(base, tasks=(base.tasks[0], task, *base.tasks[2:])) for task in tasks]
    of_workflow: dict[str, Any] = {
        "name": "x", "description": "x", "input_schema": {"a": 1}, "on_events": ("x",), "default_priority": 2, "on_failure": 3,
        "on_success": 3, "default_filters": (DefaultFilter("true", "x"),), "concurrency": (Concurrency("input.a", 1),), "sticky": "soft",
        "on_crons": parse_definition({**TASK, "on_crons": ["0 9 * * 1"]}, LIMITS, static=False).on_crons,
        "default_metadata": '{"a":1}',
    }  # fmt: skip
    assert of_workflow.keys() | {"tasks", "kind"} == set(Definition.__slots__)
    changed += [replace(base, **{field: value}) for field, value in of_workflow.items()]
    sums = {checksum(definition) for definition in [base, *changed]}
    assert len(sums) == len(changed) + 1


def test_a_graph_knows_its_nodes_and_what_comes_last() -> None:
    entry = {
        "name": "order",
        "kind": "workflow",
        "tasks": [{"name": "ship", "parents": ["charge", "charge"]}, {"name": "charge", "wait_for": [{"sleep": "10s"}]}],
        "on_failure": {"name": "apologise", "retries": 2},
        "on_success": {"name": "thank"},
    }
    it = parse_definition(entry, LIMITS, static=False)
    assert [task.name for task in it.tasks] == ["ship", "charge", "apologise", "thank"]
    assert (it.tasks[0].parents, it.on_failure, it.on_success, it.is_graph) == ((1,), 2, 3, True)
    assert it.task_name(2) == "order:apologise"
    assert it.tasks[1].wait_for == ((Sleep(timedelta(seconds=10)),),)
    assert parse_definition(json.loads(json.dumps(dump(it))), STORED, static=True) == it


def test_a_cycle_is_refused_with_its_path() -> None:
    tasks = [{"name": "a", "parents": ["c"]}, {"name": "b", "parents": ["a"]}, {"name": "c", "parents": ["b"]}, {"name": "d"}]
    with pytest.raises(DefinitionError, match="a -> b -> c -> a"):
        parse_definition({**WORKFLOW, "tasks": tasks}, LIMITS, static=False)


def test_a_parent_condition_may_name_whatever_comes_before() -> None:
    late = {"name": "c", "parents": ["b"], "skip_if": [{"parent": "a", "expression": "output.n > 1"}]}
    tasks = [{"name": "a"}, {"name": "b", "parents": ["a"]}, late]
    it = parse_definition({**WORKFLOW, "tasks": tasks}, LIMITS, static=False)
    assert it.tasks[2].skip_if == ((Parent(0, "output.n > 1"),),)
    with pytest.raises(DefinitionError, match="not a task this one comes after"):
        parse_definition(
            {**WORKFLOW, "tasks": [*tasks, {**late, "name": "e", "parents": ["a"], "skip_if": [{"parent": "b", "expression": "true"}]}]},
            LIMITS,
            static=False,
        )


def test_the_checksum_is_stable_over_releases() -> None:
    """Pinned: a change here makes a new version of every workflow in every store at the next registration."""
    assert checksum(parse_definition(TASK, LIMITS, static=False)) == "71614afa3be78b6b5bb6c29902ad8fe2767338bf51c26e509ece000c8b174409"
