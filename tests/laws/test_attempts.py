"""`step` against the hand-written law, and that it has an answer to everything."""

from __future__ import annotations

import typing
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.answers import Again, Continued, Mismatched, Suspended, Turned
from dispatcher.engine.attempts import (
    RETRY_PRIORITY,
    CancelRequested,
    Change,
    Event,
    Finish,
    Hold,
    MarkCancelling,
    Policy,
    Refused,
    Requeue,
    ScheduleExpired,
    TaskState,
    extended,
    renewed,
    step,
)
from tests.laws.attempts_table import CANCELLING, NOT_RUNNING, NOW, SITUATIONS, TABLE, Row

CELLS = [(name, row) for row in TABLE for name in SITUATIONS]


def _name(value: object) -> str:
    return f"{type(value.event).__name__}-{TABLE.index(value)}" if isinstance(value, Row) else str(value).replace(" ", "_")


@pytest.mark.parametrize(("situation", "row"), CELLS, ids=_name)
def test_cell(situation: str, row: Row) -> None:
    it = SITUATIONS[situation]
    change = step(it.task, it.policy, row.event, NOW)
    expected = row.expected(situation)
    if expected is Refused:
        assert isinstance(change, Refused)
    else:
        assert change == expected


def test_the_table_has_every_event() -> None:
    of_turns = {Suspended, Again, Continued, Mismatched, Turned}  # test_turns.py has those
    assert {type(row.event) for row in TABLE} == set(typing.get_args(Event)) - of_turns


def test_the_table_names_only_situations_there_are() -> None:
    for row in TABLE:
        assert set(row.but) <= set(SITUATIONS)
    assert {name for name, it in SITUATIONS.items() if it.task.state != "running"} == set(NOT_RUNNING)
    assert {name for name, it in SITUATIONS.items() if it.task.cancelling} == set(CANCELLING)


# ---- whatever comes ----------------------------------------------------------------------------------------------------------

moments = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1), timezones=st.just(NOW.tzinfo))  # type: ignore[arg-type]  # noqa: DTZ001 - given a zone
durations = st.timedeltas(timedelta(0), timedelta(days=2))
positive = st.timedeltas(timedelta(milliseconds=1), timedelta(days=2))
counts = st.integers(0, 100)
tasks = st.builds(
    TaskState,
    state=st.sampled_from(["scheduled", "queued", "running"]),
    epoch=st.integers(0, 1_000),
    priority=st.integers(1, 4),
    app_retries=counts,
    infra_retries=counts,
    spared_since=st.none() | moments,
    spared_by=st.none() | st.sampled_from(["pushback", "endpoint"]),
    deadline=st.none() | moments,
    lease_until=st.none() | moments,
    lease=st.none() | durations,
    cancelling=st.booleans(),
)
policies = st.builds(
    Policy,
    retries=counts,
    backoff_factor=st.none() | st.floats(1, 1000),
    backoff_max_seconds=st.none() | st.floats(0.001, 86_400),
    schedule_timeout=positive,
    idempotent=st.booleans(),
    infra_retries=counts,
    misconfig_ttl=positive,
    pushback_ttl=positive,
    max_execution_timeout=positive,
)
events = st.sampled_from([row.event for row in TABLE])


@given(tasks, policies, events, moments)
def test_step_is_total(task: TaskState, policy: Policy, event: Event, now: datetime) -> None:
    assert isinstance(step(task, policy, event, now), Change | Refused)


@given(tasks, policies, events, moments)
def test_nothing_is_due_in_the_past_nor_without_end(task: TaskState, policy: Policy, event: Event, now: datetime) -> None:
    change = step(task, policy, event, now)
    match change:
        case Requeue():
            assert change.schedule_deadline is not None
            assert now <= change.due_at < change.schedule_deadline
            assert change.due_at <= now + timedelta(days=1)
        case Hold():
            assert change.lease_until <= change.deadline
        case MarkCancelling():
            assert change.cancel_at >= now
        case _:
            pass


@given(tasks, policies, events, moments)
def test_budgets_only_shrink_and_one_at_a_time(task: TaskState, policy: Policy, event: Event, now: datetime) -> None:
    change = step(task, policy, event, now)
    if isinstance(change, Requeue):
        app, infra = change.app_retries - task.app_retries, change.infra_retries - task.infra_retries
        assert (app, infra) in {(0, 0), (1, 0), (0, 1)}
        assert change.app_retries <= max(policy.retries, task.app_retries)
        assert change.infra_retries <= max(policy.infra_retries, task.infra_retries)
        assert change.priority == (RETRY_PRIORITY if app or infra else task.priority)


@given(tasks, policies, events, moments)
def test_only_a_running_attempt_has_an_end(task: TaskState, policy: Policy, event: Event, now: datetime) -> None:
    change = step(task, policy, event, now)
    if task.state == "running":
        assert not isinstance(event, ScheduleExpired) or isinstance(change, Refused)
        assert not isinstance(change, Finish) or change.attempt is not None
    elif isinstance(event, CancelRequested | ScheduleExpired):
        assert isinstance(change, Finish)
        assert change.attempt is None
    else:
        assert isinstance(change, Refused)


@given(tasks, policies, events, moments)
def test_what_is_being_cancelled_never_runs_again(task: TaskState, policy: Policy, event: Event, now: datetime) -> None:
    change = step(task, policy, event, now)
    if task.cancelling and task.state == "running":
        assert not isinstance(change, Requeue)
        assert not isinstance(change, Finish) or change.status == "cancelled"


@given(tasks, policies, events, moments)
def test_a_failure_says_why_and_a_success_carries_its_output(task: TaskState, policy: Policy, event: Event, now: datetime) -> None:
    change = step(task, policy, event, now)
    if isinstance(change, Finish):
        assert (change.error is None) == (change.status == "succeeded")
        assert (change.output is not None) == (change.status == "succeeded")


# ---- leases and deadlines ------------------------------------------------------------------------------------------------------


@given(moments, durations, moments, moments)
def test_a_heartbeat_never_shortens_a_lease_nor_outlives_the_deadline(
    lease_until: datetime, lease: timedelta, deadline: datetime, now: datetime
) -> None:
    end = renewed(lease_until, lease, deadline, now)
    assert end >= lease_until
    assert end <= max(lease_until, deadline)
    assert end <= max(lease_until, now + lease)


@given(moments, moments, durations, positive)
def test_an_extension_counts_from_the_deadline(deadline: datetime, started_at: datetime, by: timedelta, most: timedelta) -> None:
    end = extended(deadline, started_at, by, most)
    assert deadline <= end <= deadline + by
    assert end in {deadline, deadline + by, started_at + most}
    assert end <= max(deadline, started_at + most)
