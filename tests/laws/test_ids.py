"""Ids: order of making is order of text, and what is parsed is what was made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.ids import NODE_LIMIT, IdMaker, attempt_id, created_at, parse_task_id, task_id
from tests.laws.attempts_table import NOW

RUN = "run_01jz0000000000000000000000"
moments = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - given a zone
runs = moments.map(lambda moment: IdMaker().make("run", moment))
nodes = st.integers(0, NODE_LIMIT)


@given(st.lists(moments, min_size=2, max_size=50))
def test_ids_sort_in_the_order_they_were_made(made: list[datetime]) -> None:
    maker = IdMaker()
    ids = [maker.make("run", moment) for moment in sorted(made)]
    assert ids == sorted(set(ids))


def test_ten_thousand_of_one_millisecond_are_in_order_and_apart() -> None:
    maker = IdMaker()
    ids = [maker.make("run", NOW) for _ in range(10_000)]
    assert ids == sorted(set(ids))


def test_a_clock_that_steps_back_does_not_step_ids_back() -> None:
    maker = IdMaker()
    assert maker.ulid(NOW) < maker.ulid(NOW - timedelta(days=1)) < maker.ulid(NOW)


def test_two_processes_do_not_make_the_same_id() -> None:
    assert IdMaker().ulid(NOW) != IdMaker().ulid(NOW)


@given(moments)
def test_an_id_tells_when_it_was_made_never_too_late(moment: datetime) -> None:
    said = created_at(IdMaker().make("run", moment))
    assert said is not None
    assert timedelta(0) <= moment - said < timedelta(milliseconds=2)


@given(runs, nodes)
def test_task_ids_round_trip(run_id: str, node: int) -> None:
    assert parse_task_id(task_id(run_id, node)) == (run_id, node)


@given(runs, nodes, st.integers(1, 10_000))
def test_attempt_ids_tell_task_and_number(run_id: str, node: int, number: int) -> None:
    ulid, _, last = attempt_id(run_id, node, number).removeprefix("att_").rpartition("_")
    assert (f"tsk_{ulid}", last) == (task_id(run_id, node), str(number))


@given(runs, st.text("0123456789abcdefghjkmnpqrstvwxyz-_OIL٣é", max_size=8))
def test_a_task_id_has_one_spelling(run_id: str, tail: str) -> None:
    text = f"tsk_{run_id[4:]}{tail}"
    parsed = parse_task_id(text)
    assert parsed is None or task_id(*parsed) == text


FOREIGN = [
    "",
    "run",
    "run_",
    RUN[:-1],
    RUN.upper(),
    RUN.replace("j", "i"),
    f"run_{'z' * 26}",
    "run_01jz00000000000000000000é0",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_what_is_no_id_of_ours_has_no_moment(text: str) -> None:
    assert created_at(text) is None


NOT_TASKS = [RUN, f"tsk_{RUN[4:]}-", f"tsk_{RUN[4:]}-0", f"tsk_{RUN[4:]}-01", f"tsk_{RUN[4:]}-32768", f"tsk_{RUN[4:]}x", f"tsk_{RUN[4:-1]}"]


@pytest.mark.parametrize("text", NOT_TASKS)
def test_what_is_no_task_id_is_refused(text: str) -> None:
    assert parse_task_id(text) is None
