"""/v1/runs/{id}/journal, reset, resume, messages, checkpoint: what there is about durable tasks beside their runs."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.triggering import Moment
from dispatcher.delivery import rfc3339
from dispatcher.ids import seed
from dispatcher.runtime.durable import entries_of


class TaskQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Which of a workflow's durable tasks, by its name; need not be said where there is only one."""

    task: str | None = None


class ResetBody(msgspec.Struct, forbid_unknown_fields=True):
    """From which node of the journal to go on: all that came before stays. Without a node everything stays."""

    journal_node: str | None = None
    task: str | None = None


class MessageBody(msgspec.Struct, forbid_unknown_fields=True):
    """A message, any JSON value."""

    data: Raw
    task: str | None = None


class NoBody(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing."""


class Log(msgspec.Struct, frozen=True):
    """A log of a task. A task that continued, or was reset, has one for each of its `generation`s; the last is the one it goes by.

    `seed` and `started_at` are what its turns were sent with, `input` too where it is another than the run's.
    """

    task: str
    generation: int
    current: bool
    seed: str
    started_at: Moment | None
    entries: list[dict[str, Any]]
    input: Any | UnsetType = UNSET


class Journal(msgspec.Struct, frozen=True):
    """The journal of a run: `entries` are those its durable task goes by, `logs` all there are."""

    id: str
    entries: list[dict[str, Any]]
    logs: list[Log]


class Changed(msgspec.Struct, frozen=True):
    """A run that goes on."""

    id: str
    status: str


class Delivered(msgspec.Struct, frozen=True):
    """The message is in the inbox, behind those sent before."""

    delivered: bool


class Saved(msgspec.Struct, frozen=True):
    """What a task last saved, and when."""

    value: Any
    at: Moment


_RESET: Final = msgspec.json.Decoder(ResetBody)
_MESSAGE: Final = msgspec.json.Decoder(MessageBody)
_NOTHING: Final = msgspec.json.Decoder(NoBody)


async def journal(call: Call) -> Answer:
    """The journal of a run's durable tasks, entry by entry as it was written. Kept as long as the run is."""
    run_id, durable = call.path["run_id"], call.services.durable
    kept = await durable.logs(call.tenant_id, run_id)
    names = await durable.task_names(call.tenant_id, run_id)
    last = {log.node: number for number, log in enumerate(kept)}
    logs = [
        {
            "task": names[log.node] if log.node < len(names) else str(log.node),
            "generation": log.generation,
            "current": last[log.node] == number,
            "seed": seed(call.tenant_id, run_id, log.node),
            "started_at": rfc3339(log.since) if log.since is not None else None,
            **({"input": Raw(log.input)} if log.input is not None else {}),
            "entries": [Raw(entry) for entry in entries_of(log)],
        }
        for number, log in enumerate(kept)
    ]
    current: list[Raw] = next((log["entries"] for log in reversed(logs) if log["current"]), [])  # type: ignore[misc]
    return json_answer(200, {"id": run_id, "entries": current, "logs": logs})


async def reset(call: Call) -> Answer:
    """Let a durable task go on from a node of its journal, as a branch: what came before stays, the rest is run again."""
    run_id = call.path["run_id"]
    body: ResetBody = await call.json(_RESET)
    await call.services.durable.reset(call.tenant_id, run_id, body.journal_node, body.task)
    return json_answer(200, Changed(run_id, "queued"))


async def resume(call: Call) -> Answer:
    """Let what is blocked in a run try again, on the version that is the latest now."""
    run_id = call.path["run_id"]
    await call.json(_NOTHING)
    await call.services.durable.resume(call.tenant_id, run_id)
    return json_answer(200, Changed(run_id, "queued"))


async def send_message(call: Call) -> Answer:
    """Send a message to a running durable task. It receives messages in the order they were sent, whenever it asks for one."""
    run_id, durable = call.path["run_id"], call.services.durable
    body: MessageBody = await call.json(_MESSAGE)
    await durable.send(call.tenant_id, run_id, await durable.node_of(call.tenant_id, run_id, body.task), bytes(body.data))
    return json_answer(202, Delivered(delivered=True))


async def checkpoint(call: Call) -> Answer:
    """What a durable task last saved for itself and others, while it runs and after."""
    run_id, durable = call.path["run_id"], call.services.durable
    found = await durable.checkpoint(call.tenant_id, run_id, await durable.node_of(call.tenant_id, run_id, call.query.task))
    return json_answer(200, {"value": Raw(found.value), "at": found.at})


_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8")

ROUTES: Final = (
    Route("GET", "/v1/runs/{run_id}/journal", journal, "runs:read", {200: Journal}, problems=("not_found", "not_durable")),
    Route(
        "POST", "/v1/runs/{run_id}/reset", reset, "runs:write", {200: Changed}, body=ResetBody,
        problems=(*_BAD_BODY, "not_found", "not_durable", "unknown_node", "turn_running", "unknown_workflow"),
    ),
    Route(
        "POST", "/v1/runs/{run_id}/resume", resume, "runs:write", {200: Changed}, body=NoBody,
        problems=(*_BAD_BODY, "not_found", "not_blocked"),
    ),
    Route(
        "POST", "/v1/runs/{run_id}/messages", send_message, "runs:write", {202: Delivered}, body=MessageBody,
        problems=(*_BAD_BODY, "not_found", "not_durable", "inbox_closed", "body_too_large"),
    ),
    Route(
        "GET", "/v1/runs/{run_id}/checkpoint", checkpoint, "runs:read", {200: Saved}, TaskQuery,
        problems=("not_found", "not_durable", "invalid_value", "unknown_parameter"),
    ),
)  # fmt: skip
