"""What can be asked of durable tasks from outside: their journals, messages to them, what they saved, going on after a block, going back.

And their side of the conversation: appends and turns that are answered by callback, alone or in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from dispatcher import ids
from dispatcher.clock import Clock
from dispatcher.engine import branches
from dispatcher.engine import journal as rules
from dispatcher.engine.journal import OpRefused
from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.errors import problem
from dispatcher.runtime.capacity import Capacity
from dispatcher.runtime.directory import Directory, Workflow
from dispatcher.runtime.journals import Journals, Restart
from dispatcher.runtime.replays import Replays
from dispatcher.runtime.settlement import Settlement
from dispatcher.runtime.tokens import AttemptToken, TokenMaker
from dispatcher.runtime.turns import Turns
from dispatcher.settings import Settings
from dispatcher.store import journal, removals, runs, waits
from dispatcher.store.database import Database
from dispatcher.store.journal import Checkpoint, Head, Kept, OfRun, Seed, Seeded
from dispatcher.store.outcomes import TaskKey
from dispatcher.store.replays import Revived

_SKEW = timedelta(hours=1)
_STALE_TRIES = 10
_Lost = list[tuple[bytes, rules.Child]]


@dataclass(slots=True)
class Durable:
    """Handles requests about durable tasks."""

    database: Database
    directory: Directory
    capacity: Capacity
    journals: Journals
    turns: Turns
    settlement: Settlement
    tokens: TokenMaker
    replays: Replays
    clock: Clock
    settings: Settings
    on_waits: Callable[[], None] = lambda: None
    on_ready: Callable[[], None] = lambda: None

    # ---- what is recorded

    async def logs(self, tenant_id: int, run_id: str) -> list[Kept]:
        """The logs of a run's durable tasks, by node and generation. Raises Problem not_found or not_durable."""
        await self._exists(tenant_id, run_id)
        found = await journal.logs(self.database, tenant_id, run_id, self._since(run_id))
        if not found and not await journal.is_durable(self.database, tenant_id, run_id, self._since(run_id)):
            raise problem("not_durable", f"run {run_id} has no durable task")
        return found

    async def checkpoint(self, tenant_id: int, run_id: str, node: int) -> Checkpoint:
        """What a task last saved. Raises Problem not_found."""
        found = await journal.saved(self.database, tenant_id, run_id, node, self._since(run_id)) if ids.created_at(run_id) else None
        if found is None:
            await self._exists(tenant_id, run_id)
            raise problem("not_found", f"run {run_id} has saved nothing")
        return found

    def _since(self, run_id: str) -> datetime:
        created = ids.created_at(run_id)
        return created - _SKEW if created is not None else self.clock.now()

    async def _exists(self, tenant_id: int, run_id: str) -> None:
        if not run_id.startswith("run_") or not await runs.exists(self.database, tenant_id, run_id):
            raise problem("not_found", f"there is no run {run_id[:100]!r}")

    # ---- what it is told

    async def send(self, tenant_id: int, run_id: str, node: int, data: bytes) -> None:
        """Put a message into a task's inbox, behind those there are. Raises Problem not_found, not_durable, inbox_closed."""
        try:
            check(data, max_bytes=self.settings.inbox_message_bytes)
        except JsonRefused as refused:
            code = "body_too_large" if refused.code == "too_large" else refused.code
            raise problem(code, f"data: {refused.message}") from None
        if await waits.send(self.database, (tenant_id, run_id, node), data, self.clock.now()):
            self.on_waits()
            return
        await self._exists(tenant_id, run_id)
        if not await journal.is_durable(self.database, tenant_id, run_id, self._since(run_id)):
            raise problem("not_durable", f"run {run_id} has no durable task")
        raise problem("inbox_closed", f"run {run_id} takes no more messages")

    async def resume(self, tenant_id: int, run_id: str) -> None:
        """Let what is blocked in a run try again, on the latest version. Raises Problem not_found or not_blocked."""
        resumed = await waits.unblock(self.database, tenant_id, None, run_id, self.clock.now())
        if not resumed:
            await self._exists(tenant_id, run_id)
            raise problem("not_blocked", f"nothing of run {run_id} is blocked")
        self._ready(resumed)

    async def resume_workflows(self, tenant_id: int, workflows: list[int]) -> None:
        """A version that may fit has been registered: what is blocked in these workflows tries again."""
        self._ready(await waits.unblock(self.database, tenant_id, workflows, None, self.clock.now()))

    # ---- going back

    async def reset(self, tenant_id: int, run_id: str, node_id: str | None, task: str | None) -> None:
        """Let a task go on from a node of its log, as a branch that shares what came before; without a node from the log's end.
        One that was cancelled goes on at the latest from there, whatever cleaned up after it has recorded.

        A run that is over is live again under its own id. Raises Problem not_found, not_durable, unknown_node, turn_running,
        or unknown_workflow where that was removed.
        """
        created = ids.created_at(run_id)
        run = await journal.of_run(self.database, tenant_id, run_id, self._since(run_id)) if created is not None else None
        if run is None or created is None:
            raise problem("not_found", f"there is no run {run_id[:100]!r}")
        if not run.live and await removals.among(self.database, tenant_id, [run.workflow_id]):
            raise problem("unknown_workflow", f"the workflow of run {run_id} was removed; register it again")
        workflow = await self.directory.workflow_version(tenant_id, run.workflow_id, run.workflow_version)
        node = self.node(workflow, task)
        if workflow.definition.tasks[node].mode == "state":
            raise problem("invalid_value", "a task in state mode goes on from its state; replay the run", field="journal_node")
        if not run.live and workflow.definition.is_graph:
            raise problem("invalid_value", "a graph that is over is replayed by task: POST …/replay", field="task")
        key = (tenant_id, run_id, node)
        head = (await journal.heads(self.database, [key])).get(key)  # before its log is: a turn that is added meanwhile is not cut off
        kept = [log for log in await self.logs(tenant_id, run_id) if log.node == node]
        log = _current(kept, head)
        branch = branches.branch(entries_of(log) if log is not None else [], node_id)
        if branch is None:
            raise problem("unknown_node", f"the journal of {run_id} has no node {node_id!r}")
        generation = max([log.generation for log in kept] + ([head.generation] if head is not None else []), default=0) + 1
        seed, lost = await self._seed(key, generation, branch, log, created)
        for _ in range(_STALE_TRIES):
            restart = await self.journals.restart(key, lost)
            if await self._begin_anew(_with_children(seed, lost, restart), restart, run, head):
                return
            await self.journals.refresh()
        raise problem("overloaded", "the registry is changing faster than children can be matched to it; repeat this")

    async def replays_from_log(self, tenant_id: int, run_id: str) -> bool:
        """Whether replaying a run is going on from its log: it is over, and its only task is a durable one that has one."""
        run = await journal.of_run(self.database, tenant_id, run_id, self._since(run_id)) if run_id.startswith("run_") else None
        if run is None or run.live:
            return False
        definition = (await self.directory.workflow_version(tenant_id, run.workflow_id, run.workflow_version)).definition
        return not definition.is_graph and definition.tasks[0].durable and definition.tasks[0].mode == "replay"

    async def _seed(
        self, key: TaskKey, generation: int, branch: branches.Branch, log: Kept | None, created: datetime
    ) -> tuple[Seed, _Lost]:
        """What stays, with what it still waits for, and the children whose runs were cancelled: nothing will end these waits any more."""
        waits_left: list[rules.Wait] = []
        children: dict[str, str] = {}
        dropped: set[str] = set()
        lost: _Lost = []
        started = {name: run for op in branch.pending if (name := rules.name_of(op)) and (run := branches.run_of(op)) is not None}
        known = await journal.uncancelled(self.database, key[0], list(started.values()), created) if started else set[str]()
        closed = frozenset(branches.closed_by(branch.entries))
        for op in branch.pending:
            name = rules.name_of(op)
            asked = self._asked(op, created, log)
            gone = asked is not None and bool(asked.children) and started.get(name) not in known
            if asked is None or (gone and not rules.visible([op], closed)):  # in a scope that is closed nobody waits for it
                dropped.add(name)
                continue
            if gone:
                lost.append((op, asked.children[0]))
            elif asked.children:
                children[name] = started[name]
            waits_left += asked.waits
        entries = [entry for entry in branch.entries if rules.name_of(entry) not in dropped]
        since, given = (log.since, log.input) if log is not None else (None, None)
        saved, inbox_closed = branches.saved_by(entries), branches.closes_inbox(entries)
        return Seed(key, generation, entries, sorted(closed), saved, since, waits_left, children, given, inbox_closed), lost

    def _asked(self, op: bytes, created: datetime, log: Kept | None) -> rules.Entries | None:
        """What an operation asks for, read as when it was recorded: by what it says itself, or at least by now."""
        now = self.clock.now()
        began = log.since if log is not None and log.input is not None and log.since is not None else created
        for at in (branches.moment_of(op, created, now), now):
            with suppress(OpRefused):
                return rules.parse_ops([op], self.journals.bounds, rules.Moments(began, created, at))
        return None

    async def _begin_anew(self, seed: Seed, restart: Restart, run: OfRun, head: Head | None) -> bool:
        """Write it, if the task still stands where its log was read; one that is over first becomes live again.

        False where the registry has moved on since the children that begin again were prepared: nothing is written.
        """
        now = self.clock.now()
        tenant_id, run_id, node = seed.key
        if head is not None and head.cleanup:
            raise problem("turn_running", f"{ids.task_id(run_id, node)} is being cancelled")
        with suppress(_Stale):
            async with self.journals.restarting() as write, self.database.transaction() as conn:
                revived = [] if run.live else await self.replays.revive(conn, tenant_id, [run_id], now, ended_at=run.finished_at)
                if revived:
                    head = (await journal.heads(conn, [seed.key])).get(seed.key)
                seeded = await journal.seed(conn, seed, head, now) if head is not None and (run.live or revived) else []
                if not seeded:
                    name = ids.task_id(run_id, node)
                    raise problem("turn_running", f"{name} is at work, or has just been begun again")
                if not await write(conn, restart):
                    raise _Stale
            self._announce(tenant_id, revived, seeded)
            return True
        return False

    def _announce(self, tenant_id: int, revived: list[Revived], seeded: list[Seeded]) -> None:
        if revived:
            self.replays.announce(tenant_id, revived)
        self.capacity.backlog.update((row.tenant_id, row.workflow_id, row.requirement) for row in seeded)
        self.on_ready()
        self.on_waits()

    def node(self, workflow: Workflow, task: str | None) -> int:
        """The durable task of a workflow with this name, or its only one. Raises Problem not_durable or invalid_value."""
        durable = {t.name or workflow.definition.name: n for n, t in enumerate(workflow.definition.tasks) if t.durable}
        if not durable:
            raise problem("not_durable", f"workflow {workflow.definition.name!r} has no durable task")
        if task is None and len(durable) == 1:
            return next(iter(durable.values()))
        if task not in durable:
            raise problem("invalid_value", f"task: name one of {', '.join(durable)}", field="task")
        return durable[task]

    async def node_of(self, tenant_id: int, run_id: str, task: str | None) -> int:
        """The same of a run."""
        run = await journal.of_run(self.database, tenant_id, run_id, self._since(run_id)) if run_id.startswith("run_") else None
        if run is None:
            raise problem("not_found", f"there is no run {run_id[:100]!r}")
        return self.node(await self.directory.workflow_version(tenant_id, run.workflow_id, run.workflow_version), task)

    async def task_names(self, tenant_id: int, run_id: str) -> list[str]:
        """The names of a run's tasks by node."""
        run = await journal.of_run(self.database, tenant_id, run_id, self._since(run_id))
        if run is None:
            return []
        workflow = await self.directory.workflow_version(tenant_id, run.workflow_id, run.workflow_version)
        return [task.name or workflow.definition.name for task in workflow.definition.tasks]

    def _ready(self, resumed: list[waits.Resumed]) -> None:
        if resumed:
            self.capacity.backlog.update((row.tenant_id, row.workflow_id, row.requirement) for row in resumed)
            self.on_ready()

    # ---- an attempt's side

    def speaker(self, token: str) -> AttemptToken:
        """Whose token it is. Raises Problem unauthorized."""
        found = self.tokens.read(token, int(self.clock.now().timestamp()))
        if found is None:
            raise problem("unauthorized", "the attempt token is forged, damaged or expired")
        return found

    async def log(self, token: str, first: int, last: int | None) -> dict[str, Any]:
        """Entries of an attempt's log, for an endpoint that has lost what it knew. Raises Problem."""
        speaker = self.speaker(token)
        key = (speaker.tenant_id, speaker.run_id, speaker.node)
        head = (await journal.heads(self.database, [key])).get(key)
        if head is None:
            raise problem("task_ended", f"{ids.task_id(*key[1:])} is over")
        if head.epoch != speaker.epoch or head.state != "running":
            raise problem("stale_attempt", f"attempt {speaker.epoch} of {ids.task_id(*key[1:])} no longer owns the task")
        found = (await journal.segments(self.database, [(head, 0)])).get(key, [])
        entries = rules.split(segment.entries for segment in found)
        end = len(entries) if last is None else last
        head_hash = rules.rolled(b"", entries).hex()
        return {"from": first, "to": min(end, len(entries)), "len": len(entries), "head": head_hash, "entries": entries[first:end]}


class _Stale(Exception):  # noqa: N818 - it says what happened
    """The registry has moved on: nothing of the transaction counts."""


def _with_children(seed: Seed, lost: _Lost, restart: Restart) -> Seed:
    """A seed whose lost children are other runs, where they stand. Those that cannot be started are taken out, and asked for again."""
    names = {child.id for _, child in lost}
    gone = names - restart.runs.keys()
    left = [(name, entry) for entry in seed.entries if (name := rules.name_of(entry)) not in gone]
    return replace(
        seed,
        entries=[restart.entries.get(name, entry) for name, entry in left],
        waits=[wait for wait in seed.waits if wait.id not in gone],
        children=seed.children | restart.runs,
    )


def entries_of(kept: Kept) -> list[bytes]:
    """A log's entries, one by one."""
    return rules.split([kept.entries]) if kept.entries else []


def _current(kept: Sequence[Kept], head: Head | None) -> Kept | None:
    """The log a task goes by, of all it has had; of one that is over the last. None where it has begun another and recorded nothing."""
    if head is not None:
        return next((log for log in kept if log.live and log.generation == head.generation), None)
    return kept[-1] if kept else None
