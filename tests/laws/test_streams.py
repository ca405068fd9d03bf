"""What stands in a stream, whatever is put into it and whatever becomes of its runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.streams import Entry, Limits, Piece, RunFact, RunState, TaskFact, Writer, follow, is_over, is_valid

MANY = Limits(1_000, 1_000_000)
RUN = "run_1"


def piece(attempt: int, seq: int, data: bytes = b'"x"', run_id: str = RUN) -> Piece:
    return Piece(run_id, 0, attempt, "out", seq, data)


def fact(epoch: int, *, running: bool = True, status: str | None = None, run_id: str = RUN) -> RunFact:
    return RunFact(run_id, status, {0: TaskFact(epoch, running)})


def kinds(writer: Writer) -> list[str]:
    return [entry.kind for entry in writer.entries]


def test_a_run_starts_puts_and_ends() -> None:
    writer = Writer({}, 10, MANY)
    writer.observe([fact(0, running=False)])
    assert kinds(writer) == []
    writer.observe([fact(1)], [piece(1, 0), piece(1, 1)])
    writer.observe([fact(1, running=False, status="succeeded")])
    writer.observe([fact(1, running=False, status="succeeded")])
    assert kinds(writer) == ["start", "data", "data", "end"]
    assert [entry.position for entry in writer.entries] == [11, 12, 13, 14]
    assert is_over(writer.state, [RUN])
    assert not is_over(writer.state, [RUN, "run_2"])


def test_what_no_running_attempt_puts_is_left_out() -> None:
    writer = Writer({}, 0, MANY)
    writer.observe([fact(2)], [piece(1, 0), piece(3, 0), piece(2, 0, run_id="run_2")])
    writer.observe([fact(2, running=False)], [piece(2, 0)])
    assert kinds(writer) == ["start"]


def test_an_attempt_resets_only_what_something_was_put_into() -> None:
    writer = Writer({}, 0, MANY)
    writer.observe([fact(1)])
    writer.observe([fact(2)], [piece(2, 0)])
    writer.observe([fact(3)], [piece(3, 0)])
    assert kinds(writer) == ["start", "data", "reset", "data"]
    assert [is_valid(entry, writer.state) for entry in writer.entries] == [True, False, True, True]


def test_limits_hold_for_each_attempt_and_are_said_once() -> None:
    writer = Writer({}, 0, Limits(2, 8))
    writer.observe([fact(1)], [piece(1, n) for n in range(5)])
    writer.observe([fact(2)], [piece(2, 0), piece(2, 1, b'"' + b"x" * 20 + b'"'), piece(2, 2)])
    assert kinds(writer) == ["start", "data", "data", "limit", "reset", "data", "limit"]


def test_a_replay_voids_the_end_before() -> None:
    writer = Writer({}, 0, MANY)
    writer.observe([fact(1)], [piece(1, 0)])
    writer.observe([fact(1, running=False, status="failed")])
    writer.observe([fact(2)], [piece(2, 0)])
    assert not is_over(writer.state, [RUN])
    writer.observe([fact(2, running=False, status="succeeded")])
    assert kinds(writer) == ["start", "data", "end", "reset", "data", "end"]
    assert [entry.kind for entry in writer.entries if is_valid(entry, writer.state)] == ["start", "reset", "data", "end"]


STEP = st.tuples(st.sampled_from(["put", "retry", "look", "end"]), st.sampled_from(["run_1", "run_2", "run_3"]))


@given(st.lists(STEP, max_size=40))
def test_positions_leave_no_gaps_and_readers_know_what_writers_know(steps: list[tuple[str, str]]) -> None:
    epochs: dict[str, int] = {}
    ended: set[str] = set()
    writer, seen, reader = Writer({}, 0, MANY), list[Entry](), dict[str, RunState]()
    for number, (step, run_id) in enumerate(steps):
        if run_id in ended:
            continue
        epochs[run_id] = epochs.get(run_id, 0) + (1 if step == "retry" or run_id not in epochs else 0)
        ended |= {run_id} if step == "end" else set()
        status = "succeeded" if step == "end" else None
        puts = [piece(epochs[run_id], number, run_id=run_id)] if step == "put" else []
        writer.observe([fact(epochs[run_id], running=status is None, status=status, run_id=run_id)], puts)
    for entry in writer.entries:
        seen.append(entry)
        follow(reader, entry)
    assert [entry.position for entry in seen] == list(range(1, len(seen) + 1))
    assert is_over(reader, ended)
    assert [is_valid(entry, reader) for entry in seen] == [is_valid(entry, writer.state) for entry in seen]
    for run_id in ended:
        own = [entry.kind for entry in seen if entry.run_id == run_id]
        assert (own[0], own[-1], own.count("start"), own.count("end")) == ("start", "end", 1, 1)
