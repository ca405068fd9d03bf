"""Pull requests opened on GitHub start a task. `python webhooks_github.py` makes the webhook and prints its Payload URL."""

import os

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, V1WebhookHMACAuth, V1WebhookSourceName

dispatcher = Dispatcher()


class GitHubPullRequest(BaseModel):
    number: int
    title: str


class GitHubRepository(BaseModel):
    full_name: str


class GitHubPRInput(BaseModel):
    action: str
    pull_request: GitHubPullRequest
    repository: GitHubRepository


class GitHubPROutput(BaseModel):
    repo: str
    pr: int


@dispatcher.task(input_validator=GitHubPRInput, on_events=["github:pull_request:opened"])
def handle_github_pr(input: GitHubPRInput, ctx: Context) -> GitHubPROutput:
    repo, pr = input.repository.full_name, input.pull_request
    ctx.log(f"PR #{pr.number} opened on {repo}: {pr.title}")
    return GitHubPROutput(repo=repo, pr=pr.number)


app = dispatcher.app(workflows=[handle_github_pr])

if __name__ == "__main__":
    webhook = dispatcher.webhooks.create(
        source_name=V1WebhookSourceName.GITHUB,
        name="github",
        # Pushes, forks and stars have no action: without has() they would find no place.
        event_key_expression="'github:' + headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')",
        auth=V1WebhookHMACAuth(signing_secret=os.environ["GITHUB_SECRET"]),
    )
    print(webhook.url)
