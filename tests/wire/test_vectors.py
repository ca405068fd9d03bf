"""Both ends read one file: the messages fit their types, the SDK gives the answers, and the dispatcher makes of them what is written."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from pydantic import TypeAdapter

from dispatcher.delivery.classify import Reading, Reply, classify, classify_result
from dispatcher.delivery.discovery import parse_manifest
from dispatcher.delivery.envelope import ResultLine, parse_result
from dispatcher.engine.answers import Referred
from dispatcher.runtime.callbacks import parse_events
from handlers_sdk import wire
from handlers_sdk.context import Accepted
from handlers_sdk.logcache import LogCache
from handlers_sdk.outcomes import Done, Fail, Outcome, Refuse, to_line, to_response
from handlers_sdk.schemas import dump_json
from handlers_sdk.turns import malformed_turn

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("vectors.json").read_text())
READING = Reading(now=1_767_225_600, limit=4_194_304)
TASK = "tsk_01jgfjjz000000000000000002"

EVERY_MESSAGE = pytest.mark.parametrize("message", VECTORS["messages"], ids=lambda message: message["name"])
EVERY_OUTCOME = pytest.mark.parametrize("vector", VECTORS["outcomes"], ids=lambda vector: vector["name"])


@EVERY_MESSAGE
def test_messages_fit_their_types(message: dict[str, Any]) -> None:
    declared: Any = getattr(wire, message["type"])
    _check(message["value"], declared, message["type"])


def test_every_message_has_an_example() -> None:
    shown = {message["type"] for message in VECTORS["messages"]}
    events = {event.__name__ for event in get_args(wire.Event)}
    durable = {"TurnPush", "TurnAnswer", "Append", "CallbackGroup", "CallbackResults"}
    assert shown == events | durable | {"RunPush", "BatchPush", "CancelPush", "Manifest", "KeySet"}


@pytest.mark.parametrize(
    "message", [one for one in VECTORS["messages"] if one["type"].endswith("Event")], ids=lambda message: message["name"]
)
def test_the_dispatcher_takes_every_event(message: dict[str, Any]) -> None:
    (event,) = parse_events(dump_json(message["value"]), "application/json")
    assert event.type == message["value"]["type"]


def test_the_dispatcher_reads_the_manifest() -> None:
    (manifest,) = (message["value"] for message in VECTORS["messages"] if message["type"] == "Manifest")
    read = parse_manifest(json.dumps(manifest).encode(), manifest["challenge"])
    assert (read.version, read.verified, read.challenge_ok) == ("4f2c", "v1a", True)
    assert read.features == set(manifest["features"])
    assert [handler["name"] for handler in read.handlers] == ["resize", "order"]


@EVERY_OUTCOME
def test_the_sdk_answers_so(vector: dict[str, Any]) -> None:
    response = to_response(_outcome(vector["outcome"]))
    assert isinstance(response.body, bytes)
    assert response.status == vector["answer"]["status"]
    assert dict(response.headers) == vector["answer"]["headers"]
    assert json.loads(response.body) == vector["answer"]["body"]
    line = to_line(TASK, _outcome(vector["outcome"]))
    assert line.endswith(b"\n")
    assert json.loads(line) == vector["line"]


@EVERY_OUTCOME
def test_the_dispatcher_understands_so(vector: dict[str, Any]) -> None:
    answer = vector["answer"]
    reply = Reply(answer["status"], {**answer["headers"], "task-protocol": "1"}, dump_json(answer["body"]))
    assert _said(classify(reply, READING), vector["means"]) == vector["means"]
    line = parse_result(dump_json(vector["line"]))
    assert isinstance(line, ResultLine)
    means = vector.get("means_in_batch", vector["means"])
    assert _said(classify_result(line, READING), means) == means


@pytest.mark.parametrize("vector", VECTORS["logs"], ids=lambda vector: vector["name"])
def test_a_log_is_named_by_its_hash(vector: dict[str, Any]) -> None:
    """The SDK's cache gives a prefix to whoever names it, whichever part of it was appended here."""
    texts = [entry.encode() for entry in vector["entries"]]
    entries = [json.loads(text) for text in texts]
    for opened in range(len(texts) + 1):
        cache = LogCache()
        cache.keep("tsk_1", entries[:opened], opened, vector["hashes"][opened], texts[opened:])
        for length in range(opened, len(texts) + 1):
            assert cache.prefix("tsk_1", length, vector["hashes"][length]) == entries[:length]
            assert cache.prefix("tsk_1", length, "00" * 32) is None


@pytest.mark.parametrize("message", [one for one in VECTORS["messages"] if one["type"] == "TurnPush"], ids=lambda message: message["name"])
def test_the_sdk_takes_every_turn(message: dict[str, Any]) -> None:
    assert malformed_turn(message["value"], message["value"]["mode"]) is None


def _outcome(given: dict[str, Any]) -> Outcome:
    ((kind, value),) = given.items()
    if kind == "done":
        return Done(dump_json(value))
    if kind == "referred":
        return Done(dump_json(value), referred=True)
    if kind == "accepted":
        return Accepted(_duration(value.get("lease_ms")))
    if kind == "refuse":
        return Refuse(value["status"], value["code"], value["message"], timedelta(milliseconds=value["after_ms"]))
    return Fail(value["error"], value.get("retry"), _duration(value.get("retry_after_ms")))


def _said(answer: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """What an answer says, of the members that are asked about."""
    said: dict[str, Any] = {"answer": type(answer).__name__}
    for name in wanted.keys() - {"answer"}:
        value = getattr(answer.reference if isinstance(answer, Referred) else answer, name.removesuffix("_ms"))
        if name == "output":
            value = json.loads(value)
        said[name] = value / timedelta(milliseconds=1) if isinstance(value, timedelta) else value
    return said


def _duration(ms: int | None) -> timedelta | None:
    return None if ms is None else timedelta(milliseconds=ms)


def _check(value: Any, declared: Any, at: str) -> None:
    """Members required are there, none is unknown, and each has its type. Objects of a type of their own are looked into."""
    marked = get_type_hints(declared, include_extras=True)
    hints = get_type_hints(declared)
    required = {name for name, hint in marked.items() if declared.__total__ and get_origin(hint) is not NotRequired}
    assert required <= value.keys() <= hints.keys(), at
    for name in value:
        _check_member(value[name], hints[name], f"{at}.{name}")


def _check_member(value: Any, hint: Any, at: str) -> None:
    if is_typeddict(hint):
        _check(value, hint, at)
    elif get_origin(hint) is list and is_typeddict(get_args(hint)[0]):
        for index, one in enumerate(value):
            _check(one, get_args(hint)[0], f"{at}[{index}]")
    else:
        TypeAdapter(hint).validate_python(value, strict=True)
