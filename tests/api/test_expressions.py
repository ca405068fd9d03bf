"""Expressions over HTTP: tried before anything depends on them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.world import World

PULL = {"input": {"action": "opened", "labels": [{"name": "bug"}]}, "headers": {"x-github-event": "pull_request"}}


async def debugged(api: httpx.AsyncClient, expression: str, kind: str = "filter", variables: Any = PULL) -> dict[str, Any]:
    answer = await api.post("/v1/expressions/debug", json={"expression": expression, "kind": kind, "variables": variables})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    ("expression", "kind", "result", "plain"),
    [
        ("'github:' + headers['x-github-event'] + ':' + input.action", "event_key", "github:pull_request:opened", True),
        ("has(input.scope) ? input.scope : 'all'", "scope", "all", True),
        ("input.labels.exists(l, l.name == 'bug')", "filter", True, False),
        ("input.action in ['closed']", "filter", False, False),
    ],
)
async def test_a_result(api: httpx.AsyncClient, expression: str, kind: str, result: Any, plain: bool) -> None:
    found = await debugged(api, expression, kind)
    assert (found["result"], found["error"], found["plain"], found["warnings"]) == (result, None, plain, [])
    assert (found["steps"] == 0) == plain


@pytest.mark.parametrize(
    ("expression", "kind", "code", "position"),
    [
        ("input.action = 'a'", "filter", "syntax", 13),
        ("inptu.action", "event_key", "syntax", 0),
        ("input.action", "filter", "wrong_type", None),
        ("input.labels", "event_key", "wrong_type", None),
        ("input.absent == 1", "filter", "missing_key", 0),
        ("input.labels.exists(l, true) ? 'a' : 'b'", "event_key", "too_large", None),
        ("input.action + 1 == ''", "filter", "eval", 15),
        ("''", "scope", "empty", None),
        ("", "scope", "empty", None),
        ("'" + "\\n" * 500, "filter", "syntax", 0),
        ("(" * 2_000, "filter", "too_large", None),
    ],
)
async def test_an_error_is_an_answer(api: httpx.AsyncClient, expression: str, kind: str, code: str, position: int | None) -> None:
    found = await debugged(api, expression, kind)
    assert (found["result"], found["error"]["code"], found["error"]["position"]) == (None, code, position)
    assert found["error"]["message"]


async def test_one_that_costs_too_much_ends(api: httpx.AsyncClient) -> None:
    found = await debugged(api, "input.all(x, input.all(y, x + y >= 0))", variables={"input": list(range(2_000))})
    assert found["error"]["code"] == "budget"


async def test_a_warning(api: httpx.AsyncClient) -> None:
    found = await debugged(api, "headers['X-GitHub-Event']", "event_key")
    assert found["error"]["code"] == "missing_key"
    assert "lower-cased" in found["warnings"][0]


async def test_large_numbers(api: httpx.AsyncClient) -> None:
    body = '{"expression":"string(input.id) == \'18446744073709551615\'","variables":{"input":{"id":18446744073709551615}}}'
    assert (await api.post("/v1/expressions/debug", content=body)).json()["result"] is True


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"expression": 1}', "invalid_value"),
        ("{}", "invalid_value"),
        ('{"expression":"true","kind":"key"}', "invalid_value"),
        ('{"expression":"true","variables":[]}', "invalid_value"),
        ('{"expression":"true","input":{}}', "unknown_field"),
        ('{"expression":"true"', "invalid_json"),
    ],
)
async def test_what_is_no_question(api: httpx.AsyncClient, body: str, code: str) -> None:
    answer = await api.post("/v1/expressions/debug", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)


async def test_a_token_is_needed(serving: World) -> None:
    async with serving.client() as client:
        assert (await client.post("/v1/expressions/debug", json={"expression": "true"})).status_code == 401
