"""Turns of durable tasks: what an attempt is sent with, and what its answer does before the rules are asked.

Opening a turn appends what has come true since the last one to the log and puts the log, or the part of it the endpoint has not seen, into
the request. Answering one appends the operations in the answer, compare on what the endpoint knew; only then does its status count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import msgspec

from dispatcher.clock import Clock
from dispatcher.delivery import rfc3339
from dispatcher.delivery.classify import Reading
from dispatcher.delivery.classify import turned as turned_answer
from dispatcher.engine import journal as rules
from dispatcher.engine.answers import Again, Answer, EndpointBroken, EndpointGone, Failed, LocalFault, Mismatched, Suspended, Turned
from dispatcher.engine.journal import OpRefused, cancel_entry, completion, rolled, split, visible
from dispatcher.errors import Problem
from dispatcher.ids import seed
from dispatcher.runtime.directory import Directory, Endpoint
from dispatcher.runtime.journals import Journals, is_passing
from dispatcher.runtime.work import Assignment, Turn
from dispatcher.settings import Settings
from dispatcher.store import journal
from dispatcher.store.database import Database
from dispatcher.store.journal import Head, Merge, Over, Segment
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.tasks import LiveTask

_MILLISECOND = timedelta(milliseconds=1)
_GONE = frozenset({"http_404", "http_405", "dns"})


@dataclass(slots=True)
class _Opening:
    """A turn about to be sent, with what was read for it."""

    assignment: Assignment
    head: Head
    over: list[Over]
    segments: list[Segment]
    merged: list[bytes]
    prefix: bytes | None = None


class Turns:
    """Opens turns and takes their answers."""

    def __init__(self, database: Database, directory: Directory, journals: Journals, clock: Clock, settings: Settings) -> None:
        self._database = database
        self._directory = directory
        self._journals = journals
        self._clock = clock
        self._settings = settings

    def first(self, assignment: Assignment) -> None:
        """The very first turn of a task: there is nothing to read."""
        log = b'"log":{"len":0,"from":0,"prefix":"","head":"","entries":[]}'
        kind = b'"mode":"state","state":null,"results":[]' if assignment.task.mode == "state" else b'"mode":"replay",' + log
        assignment.turn = Turn(self._members(assignment, 1, assignment.started_at, kind), 0, False, False)

    async def open(self, assignments: Sequence[Assignment]) -> list[Assignment]:
        """Give each attempt its turn. Those whose task has moved on are left out; one with `blocked` in its turn is not to be sent."""
        keys = [a.key for a in assignments]
        heads = await journal.heads(self._database, keys)
        current = [a for a in assignments if (head := heads.get(a.key)) is not None and head.epoch == a.epoch]
        over = await journal.over(self._database, [a.key for a in current]) if current else {}
        wanted = [(heads[a.key], self._from(a, heads[a.key])) for a in current if heads[a.key].log_len]
        segments = await journal.segments(self._database, wanted) if wanted else {}
        openings = [self._opening(a, heads[a.key], over.get(a.key, []), segments.get(a.key, [])) for a in current]
        merges = [merge for opening in openings if (merge := _merge(opening)) is not None]
        landed = await journal.merge(self._database, merges, self._clock.now()) if merges else set()
        stale = {merge.key for merge in merges} - landed
        opened = [opening for opening in openings if opening.assignment.key not in stale]
        older = [(o.assignment.key, o.assignment.epoch, version) for o in opened if (version := await self._pin(o)) is not None]
        if older:
            await journal.sent_to(self._database, older)
        return [opening.assignment for opening in opened]

    def _whole(self, assignment: Assignment, head: Head) -> bool:
        """Whether all of the log travels: it is small, or the endpoint knows nothing of it."""
        return head.known_len == 0 or head.log_bytes <= self._settings.log_inline_bytes

    def _from(self, assignment: Assignment, head: Head) -> int:
        if assignment.task.mode == "state":
            return head.known_len
        return 0 if self._whole(assignment, head) else head.hashed_len

    def _kind(self, opening: _Opening) -> bytes:
        """The members that a turn has by its mode."""
        if opening.assignment.task.mode == "state":
            return _state(opening)
        return _full(opening) if self._whole(opening.assignment, opening.head) else _tail(opening)

    def _opening(self, assignment: Assignment, head: Head, over: list[Over], segments: list[Segment]) -> _Opening:
        now = self._clock.now()
        pending = _asked(head, segments) if assignment.task.mode == "state" else frozenset[str]()
        over = [wait for wait in over if wait.id not in pending]  # their turn has not said yet what they are for: the next is told
        merged = [entry for wait in over if (entry := completion(wait.rules())) is not None]
        if head.cleanup and not rules.is_cancelled(segment.entries for segment in segments):
            merged.append(cancel_entry(head.cancel_reason or "cancelled", now))
        opening = _Opening(assignment, head, over, segments, merged)
        kind = self._kind(opening)
        if head.cleanup:
            kind += b',"cancel":' + msgspec.json.encode({"reason": head.cancel_reason or "cancelled"})
        if head.first_since is not None:
            kind += b',"first_started_at":"%b"' % rfc3339(head.first_since).encode()
        began = max([assignment.started_at, *[wait.settled_at for wait in over]])  # clocks of dispatchers differ: what came true has been
        members = self._members(assignment, head.turn, head.log_since or assignment.started_at, kind, began)
        begun = head.turn > 1 or head.log_len > 0
        assignment.turn = Turn(members, head.log_len + len(merged), begun, head.cleanup, pending, since=head.continued)
        assignment.input = head.input if head.input is not None else assignment.input
        return opening

    def _members(self, assignment: Assignment, number: int, since: datetime, kind: bytes, now: datetime | None = None) -> bytes:
        """What a turn's envelope has beside a run's, as members of a JSON object."""
        grain = seed(assignment.tenant_id, assignment.run_id, assignment.node)
        budget = (assignment.deadline - assignment.started_at) * 9 // 10 // _MILLISECOND
        return b'"type":"turn","turn":%d,"now":"%b","started_at":"%b","seed":"%b","budget_ms":%d,%b' % (
            number, rfc3339(now or assignment.started_at).encode(), rfc3339(since).encode(), grain.encode(), budget, kind,
        )  # fmt: skip

    # ---- where to

    async def _pin(self, opening: _Opening) -> str | None:
        """A task that is pinned goes to the version its first turn went to, as long as there is one. Says which, of the same endpoint."""
        head, assignment = opening.head, opening.assignment
        if head.pin_endpoint is None or head.pin_version is None or assignment.turn is None:
            return None
        here = assignment.endpoint
        if here.id == head.pin_endpoint and here.target.version == head.pin_version:
            return None
        target = await self._pinned(here, head.pin_version) if here.id == head.pin_endpoint else None  # else it is gone: claims see to that
        if target is None:
            message = f"version {head.pin_version} of the endpoint it began on is gone; resume it on the latest, or register that one again"
            assignment.turn.blocked = Mismatched(message, code="version_gone")
            return None
        assignment.endpoint = target
        assignment.turn.elsewhere = target.target.url != here.target.url
        return target.target.version if target.target.version != here.target.version else None

    async def _pinned(self, endpoint: Endpoint, version: str) -> Endpoint | None:
        if endpoint.target.version == version:
            return endpoint
        url = await self._directory.version_url(endpoint, version)
        if url is None:
            return None
        if url == endpoint.target.url:  # one address for all versions: whatever runs there now is asked, and says if it does not fit
            return endpoint
        return replace(endpoint, target=replace(endpoint.target, url=url, version=version))

    # ---- what comes back

    async def take(self, assignment: Assignment, turned: Turned) -> Answer:
        """Append an answer's operations, and say what the answer is after that."""
        turn = assignment.turn
        assert turn is not None, "only turns are answered with Turned"
        length = await self.record(assignment.key, assignment.epoch, assignment.started_at, turned, turn)
        return length if not isinstance(length, int) else after(turned, turn, length)

    async def found(self, key: TaskKey, task: LiveTask) -> Turn:
        """A turn as its answer by callback finds it, whoever sent it: with a log of all that its endpoint has not written since."""
        head = (await journal.heads(self._database, [key])).get(key)
        if head is None:
            return Turn(b"", 0, task.begun, task.cleanup)
        segments = (await journal.segments(self._database, [(head, head.known_len)])).get(key, [])
        since = split(segment.entries for segment in segments if segment.base >= head.known_len)
        own = next((n for n, entry in enumerate(reversed(since)) if rules.is_completion(entry)), len(since))
        return Turn(b"", head.log_len - own, task.begun, task.cleanup, since=head.continued)

    async def record(self, key: TaskKey, epoch: int, leased_at: datetime, turned: Turned, turn: Turn) -> int | Answer:
        """The length of the log once an answer's operations are in it, or what is answered instead."""
        ops = [op for op in turned.ops if not turn.pending or rules.name_of(op) not in turn.pending]
        base = turned.base if turned.base is not None else turn.base
        if not ops:
            return base if base <= turn.base else await self._length(key, turn.base)
        try:
            entries = self._journals.check(key, ops, leased_at, self._clock.now(), turn.since)
            return (await self._journals.append(key, epoch, base, entries)).length
        except OpRefused as refused:
            return Failed(refused.code, str(refused))
        except Problem as error:
            if error.code == "log_conflict":
                return await self._rest(key, epoch, leased_at, turn.since, base, ops, counted=turned.base is not None)
            if is_passing(error):
                return LocalFault(error.code, error.detail)
            return Failed(error.code, error.detail)

    async def reconsidered(self, key: TaskKey, wait: Suspended, base: int) -> Answer:
        """What a turn means that waits for something which is not pending. What is over has what it waits for; the rest nobody will settle.

        `base` is how long the log was as the turn was opened. What is left of the wait may still name what is unknown: ask once more then.
        """
        head = (await journal.heads(self._database, [key])).get(key)
        found = (await journal.segments(self._database, [(head, 0)])).get(key, []) if head is not None else []
        entries = split(segment.entries for segment in found)
        wake = rules.parse_wake(wait.wake)
        left = rules.left_of(wake, rules.outcomes(entries))
        if left is None:
            return Again(grew=len(entries) > base, memory=wait.memory)
        if left == wake:
            return Failed("unknown_wake", "the turn waits for operations that this task has not asked for")
        return replace(wait, wake=msgspec.json.encode(left))

    async def _length(self, key: TaskKey, known: int) -> int:
        """How long a log is, whatever an endpoint says it has appended in its turn."""
        head = (await journal.heads(self._database, [key])).get(key)
        return head.log_len if head is not None else known

    async def _rest(
        self, key: TaskKey, epoch: int, leased_at: datetime, since: datetime | None, base: int, ops: list[bytes], *, counted: bool
    ) -> int | Answer:
        """An answer whose first operations are in the log already, from an append whose reply was lost: the others follow.

        Where the endpoint has not `counted`, a reducer, any of them may be, from whatever it has appended in this turn.
        """
        head = (await journal.heads(self._database, [key])).get(key)
        found = (await journal.segments(self._database, [(head, 0)])).get(key, []) if head is not None else []
        known = split(segment.entries for segment in found)
        conflict = Failed("log_conflict", f"the turn's answer builds on {base} entries, and the log has {len(known)} others")
        if not counted:
            left = rules.without(ops, known[base:])
        elif base <= len(known) <= base + len(ops) and rules.repeated(known[base:], ops[: len(known) - base]):
            left = ops[len(known) - base :]
        else:
            return conflict
        try:
            entries = self._journals.check(key, left, leased_at, self._clock.now(), since)
            return (await self._journals.append(key, epoch, len(known), entries)).length
        except OpRefused as refused:
            return Failed(refused.code, str(refused))
        except Problem as error:
            return conflict if error.code == "log_conflict" else Failed(error.code, error.detail)


def after(turned: Turned, turn: Turn, length: int) -> Answer:
    """What an answer is, now that its log has this length."""
    then = turned.then
    if isinstance(then, Again):
        return replace(then, grew=length > turn.base)
    return then


def as_turn(body: bytes, now: int, limit: int) -> Turned | None:
    """A turn's answer that comes by callback; None for what is none."""
    answer = turned_answer(body, Reading(now, limit))
    return answer if isinstance(answer, Turned) else None


def pinned_answer(answer: Answer) -> Answer:
    """What an old version's address says that is not there any more: the version is gone, and the endpoint as it is now is not to blame."""
    if isinstance(answer, EndpointGone) or (isinstance(answer, EndpointBroken) and answer.code in _GONE):
        return Mismatched(f"the version it is pinned to does not answer any more: {answer.message}", code="version_gone")
    return answer


def _merge(opening: _Opening) -> Merge | None:
    head = opening.head
    waits = [wait.id for wait in opening.over if wait.kind != "step"]  # which may be asked to wait once more, by a clock that is behind
    if not opening.merged and not waits and opening.prefix is None:
        return None
    hashed_len = head.known_len if opening.prefix is not None else None
    return Merge(head.key, head.epoch, head.log_len, opening.merged, waits, hashed_len, opening.prefix)


def _log(length: int, start: int, prefix: bytes, head: bytes, entries: Sequence[bytes], hidden: int) -> bytes:
    more = b',"hidden":%d' % hidden if hidden else b""
    return b'"mode":"replay","log":{"len":%d,"from":%d,"prefix":"%b","head":"%b"%b,"entries":[%b]}' % (
        length, start, prefix.hex().encode(), head.hex().encode(), more, b",".join(entries),
    )  # fmt: skip


def _full(opening: _Opening) -> bytes:
    entries = split(segment.entries for segment in opening.segments) + opening.merged
    closed = frozenset(scope for segment in opening.segments for scope in segment.scopes or ())
    shown = visible(entries, closed)
    return _log(len(entries), 0, b"", rolled(b"", entries), shown, len(entries) - len(shown))


def _tail(opening: _Opening) -> bytes:
    """What the endpoint has not seen, and the hash of what it has."""
    head = opening.head
    known = [segment for segment in opening.segments if segment.base < head.known_len]
    prefix = rolled(head.hashed or b"", split(segment.entries for segment in known))
    if known:
        opening.prefix = prefix
    tail = split(segment.entries for segment in opening.segments if segment.base >= head.known_len) + opening.merged
    return _log(head.log_len + len(opening.merged), head.known_len, prefix, rolled(prefix, tail), tail, 0)


def _asked(head: Head, segments: Sequence[Segment]) -> frozenset[str]:
    """What an earlier try of this turn has asked for already."""
    since = split(segment.entries for segment in segments if segment.base >= head.known_len)
    return frozenset(rules.name_of(entry) for entry in since if rules.is_asked(entry))


def _state(opening: _Opening) -> bytes:
    """What was last returned, and what has settled since."""
    since = split(segment.entries for segment in opening.segments if segment.base >= opening.head.known_len)
    results = [entry for entry in since if not rules.is_asked(entry)] + opening.merged
    state = opening.head.memory if opening.head.memory is not None else b"null"
    return b'"mode":"state","state":%b,"results":[%b]' % (state, b",".join(results))
