"""/v1/runs: starting runs, waiting for them, reading and cancelling them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher.api.decoding import duration, one_of, span
from dispatcher.api.edge import Answer, Call, Route, json_answer
from dispatcher.api.listing import PageQuery, SearchText, page, position, search_query
from dispatcher.api.metadata import metadata_pairs
from dispatcher.api.referring import Referring, value_of
from dispatcher.api.run_documents import RunView, explained, show_run
from dispatcher.api.triggering import (
    RUN,
    RUNS,
    Moment,
    RunBody,
    RunsBody,
    check_attempt,
    check_count,
    decode_item,
    in_bulk,
    json_text,
    one_of_schemas,
    run_request,
    with_values,
)
from dispatcher.api.views import Fate, RunCreated, RunSummaryView, show_summary
from dispatcher.errors import Problem, problem
from dispatcher.runtime.intake import RunAccepted, RunRequest
from dispatcher.store import runs
from dispatcher.store.runs import FINAL_STATUSES, LIVE_STATUSES, RunFilter, RunRow, has_metadata


class WaitQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How long to wait for the run to end, e.g. `30s`; longer than the server allows is cut to what it allows."""

    wait: str | None = None


class RunsQuery(PageQuery, forbid_unknown_fields=True, frozen=True):
    """Which runs. `status` and `metadata` may be repeated; `metadata` is `key:value`."""

    status: tuple[str, ...] = ()
    workflow: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    metadata: tuple[str, ...] = ()
    event_id: str | None = None
    parent_run_id: str | None = None
    endpoint: str | None = None
    q: SearchText | None = None


class RunPage(msgspec.Struct, frozen=True):
    """Runs, newest first."""

    rows: list[RunSummaryView]
    next_cursor: str | None


class Rows(msgspec.Struct, frozen=True):
    """One row for each item, in order: what was made of it, or the problem with it (its `status` is a number)."""

    rows: Annotated[list[Any], one_of_schemas("RunCreated", "Problem")]


class CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    """Why."""

    reason: Annotated[str, Meta(max_length=1000)] = ""


class Cancelled(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run that is cancelled, or whose attempt was asked to end. `already`: it had been cancelled before."""

    id: str
    status: Fate
    already: bool = False


class RunReplayBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to run again: the whole run, with another `input` where one is given, or `task` and all that comes after it.

    A durable task goes on from its log, or from `journal_node` in it; with another input it begins anew. `"refs": ["input"]` says that the
    input is a reference, as PUT /v1/blobs answers it.
    """

    input: Raw | UnsetType = UNSET
    refs: list[Literal["input"]] = []
    task: str | None = None
    journal_node: str | None = None


_REPLAY: Final = msgspec.json.Decoder(RunReplayBody)
_CANCEL: Final = msgspec.json.Decoder(CancelBody)


async def create_run(call: Call) -> Answer:
    """Start a run. Answered once it is durable, or with `wait` once it has ended (200) or the time is up (202)."""
    body: RunBody = await call.json(RUN)
    wait = _seconds(call)
    await check_attempt(call)
    request = run_request(call, await with_values(call, body))
    accepted = (await call.services.intake.trigger([request]))[0]
    if isinstance(accepted, Problem):
        raise accepted
    if wait is not None:
        return await _waited(call, accepted.id, wait, duplicate=accepted.duplicate)
    if accepted.duplicate and (rows := await runs.get(call.services.database, call.tenant_id, accepted.id)):
        return json_answer(200, show_run(rows, duplicate=True))
    return json_answer(200 if accepted.duplicate else 201, _created(accepted, body.workflow), _location(accepted.id))


async def create_runs(call: Call) -> Answer:
    """Start up to 1,000 runs; one row for each, in order: the run, or the problem with it."""
    settings = call.services.settings
    body: RunsBody = await call.json_items(RUNS)
    check_count(body.runs, settings.max_bulk_items)
    await check_attempt(call)

    values: Referring[RunRequest] = Referring(call, _give)

    def make(item: Raw, at: str) -> RunRequest:
        run = decode_item(item, RUN, at, call.limits)
        request = run_request(call, run, f"{at}.")
        return values.note(request, request.input, f"{at}.input") if run.refs else request

    def show(accepted: RunAccepted, request: RunRequest) -> RunCreated:
        return _created(accepted, request.workflow)

    return await in_bulk("runs", body.runs, make, lambda requests: values.take(requests, call.services.intake.trigger), show)


def _give(request: RunRequest, value: bytes) -> None:
    request.input = value


async def get_run(call: Call) -> Answer:
    """A run with its tasks and attempts; with `wait`, once it has ended (200) or the time is up (202)."""
    run_id, wait = call.path["run_id"], _seconds(call)
    rows = await _rows(call, run_id)
    if wait is None or rows[0].status is not None:
        return json_answer(200, await _shown(call, rows))
    return await _waited(call, run_id, wait)


async def list_runs(call: Call) -> Answer:
    """Runs that match all filters, newest first, without their bodies."""
    query: RunsQuery = call.query
    before = position("runs", query, str)
    since, until = span(query.since, query.until)
    wanted = RunFilter(
        statuses=one_of(query.status, LIVE_STATUSES | FINAL_STATUSES, "status"),
        workflow=query.workflow,
        since=since,
        until=until,
        metadata=has_metadata(metadata_pairs(query.metadata)),
        event_id=query.event_id,
        parent_run_id=query.parent_run_id,
        endpoint=query.endpoint,
    )
    if query.q is not None:
        hits = await call.services.search.runs(call.tenant_id, wanted, search_query(query.q), before, query.limit)
        return page("runs", query, hits.rows, show_summary, lambda row: row.id, more=hits.last is not None, last=hits.last)
    found = await runs.page(call.services.database, call.tenant_id, wanted, before, query.limit + 1)
    return page("runs", query, found, show_summary, lambda row: row.id)


async def cancel_run(call: Call) -> Answer:
    """Cancel a run: at once (200), or by asking its running attempt to end (202). Cancelling it again changes nothing."""
    run_id = call.path["run_id"]
    body: CancelBody = await call.json(_CANCEL)
    fate = (await call.services.cancellation.cancel(call.tenant_id, [run_id], body.reason or "cancelled by request"))[run_id]
    if fate == "not_found":
        raise _unknown(run_id)
    already = False
    if fate == "finished":
        status = (await _rows(call, run_id))[0].status
        if status != "cancelled":
            raise problem("run_finished", f"run {run_id} is over: it {status}")
        fate, already = "cancelled", True
    return json_answer(202 if fate == "cancelling" else 200, Cancelled(run_id, fate, already))


async def replay_run(call: Call) -> Answer:
    """Run a finished run again under its own id: whole, or one task of a graph with what comes after it. Its attempts count on."""
    run_id, wait = call.path["run_id"], _seconds(call)
    body: RunReplayBody = await call.json(_REPLAY)
    if body.refs:
        body.input = await value_of(call, "input", json_text(body.input))
    given = bytes(body.input) if body.input is not UNSET else None
    if given is not None and body.task is not None:
        raise problem("invalid_value", "input: a run that goes on from one of its tasks keeps its input", field="input")
    if given is not None and body.journal_node is not None:
        raise problem("invalid_value", "input: a run that goes on from its log keeps its input", field="input")
    if body.journal_node is not None or (given is None and await call.services.durable.replays_from_log(call.tenant_id, run_id)):
        await call.services.durable.reset(call.tenant_id, run_id, body.journal_node, body.task)
    else:
        await call.services.replays.replay(call.tenant_id, run_id, body.task, given)
    if wait is not None:
        return await _waited(call, run_id, wait)
    return json_answer(200, show_run(await _rows(call, run_id)))


async def _waited(call: Call, run_id: str, seconds: float, *, duplicate: bool = False) -> Answer:
    await call.services.waiters.wait(call.tenant_id, run_id, seconds)
    rows = await _rows(call, run_id)
    return json_answer(202 if rows[0].status is None else 200, await _shown(call, rows, duplicate=duplicate))


async def _shown(call: Call, rows: list[RunRow], *, duplicate: bool = False) -> RunView:
    """The document of a run, with what its tasks wait for where they might run."""
    run = show_run(rows, duplicate=duplicate)
    if rows[0].status is not None or not any(task.status in _MAY_WAIT for task in run.tasks):
        return run
    return explained(run, await call.services.explaining.waiting_for(call.tenant_id, run.id))


async def _rows(call: Call, run_id: str) -> list[RunRow]:
    rows = await runs.get(call.services.database, call.tenant_id, run_id)
    if not rows:
        raise _unknown(run_id)
    return rows


def _seconds(call: Call) -> float | None:
    wait = duration(call.query.wait, "wait")
    return min(wait.total_seconds(), call.services.settings.max_wait) if wait is not None else None


def _unknown(run_id: str) -> Problem:
    return problem("not_found", f"there is no run {run_id[:100]!r}")


def _created(accepted: RunAccepted, workflow: str) -> RunCreated:
    if accepted.duplicate:
        return RunCreated(accepted.id, workflow, accepted.status, accepted.created_at, True)
    return RunCreated(accepted.id, workflow, accepted.status, accepted.created_at)


def _location(run_id: str) -> tuple[bytes, bytes]:
    return (b"location", b"/v1/runs/" + run_id.encode())


_BAD_BODY: Final = ("invalid_json", "invalid_value", "unknown_field", "too_deep", "nul_character", "number_out_of_range", "invalid_utf8")
_MAY_WAIT: Final = frozenset({"queued", "pending", "pending_retry", "waiting"})  # statuses of tasks there is something to say of
_BUSY: Final = ("overloaded", "database_unavailable")

ROUTES: Final = (
    Route(
        "POST", "/v1/runs", create_run, "runs:write", {201: RunCreated, 200: RunView, 202: RunView}, WaitQuery, RunBody,
        (
            *_BAD_BODY, "body_too_large", "unsupported_media_type", "unknown_workflow", "limit_failed", "stale_attempt", "task_ended",
            "invalid_ref", "unknown_ref", *_BUSY,
        ), attempts=True,
    ),
    Route(
        "POST", "/v1/runs/bulk", create_runs, "runs:write", {200: Rows}, body=RunsBody,
        problems=(*_BAD_BODY, "body_too_large", "bulk_too_large", "unsupported_media_type", "stale_attempt", "task_ended", *_BUSY),
        attempts=True,
    ),
    Route("GET", "/v1/runs", list_runs, "runs:read", {200: RunPage}, RunsQuery, problems=("invalid_value", "unknown_parameter")),
    Route("GET", "/v1/runs/{run_id}", get_run, "runs:read", {200: RunView, 202: RunView}, WaitQuery, problems=("not_found",)),
    Route(
        "POST", "/v1/runs/{run_id}/cancel", cancel_run, "runs:write", {200: Cancelled, 202: Cancelled}, body=CancelBody,
        problems=(*_BAD_BODY, "not_found", "run_finished"),
    ),
    Route(
        "POST", "/v1/runs/{run_id}/replay", replay_run, "runs:write", {200: RunView, 202: RunView}, WaitQuery, RunReplayBody,
        (
            *_BAD_BODY, "body_too_large", "unsupported_media_type", "not_found", "run_not_finished", "unknown_workflow", "invalid_ref",
            "unknown_ref", "database_unavailable",
        ),
    ),
)  # fmt: skip
