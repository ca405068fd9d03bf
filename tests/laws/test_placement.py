"""Which endpoints may run a task: labels by each comparator, weights, sticky runs, and the text a requirement is written as."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.definitions import DefinitionError
from dispatcher.engine.definitions.placement import COMPARATORS, DesiredLabel, Label, parse_desired_labels
from dispatcher.engine.placement import ASKS_NOTHING, Host, Requirement, rank, startable, tiers, unsatisfied

TABLE: list[tuple[Any, str, Any, bool]] = [
    ("a", "EQUAL", "a", True), ("a", "EQUAL", "b", False), ("a", "EQUAL", None, False), (1, "EQUAL", 1, True), (1, "EQUAL", 1.0, True),
    (1, "EQUAL", "1", False), (1, "EQUAL", True, False), (True, "EQUAL", True, True), (True, "EQUAL", 1, False),
    ("a", "NOT_EQUAL", "b", True), ("a", "NOT_EQUAL", "a", False), ("a", "NOT_EQUAL", None, True), (1, "NOT_EQUAL", "1", True),
    (5, "GREATER_THAN", 6, True), (5, "GREATER_THAN", 5, False), (5, "GREATER_THAN", 4, False),
    (5, "GREATER_THAN_OR_EQUAL", 5, True), (5, "GREATER_THAN_OR_EQUAL", 4.9, False),
    (5, "LESS_THAN", 4, True), (5, "LESS_THAN", 5, False), (5, "LESS_THAN", None, False),
    (5, "LESS_THAN", "4", False), (5, "LESS_THAN", True, False),
    (5, "LESS_THAN_OR_EQUAL", 5, True), (5, "LESS_THAN_OR_EQUAL", 6, False),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "comparator", "label", "holds"), TABLE)
def test_comparators(wanted: Label, comparator: Any, label: Label | None, holds: bool) -> None:
    """A label that is missing or of another type satisfies nothing but NOT_EQUAL."""
    requirement = Requirement({"it": DesiredLabel(wanted, comparator, required=True)})
    assert (rank(requirement, Host("ep", {} if label is None else {"it": label})) is not None) is holds


def test_every_comparator_is_in_the_table() -> None:
    assert {row[1] for row in TABLE} == set(COMPARATORS)


def test_weights_add_up_and_choose_the_best_first() -> None:
    requirement = Requirement({"model": DesiredLabel("big", weight=10), "memory": DesiredLabel(256, "GREATER_THAN", weight=1)})
    hosts = [
        Host("none", {}), Host("both", {"model": "big", "memory": 512}), Host("memory", {"memory": 512}), Host("model", {"model": "big"}),
        Host("also", {}),
    ]  # fmt: skip
    assert tiers(requirement, hosts) == (("both",), ("model",), ("memory",), ("none", "also"))


def test_what_is_required_leaves_out_and_a_negative_rank_does_too() -> None:
    gpu, spot = DesiredLabel(1, "GREATER_THAN_OR_EQUAL", required=True), DesiredLabel(True, weight=-500)
    hosts = [Host("a", {"gpu": 2}), Host("b", {}), Host("c", {"gpu": 1, "spot": True})]
    assert tiers(Requirement({"gpu": gpu, "spot": spot}), hosts) == (("a",),)


def test_a_sticky_run_goes_back_before_labels_are_looked_at() -> None:
    labels = {"zone": DesiredLabel("x", required=True)}
    hosts = [Host("a", {"zone": "x"}), Host("b", {"zone": "y"})]
    assert tiers(Requirement(labels, "b", "soft"), hosts) == (("b",), ("a",))
    assert tiers(Requirement(labels, "b", "hard"), hosts) == (("b",),)
    assert tiers(Requirement({}, "gone", "hard"), hosts) == ()
    assert tiers(Requirement({}, "gone", "soft"), hosts) == (("a", "b"),)


def test_what_is_pinned_goes_where_it_began_if_that_has_what_it_asks() -> None:
    labels = {"zone": DesiredLabel("x", required=True)}
    hosts = [Host("a", {"zone": "x"}), Host("b", {"zone": "y"})]
    assert tiers(Requirement(pin="b"), hosts) == (("b",),)
    assert tiers(Requirement(labels, pin="a"), hosts) == (("a",),)
    assert tiers(Requirement(labels, pin="b"), hosts) == ()
    assert tiers(Requirement({}, "a", "soft", pin="b"), hosts) == (("b",),)
    assert tiers(Requirement({}, "a", "hard", pin="b"), hosts) == ()
    assert tiers(Requirement({}, "a", "hard", pin="a"), hosts) == (("a",),)


def test_a_task_can_start_where_it_suits_and_would_fit_if_nothing_else_ran() -> None:
    gpu = Requirement({"gpu": DesiredLabel(True, required=True)}, slots=2)
    assert startable(gpu, [Host("a", {}, 9), Host("b", {"gpu": True}, 2)])
    assert not startable(gpu, [Host("a", {}, 9), Host("b", {"gpu": True}, 1)])
    assert not startable(gpu, [])
    assert startable(Requirement({}, "a", "hard"), [Host("a", {}, 1)])
    assert not startable(Requirement({}, "a", "hard"), [Host("b", {}, 1)])
    assert startable(Requirement({}, "a", "soft"), [Host("b", {}, 1)])


def test_what_is_drained_takes_what_has_to_stay_there_and_nothing_else() -> None:
    gpu = {"gpu": DesiredLabel(True, required=True)}
    hosts = [Host("a", {"gpu": True}, 2, draining=True), Host("b", {}, 9)]
    assert tiers(ASKS_NOTHING, hosts) == (("b",),)
    assert tiers(Requirement(gpu), hosts) == ()
    assert tiers(Requirement({}, "a", "soft"), hosts) == (("b",),)
    assert tiers(Requirement(sticky="hard"), hosts) == (("b",),), "a run that is bound now is not bound to it"
    assert tiers(Requirement(gpu, "a", "hard"), hosts) == (("a",),)
    assert tiers(Requirement({}, "b", "hard"), hosts) == (("b",),)
    assert tiers(Requirement(gpu, pin="a"), hosts) == (("a",),)
    assert tiers(Requirement({}, "b", "soft", pin="a"), hosts) == (("a",),)
    assert not startable(Requirement(gpu), hosts)
    assert startable(Requirement(gpu, "a", "hard", 2), hosts)
    assert "drained" in (unsatisfied(ASKS_NOTHING, hosts[0]) or "")
    assert "stay" in (unsatisfied(Requirement({}, "b", "hard"), hosts[0]) or "")


def test_who_asks_nothing_may_run_anywhere() -> None:
    assert ASKS_NOTHING.text() == ""
    assert Requirement(sticky="hard").text() == '{"sticky":"hard"}', "what is to be bound first waits by itself"
    assert Requirement(sticky="hard").unbound
    assert not Requirement(sticky="hard", endpoint="a").unbound
    assert tiers(ASKS_NOTHING, [Host("a", {"x": 1}), Host("b", {})]) == (("a", "b"),)


values = st.text(max_size=20) | st.integers(-1000, 1000) | st.booleans()
numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6)
labels = st.builds(DesiredLabel, values, st.sampled_from(COMPARATORS[:2]), st.booleans(), st.integers(-1000, 1000)) | st.builds(
    DesiredLabel, numbers, st.sampled_from(COMPARATORS[2:]), st.booleans(), st.integers(-1000, 1000)
)
requirements = st.builds(
    Requirement,
    st.dictionaries(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=10), labels, max_size=5),
    st.none() | st.just("ep_1"),
    st.sampled_from(["soft", "hard"]),
    st.integers(1, 10),
    st.none() | st.just("group"),
    st.none() | st.just("ep_2"),
)


@given(requirements)
def test_a_demand_is_read_back_as_it_was_written(requirement: Requirement) -> None:
    again = Requirement.parse(requirement.text())
    assert again.text() == requirement.text()
    assert dict(again.labels) == dict(requirement.labels)
    assert again.pin == requirement.pin


@given(requirements)
def test_a_pin_comes_first_and_leaves_what_was_asked_as_it_was(requirement: Requirement) -> None:
    own = replace(requirement, pin=None).text()
    assert replace(requirement, pin="ep_2").text() == ('{"pin":"ep_2",' + own[1:] if own else '{"pin":"ep_2"}')


REFUSED: list[tuple[object, str]] = [
    ([], "f"), ({"": 1}, "f"), ({"a\n": 1}, "f"), ({"a": None}, "f.a.value"), ({"a": []}, "f.a.value"), ({"a": {}}, "f.a.value"),
    ({"a": {"value": "x", "comparator": "LIKE"}}, "f.a.comparator"), ({"a": {"value": "x", "comparator": "LESS_THAN"}}, "f.a.value"),
    ({"a": {"value": True, "comparator": "GREATER_THAN"}}, "f.a.value"), ({"a": {"value": 1, "weight": 1.5}}, "f.a.weight"),
    ({"a": {"value": 1, "required": "yes"}}, "f.a.required"), ({"a": {"value": 1, "size": 1}}, "f.a.size"),
    ({"a": {"value": "x" * 201}}, "f.a.value"),
    ({str(n): n for n in range(21)}, "f"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "field"), REFUSED, ids=str)
def test_labels_that_cannot_be_meant_are_refused_by_their_field(value: object, field: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_desired_labels(value, "f")
    assert refused.value.field == field
