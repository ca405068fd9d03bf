"""The law of a turn: what the answers of durable tasks do, and how their lives differ from those of others."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dispatcher.engine.answers import (
    Again,
    Answer,
    Busy,
    Continued,
    EndpointBroken,
    EndpointGone,
    Failed,
    LocalFault,
    Lost,
    Mismatched,
    PlatformKilled,
    Pushback,
    Succeeded,
    Suspended,
    TimedOut,
    Turned,
    Unreachable,
)
from dispatcher.engine.attempts import (
    CancelEnforced,
    CancelRequested,
    CleanUp,
    Error,
    Event,
    Finish,
    LeaseEnded,
    MarkCancelling,
    Refused,
    Requeue,
    ScheduleExpired,
    State,
    TaskState,
    Yield,
    step,
)
from tests.laws.attempts_table import DEADLINE, NOW, POLICY

RUNNING = TaskState("running", 4, 2, 0, 0, None, None, DEADLINE, None, None, cancelling=False, begun=True, durable=True)
ANSWERS: list[Answer] = [
    Succeeded(b"1"), Failed("x", "x"), TimedOut("x"), Lost("x"), Suspended(b'"a"'), Again(grew=True), Continued(b"1"), Mismatched("x"),
    Unreachable("x", "x"), Pushback(None, "x"), Busy(None, "x"), EndpointBroken("x", "x"), EndpointGone("x"), LocalFault("x", "x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "change"),
    [
        (Suspended(b'"a#0"'), Yield("waiting", "suspended", wake=b'"a#0"')),
        (Suspended(b'"a#0"', b"{}"), Yield("waiting", "suspended", wake=b'"a#0"', memory=b"{}")),
        (Again(grew=True), Yield("queued", "suspended")),
        (Again(grew=False, whole=True), Yield("queued", "suspended", whole=True)),
        (Again(grew=False, memory=b"1"), Yield("queued", "suspended", memory=b"1")),
        (Continued(b"[2]"), Yield("queued", "suspended", input=b"[2]")),
        (Mismatched("no", b"{}"), Yield("blocked", "blocked", error=Error("code_mismatch", "no", b"{}"))),
        (Mismatched("gone", code="version_gone"), Yield("blocked", "blocked", error=Error("version_gone", "gone"))),
        (Succeeded(b"1"), Finish("succeeded", "succeeded", output=b"1", output_type="application/json")),
    ],
)
def test_what_a_turn_answers(answer: Answer, change: Yield | Finish) -> None:
    assert step(RUNNING, POLICY, answer, NOW) == change
    assert step(RUNNING, POLICY, Turned(3, (), answer), NOW) == change


def test_again_without_progress_is_a_failure_like_any_other() -> None:
    change = step(RUNNING, POLICY, Again(grew=False), NOW)
    assert isinstance(change, Requeue)
    assert change.error.code == "no_progress"
    assert change.app_retries == 1
    last = step(replace(RUNNING, app_retries=POLICY.retries), POLICY, Again(grew=False), NOW)
    assert isinstance(last, Finish)
    assert last.status == "failed"


@pytest.mark.parametrize("answer", [Failed("x", "x"), TimedOut("x"), Unreachable("x", "x"), Pushback(None, "x")])
def test_a_task_that_has_begun_waits_for_a_slot_as_long_as_it_takes(answer: Answer) -> None:
    begun, fresh = step(RUNNING, POLICY, answer, NOW), step(replace(RUNNING, begun=False), POLICY, answer, NOW)
    assert isinstance(begun, Requeue)
    assert begun.schedule_deadline is None
    assert isinstance(fresh, Requeue)
    assert fresh.schedule_deadline is not None


def test_a_task_that_has_begun_is_blocked_where_others_fail_for_their_endpoint() -> None:
    long_spared = replace(RUNNING, spared_since=NOW - timedelta(hours=2), spared_by="endpoint")
    change = step(long_spared, POLICY, EndpointBroken("http_404", "gone"), NOW)
    assert change == Yield("blocked", "endpoint_broken", error=Error("http_404", "gone"))
    assert isinstance(step(replace(long_spared, begun=False), POLICY, EndpointBroken("http_404", "gone"), NOW), Finish)


@pytest.mark.parametrize(("losses", "seconds"), [(0, 0), (1, 1), (2, 2), (3, 4), (6, 30), (900, 30)])
@pytest.mark.parametrize("event", [Lost("x"), LeaseEnded()])
def test_a_turn_nobody_will_hear_of_is_sent_again_soon_and_then_less_often(event: Event, losses: int, seconds: int) -> None:
    patient = replace(POLICY, infra_retries=1_000)
    for begun in (True, False):
        change = step(replace(RUNNING, begun=begun, infra_retries=losses, app_retries=1), patient, event, NOW)
        assert isinstance(change, Requeue)
        assert (change.attempt, change.app_retries, change.infra_retries) == ("lost", 1, losses + 1)
        assert change.due_at == NOW + timedelta(seconds=seconds)
        assert change.schedule_deadline == (None if begun else change.due_at + POLICY.schedule_timeout)


def test_a_turn_that_is_lost_too_often_is_blocked_or_fails_if_there_is_nothing_to_keep() -> None:
    spent = replace(RUNNING, infra_retries=POLICY.infra_retries)
    assert step(spent, POLICY, Lost("broke"), NOW) == Yield("blocked", "lost", error=Error("connection_lost", "broke"))
    fresh = step(replace(spent, begun=False), POLICY, Lost("broke"), NOW)
    assert fresh == Finish("failed", "lost", error=Error("connection_lost", "broke"))


@pytest.mark.parametrize("state", ["waiting", "queued", "scheduled", "gated"])
def test_a_cancel_between_turns_gives_one_more(state: State) -> None:
    change = step(replace(RUNNING, state=state), POLICY, CancelRequested("why", timedelta(0)), NOW)
    assert change == CleanUp("why", timedelta(seconds=10), NOW + timedelta(minutes=1))


@pytest.mark.parametrize("state", ["queued", "scheduled", "gated"])
def test_a_cancel_before_the_first_turn_ends_it(state: State) -> None:
    change = step(replace(RUNNING, state=state, begun=False), POLICY, CancelRequested("why", timedelta(0)), NOW)
    assert isinstance(change, Finish)
    assert change.status == "cancelled"


def test_what_is_blocked_cannot_clean_up() -> None:
    change = step(replace(RUNNING, state="blocked"), POLICY, CancelRequested("why", timedelta(0)), NOW)
    assert isinstance(change, Finish)
    assert change.status == "cancelled"


def test_a_live_turn_is_told_and_one_that_gives_way_cleans_up() -> None:
    assert isinstance(step(RUNNING, POLICY, CancelRequested("why", timedelta(seconds=5)), NOW), MarkCancelling)
    cancelling = replace(RUNNING, cancelling=True)
    for answer in (Suspended(b'"a"'), Again(grew=False)):
        assert isinstance(step(cancelling, POLICY, answer, NOW), CleanUp)
    late = step(cancelling, POLICY, Succeeded(b"1"), NOW)
    assert isinstance(late, Finish)
    assert late.status == "cancelled"


UNHEARD = [
    Lost("x"),
    LeaseEnded(),
    Unreachable("x", "x"),
    Pushback(None, "x"),
    EndpointBroken("x", "x"),
    TimedOut("x"),
    PlatformKilled("x"),
]


@pytest.mark.parametrize("event", [*UNHEARD, CancelEnforced("why")], ids=lambda event: type(event).__name__)
def test_a_turn_told_to_stop_that_has_no_say_is_cleaned_up_after(event: Event) -> None:
    cancelling = replace(RUNNING, cancelling=True)
    assert step(cancelling, POLICY, event, NOW) == CleanUp("cancelled", timedelta(seconds=10), NOW + timedelta(minutes=1), "cancelled")
    fresh = step(replace(cancelling, begun=False), POLICY, event, NOW)
    assert isinstance(fresh, Finish), "there is nothing to undo"
    assert fresh.status == "cancelled"


INTERRUPTED = (Lost, Unreachable, Pushback, Busy, EndpointBroken, EndpointGone, LocalFault)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_a_turn_to_clean_up_in_ends_the_task_whatever_it_answers(answer: Answer) -> None:
    """One that nobody took, or that was cut off, is tried again for a minute; then it is the end all the same."""
    cleaning = replace(RUNNING, cleanup=True)
    change = step(cleaning, POLICY, answer, NOW)
    if isinstance(answer, INTERRUPTED):
        assert isinstance(change, Requeue)
        assert (change.error.code, change.spared_since, change.schedule_deadline) == (
            "cleanup_interrupted",
            NOW,
            NOW + timedelta(minutes=1),
        )
        change = step(replace(cleaning, spared_since=NOW - timedelta(minutes=1)), POLICY, answer, NOW)
    assert isinstance(change, Finish)
    assert (change.status, change.attempt) == ("cancelled", "cancelled")


def test_nobody_who_cleans_up_does_not_keep_it_alive() -> None:
    waiting = replace(RUNNING, state="queued", cleanup=True)
    expired = step(waiting, POLICY, ScheduleExpired(), NOW)
    assert isinstance(expired, Finish)
    assert expired.error is not None
    assert expired.error.code == "cancelled"
    assert isinstance(step(replace(RUNNING, cleanup=True), POLICY, LeaseEnded(), NOW), Requeue)
    lost = step(replace(RUNNING, cleanup=True, spared_since=NOW - timedelta(minutes=1)), POLICY, LeaseEnded(), NOW)
    assert isinstance(lost, Finish)
    assert lost.status == "cancelled"
    assert isinstance(step(waiting, POLICY, CancelRequested("again", timedelta(0)), NOW), Refused)


@pytest.mark.parametrize("state", ["waiting", "blocked"])
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_what_is_suspended_hears_no_answers(state: State, answer: Answer) -> None:
    assert isinstance(step(replace(RUNNING, state=state), POLICY, answer, NOW), Refused)
    assert isinstance(step(replace(RUNNING, state=state), POLICY, LeaseEnded(), NOW), Refused)
    assert isinstance(step(replace(RUNNING, state=state), POLICY, ScheduleExpired(), NOW), Refused)
