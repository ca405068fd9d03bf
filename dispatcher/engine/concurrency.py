"""Groups of which only so many may be under way: which of them a task belongs to, and who has to go when there are too many.

A gate is one group of one rule. A task passes the gates of its chain one after the other, and keeps its place in each until it is over.
All chains follow one order (a workflow's own gates as declared, then shared limits by name), so nobody holds what another waits for while
waiting for what that one holds.

GROUP_ROUND_ROBIN lets them wait in the order they arrived. CANCEL_IN_PROGRESS keeps those that arrived last, under way or not.
CANCEL_NEWEST keeps those that arrived first, and leaves alone what has a place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from dispatcher.engine.definitions.flow import Concurrency, Strategy
from dispatcher.engine.digests import digest_id

_KEPT: Final = 20_000
_SHOWN: Final = 200  # characters of a key that are kept to be shown


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """One group: `rule` is what declares it, `key` which of its groups it is, `most` how many of it may be under way.

    `entry` is how it is stored beside a task, as JSON text. Two are told apart by `id`: as objects they are equal to themselves alone.
    """

    id: str
    rule: str
    name: str | None
    key: str
    strategy: Strategy
    most: int
    entry: str

    @property
    def preempts(self) -> bool:
        """Whether arriving at it may end somebody."""
        return self.strategy != "GROUP_ROUND_ROBIN"


@dataclass(frozen=True, slots=True)
class Member:
    """A task, or a run of a graph (then `node` is None), that has a place in a gate or stands in line. `leaving`: it is being cancelled."""

    run_id: str
    node: int | None
    arrived_at: datetime
    holds: bool
    leaving: bool


def rule_of(declared: Concurrency, workflow_id: int, task: str) -> str:
    """What tells the groups of one rule from those of others: the same through all versions of a workflow."""
    if declared.name is not None:
        return f"={declared.name}"
    return f"{workflow_id}:{task}:{declared.limit_strategy}:{declared.expression}"


def is_shared(rule: str) -> bool:
    """Whether a rule is that of a limit with a name, which workflows share."""
    return rule.startswith("=")


def declared_by(rule: str, strategy: Strategy) -> tuple[int, str]:
    """The workflow, by its id, and the expression of a rule that is not that of a shared limit. A task's name may have colons in it."""
    workflow_id, _, rest = rule.partition(":")
    return int(workflow_id), rest.partition(f":{strategy}:")[2]


def gate_id(rule: str, key: str) -> str:
    """The id of a gate within its tenant: as long for a long key as for a short one."""
    return digest_id(b"gate", f"{rule}\x00{key}")


@lru_cache(maxsize=_KEPT)
def gate(rule: str, name: str | None, key: str, strategy: Strategy, most: int) -> Gate:
    """The gate of a group. Those that are met again and again are made once."""
    id_ = gate_id(rule, key)
    entry = json.dumps([id_, rule, name, key[:_SHOWN], strategy, most], ensure_ascii=False)
    return Gate(id_, rule, name, key, strategy, most, entry)


def dismissed(strategy: Strategy, most: int, members: Iterable[Member]) -> list[Member]:
    """Who has to go so that no more than `most` are left, those who go already left out."""
    if strategy == "GROUP_ROUND_ROBIN":
        return []
    arrived = sorted(members, key=_arrival)
    if strategy == "CANCEL_IN_PROGRESS":
        staying = [member for member in arrived if not member.leaving]
        return staying[: max(len(staying) - most, 0)]
    return [member for member in arrived[most:] if not member.holds and not member.leaving]


def _arrival(member: Member) -> tuple[datetime, str, int]:
    return (member.arrived_at, member.run_id, member.node or 0)


def preempts(gates: Sequence[Gate]) -> bool:
    """Whether arriving at any of these gates may end somebody."""
    return any(gate.preempts for gate in gates)
