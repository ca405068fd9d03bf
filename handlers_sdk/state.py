"""Durable tasks as reducers: each turn gets the state the last one returned and what has settled since, and nothing is replayed.

    @dispatcher.durable_task(mode="state")
    async def order(input: Order, ctx: StateContext) -> Any:
        if ctx.state is None:
            ctx.event("paid", key=f"order/{input.id}/paid", timeout="1d")
            return ctx.wait({"at": "payment"})
        return {"paid": ctx.results["paid"].ok}

The steps of a turn that is cut off are repeated with the next; what a turn asked for exists once it has answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from handlers_sdk import wire
from handlers_sdk.context import Context, Control
from handlers_sdk.durations import Duration, milliseconds
from handlers_sdk.execution import Execution
from handlers_sdk.ops import NAME, text_of
from handlers_sdk.outcomes import Outcome, Turned, failure
from handlers_sdk.placement import LabelsForm, label_entries
from handlers_sdk.schemas import dump_json


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of something a reducer asked for. `status`: ok, error, cancelled, timeout, closed."""

    status: str
    value: Any = None
    error: Mapping[str, Any] | None = None
    run_id: str | None = None
    at: str = ""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class Wait:
    """Returned by a reducer that is not done; made by `ctx.wait`."""

    state: Any
    wake: Mapping[str, Any] | None  # None: at once


class StateContext(Context):
    """The second argument of a reducer. What it asks for is named; a name asked for again in a later turn is another one."""

    __slots__ = ("_ops",)

    def __init__(self, item: wire.RunItem, control: Control, task_name: str = "") -> None:
        super().__init__(item, control, task_name)
        self._ops: list[dict[str, Any]] = []

    @property
    def _turn(self) -> Any:
        return self._item

    @property
    def _era(self) -> Sequence[str]:
        return (str(self._turn["turn"]),)

    @property
    def state(self) -> Any:
        """What the last turn returned, None in the first."""
        return self._turn.get("state")

    @property
    def results(self) -> dict[str, Settled]:
        """What has settled since the last turn, by name; of several under one name the last."""
        return {entry["id"].partition("#")[0]: _settled(entry) for entry in self._turn.get("results") or ()}

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled: this turn is for cleaning up."""
        return "cancel" in self.results

    def sleep_for(self, name: str, duration: Duration) -> None:
        """Settle so long from now."""
        self._ask(name, wire.OP_SLEEP, {"ms": milliseconds(duration)})

    def sleep_until(self, name: str, moment: datetime) -> None:
        """Settle then."""
        self._ask(name, wire.OP_SLEEP, {"until": text_of(round(moment.timestamp() * 1000))})

    def event(self, name: str, key: str, expression: str | None = None, scope: str | None = None, timeout: Duration | None = None) -> None:
        """Settle with an event of this key: its value is `{"id", "type", "data", …}`."""
        ms = None if timeout is None else milliseconds(timeout)
        self._ask(name, wire.OP_EVENT, {"key": key, "expression": expression, "scope": scope, "timeout_ms": ms})

    def child(
        self,
        name: str,
        workflow: str,
        input: Any = None,
        on_cancel: Literal["propagate", "abandon"] = "propagate",
        key: str | None = None,
        *,
        additional_metadata: Mapping[str, Any] | None = None,
        priority: int | None = None,
        desired_worker_labels: LabelsForm = None,
        sticky: bool = False,
    ) -> None:
        """Start a run, and settle with its output. `desired_worker_labels` are asked of the endpoints of its tasks; a `sticky` one begins
        where this task is, if its workflow is sticky.
        """
        asked = {
            "workflow": workflow,
            "input": {} if input is None else input,
            "on_cancel": on_cancel,
            "key": key,
            "metadata": additional_metadata,
            "priority": priority,
            "labels": label_entries(desired_worker_labels) or None,
            "sticky": sticky or None,
        }
        self._ask(name, wire.OP_CHILD, asked)

    def receive(self, name: str, timeout: Duration | None = None) -> None:
        """Settle with the next message sent to the run."""
        self._ask(name, wire.OP_MESSAGE, {"timeout_ms": None if timeout is None else milliseconds(timeout)})

    def wait(self, state: Any, any: Sequence[str] | None = None, all: Sequence[str] | None = None) -> Wait:
        """What a reducer returns to be called again, with this state, when any or all of these names have settled.

        Without names: any of those asked for in this turn.
        """
        if any is not None and all is not None:
            raise ValueError("any or all, not both")
        if all is not None:
            return Wait(state, {"all": [self._id(name) for name in all]})
        ids = [op["id"] for op in self._ops] if any is None else [self._id(name) for name in any]
        if not ids:
            raise ValueError("nothing was asked for that could end the wait")
        return Wait(state, {"any": ids})

    def again(self, state: Any) -> Wait:
        """What a reducer returns to be called again at once."""
        return Wait(state, None)

    def _ask(self, name: str, op: str, asked: Mapping[str, Any]) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an operation: 1 to 200 characters, without control characters, quotes, `/` and `#`")
        given = {member: value for member, value in asked.items() if value is not None}
        self._ops.append({"id": f"{name}#{self._turn['turn']}", "op": op, "status": "pending", **given})

    def _id(self, name: str) -> str:
        """The id of a name in this turn, or, asked for earlier and still open, as the state has to remember it."""
        return next((op["id"] for op in self._ops if op["id"].partition("#")[0] == name), name)


class StateExecution(Execution):
    """One turn of a reducer."""

    __slots__ = ()

    context: StateContext

    def _make_context(self, task_name: str) -> Context:
        return StateContext(self._item, self, task_name)

    async def _work(self) -> Outcome:
        try:
            async with AsyncExitStack() as stack:
                value = self._function.input.parse(self._item["input"])
                arguments = await self._function.provided(value, self.context, self, stack)
                return self._answer(await self._function.fn(value, self.context, **arguments))
            raise AssertionError("a dependency suppressed the end of a turn")
        except Exception as error:
            return _failed(error)

    def _answer(self, result: Any) -> Turned:
        ops = self.context._ops  # noqa: SLF001 - the context belongs to its turn
        if not isinstance(result, Wait):
            output = self._function.output.dump(result)
            return Turned(b'{"status":"done","ops":%b,"output":%b}' % (dump_json(ops), output), output_bytes=len(output))
        if result.wake is None:
            return Turned(dump_json({"status": wire.TURN_AGAIN, "ops": ops, "state": result.state}))
        return Turned(dump_json({"status": wire.TURN_WAIT, "ops": ops, "wake": result.wake, "state": result.state}))


def _failed(error: Exception) -> Turned:
    fail = failure(error)
    members: dict[str, Any] = {"status": wire.TURN_FAILED, "error": fail.error}
    if fail.retry is not None:
        members["retry"] = fail.retry
    if fail.retry_after is not None:
        members["retry_after_ms"] = round(fail.retry_after.total_seconds() * 1000)
    return Turned(dump_json(members))


def _settled(entry: Mapping[str, Any]) -> Settled:
    return Settled(str(entry["status"]), entry.get("value"), entry.get("error"), entry.get("run_id"), str(entry.get("at", "")))
