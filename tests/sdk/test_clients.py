"""Every method of the clients by its name and parameters, as programs written for other engines of this kind call them, in both faces."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import pytest

from handlers_sdk import ClientConfig, Context, Dispatcher, DurableContext, EmptyModel, Standalone, Workflow

_BULK_FILTERS = "sleep_time chunk_size since until statuses additional_metadata workflow_ids"
_METRICS = "since until workflow_ids parent_task_external_id triggering_event_external_id"
_RUNS = (
    "since only_tasks offset limit statuses until additional_metadata workflow_ids worker_id parent_task_external_id "
    "triggering_event_external_id include_payloads"
)
CLIENTS: Mapping[str, Mapping[str, str]] = {
    "cron": {
        "create": "workflow_name cron_name expression input additional_metadata priority",
        "delete": "cron_id",
        "get": "cron_id",
        "list": "offset limit workflow_id additional_metadata order_by_field order_by_direction workflow_name cron_name",
    },
    "scheduled": {
        "create": "workflow_name trigger_at input additional_metadata",
        "delete": "scheduled_id",
        "get": "scheduled_id",
        "update": "scheduled_id trigger_at",
        "list": "offset limit workflow_id parent_workflow_run_id statuses additional_metadata order_by_field order_by_direction",
        "bulk_delete": "scheduled_ids workflow_id parent_workflow_run_id parent_step_run_id statuses additional_metadata",
        "bulk_update": "updates",
    },
    "filters": {
        "create": "workflow_id expression scope payload",
        "delete": "filter_id",
        "get": "filter_id",
        "list": "limit offset workflow_ids scopes",
        "update": "filter_id updates",
    },
    "logs": {"list": "task_run_id limit since until"},
    "metrics": {
        "get_queue_metrics": "",
        "get_task_metrics": _METRICS,
        "get_task_stats": "",
        "scrape_tenant_prometheus_metrics": "",
    },
    "rate_limits": {"put": "key limit duration"},
    "runs": {
        "get": "workflow_run_id",
        "get_status": "workflow_run_id",
        "list": _RUNS,
        "create": "workflow_name input additional_metadata priority",
        "replay": "run_id",
        "bulk_replay": "opts",
        "cancel": "run_id",
        "bulk_cancel": "opts",
        "get_result": "run_id",
        "get_task_run": "task_run_id",
        "bulk_cancel_by_filters_with_pagination": _BULK_FILTERS,
        "bulk_replay_by_filters_with_pagination": _BULK_FILTERS,
    },
    "workflows": {
        "delete": "workflow_id",
        "get": "workflow_id",
        "get_version": "workflow_id version",
        "list": "workflow_name limit offset",
    },
    "event": {"push": "event_key payload additional_metadata priority scope", "bulk_push": "events"},
}
_ONE_FACE = {"runs": {"get_run_ref": "workflow_run_id", "subscribe_to_stream": "workflow_run_id"}}
_RUNNABLE = {
    "run": "input options",
    "run_no_wait": "input options",
    "run_many": "workflows return_exceptions",
    "run_many_no_wait": "workflows",
    "schedule": "run_at input options",
    "create_cron": "cron_name expression input additional_metadata priority",
    "list_runs": (
        "since until limit offset statuses additional_metadata worker_id parent_task_external_id only_tasks triggering_event_external_id"
    ),
    "create_filter": "expression scope payload",
    "delete": "",
}
_CONTEXT = (
    "was_triggered_by_event workflow_input lifespan workflow_run_id retry_count attempt_number additional_metadata parent_workflow_run_id "
    "priority workflow_id workflow_version_id task_run_errors was_skipped task_output cancel aio_cancel done log release_slot put_stream "
    "refresh_timeout fetch_task_run_error get_task_run_error filter_payload exit_flag aio_put_stream"
)
_FACES = [
    (client, face + method, names) for client, methods in CLIENTS.items() for method, names in methods.items() for face in ("", "aio_")
]


def _takes(function: object, names: str) -> list[str]:
    """Those of these parameters that cannot be given by name, and those that must be though they are not named here."""
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]  # it is callable
    missing = [name for name in names.split() if name not in parameters]
    keywords = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in keywords and p.name not in names.split()]
    return missing + needed


@pytest.mark.parametrize(("client", "method", "names"), _FACES, ids=[f"{client}.{method}" for client, method, _ in _FACES])
def test_methods_of_clients(client: str, method: str, names: str) -> None:
    function = getattr(getattr(Dispatcher(ClientConfig()), client), method)
    assert _takes(function, names) == []
    assert inspect.iscoroutinefunction(function) == method.startswith("aio_")


def test_methods_of_one_face() -> None:
    dispatcher = Dispatcher(ClientConfig())
    for client, methods in _ONE_FACE.items():
        for method, names in methods.items():
            assert _takes(getattr(getattr(dispatcher, client), method), names) == []


@pytest.mark.parametrize("face", ["", "aio_"], ids=["sync", "async"])
@pytest.mark.parametrize("method", _RUNNABLE)
def test_methods_of_what_can_be_run(method: str, face: str) -> None:
    dispatcher = Dispatcher(ClientConfig())

    @dispatcher.task()
    def alone(input: EmptyModel, ctx: Context) -> None:
        """A task."""

    flow = dispatcher.workflow("flow")
    assert isinstance(alone, Standalone)
    assert isinstance(flow, Workflow)
    for one in (alone, flow):
        assert _takes(getattr(one, face + method), _RUNNABLE[method]) == []
        assert _takes(one.create_bulk_run_item, "input key options") == []
    assert _takes(alone.get_result, "run_id") == _takes(alone.aio_get_result, "run_id") == _takes(alone.get_run_ref, "run_id") == []
    mocked = "input additional_metadata parent_outputs retry_count lifespan dependencies"
    assert _takes(alone.mock_run, mocked) == _takes(alone.aio_mock_run, mocked) == []


@pytest.mark.parametrize("name", [*_CONTEXT.split(), *(f"durable.{name}" for name in ("aio_wait_for", "aio_sleep_for"))])
def test_what_a_context_has(name: str) -> None:
    assert hasattr(DurableContext if name.startswith("durable.") else Context, name.removeprefix("durable."))


def test_a_worker_is_put_together_and_started(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = Dispatcher(ClientConfig())
    served: list[tuple[tuple[object, ...], dict[str, object]]] = []
    monkeypatch.setattr(dispatcher, "serve", lambda *args, **options: served.append((args, options)))
    one, two, three = (dispatcher.workflow(name) for name in ("one", "two", "three"))
    worker = dispatcher.worker("own", slots=5, durable_slots=3, labels={"gpu": 1}, workflows=[one])
    worker.register_workflow(two)
    worker.register_workflows([three])
    worker.start(port=9000)
    options = {"slots": 5, "durable_slots": 3, "labels": {"gpu": 1}, "lifespan": None, "port": 9000}
    assert served == [(("own", [one, two, three]), options)]
    dispatcher.worker("plain").start()
    assert served[1] == (("plain", []), {"slots": 100, "durable_slots": None, "labels": None, "lifespan": None})
