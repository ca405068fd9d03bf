"""A dispatcher in memory, on a clock that jumps: it speaks the wire of durable tasks to an endpoint in the same process, exactly.

For tests of durable tasks (`testing.py`). What the endpoint must not do is an AssertionError here. Not for anything else: nothing is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from handlers_sdk import wire
from handlers_sdk.double_run import DoubleRun
from handlers_sdk.errors import ConfigError
from handlers_sdk.handlers import Handlers
from handlers_sdk.ops import ms_of, text_of
from handlers_sdk.schemas import as_plain
from handlers_sdk.verbatim import raw_items

START_MS: Final = 1_767_225_600_000
API: Final = "http://dispatcher.test"
TURNS_MAX: Final = 100_000


class Crash(Exception):  # noqa: N818 - what happens to the endpoint, not an error of anybody's
    """The endpoint's process is gone."""


@dataclass(slots=True)
class Pushed:
    """An event."""

    id: str
    key: str
    data: Any
    scope: str | None
    at: int


class Double(httpx.AsyncBaseTransport):
    """`handlers` is made anew by `boot` whenever the endpoint's process is. `crash_at` names the point at which it dies, counted from 0, or
    says of each whether it does.
    """

    def __init__(
        self,
        boot: Callable[[Double], Handlers],
        *,
        crash_at: int | Callable[[int], bool] | None = None,
        children: Mapping[str, Callable[[Any], Any]] | None = None,
        expressions: Callable[[str, Any], bool] | None = None,
        delta: bool = True,
        unreachable: bool = False,
        shuffle: Callable[[list[str]], list[str]] | None = None,
    ) -> None:
        self.now = START_MS
        self.runs: dict[str, DoubleRun] = {}
        self.events: list[Pushed] = []
        self.planned: list[tuple[int, int, Callable[[], object]]] = []
        self.crash_at = crash_at
        self.points = 0
        self.lost: Counter[tuple[str, str]] = Counter()  # step results that a crash took along
        self.steps: Counter[tuple[str, str]] = Counter()  # calls of steps
        self.turns = 0
        self.appends = 0
        self.pulls = 0
        self.bytes_sent = 0
        self.answers: list[dict[str, Any]] = []
        self.largest = (0, 0)  # operations and bytes of one append or answer
        self.mismatch: dict[str, Any] | None = None
        self.violations: list[str] = []
        self.said: list[dict[str, Any]] = []
        self._boot = boot
        self._children = dict(children or {})
        self._expressions = expressions
        self._delta = delta
        self._unreachable = unreachable
        self._shuffle = shuffle or (lambda ids: ids)
        self._lock = threading.RLock()
        self._crashed: asyncio.Future[None] | None = None
        self._buried = asyncio.Event()
        self._ids = 0
        self.handlers = boot(self)

    # ---- what a test does

    def start(
        self, workflow: str, input: Any = None, metadata: dict[str, Any] | None = None, parent: tuple[str, str] | None = None
    ) -> DoubleRun:
        """A run, not yet begun."""
        number = f"{len(self.runs) + 1:026d}"
        run = DoubleRun(
            f"run_{number}",
            f"tsk_{number}",
            workflow,
            {} if input is None else as_plain(input, "input"),
            hashlib.sha256(number.encode()).hexdigest()[:16],
            as_plain(metadata, "input"),
        )
        run.parent = parent
        self.runs[run.id] = run
        return run

    def push(self, key: str, data: Any = None, scope: str | None = None) -> str:
        """An event, now."""
        self._ids += 1
        event = Pushed(f"evt_{self._ids:026d}", key, {} if data is None else as_plain(data, "input"), scope, self.now)
        self.events.append(event)
        for run in self.runs.values():
            for id, asked in list(run.open.items()):
                if asked["op"] == "event" and self._fits(asked, event, None):
                    self._event(run, id, event)
        return event.id

    def plan(self, at: int, do: Callable[[], object]) -> None:
        """Something that happens at a moment of the virtual clock, ms from the start."""
        self._ids += 1
        self.planned.append((START_MS + at, self._ids, do))
        self.planned.sort(key=lambda one: one[:2])

    def message(self, run_id: str, data: Any) -> bool:
        """A message for a run's inbox."""
        run = self.runs[run_id]
        if run.ended or run.inbox_closed:
            return False
        run.inbox.append(as_plain(data, "input"))
        self._deliver_messages(run)
        return True

    def close_inbox(self, run_id: str) -> None:
        """No more messages."""
        run = self.runs[run_id]
        run.inbox_closed = True
        self._deliver_messages(run)

    def cancel(self, run_id: str, reason: str = "no longer wanted") -> bool:
        """Ask for a run to end; False when it has."""
        run = self.runs[run_id]
        if run.ended or run.cancelling is not None:
            return False
        run.cancelling = reason
        if run.status != "running":  # a turn under way hears of it when it appends
            self._cut_off(run)
        return True

    async def finish(self, run: DoubleRun) -> DoubleRun:
        """Work until a run has ended or nothing more can happen."""
        while not run.ended and run.status != "blocked":
            ready = self._shuffle([one.id for one in self.runs.values() if one.status == "queued" and one.not_before <= self.now])
            if ready:
                await self._work(self.runs[ready[0]])
            elif not self._jump():
                break
        return run

    # ---- time

    def _jump(self) -> bool:
        """To the next thing that happens; False when there is none."""
        due = [moment for one in self.runs.values() if not one.ended for id, moment in one.due.items() if id not in one.settled]
        due += [one.not_before for one in self.runs.values() if one.status == "queued" and one.not_before > self.now]
        due += [at for at, _, _ in self.planned]
        if not due:
            return False
        self.now = max(self.now, min(due))
        while self.planned and self.planned[0][0] <= self.now:
            self.planned.pop(0)[2]()
        for run in list(self.runs.values()):
            for id, moment in sorted(run.due.items(), key=lambda one: one[1]):
                if moment <= self.now and not run.ended:
                    self._due(run, id)
        return True

    def _due(self, run: DoubleRun, id: str) -> None:
        asked = run.open.get(id)
        if asked is None or id in run.settled:
            run.due.pop(id, None)
            return
        if asked["op"] == "step":
            self._wake(run)  # stays due until the step is recorded again
            return
        del run.due[id]
        self._settle(run, id, {"op": asked["op"], "status": "ok" if asked["op"] == "sleep" else "timeout"})

    # ---- a turn

    async def _work(self, run: DoubleRun) -> None:
        self.turns += 1
        assert self.turns < TURNS_MAX, f"{run.workflow}: {TURNS_MAX} turns and no end"
        run.status = "running"
        run.attempt += 1
        definition = next((one for one in self.handlers.definitions if one.delivered_as == run.workflow), None)
        if definition is None:
            self._outside(run)
            return
        durable = definition.durability is not None
        body = self._turn(run, definition.durability.mode) if definition.durability is not None else self._run(run)
        text = json.dumps(body).encode()
        if durable and definition.durability is not None and definition.durability.mode == "replay":
            text = b'%b,"log":%b}' % (text[:-1], run.shown(whole=not self._delta))
        self.bytes_sent += len(text)
        try:
            status, headers, answer = await self._send(text)
        except Crash:
            self._died(run)
            return
        if not durable:
            self._ran(run, status, answer, definition.settings.retries)
        elif status != 200 or headers.get(wire.HEADER_PROTOCOL) != "1":
            self._failed(run, json.loads(answer).get("error") or {"message": answer.decode()}, None, definition.settings.retries)
        else:
            self._answered(run, answer, headers.get(wire.HEADER_LOG) == "miss", definition.settings.retries)

    def _died(self, run: DoubleRun) -> None:
        """A new process takes over, and is sent the same turn again; or the one to clean up in, if the run was cancelled meanwhile."""
        if run.cancelling is not None and not run.cleaning:
            self._cut_off(run)
        else:
            run.status = "queued"
        self.handlers = self._boot(self)

    def _outside(self, run: DoubleRun) -> None:
        """A child whose code is not in the endpoint: a function of the test stands in."""
        if run.workflow not in self._children:
            raise ConfigError(f"there is no workflow {run.workflow!r} here; give it as a workflow, or as a function in `children`")
        try:
            self._end(run, "succeeded", as_plain(self._children[run.workflow](run.input)), None)
        except Exception as error:
            self._end(run, "failed", None, {"code": "handler_failed", "message": str(error)})

    def _turn(self, run: DoubleRun, mode: str) -> dict[str, Any]:
        run.mode, run.started_at = mode, run.started_at or self.now
        arrived, run.arrived = run.arrived, []
        self._extend(run, [json.dumps({**one, "at": text_of(self.now)}, ensure_ascii=False).encode() for one in arrived])
        run.opened = len(run.log)
        item = {
            **self._item(run),
            "type": "turn",
            "turn": run.turn,
            "now": text_of(self.now),
            "started_at": text_of(run.started_at),
            **({"first_started_at": text_of(run.first_at)} if run.first_at else {}),
            "seed": run.seed,
            "budget_ms": 54_000,
            "mode": mode,
        }
        if mode == "state":
            item |= {"state": run.state, "results": run.results}
        return item

    def _run(self, run: DoubleRun) -> dict[str, Any]:
        return {**self._item(run), "type": "run"}

    def _item(self, run: DoubleRun) -> dict[str, Any]:
        item: dict[str, Any] = {
            "protocol": 1,
            "audience": "ep_00000000000000000000000001",
            "api": API,
            "name": run.workflow,
            "workflow": run.workflow,
            "id": run.task_id,
            "run_id": run.id,
            "attempt": run.attempt,
            "retry_count": run.failures,
            "max_attempts": 1,
            "version": "test",
            "input": run.input,
            "deadline": text_of(self.now + 60_000),
            "timeout_ms": 60_000,
            "token": f"atk1.{run.id}.{run.attempt}",
            "tenant": "default",
            "metadata": run.metadata,
            "priority": 1,
        }
        if run.parent is not None:
            item["parent_run_id"] = run.parent[0]
        return item

    async def _send(self, text: bytes) -> tuple[int, dict[str, str], bytes]:
        self._crashed = asyncio.get_running_loop().create_future()
        self._buried.clear()
        work = asyncio.ensure_future(self.handlers.handle("POST", {}, text))
        both: list[asyncio.Future[Any]] = [work, self._crashed]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self._crashed.done():
            work.cancel()
            await asyncio.wait([work])
            self._buried.set()
            raise Crash
        response = work.result()
        body = response.body if isinstance(response.body, bytes) else b"".join([chunk async for chunk in response.body])
        return response.status, dict(response.headers), body

    def stepped(self, task_id: str, id: str) -> None:
        """A step is about to be called."""
        self.steps[task_id, id] += 1
        run = next(one for one in self.runs.values() if one.task_id == task_id)
        if id in run.settled:
            self.violations.append(f"step {id} of {run.workflow} is called, and its result is in the log")
        if run.ended:
            self.violations.append(f"step {id} of {run.workflow} is called, and the run is over")

    def _point(self) -> bool:
        """Whether the endpoint dies here."""
        self.points += 1
        if callable(self.crash_at):
            return self.crash_at(self.points - 1)
        return self.points - 1 == self.crash_at

    # ---- what an endpoint answers

    def _answered(self, run: DoubleRun, answer: bytes, missed: bool, retries: int) -> None:
        said = json.loads(answer)
        self.answers.append(said)
        ops = raw_items(answer, "ops")
        self._measure(ops, len(answer))
        if self._point():
            self._lose(run, ops)
            return self._died(run)
        status = said["status"]
        assert status in wire.TURN_STATUSES, said
        if "base" in said:
            assert said["base"] == len(run.log), (said, len(run.log))
        if run.cleaning and any(_asks(json.loads(op)) for op in ops):
            ops = []
        self._extend(run, ops)
        if run.cancelling is not None and not run.cleaning and status in (wire.TURN_WAIT, wire.TURN_AGAIN):
            self._clean_up(run)
        elif run.cancelling is not None:  # whatever comes of the turn it cleans up in, that is the end
            self._cancelled(run)
        else:
            self._turned(run, said, missed, retries)
        if self._point():
            self._died_after(run)
        return None

    def _died_after(self, run: DoubleRun) -> None:
        """The answer arrived; what the process knew is lost."""
        self.handlers = self._boot(self)

    def _turned(self, run: DoubleRun, said: dict[str, Any], missed: bool, retries: int) -> None:
        match said["status"]:
            case wire.TURN_WAIT:
                self._check_wake(run, said["wake"])
                run.status, run.wake, run.state = "waiting", said["wake"], said.get("state", run.state)
                run.next_turn()
                self._wake(run)
            case wire.TURN_AGAIN if missed or "state" in said or len(run.log) > run.opened:
                run.status, run.state = "queued", said.get("state", run.state)
                run.shipped = 0 if missed else run.shipped
                run.next_turn()
            case wire.TURN_AGAIN:
                message = "The turn asked to be repeated and had recorded nothing."
                self._failed(run, {"code": "no_progress", "message": message}, None, retries)
            case wire.TURN_CONTINUE:
                run.begin_anew(said["input"], self.now)
                run.status = "queued"
                run.next_turn()
            case wire.TURN_DONE:
                self._end(run, "succeeded", said.get("output"), None)
            case wire.TURN_FAILED:
                self._failed(run, said["error"], said.get("retry"), retries, said.get("retry_after_ms"))
            case _:
                run.status, run.error = "blocked", {"code": "code_mismatch", "at": said["at"]}
                self.mismatch = said["at"]

    def _cut_off(self, run: DoubleRun) -> None:
        """A cancelled run of which no turn is under way."""
        if run.begun:
            self._clean_up(run)
        else:
            self._cancelled(run)

    def _cancelled(self, run: DoubleRun) -> None:
        self._end(run, "cancelled", None, {"code": "cancelled", "message": run.cancelling})

    def _clean_up(self, run: DoubleRun) -> None:
        """One more turn, to clean up in."""
        run.turn += run.status == "running"
        run.cleaning = True
        for id, asked in list(run.open.items()):
            if asked["op"] == "message":
                self._settle(run, id, {"op": "message", "status": "cancel", "value": {"$cancel": True}})
        run.arrived.append({"id": "cancel#0", "op": "cancel", "status": "ok", "value": {"reason": run.cancelling}})
        run.wake = None
        run.status = "queued"

    def _check_wake(self, run: DoubleRun, wake: Any) -> None:
        if isinstance(wake, str):
            assert wake in run.open or wake in run.settled, f"the wake names {wake}, which nobody asked for"
            return
        parts = wake.get("any") or wake.get("all")
        assert parts and set(wake) <= {"any", "all", "fail_fast"}, wake
        for part in parts:
            self._check_wake(run, part)

    def _failed(self, run: DoubleRun, error: dict[str, Any], retry: bool | None, retries: int, after_ms: int | None = None) -> None:
        run.failures = 0 if len(run.log) > run.grown else run.failures
        run.grown = len(run.log)
        if run.cancelling is not None:
            self._cancelled(run)
        elif retry is False or run.failures >= retries:
            self._end(run, "failed", None, {"code": error.get("code") or "handler_failed", "message": error.get("message", "")})
        else:
            run.failures += 1
            run.status = "queued"
            run.not_before = self.now + (after_ms or 0)

    def _ran(self, run: DoubleRun, status: int, answer: bytes, retries: int) -> None:
        body: Any = json.loads(answer) if answer else None
        if run.cancelling is not None:
            self._cancelled(run)
        elif status < 300:
            self._end(run, "succeeded", body, None)
        elif run.failures < retries and body.get("retry") is not False:
            run.failures += 1
            run.status = "queued"
        else:
            error = body.get("error") or {}
            self._end(run, "failed", None, {"code": error.get("code") or "handler_failed", "message": error.get("message", "")})

    def _end(self, run: DoubleRun, status: str, output: Any, error: dict[str, Any] | None) -> None:
        run.status, run.output, run.error = status, output, error
        run.open.clear()
        if status == "cancelled":
            for child in self.runs.values():
                if child.parent is not None and child.parent[0] == run.id and child.on_cancel == "propagate" and not child.ended:
                    self.cancel(child.id, "the parent was cancelled")
        if run.parent is not None:
            parent, id = self.runs[run.parent[0]], run.parent[1]
            entry: dict[str, Any] = {"op": "child", "run_id": run.id}
            entry |= (
                {"status": "ok", "value": output} if status == "succeeded" else {"status": "error" if status == "failed" else "cancelled"}
            )
            self._settle(parent, id, entry | ({"error": error} if status == "failed" else {}))

    # ---- the log

    def _extend(self, run: DoubleRun, texts: list[bytes]) -> dict[str, str]:
        """New entries; what they ask for begins. The runs of children are answered."""
        started: dict[str, str] = {}
        for sent in texts:
            text = sent
            entry = json.loads(text)
            id, status = entry["id"], entry["status"]
            if run.mode == "state" and "at" not in entry:
                entry["at"] = text_of(self.now)
                text = b'%b,"at":"%b"}' % (text[:-1], entry["at"].encode())
            assert entry.get("at"), entry
            if status == "pending":
                assert id not in run.open and id not in run.settled, f"{id} is asked for twice"
                run.open[id] = entry
                if entry["op"] == "child":
                    started[id] = run.children[id] = self._child(run, entry).id
                    text = text[:-1] + b',"run_id":"%b"}' % started[id].encode()
                    entry["run_id"] = started[id]
                self._begin(run, id, entry)
            elif status == "retry":
                run.open[id] = entry
                run.due[id] = self.now + entry["after_ms"]
            else:
                assert run.settled.get(id) is None or entry["op"] not in ("step", "scope", "checkpoint"), f"{id} is recorded twice"
                run.settled[id] = status
                run.open.pop(id, None)
                run.due.pop(id, None)
                if entry["op"] == "message" and status == "closed" and not id.startswith("message#"):
                    run.inbox_closed = True
                    self._deliver_messages(run)
                if entry["op"] == "checkpoint":
                    run.checkpoint, run.has_checkpoint = entry["value"], True
            run.write(text, entry)
        return started

    def _begin(self, run: DoubleRun, id: str, asked: dict[str, Any]) -> None:
        op = asked["op"]
        if op == "sleep":
            run.due[id] = ms_of(asked["until"]) if "until" in asked else self.now + asked["ms"]
            assert "ms" not in asked or asked["ms"] >= 0, asked
            if run.due[id] <= self.now:
                self._due(run, id)
        elif op == "event":
            if "timeout_ms" in asked:
                run.due[id] = self.now + asked["timeout_ms"]
            if "since" in asked:
                since = run.started_at if asked["since"] == "start" else ms_of(asked["since"])
                found = next((event for event in reversed(self.events) if event.at >= since and self._fits(asked, event, since)), None)
                if found is not None:
                    self._event(run, id, found)
        elif op == "message":
            if "timeout_ms" in asked:
                run.due[id] = self.now + asked["timeout_ms"]
            self._deliver_messages(run)

    def _child(self, run: DoubleRun, asked: dict[str, Any]) -> DoubleRun:
        key = asked.get("key")
        if key is not None:
            twin = next(
                (entry for entry in run.entries if entry["op"] == "child" and entry.get("key") == key and entry["status"] == "pending"),
                None,
            )
            if twin is not None:
                first = self.runs[twin["run_id"]]
                if first.ended:
                    raise ConfigError("the double settles a repeated child key only while the first is open")
                return first
        child = self.start(asked["workflow"], asked["input"], asked.get("metadata"), (run.id, asked["id"]))
        child.on_cancel = asked.get("on_cancel", "propagate")
        return child

    def _settle(self, run: DoubleRun, id: str, entry: dict[str, Any]) -> None:
        """Something that was waited for has happened: an entry for the next turn."""
        if run.ended or id not in run.open:
            return
        del run.open[id]
        run.due.pop(id, None)
        run.settled[id] = entry["status"]
        run.arrived.append({"id": id, **entry})
        self._wake(run)

    def _wake(self, run: DoubleRun) -> None:
        if run.status == "waiting" and run.is_satisfied(run.wake, self.now):
            run.status = "queued"

    def _fits(self, asked: dict[str, Any], event: Pushed, since: int | None) -> bool:
        if asked["key"] != event.key or (asked.get("scope") is not None and asked["scope"] != event.scope):
            return False
        expression = asked.get("expression")
        if expression in (None, "true"):
            return True
        if self._expressions is None:
            raise ConfigError(f"the wait for {event.key!r} has the expression {expression!r}; give the test `expressions(text, data)`")
        return self._expressions(expression, event.data)

    def _event(self, run: DoubleRun, id: str, event: Pushed) -> None:
        value = {"id": event.id, "type": event.key, "data": event.data, "metadata": None, "at": text_of(event.at)}
        self._settle(run, id, {"op": "event", "status": "ok", "value": value})

    def _deliver_messages(self, run: DoubleRun) -> None:
        for id, asked in list(run.open.items()):
            if asked["op"] == "message":
                if run.inbox:
                    self._settle(run, id, {"op": "message", "status": "ok", "value": run.inbox.popleft()})
                elif run.inbox_closed:
                    self._settle(run, id, {"op": "message", "status": "closed"})

    def _lose(self, run: DoubleRun, texts: list[bytes]) -> None:
        for text in texts:
            entry = json.loads(text)
            if entry["op"] == "step":
                self.lost[run.task_id, entry["id"]] += 1

    # ---- what an endpoint calls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One call of the endpoint."""
        content = await request.aread()
        path = request.url.path
        if self._unreachable and path in (wire.CALLBACK_PATH, wire.CALLBACKS_PATH):
            raise httpx.ConnectError("refused")
        if path == wire.CALLBACKS_PATH:
            tokens = [item["token"] for item in json.loads(content)["items"]]
            results = []
            for token, events in zip(tokens, [raw_items(one, "events") for one in raw_items(content, "items")], strict=True):
                results.append(b'{"status":%d,"body":%b}' % await self._callback(token, events))
            return _response(200, b'{"results":[%b]}' % b",".join(results))
        with self._lock:
            return _response(*self._call(request.method, path, dict(request.url.params), content, request.headers.get("authorization", "")))

    async def _callback(self, token: str, events: list[bytes]) -> tuple[int, bytes]:
        _, run_id, attempt = token.split(".")
        run = self.runs[run_id]
        if run.ended:
            return 410, b'{"code":"task_ended"}'
        if int(attempt) != run.attempt or run.status != "running":
            return 409, b'{"code":"stale_attempt"}'
        document: dict[str, Any] = {"ok": True, "cancel": _notice(run)}
        for event in events:
            if json.loads(event)["type"] == "append":
                self.appends += 1
                status, document = await self._append(run, json.loads(event)["base"], raw_items(event, "ops"))
                if status != 200:
                    return status, json.dumps(document).encode()
            else:
                self.said.append(json.loads(event))
        return 200, json.dumps(document).encode()

    def _measure(self, ops: list[bytes], size: int) -> None:
        self.largest = (max(self.largest[0], len(ops)), max(self.largest[1], size))

    async def _append(self, run: DoubleRun, base: int, texts: list[bytes]) -> tuple[int, dict[str, Any]]:
        self._measure(texts, sum(map(len, texts)))
        if self._point():
            self._lose(run, texts)
            await self._die()
        if run.cleaning and any(_asks(json.loads(text)) for text in texts):
            return 422, {"code": "invalid_op", "detail": "a task that is being cancelled may record what it does, and ask for nothing"}
        if base != len(run.log):
            return 412, {"code": "log_conflict", "len": len(run.log), "entries": run.entries[base:]}
        started = self._extend(run, texts)
        if self._point():
            await self._die()
        return 200, {"ok": True, "len": len(run.log), "children": started, "cancel": _notice(run), "head": run.hashes[-1].hex()}

    async def _die(self) -> None:
        if self._crashed is not None and not self._crashed.done():
            self._crashed.set_result(None)
        await self._buried.wait()
        raise httpx.ConnectError("the process is gone")

    def _call(self, method: str, path: str, query: dict[str, str], content: bytes, authorization: str) -> tuple[int, bytes]:
        if path == wire.LOG_PATH:
            self.pulls += 1
            run = self.runs[authorization.split(".")[1]]
            part = slice(int(query["from"]), int(query["to"]))
            return 200, b'{"entries":[%b]}' % b",".join(run.log[part])
        parts = path.split("/")
        run = self.runs.get(parts[3], None) if len(parts) > 4 else None  # type: ignore[assignment]
        if run is None:
            return 404, b'{"code":"run_not_found"}'
        if parts[4] == "checkpoint":
            return (200, json.dumps({"value": run.checkpoint}).encode()) if run.has_checkpoint else (404, b'{"code":"not_found"}')
        if parts[4] == "messages" and method == "POST":
            delivered = self.message(run.id, json.loads(content)["data"])
            return (202, b'{"delivered":true}') if delivered else (409, b'{"code":"inbox_closed"}')
        return 404, b'{"code":"not_found"}'


def _asks(entry: dict[str, Any]) -> bool:
    return bool(entry["status"] == "pending" or (entry["op"] == "message" and entry["status"] == "closed"))


def _notice(run: DoubleRun) -> dict[str, Any] | None:
    """What a turn under way is told of a cancel."""
    return {"reason": run.cancelling, "grace_ms": 60_000} if run.cancelling is not None and not run.cleaning else None


def _response(status: int, body: bytes) -> httpx.Response:
    return httpx.Response(status, content=body, headers={"content-type": "application/json"})
