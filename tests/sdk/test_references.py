"""Values by reference on the endpoint's side: fetched and checked before a handler runs, uploaded before its answer names them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from handlers_sdk import App, Context, Dispatcher, DurableContext, EmptyModel, StateContext
from handlers_sdk.references import CALL_BYTES_MAX, RESPONSE_BYTES_MAX
from tests.sdk.fake_api import Asked, FakeApi, Reply, problem
from tests.sdk.pushing import API, Answer, batch, clock, item, push, run, turn
from tests.sdk.test_durable import echo

HUGE = "é" * (RESPONSE_BYTES_MAX // 2)
TEXT = json.dumps(HUGE, ensure_ascii=False).encode()
BIG = {"huge": True}
LOOKS = {"$ref": {"url": "https://elsewhere.example/1", "sha256": "0" * 64, "size": 5}}


@dataclass
class Store:
    """The blobs of a dispatcher; `texts` by their ids. `status` refuses whatever is uploaded."""

    texts: dict[str, Any] = field(default_factory=dict)
    uploaded: list[Asked] = field(default_factory=list)
    status: int = 200

    def answer(self, asked: Asked) -> Reply:
        if not asked.path.startswith("/v1/blobs/"):
            return 200, {"ok": True, "cancel": None, "len": 1, "id": "run_1", "status": "queued", "workflow": "echo"}
        name = asked.path.rpartition("/")[2]
        if asked.method == "PUT":
            self.uploaded.append(asked)
            return (201, {"id": name, "ref": reference(asked.content)}) if self.status == 200 else problem(self.status, "refused")
        found = self.texts.get(name)
        return problem(404, "not_found") if found is None else found if isinstance(found, Exception) else (200, found)

    def put(self, value: Any) -> dict[str, Any]:
        text = json.dumps(value).encode()
        self.texts[f"sha256-{hashlib.sha256(text).hexdigest()}"] = value
        return reference(text)


def reference(text: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(text).hexdigest()
    return {"$ref": {"url": f"{API}/v1/blobs/sha256-{digest}", "sha256": digest, "size": len(text)}}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def api(store: Store) -> FakeApi:
    return FakeApi(store.answer)


@pytest.fixture
def seen() -> list[Any]:
    return []


@pytest.fixture
def app(dispatcher: Dispatcher, seen: list[Any]) -> App:
    @dispatcher.task(name="echo")
    async def echo(input: dict[str, Any], ctx: Context) -> Any:
        seen.append((input, ctx.item.get("parents")))
        return HUGE if input == BIG else input

    return dispatcher.app([echo], clock=clock)


def refused(answer: Answer) -> str:
    assert answer.status >= 400, answer.body
    return str(answer.json()["code"])


async def test_the_manifest_says_so(app: App) -> None:
    assert "refs" in app.handlers.manifest()["features"]


# ---- what comes in


async def test_values_take_the_place_of_their_references(app: App, store: Store, api: FakeApi, seen: list[Any]) -> None:
    parents = {"before": {"status": "succeeded", "output": 7}}
    answer = await run(app, "echo", store.put({"n": [1, "é"]}), parents=store.put(parents), refs=["input", "parents"])
    assert answer.json() == {"n": [1, "é"]}
    assert seen == [({"n": [1, "é"]}, parents)]
    assert {(asked.method, asked.token) for asked in api.asked} == {("GET", "atk1.token1.mac")}


@pytest.mark.parametrize("refs", [{}, {"refs": []}])
async def test_data_that_looks_like_a_reference_is_data(app: App, api: FakeApi, refs: dict[str, Any]) -> None:
    assert (await run(app, "echo", LOOKS, **refs)).json() == LOOKS
    assert api.asked == []


async def test_only_the_dispatcher_that_signed_is_asked(app: App, store: Store, api: FakeApi) -> None:
    given = store.put({"at": "home"})
    given["$ref"]["url"] = "https://elsewhere.example/v1/blobs/" + given["$ref"]["sha256"]
    assert (await run(app, "echo", given, refs=["input"])).json() == {"at": "home"}
    assert {asked.headers["host"] for asked in api.asked} == {"dispatcher.test"}


@pytest.mark.parametrize("spoilt", [["other"], "wrong size", None, httpx.ConnectError("refused")])
async def test_what_cannot_be_had_or_is_damaged_is_asked_for_again(app: App, store: Store, seen: list[Any], spoilt: Any) -> None:
    given = store.put([1, 2])
    name = next(iter(store.texts))
    if spoilt == "wrong size":
        given["$ref"]["size"] += 1
    elif spoilt is None:
        del store.texts[name]
    else:
        store.texts[name] = spoilt
    answer = await run(app, "echo", given, refs=["input"])
    assert (answer.status, seen) == (503, [])
    assert app.handlers.host.running == {}
    (line,) = (await batch(app, item("echo", given, refs=["input"]))).lines()
    assert (line["status"], seen) == ("retry", [])


@pytest.mark.parametrize(
    ("given", "refs"),
    [
        ({"w": 1}, ["input"]),
        ({"$ref": "x"}, ["input"]),
        ({"$ref": {"sha256": "0" * 63, "size": 1}}, ["input"]),
        ({"$ref": {"sha256": "0" * 64}}, ["input"]),
        ({"$ref": {"sha256": "0" * 64, "size": True}}, ["input"]),
        ({**LOOKS, "more": 1}, ["input"]),
        (LOOKS, ["token"]),
        (LOOKS, ["parents"]),
        (LOOKS, [1]),
        (LOOKS, "input"),
        (LOOKS, None),
    ],
)
async def test_what_is_no_reference_is_malformed(app: App, api: FakeApi, seen: list[Any], given: Any, refs: Any) -> None:
    answer = await run(app, "echo", given, refs=refs)
    assert (answer.status, refused(answer), seen, api.asked) == (400, "malformed", [], [])


# ---- what goes out


async def test_a_large_result_is_uploaded_and_answered_by_reference(app: App, store: Store) -> None:
    answer = await run(app, "echo", BIG)
    assert (answer.headers["task-refs"], answer.json()) == ("output", reference(TEXT))
    (uploaded,) = store.uploaded
    assert (uploaded.content, uploaded.token) == (TEXT, "atk1.token1.mac")
    assert uploaded.path == f"/v1/blobs/sha256-{hashlib.sha256(TEXT).hexdigest()}"


async def test_the_same_as_a_line(app: App) -> None:
    lines = (await batch(app, item("echo", BIG), item("echo", {"n": 1}, 2))).by_id()
    assert (lines["01"]["refs"], lines["01"]["output"]) == (["output"], reference(TEXT))
    assert lines["02"]["output"] == {"n": 1}
    assert "refs" not in lines["02"]


async def test_a_small_result_is_not_marked(app: App, store: Store) -> None:
    answer = await run(app, "echo", LOOKS)
    assert "task-refs" not in answer.headers
    assert store.uploaded == []


@pytest.mark.parametrize("status", [404, 405])
async def test_a_dispatcher_that_keeps_no_values_gets_the_result_itself(app: App, store: Store, status: int) -> None:
    store.status = status
    answer = await run(app, "echo", BIG)
    assert ("task-refs" in answer.headers, answer.json()) == (False, HUGE)


async def test_a_result_that_cannot_be_put_by_is_a_failure(app: App, store: Store) -> None:
    store.status = 503
    answer = await run(app, "echo", BIG)
    assert (answer.status, "task-retry" in answer.headers) == (500, False)
    assert app.handlers.host.running == {}


# ---- durable tasks


async def test_a_turn_with_its_log_by_reference_answers_by_reference(dispatcher: Dispatcher, store: Store, seen: list[Any]) -> None:
    @dispatcher.durable_task()
    async def order(input: dict[str, Any], ctx: DurableContext) -> Any:
        seen.append((input, await ctx.run("first", echo, "not called")))
        return HUGE

    body = turn("order", [{"id": "first#0", "op": "step", "status": "ok", "at": "2026-01-01T00:00:00.000Z", "value": "kept"}], {"n": 1})
    body |= {"input": store.put({"n": 1}), "log": store.put(body["log"]), "refs": ["input", "log"]}
    document = (await push(dispatcher.app([order], clock=clock), body)).json()
    assert seen == [({"n": 1}, "kept")]
    assert (document["status"], document["refs"], document["output"]) == ("done", ["output"], reference(TEXT))


async def test_a_log_by_reference_is_checked_too(dispatcher: Dispatcher, store: Store, seen: list[Any]) -> None:
    @dispatcher.durable_task()
    async def order(input: Any, ctx: DurableContext) -> Any:
        seen.append(input)

    answer = await push(dispatcher.app([order], clock=clock), turn("order", log=store.put({"len": 3}), refs=["log"]))
    assert (answer.status, refused(answer), seen) == (400, "malformed", [])


async def test_a_reducer_gets_its_state_by_reference(dispatcher: Dispatcher, store: Store) -> None:
    @dispatcher.durable_task(mode="state")
    async def order(input: EmptyModel, ctx: StateContext) -> Any:
        return [ctx.state, HUGE]

    body = turn("order", mode="state", turn=2, state=store.put({"at": "payment"}), results=[], refs=["state"])
    document = (await push(dispatcher.app([order], clock=clock), body)).json()
    text = json.dumps([{"at": "payment"}, HUGE], ensure_ascii=False, separators=(",", ":")).encode()
    assert (document["status"], document["output"]) == ("done", reference(text))


# ---- starting runs


async def test_an_input_too_large_for_the_call_is_uploaded_first(dispatcher: Dispatcher, store: Store, api: FakeApi) -> None:
    @dispatcher.task(name="echo")
    async def echo(input: dict[str, Any], ctx: Context) -> Any:
        return input

    large = {"text": "x" * CALL_BYTES_MAX}
    await echo.aio_run_no_wait(large)
    (uploaded,) = store.uploaded
    assert (json.loads(uploaded.content), uploaded.token) == (large, "api-token")
    call = api.asked[-1].json
    assert (call["refs"], call["input"]) == (["input"], reference(uploaded.content))
    await echo.aio_run_no_wait(LOOKS)
    assert "refs" not in api.asked[-1].json
