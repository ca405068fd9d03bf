"""An endpoint made with the SDK. Run it with `dispatcher dev sdk_endpoint:app`, or under any ASGI server."""

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, NonRetryableError

dispatcher = Dispatcher()


class User(BaseModel):
    login: str


class Greeting(BaseModel):
    text: str
    attempts: int


@dispatcher.task(on_events=["user:created"], retries=3, backoff_factor=1.5, execution_timeout="30s")
async def welcome(input: User, ctx: Context) -> Greeting:
    ctx.log(f"greeting {input.login}, attempt {ctx.attempt_number}")
    if ctx.retry_count == 0:
        raise ConnectionError("the mail server is away")  # any exception is retried, with backoff
    return Greeting(text=f"Welcome, {input.login}!", attempts=ctx.attempt_number)


class PullRequest(BaseModel):
    title: str
    draft: bool
    additions: int
    deletions: int


class PullRequestEvent(BaseModel):
    number: int
    pull_request: PullRequest


@dispatcher.task(on_events=["pull_request:opened"])
def review(input: PullRequestEvent, ctx: Context) -> dict[str, str]:
    if input.pull_request.draft:
        raise NonRetryableError("a draft is not reviewed")
    lines = input.pull_request.additions + input.pull_request.deletions
    return {"title": input.pull_request.title, "review": "by one" if lines < 100 else "by two"}


app = dispatcher.app(workflows=[welcome, review])

if __name__ == "__main__":
    dispatcher.serve("examples", workflows=[welcome, review])
