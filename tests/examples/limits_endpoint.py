"""Limits: one report of a customer at a time, no more calls of a model than it allows, and only the newest draft of a document."""

from pydantic import BaseModel

from handlers_sdk import ConcurrencyExpression, ConcurrencyLimitStrategy, Context, Dispatcher, RateLimit, RateLimitDuration

dispatcher = Dispatcher()


class Customer(BaseModel):
    customer: str


@dispatcher.task(
    concurrency=[ConcurrencyExpression("input.customer", max_runs=1), ConcurrencyExpression(name="reports", max_runs=10)],
    rate_limits=[RateLimit(static_key="model"), RateLimit(dynamic_key="input.customer", limit=100, duration=RateLimitDuration.HOUR)],
)
async def report(input: Customer, ctx: Context) -> dict[str, str]:
    return {"report": f"All is well with {input.customer}."}


class Draft(BaseModel):
    document: str
    text: str


@dispatcher.task(concurrency=ConcurrencyExpression("input.document", 1, ConcurrencyLimitStrategy.CANCEL_IN_PROGRESS))
async def review(input: Draft, ctx: Context) -> dict[str, int]:
    return {"words": len(input.text.split())}


app = dispatcher.app(workflows=[report, review])
