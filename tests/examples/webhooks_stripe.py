"""Payments that Stripe reports start a task. `python webhooks_stripe.py` makes the webhook and prints the address to give to Stripe."""

import os

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, V1WebhookHMACAuth, V1WebhookSourceName

dispatcher = Dispatcher()


class StripeObject(BaseModel):
    customer: str
    amount: int


class StripeData(BaseModel):
    object: StripeObject


class StripePaymentInput(BaseModel):
    type: str
    data: StripeData


class StripePaymentOutput(BaseModel):
    customer: str
    amount: int


@dispatcher.task(input_validator=StripePaymentInput, on_events=["stripe:payment_intent.succeeded"])
def handle_stripe_payment(input: StripePaymentInput, ctx: Context) -> StripePaymentOutput:
    payment = input.data.object
    ctx.log(f"Payment of {payment.amount} from {payment.customer}")
    return StripePaymentOutput(customer=payment.customer, amount=payment.amount)


app = dispatcher.app(workflows=[handle_stripe_payment])

if __name__ == "__main__":
    webhook = dispatcher.webhooks.create(
        source_name=V1WebhookSourceName.STRIPE,
        name="stripe",
        event_key_expression="'stripe:' + input.type",
        auth=V1WebhookHMACAuth(signing_secret=os.environ["STRIPE_SECRET"]),
    )
    print(webhook.url)
