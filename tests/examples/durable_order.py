"""A durable order. Run it with `dispatcher dev durable_order:app`, or under any ASGI server."""

import asyncio
from typing import Any

from pydantic import BaseModel

from handlers_sdk import Cancelled, Context, Dispatcher, DurableContext, SleepCondition, StepFailedError, UserEventCondition, or_

dispatcher = Dispatcher()


class Order(BaseModel):
    number: int
    parcels: int = 1


async def charge(number: int) -> str:
    return f"receipt-{number}"  # a call of somebody's API; its result is kept, and the call is not made again


async def refund(receipt: str) -> None: ...


@dispatcher.task(name="ship")
async def ship(input: dict[str, Any], ctx: Context) -> str:
    return f"parcel {input['parcel']}"


@dispatcher.durable_task(name="durable-order", input_validator=Order)
async def durable_order(input: Order, ctx: DurableContext) -> dict[str, Any]:
    paid = await ctx.aio_wait_for("payment", or_(SleepCondition("3d"), UserEventCondition(f"order/{input.number}/paid")))
    if f"order/{input.number}/paid" not in paid["CREATE"]:
        return {"shipped": []}  # three days later, on whatever machine and version is there by then
    try:
        receipt = await ctx.run("charge", charge, input.number, retries=5, backoff_factor=2)
    except StepFailedError as error:
        return {"shipped": [], "why": error.message}
    try:
        await ctx.aio_sleep_for("1s")  # it may still be cancelled
        parcels = await asyncio.gather(*[ship.aio_run({"parcel": n}) for n in range(input.parcels)])
    except Cancelled:
        await ctx.run("refund", refund, receipt)
        raise
    return {"shipped": parcels, "receipt": receipt, "at": ctx.now().isoformat()}


app = dispatcher.app(workflows=[ship, durable_order], slots=20)
