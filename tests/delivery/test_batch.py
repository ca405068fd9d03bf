"""Batches: every task settled exactly once, as its result arrives; a missing result is a retry, never a success."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.delivery import BatchLimits, Courier, EgressPolicy
from dispatcher.engine.answers import (
    Accepted,
    EndpointBroken,
    EndpointGone,
    Failed,
    Lost,
    Pushback,
    Succeeded,
    TimedOut,
    Unreachable,
)
from handlers_sdk.signing import verify
from tests.delivery.conftest import MakeCourier
from tests.delivery.endpoints import (
    NOW,
    SECRET,
    STREAM_END,
    STREAM_HEAD,
    ULID,
    Script,
    Settled,
    Visit,
    answering,
    chunk,
    endpoint,
    line,
    pouring,
    push,
    response,
    saying,
    soon,
    target,
)
from tests.delivery.nameserver import HANG, name_server

MISSING = Failed("missing_result", "the endpoint's answer to the batch has no result for this task", retry=True)
CUT = Failed("stream_cut", "the endpoint's stream ended without a done or fail line", retry=True)


def task(number: int) -> str:
    return push(number).task_id


def ok(number: int, output: Any = None) -> dict[str, Any]:
    return {"id": task(number), "status": "ok", "output": number if output is None else output}


def whole(*results: dict[str, Any]) -> bytes:
    return response(200, json.dumps({"results": results}).encode())


async def deliver(courier: Courier, script: Script, count: int = 3, **options: Any) -> tuple[dict[int, Any], Settled]:
    """(the answers by index, how they were settled)."""
    settled = Settled()
    async with endpoint(script) as served, soon():
        await courier.push_batch(target(served.url, **options), [push(number) for number in range(count)], settled)
    assert sorted(settled.receipts) == list(range(count))
    return {index: receipt.answer for index, receipt in settled.receipts.items()}, settled


async def test_a_batch_as_it_arrives(courier: Courier) -> None:
    settled = Settled()
    async with endpoint(answering(whole(ok(0), ok(1)))) as served:
        await courier.push_batch(target(served.url), [push(0), push(1)], settled)
        request = served.requests[0]
    assert verify(request.headers, request.body, secrets=[SECRET], audience=f"ep_{ULID}", now=NOW) == "v1"
    body = request.json()
    assert {name: body[name] for name in ("protocol", "type", "audience", "ordered", "api")} == {
        "protocol": 1,
        "type": "batch",
        "audience": f"ep_{ULID}",
        "ordered": False,
        "api": "http://127.0.0.1:8400",
    }
    assert [item["id"] for item in body["items"]] == [task(0), task(1)]
    assert not {"protocol", "type", "audience", "api"} & set(body["items"][0])
    assert "task-id" not in request.headers
    assert request.headers["webhook-id"].startswith(f"ep_{ULID}_batch-")
    assert "." not in request.headers["webhook-id"]
    assert [receipt.answer for receipt in settled.receipts.values()] == [Succeeded(b"0"), Succeeded(b"1")]


async def test_every_kind_of_result(courier: Courier) -> None:
    results = [
        ok(0, {"a": 1}),
        {"id": task(1), "status": "fail", "retry": False, "error": {"name": "E", "message": "no", "code": "bad_thing"}},
        {"id": task(2), "status": "fail", "retry_after_ms": 5_000, "error": {"message": "later"}},
        {"id": task(3), "status": "retry", "after_ms": 5_000},
        {"id": task(4), "status": "retry", "error": {"message": "full"}},
        {"id": task(5), "status": "accepted", "lease_ms": 60_000},
        {"id": task(6), "status": "accepted"},
        {"id": task(7), "status": "ok"},
        {"id": task(8), "status": "fine"},
        {"id": task(9), "status": "ok", "output": "\0"},
        {"id": task(10), "status": "fail", "error": {"code": "timed_out", "message": "over"}},
        {"id": task(11), "status": "fail"},
    ]
    expected: list[Any] = [
        Succeeded(b'{"a": 1}'),
        Failed("bad_thing", "no", retry=False, detail=b'{"name": "E", "message": "no", "code": "bad_thing"}'),
        Failed("task_failed", "later", retry_after=timedelta(seconds=5), detail=b'{"message": "later"}'),
        Pushback(timedelta(seconds=5), "the endpoint asks for this task again later"),
        Pushback(None, "full"),
        Accepted(timedelta(minutes=1)),
        Accepted(),
        Succeeded(b"null"),
        Failed("bad_response", "the result's status is none of ok, fail, retry and accepted"),
        Failed("invalid_output", "", retry=False),
        TimedOut("over"),
        Failed("task_failed", "the handler failed"),
    ]
    parts = [chunk(json.dumps(result).encode() + b"\n") for result in results]
    for script in (saying(whole(*results)), saying(STREAM_HEAD, *parts, STREAM_END)):
        answers, _ = await deliver(courier, script, len(results))
        assert isinstance(answers[9], Failed)
        assert answers[9].code == "invalid_output"
        del answers[9]
        assert answers == {index: answer for index, answer in enumerate(expected) if index != 9}


async def test_results_are_settled_as_they_arrive(courier: Courier) -> None:
    settled, go_on = Settled(), asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(STREAM_HEAD, line(**ok(1)))
        await go_on.wait()
        await visit.send(chunk(b"".join(json.dumps(ok(number)).encode() + b"\n" for number in (2, 0))), STREAM_END)

    async with endpoint(script) as served:
        delivery = asyncio.create_task(courier.push_batch(target(served.url), [push(number) for number in range(3)], settled))
        async with soon():
            await settled.arrived.wait()
        assert settled.order == [1]
        go_on.set()
        await delivery
    assert settled.order == [1, 2, 0]


async def test_a_missing_result_is_a_retry(courier: Courier) -> None:
    for script in (saying(whole(ok(1))), saying(STREAM_HEAD, line(**ok(1)), STREAM_END)):
        answers, _ = await deliver(courier, script)
        assert answers == {0: MISSING, 1: Succeeded(b"1"), 2: MISSING}


@pytest.mark.parametrize(
    "raw",
    [
        response(200, b'{"ok":true}'),
        response(200, b"[]"),
        response(200, b'{"results":{}}'),
        response(200, b'{"results":[]}'),
        response(200, b"{"),
        response(200, b"fine", kind="text/plain"),
        response(204),
        response(200),
        response(200, b'{"results":[1,null,{"id":5},{"status":"ok"},"x"]}'),
    ],
)
async def test_an_answer_that_is_none_is_no_success(courier: Courier, raw: bytes) -> None:
    answers, settled = await deliver(courier, saying(raw))
    assert set(answers.values()) == {MISSING}
    assert settled.receipts[0].http_status in {200, 204}


async def test_strangers_and_repeats_are_ignored(courier: Courier) -> None:
    lines = [
        {"id": "tsk_stranger", "status": "ok", "output": 1},
        ok(0),
        {**ok(0), "output": "again"},
        {"id": task(0), "status": "fail"},
        ok(2),
    ]
    for script in (saying(whole(*lines)), saying(STREAM_HEAD, *[line(**each) for each in lines], STREAM_END)):
        answers, _ = await deliver(courier, script)
        assert answers == {0: Succeeded(b"0"), 1: MISSING, 2: Succeeded(b"2")}


async def test_a_malformed_result_spoils_only_itself(courier: Courier) -> None:
    bad = Failed("bad_response", "the result for this task is malformed")
    results = [ok(0), {"id": task(1), "status": "ok", "output": 1, "retry": "maybe"}, ok(2)]
    answers, _ = await deliver(courier, saying(whole(*results)))
    assert answers == {0: Succeeded(b"0"), 1: bad, 2: Succeeded(b"2")}
    answers, _ = await deliver(courier, saying(STREAM_HEAD, chunk(b"{\n\n[]\n"), *[line(**each) for each in results], STREAM_END))
    assert answers == {0: Succeeded(b"0"), 1: bad, 2: Succeeded(b"2")}


async def test_a_bad_byte_spoils_only_its_line(courier: Courier) -> None:
    bad = b'{"id":"%b","status":"ok","output":"\xff"}\n' % task(1).encode()
    answers, _ = await deliver(courier, saying(STREAM_HEAD, chunk(bad), line(**ok(0)), line(**ok(2)), STREAM_END))
    assert isinstance(answers[1], Failed)
    assert answers[1].code == "invalid_output"
    assert answers[0] == Succeeded(b"0")


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (response(500), Failed),
        (response(404), EndpointBroken),
        (response(410), EndpointGone),
        (response(429, b"", "retry-after: 5"), Pushback),
        (response(302, b"", "location: /"), EndpointBroken),
        (response(202, b'{"lease_ms":60000}'), Accepted),
        (response(200, b"<html>", kind="text/html"), EndpointBroken),
        (response(200, b"x", "content-encoding: gzip"), EndpointBroken),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", Lost),
        (b"SSH-2.0\r\n", Failed),
        (b"", Lost),
    ],
)
async def test_what_goes_for_all(courier: Courier, raw: bytes, kind: type) -> None:
    answers, _ = await deliver(courier, saying(raw))
    assert {type(answer) for answer in answers.values()} == {kind}


async def test_a_cut_stream_loses_only_what_was_not_told(courier: Courier) -> None:
    answers, _ = await deliver(courier, saying(STREAM_HEAD, line(**ok(1)), chunk(b'{"id":"')))
    assert answers == {0: CUT, 1: Succeeded(b"1"), 2: CUT}

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(STREAM_HEAD, line(**ok(2)))
        await visit.send()
        visit.reset()

    answers, _ = await deliver(courier, script)
    assert answers[0] == CUT
    assert answers[2] in {CUT, Succeeded(b"2")}, "a reset may overtake what was sent before it"


async def test_unreachable_is_said_of_all(courier: Courier) -> None:
    settled = Settled()
    async with endpoint(saying()) as served:
        url = served.url
    await courier.push_batch(target(url), [push(0), push(1)], settled)
    assert {type(receipt.answer) for receipt in settled.receipts.values()} == {Unreachable}


# ---- each within its own time


async def timed(courier: Courier, script: Script, timeouts: Sequence[float], settled: Settled) -> list[Any]:
    pushes = [push(number, timeout=seconds) for number, seconds in enumerate(timeouts)]
    async with endpoint(script) as served, soon():
        await courier.push_batch(target(served.url), pushes, settled)
        assert len(served.requests) <= 1
    return [settled.receipts[number].answer for number in range(len(timeouts))]


async def test_each_task_has_its_own_timeout(courier: Courier) -> None:
    settled = Settled()

    async def script(visit: Visit) -> None:
        await visit.request()
        await visit.send(STREAM_HEAD, line(**ok(1)))
        await settled.arrived.wait()
        while 2 not in settled.receipts:
            settled.arrived.clear()
            await settled.arrived.wait()
        await visit.send(line(**ok(2)), line(**ok(0)), STREAM_END)

    answers = await timed(courier, script, [30.0, 30.0, 0.2], settled)
    assert answers == [Succeeded(b"0"), Succeeded(b"1"), TimedOut("no complete answer within 0.2 s")]


async def test_the_last_timeout_ends_it(courier: Courier) -> None:
    settled = Settled()
    answers = await timed(courier, saying(STREAM_HEAD, line(**ok(1)), stay=True), [0.1, 30.0, 0.2], settled)
    assert answers == [TimedOut("no complete answer within 0.1 s"), Succeeded(b"1"), TimedOut("no complete answer within 0.2 s")]


async def test_a_silent_endpoint(courier: Courier) -> None:
    answers = await timed(courier, saying(stay=True), [0.1, 0.15, 0.1], Settled())
    assert {type(answer) for answer in answers} == {TimedOut}


async def test_what_is_recorded_as_not_sent_is_never_sent(couriers: MakeCourier) -> None:
    """The first timeout passes before there is a connection: the whole batch is given up, not just the task whose time it was."""
    settled = Settled()
    async with name_server({"hung.test": HANG}) as names, soon():
        courier = couriers(resolver=names.resolver(EgressPolicy(dev=True), budget=30.0))
        await courier.push_batch(target("http://hung.test/"), [push(0, timeout=0.05), push(1, timeout=30.0)], settled)
    assert {type(receipt.answer) for receipt in settled.receipts.values()} == {Unreachable}


# ---- limits


async def test_a_batch_is_cut_to_the_endpoints_limits(courier: Courier) -> None:
    async def script(visit: Visit) -> None:
        while True:
            request = await visit.request()
            await visit.send(
                whole(*[{"id": item["id"], "status": "ok", "output": len(request.json()["items"])} for item in request.json()["items"]])
            )

    settled = Settled()
    async with endpoint(script) as served:
        await courier.push_batch(target(served.url, batch=BatchLimits(4, 1_000_000)), [push(number) for number in range(10)], settled)
        assert sorted(len(request.json()["items"]) for request in served.requests) == [2, 4, 4]
        assert len({request.headers["webhook-id"] for request in served.requests}) == 3
    assert sorted(settled.receipts) == list(range(10))
    big = Settled()
    async with endpoint(script) as served:
        pushes = [push(number, body=b'"' + b"x" * 3_000 + b'"') for number in range(6)]
        await courier.push_batch(target(served.url, batch=BatchLimits(100, 12_000)), pushes, big)
        assert all(len(request.body) <= 12_000 for request in served.requests)
        assert len(served.requests) == 3
    assert sorted(big.receipts) == list(range(6))


async def test_a_batch_found_too_large_goes_in_halves(courier: Courier) -> None:
    """Nothing has run, so no task has to pay for the size of the batch it was put in."""

    async def script(visit: Visit) -> None:
        while True:
            items = (await visit.request()).json()["items"]
            await visit.send(response(413) if len(items) > 2 else whole(*[{"id": item["id"], "status": "ok"} for item in items]))

    answers, _ = await deliver(courier, script, 7)
    assert set(answers.values()) == {Succeeded(b"null")}


async def test_one_task_found_too_large_fails(courier: Courier) -> None:
    answers, _ = await deliver(courier, answering(response(413)), 2)
    assert {(answer.code, answer.retry) for answer in answers.values()} == {("input_too_large", False)}


async def test_an_answer_too_large_costs_no_task_its_retries(courier: Courier) -> None:
    raw = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    answers, _ = await deliver(courier, pouring(raw, b" " * 65_536), response_limit=10_000)
    assert {(answer.code, answer.retry) for answer in answers.values()} == {("response_too_large", None)}
    answers, _ = await deliver(courier, pouring(STREAM_HEAD, chunk(b"x" * 65_536)), response_limit=10_000)
    assert {(answer.code, answer.retry) for answer in answers.values()} == {("response_too_large", None)}


async def test_one_result_too_large_fails_that_task(courier: Courier) -> None:
    lines = [line(**ok(0)), line(**ok(1, "x" * 10_500)), line(**ok(2))]
    answers, _ = await deliver(courier, saying(STREAM_HEAD, *lines, STREAM_END), response_limit=10_000)
    assert isinstance(answers[1], Failed)
    assert (answers[1].code, answers[1].retry) == ("response_too_large", False)
    assert (answers[0], answers[2]) == (Succeeded(b"0"), Succeeded(b"2"))


async def test_nothing_to_deliver(courier: Courier) -> None:
    await courier.push_batch(target("http://127.0.0.1:9/"), [], Settled())


async def test_cancelling_closes_and_settles_no_more(courier: Courier) -> None:
    settled = Settled()
    async with endpoint(saying(STREAM_HEAD, line(**ok(1)), stay=True)) as served:
        delivery = asyncio.create_task(courier.push_batch(target(served.url), [push(number) for number in range(3)], settled))
        async with soon():
            await settled.arrived.wait()
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivery
            await served.closed.wait()
    assert settled.order == [1]


async def test_a_finished_batch_leaves_its_connection_for_the_next(courier: Courier) -> None:
    async def script(visit: Visit) -> None:
        while True:
            await visit.request()
            await visit.send(STREAM_HEAD, line(**ok(0)))
            await asyncio.sleep(0)
            await visit.send(STREAM_END)

    async with endpoint(script) as served:
        for _ in range(3):
            await courier.push_batch(target(served.url), [push(0)], Settled())
        assert len(served.visits) == 1


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_comes_each_is_settled_once(courier: Courier, seed: int) -> None:
    """Random answers of random pieces, some of them broken off."""
    chance = random.Random(seed)
    count = chance.randint(1, 12)

    def piece() -> bytes:
        number = chance.randrange(count + 2)
        known = [
            ok(number),
            {"id": task(number), "status": "fail"},
            {"id": task(number), "status": "x"},
            {"id": task(number)},
            {"status": "ok"},
        ]
        text = json.dumps(chance.choice(known)).encode() + b"\n"
        return chance.choice([text, text, text, text[: chance.randrange(len(text))], b"\n", b"\xff\n", b"{}\n", b"null\n"])

    async def script(visit: Visit) -> None:
        await visit.request()
        pieces = [chunk(part) for part in (piece() for _ in range(chance.randint(0, 20))) if part]
        await visit.send(STREAM_HEAD, *pieces, *([STREAM_END] if chance.random() < 0.5 else []))
        if chance.random() < 0.3:
            visit.reset()

    answers, _ = await deliver(courier, script, count)
    assert {type(answer) for answer in answers.values()} <= {Succeeded, Failed}
