"""Everything a caller can get wrong is refused with a stable code that names the field, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from dispatcher.errors import CODES
from tests.api.world import World

RUN = '{"workflow":"resize"%s}'
MIB = 1_048_576


def run_with(rest: str) -> bytes:
    return (RUN % (f",{rest}" if rest else "")).encode("utf-8", "surrogatepass")


BODIES: list[tuple[str, bytes, int, str, str]] = [
    # (what, body of POST /v1/runs, status, code, what the detail says)
    ("unknown field", run_with('"inputt":1'), 400, "unknown_field", "inputt"),
    ("a field nobody knows", run_with('"colour":{}'), 400, "unknown_field", "colour"),
    ("labels that are none", run_with('"labels":{"gpu":null}'), 400, "invalid_value", "labels.gpu"),
    ("missing field", b"{}", 400, "invalid_value", "'workflow' is required"),
    ("empty body", b"", 400, "invalid_value", "'workflow' is required"),
    ("not an object", b"[]", 400, "invalid_value", "expected `object`"),
    ("wrong type", b'{"workflow":5}', 400, "invalid_value", "workflow: expected `str`, got `int`"),
    ("empty name", b'{"workflow":""}', 400, "invalid_value", "workflow"),
    ("metadata that is no object", run_with('"metadata":[1]'), 400, "invalid_value", "metadata: an object"),
    ("metadata that is too large", run_with('"metadata":{"a":"%s"}' % ("x" * 20_000)), 413, "body_too_large", "metadata"),
    ("priority as text", run_with('"priority":"high"'), 400, "invalid_value", "priority"),
    ("priority too high", run_with('"priority":4'), 400, "invalid_value", "priority: expected `int` <= 3"),
    ("priority zero", run_with('"priority":0'), 400, "invalid_value", "priority"),
    ("priority with a fraction", run_with('"priority":1.5'), 400, "invalid_value", "priority"),
    ("empty key", run_with('"idempotency_key":""'), 400, "invalid_value", "idempotency_key"),
    ("bare duration", run_with('"idempotency_key":"k","idempotency_ttl":"60"'), 400, "invalid_value", "idempotency_ttl"),
    ("negative duration", run_with('"idempotency_key":"k","idempotency_ttl":"-5s"'), 400, "invalid_value", "idempotency_ttl"),
    ("too long a duration", run_with('"idempotency_key":"k","idempotency_ttl":"99999999h"'), 400, "invalid_value", "idempotency_ttl"),
    ("time without zone", run_with('"run_at":"2026-06-01T00:00:00"'), 400, "invalid_value", "run_at"),
    ("no time at all", run_with('"run_at":"tomorrow"'), 400, "invalid_value", "run_at"),
    ("parent that is no run", run_with('"parent_run_id":"evt_1"'), 400, "invalid_value", "parent_run_id"),
    ("unknown workflow", b'{"workflow":"resiz"}', 404, "unknown_workflow", "resiz"),
    ("broken JSON", b'{"workflow":', 400, "invalid_json", "not JSON"),
    ("two values", b'{"workflow":"resize"}{}', 400, "invalid_json", "not JSON"),
    ("NaN", run_with('"input":NaN'), 400, "invalid_json", "not JSON"),
    ("not UTF-8", b'{"workflow":"resize","input":"\xff"}', 400, "invalid_utf8", "byte 30"),
    ("a surrogate as bytes", run_with('"input":"\ud800"'), 400, "invalid_utf8", "UTF-8"),
    ("a lone surrogate", run_with('"input":"\\ud800"'), 400, "invalid_json", "not JSON"),
    ("NUL in the input", run_with('"input":{"a":"x\\u0000y"}'), 400, "nul_character", "u0000"),
    ("NUL in a key", run_with('"metadata":{"\\u0000":1}'), 400, "nul_character", "u0000"),
    ("NUL in the name", b'{"workflow":"\\u0000"}', 400, "nul_character", "u0000"),
    ("a number jsonb refuses", run_with('"metadata":{"a":1e-20000}'), 400, "number_out_of_range", "exponent"),
    ("a number of 5,000 digits", run_with('"metadata":{"a":%s}' % ("9" * 5_000)), 400, "number_out_of_range", "digits"),
    ("nested 66 deep", run_with('"input":' + "[" * 66 + "]" * 66), 400, "too_deep", "65 levels"),
    ("nested 100,000 deep", run_with('"input":%s' % ("[" * 100_000)), 400, "too_deep", "levels"),
    ("too large", run_with('"input":"%s"' % ("x" * MIB)), 413, "body_too_large", "1,048,576"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "says"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
async def test_a_bad_run_is_refused(world: World, api: httpx.AsyncClient, body: bytes, status: int, code: str, says: str) -> None:
    await world.register()
    answer = await api.post("/v1/runs", content=body)
    assert_problem(answer, status, code, says)
    assert (await api.get("/v1/runs")).json()["rows"] == []


EVENTS: list[tuple[str, str, str, str]] = [
    ("no type", "{}", "invalid_value", "type"),
    ("both shapes", '{"type":"a","event_type":"a"}', "invalid_value", "type"),
    ("both data", '{"type":"a","data":{},"event_data":{}}', "invalid_value", "type"),
    ("empty type", '{"type":""}', "invalid_value", "type"),
    ("type of control characters", '{"type":"a\\nb"}', "invalid_value", "type"),
    ("type too long", '{"type":"%s"}' % ("a" * 501), "invalid_value", "type"),
    ("unknown field", '{"type":"a","payload":{}}', "unknown_field", "payload"),
    ("scope of the wrong type", '{"type":"a","scope":1}', "invalid_value", "scope"),
    ("metadata as text", '{"type":"a","metadata":"x"}', "invalid_value", "metadata"),
    ("a plan that names nothing", '{"type":"schedule:new","data":{}}', "invalid_value", "data.fn"),
    ("what is reserved", '{"type":"hot:alert:new","data":{}}', "invalid_value", "not supported"),
    ("a reserved name", '{"type":"hot:alert:new","data":{}}', "invalid_value", "reserved"),
    ("a call of nothing", '{"type":"call"}', "invalid_value", "data.fn"),
    ("a call with arguments by name", '{"type":"call","data":{"fn":"resize","args":{}}}', "invalid_value", "data.args"),
    ("a call with more", '{"type":"call","data":{"fn":"resize","arg":[]}}', "unknown_field", "data.arg"),
    ("a call of an unknown function", '{"type":"call","data":{"fn":"nope"}}', "unknown_workflow", "nope"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "says"), [case[1:] for case in EVENTS], ids=[case[0] for case in EVENTS])
async def test_a_bad_event_is_refused(world: World, api: httpx.AsyncClient, body: str, code: str, says: str) -> None:
    await world.register()
    assert_problem(await api.post("/v1/events", content=body), CODES[code].status, code, says)
    assert (await api.get("/v1/events")).json()["rows"] == []


QUERIES = [
    ("/v1/runs?limit=0", "invalid_value", "limit"),
    ("/v1/runs?limit=1001", "invalid_value", "limit"),
    ("/v1/runs?limit=ten", "invalid_value", "limit"),
    ("/v1/runs?limit=1&limit=2", "invalid_value", "given twice"),
    ("/v1/runs?statuss=failed", "unknown_parameter", "statuss"),
    ("/v1/runs?token=dsp_live_x", "unknown_parameter", "token"),
    ("/v1/runs?status=done", "invalid_value", "done"),
    ("/v1/runs?status=failed,done", "invalid_value", "done"),
    ("/v1/runs?since=yesterday", "invalid_value", "since"),
    ("/v1/runs?metadata=customer", "invalid_value", "key:value"),
    ("/v1/runs?workflow=a%00b", "invalid_value", "NUL"),
    ("/v1/runs?workflow=%ff", "invalid_value", "percent-encoded"),
    ("/v1/runs?cursor=abc", "invalid_value", "cursor"),
    ("/v1/runs?" + "&".join(f"metadata=a{i}:b" for i in range(11)), "invalid_value", "at most 10"),
    ("/v1/endpoints?q=x", "unknown_parameter", "q"),
    ("/livez?verbose", "unknown_parameter", "verbose"),
]


@pytest.mark.parametrize(("path", "code", "says"), QUERIES)
async def test_a_bad_query_is_refused(api: httpx.AsyncClient, path: str, code: str, says: str) -> None:
    assert_problem(await api.get(path), CODES[code].status, code, says)


@pytest.mark.parametrize("wait", ["30", "-1s", "0s", "soon", ""])
async def test_a_bad_wait_is_refused(world: World, api: httpx.AsyncClient, wait: str) -> None:
    await world.register()
    assert_problem(await api.post("/v1/runs", params={"wait": wait}, json={"workflow": "resize"}), 400, "invalid_value", "wait")
    assert (await api.get("/v1/runs")).json()["rows"] == []


ENDPOINTS: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("no URL", {}, 400, "invalid_value", "url"),
    ("unknown field", {"url": "http://127.0.0.1:9", "slot": 1}, 400, "unknown_field", "slot"),
    ("no slots", {"url": "http://127.0.0.1:9", "slots": 0}, 400, "invalid_value", "slots"),
    ("slots of the wrong type", {"url": "http://127.0.0.1:9", "slots": "many"}, 400, "invalid_value", "slots"),
    ("not the latest", {"url": "http://127.0.0.1:9", "latest": False}, 400, "invalid_value", "latest"),
    ("a label that is a list", {"url": "http://127.0.0.1:9", "labels": {"a": []}}, 400, "invalid_value", "labels.a"),
    ("not a URL", {"url": "ftp://x", "handlers": []}, 422, "destination_blocked", "url"),
    ("a name with a password", {"url": "http://u:p@127.0.0.1/", "handlers": []}, 422, "destination_blocked", "url"),
    ("handlers of the same name", {"url": "http://127.0.0.1:9", "handlers": [{"name": "a"}, {"name": "a"}]}, 400, "invalid_value", "twice"),
    ("a handler without a name", {"url": "http://127.0.0.1:9", "handlers": [{}]}, 400, "invalid_value", "handlers[0].name"),
    ("a negative timeout", {"url": "http://127.0.0.1:9", "handlers": [{"name": "a", "execution_timeout": "-1s"}]}, 400, "invalid_value",
     "handlers[0].execution_timeout"),
    ("a handler field nobody knows", {"url": "http://127.0.0.1:9", "handlers": [{"name": "a", "timeout": "1s"}]}, 400, "invalid_value",
     "handlers[0].timeout"),
    ("a metadata address", {"url": "http://169.254.169.254/", "handlers": []}, 422, "destination_blocked", "url"),
    ("nobody there", {"url": "http://127.0.0.1:9"}, 422, "discovery_unreachable", ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "says"), [case[1:] for case in ENDPOINTS], ids=[case[0] for case in ENDPOINTS])
async def test_a_bad_endpoint_is_refused(api: httpx.AsyncClient, body: dict[str, Any], status: int, code: str, says: str) -> None:
    assert_problem(await api.put("/v1/endpoints/images", json=body), status, code, says)
    assert (await api.get("/v1/endpoints")).json()["rows"] == []


@pytest.mark.parametrize("name", ["a b", "%01", "-a", "x" * 201])
async def test_a_bad_endpoint_name_is_refused(api: httpx.AsyncClient, name: str) -> None:
    assert_problem(await api.put(f"/v1/endpoints/{name}", json={"url": "http://127.0.0.1:9", "handlers": []}), 400, "invalid_value", "name")


HEADERS: list[tuple[dict[str, str], str]] = [
    ({"content-encoding": "gzip"}, "content-encoding"),
    ({"content-type": "text/html"}, "content-type"),
    ({"content-type": "multipart/form-data; boundary=x"}, "content-type"),
]


@pytest.mark.parametrize(("headers", "says"), HEADERS)
async def test_another_coding_or_type_is_refused(api: httpx.AsyncClient, headers: dict[str, str], says: str) -> None:
    assert_problem(await api.post("/v1/runs", content=b"{}", headers=headers), 415, "unsupported_media_type", says)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "application/cloudevents+json", ""]
)
async def test_json_is_taken_under_the_names_it_comes_by(world: World, api: httpx.AsyncClient, kind: str) -> None:
    """`curl -d` calls any data a form; that must not keep a first try from working."""
    await world.register()
    headers = {"content-type": kind} if kind else {}
    assert (await api.post("/v1/runs", content=b'{"workflow":"resize"}', headers=headers)).status_code == 201


PATHS = [
    ("GET", "/", 404, "not_found"),
    ("GET", "/v1", 404, "not_found"),
    ("GET", "/v1/nothing", 404, "not_found"),
    ("PUT", "/v1/schedules", 405, "method_not_allowed"),
    ("GET", "/v1/crons/crn_nobody", 404, "unknown_cron"),
    ("POST", "/v1/streams", 404, "not_found"),
    ("POST", "/v1/runs/run_1/replay", 404, "not_found"),
    ("GET", "/v1/streams/str_1/subscribe", 404, "not_found"),
    ("DELETE", "/v1/runs", 405, "method_not_allowed"),
    ("GET", "/v1/runs/bulk", 405, "method_not_allowed"),
    ("PATCH", "/v1/runs/run_1", 405, "method_not_allowed"),
    ("PUT", "/v1/workflows/resize", 405, "method_not_allowed"),
    ("GET", "/v1/callback", 405, "method_not_allowed"),
    ("OPTIONS", "/v1/runs", 405, "method_not_allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status", "code"), PATHS)
async def test_what_is_not_there_says_so(api: httpx.AsyncClient, method: str, path: str, status: int, code: str) -> None:
    answer = await api.request(method, path)
    assert_problem(answer, status, code, "")
    if status == 405:
        assert answer.headers["allow"]


async def test_head_is_answered_like_get(api: httpx.AsyncClient) -> None:
    assert (await api.head("/v1/runs")).status_code == 200
    assert (await api.head("/v1/workflows/x")).status_code == 404


async def test_a_fault_of_ours_is_logged_and_not_shown(
    world: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_slug: str) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(type(world.services.directory), "tenant", lambda _self, slug: broken(slug))
    answer = await api.get("/.well-known/task-keys")
    assert_problem(answer, 500, "internal", "not your fault")
    assert "hunter2" not in answer.text
    assert answer.json()["request_id"] in caplog.text
    assert "hunter2" in caplog.text


def bulk(member: str, items: list[str]) -> str:
    """The body of a bulk call of items that need not be JSON."""
    return '{"' + member + '":[' + ",".join(items) + "]}"


def assert_problem(answer: httpx.Response, status: int, code: str, says: str) -> None:
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in document["detail"], document["detail"]
    assert document["title"] == CODES[code].title
    assert document["status"] == status
    assert document["hint"]
    assert json.dumps(document)
