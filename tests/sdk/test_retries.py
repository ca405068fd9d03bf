"""Retries as attempts and milliseconds: what is taken, what the manifest says of it, and how long is waited."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from handlers_sdk import ConfigError, Context, Dispatcher, EmptyModel, Retry
from handlers_sdk.definitions import manifest_entries
from handlers_sdk.retries import RetryForm
from tests.sdk.pushing import config


def declared(retry: RetryForm, **others: Any) -> dict[str, Any]:
    """The manifest's entry of a task with this retry."""

    async def work(input: EmptyModel, ctx: Context) -> None: ...

    (entry,) = manifest_entries(Dispatcher(config()).task(name="work", retry=retry, **others)(work).definitions)
    return dict(entry)


@pytest.mark.parametrize(
    ("retry", "retries", "factor", "longest"),
    [
        (3, 3, 1.0, 1.0),
        ({"attempts": 10}, 10, 1.0, 1.0),
        ({"attempts": 3, "delay": 5000}, 3, 5.0, 5.0),
        ({"attempts": 3, "delay": 250}, 3, 1.0, 0.25),
        ({"attempts": 1, "delay": 3_600_000}, 1, 1000.0, 3600.0),
        (Retry(2, 500, "exponential", jitter=True), 2, 2.0, 3600.0),
    ],
)
def test_the_manifest_says_it_in_the_dispatchers_terms(retry: RetryForm, retries: int, factor: float, longest: float) -> None:
    entry = declared(retry)
    assert (entry["retries"], entry["backoff_factor"], entry["backoff_max_seconds"]) == (retries, factor, longest)


def test_no_delay_is_no_backoff() -> None:
    assert "backoff_factor" not in declared({"attempts": 2, "delay": 0})


@pytest.mark.parametrize(
    ("retry", "message"),
    [
        (0, "attempts=0"),
        (11, "attempts=11"),
        (True, "attempts=True"),
        (1.5, "attempts=1.5"),
        ("3", "attempts='3'"),
        ({}, "attempts is missing"),
        ({"attempts": 11}, "attempts=11"),
        ({"attempts": 3, "delay": -1}, "delay=-1"),
        ({"attempts": 3, "delay": 3_600_001}, "delay=3600001"),
        ({"attempts": 3, "delay": "1s"}, "delay='1s'"),
        ({"attempts": 3, "backoff": "linear"}, "backoff='linear'"),
        ({"attempts": 3, "jitter": 1}, "jitter=1"),
        ({"attempts": 3, "delays": 5}, "'delays' is not defined"),
    ],
)
def test_what_cannot_be_meant_is_refused(retry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declared(retry)


@pytest.mark.parametrize("others", [{"retries": 2}, {"backoff_factor": 2.0}, {"backoff_max_seconds": 5}])
def test_it_says_all_there_is_to_say(others: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="either retry, or retries"):
        declared(3, **others)


def test_how_long_is_waited() -> None:
    def seconds(retry: Retry) -> list[float]:
        return [retry.wait(number).total_seconds() for number in (1, 2, 3, 9)]

    assert seconds(Retry(9, 5000)) == [5, 5, 5, 5]
    assert seconds(Retry(9, 1000, "exponential")) == [1, 2, 4, 256]
    assert seconds(Retry(10, 60_000, "exponential")) == [60, 120, 240, 3600]
    waits = {Retry(3, 1000, jitter=True).wait(1) for _ in range(50)}
    assert len(waits) > 1
    assert all(timedelta(seconds=0.5) <= wait <= timedelta(seconds=1.5) for wait in waits)
