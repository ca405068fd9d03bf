"""Starting runs: one, or thousands in as few requests as the dispatcher's limits allow, answered in the order asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from handlers_sdk.api import Api
from handlers_sdk.children import REMEMBERED, ChildOf
from handlers_sdk.definitions import check_priority
from handlers_sdk.durations import Duration, format_duration, parse_duration
from handlers_sdk.errors import ApiError, ApiUnreachableError, DispatcherError, IdempotencyCollisionError
from handlers_sdk.placement import LabelsForm, label_entries
from handlers_sdk.references import CALL_BYTES_MAX, upload_here
from handlers_sdk.runs import WAIT_SECONDS, Run
from handlers_sdk.schemas import dump_json

BULK_ITEMS_MAX: Final = 1_000
BULK_BYTES_MAX: Final = 4_000_000
BULK_REFERRED_MAX: Final = 16_000_000
"""Values that the items of one bulk call may name instead of holding them, in bytes together."""


@dataclass(frozen=True, slots=True)
class TriggerWorkflowOptions:
    """How a run is started, beside its input.

    `additional_metadata` is carried by the run and its attempts. `idempotency_key` starts at most one run of the workflow within
    `idempotency_ttl` (the dispatcher's default when None): a second one raises IdempotencyCollisionError. `child_key` names the run among
    the children of the task that starts it, in place of the call's place: the same key gives the same
    child. Outside of tasks it has no effect.
    `desired_worker_labels` are asked of the endpoints of its tasks beside what those ask themselves. A `sticky` child begins where its
    parent is, if its workflow is sticky.
    """

    additional_metadata: Mapping[str, Any] | None = None
    priority: int | None = None
    idempotency_key: str | None = None
    idempotency_ttl: Duration | None = None
    child_key: str | None = None
    desired_worker_labels: LabelsForm = None
    sticky: bool = False

    def __post_init__(self) -> None:
        if self.priority is not None:
            check_priority(self.priority)

    def members(self) -> dict[str, Any]:
        """The members of the call, those that were given."""
        ttl = None if self.idempotency_ttl is None else format_duration(parse_duration(self.idempotency_ttl))
        named = {
            "metadata": self.additional_metadata,
            "priority": self.priority,
            "idempotency_key": self.idempotency_key,
            "idempotency_ttl": ttl,
            "labels": label_entries(self.desired_worker_labels) or None,
            "sticky": self.sticky or None,
        }
        return {name: value for name, value in named.items() if value is not None}


NO_OPTIONS: Final = TriggerWorkflowOptions()


@dataclass(frozen=True, slots=True)
class WorkflowRunTriggerConfig:
    """One run to start: made by `create_bulk_run_item`. `input` is JSON text. Items of one call with one `key` are one run.

    `referred` says that the input is a reference to it, which is `size` bytes.
    """

    workflow_name: str
    input: bytes
    options: TriggerWorkflowOptions = field(default_factory=TriggerWorkflowOptions)
    key: str | None = None
    parent: ChildOf | None = None
    referred: bool = False
    size: int = 0

    def text(self) -> bytes:
        """The call's JSON. The input is copied as it is."""
        members = self.options.members()
        if self.parent is not None:
            members |= {"parent_run_id": self.parent.run_id}
            if self.options.idempotency_key is None:
                members |= {"idempotency_key": self.parent.key, "idempotency_ttl": REMEMBERED}
        if self.referred:
            members |= {"refs": ["input"]}
        rest = dump_json(members, "input")[1:-1]
        return b'{"workflow":%b,"input":%b%b%b}' % (dump_json(self.workflow_name), self.input, b"," if rest else b"", rest)


async def start_run(api: Api, config: WorkflowRunTriggerConfig, *, wait: bool) -> Run:
    """Start one run; with `wait`, give it up to WAIT_SECONDS to end. IdempotencyCollisionError when the key already started one.

    An input too large for the call is uploaded first.
    """
    config = await _sendable(api, config)
    params = {"wait": f"{WAIT_SECONDS}s"} if wait else None
    _, body = await api.request("POST", "/v1/runs", content=config.text(), params=params, wait=WAIT_SECONDS if wait else 0)
    return _started(body, config)


async def start_runs(api: Api, configs: Sequence[WorkflowRunTriggerConfig]) -> list[Run | DispatcherError]:
    """Start many; for each, in order, its run or why there is none. A chunk that cannot be sent fails its own items only."""
    firsts = _distinct(configs)
    fates: dict[int, Run | DispatcherError] = {}
    ready: dict[int, WorkflowRunTriggerConfig] = {}
    for index in sorted(set(firsts)):
        try:
            ready[index] = await _sendable(api, configs[index])
        except DispatcherError as error:
            fates[index] = error
    left = list(ready)
    for chunk in chunks([one.text() for one in ready.values()], [one.size for one in ready.values()]):
        these, left = left[: len(chunk)], left[len(chunk) :]
        fates |= zip(these, await _start_chunk(api, chunk, [ready[index] for index in these]), strict=True)
    return [fates[first] for first in firsts]


async def _sendable(api: Api, config: WorkflowRunTriggerConfig) -> WorkflowRunTriggerConfig:
    """The same with its input uploaded where it is too large for the call."""
    if config.referred or len(config.input) <= CALL_BYTES_MAX:
        return config
    reference = await upload_here(api, config.input)
    return config if reference is None else replace(config, input=reference, referred=True, size=len(config.input))


async def _start_chunk(api: Api, chunk: Sequence[bytes], configs: Sequence[WorkflowRunTriggerConfig]) -> list[Run | DispatcherError]:
    try:
        rows = await send_bulk(api, "/v1/runs/bulk", "runs", chunk)
    except DispatcherError as error:
        return [error] * len(chunk)
    return [_row(row, config) for row, config in zip(rows, configs, strict=True)]


async def send_bulk(api: Api, path: str, member: str, items: Sequence[bytes]) -> list[Any]:
    """The rows a bulk call answers, one per item, in order."""
    _, body = await api.request("POST", path, content=b'{"%b":[%b]}' % (member.encode(), b",".join(items)))
    rows = body.get("rows") if isinstance(body, dict) else None
    if not isinstance(rows, list) or len(rows) != len(items):
        raise ApiUnreachableError(f"{path} did not answer one row for each of {len(items)} items")
    return rows


def chunks(items: Sequence[bytes], values: Sequence[int] | None = None) -> Iterator[list[bytes]]:
    """The items in order, cut where a bulk call would have too many or too large ones. `values` is how large what each refers to is."""
    chunk: list[bytes] = []
    size = referred = 0
    for item, value in zip(items, values or [0] * len(items), strict=True):
        full = len(chunk) == BULK_ITEMS_MAX or size + len(item) > BULK_BYTES_MAX or referred + value > BULK_REFERRED_MAX
        if chunk and full:
            yield chunk
            chunk, size, referred = [], 0, 0
        chunk.append(item)
        size += len(item) + 1
        referred += value
    if chunk:
        yield chunk


def refused(row: Any) -> ApiError | None:
    """The error of a bulk row that is a problem document."""
    if isinstance(row, dict) and isinstance(row.get("status"), int):
        return ApiError(row["status"], row)
    return None


def _row(row: Any, config: WorkflowRunTriggerConfig) -> Run | DispatcherError:
    error = refused(row)
    if error is not None:
        return error
    try:
        return _started(row, config)
    except IdempotencyCollisionError as collision:
        return collision


def _started(body: Any, config: WorkflowRunTriggerConfig) -> Run:
    run = Run.model_validate(body)
    if run.duplicate and (config.parent is None or config.options.idempotency_key is not None):  # a child started before is that child
        raise IdempotencyCollisionError(run.id, config.options.idempotency_key)
    return run


def _distinct(configs: Sequence[WorkflowRunTriggerConfig]) -> list[int]:
    """For each item the index of the first one with its key, or its own."""
    first: dict[tuple[str, str], int] = {}
    return [index if one.key is None else first.setdefault((one.workflow_name, one.key), index) for index, one in enumerate(configs)]
