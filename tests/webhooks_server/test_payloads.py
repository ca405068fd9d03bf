"""What an event carries: every body that goes on untouched is one Postgres can hold."""

from __future__ import annotations

import json
import random

import pytest

from dispatcher.engine.strict_json import JsonRefused, check
from dispatcher.runtime.webhooks.payloads import event_data
from webhooks import BodyError, Request
from webhooks.body import read

PIECES = [
    "1", "-0", "1.5", "1e5", "1E+308", "1e400", "1e-20000", "1.0e0000001", "1e0000", "0.1e-9999",
    "9" * 4_299, "9" * 4_301, "0." + "1" * 5_000, "1." + "0" * 1_001,
    '"a"', r'"\u0041"', r'"\u0000"', r'"\\u0000"', r'"\\\u0000"', r'"\ud800"', r'"\ud83d\ude00"', r'"\udc00\ud800"', r'"\uDBFF"',
    r'"\\ud800"', r'"\ud83d\ude00\ude00"', r'"\ud83d\ud83d\ude00"', r'"\ud83dx\ude00"', r'"\\ud83d\ude00"', r'"x\udfff"', r'"\uDBFF\uDFFF"',
    '"1e99999"', '"\x00"', '"e7213"', '"é"', '"\u2028"', "null", "true", "NaN", "Infinity", "[]", "{}", "[1]",
]  # fmt: skip
WRAPPED = ['{{"a":{}}}', "[{}]", '[[{}],{{"b":{}}}]', '{{"x":1, "y" : {} }}', " [{}]", '\ufeff{{"a":{}}}', '{{"\\u0000":{}}}', "[{}", "{}"]


def _held(text: bytes) -> bool:
    try:
        check(text, max_bytes=len(text), max_depth=1 << 30)
    except JsonRefused:
        return False
    return True


def _bodies() -> list[bytes]:
    chance = random.Random(7)
    found = [wrap.format(*([piece] * wrap.count("{}"))).encode("utf-8", "surrogatepass") for wrap in WRAPPED for piece in PIECES]
    for _ in range(3_000):
        wrap = chance.choice(WRAPPED)
        body = bytearray(wrap.format(*(chance.choice(PIECES) for _ in range(wrap.count("{}")))).encode())
        if len(body) < 100 and chance.random() < 0.5:
            body[chance.randrange(len(body))] = chance.choice(b'"\\u0e{}[],x\xff\xed')
        found.append(bytes(body))
    return found


@pytest.mark.parametrize("part", range(4))
def test_what_goes_on_can_be_held(part: int) -> None:
    untouched = changed = 0
    for body in _bodies()[part::4]:
        request = Request.build("POST", "https://example.com/", {"content-type": "application/json"}, body)
        try:
            value = read(request)
        except BodyError:
            continue
        data, replaced = event_data(request, value, static=False)
        assert _held(data), body
        if data is body:
            untouched += 1
            assert not replaced
        changed += replaced
        if not replaced:
            assert json.loads(data) == value
        assert replaced or body[:1] not in {b"{", b"["} or _held(body), body
    assert untouched > 100
    assert changed > 10
