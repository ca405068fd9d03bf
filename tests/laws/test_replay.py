"""The replay engine alone: a handler, a log, and nothing else. What it asks, in which order it hears, where it differs, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from handlers_sdk.errors import Interruption, LostOwnership, NotDeterministicError, ScopeClosedError, StepFailedError, Suspended
from handlers_sdk.ops import PLAIN
from handlers_sdk.replay import Mismatched, Raised, Replay, Returned
from handlers_sdk.replay_loop import SPINS_MAX

AT = "2026-01-01T00:00:00.000Z"
NOW = 1_767_225_600_000
Handler = Callable[[Replay], Coroutine[Any, Any, Any]]


def step(id: str, value: Any = None, at: str = AT) -> dict[str, Any]:
    return {"id": id, "op": "step", "status": "ok", "value": value, "at": at}


def pending(id: str, op: str, **asked: Any) -> dict[str, Any]:
    return {"id": id, "op": op, "status": "pending", "at": AT, **asked}


def settled(id: str, op: str, status: str = "ok", **members: Any) -> dict[str, Any]:
    return {"id": id, "op": op, "status": status, "at": AT, **members}


def replayed(handler: Handler, log: list[dict[str, Any]], now: int = NOW) -> Replay:
    replay = Replay(log, started_at=AT, seed="5eed", now=lambda: now)
    replay.start(handler(replay))
    replay.advance()
    return replay


def test_nothing_is_begun_before_the_log_is_used_up() -> None:
    async def handler(replay: Replay) -> None:
        await asyncio.gather(replay.step("new", None, PLAIN), replay.step("old", None, PLAIN))

    replay = replayed(handler, [step("old#0")])
    assert [op.id for op in replay.asked_steps()] == ["new#0"]
    assert not replay.has_outgoing


def test_results_are_heard_in_the_order_of_the_log() -> None:
    async def handler(replay: Replay) -> list[str]:
        heard: list[str] = []

        async def branch(name: str) -> None:
            heard.append(await replay.step(name, None, PLAIN))
            heard.append(await replay.step(f"{name}-more", None, PLAIN))

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(branch(name))
        return heard

    log = [step("c#0", 1), step("a#0", 2), step("c-more#0", 3), step("b#0", 4), step("b-more#0", 5), step("a-more#0", 6)]
    assert replayed(handler, log).outcome == Returned([1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize(
    ("log", "at"),
    [
        ([step("b#0")], {"id": "b#0", "expected": {"id": "b#0", "op": "step", "status": "ok"}, "got": {"id": "a#0", "op": "step"}}),
        (
            [step("a#0"), pending("nap#0", "sleep", ms=7)],
            {
                "id": "nap#0",
                "expected": {"id": "nap#0", "op": "sleep", "status": "pending", "ms": 7},
                "got": {"id": "nap#0", "op": "sleep", "ms": 5},
            },
        ),
        (
            [settled("a#0", "event")],
            {"id": "a#0", "expected": {"id": "a#0", "op": "event", "status": "ok"}, "got": {"id": "a#0", "op": "step"}},
        ),
        (
            [step("a#0"), step("a#1")],
            {"id": "a#1", "expected": {"id": "a#1", "op": "step", "status": "ok"}, "got": {"id": "nap#0", "op": "sleep", "ms": 5}},
        ),
    ],
)
def test_another_code_is_found_out(log: list[dict[str, Any]], at: dict[str, Any]) -> None:
    async def handler(replay: Replay) -> None:
        await replay.step("a", None, PLAIN)
        await replay.ask("nap", "sleep", {"ms": 5})

    replay = replayed(handler, log)
    assert replay.outcome == Mismatched(at)  # type: ignore[arg-type]
    assert replay.asked_steps() == []


def test_the_input_of_a_child_is_compared_too_and_a_label_is_not() -> None:
    async def handler(replay: Replay) -> None:
        await replay.child("ship", {"workflow": "ship", "input": b'{"n": 1.0}', "label": "x"}, lambda value: value)

    log = [pending("ship#0", "child", workflow="ship", input={"n": 1}, label="y", run_id="run_1")]
    assert replayed(handler, log).outcome is None
    log[0]["input"] = {"n": 2}
    assert isinstance(replayed(handler, log).outcome, Mismatched)


@pytest.mark.parametrize(
    ("op", "asked", "dropped"),
    [
        ("event", {"key": "paid"}, {"expression": "input.n > 1"}),
        ("event", {"key": "paid"}, {"timeout_ms": 5}),
        ("event", {"key": "paid"}, {"scope": "s", "since": "start"}),
        ("message", {}, {"timeout_ms": 5}),
        ("sleep", {"ms": 5}, {"until": AT}),
        *[
            ("child", {"workflow": "ship", "input": {}}, {name: value})
            for name, value in [
                ("key", "k"),
                ("metadata", {}),
                ("priority", 3),
                ("on_cancel", "abandon"),
                ("labels", {"gpu": {"value": 1}}),
                ("sticky", True),
            ]
        ],
    ],
)
def test_what_is_left_out_is_a_change_like_what_is_added(op: str, asked: dict[str, Any], dropped: dict[str, Any]) -> None:
    async def handler(replay: Replay, **members: Any) -> None:
        await replay.ask("it", op, members)

    more = {"run_id": "run_1", "label": "y", "added_by_a_dispatcher": 1}
    assert replayed(lambda replay: handler(replay, **asked), [pending("it#0", op, **asked, **more)]).outcome is None
    for now, before in ((asked, asked | dropped), (asked | dropped, asked)):
        outcome = replayed(lambda replay, now=now: handler(replay, **now), [pending("it#0", op, **before)]).outcome  # type: ignore[misc]
        assert isinstance(outcome, Mismatched)


def test_what_is_left_over_at_the_end_is_said() -> None:
    async def handler(replay: Replay) -> int:
        return 1

    assert replayed(handler, [step("a#0"), step("b#0"), settled("b#0", "sleep")]).outcome == Returned(1, ("a#0", "b#0"))


@pytest.mark.parametrize(
    ("log", "answer"),
    [
        ([], True),
        ([step("a#0")], True),  # nothing was done since
        ([step("a#0"), step("old#0")], False),
        ([step("a#0"), pending("nap#0", "sleep", ms=1), settled("nap#0", "sleep")], False),
        ([step("a#0"), settled("newer#0", "patch", value=True), step("new#0")], True),
    ],
)
def test_a_patch_applies_where_nobody_has_been(log: list[dict[str, Any]], answer: bool) -> None:
    async def handler(replay: Replay) -> bool:
        await replay.step("a", None, PLAIN)
        patched = replay.patch("newer")
        assert replay.patch("newer") is patched, "one answer per name"
        if not patched and len(log) == 3:
            await replay.ask("nap", "sleep", {"ms": 1})
        return patched if len(log) != 1 else replay.patch("newer")

    replay = replayed(handler, log)
    if not log:
        (op,) = replay.asked_steps()
        replay.step_done(op, b"1", 1)
        replay.take_outgoing(9, 999)
        replay.recorded(1)
        replay.advance()
    assert isinstance(replay.outcome, Returned)
    assert replay.outcome.value is answer
    assert [b'"op":"patch"' in text for text in replay.take_unsent()] == ([True] if answer and len(log) < 3 else [])


@pytest.mark.parametrize(
    ("log", "ids", "taken"),
    [
        ([step("tax#0", 1), step("later#0")], ["tax#0"], False),  # where the old code had no patch
        ([step("tax#0", 1), step("tax#1", 2), step("later#0")], ["tax#0", "tax#1"], False),
        ([settled("tax#0", "patch", value=True), step("tax#1", 1), step("later#0")], ["tax#1"], True),
    ],
)
def test_a_patch_named_as_a_step_takes_no_number_where_it_does_not_apply(log: list[dict[str, Any]], ids: list[str], taken: bool) -> None:
    async def handler(replay: Replay) -> list[Any]:
        patched = replay.patch("tax")
        asked = [replay.step("tax", None, PLAIN) for _ in ids]
        for one in asked:
            await one
        await replay.step("later", None, PLAIN)
        return [patched, *[one.id for one in asked]]

    assert replayed(handler, log).outcome == Returned([taken, *ids])


def test_a_result_is_heard_when_it_is_recorded_and_not_before() -> None:
    async def handler(replay: Replay) -> list[Any]:
        return [await replay.step("a", None, PLAIN), await replay.step("a", None, PLAIN)]

    replay = replayed(handler, [])
    (op,) = replay.asked_steps()
    replay.step_done(op, b"1", 1)
    replay.advance()
    assert replay.asked_steps() == []
    assert replay.take_outgoing(9, 999) == [b'{"id":"a#0","op":"step","status":"ok","value":1,"at":"2026-01-01T00:00:00.000Z"}']
    replay.recorded(1)
    replay.advance()
    assert [op.id for op in replay.asked_steps()] == ["a#1"]


@pytest.mark.parametrize("why", [Suspended, LostOwnership])
def test_a_handler_that_is_put_aside_unwinds_and_asks_in_vain(why: type[Interruption]) -> None:
    said: list[str] = []

    async def handler(replay: Replay) -> None:
        try:
            await replay.ask("nap", "sleep", {"ms": 5})
        except Exception:
            said.append("an exception")
        finally:
            try:
                await replay.step("clean", None, PLAIN)
            except Interruption as interruption:
                said.append(type(interruption).__name__)
                raise

    replay = replayed(handler, [])
    replay.close(why)
    assert said == [why.__name__]
    assert replay.asked_steps() == []


ALL = ["nap#0", "nap#1", "nap#2"]
FAST: dict[str, Any] = {"all": ALL, "fail_fast": True}
INNER: dict[str, Any] = {"all": ALL[1:], "fail_fast": True}
Waits = Callable[[list[Any]], Any]
WAITS: dict[str, tuple[Waits, dict[str, Any]]] = {
    "gather": (lambda ops: asyncio.gather(*ops), FAST),
    "gather, tolerant": (lambda ops: asyncio.gather(*ops, return_exceptions=True), {"all": ALL}),
    "gather in gather": (lambda ops: asyncio.gather(ops[0], asyncio.gather(*ops[1:])), {"all": ["nap#0", INNER], "fail_fast": True}),
    "wait": (asyncio.wait, {"all": ALL}),
    "first": (lambda ops: asyncio.wait(ops, return_when=asyncio.FIRST_COMPLETED), {"any": ALL}),
    "first exception": (lambda ops: asyncio.wait(ops, return_when=asyncio.FIRST_EXCEPTION), FAST),
    "shield": (lambda ops: asyncio.shield(ops[1]), {"any": ["nap#1"]}),
    "one": (lambda ops: ops[1], {"any": ["nap#1"]}),
}


@pytest.mark.parametrize(("wait", "wake"), WAITS.values(), ids=WAITS.keys())
def test_the_wake_says_what_is_waited_for(wait: Waits, wake: dict[str, Any]) -> None:
    async def handler(replay: Replay) -> None:
        await wait([replay.ask("nap", "sleep", {"ms": n}) for n in range(3)])

    assert replayed(handler, []).wake() == wake


def test_a_group_wakes_once_and_branches_each() -> None:
    async def handler(replay: Replay) -> None:
        async def branch(n: int) -> None:
            await replay.ask("nap", "sleep", {"ms": n})
            await replay.ask("nap", "sleep", {"ms": n})

        async with asyncio.TaskGroup() as group:
            for n in range(2):
                group.create_task(replay.ask("alone", "sleep", {"ms": n}))
                group.create_task(branch(n))

    assert replayed(handler, []).wake() == {"any": ["nap#0", "nap#1", {"all": ["alone#0", "alone#1"], "fail_fast": True}]}


def test_waiting_for_nothing_durable_has_no_wake() -> None:
    async def handler(replay: Replay) -> None:
        await asyncio.Event().wait()

    assert replayed(handler, []).wake() is None


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (lambda _: asyncio.to_thread(print), "outside of a step"),
        (lambda _: asyncio.open_connection("localhost", 1), "outside of a step"),
        (lambda replay: replay.step("a/b", None, PLAIN), "cannot name"),
        (lambda replay: replay.ask("", "sleep", {"ms": 1}), "cannot name"),
    ],
)
def test_what_cannot_be_repeated_is_refused(handler: Callable[[Replay], Any], message: str) -> None:
    async def run(replay: Replay) -> None:
        await handler(replay)

    outcome = replayed(run, []).outcome
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, NotDeterministicError)
    assert message in str(outcome.error)


def test_going_round_and_round_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers_sdk.replay_loop.SPINS_MAX", 1_000)
    assert SPINS_MAX > 1_000

    async def handler(replay: Replay) -> None:
        while True:  # noqa: ASYNC110 - the fault itself
            await asyncio.sleep(0)

    outcome = replayed(handler, []).outcome
    assert isinstance(outcome, Raised)
    assert "round and round" in str(outcome.error)


def test_asking_from_outside_is_refused() -> None:
    async def handler(replay: Replay) -> None:
        await replay.ask("nap", "sleep", {"ms": 1})

    replay = replayed(handler, [])
    with pytest.raises(NotDeterministicError, match="inside of a step"):
        _ = replay.step("a", None, PLAIN)


def test_a_closed_scope_takes_nothing_and_is_not_run_again() -> None:
    kept: list[Callable[[], Any]] = []

    async def handler(replay: Replay) -> Any:
        async def part() -> int:
            async def late() -> None:
                await replay.ask("nap", "sleep", {"ms": 1})
                _ = replay.step("late", None, PLAIN)

            kept.append(late)
            task = asyncio.create_task(late())
            assert task is not None
            return 5

        value = await replay.scope("part", part, PLAIN)
        await replay.ask("nap", "sleep", {"ms": 1})
        return value

    log = [
        pending("part#0/nap#0", "sleep", ms=1),
        settled("part#0", "scope", value=7),
        pending("nap#0", "sleep", ms=1),
        settled("nap#0", "sleep"),
    ]
    assert replayed(handler, log).outcome == Returned(7)
    assert kept == []

    async def leaking(replay: Replay) -> Any:
        async def part() -> asyncio.Task[None]:
            async def late() -> None:
                await asyncio.sleep(0)
                _ = replay.step("late", None, PLAIN)

            kept.append(late)
            leaked.append(asyncio.create_task(late()))
            return None  # type: ignore[return-value]

        leaked: list[asyncio.Task[None]] = []
        await replay.scope("part", part, PLAIN)
        return await leaked[0]

    replay = replayed(leaking, [])
    replay.take_outgoing(9, 999)
    replay.recorded(1)
    replay.advance()
    assert isinstance(replay.outcome, Raised)
    assert isinstance(replay.outcome.error, ScopeClosedError)


def test_failures_are_what_was_recorded() -> None:
    async def handler(replay: Replay) -> None:
        await replay.step("a", None, PLAIN)

    error = {"name": "ConnectionError", "message": "no answer", "code": "unreachable"}
    outcome = replayed(handler, [settled("a#0", "step", "error", error=error, retry_exhausted=True)]).outcome
    assert isinstance(outcome, Raised)
    assert isinstance(outcome.error, StepFailedError)
    assert (outcome.error.step, outcome.error.name, outcome.error.message, outcome.error.error_code) == (
        "a#0", "ConnectionError", "no answer", "unreachable",
    )  # fmt: skip


@pytest.mark.parametrize(("now", "due"), [(NOW + 4_999, False), (NOW + 5_000, True)])
def test_a_failed_step_is_tried_again_when_it_is_due(now: int, due: bool) -> None:
    async def handler(replay: Replay) -> None:
        await replay.step("a", None, PLAIN)

    log = [settled("a#0", "step", "retry", error={"name": "E", "message": ""}, after_ms=5_000)]
    replay = replayed(handler, log, now)
    assert [op.failures for op in replay.asked_steps()] == ([1] if due else [])
    assert replay.wake() == (None if due else {"any": ["a#0"]})


def test_a_loop_of_many_steps_costs_each_once() -> None:
    """The check of one entry does not look at the others: ten times the log is about ten times the calls."""

    async def handler(replay: Replay) -> int:
        return sum([await replay.step("add", None, PLAIN) for _ in range(20_000)])

    assert replayed(handler, [step(f"add#{n}", 1) for n in range(20_000)]).outcome == Returned(20_000)
