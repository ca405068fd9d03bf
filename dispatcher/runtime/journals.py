"""Appending to logs of durable tasks, in shared commits, together with the runs the operations ask for.

An append is compared on the attempt, its state and the length of the log in the statement that makes it. What is refused is looked at once
more to say why: somebody else's turn, a repetition, a limit. Nothing of a refused append is stored.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from dispatcher import ids
from dispatcher.clock import Clock
from dispatcher.engine.definitions import DefinitionError
from dispatcher.engine.journal import (
    Bounds,
    Child,
    Entries,
    Moments,
    OpRefused,
    name_of,
    parse_ops,
    repeated,
    split,
    with_runs,
    without_run,
)
from dispatcher.errors import Problem, problem
from dispatcher.runtime.group_commit import GroupCommit, QueueFull
from dispatcher.runtime.intake import Intake, RunRequest, Submission
from dispatcher.runtime.work import Assignment
from dispatcher.settings import Settings
from dispatcher.store import children, journal, tasks
from dispatcher.store.database import Connection, Database, DatabaseUnavailable, is_transient
from dispatcher.store.journal import Appended, ChildRun, NewEntries
from dispatcher.store.outcomes import TaskKey

_SET = 500
_BOUND = 100_000
_WEIGHT_BYTES = 16_384
_STALE_TRIES = 10
_BEYOND = 1 << 30  # entries no log ever has


@dataclass(slots=True)
class Answer:
    """What became of an append: how long the log is, which runs its children are. `task` is None where it was there already."""

    length: int
    children: dict[str, str]
    task: Appended | None


@dataclass(slots=True)
class _Item:
    """An append on its way."""

    key: TaskKey
    epoch: int
    base: int
    entries: Entries
    known: dict[str, ChildRun] = field(default_factory=dict)
    sticky_to: str | None = None
    children: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restart:
    """Children that begin again in place of runs that were cancelled: their entries and their runs by operation, and what writes these."""

    entries: dict[str, bytes]
    runs: dict[str, str]
    submissions: list[Submission]


@dataclass(frozen=True, slots=True)
class Begun:
    """An append that will be written, whether or not anybody waits for it."""

    item: _Item
    written: asyncio.Future[Appended | None]


class Journals:
    """The way into logs."""

    def __init__(self, database: Database, intake: Callable[[], Intake], clock: Clock, settings: Settings) -> None:
        self._database = database
        self._intake_of = intake
        self._clock = clock
        self._settings = settings
        self.bounds = Bounds(settings.turn_ops, settings.journal_entries, settings.journal_bytes)
        self._commits: GroupCommit[_Item, Appended | None] = GroupCommit(self._write, most=_SET, bound=_BOUND, weigh=_weight)

    @property
    def _intake(self) -> Intake:
        """Made after this, because what it takes in is delivered, and what is delivered is recorded here."""
        return self._intake_of()

    async def drain(self) -> None:
        """Wait for what has been submitted."""
        await self._commits.drain()

    def check(self, key: TaskKey, ops: Sequence[bytes], leased_at: datetime, now: datetime, since: datetime | None) -> Entries:
        """Operations that may be appended in a turn leased then. Their log began with its run, or at `since`. Raises OpRefused."""
        began = (since or ids.created_at(key[1])) if b'"since"' in b"".join(ops) else None
        return parse_ops(ops, self.bounds, Moments(began or leased_at, min(leased_at, now), now))

    async def append(self, key: TaskKey, epoch: int, base: int, entries: Entries) -> Answer:
        """Append; answers once it is durable. Raises Problem for all that is refused."""
        item = self._item(key, epoch, base, entries)
        named = [child.key for child in entries.children if child.key is not None and child.key != child.id]
        if named:
            item.known = await journal.children(self._database, key, named, ids.created_at(key[1]) or self._clock.now())
        if any(child.sticky or child.labels for child in entries.children):
            item.sticky_to = await self._place(item)
        return await self.landed(self._submit(item))

    def begin(self, key: TaskKey, epoch: int, base: int, entries: Entries) -> Begun | None:
        """Put an append on its way; `landed` says what came of it. None where there are children, which may have to be looked for first."""
        return None if entries.children else self._submit(self._item(key, epoch, base, entries))

    def _item(self, key: TaskKey, epoch: int, base: int, entries: Entries) -> _Item:
        """Beyond every log one base is as wrong as any other, and may be larger than the store can say."""
        return _Item(key, epoch, min(base, _BEYOND), entries)

    def _submit(self, item: _Item) -> Begun:
        try:
            return Begun(item, self._commits.submit(item))
        except QueueFull:
            raise problem("overloaded", "more is being recorded than can be written; repeat this a little later") from None

    async def landed(self, begun: Begun) -> Answer:
        """What became of an append, known once it is durable. Raises Problem for all that is refused."""
        try:
            landed = await begun.written
        except Exception as error:
            if not (isinstance(error, DatabaseUnavailable) or is_transient(error)):
                raise
            detail = "the database did not confirm the append; repeat it: what landed is recognised"
            raise problem("database_unavailable", detail) from error
        if landed is not None:
            return Answer(landed.log_len, begun.item.children, landed)
        return await self._refused(begun.item)

    async def _place(self, item: _Item) -> str | None:
        """Where sticky children begin. Others are let know which queues to look for, of what is asked of labels."""
        requests = [_request(item, child) for child in item.entries.children if child.sticky or child.labels]
        await self._intake.find_places(requests)
        return next((request.sticky_to for request in requests if request.sticky), None)

    # ---- children that begin again

    async def restart(self, key: TaskKey, ops: Sequence[tuple[bytes, Child]]) -> Restart:
        """New runs for children of a log that goes on, as they were asked for; those that cannot be started any more are left out."""
        asked = Entries(raw=tuple(without_run(raw) for raw, _ in ops), children=tuple(child for _, child in ops))
        item = self._item(key, 0, 0, asked)
        if any(child.sticky or child.labels for child in asked.children):
            item.sticky_to = await self._place(item)
        row, submissions = self._prepare(item)
        entries = {name: raw for raw in row.entries.raw if (name := name_of(raw)) in row.children}
        return Restart(entries, row.children, submissions)

    @asynccontextmanager
    async def restarting(self) -> AsyncIterator[Callable[[Connection, Restart], Awaitable[bool]]]:
        """What writes a restart in the caller's transaction, to be left once that is committed: only then the runs begin.

        It answers whether the registry was as it was prepared for; otherwise roll back, and prepare it again.
        """
        written: list[tuple[Restart, list[Assignment]]] = []

        async def write(conn: Connection, restart: Restart) -> bool:
            assignments = await self._intake.write_with(conn, restart.submissions) if restart.submissions else []
            if assignments is not None:
                written.append((restart, assignments))
            return assignments is not None

        try:
            yield write
        except BaseException:
            self._intake.forget([assignment for _, assignments in written for assignment in assignments])
            raise
        for restart, assignments in written:
            await self._intake.begin(restart.submissions, assignments)

    async def refresh(self) -> None:
        """Read the registry again, which has moved on."""
        await self._intake.refresh()

    # ---- writing

    async def _write(self, items: Sequence[_Item]) -> list[Appended | None]:
        """In waves, because one statement appends once to a log."""
        found: list[Appended | None] = [None] * len(items)
        waves: list[dict[TaskKey, int]] = []
        for i, item in enumerate(items):
            wave = next((w for w in waves if item.key not in w), None)
            if wave is None:
                waves.append(wave := {})
            wave[item.key] = i
        for wave in waves:
            chosen = [items[i] for i in wave.values()]
            landed = await (self._with_children(chosen) if any(item.entries.children for item in chosen) else self._alone(chosen))
            for key, i in wave.items():
                found[i] = landed.get(key)
        return found

    async def _alone(self, items: Sequence[_Item]) -> dict[TaskKey, Appended]:
        rows = [NewEntries(item.key, item.epoch, item.base, item.entries, {}, {}) for item in items]
        return await journal.append(self._database, rows, self._clock.now(), self.bounds.entries, self.bounds.log_bytes)

    async def _with_children(self, items: Sequence[_Item]) -> dict[TaskKey, Appended]:
        """Appends and the runs they ask for in one commit: what is in the log has been started, and nothing else has."""
        landed = await self._simply(items)
        left = [item for item in items if item.key not in landed]
        return landed | await self._wholly(left) if left else landed

    async def _simply(self, items: Sequence[_Item]) -> dict[TaskKey, Appended]:
        """By one statement, where that writes all that is asked for. What has not landed may be refused, or is matched once more."""
        prepared = [(item, *self._prepare(item)) for item in items]
        simple = [(item, row, some) for item, row, some in prepared if children.is_simple(row, [s.runs[0] for s in some])]
        if not simple:
            return {}
        rows, runs = [row for _, row, _ in simple], [[s.runs[0] for s in some] for _, _, some in simple]
        submissions, now = [s for _, _, some in simple for s in some], self._clock.now()
        landed: dict[TaskKey, Appended] = {}

        async def write(dispatcher_id: int) -> set[str]:
            landed.update(await children.begin(self._database, rows, runs, dispatcher_id, now, self.bounds.entries, self.bounds.log_bytes))
            return {run.id for row, some in zip(rows, runs, strict=True) if row.key in landed for run in some}

        assignments = await self._intake.write_along(submissions, now, write)
        await self._intake.begin(submissions, assignments)
        for item, row, _ in simple:
            item.children = row.children
        return landed

    async def _wholly(self, items: Sequence[_Item]) -> dict[TaskKey, Appended]:
        """In one transaction, whatever they ask for."""
        for _ in range(_STALE_TRIES):
            prepared = [self._prepare(item) for item in items]
            assignments: list[Assignment] | None = []
            try:
                async with self._database.transaction(lane="settle") as conn:
                    rows = [row for row, _ in prepared]
                    landed = await journal.append(conn, rows, self._clock.now(), self.bounds.entries, self.bounds.log_bytes)
                    runs = [s for row, submissions in prepared if row.key in landed for s in submissions]
                    assignments = await self._intake.write_with(conn, runs) if runs else []
                    if assignments is None:
                        raise _Stale
            except _Stale:
                await self._intake.refresh()
                continue
            except BaseException:
                self._intake.forget(assignments or [])
                raise
            await self._intake.begin(runs, assignments)
            for item, (row, _) in zip(items, prepared, strict=True):
                item.children = row.children
            return landed
        raise problem("overloaded", "the registry is changing faster than children can be matched to it; repeat this")

    def _prepare(self, item: _Item) -> tuple[NewEntries, list[Submission]]:
        """The row of an append, and the runs to write with it. A child that cannot be started fails at once, in its parent's log."""
        row = NewEntries(item.key, item.epoch, item.base, item.entries, {}, {})
        submissions = []
        for child in item.entries.children:
            known = item.known.get(child.key or "")
            if known is not None:
                row.children[child.id] = known.id
                row.again.add(child.id)  # it may be over, or end before this can be seen
                continue
            made = self._made(item, child)
            if isinstance(made, Problem):
                row.given[child.id] = ("error", json.dumps({"code": made.code, "message": made.detail}).encode())
            else:
                row.children[child.id] = made.runs[0].id
                if child.key is not None:  # the same key again in this append is the same child
                    item.known.setdefault(child.key, ChildRun(made.runs[0].id, child.key, over=False))
                submissions.append(made)
        if row.children:
            row.entries = with_runs(item.entries, row.children)
        item.known = {name: run for name, run in item.known.items() if run.id not in {s.runs[0].id for s in submissions}}
        return row, submissions

    def _made(self, item: _Item, child: Child) -> Submission | Problem:
        try:
            return self._intake.prepare(_request(item, child))
        except DefinitionError as error:
            return problem("invalid_value", str(error))

    async def _refused(self, item: _Item) -> Answer:
        """Why an append did not land. One that is there already has landed before."""
        key, length = item.key, item.base + len(item.entries)
        head = (await journal.heads(self._database, [key])).get(key)
        name = ids.task_id(key[1], key[2])
        if head is None and await tasks.load_one(self._database, key) is not None:
            raise problem("not_durable", f"{name} is no durable task: it has no log")
        if head is None or (head.state == "settled" and head.epoch == item.epoch):
            raise problem("task_ended", f"{name} is over")
        if head.epoch != item.epoch or head.state != "running":
            raise problem("stale_attempt", f"attempt {item.epoch} of {name} no longer owns the task")
        if head.log_len != item.base:
            found = await journal.segments(self._database, [(head, 0)])
            known = split(segment.entries for segment in found.get(key, []))[item.base :]
            if item.base <= head.log_len and repeated(known, item.entries.offered):
                return Answer(head.log_len, await self._children_of(item), None)
            entries = [json.loads(entry) for entry in known]
            raise problem("log_conflict", f"the log of {name} has {head.log_len} entries", len=head.log_len, entries=entries)
        if length > self.bounds.entries:
            raise problem("journal_too_long", f"the log of {name} would have {length:,} entries; at most {self.bounds.entries:,}")
        if head.log_bytes + len(item.entries.text) > self.bounds.log_bytes:
            raise problem("journal_too_large", f"the log of {name} would be larger than {self.bounds.log_bytes:,} bytes")
        if head.cleanup and item.entries.asks:
            raise problem("invalid_op", "a task that is being cancelled may record what it does, and ask for nothing")
        closed = await self._closed(item)
        if closed:
            raise problem("scope_closed", f"the scope {closed!r} is closed")
        raise problem("invalid_op", "one of these operations is pending already, or was a step: each occurrence has an id of its own")

    async def _closed(self, item: _Item) -> str | None:
        if not item.entries.parents:
            return None
        head = (await journal.heads(self._database, [item.key])).get(item.key)
        found = (await journal.segments(self._database, [(head, 0)])).get(item.key, []) if head is not None else []
        closed = {scope for segment in found for scope in segment.scopes or ()}
        return next((scope for scope in item.entries.parents if scope in closed), None)

    async def _children_of(self, item: _Item) -> dict[str, str]:
        names = {child.key or child.id: child.id for child in item.entries.children}
        if not names:
            return {}
        found = await journal.children(self._database, item.key, list(names), ids.created_at(item.key[1]) or self._clock.now())
        return {names[name]: run.id for name, run in found.items()}


class _Stale(Exception):  # noqa: N818 - it says what happened
    """The registry has moved on: nothing of the transaction counts."""


def refusal(error: OpRefused) -> Problem:
    """Operations that cannot be recorded, as a caller is told."""
    return problem(error.code, str(error))


def is_passing(error: Problem) -> bool:
    """Whether an append may be repeated as it is."""
    return error.code in ("overloaded", "database_unavailable")


def _weight(item: _Item) -> int:
    entries = item.entries
    return 1 + len(entries.waits) + sum(map(len, entries.raw)) // _WEIGHT_BYTES


def _request(item: _Item, child: Child) -> RunRequest:
    parent = item.key
    return RunRequest(
        tenant_id=parent[0],
        workflow=child.workflow,
        input=child.input,
        metadata=child.metadata.decode() if child.metadata is not None else None,
        priority=child.priority,
        parent_run_id=parent[1],
        trigger="child",
        parent_node=parent[2],
        parent_wait=child.key or child.id,
        on_its_own=child.abandon,
        labels=child.labels,
        sticky=child.sticky,
        sticky_to=item.sticky_to if child.sticky else None,
    )
