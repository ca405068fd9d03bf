"""What the rest of the dispatcher hands to delivery, and what it gets back. Bodies are JSON text as bytes, never parsed here."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dispatcher.engine.answers import Answer
from handlers_sdk import wire
from handlers_sdk.signing import Signer


@dataclass(slots=True)
class Progress:
    """How far a push has come. `sent` is set here when its request begins to leave; `given_up` by whoever handed it over, after which it
    is not put into a request any more.
    """

    sent: bool = False
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Push:
    """One attempt to put on the wire.

    `name` is the handler's, `tenant` a slug, `deadline` in UTC. `raw` makes the body the input itself, with the rest in headers.
    `input`, `metadata`, `event`, `parents`, `errors`, `filter_payload` and `batch` are JSON texts. The handler is told `timeout`;
    `patience` is how long delivery waits, where whoever hands the push over ends it at a deadline that may still be moved. `turn` makes
    it the turn of a durable task: the members its envelope has beside a run's, `"type":"turn"` first among them. `refs` is the JSON list
    of the members that are references to their values.
    """

    task_id: str
    run_id: str
    workflow: str
    name: str
    attempt: int
    retry_count: int
    max_attempts: int
    priority: int
    input: bytes
    metadata: bytes | None
    event: bytes | None
    parent_run_id: str | None
    deadline: datetime
    timeout: timedelta
    token: str
    tenant: str
    raw: bool
    parents: bytes | None = None
    errors: bytes | None = None
    filter_payload: bytes | None = None
    batch: bytes | None = None
    patience: timedelta | None = None
    turn: bytes | None = None
    refs: bytes | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def wait(self) -> timedelta:
        """How long its answer is waited for."""
        return self.timeout if self.patience is None else self.patience


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What an endpoint takes in one batch: tasks, and bytes of the body."""

    max_items: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where to: one version of an endpoint, immutable.

    `headers` are its auth headers, `api` the base URL of callbacks, `response_limit` the bytes of the largest answer for one task,
    `allow_html` whether a page is a result (else it is taken for a login or an error page).
    """

    endpoint_id: str
    url: str
    version: str
    signers: tuple[Signer, ...]
    headers: tuple[tuple[str, str], ...]
    api: str
    features: frozenset[str]
    batch: BatchLimits | None
    allow_html: bool
    response_limit: int

    @property
    def takes_refs(self) -> bool:
        """Whether it fetches what is sent by reference."""
        return wire.FEATURE_REFS in self.features


@dataclass(frozen=True, slots=True)
class Receipt:
    """Everything recorded of one attempt.

    `latency_ms` runs from the start of sending to the end of the answer, None when nothing was sent. `response_excerpt` is the
    beginning of an answer that was no success, as it came: not always text. `version_seen` is what the endpoint says it runs. `shared`
    marks what a request as a whole came to, where several tasks were in it.
    """

    answer: Answer
    http_status: int | None = None
    latency_ms: int | None = None
    response_excerpt: bytes | None = None
    version_seen: str | None = None
    shared: bool = False
