"""`dispatcher crons` and `dispatcher schedules` against a development server, and the SDK's clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from handlers_sdk import (
    ApiError,
    ClientConfig,
    ConfigError,
    Context,
    CronTrigger,
    Dispatcher,
    DurableContext,
    EmptyModel,
    InvalidInputError,
    Priority,
    ScheduledRunStatus,
    ScheduledWorkflowsBulkUpdateItem,
    ScheduleTriggerWorkflowOptions,
    Standalone,
)
from tests.cli.running import Done, Server, invoke, new_database

LATER = datetime(2030, 1, 1, 9, tzinfo=UTC)


class Report(BaseModel):
    """An input."""

    customer: str


@pytest.fixture(scope="module")
async def own_dsn(server: str) -> AsyncIterator[str]:
    """A database that no other test empties."""
    async with new_database(server) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def url(own_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `dispatcher dev` answers, with a workflow `report` that declares a cron, and one `plain`."""
    data = tmp_path_factory.mktemp("dev")
    with Server("dev", "--data", str(data), cwd=data, DATABASE_URL=own_dsn) as dev:
        handlers = [{"name": "report", "on_crons": ["0 0 1 1 *"]}, {"name": "plain"}]
        body = {"url": "http://127.0.0.1:9/", "handlers": handlers}
        assert httpx.put(f"{dev.url}/v1/endpoints/plain", json=body, trust_env=False).is_success
        yield dev.url


@pytest.fixture
def client(url: str) -> Iterator[Dispatcher]:
    """The SDK."""
    dispatcher = Dispatcher(ClientConfig(api_url=url))
    yield dispatcher
    dispatcher.close()


def _command(url: str, *arguments: str) -> Done:
    return invoke(*arguments, DISPATCHER_URL=url)


def test_crons_on_the_command_line(url: str, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"a": 1}')
    done = _command(
        url, "crons", "create", "plain", "tea", "0 9 * * 1", "-z", "Asia/Tokyo", "-i", f"@{tmp_path / 'input.json'}", "-m", "team=x",
        "--priority", "2", "--missed", "run_once", "-o", "json",
    )  # fmt: skip
    assert done.code == 0, done.err
    made = done.json
    assert (made["input"], made["metadata"], made["priority"], made["missed"]) == ({"a": 1}, {"team": "x"}, 2, "run_once")
    shown = _command(url, "crons", "get", made["id"], "-o", "table")
    assert "At 09:00, only on Monday" in shown.out
    listed = _command(url, "crons", "list", "-w", "plain", "-o", "table")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["id", made["id"]]
    assert _command(url, "crons", "disable", made["id"], "-o", "json").json["enabled"] is False
    assert [row["id"] for row in _command(url, "crons", "list", "--disabled", "-o", "json").json["rows"]] == [made["id"]]
    assert _command(url, "crons", "enable", made["id"], "-o", "json").json["next_at"] == made["next_at"]
    assert _command(url, "crons", "trigger", made["id"], "-o", "json").json["workflow"] == "plain"
    assert _command(url, "crons", "delete", made["id"]).code == 0
    missing = _command(url, "crons", "get", made["id"])
    assert (missing.code, "unknown_cron" in missing.err or "no cron" in missing.err) == (3, True)
    refused = _command(url, "crons", "create", "plain", "tea", "0 9 * *")
    assert refused.code == 1
    assert "4 fields" in refused.err


def test_schedules_on_the_command_line(url: str) -> None:
    done = _command(url, "schedules", "create", "plain", "--in", "in 2 hours", "-i", '{"a":1}', "-m", "team=x", "-o", "json")
    assert done.code == 0, done.err
    made = done.json
    assert (made["status"], made["input"], made["metadata"]) == ("scheduled", {"a": 1}, {"team": "x"})
    at = _command(
        url, "schedules", "create", "plain", "--at", LATER.isoformat(), "--missed", "skip", "--misfire-grace", "5m", "-o", "json"
    ).json
    assert (at["run_at"], at["missed"], at["misfire_grace"]) == ("2030-01-01T09:00:00Z", "skip", "5m")
    assert (
        _command(url, "schedules", "reschedule", at["id"], "--at", "2031-01-01T00:00:00Z", "-o", "json").json["run_at"]
        == "2031-01-01T00:00:00Z"
    )
    rows = _command(url, "schedules", "list", "-w", "plain", "-s", "scheduled", "-m", "team=x", "-o", "json").json["rows"]
    assert [row["id"] for row in rows] == [made["id"]]
    started = _command(url, "schedules", "trigger", made["id"], "-o", "json").json
    assert started["status"] == "started"
    assert started["run_id"] in _command(url, "schedules", "get", made["id"], "-o", "table").out
    assert _command(url, "schedules", "delete", made["id"], at["id"]).code == 0
    assert _command(url, "schedules", "get", at["id"]).code == 3
    past = _command(url, "schedules", "create", "plain", "--at", "2020-01-01T00:00:00Z")
    assert past.code == 1
    assert "has passed" in past.err
    assert _command(url, "schedules", "create", "plain").code == 1


def test_the_cron_client(client: Dispatcher) -> None:
    made = client.cron.create(
        workflow_name="plain", cron_name="daily", expression="0 12 * * *", input={"name": "x"}, additional_metadata={"customer": "a"},
        priority=3, timezone="Europe/Berlin", missed="run_all",
    )  # fmt: skip
    assert (made.metadata.id, made.workflow_name, made.cron, made.additional_metadata) == (
        made.id,
        "plain",
        "0 12 * * *",
        {"customer": "a"},
    )
    assert (made.priority, made.timezone, made.missed, made.description) == (3, "Europe/Berlin", "run_all", "At 12:00")
    found = client.cron.get(made.metadata.id)
    assert len(found.next_runs) == 5
    client.cron.create("plain", "other", "@hourly")
    assert [row.name for row in client.cron.list(workflow_name="plain").rows] == ["other", "daily"]
    assert [row.name for row in client.cron.list(additional_metadata={"customer": "a"}).rows] == ["daily"]
    assert [row.name for row in client.cron.list(workflow_id="plain", offset=1, limit=1).rows] == ["daily"]
    assert [row.declared for row in client.cron.list(workflow_name="report").rows] == [True]
    assert client.cron.disable(made.id).enabled is False
    assert [row.name for row in client.cron.list(enabled=False).rows] == ["daily"]
    assert client.cron.enable(made.id).enabled is True
    assert client.cron.trigger(made.id).workflow_run_id.startswith("run_")
    for row in client.cron.list(workflow_name="plain").rows:
        client.cron.delete(row.id)
    with pytest.raises(ApiError) as caught:
        client.cron.get(made.id)
    assert caught.value.problem_code == "unknown_cron"


async def test_its_other_face(client: Dispatcher) -> None:
    made = await client.cron.aio_create("plain", "daily", "0 12 * * *", {}, {}, None)
    assert (await client.cron.aio_get(made.id)).name == "daily"
    assert [row.id for row in (await client.cron.aio_list(cron_name="daily")).rows] == [made.id]
    assert (await client.cron.aio_disable(made.id)).next_at is None
    assert (await client.cron.aio_enable(made.id)).next_at is not None
    assert (await client.cron.aio_trigger(made.id)).workflow_run_id.startswith("run_")
    await client.cron.aio_delete(made.id)
    assert (await client.cron.aio_list(cron_name="daily")).rows == []


def test_the_scheduled_client(client: Dispatcher) -> None:
    made = client.scheduled.create("plain", LATER, {"a": 1}, {"customer": "a"})
    assert (made.metadata.id, made.workflow_name, made.trigger_at, made.additional_metadata) == (made.id, "plain", LATER, {"customer": "a"})
    soon = client.scheduled.create("plain", timedelta(hours=1), priority=Priority.HIGH)
    assert soon.priority == 3
    assert client.scheduled.update(made.id, LATER + timedelta(days=1)).trigger_at == LATER + timedelta(days=1)
    assert client.scheduled.get(made.id).input == {"a": 1}
    assert [row.id for row in client.scheduled.list(workflow_id="plain").rows] == [soon.id, made.id]
    assert [
        row.id for row in client.scheduled.list(additional_metadata={"customer": "a"}, statuses=[ScheduledRunStatus.SCHEDULED]).rows
    ] == [made.id]
    assert [row.id for row in client.scheduled.list(offset=1, limit=5).rows] == [made.id]
    moved = client.scheduled.bulk_update([(made.id, LATER), ("sch_nobody", LATER)])
    assert (moved.ids, [error["id"] for error in moved.errors]) == ([made.id], ["sch_nobody"])
    assert client.scheduled.bulk_update([ScheduledWorkflowsBulkUpdateItem(soon.id, LATER)]).ids == [soon.id]
    assert client.scheduled.trigger(soon.id).status == ScheduledRunStatus.STARTED
    assert client.scheduled.bulk_delete(workflow_id="plain", statuses=["SCHEDULED"], additional_metadata={"customer": "a"}).ids == [made.id]
    assert client.scheduled.bulk_delete(scheduled_ids=[soon.id]).ids == [soon.id]
    with pytest.raises(ValueError, match="say which"):
        client.scheduled.bulk_delete()
    with pytest.raises(ApiError) as caught:
        client.scheduled.create("plain", datetime(2020, 1, 1, tzinfo=UTC))
    assert caught.value.problem_code == "schedule_in_past"


async def test_the_other_face_of_it(client: Dispatcher) -> None:
    made = await client.scheduled.aio_create("plain", timedelta(minutes=5))
    assert (await client.scheduled.aio_get(made.id)).status == "scheduled"
    assert (await client.scheduled.aio_update(made.id, LATER)).trigger_at == LATER
    assert (await client.scheduled.aio_bulk_update([(made.id, LATER)])).ids == [made.id]
    assert [row.id for row in (await client.scheduled.aio_list(statuses=["scheduled"])).rows] == [made.id]
    assert (await client.scheduled.aio_trigger(made.id)).run_id is not None
    assert (await client.scheduled.aio_bulk_delete([made.id])).ids == [made.id]
    other = await client.scheduled.aio_create("plain", LATER)
    await client.scheduled.aio_delete(other.id)
    assert (await client.scheduled.aio_list()).rows == []


def _report(client: Dispatcher) -> Standalone[Report, Any]:
    @client.task(name="report", input_validator=Report)
    async def report(input: Report, ctx: Context) -> str:
        return input.customer

    return report


async def test_a_task_is_scheduled_by_its_methods(client: Dispatcher) -> None:
    task = _report(client)
    made = task.schedule(LATER, Report(customer="a"), priority=2)
    assert (made.workflow, made.input, made.priority) == ("report", {"customer": "a"}, 2)
    options = ScheduleTriggerWorkflowOptions(additional_metadata={"k": "v"}, priority=3)
    other = await task.aio_schedule(timedelta(hours=2), Report(customer="b"), options)
    assert (other.additional_metadata, other.priority) == ({"k": "v"}, 3)
    cron = task.create_cron("a-daily", "0 12 * * *", Report(customer="a"), {"customer_id": "a"}, Priority.HIGH, timezone="Asia/Tokyo")
    assert (cron.input, cron.additional_metadata, cron.priority, cron.timezone) == (
        {"customer": "a"},
        {"customer_id": "a"},
        3,
        "Asia/Tokyo",
    )
    second = await task.aio_create_cron(cron_name="b-daily", expression="0 12 * * *", input=Report(customer="b"))
    assert second.metadata.id != cron.metadata.id
    with pytest.raises(InvalidInputError):
        task.schedule(LATER)
    with pytest.raises(InvalidInputError):
        task.create_cron("bad", "0 12 * * *")
    with pytest.raises(ConfigError):
        task.schedule(LATER, Report(customer="a"), priority=7)


def test_what_a_task_declares(client: Dispatcher) -> None:
    trigger = CronTrigger(
        "0 9 * * *", timezone="Europe/Berlin", name="tea", input={"a": 1}, additional_metadata={"b": 2}, missed="run_once"
    )

    @client.task(on_crons=["*/5 * * * *", trigger])
    def tick(input: EmptyModel, ctx: Context) -> None: ...

    @client.task()
    def silent(input: EmptyModel, ctx: Context) -> None: ...

    @client.durable_task(on_crons=["0 0 * * *"])
    async def long(input: EmptyModel, ctx: DurableContext) -> None: ...

    workflow = client.workflow("flow", on_crons=["@daily"])

    @workflow.task()
    def step(input: EmptyModel, ctx: Context) -> None: ...

    app = client.app([tick, silent, long, workflow])
    entries = {entry["name"]: entry.get("on_crons") for entry in app.handlers.manifest("nonce")["handlers"]}
    said = {
        "expression": "0 9 * * *",
        "timezone": "Europe/Berlin",
        "name": "tea",
        "input": {"a": 1},
        "metadata": {"b": 2},
        "missed": "run_once",
    }
    assert entries == {"tick": ["*/5 * * * *", said], "silent": None, "long": ["0 0 * * *"], "flow": ["@daily"]}
    with pytest.raises(ConfigError, match="on_crons"):
        client.workflow("bad", on_crons=["* * * *"])
