"""Whom an endpoint believes: secrets, public keys, the dispatcher's key set, and only requests meant for it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from handlers_sdk import App, Context, Dispatcher, EmptyModel
from handlers_sdk.signing import Ed25519Signer, HmacSigner, Signer, new_secret
from handlers_sdk.verification import KeySet
from tests.sdk.fake_api import FakeApi
from tests.sdk.pushing import ENDPOINT, NOW, SECRET, ULID, Answer, clock, config, headers_for, read, run_body

KEY = Ed25519Signer(bytes(range(32)))
NEXT_KEY = Ed25519Signer(bytes(range(1, 33)))
OTHER = "ep_01jgfjjz000000000000000002"


def serve(dispatcher: Dispatcher, clock: Any = clock) -> App:
    @dispatcher.task()
    async def noop(input: EmptyModel, ctx: Context) -> int:
        return 1

    return dispatcher.app([noop], clock=clock)


async def post(app: App, *signers: Signer, endpoint: str = ENDPOINT) -> Answer:
    body = json.dumps(run_body("noop")).encode()
    headers = headers_for(body, *signers, message_id=f"{endpoint}_{ULID.format(3)}")
    return await read(await app.handlers.handle("POST", headers, body))


async def get(app: App, *signers: Signer, endpoint: str = ENDPOINT, challenge: str = "n0nce") -> Answer:
    headers = headers_for(b"", *signers, message_id=f"{endpoint}_{ULID.format(4)}") | {"task-challenge": challenge}
    return await read(await app.handlers.handle("GET", headers, b""))


def key_set(*keys: Ed25519Signer, exp: int | None = None) -> dict[str, Any]:
    return {
        "keys": [{"kid": "k", "kty": "OKP", "crv": "Ed25519", "x": "", "whpk": key.public} | ({"exp": exp} if exp else {}) for key in keys]
    }


async def test_a_secret_is_checked_and_said_in_the_manifest() -> None:
    app = serve(Dispatcher(config()))
    assert (await post(app, KEY, HmacSigner(SECRET))).status == 200
    answer = await get(app, HmacSigner(SECRET))
    assert (answer.json()["verified"], answer.json()["challenge"]) == ("v1", "n0nce")
    assert answer.headers["content-type"] == "application/vnd.tasks.manifest+json"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_is_answered_to_strangers(method: str) -> None:
    app = serve(Dispatcher(config()))
    answer = await read(await app.handlers.handle(method, {}, b"{}"))
    assert (answer.status, answer.json()["code"]) == (401, "missing_signature")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_another_secret_a_changed_body_and_an_old_message_are_refused() -> None:
    app = serve(Dispatcher(config()))
    wrong = await post(app, HmacSigner(new_secret()))
    assert (wrong.status, wrong.json()["code"]) == (401, "mismatch")
    body = json.dumps(run_body("noop")).encode()
    changed = await read(await app.handlers.handle("POST", headers_for(body), body + b" "))
    assert changed.json()["code"] == "mismatch"
    late = serve(Dispatcher(config()), clock=lambda: NOW + 301)
    assert (await post(late, HmacSigner(SECRET))).json()["code"] == "stale"


async def test_during_a_rotation_either_secret_will_do() -> None:
    new = new_secret()
    for held in ((SECRET,), (new,), (new, SECRET)):
        app = serve(Dispatcher(config(signing_secrets=held)))
        assert (await post(app, HmacSigner(new), HmacSigner(SECRET))).status == 200


async def test_verification_can_be_turned_off() -> None:
    app = serve(Dispatcher(config(verify_signatures=False)))
    assert (await read(await app.handlers.handle("POST", {}, json.dumps(run_body("noop")).encode()))).status == 200
    assert "verified" not in (await read(await app.handlers.handle("GET", {}, b""))).json()


async def test_public_keys_need_no_dispatcher() -> None:
    app = serve(Dispatcher(config(signing_secrets=(), public_keys=(NEXT_KEY.public, KEY.public))))
    assert (await post(app, KEY)).status == 200
    assert (await get(app, NEXT_KEY)).json()["verified"] == "v1a"


async def test_without_either_the_key_set_is_fetched_once() -> None:
    api = FakeApi(lambda _: (200, key_set(KEY)))
    app = serve(api.dispatcher(token="api-token", tenant="acme"))
    assert [(await post(app, KEY)).status for _ in range(3)] == [200] * 3
    (asked,) = api.asked
    assert (asked.method, asked.path, asked.query["tenant"], asked.token) == ("GET", "/.well-known/task-keys", "acme", "")


async def test_a_key_that_is_not_known_is_looked_for_once_a_minute() -> None:
    now = NOW
    api = FakeApi(lambda _: (200, key_set(KEY)))
    app = serve(api.dispatcher(), clock=lambda: now)
    assert (await post(app, KEY)).status == 200
    assert (await post(app, NEXT_KEY)).status == 401
    assert len(api.asked) == 1
    now += 60
    api.answer = lambda _: (200, key_set(NEXT_KEY))
    assert (await post(app, NEXT_KEY)).status == 200
    assert (await post(app, KEY)).status == 401
    assert len(api.asked) == 2


async def test_an_expired_key_is_no_key() -> None:
    api = FakeApi(lambda _: (200, key_set(KEY, exp=NOW)))
    assert (await post(serve(api.dispatcher()), KEY)).status == 401


@pytest.mark.parametrize(
    "reply",
    [httpx.ConnectError("refused"), (200, {"keys": [{"whpk": "whpk_bad"}, 5]}), (200, []), (500, {})],
    ids=["unreachable", "bad keys", "no key set", "error"],
)
async def test_a_key_set_that_cannot_be_had_refuses_and_is_asked_for_again(reply: Any) -> None:
    now = NOW
    api = FakeApi(lambda _: reply)
    app = serve(api.dispatcher(retry_attempts=1), clock=lambda: now)
    assert (await post(app, KEY)).status == 401
    api.answer = lambda _: (200, key_set(KEY))
    now += 60 if not isinstance(reply, Exception) and reply[0] == 200 else 5
    assert (await post(app, KEY)).status == 200


async def test_concurrent_strangers_cause_one_fetch() -> None:
    api = FakeApi(lambda _: (200, key_set(KEY)))
    app = serve(api.dispatcher())
    answers = await asyncio.gather(*(post(app, KEY) for _ in range(5)))
    assert {one.status for one in answers} <= {200, 409}, "all are believed, and all are the same attempt"
    assert len(api.asked) == 1


async def test_a_request_that_comes_while_the_keys_are_fetched_waits_for_them() -> None:
    fetching, fetched = asyncio.Event(), asyncio.Event()

    async def fetch() -> Any:
        fetching.set()
        await fetched.wait()
        return key_set(KEY)

    keys = KeySet(fetch)
    first = asyncio.create_task(keys.refresh(NOW))
    await fetching.wait()
    second = asyncio.create_task(keys.refresh(NOW))
    await asyncio.sleep(0)  # into the wait for the first
    fetched.set()
    assert (await first, await second, keys.current(NOW)) == (True, True, [KEY.public])
    assert not await keys.refresh(NOW), "at most once a minute"


async def test_v1a_for_another_endpoint_is_refused_and_v1_needs_no_name() -> None:
    keys = {"signing_secrets": (), "public_keys": (KEY.public,)}
    app = serve(Dispatcher(config(**keys, endpoint_ids=(ENDPOINT,))))
    assert (await post(app, KEY)).status == 200
    refused = await post(app, KEY, endpoint=OTHER)
    assert (refused.status, refused.json()["code"]) == (401, "wrong_audience")
    assert "DISPATCHER_ENDPOINT_ID" in refused.json()["detail"]
    assert (await get(app, KEY, endpoint=OTHER)).status == 401
    both = serve(Dispatcher(config(**keys, endpoint_ids=(ENDPOINT, OTHER))))
    assert (await post(both, KEY, endpoint=OTHER)).status == 200
    secret = serve(Dispatcher(config(endpoint_ids=(ENDPOINT,))))
    assert (await post(secret, HmacSigner(SECRET), endpoint=OTHER)).status == 200


async def test_an_endpoint_that_was_not_told_its_name_learns_it() -> None:
    keys = {"signing_secrets": (), "public_keys": (KEY.public,)}
    app = serve(Dispatcher(config(**keys)))
    assert (await post(app, KEY)).status == 200
    assert (await post(app, KEY, endpoint=OTHER)).json()["code"] == "wrong_audience"
    assert (await get(app, KEY, endpoint=OTHER)).status == 200
    assert (await post(app, KEY, endpoint=OTHER)).status == 200
    assert (await post(app, KEY)).json()["code"] == "wrong_audience"
    assert app.handlers.verifier is not None
    app.handlers.verifier.trust_endpoint(ENDPOINT)
    assert (await post(app, KEY)).status == 200
    assert (await get(app, KEY, endpoint=OTHER)).status == 401
