"""The log of a durable task: what may be appended to it, what its turns answer, when one that waits goes on.

A log is a list of entries, kept byte for byte as they were written. While a turn is under way its endpoint alone appends, compare on
the length it knows (`base`); what has come true meanwhile is appended when the next turn is opened. So there is never more than one
writer, and an append whose base is wrong is stale or a repetition. Source of the shapes: handlers_sdk/PROTOCOL.md, level 2.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from dispatcher.engine.definitions.placement import DesiredLabels, parse_desired_labels
from dispatcher.engine.definitions.reading import DefinitionError
from dispatcher.engine.expressions import Expression, ExpressionError
from dispatcher.engine.strict_json import JsonRefused, check

WaitKind = Literal["sleep", "event", "child", "step", "message"]

ID: Final = re.compile(r"[^\x00-\x1f\x7f]{1,500}")
LONGEST_WAIT: Final = timedelta(days=3650)
MAX_WAKE_DEPTH: Final = 32
CLOSED: Final = "closed"
_ABSENT: Final = (b"", b"null")
_PENDING: Final = frozenset({"sleep", "event", "child", "message"})
_FINAL: Final = frozenset({"step", "scope", "patch", "checkpoint"})
_FIRST_BACKOFF: Final = timedelta(seconds=1)
_EARLIEST: Final = datetime.fromtimestamp(0, UTC)


class OpRefused(ValueError):  # noqa: N818 - a verdict, which its catchers answer with
    """Operations that cannot be recorded. `code` is stable; the text names the operation and says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one append and a whole log may hold."""

    ops: int
    entries: int
    log_bytes: int


class _Op(msgspec.Struct):
    """An operation as an endpoint writes it. Members it may have beside these are kept and not looked at."""

    id: str
    op: str
    status: str
    value: Raw = Raw(b"")
    at: datetime | None = None
    after_ms: float | None = None
    backoff_factor: float | None = None
    backoff_max_seconds: float | None = None
    attempt: int = 1
    until: datetime | None = None
    ms: float | None = None
    key: str | None = None
    expression: str | None = None
    scope: str | None = None
    since: str | None = None
    timeout_ms: float | None = None
    workflow: str | None = None
    input: Raw = Raw(b"")
    metadata: Raw = Raw(b"")
    priority: int | None = None
    labels: dict[str, Any] | None = None
    sticky: bool = False
    on_cancel: Literal["propagate", "abandon"] = "propagate"


@dataclass(frozen=True, slots=True)
class Wait:
    """What an operation waits for. `since` and `due_at` are moments; an event without `since` counts from the operation's `at`."""

    id: str
    kind: WaitKind
    event_key: str | None = None
    scope: str | None = None
    expression: str | None = None
    since: datetime | None = None
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """A run an operation asks for. `key` names it among the task's children; asked for again, it is the same run. `labels` are asked of
    the endpoints of its tasks; a `sticky` one begins where its parent is, if its workflow is sticky.
    """

    id: str
    workflow: str
    input: bytes
    key: str | None
    metadata: bytes | None
    priority: int | None
    labels: DesiredLabels
    sticky: bool
    abandon: bool


class Entries(msgspec.Struct, frozen=True):
    """Operations that have passed every check which needs no look at the log.

    `raw` is what is kept of them, `offered` what came: without a moment where their writer has not said when. `parents` are the scopes they
    are in, which must be open; `closes` the scopes they close.
    """

    raw: tuple[bytes, ...] = ()
    waits: tuple[Wait, ...] = ()
    children: tuple[Child, ...] = ()
    parents: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    checkpoint: bytes | None = None
    closes_inbox: bool = False
    only_steps: bool = True
    offered: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def plain(self) -> bool:
        """Whether these are steps that are over, in no scope: there is nothing to look at beside the length of the log."""
        return self.only_steps and not self.waits and not self.parents

    @property
    def asks(self) -> bool:
        """Whether the server is asked for something; what an endpoint settles by itself it may record while it cleans up too."""
        return self.closes_inbox or any(wait.kind != "step" for wait in self.waits)

    @property
    def text(self) -> bytes:
        """The entries as they are kept: JSON texts with commas between them."""
        return b",".join(self.raw)


class Moments(msgspec.Struct, frozen=True):
    """What the times of an append are counted from: when the task was created, its turn leased, and now."""

    created_at: datetime
    leased_at: datetime
    now: datetime


_op: Final = msgspec.json.Decoder(_Op)
_list: Final = msgspec.json.Decoder(list[Raw])
_encode: Final = msgspec.json.encode


def stamped(raw: bytes, now: datetime) -> bytes:
    """An entry whose writer has not said when, with the time it is stored at."""
    return b'%b,"at":%b}' % (raw.rstrip()[:-1].rstrip(), _encode(now))


def parse_ops(ops: Sequence[bytes], bounds: Bounds, moments: Moments) -> Entries:
    """Check the operations of one append. Raises OpRefused: `invalid_op`, `too_many_ops`, `journal_too_large`."""
    if len(ops) > bounds.ops:
        raise OpRefused("too_many_ops", f"{len(ops):,} operations at once; at most {bounds.ops:,}")
    size = sum(map(len, ops)) + len(ops)
    if size > bounds.log_bytes:
        raise OpRefused("journal_too_large", f"{size:,} bytes of operations; a log takes at most {bounds.log_bytes:,}")
    reading = _Reading(moments)
    for number, raw in enumerate(ops):
        reading.take(number, raw, bounds)
    return reading.entries()


def with_runs(entries: Entries, runs: Mapping[str, str]) -> Entries:
    """Entries as they are kept: those that ask for children say which runs these are, so that every replay knows."""
    raw = [_with_run(entry, runs[name]) if (name := name_of(entry)) in runs else entry for entry in entries.raw]
    return msgspec.structs.replace(entries, raw=tuple(raw))


def _with_run(entry: bytes, run_id: str) -> bytes:
    return b'%b,"run_id":"%b"}' % (entry.rstrip()[:-1].rstrip(), run_id.encode()) if NAMED.decode(entry).status == "pending" else entry


def without_run(entry: bytes) -> bytes:
    """An entry that asks for a child as its endpoint wrote it: it does not say which run that is."""
    members = msgspec.json.decode(entry, type=dict[str, Raw])
    return _encode({name: value for name, value in members.items() if name != "run_id"})


class _Reading:
    """Operations as they are read, one after the other."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._raw: list[bytes] = []
        self._offered: list[bytes] = []
        self._waits: dict[str, Wait] = {}
        self._children: list[Child] = []
        self._parents: dict[str, None] = {}
        self._closes: dict[str, None] = {}
        self._checkpoint: bytes | None = None
        self._closes_inbox = False
        self._only_steps = True

    def entries(self) -> Entries:
        return Entries(
            tuple(self._raw),
            tuple(self._waits.values()),
            tuple(self._children),
            tuple(self._parents),
            tuple(self._closes),
            self._checkpoint,
            self._closes_inbox,
            self._only_steps,
            tuple(self._offered),
        )

    def take(self, number: int, raw: bytes, bounds: Bounds) -> None:
        try:
            check(raw, max_bytes=bounds.log_bytes)
            op = _op.decode(raw)
        except JsonRefused as refused:
            raise OpRefused("invalid_op", f"operation {number}: {refused.message}") from None
        except msgspec.MsgspecError as error:
            raise OpRefused("invalid_op", f"operation {number}: {error}") from None
        if not ID.fullmatch(op.id):
            raise OpRefused("invalid_op", f"operation {number}: an id has 1 to 500 characters, none of them control characters")
        try:
            self._judge(op)
        except OpRefused as refused:
            raise OpRefused(refused.code, f"operation {op.id!r}: {refused}") from None
        self._offered.append(raw)
        self._raw.append(raw if op.at is not None else stamped(raw, self._moments.now))

    def _judge(self, op: _Op) -> None:
        self._ancestors(op.id)
        if op.op in _FINAL:
            self._recorded(op)
        elif op.op == "message" and op.status == CLOSED:
            self._closes_inbox, self._only_steps = True, False
        elif op.op in _PENDING:
            self._pending(op)
        elif op.op == "run":
            raise OpRefused("invalid_op", "no step has a request of its own here: run it beside others in this turn, or ask for a child")
        else:
            raise OpRefused("invalid_op", f"this server knows no operation {op.op[:50]!r}")

    def _ancestors(self, identifier: str) -> None:
        """A scope closed by this append before closes what comes after it as well."""
        at = identifier.find("/")
        while at > 0:
            scope = identifier[:at]
            if scope in self._closes:
                raise OpRefused("scope_closed", f"the scope {scope!r} is closed")
            self._parents[scope] = None
            at = identifier.find("/", at + 1)

    def _recorded(self, op: _Op) -> None:
        if op.op == "step" and op.status == "retry":
            self._wait(Wait(op.id, "step", due_at=self._moments.now + _retry_delay(op)))
        elif op.status not in ("ok", "error") or (op.status == "error" and op.op in ("patch", "checkpoint")):
            raise OpRefused("invalid_op", f"a {op.op} cannot be {op.status[:50]!r}")
        elif op.op == "scope":
            self._closes[op.id] = None
            self._parents.pop(op.id, None)
        elif op.op == "checkpoint":
            self._checkpoint = bytes(op.value) or b"null"
        self._only_steps &= op.op == "step"

    def _pending(self, op: _Op) -> None:
        if op.status != "pending":
            raise OpRefused("invalid_op", f'a {op.op} begins as "pending"; what becomes of it is for the server to say')
        self._only_steps = False
        match op.op:
            case "sleep":
                self._wait(Wait(op.id, "sleep", due_at=self._end_of_sleep(op)))
            case "event":
                self._wait(self._event(op))
            case "message":
                self._wait(Wait(op.id, "message", due_at=self._after(op.timeout_ms, "timeout_ms")))
            case _:
                self._wait(Wait(op.id, "child"))
                self._children.append(_child(op))

    def _wait(self, wait: Wait) -> None:
        if wait.id in self._waits:
            raise OpRefused("invalid_op", "is there twice; each occurrence has an id of its own")
        self._waits[wait.id] = wait

    def _end_of_sleep(self, op: _Op) -> datetime:
        if (op.until is None) == (op.ms is None):
            raise OpRefused("invalid_op", "a sleep has either `until`, a moment, or `ms`, how long from now")
        if op.until is None:
            return self._after(op.ms, "ms") or self._moments.now
        if op.until.tzinfo is None or op.until > self._moments.now + LONGEST_WAIT:
            raise OpRefused("invalid_op", "`until` is a moment with its offset from UTC, at most ten years ahead")
        return max(op.until, self._moments.now)  # what has passed may lie before all that can be stored

    def _after(self, milliseconds: float | None, member: str) -> datetime | None:
        if milliseconds is None:
            return None
        if not 0 <= milliseconds <= LONGEST_WAIT.total_seconds() * 1000:
            raise OpRefused("invalid_op", f"`{member}` is a number of milliseconds, not negative, at most ten years")
        return self._moments.now + timedelta(milliseconds=milliseconds)

    def _event(self, op: _Op) -> Wait:
        if op.key is None or not ID.fullmatch(op.key):
            raise OpRefused("invalid_op", "an event needs its `key`: 1 to 500 characters, none of them control characters")
        if op.scope is not None and not ID.fullmatch(op.scope):
            raise OpRefused("invalid_op", "`scope` has 1 to 500 characters, none of them control characters")
        if op.expression is not None:
            try:
                Expression(op.expression, returns=bool, macros=4, names=("input",))
            except ExpressionError as error:
                raise OpRefused("invalid_op", f"`expression`: {error}") from None
        return Wait(op.id, "event", op.key, op.scope, op.expression, self._since(op), self._after(op.timeout_ms, "timeout_ms"))

    def _since(self, op: _Op) -> datetime:
        moments = self._moments
        if op.since is None:
            # From when it was asked for, in this turn, and later: the event that ended the wait before this one is not taken again.
            asked = op.at if op.at is not None and op.at.tzinfo is not None else moments.now
            return min(max(asked, moments.leased_at), moments.now) + timedelta(microseconds=1)
        if op.since == "start":
            return moments.created_at
        try:
            moment = datetime.fromisoformat(op.since)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise OpRefused("invalid_op", '`since` is "start" or a moment with its offset from UTC')
        return min(max(moment, _EARLIEST), moments.now + LONGEST_WAIT)


def _child(op: _Op) -> Child:
    if not op.workflow or len(op.workflow) > 401:
        raise OpRefused("invalid_op", "a child needs its `workflow`")
    if op.priority is not None and not 1 <= op.priority <= 3:
        raise OpRefused("invalid_op", "`priority` is 1, 2 or 3")
    if op.key is not None and not ID.fullmatch(op.key):
        raise OpRefused("invalid_op", "`key` has 1 to 500 characters, none of them control characters")
    metadata = bytes(op.metadata)
    if metadata not in _ABSENT and not metadata.startswith(b"{"):
        raise OpRefused("invalid_op", "`metadata` is an object")
    given = bytes(op.input)
    return Child(
        op.id,
        op.workflow,
        given or b"{}",
        op.key,
        None if metadata in _ABSENT else metadata,
        op.priority,
        _labels(op),
        op.sticky,
        op.on_cancel == "abandon",
    )


def _labels(op: _Op) -> DesiredLabels:
    try:
        return parse_desired_labels(op.labels, "`labels`")
    except DefinitionError as error:
        raise OpRefused("invalid_op", str(error)) from None


def _retry_delay(op: _Op) -> timedelta:
    """What the endpoint says, or else a second, growing by the step's own factor."""
    if op.after_ms is not None:
        if not 0 <= op.after_ms <= LONGEST_WAIT.total_seconds() * 1000:
            raise OpRefused("invalid_op", "`after_ms` is a number of milliseconds, not negative")
        return timedelta(milliseconds=op.after_ms)
    factor = min(max(op.backoff_factor or 1.0, 1.0), 1000.0)
    most = min(op.backoff_max_seconds or 86_400.0, 86_400.0)
    return timedelta(seconds=min(factor ** min(max(op.attempt, 1), 100), max(most, 0.0))) if factor > 1 else _FIRST_BACKOFF


# ---- when a task that waits goes on


def parse_wake(text: bytes) -> Any:
    """A wake expression: an id, or `{"any": […]}` or `{"all": […]}` of such. Raises OpRefused `unknown_wake`."""
    try:
        wake = msgspec.json.decode(text) if text else None
    except (msgspec.DecodeError, RecursionError):
        wake = None
    _check_wake(wake, 0)
    return wake


def _check_wake(wake: Any, depth: int) -> None:
    if isinstance(wake, str) and ID.fullmatch(wake):
        return
    group = (wake.get("any"), wake.get("all")) if isinstance(wake, dict) else (None, None)
    members = group[0] if group[0] is not None else group[1]
    if depth > MAX_WAKE_DEPTH or None not in group or not isinstance(members, list) or not members:
        raise OpRefused("unknown_wake", 'wake is an operation\'s id, {"any": […]} or {"all": […]}, and none of these is empty')
    for member in members:
        _check_wake(member, depth + 1)


def leaves(wake: Any) -> Iterable[str]:
    """The ids a wake expression names."""
    if isinstance(wake, str):
        yield wake
    else:
        for member in wake.get("any") or wake.get("all"):
            yield from leaves(member)


def awake(wake: Any, settled: Mapping[str, bool]) -> bool:
    """Whether a wake expression holds. `settled` are the operations that are over, and whether they went well."""
    if isinstance(wake, str):
        return wake in settled
    if "any" in wake:
        return any(awake(member, settled) for member in wake["any"])
    if wake.get("fail_fast") is True and any(not settled.get(leaf, True) for leaf in leaves(wake)):
        return True
    return all(awake(member, settled) for member in wake["all"])


def left_of(wake: Any, settled: Mapping[str, bool]) -> Any:
    """What a wake expression still waits for where these are over; None where it holds."""
    if awake(wake, settled):
        return None
    if isinstance(wake, str):
        return wake
    group = "any" if "any" in wake else "all"
    return {**wake, group: [left for member in wake[group] if (left := left_of(member, settled)) is not None]}


# ---- what the server appends


@dataclass(frozen=True, slots=True)
class Settled:
    """A wait that is over. `value` is JSON text: an event, a message, a child's result as members of its entry."""

    id: str
    kind: WaitKind
    outcome: str
    settled_at: datetime
    value: bytes | None = None
    child: str | None = None


def completion(wait: Settled) -> bytes | None:
    """The entry that says what became of an operation; None of a step, which is simply run again."""
    if wait.kind == "step":
        return None
    members: dict[str, Any] = {"id": wait.id, "op": wait.kind, "status": wait.outcome}
    if wait.child is not None:
        members["run_id"] = wait.child
    if wait.value is not None:
        members["error" if wait.outcome == "error" else "value"] = Raw(wait.value)
    return _encode({**members, "at": wait.settled_at})


def cancel_entry(reason: str, now: datetime) -> bytes:
    """What tells a suspended task that it is being cancelled."""
    return _encode({"id": "cancel#0", "op": "cancel", "status": "ok", "value": {"reason": reason}, "at": now})


def is_cancelled(segments: Iterable[bytes]) -> bool:
    """Whether a log's end says already that its task is being cancelled."""
    return any(NAMED.decode(entry).op == "cancel" for segment in segments if b'"cancel"' in segment for entry in split([segment]))


CANCELLED_MESSAGE: Final = b'{"$cancel":true}'


# ---- what is shipped


def split(segments: Iterable[bytes]) -> list[bytes]:
    """The entries of segments, one by one, as they were written."""
    return [bytes(raw) for raw in _list.decode(b"[%b]" % b",".join(s for s in segments if s))]


def rolled(start: bytes, entries: Iterable[bytes]) -> bytes:
    """The rolling hash after these entries: of the one before and the entry, over and over, from nothing."""
    for entry in entries:
        start = hashlib.sha256(start + entry).digest()
    return start


class Named(msgspec.Struct):
    """What an entry is about: its id, its operation and how it stands."""

    id: str
    op: str = ""
    status: str = ""


NAMED: Final = msgspec.json.Decoder(Named)


def visible(entries: Sequence[bytes], closed: frozenset[str]) -> list[bytes]:
    """Entries but those inside closed scopes: what a scope came to stands in its own entry."""
    if not closed:
        return list(entries)
    return [entry for entry in entries if not _inside(NAMED.decode(entry).id, closed)]


def _inside(identifier: str, closed: frozenset[str]) -> bool:
    at = identifier.find("/")
    while at > 0:
        if identifier[:at] in closed:
            return True
        at = identifier.find("/", at + 1)
    return False


def repeated(known: Sequence[bytes], offered: Sequence[bytes]) -> bool:
    """Whether what is offered is there already, entry for entry. What it was given as it was stored, `at` and `run_id`, may lack."""
    return len(offered) <= len(known) and all(a == b or _same(a, b) for a, b in zip(known, offered, strict=False))


def _same(known: bytes, offered: bytes) -> bool:
    there, asked = msgspec.json.decode(known), msgspec.json.decode(offered)
    if not isinstance(there, dict) or not isinstance(asked, dict):
        return False
    given = {name: there[name] for name in ("at", "run_id") if name in there and name not in asked}
    return there == {**asked, **given}


# ---- what a turn answers


@dataclass(frozen=True, slots=True)
class Reply:
    """A turn's answer as it was written. `ops` are to be appended before anything else is done about it."""

    status: str
    base: int | None
    ops: tuple[bytes, ...]
    wake: bytes
    state: bytes | None
    output: bytes
    error: bytes
    retry: bool | None
    retry_after_ms: float | None
    input: bytes
    at: bytes
    refs: tuple[str, ...] = ()


class _Answer(msgspec.Struct):
    status: Literal["wait", "again", "continue", "mismatch", "done", "failed"]
    base: int | None = None
    ops: list[Raw] = []
    wake: Raw = Raw(b"")
    state: Raw = Raw(b"")
    output: Raw = Raw(b"null")
    error: Raw = Raw(b"")
    retry: bool | None = None
    retry_after_ms: float | None = None
    refs: tuple[str, ...] = ()
    input: Raw = Raw(b"")
    at: Raw = Raw(b"")


_answer: Final = msgspec.json.Decoder(_Answer)


def parse_reply(body: bytes | Raw) -> Reply | None:
    """A turn's answer, or None for anything that is none: a page, a plain result, a status nobody knows."""
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    state = bytes(answer.state)
    return Reply(
        answer.status,
        answer.base,
        tuple(bytes(op) for op in answer.ops),
        bytes(answer.wake),
        state or None,
        bytes(answer.output),
        bytes(answer.error),
        answer.retry,
        answer.retry_after_ms,
        bytes(answer.input),
        bytes(answer.at),
        answer.refs,
    )


def name_of(entry: bytes) -> str:
    """An entry's id; empty for what is no entry."""
    try:
        return NAMED.decode(entry).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def is_asked(entry: bytes) -> bool:
    """Whether an entry is an operation somebody asked for, and not what became of it."""
    return NAMED.decode(entry).status == "pending"


def is_completion(entry: bytes) -> bool:
    """Whether an entry says what became of an operation: those the server writes."""
    named = NAMED.decode(entry)
    return named.op == "cancel" or (named.op in _PENDING and named.status not in ("pending", CLOSED))


def outcomes(entries: Iterable[bytes]) -> dict[str, bool]:
    """The operations that are over by these entries of a log, and whether they went well."""
    found: dict[str, bool] = {}
    for entry in entries:
        named = NAMED.decode(entry)
        if named.status in ("pending", "retry"):
            found.pop(named.id, None)
        else:
            found[named.id] = named.status == "ok"
    return found


def without(ops: Sequence[bytes], known: Sequence[bytes]) -> list[bytes]:
    """Operations but those that are known: an entry of a name that says the same of it, asked for or over."""
    there = {_mark(entry) for entry in known}
    return [op for op in ops if _mark(op) not in there]


def _mark(entry: bytes) -> tuple[str, str, str]:
    try:
        named = NAMED.decode(entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ("", "", "")
    return (named.id, named.op, named.status)
