"""An attempt speaking for itself: what it may say, and how it hears that it is too late."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from tests.api.test_bad_input import assert_problem
from tests.api.test_runs import rows_of, start_again
from tests.api.world import World


class Attempt:
    """One attempt of a run, with its token."""

    def __init__(self, world: World, api: httpx.AsyncClient, tenant_id: int, run_id: str, epoch: int = 1) -> None:
        self.api = api
        expires = int((world.clock.now() + timedelta(hours=1)).timestamp())
        self.token = world.tokens.make(tenant_id, run_id, 0, epoch, expires)

    async def says(self, body: str | bytes, kind: str = "application/json") -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}", "content-type": kind}
        return await self.api.post("/v1/callback", content=body, headers=headers)


@pytest.fixture
async def run_id(world: World) -> str:
    await world.register()
    return await world.running()


@pytest.fixture
async def attempt(world: World, api: httpx.AsyncClient, run_id: str) -> Attempt:
    return Attempt(world, api, await world.tenant("default"), run_id)


async def test_a_sign_of_life(attempt: Attempt) -> None:
    answer = await attempt.says('{"type":"heartbeat"}')
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "lease_until": "2026-06-01T12:01:00Z", "cancel": None})


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
async def test_the_shorthand_of_curl_ends_the_run(api: httpx.AsyncClient, run_id: str, attempt: Attempt, kind: str) -> None:
    assert (await attempt.says('{"done":{"ok":true}}', kind)).status_code == 200
    run = (await api.get(f"/v1/runs/{run_id}")).json()
    assert (run["status"], run["output"]) == ("succeeded", {"ok": True})
    again = await attempt.says('{"done":{"ok":true}}', kind)
    assert (again.status_code, again.json()["duplicate"]) == (200, True)
    assert_problem(await attempt.says('{"type":"heartbeat"}'), 410, "task_ended", "over")
    assert_problem(await attempt.says('{"fail":{"message":"no"}}'), 410, "task_ended", "over")


async def test_lines_of_ndjson_are_taken_in_order(api: httpx.AsyncClient, run_id: str, attempt: Attempt) -> None:
    lines = '{"type":"log","message":"one"}\n\n{"type":"log","level":"error","message":"two"}\n{"type":"progress","fraction":0.5}\n'
    assert (await attempt.says(lines, "application/x-ndjson")).status_code == 200
    assert [(row["level"], row["message"]) for row in await rows_of(api, f"/v1/runs/{run_id}/logs")] == [("info", "one"), ("error", "two")]
    assert (await api.get(f"/v1/runs/{run_id}")).json()["tasks"][0]["progress"]["fraction"] == 0.5


async def test_an_attempt_that_was_followed_by_another_is_stale(world: World, run_id: str, attempt: Attempt) -> None:
    await world.fail_once(run_id)
    assert_problem(await attempt.says('{"type":"heartbeat"}'), 409, "stale_attempt", "attempt 1")
    await start_again(world, run_id)
    assert_problem(await attempt.says('{"done":1}'), 409, "stale_attempt", "attempt 1")


async def test_a_token_ends(world: World, attempt: Attempt) -> None:
    world.clock.advance(timedelta(hours=1, seconds=1))
    assert_problem(await attempt.says('{"type":"heartbeat"}'), 401, "unauthorized", "expired")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("", 400, "invalid_json"),
        ("{", 400, "invalid_json"),
        ('{"done":' + "[" * 100_000, 400, "invalid_json"),
        ('{"type":"dance"}', 400, "invalid_event"),
        ('{"typ":"done"}', 400, "invalid_event"),
        ('{"type":"extend","ms":-1}', 400, "invalid_event"),
        ('{"type":"progress","fraction":2}', 400, "invalid_event"),
        ('{"type":"log","message":5}', 400, "invalid_event"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    api: httpx.AsyncClient, run_id: str, attempt: Attempt, body: str, status: int, code: str
) -> None:
    assert_problem(await attempt.says(body), status, code, "")
    assert (await api.get(f"/v1/runs/{run_id}")).json()["status"] == "running"


async def test_a_result_that_is_too_large_is_refused(attempt: Attempt) -> None:
    assert_problem(await attempt.says(b'{"done":"' + b"x" * 4_194_304 + b'"}'), 413, "body_too_large", "4,194,304")
