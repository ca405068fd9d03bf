"""Tasks that start runs: one, many, and what to do when one fails. And bulk runs from outside."""

from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, EmptyModel, NonRetryableError

dispatcher = Dispatcher()


class Album(BaseModel):
    pictures: int = 20


class Picture(BaseModel):
    name: str


album = dispatcher.workflow(name="album", input_validator=Album)
picture = dispatcher.workflow(name="picture", input_validator=Picture)


@picture.task()
async def shrink(input: Picture, ctx: Context) -> dict[str, str]:
    if input.name == "broken":
        raise NonRetryableError("not a picture")
    return {"small": f"{input.name}.small"}


@picture.task(parents=[shrink])
async def frame(input: Picture, ctx: Context) -> dict[str, str]:
    return {"framed": ctx.task_output(shrink)["small"] + ".framed"}


@album.task(execution_timeout=timedelta(minutes=5))
async def develop(input: Album, ctx: Context) -> dict[str, Any]:
    results = await picture.aio_run_many(
        [
            picture.create_bulk_run_item(
                input=Picture(name=f"p{n}"),
                additional_metadata={"album": ctx.workflow_run_id},
                key=f"picture{n}",
            )
            for n in range(input.pictures)
        ],
    )
    return {"framed": [result["frame"]["framed"] for result in results]}


@album.task(parents=[develop])
def cover(input: Album, ctx: Context) -> dict[str, str]:
    """A sync task waits for its child in its own thread."""
    try:
        picture.run(Picture(name="broken"))
    except Exception as error:
        ctx.log(f"no cover: {error}")
    chosen = picture.run(Picture(name="cover"))
    return {"cover": chosen["frame"]["framed"]}


@dispatcher.task(name="greet")
async def greet(input: Picture, ctx: Context) -> dict[str, str]:
    return {"text": f"hello, {input.name}"}


@dispatcher.task(name="greet_all")
async def greet_all(input: EmptyModel, ctx: Context) -> dict[str, Any]:
    names = ["sun", "moon", "mars"]
    results = await greet.aio_run_many([greet.create_bulk_run_item(input=Picture(name=name)) for name in names])
    return {"texts": [result["text"] for result in results]}


app = dispatcher.app(workflows=[album, picture, greet, greet_all])
