"""What the filters of an event let through, what they cost, and what a hostile one can do."""

from __future__ import annotations

import json
import time
from itertools import count
from typing import Any

import pytest

from dispatcher.engine.filters import Candidates, Filter, Match, Occurrence, index


def made(source: str, scope: str = "s", payload: dict[str, Any] | None = None, name: str = "flt_1") -> Filter:
    return Filter.make(name, scope, source, json.dumps(payload) if payload is not None else None)


def event(data: Any, *, key: str = "user:created", scope: str | None = "s", metadata: dict[str, Any] | None = None) -> Occurrence:
    return Occurrence(key, scope, json.dumps(data).encode(), json.dumps(metadata) if metadata is not None else None)


def select(filters: list[tuple[str, Filter]], what: Occurrence, listening: tuple[str, ...] = ("mail",)) -> tuple[list[Match], list[str]]:
    """The runs, and the codes of the filters that failed."""
    candidates = Candidates.of(listening, index(filters), what.scope)
    if candidates is None:
        return [Match(name) for name in listening], []
    matches, failures = candidates.select(what, lambda: 0.0, 1.0)
    return matches, [failure.code for failure in failures]


def test_a_workflow_without_filters_always_runs() -> None:
    assert select([], event({})) == ([Match("mail")], [])
    assert select([("other", made("false"))], event({}), ("mail", "other")) == ([Match("mail")], [])


def test_each_filter_that_holds_is_a_run_with_its_payload() -> None:
    filters = [
        ("mail", made("input.n > 1", payload={"who": "first"})),
        ("mail", made("input.n > 5", payload={"who": "never"})),
        ("mail", made("input.n > 2", payload={"who": "second"})),
        ("mail", made("true")),
    ]
    matches, failures = select(filters, event({"n": 3}))
    assert failures == []
    assert [json.loads(m.payload) if m.payload else None for m in matches] == [{"who": "first"}, {"who": "second"}, None]


@pytest.mark.parametrize("scope", [None, "t", "", "S"])
def test_filters_in_other_scopes_only_let_nothing_through(scope: str | None) -> None:
    assert select([("mail", made("true"))], event({}, scope=scope)) == ([], [])


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("input.user.name == 'ann'", True),
        ("payload.level < input.level", True),
        ("payload.level > input.level", False),
        ("additional_metadata.source == 'shop' && metadata.source == 'shop'", True),
        ("event_key == 'user:created'", True),
        ("event_key.startsWith('order:')", False),
        ("input.tags.exists(t, t == 'b')", True),
    ],
)
def test_what_an_expression_reads(source: str, holds: bool) -> None:
    what = event({"user": {"name": "ann"}, "level": 3, "tags": ["a", "b"]}, metadata={"source": "shop"})
    assert select([("mail", made(source, payload={"level": 2}))], what) == ([Match("mail", '{"level": 2}')] if holds else [], [])


@pytest.mark.parametrize("data", [None, 5, "text", [1, 2], {"n": 2**70}])
def test_any_data_can_be_filtered(data: Any) -> None:
    assert select([("mail", made("has(input.n) ? true : true"))], event(data))[1] in (["eval"], [])
    assert select([("mail", made("true"))], event(data)) == ([Match("mail")], [])


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("input.missing == 1", "missing_key"),
        ("input.n", "wrong_type"),
        ("input.n + 'x' == ''", "eval"),
        ("input.list.all(a, input.list.all(b, input.list.all(c, a + b + c >= 0)))", "budget"),
        ("input.", "syntax"),
        ("nothing.x == 1", "syntax"),
    ],
)
def test_a_failure_starts_nothing_is_told_and_keeps_nobody_else_from_running(source: str, code: str) -> None:
    filters = [("mail", made(source)), ("mail", made("true", payload={"good": 1})), ("note", made("input.n == 1"))]
    matches, failures = select(filters, event({"n": 1, "list": list(range(40))}), ("mail", "note"))
    assert matches == [Match("mail", '{"good": 1}'), Match("note")]
    assert failures == [code]


def test_the_filters_of_one_event_share_their_time() -> None:
    clock = count(0)  # each look at the clock takes a second
    filters = [("mail", made("true", name=f"flt_{i}")) for i in range(10)]
    candidates = Candidates.of(["mail"], index(filters), "s")
    assert candidates is not None
    matches, failures = candidates.select(event({}), lambda: float(next(clock)), 8.0)
    assert (len(matches) + len(failures), {failure.code for failure in failures}) == (10, {"budget"})
    assert matches
    assert [failure.filter_id for failure in failures] == [f"flt_{i}" for i in range(10)][len(matches) :]


def test_what_filters_cost_is_known_before() -> None:
    def cost(source: str, size: int = 10) -> int:
        candidates = Candidates.of(["mail"], index([("mail", made(source))]), "s")
        assert candidates is not None
        return candidates.cost(size)

    assert cost("true") < cost("input.a == 1 && input.b == 2") < 100
    assert cost("input.a == 1", 1_000_000) > 200 * cost("input.a == 1")
    assert cost("input.list.exists(a, a == 1)") > 1_000_000
    assert cost("input.") == 1


@pytest.mark.parametrize(
    "source",
    ["input.user.id == payload.id", "input.user.name == 'ann' && input.total >= 10.5", "has(input.user) && !(input.total in [1])"],
)
def test_a_hundred_filters_take_less_than_five_milliseconds(source: str) -> None:
    """CPU time, the best of some tries: others share this machine."""
    filters = [("mail", made(source, payload={"id": i}, name=f"flt_{i}")) for i in range(100)]
    candidates = Candidates.of(["mail"], index(filters), "s")
    assert candidates is not None
    what = event({"user": {"id": 7, "name": "ann"}, "total": 12.0, "items": [{"sku": f"s{i}", "n": i} for i in range(20)]})
    best = 1e9
    for _ in range(10):
        began = time.process_time()
        matches, failures = candidates.select(what, time.monotonic, 1.0)
        best = min(best, time.process_time() - began)
        assert (len(matches) in (1, 100), failures) == (True, [])
    assert best < 0.005
