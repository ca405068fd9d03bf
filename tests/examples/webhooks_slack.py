"""Mentions, slash commands and buttons in Slack start tasks. `python webhooks_slack.py` makes a webhook for each, and prints its URL."""

import os

from pydantic import BaseModel

from handlers_sdk import Context, Dispatcher, V1WebhookHMACAuth, V1WebhookSourceName

dispatcher = Dispatcher()


class SlackEvent(BaseModel):
    type: str
    user: str
    text: str
    channel: str


class SlackEventInput(BaseModel):
    event: SlackEvent


class SlackCommandInput(BaseModel):
    command: str
    text: str
    user_name: str
    response_url: str


class SlackAction(BaseModel):
    action_id: str


class SlackUser(BaseModel):
    username: str


class SlackInteractionInput(BaseModel):
    type: str
    actions: list[SlackAction]
    user: SlackUser


@dispatcher.task(input_validator=SlackEventInput, on_events=["slack:event:app_mention"])
def handle_slack_mention(input: SlackEventInput, ctx: Context) -> dict[str, bool]:
    ctx.log(f"Mentioned by {input.event.user} in {input.event.channel}: {input.event.text}")
    return {"handled": True}


@dispatcher.task(input_validator=SlackCommandInput, on_events=["slack:command:/deploy"])
def handle_slack_command(input: SlackCommandInput, ctx: Context) -> dict[str, str]:
    ctx.log(f"{input.user_name} ran {input.command} {input.text}")
    return {"command": input.command, "args": input.text}


@dispatcher.task(input_validator=SlackInteractionInput, on_events=["slack:interaction:block_actions"])
def handle_slack_interaction(input: SlackInteractionInput, ctx: Context) -> dict[str, str]:
    ctx.log(f"{input.user.username} clicked button: {input.actions[0].action_id}")
    return {"action": input.actions[0].action_id}


app = dispatcher.app(workflows=[handle_slack_mention, handle_slack_command, handle_slack_interaction])

EXPRESSIONS = {
    "slack-events": "'slack:event:' + input.event.type",
    "slack-commands": "'slack:command:' + input.command",
    "slack-interactions": "'slack:interaction:' + input.type",
}

if __name__ == "__main__":
    auth = V1WebhookHMACAuth(signing_secret=os.environ["SLACK_SECRET"])
    for name, expression in EXPRESSIONS.items():
        print(dispatcher.webhooks.create(V1WebhookSourceName.SLACK, name, expression, auth).url)
