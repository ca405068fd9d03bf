"""Delays before retries: min(cap, factor ** n) seconds, whatever n."""

from __future__ import annotations

import sys
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.attempts import backoff, spared_backoff
from tests.laws.attempts_table import DAY, NOW

LAW = [
    (1, 2.0, None, 2.0),
    (2, 2.0, None, 4.0),
    (3, 2.0, None, 8.0),
    (16, 2.0, None, 65_536.0),
    (17, 2.0, None, 86_400.0),
    (3, 2.0, 5.0, 5.0),
    (2, 2.0, 4.0, 4.0),
    (1, 1.0, None, 1.0),
    (1_000_000, 1.0, None, 1.0),
    (1, 1.0, 0.5, 0.5),
    (1, 1.5, None, 1.5),
    (2, 1.5, None, 2.25),
    (1, 1000.0, None, 1000.0),
    (2, 1000.0, None, 86_400.0),
    (sys.maxsize, 1.0000001, None, 86_400.0),
    (10**30, 1000.0, 3.0, 3.0),
    (1, None, None, 0.0),
    (100, None, 60.0, 0.0),
]


@pytest.mark.parametrize(("retry", "factor", "cap", "seconds"), LAW)
def test_delay(retry: int, factor: float | None, cap: float | None, seconds: float) -> None:
    assert backoff(retry, factor, cap) == timedelta(seconds=seconds)


@given(st.integers(1, 2**63), st.floats(1, 1000), st.none() | st.floats(0.001, 86_400))
def test_delay_is_the_formula_in_exact_arithmetic(retry: int, factor: float, cap: float | None) -> None:
    most = cap if cap is not None else 86_400.0
    grown = float(Decimal(factor) ** min(retry, 10_000)) if factor**20 > 1.01 else None
    delay = backoff(retry, factor, cap).total_seconds()
    assert 0 < delay <= most + 1e-6
    if grown is not None and retry <= 10_000:
        assert delay == pytest.approx(min(most, grown), rel=1e-6, abs=1e-6)


@given(st.integers(1, 2**31), st.floats(1, 1000), st.floats(0.001, 86_400))
def test_delays_never_shrink(retry: int, factor: float, cap: float) -> None:
    assert backoff(retry, factor, cap) <= backoff(retry + 1, factor, cap)


def test_what_is_spared_waits_as_long_again_from_one_to_thirty_seconds() -> None:
    waits = [spared_backoff(NOW - timedelta(seconds=s), NOW).total_seconds() for s in (0, 0.5, 1, 2, 4, 29, 31, 100_000)]
    assert waits == [1, 1, 1, 2, 4, 29, 30, 30]
    assert spared_backoff(NOW + DAY, NOW) == timedelta(seconds=1)  # a clock that was ahead
