"""Every example payload GitHub publishes, sent as GitHub sends it. They come from npm, and are not kept here."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from typing import Any

import pytest

from tests.webhooks_server.senders import Senders, encoded, github

PACKAGE = "@octokit/webhooks-examples"
VERSION = "7.6.1"
PAYLOADS = 329
WITHOUT_ACTION = 43
NAIVE = "'github:' + headers['x-github-event'] + ':' + input.action"
MENDED = "'github:' + headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')"
FAST = {"per_second": 10_000, "burst": 10_000}


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """(event, payload) of every example, the same payload under two names included."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: the example payloads of GitHub cannot be had")
    directory = tmp_path_factory.mktemp("octokit")
    command = [npm, "install", "--prefix", str(directory), "--no-audit", "--no-fund", "--ignore-scripts", f"{PACKAGE}@{VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr[-300:]}")
    index = json.loads((directory / "node_modules" / PACKAGE / "api.github.com" / "index.json").read_text())
    return [(event["name"], encoded(example)) for event in index for example in event["examples"]]


async def _send(senders: Senders, examples: list[tuple[str, bytes]]) -> Counter[tuple[int, str]]:
    """How often each (status, outcome) was answered.

    A ping is a handshake wherever it comes up, so it is sent as another event. Five payloads are there twice, to the byte, which GitHub
    never does: the second has a space behind it.
    """
    answers: Counter[tuple[int, str]] = Counter()
    seen: Counter[bytes] = Counter()
    for event, example in examples:
        body = example + b" " * seen[example]
        seen[example] += 1
        answer = await senders.post("github", body, github(body, event="ping_sent_as_event" if event == "ping" else event))
        answers[answer.status_code, answer.json()["status"]] += 1
    return answers


async def _all(senders: Senders) -> list[dict[str, Any]]:
    return await senders.deliveries(limit=1000)


async def test_all_are_routed(senders: Senders, examples: list[tuple[str, bytes]]) -> None:
    assert len(examples) == PAYLOADS
    await senders.webhook(event_key_expression=MENDED, rate_limit=FAST)
    assert await _send(senders, examples) == {(200, "accepted"): PAYLOADS}
    assert len(await senders.events()) == PAYLOADS


async def test_the_naive_expression_loses_none_and_is_mended(senders: Senders, examples: list[tuple[str, bytes]]) -> None:
    await senders.webhook(event_key_expression=NAIVE, rate_limit=FAST)
    routed = PAYLOADS - WITHOUT_ACTION
    assert await _send(senders, examples) == {(200, "accepted"): routed, (202, "unrouted"): WITHOUT_ACTION}
    assert len(await senders.events()) == routed
    await senders.http.patch("/v1/webhooks/github", json={"event_key_expression": MENDED})
    done = (await senders.http.post("/v1/webhooks/github/reroute")).json()
    assert done == {"matched": WITHOUT_ACTION, "routed": WITHOUT_ACTION, "unrouted": 0, "errors": {}, "next_cursor": None}
    rows = await _all(senders)
    assert Counter(row["status"] for row in rows) == {"accepted": PAYLOADS}
    assert len({row["event_id"] for row in rows}) == PAYLOADS == len(await senders.events())
