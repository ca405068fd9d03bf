"""A workflow of several tasks. Run it with `dispatcher dev workflow_order:app`, or under any ASGI server."""

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, NonRetryableError, ParentCondition, SleepCondition, TaskDefaults, UserEventCondition, or_

dispatcher = Dispatcher()


class Order(BaseModel):
    number: int
    items: int


class Price(BaseModel):
    total: float


class Stock(BaseModel):
    missing: int


order = dispatcher.workflow(
    name="order", input_validator=Order, on_events=["order:created"], task_defaults=TaskDefaults(retries=2, execution_timeout="30s")
)


@order.task()
def price(input: Order, ctx: Context) -> Price:
    return Price(total=9.5 * input.items)


@order.task()
async def stock(input: Order, ctx: Context) -> Stock:  # beside `price`, at the same time
    if input.items > 1000:
        raise NonRetryableError("nobody has that many")
    return Stock(missing=max(0, input.items - 10))


@order.task(parents=[price, stock])
def reserve(input: Order, ctx: Context) -> dict[str, float]:
    return {"total": ctx.task_output(price).total, "missing": ctx.task_output(stock).missing}


@order.task(
    parents=[reserve],
    skip_if=[ParentCondition(price, "output.total < 50.0")],
    wait_for=[or_(UserEventCondition("order:approved"), SleepCondition("2s"))],
)
def approve(input: Order, ctx: Context) -> dict[str, bool]:
    return {"approved": True}


@order.task(parents=[reserve, approve])
def ship(input: Order, ctx: Context) -> dict[str, str]:
    return {"shipped": "without asking" if ctx.was_skipped(approve) else "as approved"}


@order.on_failure_task()
def apologise(input: Order, ctx: Context) -> dict[str, str]:
    return ctx.task_run_errors


app = dispatcher.app(workflows=[order])
