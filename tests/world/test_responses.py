"""The response table: what each answer of an endpoint costs, when the next attempt is due, and what becomes of the endpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tests.world.endpoint import Arrival
from tests.world.world import Node, World

HANDLER = {"name": "work", "retries": 2, "backoff_factor": 3, "execution_timeout": "50s"}

Way = Callable[[Arrival], None]


def _answer(status: int, body: object = b"", **headers: str) -> Way:
    return lambda arrival: arrival.answer(status, body, **headers)


@dataclass(frozen=True, slots=True)
class Ends:
    """The run is over after this answer."""

    status: str
    attempt: str
    code: str | None = None
    output: bytes | None = None
    kind: str | None = "application/json"


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt follows `after` seconds from now; `spent` says whether one of the handler's retries went."""

    attempt: str
    code: str
    after: float
    spent: bool
    circuit: str = "closed"


ROWS: dict[str, tuple[Way, int, Ends | Again]] = {
    "200 json": (_answer(200, {"a": 1}), 200, Ends("succeeded", "succeeded", None, b'{"a": 1}')),
    "201 json": (_answer(201, [1, "é"]), 201, Ends("succeeded", "succeeded", None, b'[1, "\\u00e9"]')),
    "204": (_answer(204, content_type=""), 204, Ends("succeeded", "succeeded", None, b"null")),
    "200 empty": (_answer(200, b"", content_type="text/html"), 200, Ends("succeeded", "succeeded", None, b"null")),
    "200 text": (_answer(200, b"hello", content_type="text/plain"), 200, Ends("succeeded", "succeeded", None, b"hello", "text/plain")),
    "200 html": (_answer(200, b"<html>log in", content_type="text/html"), 200, Again("endpoint_broken", "html", 1, False, "open")),
    "200 not json": (_answer(200, b"{oops"), 200, Ends("failed", "failed", "invalid_output")),
    "200 nul": (_answer(200, b'{"a":"\\u0000"}'), 200, Ends("failed", "failed", "invalid_output")),
    "200 gzip": (_answer(200, b"x", content_encoding="gzip"), 200, Again("endpoint_broken", "content_encoding", 1, False, "open")),
    **{
        f"{status}": (_answer(status, {"detail": "no"}), status, Ends("failed", "failed", f"http_{status}"))
        for status in (400, 406, 411, 414, 422, 431, 451, 501, 505)
    },
    "413": (_answer(413), 413, Ends("failed", "failed", "input_too_large")),
    **{
        f"{status}": (_answer(status, {"detail": "no"}), status, Again("failed", f"http_{status}", 3, True))
        for status in (408, 425, 500, 502, 504, 507, 599)
    },
    "500 final": (_answer(500, {"retry": False}), 500, Ends("failed", "failed", "http_500")),
    "500 final by header": (_answer(500, {"retry": True}, task_retry="false"), 500, Ends("failed", "failed", "http_500")),
    "422 again": (_answer(422, {"retry": True}), 422, Again("failed", "http_422", 3, True)),
    "500 again later": (_answer(500, {"retry_after_ms": 7000}), 500, Again("failed", "http_500", 7, True)),
    "500 retry-after": (_answer(500, b"", retry_after="11"), 500, Again("failed", "http_500", 11, True)),
    "500 problem": (
        _answer(500, {"error": {"code": "out_of_paper", "message": "m"}}, content_type="application/problem+json"),
        500,
        Again("failed", "out_of_paper", 3, True),
    ),
    "429": (_answer(429), 429, Again("pushed_back", "pushed_back", 1, False)),
    "503": (_answer(503), 503, Again("pushed_back", "pushed_back", 1, False)),
    "503 retry-after": (_answer(503, b"", retry_after="30"), 503, Again("pushed_back", "pushed_back", 30, False)),
    "429 retry-after date": (
        _answer(429, b"", retry_after="Sun, 01 Mar 2026 12:02:00 GMT"),
        429,
        Again("pushed_back", "pushed_back", 120, False),
    ),
    "429 retry-after absurd": (_answer(429, b"", retry_after="9" * 30), 429, Again("pushed_back", "pushed_back", 86_400, False)),
    "429 rate limit": (_answer(429, b"", ratelimit='"default";r=0;t=45'), 429, Again("pushed_back", "pushed_back", 45, False)),
    "503 final": (_answer(503, {"retry": False}), 503, Ends("failed", "failed", "http_503")),
    "409": (_answer(409), 409, Again("busy", "busy", 1, False)),
    "409 retry-after": (_answer(409, b"", retry_after="20"), 409, Again("busy", "busy", 20, False)),
    **{
        f"{status}": (_answer(status), status, Again("endpoint_broken", f"http_{status}", 1, False, "open"))
        for status in (401, 402, 403, 404, 405, 407, 415, 421)
    },
    **{
        f"{status}": (_answer(status, b"", location="/elsewhere"), status, Again("endpoint_broken", "redirect", 1, False, "open"))
        for status in (301, 302, 303, 307, 308)
    },
    "410": (_answer(410), 410, Again("endpoint_broken", "endpoint_gone", 1, False, "retired")),
    "502 of a platform": (_answer(502, b"", x_amz_cf_id="x"), 502, Again("timed_out", "platform_killed", 0, True)),
    "504 of a platform": (_answer(504, b"FUNCTION_INVOCATION_TIMEOUT"), 504, Again("timed_out", "platform_killed", 0, True)),
}


@pytest.mark.parametrize("row", ROWS)
async def test_row(world: World, one: Node, row: str) -> None:
    way, http_status, expected = ROWS[row]
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work")
    way(await endpoint.next())
    (attempt,) = await world.attempts(run_id, 1)
    assert (attempt["number"], attempt["http_status"], attempt["status"]) == (1, http_status, expected.attempt)
    assert (attempt["started_at"], attempt["finished_at"]) == (world.now, world.now)
    assert attempt["code"] == expected.code
    if isinstance(expected, Ends):
        await _check_end(world, one, run_id, expected)
    else:
        await _check_again(world, run_id, expected)


async def _check_end(world: World, node: Node, run_id: str, expected: Ends) -> None:
    task = await world.over(run_id)
    assert (task["status"], task["epoch"]) == (expected.status, 1)
    document = await node.call("GET", f"/v1/runs/{run_id}")
    assert document["status"] == expected.status
    if expected.status == "succeeded":
        assert (task["output"], task["output_type"]) == (expected.output, expected.kind)
    else:
        assert document["error"]["code"] == expected.code
    assert await world.circuit() == "closed"


async def _check_again(world: World, run_id: str, expected: Again) -> None:
    await world.circuit_is(expected.circuit)
    task = await world.task(run_id)
    if expected.after:
        assert task["due_at"] == world.now + timedelta(seconds=expected.after)
        assert task["state"] == "scheduled"
    assert (task["app_retries"], task["infra_retries"]) == (int(expected.spent), 0)
    assert task["spared_since"] == (None if expected.spent else world.now)
    assert task["priority"] == (4 if expected.spent else 1)


async def test_a_retry_carries_on_where_the_first_left_off(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    run_id = await one.trigger("work", input={"n": 7}, metadata={"who": "me"})
    first = await endpoint.next()
    first.answer(500)
    await world.task(run_id, state="scheduled")
    await world.advance(timedelta(seconds=3))
    second = await endpoint.next()
    one_said, two_said = first.json, second.json
    assert (one_said["attempt"], two_said["attempt"]) == (1, 2)
    assert (one_said["retry_count"], two_said["retry_count"]) == (0, 1)
    same: tuple[str, ...] = ("id", "run_id", "input", "metadata", "name", "max_attempts", "workflow")
    assert {name: one_said[name] for name in same} == {name: two_said[name] for name in same}
    for header in ("webhook-id", "idempotency-key", "task-id"):
        assert first.headers[header] == second.headers[header]
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 3
    second.answer(200, {"ok": True})
    assert (await world.over(run_id))["status"] == "succeeded"


async def test_a_refused_connection_is_spared_and_opens_the_circuit_when_it_goes_on(world: World, one: Node) -> None:
    endpoint = await world.endpoint(one, [HANDLER])
    await endpoint.stop()
    runs = [await one.trigger("work") for _ in range(5)]
    for run_id in runs:
        (attempt,) = await world.attempts(run_id, 1)
        assert (attempt["status"], attempt["http_status"], attempt["code"]) == ("unreachable", None, "connection_refused")
        task = await world.task(run_id)
        assert (task["app_retries"], task["spared_since"], task["due_at"]) == (0, world.now, world.now + timedelta(seconds=1))
    await world.circuit_is("open")


STREAMS: dict[str, tuple[list[dict[str, Any]], bool, str, str | None]] = {
    "done": ([{"type": "log", "message": "hello"}, {"type": "done", "output": {"a": 1}}], True, "succeeded", None),
    "fail": ([{"type": "fail", "retry": False, "error": {"code": "x", "message": "m"}}], True, "failed", "x"),
    "no end": ([{"type": "log", "message": "hello"}], True, "failed", "stream_cut"),
    "cut": ([{"type": "log", "message": "hello"}], False, "failed", "stream_cut"),
}


@pytest.mark.parametrize("stream", STREAMS)
async def test_streams_end_with_their_last_line(world: World, one: Node, stream: str) -> None:
    lines, whole, status, code = STREAMS[stream]
    endpoint = await world.endpoint(one, [{"name": "work"}])
    run_id = await one.trigger("work")
    arrival = await endpoint.next()
    arrival.begin_stream()
    for line in lines:
        arrival.line(line)
    if whole:
        arrival.end_stream()
    else:
        arrival.cut()
    task = await world.over(run_id)
    assert (task["status"], (task["error"] or {}).get("code")) == (status, code)
    if lines[0]["type"] == "log":
        logs = await one.call("GET", f"/v1/runs/{run_id}/logs")
        assert [(row["message"], row["attempt"]) for row in logs["rows"]] == [("hello", 1)]
