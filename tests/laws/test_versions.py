"""The law of versions: what its code does not fit goes on with what was registered since its turn began, and only with that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.engine.versions import Ran, Registered, superseded

BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
RAN = Ran("ep_a", "1", BEGAN, pinned=False)
PINNED = Ran("ep_a", "1", BEGAN, pinned=True)


@pytest.mark.parametrize(
    ("ran", "registered", "expected"),
    [
        (RAN, [], False),
        (RAN, [Registered("ep_a", "1", BEGAN - timedelta(days=1))], False),
        (RAN, [Registered("ep_a", "1", None)], False),
        (RAN, [Registered("ep_a", "2", BEGAN + timedelta(seconds=1))], True),
        (RAN, [Registered("ep_a", "2", BEGAN)], True),
        (RAN, [Registered("ep_a", "2", BEGAN - timedelta(seconds=1))], True),  # by a clock that is behind
        (RAN, [Registered("ep_a", "1", BEGAN)], False),  # it ran there, and would again
        (RAN, [Registered("ep_a", "1", BEGAN + timedelta(seconds=1))], True),  # other code by the same name
        (RAN, [Registered("ep_a", "1", None), Registered("ep_b", "9", BEGAN - timedelta(seconds=1))], False),
        (RAN, [Registered("ep_a", "1", None), Registered("ep_b", "9", BEGAN + timedelta(seconds=1))], True),
        (PINNED, [Registered("ep_a", "2", BEGAN + timedelta(seconds=1))], True),
        (PINNED, [Registered("ep_a", "2", BEGAN - timedelta(seconds=1))], False),  # it was left behind on purpose
        (PINNED, [Registered("ep_a", "2", None)], False),
    ],
)
def test_what_a_turn_has_not_run_at_may_fit(ran: Ran, registered: list[Registered], expected: bool) -> None:
    assert superseded(ran, registered) is expected
    assert superseded(ran, reversed(registered)) is expected
