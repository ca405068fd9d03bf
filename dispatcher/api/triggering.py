"""What runs and events are asked for with: their bodies as structs, and from a struct to the request intake takes.

Inputs, data and metadata are never parsed here: they are passed on as the bytes that came, after one check of the whole body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from dispatcher import ids
from dispatcher.api.bodies import BodyLimits, check_item, decode_checked
from dispatcher.api.decoding import duration, moment
from dispatcher.api.edge import Answer, Call, json_answer
from dispatcher.api.metadata import without_system_keys
from dispatcher.api.referring import value_of
from dispatcher.engine.definitions import EVENT_KEY, LONGEST, DefinitionError
from dispatcher.engine.definitions.placement import DesiredLabels, parse_desired_labels
from dispatcher.engine.schedules import UTC_NAME, ScheduleError, parse_when, zone
from dispatcher.errors import Problem, problem
from dispatcher.runtime.firing import Plan
from dispatcher.runtime.intake import EventRequest, RunRequest
from dispatcher.runtime.tokens import AttemptToken
from dispatcher.store import tasks

T = TypeVar("T")
Request = TypeVar("Request")
Accepted = TypeVar("Accepted")

Name = Annotated[str, Meta(min_length=1, max_length=401)]
Priority = Annotated[int, Meta(ge=1, le=3, description="1 low, 2 medium, 3 high; the workflow's own where absent")]
Key = Annotated[str, Meta(min_length=1, max_length=500)]
Moment = Annotated[datetime, Meta(tz=True)]

_CALLS: Final = frozenset({"call", "hot:call"})
_PLANS: Final = frozenset({"schedule:new", "hot:schedule:new"})
_RESERVED: Final = ("hot:", "schedule:new")
_ABSENT: Final = (b"", b"null")


class RunBody(msgspec.Struct, forbid_unknown_fields=True):
    """A run to start. `idempotency_ttl` is a duration such as "24h"; `run_at` is at most ten years ahead.

    `"refs": ["input"]` says that the input is a reference, as PUT /v1/blobs answers it: it is replaced by its value before anything else.
    `labels` are asked of the endpoints of its tasks, as `desired_labels` of a task. A child that is `sticky` begins where its parent is,
    if its workflow is sticky too. With the token of a running attempt it is that attempt's child, and the same child for the same
    `child_key`, whichever attempt of the task asks for it.
    """

    workflow: Name
    input: Raw | UnsetType = UNSET
    refs: list[Literal["input"]] = []
    metadata: Raw | UnsetType = UNSET
    priority: Priority | None = None
    idempotency_key: Key | None = None
    idempotency_ttl: str | None = None
    run_at: Moment | None = None
    parent_run_id: str | None = None
    labels: dict[str, Any] | None = None
    sticky: bool = False
    child_key: Key | None = None


class EventBody(msgspec.Struct, forbid_unknown_fields=True):
    """An event, as `type` and `data` or as `event_type` and `event_data`.

    `refs` names the one of the two that is a reference, as PUT /v1/blobs answers it: it is replaced by its value before anything else.
    """

    type: str | None = None
    data: Raw | UnsetType = UNSET
    event_type: str | None = None
    event_data: Raw | UnsetType = UNSET
    refs: list[Literal["data", "event_data"]] = []
    metadata: Raw | UnsetType = UNSET
    scope: Key | None = None
    priority: Priority | None = None
    idempotency_key: Key | None = None
    idempotency_ttl: str | None = None


class RunsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Runs to start, each judged by itself."""

    runs: list[Raw]


class EventsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Events to send, each judged by itself."""

    events: list[Raw]


class _CallData(msgspec.Struct, forbid_unknown_fields=True):
    """The data of a `call` event."""

    fn: Name
    args: list[Raw] = []


class _PlanData(msgspec.Struct, forbid_unknown_fields=True):
    """The data of a `schedule:new` event: a call for later, or for every tick of a cron expression."""

    fn: Name
    schedule: Annotated[str, Meta(min_length=1, max_length=200)]
    args: list[Raw] = []
    timezone: str = UTC_NAME
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


RUN: Final = msgspec.json.Decoder(RunBody)
RUNS: Final = msgspec.json.Decoder(RunsBody)
EVENT: Final = msgspec.json.Decoder(EventBody)
EVENTS: Final = msgspec.json.Decoder(EventsBody)
_CALL: Final = msgspec.json.Decoder(_CallData)
_PLAN: Final = msgspec.json.Decoder(_PlanData)


async def with_values(call: Call, body: RunBody) -> RunBody:
    """The body with what goes by reference in it. Raises Problem invalid_ref, unknown_ref."""
    if body.refs:
        body.input = await value_of(call, "input", json_text(body.input))
    return body


async def with_data(call: Call, body: EventBody) -> EventBody:
    """The event with its data in it. Raises Problem invalid_ref, unknown_ref."""
    if body.refs:
        member = referred(body)
        setattr(body, member, await value_of(call, member, json_text(getattr(body, member))))
    return body


def referred(body: EventBody, at: str = "") -> Literal["data", "event_data"]:
    """Which member of an event goes by reference. Raises Problem invalid_ref unless it is the one that is there."""
    if len(set(body.refs)) != 1 or getattr(body, body.refs[0]) is UNSET:
        raise problem("invalid_ref", f"{at}refs: names the data of the event, where that is a reference", field=f"{at}refs")
    return body.refs[0]


def referred_in_bulk(body: EventBody, at: str) -> Literal["data", "event_data"]:
    """The same of one of many events, whose data is not looked at. Raises Problem invalid_ref for a call, which is told by its data."""
    if (body.type or body.event_type) in _CALLS | _PLANS:
        raise problem("invalid_ref", f"{at}refs: the data of a call by reference is taken by POST /v1/events", field=f"{at}refs")
    return referred(body, at)


def run_request(call: Call, body: RunBody, at: str = "") -> RunRequest:
    """A run as intake takes it. Raises Problem for what a struct cannot say."""
    if call.caller.attempt is not None:
        return _child(call, call.caller.attempt, body, at)
    if body.child_key is not None:
        raise problem("invalid_value", f"{at}child_key: for tasks that start children, with the token of their attempt", field="child_key")
    return _run(call, body, at)


def _child(call: Call, attempt: AttemptToken, body: RunBody, at: str) -> RunRequest:
    """A run that a running attempt starts. What it starts again after a retry is what it has started before."""
    if body.parent_run_id not in (None, attempt.run_id) or (body.idempotency_key is not None and body.child_key is not None):
        detail = f"{at}parent_run_id: the attempt's own run, if any; child_key stands for idempotency_key"
        raise problem("invalid_value", detail, field="parent_run_id")
    request = _run(call, body, at)
    request.parent_run_id, request.parent_node, request.trigger = attempt.run_id, attempt.node, "child"
    if body.child_key is not None:
        request.idempotency_key = f"child:{ids.task_id(attempt.run_id, attempt.node)}:{body.child_key}"
        request.idempotency_ttl = timedelta(seconds=call.services.settings.child_key_ttl)
    return request


async def check_attempt(call: Call) -> None:
    """Refuse an attempt that no longer owns its task: what it starts nobody would wait for."""
    attempt = call.caller.attempt
    if attempt is None:
        return
    task = await tasks.load_one(call.services.database, (attempt.tenant_id, attempt.run_id, attempt.node))
    name = ids.task_id(attempt.run_id, attempt.node)
    if task is None:
        raise problem("task_ended", f"{name} is over")
    if task.epoch != attempt.epoch or task.state != "running":
        raise problem("stale_attempt", f"attempt {attempt.epoch} of {name} no longer owns the task")


def _run(call: Call, body: RunBody, at: str) -> RunRequest:
    return RunRequest(
        tenant_id=call.caller.tenant_id,
        workflow=body.workflow,
        input=json_text(body.input) or b"{}",
        metadata=metadata_text(call, body.metadata, at),
        priority=body.priority,
        idempotency_key=body.idempotency_key,
        idempotency_ttl=duration(body.idempotency_ttl, f"{at}idempotency_ttl"),
        run_at=moment(body.run_at, f"{at}run_at", call.services.clock.now() + LONGEST),
        parent_run_id=_parent(body.parent_run_id, at),
        labels=_labels(body.labels, f"{at}labels"),
        sticky=body.sticky,
    )


def event_request(call: Call, body: EventBody, at: str = "") -> EventRequest:
    """An event as intake takes it; one of type `call` names the workflow it runs, one of type `schedule:new` also when."""
    kind, data = _kind_and_data(body, at)
    workflow, arguments = _called(data, at) if kind in _CALLS else (None, None)
    plan = None
    if kind in _PLANS:
        workflow, arguments, plan = _planned(call, data, at)
    return EventRequest(
        tenant_id=call.caller.tenant_id,
        type=kind,
        data=data,
        metadata=metadata_text(call, body.metadata, at),
        scope=body.scope,
        priority=body.priority,
        idempotency_key=body.idempotency_key,
        idempotency_ttl=duration(body.idempotency_ttl, f"{at}idempotency_ttl"),
        workflow=workflow,
        input=arguments,
        plan=plan,
    )


def decode_item(item: Raw, decoder: msgspec.json.Decoder[T], at: str, limits: BodyLimits) -> T:
    """One item of a bulk call, which is held to what a call of its own would be."""
    text = bytes(item)
    if len(text) > limits.body:
        raise problem("body_too_large", f"{at}: larger than {limits.body:,} bytes", field=at)
    if text.count(b"{") + text.count(b"[") > limits.depth:
        check_item(text, at, limits)
    return decode_checked(text, decoder, at)


async def in_bulk(
    member: str,
    items: Sequence[Raw],
    make: Callable[[Raw, str], Request],
    take: Callable[[Sequence[Request]], Awaitable[Sequence[Accepted | Problem]]],
    show: Callable[[Accepted, Request], Any],
) -> Answer:
    """Rows for all items, in order: each is made into a request or refused by itself, and all requests are taken in together."""
    rows: list[Any] = [None] * len(items)
    requests, places = [], []
    for i, item in enumerate(items):
        try:
            requests.append(make(item, f"{member}[{i}]"))
            places.append(i)
        except Problem as refused:
            rows[i] = refused.document()
    accepted = await take(requests) if requests else []
    for i, request, answer in zip(places, requests, accepted, strict=True):
        rows[i] = answer.document() if isinstance(answer, Problem) else show(answer, request)
    return json_answer(200, {"rows": rows})


def one_of_schemas(*names: str) -> Meta:
    """For the description of the API: the items of a list are one of these."""
    return Meta(extra_json_schema={"items": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}})


def check_count(items: list[Any], most: int) -> None:
    """Raises Problem for a bulk call of too many items."""
    if len(items) > most:
        raise problem("bulk_too_large", f"{len(items):,} items in one call; at most {most:,} are taken")


def json_text(value: Raw | UnsetType) -> bytes:
    """JSON text as it came; empty where there was none."""
    return b"" if value is UNSET else bytes(value)


def metadata_text(call: Call, value: Raw | UnsetType, at: str = "") -> str | None:
    """The metadata a caller gives, None where there is none. Raises Problem for what is no object, and for one that is too large."""
    text = json_text(value)
    if text in _ABSENT:
        return None
    if not text.startswith(b"{"):
        raise problem("invalid_value", f"{at}metadata: an object is expected", field=f"{at}metadata")
    most = call.services.settings.max_metadata_bytes
    if len(text) > most:
        raise problem("body_too_large", f"{at}metadata: {len(text):,} bytes; at most {most:,} are taken", field=f"{at}metadata")
    return without_system_keys(text).decode()


def _labels(labels: dict[str, Any] | None, field: str) -> DesiredLabels:
    try:
        return parse_desired_labels(labels, field)
    except DefinitionError as error:
        raise problem("invalid_value", str(error), field=error.field) from None


def _parent(run_id: str | None, at: str) -> str | None:
    if run_id is not None and (not run_id.startswith("run_") or ids.created_at(run_id) is None or len(run_id) != 30):
        raise problem("invalid_value", f"{at}parent_run_id: not the id of a run", field=f"{at}parent_run_id")
    return run_id


def _kind_and_data(body: EventBody, at: str) -> tuple[str, bytes]:
    first, second = json_text(body.data), json_text(body.event_data)
    if (body.type is None) == (body.event_type is None) or (first and second):
        raise problem("invalid_value", f"{at}type: give either `type` with `data` or `event_type` with `event_data`", field=f"{at}type")
    kind = body.type if body.type is not None else body.event_type
    if not kind or not EVENT_KEY.fullmatch(kind):
        raise problem("invalid_value", f"{at}type: 1 to 500 characters, none of them control characters", field=f"{at}type")
    if kind.startswith(_RESERVED) and kind not in _CALLS and kind not in _PLANS:
        raise problem("invalid_value", f"{at}type: {kind!r} is reserved and not supported by this server", field=f"{at}type")
    return kind, first or second or b"{}"


def _called(data: bytes, at: str) -> tuple[str, bytes]:
    """(workflow, input) of a call: a single object among the arguments is the input itself, others are `{"args": […]}`."""
    called = decode_checked(data, _CALL, f"{at}data")
    return called.fn, _arguments(called.args)


def _arguments(args: Sequence[Raw]) -> bytes:
    if not args:
        return b"{}"
    if len(args) == 1 and bytes(args[0]).startswith(b"{"):
        return bytes(args[0])
    return msgspec.json.encode({"args": args})


def _planned(call: Call, data: bytes, at: str) -> tuple[str, bytes, Plan]:
    """(workflow, input, when) of a `schedule:new` event."""
    planned, place = decode_checked(data, _PLAN, f"{at}data"), f"{at}data.schedule"
    try:
        when = parse_when(planned.schedule, call.services.clock.now())
        zone(planned.timezone)
    except ScheduleError as error:
        raise problem(error.code, f"{place}: {error}", field=place) from None
    if isinstance(when, datetime):
        plan = Plan(call.services.schedules.checked(when, place), planned.timezone, planned.name)
    else:
        plan = Plan(" ".join(planned.schedule.split()), planned.timezone, planned.name)
    return planned.fn, _arguments(planned.args), plan
