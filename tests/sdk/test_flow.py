"""Limits as handlers declare them, and the client that sets rate limits."""

from __future__ import annotations

from typing import Any

import pytest

from handlers_sdk import (
    ConcurrencyExpression,
    ConcurrencyLimitStrategy,
    ConfigError,
    Context,
    Dispatcher,
    EmptyModel,
    RateLimit,
    RateLimitDuration,
)
from tests.sdk.pushing import config


def entry(dispatcher: Dispatcher, one: Any) -> dict[str, Any]:
    (handler,) = dispatcher.app([one]).handlers.manifest()["handlers"]
    return dict(handler)


def test_a_task_says_its_limits() -> None:
    dispatcher = Dispatcher(config())

    @dispatcher.task(
        concurrency=[
            ConcurrencyExpression("input.user", 2, ConcurrencyLimitStrategy.CANCEL_NEWEST),
            ConcurrencyExpression(max_runs="input.most", name="gpu"),
        ],
        rate_limits=[RateLimit(static_key="api"), RateLimit(dynamic_key="input.user", units=2, limit=10, duration=RateLimitDuration.HOUR)],
    )
    def work(input: EmptyModel, ctx: Context) -> None: ...

    said = entry(dispatcher, work)
    assert said["concurrency"] == [
        {"max_runs": 2, "limit_strategy": "CANCEL_NEWEST", "expression": "input.user"},
        {"max_runs": "input.most", "limit_strategy": "GROUP_ROUND_ROBIN", "name": "gpu"},
    ]
    assert said["rate_limits"] == [
        {"static_key": "api", "units": 1},
        {"dynamic_key": "input.user", "units": 2, "limit": 10, "duration": "HOUR"},
    ]


def test_a_workflow_and_its_tasks_have_limits_of_their_own() -> None:
    dispatcher = Dispatcher(config())
    order = dispatcher.workflow("order", concurrency=3)

    @order.task(concurrency=ConcurrencyExpression("input.sku", 1))
    def pick(input: EmptyModel, ctx: Context) -> None: ...

    @order.task(parents=[pick])
    def ship(input: EmptyModel, ctx: Context) -> None: ...

    said = entry(dispatcher, order)
    assert said["concurrency"] == [{"max_runs": 3, "limit_strategy": "GROUP_ROUND_ROBIN"}]
    assert ["concurrency" in task for task in said["tasks"]] == [True, False]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ConcurrencyExpression("input.a", 0), "max_runs=0"),
        (lambda: ConcurrencyExpression("input.a", -1), "max_runs=-1"),
        (RateLimit, "either a static_key or a dynamic_key"),
        (lambda: RateLimit(static_key="a", dynamic_key="input.b", limit=1), "either a static_key or a dynamic_key"),
        (lambda: RateLimit(dynamic_key="input.b"), "needs a limit"),
        (lambda: RateLimit(static_key="a", limit=3), "rate_limits.put"),
        (lambda: RateLimit(static_key="a", units=0), "units=0"),
        (lambda: RateLimit(dynamic_key="input.b", limit=-2), "limit=-2"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused_where_they_are_written(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
