"""Where tasks run: training asks for a machine with a GPU and fills half of it, and all tasks of a film stay where the film is."""

from datetime import timedelta

from pydantic import BaseModel

from handlers_sdk import Context, DesiredWorkerLabel, Dispatcher, DurableContext, EmptyModel, StickyStrategy

dispatcher = Dispatcher()
gpu = DesiredWorkerLabel("gpu", True, required=True)
near = DesiredWorkerLabel("region", "eu", weight=10)


class Model(BaseModel):
    name: str


@dispatcher.task(desired_worker_labels=[gpu, near], slot_cost=4)
async def train(input: Model, ctx: Context) -> dict[str, str]:
    return {"trained": input.name}


film = dispatcher.workflow(name="film", sticky=StickyStrategy.HARD)


@film.task()
async def fetch(input: EmptyModel, ctx: Context) -> dict[str, str]:
    return {"file": "film.mp4"}  # on the disk of this machine, where the next task finds it


@film.task(parents=[fetch])
async def cut(input: EmptyModel, ctx: Context) -> dict[str, str]:
    return {"cut": ctx.task_output(fetch)["file"]}


@dispatcher.durable_task()
async def remind(input: EmptyModel, ctx: DurableContext) -> str:
    await ctx.aio_sleep_for(timedelta(seconds=2))
    return "remember"  # at the deployment that it began at, in the version that it began with


app = dispatcher.app(workflows=[train, film, remind])
