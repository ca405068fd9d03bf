"""JSON that may enter can be stored and read everywhere; what cannot is refused with a reason."""

from __future__ import annotations

import json
import math
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.engine.strict_json import JsonRefused, check

REFUSED = [
    (b"", "invalid_json"),
    (b"\xef\xbb\xbf1", "invalid_json"),
    (b"1 2", "invalid_json"),
    (b"{a:1}", "invalid_json"),
    (b"[1,]", "invalid_json"),
    (b"NaN", "invalid_json"),
    (b"[Infinity]", "invalid_json"),
    (b"01", "invalid_json"),
    (b'"\\q"', "invalid_json"),
    (b'"a\nb"', "invalid_json"),
    (b'"\\u12g4"', "invalid_json"),
    (b'"\\ud800"', "invalid_json"),
    (b'"\\ud800abcdefgh"', "invalid_json"),
    (b'["x\\udfff"]', "invalid_json"),
    (b'{"\\ud83d\\u0041":1}', "invalid_json"),
    (b'"\xff"', "invalid_utf8"),
    (b'{"\xed\xa0\x80":1}', "invalid_utf8"),
    (b'["\xc0\x80"]', "invalid_utf8"),
    (b'"\\u0000"', "nul_character"),
    (b'"a\\\\\\u0000"', "nul_character"),
    (b'{"\\u0000":1}', "nul_character"),
    (b"1e1000", "number_out_of_range"),
    (b"[1E+00012345]", "number_out_of_range"),
    (b"-1.5e-20000", "number_out_of_range"),
    (b"1" * 4_301, "number_out_of_range"),
    (b"0." + b"0" * 20_000 + b"1", "number_out_of_range"),
    (b"[" * 65 + b"]" * 65, "too_deep"),
    (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
    (b'{"a":' * 70 + b"1" + b"}" * 70, "too_deep"),
    (b'"' + b"a" * 200_001 + b'"', "too_large"),
]

TAKEN = [
    b"null",
    b' {"a": [1, 2.5, -3e10, true, "x"]} ',
    b'"\\\\u0000"',
    b'"\\\\\\\\u0000"',
    b'"\\u0001"',
    b'"\\ud83d\\ude00"',
    '"😀 ünïcode"'.encode(),
    b"1e999",
    b"1e-0005",
    b'"1e99999"',
    b'{"1e99999": "' + b"1" * 5_000 + b'"}',
    b"1" * 4_300,
    b"[" * 64 + b"]" * 64,
    b"[" + b",".join([b"[[1]]"] * 500) + b"]",
    b'["' + b"[" * 500 + b'"]',
    b'["\\"' + b"{" * 500 + b'\\\\"]',
    b'{"a":1,"a":2}',
    b"123456789012345678901234567890",
]


@pytest.mark.parametrize(("body", "code"), REFUSED, ids=lambda value: repr(value)[:30])
def test_refuses(body: bytes, code: str) -> None:
    with pytest.raises(JsonRefused) as caught:
        check(body, max_bytes=200_000)
    assert caught.value.code == code
    assert caught.value.message == str(caught.value)


@pytest.mark.parametrize("body", TAKEN, ids=lambda value: repr(value)[:30])
def test_takes(body: bytes) -> None:
    check(body, max_bytes=200_000)


def test_the_last_byte_and_level_that_fit() -> None:
    check(b"[[1]]", max_bytes=5, max_depth=2)
    with pytest.raises(JsonRefused, match="at most 4"):
        check(b"[[1]]", max_bytes=4)
    with pytest.raises(JsonRefused, match="deeper than 1"):
        check(b"[[1]]", max_bytes=5, max_depth=1)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('ab[]{}",\\e1+-0\x01é😀\ud800\0'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a[{\\"', max_size=3), inner, max_size=4),
    max_leaves=20,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def bad_text(value: Any) -> str | None:
    """What is wrong with the strings in a value."""
    if isinstance(value, str):
        return "invalid_json" if "\ud800" in value else "nul_character" if "\0" in value else None
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    found = {bad for part in parts if (bad := bad_text(part))}
    return "invalid_json" if "invalid_json" in found else found.pop() if found else None


@settings(deadline=None)
@given(VALUES, st.integers(min_value=1, max_value=4))
def test_agrees_with_a_plain_reading(value: Any, levels: int) -> None:
    body = json.dumps(value).encode()
    expected = bad_text(value) or ("too_deep" if depth(value) > levels else None)
    assert verdict(body, levels) == expected


def verdict(body: bytes, levels: int) -> str | None:
    try:
        check(body, max_bytes=1_000_000, max_depth=levels)
    except JsonRefused as refused:
        return refused.code
    return None


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_never_anything_but_a_verdict(body: bytes) -> None:
    try:
        check(body, max_bytes=1_000)
    except JsonRefused:
        return
    value = json.loads(body)
    assert not (isinstance(value, float) and math.isnan(value))


async def test_postgres_takes_what_is_taken(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for body in TAKEN:
            await connection.execute("select $1::jsonb::text", body.decode())
        for body in (b'"\\u0000"', b"1e-20000", b'"\\ud800"'):
            with pytest.raises(asyncpg.DataError):
                await connection.execute("select $1::jsonb", body.decode())
    finally:
        await connection.close()
