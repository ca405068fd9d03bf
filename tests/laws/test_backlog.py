"""Queues known to have work: what is heard of while the database is asked is not forgotten when it answers."""

from __future__ import annotations

from dispatcher.runtime.capacity import Backlog

ONE, TWO = (1, 1, ""), (1, 2, "")


def test_what_turned_out_to_be_empty_is_forgotten() -> None:
    backlog = Backlog()
    backlog.update([ONE, TWO])
    backlog.listen()
    backlog.forget([ONE])
    assert backlog == {TWO}


def test_what_is_heard_of_meanwhile_is_not() -> None:
    backlog = Backlog()
    backlog.update([ONE, TWO])
    backlog.listen()
    backlog.add(ONE)
    backlog.forget([ONE, TWO])
    assert backlog == {ONE}
    backlog.listen()
    backlog.forget([ONE])
    assert not backlog
