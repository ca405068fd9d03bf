"""A FastAPI backend that passes a run's stream on to its own clients, as plain text."""

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from handlers_sdk import Dispatcher


class Wish(BaseModel):
    subject: str


dispatcher = Dispatcher()
write = dispatcher.stubs.task("write", Wish)
app = FastAPI()


@app.get("/stories/{subject}")
async def story(subject: str) -> StreamingResponse:
    ref = await write.aio_run(Wish(subject=subject), wait_for_result=False)
    return StreamingResponse(dispatcher.runs.subscribe_to_stream(ref.workflow_run_id), media_type="text/plain")
