"""The messages of the Task Push Protocol, version 1, as constants and types: names only, no behaviour.

Both sides share this one definition. Source of the rule: PROTOCOL.md. Receivers ignore members they do not know.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NotRequired, TypedDict

PROTOCOL_VERSION: Final = 1
KEYS_PATH: Final = "/.well-known/task-keys"
CALLBACK_PATH: Final = "/v1/callback"

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

# `type` of a pushed body.
PUSH_RUN: Final = "run"
PUSH_BATCH: Final = "batch"
PUSH_CANCEL: Final = "cancel"

# `type` of an event: a callback, or a line of an NDJSON answer.
EVENT_HEARTBEAT: Final = "heartbeat"
EVENT_EXTEND: Final = "extend"
EVENT_PROGRESS: Final = "progress"
EVENT_LOG: Final = "log"
EVENT_CHUNK: Final = "chunk"
EVENT_RELEASE_SLOT: Final = "release_slot"
EVENT_DONE: Final = "done"
EVENT_FAIL: Final = "fail"

# `status` of a batch result.
STATUS_OK: Final = "ok"
STATUS_FAIL: Final = "fail"
STATUS_RETRY: Final = "retry"
STATUS_ACCEPTED: Final = "accepted"

# Codes of refused callbacks.
CODE_STALE_ATTEMPT: Final = "stale_attempt"
CODE_TASK_ENDED: Final = "task_ended"

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


class RunItem(TypedDict):
    """One attempt of one task run, as an item of a batch. `deadline` is RFC 3339, `timeout_ms` counts from its sending."""

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


class DoneEvent(TypedDict):
    """The attempt succeeded. Saying it again changes nothing."""

    type: Literal["done"]
    output: NotRequired[Any]


class FailEvent(TypedDict):
    """The attempt failed. `retry` absent leaves the decision to the task's retries."""

    type: Literal["fail"]
    retry: NotRequired[bool]
    retry_after_ms: NotRequired[int]
    error: ErrorDetail


Event = HeartbeatEvent | ExtendEvent | ProgressEvent | LogEvent | ChunkEvent | ReleaseSlotEvent | DoneEvent | FailEvent


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
    backoff_max_seconds: NotRequired[int]
    execution_timeout: NotRequired[str]
    schedule_timeout: NotRequired[str]
    idempotent: NotRequired[bool]
    allow_html: NotRequired[bool]
    parents: NotRequired[list[str]]
    wait_for: NotRequired[list[RuleEntry]]
    skip_if: NotRequired[list[RuleEntry]]
    cancel_if: NotRequired[list[RuleEntry]]


class HandlerEntry(TaskEntry):
    """One handler of a manifest: a task that is its own workflow, or a workflow of the tasks in `tasks` and two that may come last."""

    kind: NotRequired[Literal["task", "workflow"]]
    on_events: NotRequired[list[str]]
    default_priority: NotRequired[int]
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
