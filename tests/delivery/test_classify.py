"""The response table, row by row, without a socket."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from dispatcher.delivery.classify import BROKEN, PERMANENT, Reading, Reply, classify, classify_event, classify_result, turned
from dispatcher.delivery.envelope import EventLine, ResultLine
from dispatcher.engine import answers
from dispatcher.engine.answers import (
    Accepted,
    Answer,
    Busy,
    EndpointBroken,
    EndpointGone,
    Failed,
    PlatformKilled,
    Pushback,
    Referred,
    Succeeded,
    TimedOut,
    Turned,
)
from dispatcher.engine.references import Reference
from tests.delivery.endpoints import NOW

JSON = {"content-type": "application/json"}
PROBLEM = {"content-type": "application/problem+json"}


def meaning(status: int, body: bytes = b"", *, allow_html: bool = False, limit: int = 1_000, whole: bool = True, **headers: str) -> Answer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify(Reply(status, fields, body, whole), Reading(NOW, limit, allow_html))


def problem(status: int, headers: dict[str, str] | None = None, **members: Any) -> Answer:
    return classify(Reply(status, PROBLEM | (headers or {}), json.dumps(members).encode()), Reading(NOW, 100_000))


# ---- 2xx


@pytest.mark.parametrize("kind", ["application/json", "application/JSON; charset=utf-8", "application/vnd.x+json", "text/json", ""])
@pytest.mark.parametrize("status", [200, 201, 203, 206, 226])
def test_json_is_the_output(status: int, kind: str) -> None:
    assert meaning(status, b'{"a":1}', content_type=kind) == Succeeded(b'{"a":1}')


@pytest.mark.parametrize(("status", "body"), [(204, b""), (204, b"x"), (205, b""), (200, b""), (201, b"")])
def test_nothing_is_null(status: int, body: bytes) -> None:
    assert meaning(status, body, content_type="text/html") == Succeeded(b"null")


@pytest.mark.parametrize(
    ("kind", "body", "output", "kept"),
    [
        ("text/plain", "é".encode(), "é".encode(), "text/plain"),
        ("Text/CSV; charset=ISO-8859-1", b"\xe9", "é".encode(), "text/csv"),
        ("text/plain;charset=windows-1252", b"\x80", "€".encode(), "text/plain"),
        ('application/xml; charset="utf-8"', b"<a/>", b"<a/>", "application/xml"),
        ("", b"plain words", b"plain words", "text/plain"),
        ("nonsense", b"x", b"x", "text/plain"),
        ("text/plain\x01", b"x", b"x", "text/plain"),
    ],
)
def test_text_is_kept_with_its_type(kind: str, body: bytes, output: bytes, kept: str) -> None:
    assert meaning(200, body, content_type=kind) == Succeeded(output, kept)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("image/png", b"\x89PNG"),
        ("text/plain", b"a\0b"),
        ("text/plain; charset=utf-7", b"x"),
        ("text/plain; charset=rot13", b"x"),
        ("", b"\xff"),
    ],
)
def test_what_is_no_text_cannot_be_kept(kind: str, body: bytes) -> None:
    answer = meaning(200, body, content_type=kind)
    assert isinstance(answer, Failed)
    assert (answer.code, answer.retry) == ("invalid_output", False)


@pytest.mark.parametrize("body", [b"{", b"NaN", b'"\\u0000"', b"[" * 5_000 + b"]" * 5_000, b'"\xff"'])
def test_invalid_json_is_final(body: bytes) -> None:
    answer = meaning(200, body, limit=100_000, content_type="application/json")
    assert isinstance(answer, Failed)
    assert (answer.code, answer.retry) == ("invalid_output", False)


PAGES = [("text/html", b"x"), ("Text/HTML; charset=utf-8", b"{}"), ("", b" <!DOCTYPE html>"), ("", b"<HTML lang=en>")]


@pytest.mark.parametrize(("kind", "body"), PAGES)
def test_a_page_is_no_result_unless_it_may_be(kind: str, body: bytes) -> None:
    answer = meaning(200, body, content_type=kind)
    assert isinstance(answer, EndpointBroken)
    assert answer.code == "html"
    assert "allow_html" in answer.message
    assert meaning(200, body, content_type=kind, allow_html=True) == Succeeded(body, "text/html")


def test_what_is_too_large() -> None:
    for answer in (
        meaning(200, b"1" * 1_001, content_type="application/json"),
        meaning(200, b"x" * 1_001, content_type="text/plain"),
        meaning(200, b"x", whole=False, content_type="text/plain"),
    ):
        assert isinstance(answer, Failed)
        assert (answer.code, answer.retry) == ("response_too_large", False)


@pytest.mark.parametrize(
    ("body", "lease"),
    [
        (b'{"lease_ms":600000}', timedelta(minutes=10)),
        (b'{"lease_ms":1.5}', timedelta(milliseconds=1.5)),
        (b'{"lease_ms":1e300}', timedelta(days=30)),
        *[(body, None) for body in (b"", b"{}", b"[]", b"accepted", b'{"lease_ms":"5"}', b'{"lease_ms":0}', b'{"lease_ms":-5}')],
        *[(body, None) for body in (b'{"lease_ms":true}', b'{"lease_ms":1e400}', b"\xff", b"[" * 9_999)],
    ],
)
def test_202_is_accepted_whatever_it_says(body: bytes, lease: timedelta | None) -> None:
    assert meaning(202, body, content_type="application/json") == Accepted(lease)


# ---- refusals


@pytest.mark.parametrize("status", sorted(PERMANENT))
def test_permanent(status: int) -> None:
    assert meaning(status) == Failed(f"http_{status}", f"the endpoint answered {status}", retry=False)


@pytest.mark.parametrize("status", [500, 506, 507, 508, 510, 511, 520, 530, 599, 408, 425, 502, 504])
def test_transient(status: int) -> None:
    assert meaning(status) == Failed(f"http_{status}", f"the endpoint answered {status}", retry=None)


@pytest.mark.parametrize("status", [412, 416, 417, 418, 423, 424, 426, 428, 499])
def test_other_refusals_of_the_request_are_permanent(status: int) -> None:
    answer = meaning(status)
    assert isinstance(answer, Failed)
    assert answer.retry is False


@pytest.mark.parametrize("status", [401, 403, 404, 405, 415, 421, 402, 407])
def test_endpoint_broken(status: int) -> None:
    answer = meaning(status)
    assert isinstance(answer, EndpointBroken)
    assert answer.code == f"http_{status}"
    assert BROKEN[status] in answer.message


def test_endpoint_broken_quotes_what_the_endpoint_says() -> None:
    answer = problem(404, code="unknown_task", detail="no handler is named resize")
    assert isinstance(answer, EndpointBroken)
    assert answer.message.endswith("(it answered 404: no handler is named resize)")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
def test_redirects_are_never_followed(status: int) -> None:
    answer = meaning(status, location="https://elsewhere.example/")
    assert isinstance(answer, EndpointBroken)
    assert answer.code == "redirect"
    assert "elsewhere" not in answer.message


@pytest.mark.parametrize("status", [101, 199, 600, 999])
def test_statuses_that_mean_nothing(status: int) -> None:
    answer = meaning(status)
    assert isinstance(answer, Failed)
    assert answer.code == "bad_response"


def test_gone_and_too_large_and_busy() -> None:
    assert isinstance(meaning(410), EndpointGone)
    assert meaning(413) == Failed("input_too_large", "the endpoint answered 413: the input is too large for it", retry=False)
    assert meaning(409) == Busy(None, "the endpoint answered 409: this task is still running there")
    assert meaning(409, retry_after="30") == Busy(timedelta(seconds=30), "the endpoint answered 409: this task is still running there")


@pytest.mark.parametrize("status", [502, 504])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-vercel-error": "FUNCTION_INVOCATION_TIMEOUT"}, b""),
        ({"x-amz-cf-id": "abc"}, b""),
        ({"x-amzn-errortype": "InternalServerErrorException"}, b""),
        ({}, b"An error occurred: FUNCTION_INVOCATION_TIMEOUT"),
        ({}, b'{"errorMessage":"2026 Task timed out after 3.00 seconds"}'),
        ({}, b"TIME_LIMIT"),
    ],
)
def test_the_platform_ended_it(status: int, headers: dict[str, str], body: bytes) -> None:
    reading = Reading(NOW, 1_000)
    assert isinstance(classify(Reply(status, headers, body), reading), PlatformKilled)
    by_the_program = classify(Reply(status, headers | {"task-protocol": "1"}, body), reading)
    assert isinstance(by_the_program, Failed)
    assert by_the_program.retry is None
    assert not isinstance(classify(Reply(500, headers, body), reading), PlatformKilled)


# ---- the endpoint's own word


def test_an_error_as_the_sdk_reports_it() -> None:
    error = {"name": "ValueError", "message": "no such file", "stack": "…", "cause": {"name": "OSError", "message": "x"}}
    answer = problem(500, {"task-retry": "false"}, code="task_failed", detail="no such file", retry=False, error=error)
    assert isinstance(answer, Failed)
    assert (answer.code, answer.message, answer.retry) == ("task_failed", "no such file", False)
    assert answer.detail is not None
    assert json.loads(answer.detail) == error


@pytest.mark.parametrize(
    ("header", "member", "status", "retry"),
    [
        ("true", False, 500, True),
        ("false", True, 500, False),
        ("TRUE", None, 400, True),
        ("false", None, 500, False),
        ("maybe", None, 500, None),
        ("", True, 400, True),
        ("", False, 500, False),
        ("", None, 400, False),
        ("", "false", 500, None),
        ("true", None, 404, True),
        ("", False, 404, False),
        ("false", None, 410, False),
        ("false", None, 302, False),
        ("false", None, 429, False),
        ("false", None, 409, False),
    ],
)
def test_the_header_goes_before_the_member_and_both_before_the_status(header: str, member: object, status: int, retry: bool | None) -> None:
    members = {} if member is None else {"retry": member}
    answer = problem(status, {"task-retry": header} if header else {}, **members)
    assert isinstance(answer, Failed)
    assert answer.retry is retry


@pytest.mark.parametrize(("status", "kind"), [(429, Pushback), (503, Pushback), (409, Busy)])
def test_retry_true_takes_nothing_from_a_free_retry(status: int, kind: type) -> None:
    assert isinstance(problem(status, {"task-retry": "true"}), kind)
    assert isinstance(problem(status, retry=True), kind)


def test_a_member_counts_only_in_json() -> None:
    answer = classify(Reply(500, {"content-type": "text/plain"}, b'{"retry":false}'), Reading(NOW, 100))
    assert answer == Failed("http_500", "the endpoint answered 500")


def test_the_handlers_own_timeout() -> None:
    assert problem(500, code="timed_out", detail="over", error={"code": "timed_out", "message": "over"}) == TimedOut("over")
    assert isinstance(problem(500, retry=False, error={"code": "timed_out", "message": "over"}), Failed)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": "card_declined"}, "card_declined"),
        ({"code": "a b"}, "task_failed"),
        ({"code": "x" * 65}, "task_failed"),
        ({"code": 5}, "task_failed"),
        ({"message": "x"}, "task_failed"),
        ({}, "http_500"),
        ("text", "http_500"),
        (None, "http_500"),
    ],
)
def test_codes(error: object, code: str) -> None:
    answer = problem(500, error=error)
    assert isinstance(answer, Failed)
    assert answer.code == code


def test_texts_are_bounded_and_can_be_kept() -> None:
    answer = problem(500, error={"message": "a\0b" + "x" * 10_000})
    assert isinstance(answer, Failed)
    assert len(answer.message) == 4_000
    assert answer.message.startswith("a\ufffdb")
    assert answer.detail is None, "a detail with NUL cannot be stored"
    long = problem(500, error={"message": "m", "stack": "x" * 70_000})
    assert isinstance(long, Failed)
    assert (long.message, long.detail) == ("m", None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"null", b'{"error":[]}', b"[" * 100_000, b'{"retry_after_ms":1e999}'])
def test_a_problem_that_is_none_is_no_problem(body: bytes) -> None:
    answer = classify(Reply(500, PROBLEM, body), Reading(NOW, 1_000_000))
    assert isinstance(answer, Failed)
    assert (answer.code, answer.retry, answer.detail) == ("http_500", None, None)


# ---- when to come again


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30),
        ("0", 1),
        ("1", 1),
        ("86400", 86_400),
        ("86401", 86_400),
        ("99999999999999999999", 86_400),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Thu, 01 Jan 2026 00:01:00", 60),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 1),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 86_400),
        ("Thursday, 01-Jan-26 00:02:00 GMT", 120),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Thu, 99 Foo 2026 00:00:00 GMT", None),
        ("Thu, 01 Jan 99999999 00:00:00 GMT", None),
        ("\u0665", None),
    ],
)
def test_retry_after(value: str, seconds: int | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    for status in (429, 503):
        answer = meaning(status, retry_after=value)
        assert isinstance(answer, Pushback)
        assert answer.retry_after == expected
    failed = meaning(500, retry_after=value)
    assert isinstance(failed, Failed)
    assert failed.retry_after == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"default";r=0;t=30'}, 30),
        ({"ratelimit": "default; r=0 ; t=5"}, 5),
        ({"ratelimit": "limit=100, r=0, t=7"}, 7),
        ({"ratelimit": '"default";r=5;t=30'}, None),
        ({"ratelimit": '"default";r=0'}, None),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "40"}, 40),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW + 50)}, 50),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "40"}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "x"}, None),
        ({"retry-after": "9", "ratelimit": "a;r=0;t=30"}, 9),
        ({"retry-after": "soon", "ratelimit": "a;r=0;t=30"}, 30),
    ],
)
def test_rate_limits(headers: dict[str, str], seconds: int | None) -> None:
    answer = classify(Reply(429, headers, b""), Reading(NOW, 100))
    assert isinstance(answer, Pushback)
    assert answer.retry_after == (None if seconds is None else timedelta(seconds=seconds))


def test_a_problem_may_say_when() -> None:
    answer = problem(503, retry_after_ms=2_500)
    assert isinstance(answer, Pushback)
    assert answer.retry_after == timedelta(seconds=2.5)
    header_first = problem(503, {"retry-after": "7"}, retry_after_ms=2_500)
    assert isinstance(header_first, Pushback)
    assert header_first.retry_after == timedelta(seconds=7)
    assert problem(429, retry_after_ms=True) == Pushback(None, "the endpoint answered 429: it asks for less")


# ---- everything


KINDS = tuple(getattr(answers, kind.__name__) for kind in get_args(Answer))
NAMES = ["content-type", "retry-after", "task-retry", "ratelimit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-amz-cf-id"]
VALUES = ["application/json", "application/problem+json", "text/html", "text/plain; charset=latin1", "0", "5", "true", "false"]
HEADERS = st.dictionaries(st.sampled_from(NAMES), st.text(max_size=20) | st.sampled_from(VALUES))
TEXTS = [b"{}", b'{"retry":true}', b'{"lease_ms":1e9}', b'{"error":{"message":"x"}}', b'{"retry_after_ms":-1}', b'{"error":{"code":"a"}}']
BODIES = st.binary(max_size=60) | st.sampled_from(TEXTS)


@settings(deadline=None)
@given(st.integers(min_value=100, max_value=999), HEADERS, BODIES, st.booleans(), st.booleans())
def test_any_reply_means_something_that_can_be_kept(
    status: int, headers: dict[str, str], body: bytes, whole: bool, allow_html: bool
) -> None:
    answer = classify(Reply(status, headers, body, whole), Reading(NOW, 50, allow_html))
    assert isinstance(answer, KINDS)
    if isinstance(answer, Succeeded):
        assert 200 <= status < 300
        assert "\0" not in answer.output.decode()
    for name in ("message", "code", "content_type"):
        assert "\0" not in getattr(answer, name, "")
    after = getattr(answer, "retry_after", None)
    assert after is None or timedelta(seconds=1) <= after <= timedelta(hours=24)


# ---- by reference


REF = b'{"$ref":{"url":"https://elsewhere.example","sha256":"%b","size":9}}' % (b"0f" * 32)


def test_an_output_said_to_be_a_reference_is_one() -> None:
    expected = Referred(Reference("0f" * 32, 9))
    assert meaning(200, REF, content_type="application/json", task_refs="output") == expected
    assert classify_result(ResultLine("tsk_1", "ok", Raw(REF), ("output",)), Reading(NOW, 10)) == expected
    assert classify_event(EventLine("done", Raw(REF), ("output",)), Reading(NOW, 10)) == expected
    turn = b'{"status":"done","output":%b,"refs":["output"]}' % REF
    assert turned(turn, Reading(NOW, 10)) == Turned(None, (), expected)


def test_one_that_only_looks_like_a_reference_is_an_output() -> None:
    assert meaning(200, REF, content_type="application/json") == Succeeded(REF)
    assert classify_result(ResultLine("tsk_1", "ok", Raw(REF)), Reading(NOW, 1_000)) == Succeeded(REF)
    assert classify_event(EventLine("done", Raw(REF)), Reading(NOW, 1_000)) == Succeeded(REF)
    assert turned(b'{"status":"done","output":%b}' % REF, Reading(NOW, 1_000)) == Turned(None, (), Succeeded(REF))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (REF, "input"),
        (REF, "output,input"),
        (REF, ""),
        (b'{"$ref":{"sha256":"0f","size":1}}', "output"),
        (b'{"$ref":1}', "output"),
        (b"[1]", "output"),
    ],
)
def test_a_reference_that_is_none_fails_for_good(body: bytes, said: str) -> None:
    answer = meaning(200, body, content_type="application/json", task_refs=said)
    assert isinstance(answer, Failed)
    assert (answer.code, answer.retry) == ("invalid_ref", False)
