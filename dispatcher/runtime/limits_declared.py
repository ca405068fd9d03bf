"""What the groups of concurrency limits go by: what is declared now, and of shared limits what holds for all that declare them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from dispatcher.engine.concurrency import is_shared
from dispatcher.engine.definitions import STORED, Definition, parse_definition
from dispatcher.engine.definitions.flow import Strategy
from dispatcher.engine.flow import Plan
from dispatcher.engine.shared_limits import Disagreement, agreed, disagreements
from dispatcher.store import gate_limits
from dispatcher.store.database import Connection

Rules = Mapping[str, tuple[int | None, Strategy]]


@dataclass(frozen=True, slots=True)
class Declared:
    """What of shared limits is not declared the same by all. `news`: groups that are there have to follow, once it is committed."""

    disagreements: list[Disagreement]
    news: bool


async def disagreeing(conn: Connection, tenant_id: int) -> dict[str, Disagreement]:
    """Shared limits of a tenant that its workflows do not declare the same, by name."""
    return disagreements(definition for _, definition in await _declared(conn, tenant_id))


async def redeclare(conn: Connection, tenant_id: int, rules: Rules) -> Declared:
    """Let groups go by `rules`, and those of shared limits by what holds for all that declare them now. The tenant's row is held."""
    declared = await _declared(conn, tenant_id)
    found = disagreements(definition for _, definition in declared)
    plans = [plan for workflow_id, definition in declared if (plan := Plan.of(workflow_id, definition)) is not None]
    changed = {rule: said for rule, said in rules.items() if not is_shared(rule)} | _agreement(plans, found)
    return Declared(list(found.values()), bool(changed) and await gate_limits.declare(conn, tenant_id, changed))


def _agreement(plans: list[Plan], found: Mapping[str, Disagreement]) -> dict[str, tuple[int | None, Strategy]]:
    """What holds of each shared limit. Where any workflow lets its runs say the number, the others' is theirs to say too."""
    shared: dict[str, tuple[int | None, Strategy]] = {}
    for plan in plans:
        for rule, (most, strategy) in agreed(plan, found).rules().items():
            if is_shared(rule):
                said = shared.get(rule, (most, strategy))
                shared[rule] = (None if said[0] is None else most, strategy)
    return shared


async def _declared(conn: Connection, tenant_id: int) -> list[tuple[int, Definition]]:
    rows = await gate_limits.declared(conn, tenant_id)
    return [(row.workflow_id, parse_definition(json.loads(row.definition), STORED, static=False)) for row in rows]
