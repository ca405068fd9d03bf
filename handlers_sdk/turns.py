"""A turn of a durable task being worked on: the replay engine joined to the outside world.

One loop drives it: let the handler run, write down what it did, run the steps it asks for. A lone step runs in the turn's own task;
steps that run beside others get one each. What the handler is to see is in the log first, unless the endpoint cannot call out.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from math import exp, inf, log
from typing import Any, Final

from handlers_sdk import wire
from handlers_sdk.channel import ENDED
from handlers_sdk.context import Context
from handlers_sdk.durable import STEP, DurableContext, Step, Trial
from handlers_sdk.errors import (
    ApiError,
    Cancelled,
    ContinuedAsNew,
    DispatcherError,
    Interruption,
    LostOwnership,
    NonRetryableException,
    NotDeterministicError,
    RetryableException,
)
from handlers_sdk.execution import SHUTTING_DOWN, STALE, Execution, Host
from handlers_sdk.function import HandlerFunction
from handlers_sdk.longrunning import with_options
from handlers_sdk.ops import Op, error_entry, ms_of, retry_entry, storable
from handlers_sdk.outcomes import Fail, Outcome, Refuse, Turned, failure
from handlers_sdk.portal import PORTAL
from handlers_sdk.replay import Mismatched, Raised, Replay, Returned
from handlers_sdk.runs import saved_state, send_message
from handlers_sdk.schemas import dump_json, parse_json
from handlers_sdk.within import Within

OPS_PER_APPEND: Final = 2_000
_TURN_MEMBERS: Final = (("turn", int), ("now", str), ("started_at", str), ("seed", str), ("budget_ms", int))
CARRIED_BYTES_MAX: Final = 1_000_000
BACKOFF_MAX_SECONDS: Final = 86_400

logger = logging.getLogger("handlers_sdk")


class TurnExecution(Execution):
    """One turn. `checkpoint` "step" has every result acknowledged before the handler goes on, "turn" sends them with the answer."""

    __slots__ = (
        "_append_error",
        "_base_len",
        "_carrying",
        "_clock_base",
        "_entries",
        "_hit",
        "_lost",
        "_news",
        "_opened_len",
        "_replay",
        "_steps",
        "_texts",
        "_time",
    )

    context: DurableContext
    _replay: Replay

    def __init__(
        self,
        host: Host,
        function: HandlerFunction,
        task_name: str,
        item: wire.RunItem,
        base: str,
        settle: Callable[[Execution, Outcome], None],
        checkpoint: str,
    ) -> None:
        super().__init__(host, function, task_name, item, base, settle)
        self._carrying = checkpoint == "turn"

    def _make_context(self, task_name: str) -> Context:
        return DurableContext(self._item, self, task_name)

    def start(self, received: float) -> None:
        """Begin. The dispatcher's clock is read off the turn's `now` and what has passed since."""
        loop = asyncio.get_running_loop()
        turn: Any = self._item
        self._time = self._host.time or loop.time
        self._clock_base = ms_of(turn["now"]) - (received if self._host.time is None else self._time()) * 1000
        self._steps: dict[Op[Any], asyncio.Task[None]] = {}
        self._news: asyncio.Future[None] | None = None
        self._append_error: DispatcherError | None = None
        self._lost = False
        self._hit: bool | None = None
        self._texts: list[bytes] = []
        self._base_len = self._opened_len = 0
        self._loop = loop
        super().start(received)

    # ---- what a durable context asks for

    def namespaced(self, key: str) -> str:
        """As the dispatcher knows it."""
        return self._host.api.config.namespaced(key)

    async def saved(self, run_id: str) -> Any:
        """The state a run has saved."""
        return await PORTAL.aio_call(saved_state(self._host.api, run_id))

    async def deliver(self, run_id: str, text: bytes) -> bool:
        """Put a message into a run's inbox."""
        return await PORTAL.aio_call(send_message(self._host.api, run_id, text))

    # ---- the turn

    async def _work(self) -> Outcome:
        turn: Any = self._item
        if "refs" in turn and (wrong := malformed_log(turn["log"])) is not None:
            return Refuse(400, "malformed", wrong)
        entries = await self._log(turn)
        if entries is None:
            return Turned(dump_json({"status": wire.TURN_AGAIN, "base": turn["log"]["len"], "ops": []}), hit=False)
        self._entries = entries
        self._base_len = self._opened_len = turn["log"]["len"]
        self._replay = replay = Replay(
            entries,
            started_at=turn["started_at"],
            seed=turn["seed"],
            now=self._now,
            carrying=self._carrying,
        )
        self.context._replay = replay  # noqa: SLF001 - the context belongs to its turn
        try:
            async with AsyncExitStack() as stack:
                value = self._function.input.parse(turn["input"])
                arguments = await self._function.provided(value, self.context, self, stack)
                replay.start(with_options(partial(self._function.fn, value, self.context, **arguments), self.context))
                answer = await self._drive(replay)
                replay.close()
                return answer
            raise AssertionError("a dependency suppressed the end of a turn")
        finally:
            await self._stop_steps()
            replay.close()
            replay.forget()
            self.context._memos.forget()  # noqa: SLF001 - as above

    async def _drive(self, replay: Replay) -> Outcome:
        budget = self._due - self._item["timeout_ms"] / 1000 + self._item["budget_ms"] / 1000  # type: ignore[typeddict-item]
        while True:
            replay.advance()  # with no operation in a variable here: see `Replay.close`
            self._stop_dropped(replay)
            if self._lost:
                replay.close(LostOwnership)
                return Refuse(409, wire.CODE_STALE_ATTEMPT, STALE)
            if self._append_error is not None:
                code, message = _said(self._append_error)
                return self._failed(NonRetryableException(message), code)
            if replay.outcome is not None:
                if not await self._went_ahead(replay):
                    return await self._ended(replay)
                continue
            steps = replay.asked_steps()
            if steps and (self._loop.time() >= budget or self._host.draining or self._heavy(replay)):
                return await self._again(replay)
            if len(steps) == 1 and not self._steps and not replay.has_outgoing and not replay.in_flight:
                await self._run(replay, steps.pop())
                self._write(replay)
                continue
            self._run_beside(replay, steps)
            del steps
            if self._steps or replay.holds_back:
                self._write(replay)
            if not self._steps and not replay.in_flight:
                replay.due_steps()
                if replay.has_steps or await self._went_ahead(replay) or (replay.cancelled and await self._sat_out(replay)):
                    continue
                return self._suspended(replay)
            await self._hear()

    def _stop_dropped(self, replay: Replay) -> None:
        for op in replay.dropped_steps():
            if (task := self._steps.get(op)) is not None:
                task.cancel()

    def _run_beside(self, replay: Replay, steps: Sequence[Op[Any]]) -> None:
        for op in steps:
            self._steps[op] = self._loop.create_task(self._beside(replay, op))

    async def _sat_out(self, replay: Replay) -> bool:
        """A cancelled task has no other turn to undo things in: a step that is to be tried again is waited for, while there is time."""
        due = replay.next_try
        if due is None:
            return False
        if self._host.time is None:
            seconds = (due - self._now()) / 1000
            if self._loop.time() + seconds >= self._due:
                return False
            await asyncio.sleep(seconds)
        replay.due_steps(due)
        return True

    async def _went_ahead(self, replay: Replay) -> bool:
        """Record a part of what one answer cannot hold; False where it can, or cannot be had in parts."""
        if replay.carrying or not replay.exceeds(OPS_PER_APPEND, CARRIED_BYTES_MAX):
            return False
        self._write(replay)
        await self._hear()
        return True

    async def _hear(self) -> None:
        """Until a step has ended or entries are recorded."""
        self._news = self._loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _now(self) -> int:
        return int(self._clock_base + self._time() * 1000)

    # ---- steps

    async def _beside(self, replay: Replay, op: Op[Any]) -> None:
        try:
            await self._run(replay, op)
        finally:
            del self._steps[op]
            self._tell()

    async def _run(self, replay: Replay, op: Op[Any]) -> None:
        """Make a step's call and note what came of it."""
        step: Step = op.work
        variables = step.variables.copy()
        variables.run(STEP.set, Trial(op.id))
        self._host.on_step(self.task_id, op.id)
        try:
            result = await Within(variables, _called(step) if step.is_async and step.timeout is None else self._bounded(step))
            text, value = storable(result, step.codec, op.id)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._step_failed(replay, op, step, RuntimeError(f"the step was cancelled from within: {error}"))
        except (Exception, Interruption) as error:
            self._step_failed(replay, op, step, error)
        else:
            replay.step_done(op, text, value)

    async def _bounded(self, step: Step) -> Any:
        """A step's call, given up once its time is over. A thread goes on then, and what it comes to is dropped."""
        bound = asyncio.timeout(step.timeout)
        try:
            async with bound:
                result = await (step.fn(*step.args) if step.is_async else self.run(step.fn, *step.args))
                return await result if inspect.iscoroutine(result) else result  # a callable may be async and not be known to be
        except TimeoutError:
            if bound.expired():
                raise TimeoutError(f"the step took longer than {step.timeout:g}s") from None
            raise

    def _step_failed(self, replay: Replay, op: Op[Any], step: Step, error: BaseException) -> None:
        fail = failure(error)
        detail: wire.ErrorDetail = fail.error
        if fail.retry is False or op.failures >= step.retries:
            replay.step_failed(op, lambda at: error_entry(op.id, wire.OP_STEP, detail, at), detail, None)
            return
        detail.pop("stack", None)
        after = (
            _backoff(op.failures + 1, step)
            if not isinstance(error, RetryableException) or error.after is None
            else error.after.total_seconds()
        )
        ms = round(after * 1000)
        replay.step_failed(op, lambda at: retry_entry(op.id, detail, ms, step.policy, at), detail, ms)

    async def _stop_steps(self) -> None:
        tasks = list(self._steps.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- recording

    def _write(self, replay: Replay) -> None:
        """Send what is to be recorded, one append at a time."""
        if replay.in_flight or not replay.has_outgoing or self._append_error is not None:
            return
        texts = replay.take_outgoing(OPS_PER_APPEND, CARRIED_BYTES_MAX)
        base = self._base_len
        event = b'{"type":"append","base":%d,"ops":[%b]}' % (base, b",".join(texts))

        def answered(reply: Any, error: DispatcherError | None) -> None:
            if error is not None:
                self._not_appended(replay, texts, error)
            else:
                self._appended(replay, texts, reply)
            self._tell()

        self._host.postbox.send(self._base, self._item["token"], event, answered, repeatable=True)

    def _appended(self, replay: Replay, texts: Sequence[bytes], reply: Any) -> None:
        said: Mapping[str, Any] = reply if isinstance(reply, dict) else {}
        self._base_len += len(texts)
        children = said.get("children") or {}
        self._texts += [_stored(text, children) for text in texts] if children else texts
        replay.recorded(len(texts), children)
        if (notice := said.get("cancel")) is not None:
            self.stop(str(notice.get("reason", "cancelled")))

    def _not_appended(self, replay: Replay, texts: Sequence[bytes], error: DispatcherError) -> None:
        if not isinstance(error, ApiError) or error.status >= 500 or error.status == 429:
            logger.warning("%s: its results go with the turn's answer, because the dispatcher cannot be called: %s", self.task_id, error)
            replay.carry()
        elif error.problem_code == wire.CODE_LOG_CONFLICT and _ours(texts, error.problem.get("entries")):
            self._appended(replay, texts, None)
        elif error.problem_code in (*ENDED, wire.CODE_LOG_CONFLICT) or error.status == 401:
            self._lost = True
        else:
            self._append_error = error

    def _heavy(self, replay: Replay) -> bool:
        """Whether as much waits for the answer as one should hold."""
        return replay.carrying and (len(replay.carried) >= OPS_PER_APPEND or sum(map(len, replay.carried)) >= CARRIED_BYTES_MAX)

    # ---- answers

    async def _ended(self, replay: Replay) -> Outcome:
        outcome = replay.outcome
        if isinstance(outcome, Mismatched):
            return self._answer(replay, {"status": wire.TURN_MISMATCH, "at": outcome.at}, ops=False)
        if isinstance(outcome, Raised):
            error = outcome.error
            if isinstance(error, ContinuedAsNew):
                return self._answer(replay, {"status": wire.TURN_CONTINUE, "input": error.input})
            if isinstance(error, Cancelled):
                return self._failed(NonRetryableException(error.reason or "the run was cancelled"), "cancelled")
            return self._failed(error)
        assert isinstance(outcome, Returned)
        try:
            text = self._function.output.dump(outcome.value)
        except DispatcherError as error:
            return self._failed(error)
        members: dict[str, Any] = {"status": wire.TURN_DONE}
        if outcome.unconsumed:
            members["unconsumed"] = list(outcome.unconsumed[:100])
            logger.warning("%s: its log has entries the handler did not ask for: %s", self.task_id, ", ".join(outcome.unconsumed[:5]))
        return self._answer(replay, members, output=text)

    async def _again(self, replay: Replay) -> Outcome:
        """The time is nearly up, or the endpoint's: what runs may end, nothing is begun."""
        while self._steps or replay.in_flight:
            self._write(replay)
            await self._hear()
        while self._append_error is None and not self._lost and await self._went_ahead(replay):
            pass
        if self._host.draining and self._base_len == self._opened_len and not replay.carried and not replay.has_outgoing:
            return SHUTTING_DOWN  # nothing has been done: that would be no progress
        return self._answer(replay, {"status": wire.TURN_AGAIN})

    def _suspended(self, replay: Replay) -> Outcome:
        if replay.needs_again:
            return self._answer(replay, {"status": wire.TURN_AGAIN})
        wake = replay.wake()
        if wake is None:
            return self._failed(NotDeterministicError("the handler waits for something that nothing durable will ever settle"))
        return self._answer(replay, {"status": wire.TURN_WAIT, "wake": wake})

    def _failed(self, error: BaseException, code: str = "") -> Outcome:
        fail: Fail = failure(error)
        if code:
            fail.error["code"] = code
        members: dict[str, Any] = {"status": wire.TURN_FAILED, "error": fail.error}
        if fail.retry is not None:
            members["retry"] = fail.retry
        if fail.retry_after is not None:
            members["retry_after_ms"] = round(fail.retry_after.total_seconds() * 1000)
        return self._answer(self._replay, members)

    def _answer(self, replay: Replay, members: dict[str, Any], *, output: bytes = b"", ops: bool = True) -> Turned:
        carried = [*replay.carried, *replay.take_unsent()] if ops else []
        held = _held(carried)
        if held < len(carried):  # the rest is asked for again in the next turn, which has these
            carried, members, output = carried[:held], {"status": wire.TURN_AGAIN}, b""
        try:
            said = dump_json(members)
        except DispatcherError as error:  # the handler's own `input` is not JSON
            said = dump_json({"status": wire.TURN_FAILED, "error": failure(error).error, "retry": False})
        rest = b',"output":%b' % output if output else b""
        text = b'%b,"base":%d,"ops":[%b]%b}' % (said[:-1], self._base_len, b",".join(carried), rest)
        self._remember(members["status"], carried)
        return Turned(text, self._hit, len(output))

    def _interrupt(self, outcome: Outcome) -> None:
        """A turn that is told to stop is over, what it did recorded with its answer; a cancelled task gets one of its own to clean up."""
        assert isinstance(outcome, Fail), "a turn is stopped by its deadline or by somebody"
        ops = self._done_unsaid()
        if outcome.error.get("code") == "cancelled" and (self._base_len or ops):
            text = b'{"status":"again","base":%d,"ops":[%b]}' % (self._base_len, b",".join(ops))
            super()._interrupt(Turned(text))
        elif ops:
            text = b'{"status":"failed","error":%b,"base":%d,"ops":[%b]}' % (dump_json(outcome.error), self._base_len, b",".join(ops))
            super()._interrupt(Turned(text))
        else:
            super()._interrupt(outcome)

    def _left(self) -> Outcome:
        """What is recorded stays. A turn that has recorded nothing is refused: `again` without progress would count as a failure."""
        ops = self._done_unsaid()
        if not ops and self._base_len == self._opened_len:
            return super()._left()
        return Turned(b'{"status":"again","base":%d,"ops":[%b]}' % (self._base_len, b",".join(ops)))

    def _done_unsaid(self) -> list[bytes]:
        """What has been done and is in no append. What was only asked for is left to the next turn."""
        replay: Replay | None = getattr(self, "_replay", None)
        if replay is None or replay.in_flight:
            return []
        texts = [*replay.carried, *replay.take_unsent()]
        return [text for text in texts if parse_json(text)["status"] != "pending"]

    # ---- the log

    async def _log(self, turn: Any) -> list[Any] | None:
        """The whole log: what was sent, after what is known here or can be asked for. None when it is not to be had."""
        part = turn["log"]
        start = part["from"]
        if start == 0:
            return list(part["entries"])
        known = self._host.logs.prefix(self.task_id, start, str(part.get("prefix")))
        self._hit = known is not None
        if known is None:
            try:
                params = {"from": 0, "to": start}
                request = self._host.api.request("GET", wire.LOG_PATH, params=params, token=turn["token"], base=self._base, repeatable=True)
                _, body = await PORTAL.aio_call(request)
                known = list(body["entries"])
            except (DispatcherError, KeyError, TypeError) as error:
                logger.warning("%s: the start of its log cannot be asked for: %s", self.task_id, error)
                return None
        return [*known, *part["entries"]]

    def _remember(self, status: str, carried: Sequence[bytes]) -> None:
        if status in (wire.TURN_WAIT, wire.TURN_AGAIN, wire.TURN_FAILED):
            part = self._item["log"]  # type: ignore[typeddict-item]
            self._host.logs.keep(self.task_id, self._entries, self._opened_len, part.get("head"), [*self._texts, *carried])
        else:
            self._host.logs.forget(self.task_id)


async def _called(step: Step) -> Any:
    return await step.fn(*step.args)


def _held(texts: Sequence[bytes]) -> int:
    """How many entries one answer holds. Beyond its bounds only what has been done: the rest may be asked for again."""
    size = 0
    for count, text in enumerate(texts):
        size += len(text)
        if count and (count >= OPS_PER_APPEND or size > CARRIED_BYTES_MAX):
            rest = (later for later in range(len(texts), count, -1) if parse_json(texts[later - 1])["status"] != "pending")
            return next(rest, count)
    return len(texts)


def malformed_turn(item: Any, mode: str) -> str | None:
    """What is wrong with a turn; None when nothing is."""
    for name, kind in _TURN_MEMBERS:
        if item.get(name).__class__ is not kind:
            return f"a turn's `{name}` is {'a string' if kind is str else 'a whole number'}"
    if item.get("mode") != mode:
        return f"{item['name']} takes turns with mode {mode!r}"
    try:
        ms_of(item["now"])
        return None if mode == "state" or "log" in item.get("refs", ()) else malformed_log(item.get("log"))
    except ValueError:
        return "a turn's `now` is a moment (RFC 3339)"


def malformed_log(part: Any) -> str | None:
    """What is wrong with a turn's log; None when nothing is."""
    if not isinstance(part, dict) or not isinstance(part.get("entries"), list):
        return "a turn's `log` has `len`, `from` and a list of `entries`"
    start, length, hidden, entries = part.get("from", -1), part.get("len", -1), part.get("hidden", 0), part["entries"]
    whole = all(number.__class__ is int and number >= 0 for number in (start, length, hidden))
    if not whole or start + len(entries) + hidden != length:
        return "a turn's `log` has `len` entries, of which those before `from` are left out"
    for entry in entries:
        if entry.__class__ is not dict or not (
            entry.get("id").__class__ is entry.get("op").__class__ is entry.get("status").__class__ is str
        ):
            return "an entry of a log has an `id`, an `op` and a `status`"
    return None


def _ours(texts: Sequence[bytes], entries: Any) -> bool:
    """Whether the entries the log has at our place are those we sent: an earlier try arrived."""
    if not isinstance(entries, list) or len(entries) < len(texts):
        return False
    return all(
        isinstance(entry, dict) and dump_json(entry.get("id"))[1:-1] in text and str(entry.get("at", "")).encode() in text
        for text, entry in zip(texts, entries, strict=False)
    )


def _stored(text: bytes, children: Mapping[str, str]) -> bytes:
    """An entry as the log has it: the dispatcher adds the run of a child."""
    if b'"op":"child"' not in text:
        return text
    run_id = children.get(parse_json(text)["id"])
    return text if run_id is None else b'%b,"run_id":"%b"}' % (text[:-1], run_id.encode())


def _said(error: DispatcherError) -> tuple[str, str]:
    code = error.problem_code if isinstance(error, ApiError) and error.problem_code else "journal_refused"
    return code, f"the dispatcher did not record what the task did: {error}"


def _backoff(failures: int, step: Step) -> float:
    """Seconds before the next try, capped before the power overflows."""
    if step.backoff_factor is None:
        return 0.0
    most = step.backoff_max_seconds or BACKOFF_MAX_SECONDS
    power = failures * log(step.backoff_factor)
    return min(most, exp(power) if power < log(most) + 1 else inf)
