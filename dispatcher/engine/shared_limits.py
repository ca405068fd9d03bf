"""Limits with a name, which workflows share, where these do not declare the same.

Within one endpoint that is refused. Between endpoints it is not: each is deployed by itself, and a limit that is to change is declared in
two ways until the last of them is. Meanwhile the lowest number holds for all, and the mildest strategy, whatever was registered first or
runs first: no declaration is exceeded, and nobody is cancelled for what another workflow says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dispatcher.engine.definitions.flow import Concurrency, Strategy
from dispatcher.engine.definitions.workflows import Definition
from dispatcher.engine.flow import Plan, Ruled

MILDEST: Final[tuple[Strategy, ...]] = ("GROUP_ROUND_ROBIN", "CANCEL_NEWEST", "CANCEL_IN_PROGRESS")


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A limit that is declared in several ways: by which workflow how, and what holds. `most` is None where no declaration is a number."""

    name: str
    declared: tuple[tuple[str, Concurrency], ...]
    most: int | None
    strategy: Strategy

    @property
    def message(self) -> str:
        """What is wrong, and what holds until it is mended."""
        said = "; ".join(f"{workflow!r} has it as {one.limit_strategy} with max_runs {one.max_runs}" for workflow, one in self.declared)
        holds = f"max_runs {self.most} and {self.strategy} hold" if self.most is not None else f"{self.strategy} holds"
        unlike = f"the concurrency limit {self.name!r} is shared and declared in different ways: {said}"
        return f"{unlike}. Until all declare the same, {holds} for all."


def disagreements(definitions: Iterable[Definition]) -> dict[str, Disagreement]:
    """Shared limits that these workflows do not declare the same, by name."""
    by_name: dict[str, list[tuple[str, Concurrency]]] = {}
    for definition in sorted(definitions, key=lambda definition: definition.name):
        for one in (*definition.concurrency, *(one for task in definition.tasks for one in task.concurrency)):
            if one.name is not None:
                by_name.setdefault(one.name, []).append((definition.name, one))
    return {name: _disagreement(name, said) for name, said in by_name.items() if len({_way(one) for _, one in said}) > 1}


def _way(one: Concurrency) -> tuple[Strategy, int | str]:
    return (one.limit_strategy, one.max_runs)


def _disagreement(name: str, said: Sequence[tuple[str, Concurrency]]) -> Disagreement:
    numbers = [one.max_runs for _, one in said if isinstance(one.max_runs, int)]
    strategy = min((one.limit_strategy for _, one in said), key=MILDEST.index)
    return Disagreement(name, tuple(dict.fromkeys(said)), min(numbers, default=None), strategy)


def agreed(plan: Plan, found: Mapping[str, Disagreement]) -> Plan:
    """What a workflow declares, with what holds for all in the place of what it says of shared limits."""
    run = _agreed(plan.run, found)
    return Plan(run, tuple((_agreed(own, found), limits) for own, limits in plan.tasks))


def _agreed(ruled: Sequence[Ruled], found: Mapping[str, Disagreement]) -> tuple[Ruled, ...]:
    return tuple((rule, _holding(one, found)) for rule, one in ruled)


def _holding(one: Concurrency, found: Mapping[str, Disagreement]) -> Concurrency:
    disagreement = found.get(one.name) if one.name is not None else None
    if disagreement is None:
        return one
    number = one.max_runs if disagreement.most is None or isinstance(one.max_runs, str) else disagreement.most
    return replace(one, max_runs=number, limit_strategy=disagreement.strategy)
