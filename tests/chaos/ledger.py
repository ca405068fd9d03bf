"""What three witnesses saw, and whether it adds up.

The witnesses are independent: the client's file of acknowledgements, the database, and the endpoints' own file of requests. `check`
compares them and says in words what is wrong. It knows the promise, not the implementation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

# Moments are taken by processes before they ask the database, so two attempts may seem to overlap by as much as a statement may take.
OVERLAP = timedelta(seconds=2)
MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Ack:
    """A call that was answered 2xx: the idempotency key it carried, and the run or event it was told."""

    key: str
    id: str
    runs: int = 1
    event: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One POST an endpoint received for one attempt, written before anything was done about it."""

    run_id: str
    attempt: int
    nonce: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of an attempt that is over."""

    run_id: str
    number: int
    status: str
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class Run:
    """A row of a run that is over, with its task. `nonce` is what its output says it came from."""

    id: str
    status: str
    key: str | None
    event_id: str | None
    epoch: int
    nonce: str | None


@dataclass(slots=True)
class Ledger:
    """Everything the witnesses said, once things were quiet. `events` maps an event's id to its idempotency key."""

    acks: list[Ack] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    events: dict[str, str | None] = field(default_factory=dict)
    live: int = 0
    dead_grants: int = 0
    unowned: int = 0


def check(ledger: Ledger) -> list[str]:
    """Every broken promise, in words; none is what should be."""
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in ledger.attempts:
        attempts[attempt.run_id].append(attempt)
    broken = [*_left_over(ledger), *_acknowledged(ledger), *_once(ledger)]
    for run in ledger.runs:
        broken += _numbered(run, attempts[run.id])
        broken += _concluded(run, attempts[run.id])
        broken += _in_turn(run, attempts[run.id])
    return [*broken, *_on_the_wire(ledger), *_results(ledger)]


def _left_over(ledger: Ledger) -> Iterator[str]:
    if ledger.live:
        yield f"{ledger.live} tasks or runs are stuck in the live tables"
    if ledger.dead_grants:
        yield f"{ledger.dead_grants} slot grants are left of dead dispatchers"
    if ledger.unowned:
        yield f"{ledger.unowned} tasks belong to dispatchers that do not exist"


def _acknowledged(ledger: Ledger) -> Iterator[str]:
    """Every acknowledged call left exactly what it was told, whatever was repeated."""
    runs = {run.id: run for run in ledger.runs}
    of_event = Counter(run.event_id for run in ledger.runs if run.event_id is not None)
    told: dict[str, str] = {}
    for ack in ledger.acks:
        if told.setdefault(ack.key, ack.id) != ack.id:
            yield f"key {ack.key} was answered with {told[ack.key]} and with {ack.id}"
        if ack.event:
            if ledger.events.get(ack.id) != ack.key:
                yield f"event {ack.id} was acknowledged and is lost"
            elif of_event[ack.id] != ack.runs:
                yield f"event {ack.id} was told to start {ack.runs} runs and started {of_event[ack.id]}"
        elif ack.id not in runs:
            yield f"run {ack.id} was acknowledged and is lost"
        elif runs[ack.id].key != ack.key:
            yield f"run {ack.id} was acknowledged for key {ack.key} and carries {runs[ack.id].key}"


def _once(ledger: Ledger) -> Iterator[str]:
    """One end per run, one run per key, acknowledged or not."""
    for run_id, ends in Counter(run.id for run in ledger.runs).items():
        if ends > 1:
            yield f"run {run_id} has {ends} ends"
    for key, number in Counter(run.key for run in ledger.runs if run.key is not None).items():
        if number > 1:
            yield f"key {key} started {number} runs"
    for key, number in Counter(key for key in ledger.events.values() if key is not None).items():
        if number > 1:
            yield f"key {key} made {number} events"


def _numbered(run: Run, attempts: Sequence[Attempt]) -> Iterator[str]:
    numbers = sorted(attempt.number for attempt in attempts)
    if numbers != list(range(1, run.epoch + 1)):
        yield f"run {run.id} made {run.epoch} attempts and has rows of {numbers}"


def _concluded(run: Run, attempts: Sequence[Attempt]) -> Iterator[str]:
    """Succeeded, if and only if its last attempt did and no other."""
    successes = [attempt.number for attempt in attempts if attempt.status == "succeeded"]
    if run.status == "succeeded" and successes != [run.epoch]:
        yield f"run {run.id} succeeded; of its {run.epoch} attempts these did: {successes}"
    if run.status != "succeeded" and successes:
        yield f"run {run.id} is {run.status} though attempts {successes} succeeded"


def _in_turn(run: Run, attempts: Sequence[Attempt]) -> Iterator[str]:
    """Never two attempts at a time."""
    ordered = sorted(attempts, key=lambda attempt: attempt.number)
    for earlier, later in pairwise(ordered):
        if later.started_at < earlier.finished_at - OVERLAP:
            yield f"run {run.id}: attempt {later.number} began before attempt {earlier.number} had ended"
    for attempt in ordered:
        if attempt.finished_at < attempt.started_at:
            yield f"run {run.id}: attempt {attempt.number} ended before it began"


def _on_the_wire(ledger: Ledger) -> Iterator[str]:
    """Every request has the row of its attempt, and no attempt went out twice."""
    known = {(attempt.run_id, attempt.number) for attempt in ledger.attempts}
    sent = Counter((request.run_id, request.attempt) for request in ledger.requests)
    for (run_id, number), times in sent.items():
        if (run_id, number) not in known:
            yield f"attempt {number} of run {run_id} was sent and has no row"
        if times > 1:
            yield f"attempt {number} of run {run_id} was sent {times} times"


def _results(ledger: Ledger) -> Iterator[str]:
    """A recorded result is the answer to a request of the attempt it is recorded for."""
    nonces: Mapping[str, Request] = {request.nonce: request for request in ledger.requests}
    for run in ledger.runs:
        if run.status != "succeeded":
            continue
        source = nonces.get(run.nonce or "")
        if source is None:
            yield f"run {run.id} has a result nobody gave"
        elif (source.run_id, source.attempt) != (run.id, run.epoch):
            yield f"run {run.id} ended by attempt {run.epoch} with the result of attempt {source.attempt} of {source.run_id}"


def shown(broken: Sequence[str]) -> str:
    """The first few, and how many there are."""
    more = f"\n… and {len(broken) - MOST_SHOWN} more" if len(broken) > MOST_SHOWN else ""
    return "\n".join(broken[:MOST_SHOWN]) + more
