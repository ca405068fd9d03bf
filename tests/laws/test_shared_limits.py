"""Limits that are shared and not declared alike: what holds does not depend on who comes first, and exceeds nobody's word."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.definitions import STORED, Definition, parse_definition
from dispatcher.engine.flow import Plan
from dispatcher.engine.shared_limits import MILDEST, agreed, disagreements


def declaring(name: str, *limits: dict[str, Any]) -> Definition:
    return parse_definition({"name": name, "concurrency": list(limits)}, STORED, static=False)


def shared(most: int | str, strategy: str = "GROUP_ROUND_ROBIN", name: str = "gpu") -> dict[str, Any]:
    return {"name": name, "max_runs": most, "limit_strategy": strategy}


def test_the_same_everywhere_and_what_is_not_shared_is_no_disagreement() -> None:
    mine, yours = {"expression": "input.a", "max_runs": 1}, {"expression": "input.a", "max_runs": 2}
    assert disagreements([declaring("a", shared(2), mine), declaring("b", shared(2), yours)]) == {}
    grouped = shared(2) | {"expression": "input.a"}  # other groups of the same limit
    assert disagreements([declaring("a", shared(2)), declaring("b", grouped)]) == {}


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(MILDEST)), min_size=2, max_size=6), st.randoms())
def test_the_lowest_number_and_the_mildest_strategy_hold_in_whatever_order(said: list[tuple[int, Any]], rng: random.Random) -> None:
    definitions = [declaring(f"w{n}", shared(most, strategy)) for n, (most, strategy) in enumerate(said)]
    found = disagreements(definitions)
    rng.shuffle(definitions)
    assert disagreements(definitions) == found
    assert ("gpu" in found) is (len(set(said)) > 1)
    for n, definition in enumerate(definitions):
        plan = Plan.of(n, definition)
        assert plan is not None
        ((most, strategy),) = agreed(plan, found).rules().values()
        assert most == min(most for most, _ in said)
        assert MILDEST.index(strategy) == min(MILDEST.index(strategy) for _, strategy in said)


def test_what_a_run_says_itself_is_left_to_it() -> None:
    definitions = [declaring("a", shared("input.most")), declaring("b", shared(3)), declaring("c", shared(5))]
    found = disagreements(definitions)
    assert found["gpu"].most == 3
    plans = [agreed(plan, found) for n, one in enumerate(definitions) if (plan := Plan.of(n, one)) is not None]
    assert [one.max_runs for plan in plans for own, _ in plan.tasks for _, one in own] == ["input.most", 3, 3]
    assert "max_runs input.most; 'b' has it" in found["gpu"].message


def test_other_limits_of_the_same_workflows_stay_as_they_are() -> None:
    definitions = [declaring("a", shared(1), shared(9, name="ram"), {"max_runs": 4}), declaring("b", shared(2))]
    found = disagreements(definitions)
    plan = Plan.of(1, definitions[0])
    assert plan is not None
    assert [most for most, _ in agreed(plan, found).rules().values()] == [4, 1, 9]
