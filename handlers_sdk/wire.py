"""The messages of the Task Push Protocol, version 1, as constants and types: names only, no behaviour.

Both sides share this one definition. Source of the rule: PROTOCOL.md. Receivers ignore members they do not know.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NotRequired, TypedDict

PROTOCOL_VERSION: Final = 1
KEYS_PATH: Final = "/.well-known/task-keys"
CALLBACK_PATH: Final = "/v1/callback"
CALLBACKS_PATH: Final = "/v1/callbacks"
LOG_PATH: Final = "/v1/log"

# Request headers. Only the three webhook-* headers and the body are authenticated; task-* are routing hints.
HEADER_MESSAGE_ID: Final = "webhook-id"
HEADER_TIMESTAMP: Final = "webhook-timestamp"
HEADER_SIGNATURE: Final = "webhook-signature"
HEADER_PROTOCOL: Final = "task-protocol"
HEADER_TASK_NAME: Final = "task-name"
HEADER_TASK_ID: Final = "task-id"
HEADER_TASK_ATTEMPT: Final = "task-attempt"
HEADER_TASK_DEADLINE: Final = "task-deadline"
HEADER_TASK_METADATA: Final = "task-metadata"
HEADER_IDEMPOTENCY_KEY: Final = "idempotency-key"
HEADER_TRACEPARENT: Final = "traceparent"
HEADER_CHALLENGE: Final = "task-challenge"

# Response headers.
HEADER_VERSION: Final = "task-version"
HEADER_RETRY: Final = "task-retry"
HEADER_RETRY_AFTER: Final = "retry-after"
HEADER_LOG: Final = "task-log"
HEADER_REFS: Final = "task-refs"

MEDIA_JSON: Final = "application/json"
MEDIA_NDJSON: Final = "application/x-ndjson"
MEDIA_PROBLEM: Final = "application/problem+json"
MEDIA_MANIFEST: Final = "application/vnd.tasks.manifest+json"
ACCEPT_MANIFEST: Final = "application/vnd.tasks.manifest+json;v=1"

# What a manifest's `features` may name. Only those an endpoint lists are used on it.
FEATURE_ASYNC: Final = "async"
FEATURE_BATCH: Final = "batch"
FEATURE_NDJSON: Final = "ndjson"
FEATURE_CANCEL_PUSH: Final = "cancel-push"
FEATURE_DURABLE: Final = "durable"
FEATURE_REFS: Final = "refs"

# `type` of a pushed body.
PUSH_RUN: Final = "run"
PUSH_BATCH: Final = "batch"
PUSH_CANCEL: Final = "cancel"
PUSH_TURN: Final = "turn"

# `type` of an event: a callback, or a line of an NDJSON answer.
EVENT_HEARTBEAT: Final = "heartbeat"
EVENT_EXTEND: Final = "extend"
EVENT_PROGRESS: Final = "progress"
EVENT_LOG: Final = "log"
EVENT_CHUNK: Final = "chunk"
EVENT_RELEASE_SLOT: Final = "release_slot"
EVENT_LABELS: Final = "labels"
EVENT_DONE: Final = "done"
EVENT_FAIL: Final = "fail"
EVENT_APPEND: Final = "append"
EVENT_TURN: Final = "turn"

# `status` of a batch result.
STATUS_OK: Final = "ok"
STATUS_FAIL: Final = "fail"
STATUS_RETRY: Final = "retry"
STATUS_ACCEPTED: Final = "accepted"

# `status` of a turn's answer.
TURN_WAIT: Final = "wait"
TURN_DONE: Final = "done"
TURN_FAILED: Final = "failed"
TURN_AGAIN: Final = "again"
TURN_CONTINUE: Final = "continue"
TURN_MISMATCH: Final = "mismatch"
TURN_STATUSES: Final = frozenset({TURN_WAIT, TURN_DONE, TURN_FAILED, TURN_AGAIN, TURN_CONTINUE, TURN_MISMATCH})

# `op` of an entry of a durable task's log, and who settles it: the endpoint, or the dispatcher.
OP_STEP: Final = "step"
OP_SCOPE: Final = "scope"
OP_CHECKPOINT: Final = "checkpoint"
OP_PATCH: Final = "patch"
OP_SLEEP: Final = "sleep"
OP_EVENT: Final = "event"
OP_CHILD: Final = "child"
OP_MESSAGE: Final = "message"
OP_CANCEL: Final = "cancel"

# Codes of refused callbacks.
CODE_STALE_ATTEMPT: Final = "stale_attempt"
CODE_TASK_ENDED: Final = "task_ended"
CODE_LOG_CONFLICT: Final = "log_conflict"

LogLevel = Literal["debug", "info", "warning", "error"]


class EventOrigin(TypedDict):
    """The event that started a run."""

    id: str
    type: str
    metadata: NotRequired[dict[str, Any] | None]


class ParentResult(TypedDict):
    """What became of a task that came before. Only `succeeded` has an output."""

    status: Literal["succeeded", "failed", "cancelled", "skipped"]
    output: NotRequired[Any]


class TaskError(TypedDict):
    """Why a task of the run failed, as its on-failure task is told."""

    code: str
    message: str


class BatchMember(TypedDict):
    """Which of the batches that handlers are given at once an attempt belongs to: its id, and how many attempts it has."""

    id: str
    size: int


class ReferenceTarget(TypedDict):
    """Where a value is, the SHA-256 of its JSON text in hex, and how many bytes that has."""

    url: NotRequired[str]
    sha256: str
    size: int


Reference = TypedDict("Reference", {"$ref": ReferenceTarget})
"""Stands for a member's value where `refs` beside it names the member, and for nothing anywhere else."""


class RunItem(TypedDict):
    """One attempt of one task run, as an item of a batch. `deadline` is RFC 3339, `timeout_ms` counts from its sending.

    `refs` names the members that are a Reference to their value.
    """

    name: str
    id: str
    run_id: str
    attempt: int
    retry_count: int
    max_attempts: int
    version: str
    input: Any
    deadline: str
    timeout_ms: int
    token: str
    tenant: str
    workflow: str
    metadata: NotRequired[dict[str, Any] | None]
    priority: int
    event: NotRequired[EventOrigin]
    parent_run_id: NotRequired[str]
    filter_payload: NotRequired[Any]
    parents: NotRequired[dict[str, ParentResult]]
    errors: NotRequired[dict[str, TaskError]]
    batch: NotRequired[BatchMember]
    refs: NotRequired[list[str]]


class RunPush(RunItem):
    """A run on its own: the item and what addresses it."""

    protocol: Literal[1]
    type: Literal["run"]
    audience: str
    api: str


class BatchPush(TypedDict):
    """Many runs in one request. A result missing from the answer is a retry, never a success."""

    protocol: Literal[1]
    type: Literal["batch"]
    audience: str
    api: str
    ordered: bool
    items: list[RunItem]


class CancelPush(TypedDict):
    """Notice that an attempt should stop. The answer's status is ignored."""

    protocol: Literal[1]
    type: Literal["cancel"]
    audience: str
    id: str
    attempt: int
    reason: str


class Entry(TypedDict):
    """One entry of a durable task's log. `id` is `name#occurrence`, inside a scope `scope#0/name#0`; `at` is RFC 3339.

    `pending` says what is asked of the dispatcher: a sleep (`ms` or `until`), an event (`key`, …), a child (`workflow`, `input`, …), a
    message.
    """

    id: str
    op: str
    status: str
    at: NotRequired[str]
    value: NotRequired[Any]
    error: NotRequired[Any]
    retry_exhausted: NotRequired[bool]
    after_ms: NotRequired[int]
    retries: NotRequired[int]
    backoff_factor: NotRequired[float]
    backoff_max_seconds: NotRequired[int]
    ms: NotRequired[int]
    until: NotRequired[str]
    key: NotRequired[str]
    expression: NotRequired[str]
    scope: NotRequired[str]
    since: NotRequired[str]
    timeout_ms: NotRequired[int]
    label: NotRequired[str]
    workflow: NotRequired[str]
    input: NotRequired[Any]
    metadata: NotRequired[dict[str, Any]]
    priority: NotRequired[int]
    on_cancel: NotRequired[Literal["propagate", "abandon"]]
    run_id: NotRequired[str]


_LogFrom = TypedDict("_LogFrom", {"from": int})


class LogPart(_LogFrom):
    """The log of a durable task, or its tail: `entries` are those from `from` on, of `len`; `hidden` counts those of them left out because
    their scope is closed. `prefix` is the rolling hash of what comes before, `head` of everything: h_0 is empty,
    h_(i+1) = sha256(h_i || entry i as it was sent), in hex.
    """

    len: int
    hidden: NotRequired[int]
    prefix: NotRequired[str]
    head: NotRequired[str]
    entries: list[Entry]


class TurnItem(RunItem):
    """One turn of a durable task, as an item of a batch. `attempt` is the fencing token as ever; `turn` counts the turns.

    `started_at` is when this log began, constant and later than that of the log before; `now` when this turn did; `seed` never changes.
    `first_started_at` is when the first log did, where the task has begun anew since.
    """

    turn: int
    now: str
    started_at: str
    seed: str
    budget_ms: int
    mode: Literal["replay", "state"]
    first_started_at: NotRequired[str]
    log: NotRequired[LogPart]
    state: NotRequired[Any]
    results: NotRequired[list[Entry]]


class TurnPush(TurnItem):
    """A turn on its own: the item and what addresses it."""

    protocol: Literal[1]
    type: Literal["turn"]
    audience: str
    api: str


class MismatchAt(TypedDict):
    """Where the code asks for something else than the log has: the entry, what it says, and what is asked for instead."""

    id: str
    expected: dict[str, Any]
    got: dict[str, Any]


class TurnAnswer(TypedDict):
    """What a turn came to. `ops` are entries that were not appended before; `base` is how many the log has without them."""

    status: Literal["wait", "done", "failed", "again", "continue", "mismatch"]
    base: NotRequired[int]
    ops: NotRequired[list[Entry]]
    wake: NotRequired[Any]
    state: NotRequired[Any]
    output: NotRequired[Any]
    input: NotRequired[Any]
    error: NotRequired[ErrorDetail]
    retry: NotRequired[bool]
    retry_after_ms: NotRequired[int]
    at: NotRequired[MismatchAt]
    unconsumed: NotRequired[list[str]]


class ErrorDetail(TypedDict):
    """What went wrong in a handler. `name` is the error's class; `code` a stable word for programs, when there is one."""

    name: str
    message: str
    stack: NotRequired[str]
    cause: NotRequired[Any]
    code: NotRequired[str]


class ResultOk(TypedDict):
    """The item succeeded with this output."""

    id: str
    status: Literal["ok"]
    output: Any
    refs: NotRequired[list[str]]


class ResultFail(TypedDict):
    """`retry` absent leaves the decision to the task's retry budget."""

    id: str
    status: Literal["fail"]
    retry: NotRequired[bool]
    retry_after_ms: NotRequired[int]
    error: ErrorDetail


class ResultRetry(TypedDict):
    """The endpoint asks for this item again later; no attempt is consumed."""

    id: str
    status: Literal["retry"]
    after_ms: NotRequired[int]


class ResultAccepted(TypedDict):
    """The attempt goes on; its result comes by callback before the lease ends."""

    id: str
    status: Literal["accepted"]
    lease_ms: NotRequired[int]


Result = ResultOk | ResultFail | ResultRetry | ResultAccepted


class BatchAnswer(TypedDict):
    """The answer to a batch in one piece. The same results as NDJSON lines mean the same, and are believed as they arrive."""

    results: list[Result]


class FailureProblem(TypedDict):
    """The problem document (RFC 9457) of a failed plain run; the `task-retry` header overrides `retry`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retry: NotRequired[bool]
    retry_after_ms: NotRequired[int]
    error: ErrorDetail


class AcceptedAnswer(TypedDict):
    """The optional body of a 202."""

    lease_ms: NotRequired[int]


class HeartbeatEvent(TypedDict):
    """The attempt is alive; renews its lease."""

    type: Literal["heartbeat"]


class ExtendEvent(TypedDict):
    """Moves the attempt's deadline later by `ms`, counted from the current deadline."""

    type: Literal["extend"]
    ms: int


class ProgressEvent(TypedDict):
    """How far the attempt is: `fraction` from 0 to 1, and a few words."""

    type: Literal["progress"]
    fraction: NotRequired[float]
    note: NotRequired[str]


class LogEvent(TypedDict):
    """One log line; `at` is RFC 3339."""

    type: Literal["log"]
    level: LogLevel
    message: str
    at: str
    attempt: NotRequired[int]


class ChunkEvent(TypedDict):
    """One piece of a stream. `seq` counts from 0 within the attempt; a repeated one is recorded once. `encoding`: for bytes, no text."""

    type: Literal["chunk"]
    stream: str
    seq: int
    data: Any
    encoding: NotRequired[Literal["base64"]]


class ReleaseSlotEvent(TypedDict):
    """The attempt goes on without counting against the endpoint's slots."""

    type: Literal["release_slot"]


class LabelsEvent(TypedDict):
    """Changes labels of the endpoint the attempt runs at; those that are null are taken away."""

    type: Literal["labels"]
    labels: dict[str, str | int | float | bool | None]


class DoneEvent(TypedDict):
    """The attempt succeeded. Saying it again changes nothing."""

    type: Literal["done"]
    output: NotRequired[Any]
    refs: NotRequired[list[str]]


class FailEvent(TypedDict):
    """The attempt failed. `retry` absent leaves the decision to the task's retries."""

    type: Literal["fail"]
    retry: NotRequired[bool]
    retry_after_ms: NotRequired[int]
    error: ErrorDetail


Event = HeartbeatEvent | ExtendEvent | ProgressEvent | LogEvent | ChunkEvent | ReleaseSlotEvent | LabelsEvent | DoneEvent | FailEvent


class Append(TypedDict):
    """Entries for the log of a durable task, as a callback's event. They are taken when the log has `base` entries, or has them already."""

    type: Literal["append"]
    base: int
    ops: list[Entry]


class CallbackItem(TypedDict):
    """The events of one attempt, beside those of others."""

    token: str
    events: list[Any]


class CallbackGroup(TypedDict):
    """`POST {api}/v1/callbacks`."""

    items: list[CallbackItem]


class CallbackResult(TypedDict):
    """What the same events would have been answered alone."""

    status: int
    body: Any


class CallbackResults(TypedDict):
    """The answer to a CallbackGroup, in order."""

    results: list[CallbackResult]


class CancelNotice(TypedDict):
    """Why an attempt should stop, and how long it has to end by itself."""

    reason: str
    grace_ms: NotRequired[int]


class CallbackReply(TypedDict):
    """The answer to every accepted callback; `cancel` makes each one a poll for cancellation."""

    ok: Literal[True]
    lease_until: NotRequired[str]
    cancel: NotRequired[CancelNotice | None]
    duplicate: NotRequired[bool]
    len: NotRequired[int]
    head: NotRequired[str]
    children: NotRequired[dict[str, str]]


class ProtocolRange(TypedDict):
    """The lowest and the highest version of the protocol an endpoint speaks."""

    min: int
    max: int


class EndpointLimits(TypedDict, total=False):
    """What an endpoint can take; members it does not name are unlimited."""

    request_bytes: int
    response_bytes: int
    timeout_ms: int
    concurrency: int


class BatchOffer(TypedDict):
    """What an endpoint takes in one batch: items, bytes of the body, and how many it works on at a time."""

    max_items: int
    max_bytes: int
    concurrency: NotRequired[int]
    linger_ms: NotRequired[int]


class SleepConditionEntry(TypedDict):
    """So much time since the task's parents were done."""

    sleep: str


class EventConditionEntry(TypedDict):
    """An event of this key since then; `expression` is CEL over its data as `input`."""

    event: str
    expression: NotRequired[str]
    scope: NotRequired[str]


class ParentConditionEntry(TypedDict):
    """What a task that comes before gave; `expression` is CEL over `output`."""

    parent: str
    expression: str


ConditionEntry = SleepConditionEntry | EventConditionEntry | ParentConditionEntry
OrEntry = TypedDict("OrEntry", {"or": list[ConditionEntry]})
RuleEntry = ConditionEntry | OrEntry
"""One member of `wait_for`, `skip_if` or `cancel_if`; all members of such a list must hold."""


class TaskEntry(TypedDict):
    """What a manifest says of a task. Durations are strings such as `1h30m`. `idempotent` allows a retry of what may have run."""

    name: str
    body: NotRequired[Literal["raw", "v1"]]
    description: NotRequired[str]
    input_schema: NotRequired[dict[str, Any]]
    output_schema: NotRequired[dict[str, Any]]
    retries: NotRequired[int]
    backoff_factor: NotRequired[float]
    backoff_max_seconds: NotRequired[float]
    execution_timeout: NotRequired[str]
    schedule_timeout: NotRequired[str]
    idempotent: NotRequired[bool]
    allow_html: NotRequired[bool]
    parents: NotRequired[list[str]]
    wait_for: NotRequired[list[RuleEntry]]
    skip_if: NotRequired[list[RuleEntry]]
    cancel_if: NotRequired[list[RuleEntry]]
    kind: NotRequired[Literal["task", "workflow", "durable"]]
    mode: NotRequired[Literal["replay", "state"]]
    pin: NotRequired[Literal["task", "latest"]]
    concurrency: NotRequired[list[dict[str, Any]]]
    sticky: NotRequired[str]
    rate_limits: NotRequired[list[dict[str, Any]]]


class FilterEntry(TypedDict):
    """A filter of events a workflow declares: CEL, the scope of the events it is for, and what its handler is told when it holds."""

    expression: str
    scope: str
    payload: NotRequired[dict[str, Any]]


class CronEntry(TypedDict):
    """A cron a workflow declares; one that is only an expression may be written as that text."""

    expression: str
    timezone: NotRequired[str]
    name: NotRequired[str]
    input: NotRequired[Any]
    metadata: NotRequired[dict[str, Any]]
    priority: NotRequired[int]
    missed: NotRequired[Literal["skip", "run_once", "run_all"]]


class HandlerEntry(TaskEntry):
    """One handler of a manifest: a task that is its own workflow, or a workflow of the tasks in `tasks` and two that may come last."""

    on_events: NotRequired[list[str]]
    on_crons: NotRequired[list[str | CronEntry]]
    default_filters: NotRequired[list[FilterEntry]]
    default_priority: NotRequired[int]
    default_metadata: NotRequired[dict[str, Any]]
    tasks: NotRequired[list[TaskEntry]]
    on_failure: NotRequired[TaskEntry]
    on_success: NotRequired[TaskEntry]


class Manifest(TypedDict):
    """What an endpoint answers to the signed GET. `challenge` echoes the nonce; `verified` names the scheme it checks."""

    protocol: ProtocolRange
    sdk: NotRequired[str]
    version: str
    challenge: str
    verified: NotRequired[Literal["v1", "v1a"]]
    features: list[str]
    limits: NotRequired[EndpointLimits]
    batch: NotRequired[BatchOffer]
    handlers: list[HandlerEntry]


class PublicKey(TypedDict):
    """One entry of the key set: a JWK (RFC 8037) and the same key as `whpk_<base64>`. `exp` is unix seconds."""

    kid: str
    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    whpk: str
    exp: NotRequired[int]


class KeySet(TypedDict):
    """`GET {api}/.well-known/task-keys`."""

    keys: list[PublicKey]
