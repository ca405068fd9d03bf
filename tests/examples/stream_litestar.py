"""A Litestar backend that passes a run's stream on to its own clients, as plain text."""

from litestar import Litestar, get
from litestar.params import FromPath
from litestar.response import Stream
from pydantic import BaseModel

from handlers_sdk import Dispatcher


class Wish(BaseModel):
    subject: str


dispatcher = Dispatcher()
write = dispatcher.stubs.task("write", Wish)


@get("/stories/{subject:str}")
async def story(subject: FromPath[str]) -> Stream:
    ref = await write.aio_run(Wish(subject=subject), wait_for_result=False)
    return Stream(dispatcher.runs.subscribe_to_stream(ref.workflow_run_id), media_type="text/plain")


app = Litestar([story])
