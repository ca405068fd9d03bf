"""Headers: which an endpoint may ask for, and ids that tell messages apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.delivery import HeaderRefused, check_headers
from dispatcher.delivery.headers import ascii_json, joint_message_id, of_run, plain, run_message_id
from handlers_sdk.signing import audience_of
from tests.delivery.endpoints import ULID, push, target

TARGET = target("https://app.example.com/")


@pytest.mark.parametrize("pair", [("authorization", "Bearer abc"), ("X-Api-Key", "a b\tc"), ("x-empty", ""), ("accept", "*/*")])
def test_headers_that_may_be_added(pair: tuple[str, str]) -> None:
    check_headers([pair])


@pytest.mark.parametrize(
    "pair",
    [
        ("Host", "elsewhere.example"),
        ("content-length", "5"),
        ("Content-Type", "text/plain"),
        ("transfer-encoding", "chunked"),
        ("Connection", "close"),
        ("webhook-signature", "v1,x"),
        ("Task-Retry", "true"),
        ("cookie", "a=b"),
        ("proxy-authorization", "x"),
        ("expect", "100-continue"),
        ("x-a", "b\r\nhost: c"),
        ("x-a", "b\0"),
        ("x-a", "é"),
        ("x-a", " b"),
        ("x-a", "b "),
        ("x a", "b"),
        ("x-a:", "b"),
        ("", "b"),
        ("x-a\n", "b"),
        ("x-a", "b" * 4_096),
    ],
)
def test_headers_that_may_not(pair: tuple[str, str]) -> None:
    with pytest.raises(HeaderRefused):
        check_headers([("x-fine", "1"), pair])


def test_ids_of_messages() -> None:
    assert run_message_id(TARGET, "tsk_abc-3") == f"ep_{ULID}_abc-3"
    batches = {joint_message_id(TARGET, "batch", parts) for parts in (["a:1"], ["a:2"], ["a:1", "b:1"], ["b:1", "a:1"])}
    assert len(batches) == 4
    assert joint_message_id(TARGET, "batch", ["a:1"]) == joint_message_id(TARGET, "batch", ["a:1"])
    assert joint_message_id(TARGET, "cancel", ["a:1"]) not in batches
    for identifier in (*batches, run_message_id(TARGET, "tsk_abc")):
        assert audience_of(identifier) == f"ep_{ULID}"
        assert "." not in identifier


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_a_task_is_called_its_headers_are_plain(name: str, value: str) -> None:
    import json

    metadata = json.dumps({"value": value}, ensure_ascii=False).encode("utf-8", "replace")
    headers = of_run({}, replace(push(raw=True, metadata=metadata), name=name))
    for text in headers.values():
        assert text.isascii()
        assert text.isprintable()
    assert json.loads(headers["task-metadata"]) == json.loads(metadata)


def test_text_in_headers() -> None:
    assert plain("order:ship 1") == "order:ship 1"
    assert plain("größe\r\nx: y") == "gr%C3%B6%C3%9Fe%0D%0Ax: y"
    assert ascii_json(b'{"a": 1}') == '{"a": 1}'
    assert ascii_json(b'{"a":\n"\xc3\xa9", "n": 123456789012345678901234567890}') == '{"a":"\\u00e9","n":123456789012345678901234567890}'
