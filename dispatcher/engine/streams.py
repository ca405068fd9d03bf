"""What goes into a stream, and in which order: the pieces its runs put, and the marks around them.

A run's entries begin with `start` and close with `end`. When a task that has put something is tried again, `reset` says that what the
attempts before have put is void. What goes beyond the limits of an attempt is dropped, and `limit` says so once. Whoever appends
holds the stream's lock and knows the facts as they are under it, so nothing of a run ever stands behind its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["data", "start", "reset", "limit", "end"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What an attempt puts into a stream. `seq` is the sender's count: the same number of the same attempt is the same piece."""

    run_id: str
    node: int
    attempt: int
    name: str
    seq: int
    data: bytes
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream at its position. Marks have no name and no data."""

    position: int
    kind: Kind
    run_id: str
    node: int
    attempt: int
    name: str = ""
    seq: int = 0
    data: bytes = b""
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class TaskFact:
    """A task as it is: its latest attempt, and whether that is running."""

    epoch: int
    running: bool


@dataclass(frozen=True, slots=True)
class RunFact:
    """A run as it is: its final status, None while it lives, and its tasks by node."""

    run_id: str
    status: str | None
    tasks: Mapping[int, TaskFact]

    @property
    def started(self) -> bool:
        """Whether any attempt of it has begun."""
        return any(task.epoch > 0 for task in self.tasks.values())


@dataclass(slots=True)
class TaskState:
    """What the latest attempt of a task has put so far. `seq` is the highest number seen of it, `full` that it may put no more."""

    attempt: int
    chunks: int = 0
    bytes: int = 0
    seq: int = -1
    full: bool = False


@dataclass(slots=True)
class RunState:
    """Where a run that has started ends in the stream; no end while it lives."""

    end: int | None = None
    tasks: dict[int, TaskState] = field(default_factory=dict)


State = dict[str, RunState]
"""What is kept of a stream: its runs by id."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one attempt may put: so many pieces, and so many bytes in all."""

    chunks: int
    bytes: int


class Writer:
    """Appends to one stream; `state` and `last` are changed in place, `entries` is what is new."""

    def __init__(self, state: State, last: int, limits: Limits) -> None:
        self.state = state
        self.last = last
        self.entries: list[Entry] = []
        self._limits = limits

    def observe(self, facts: Iterable[RunFact], pieces: Sequence[Piece] = ()) -> None:
        """Add the marks these facts call for, and the pieces, in the order given. A piece of no running attempt is left out."""
        known = {fact.run_id: fact for fact in facts}
        for fact in known.values():
            self._begin(fact)
        for piece in pieces:
            run = known.get(piece.run_id)
            task = run.tasks.get(piece.node) if run is not None else None
            if task is not None and task.running and task.epoch == piece.attempt:
                self._put(piece)
        for fact in known.values():
            self._end(fact)

    def _begin(self, fact: RunFact) -> None:
        run = self.state.get(fact.run_id)
        over = fact.status is not None
        if run is None and (fact.started or over):
            self._mark("start", fact.run_id)
            self.state[fact.run_id] = run = RunState()
        if run is None:
            return
        if not over:
            run.end = None  # where it was set, the run was replayed and lives again
        for node, task in fact.tasks.items():
            before = run.tasks.get(node)
            if before is not None and task.epoch > before.attempt:
                self._mark("reset", fact.run_id, node, task.epoch)
                run.tasks[node] = TaskState(task.epoch)

    def _put(self, piece: Piece) -> None:
        run = self.state[piece.run_id]
        task = run.tasks.get(piece.node)
        if task is None:
            task = run.tasks[piece.node] = TaskState(piece.attempt)
        if task.full:
            return
        if task.chunks >= self._limits.chunks or task.bytes + len(piece.data) > self._limits.bytes:
            task.full = True
            self._mark("limit", piece.run_id, piece.node, piece.attempt)
            return
        task.chunks, task.bytes, task.seq = task.chunks + 1, task.bytes + len(piece.data), max(task.seq, piece.seq)
        self.last += 1
        of = (piece.run_id, piece.node, piece.attempt)
        self.entries.append(Entry(self.last, "data", *of, piece.name, piece.seq, piece.data, piece.encoding))

    def _end(self, fact: RunFact) -> None:
        run = self.state.get(fact.run_id)
        if fact.status is not None and run is not None and run.end is None:
            run.end = self._mark("end", fact.run_id)

    def _mark(self, kind: Kind, run_id: str, node: int = 0, attempt: int = 0) -> int:
        self.last += 1
        self.entries.append(Entry(self.last, kind, run_id, node, attempt, seq=self.last))
        return self.last


def is_valid(entry: Entry, state: State) -> bool:
    """Whether an entry still counts: it is of no attempt that was tried again, and no mark a replay has overtaken."""
    run = state.get(entry.run_id)
    if run is None or entry.kind == "start":
        return True
    if entry.kind == "end":
        return entry.position == run.end
    task = run.tasks.get(entry.node)
    return task is None or entry.attempt >= task.attempt


def is_over(state: State, run_ids: Iterable[str]) -> bool:
    """Whether all of these runs have ended in the stream."""
    return all((run := state.get(run_id)) is not None and run.end is not None for run_id in run_ids)


def follow(state: State, entry: Entry) -> None:
    """Bring a reader's state up to an entry it has just been shown."""
    run = state.setdefault(entry.run_id, RunState())
    if entry.kind == "end":
        run.end = entry.position
    elif entry.kind != "start":
        run.end = None
        task = run.tasks.get(entry.node)
        if task is None or task.attempt < entry.attempt:
            run.tasks[entry.node] = TaskState(entry.attempt)
