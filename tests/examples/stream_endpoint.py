"""An endpoint that streams: what a task puts reaches whoever follows its run, while it runs and afterwards."""

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher

dispatcher = Dispatcher()


class Wish(BaseModel):
    subject: str


@dispatcher.task()
async def write(input: Wish, ctx: Context) -> dict[str, int]:
    words = f"Once upon a time there was {input.subject}.".split()
    for word in words:
        await ctx.aio_put_stream(word + " ")
    return {"words": len(words)}


app = dispatcher.app(workflows=[write])
