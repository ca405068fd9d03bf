"""Expressions and bodies made to cost: each is refused, or ends within its steps. How long that takes is measured by tests/bench."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.engine.expressions import Expression, ExpressionCode, ExpressionError
from dispatcher.engine.expressions.faults import MAX_STEPS, Meter
from dispatcher.engine.expressions.lexer import lex

MANY = 20_000
BODY: dict[str, Any] = {
    "list": list(range(1_000)),
    "ten": list(range(10)),
    "texts": [f"x{number}" for number in range(MANY)],
    "long": "ab" * 32_768,
    "longer": "ab" * 1_000_000,
    "umlauts": "é" * 50_000,
    "map": {str(number): {"a": number, "b": ["x"] * 10} for number in range(MANY)},
}
DEEP: list[Any] = []
for _ in range(2_000):
    DEEP = [DEEP]
BODY["deep"] = DEEP

UNREADABLE: dict[str, str] = {
    "a string that never ends, 49 characters: 12.6 s in cel-python": '"' + "\\n" * 24,
    "the same, longer": "'" + "\\n" * 500,
    "a stray line end in a long escaped literal: > 80 s": '"' + "\\n" * 200 + "\n" + "\\n" * 200 + '"',
    "three quotes that two close": '"""' + "\\x41" * 200 + '""',
    "escapes before a quote that is escaped": '"' + "\\\\" * 100 + '\\"',
    "100,000 brackets": "(" * 100_000 + "1" + ")" * 100_000,
    "as many brackets as there is room for": "(" * 511 + "1" + ")" * 511,
    "a long sum": "1" + "+1" * 50_000,
    "a sum as long as there is room for": "1" + "+1" * 511,
    "a long path": "input" + ".a" * 50_000,
    "nots": "!" * 1_000 + "true",
    "minuses": "-" * 1_000 + "1",
    "choices": "true?1:" * 145 + "1",
    "lists in lists": "[" * 341 + "]" * 341,
    "calls in calls": "size(" * 170 + "'a'" + ")" * 170,
    "more macros than are taken": "input.ten.map(a, input.ten.map(b, input.ten.map(c, input.ten.map(d, input.ten.map(e, e)))))",
    "lists that double": "[1]" + ".map(a, a + a)" * 27,
}

COSTLY: dict[str, str] = {
    "four macros within each other": "input.list.all(a, input.list.all(b, input.list.all(c, input.list.all(d, true))))",
    "a square": "input.list.all(x, input.list.all(y, true))",
    "maps of maps": "input.ten.map(a, input.ten.map(b, input.ten.map(c, input.ten.map(d, [a, b, c, d])))) == []",
    "a body with itself, a thousand times": "input.list.all(x, input.map == input.map)",
    "lists with themselves": "input.list.all(x, input.list == input.list)",
    "a search for each in all": "input.texts.all(x, x in input.texts)",
    "a search in a long text": "input.list.all(x, !input.longer.contains('zz'))",
    "a comparison of long texts": "input.list.all(x, input.longer == input.longer && input.longer <= input.longer)",
    "lists that grow": "input.list.map(x, input.texts + input.texts) == []",
    "long texts made": "input.list.map(x, input.long + '') == []",
    "bytes made": "input.list.all(x, string(bytes(input.long)) != '')",
    "RE2, large program over long text: 2.1 s unpaid": "input.long.matches('(a|b|ab){1000}x')",
    "RE2, many ways": "input.long.matches('(([ab]?){30}){30}x')",
    "RE2, a text that UTF-8 makes longer": "input.umlauts.matches('é{20}x')",
    "RE2, many programs": "input.list.exists(x, 'abc'.matches('[ab]{1000}' + string(x)))",
    "RE2, programs that are too large": "input.list.exists(x, 'a'.matches('\\\\pL{500}' + string(x)) || false)",
    "calls": "input.texts.all(x, x.startsWith('x') && size(x) > 0)",
    "moments": "input.texts.all(x, timestamp('2024-02-03T04:05:06.789Z').getFullYear() == 2024)",
    "time zones that are looked for": "input.texts.exists(x, timestamp(0).getHours('A' + x) == 30)",
    "durations": "input.texts.all(x, duration('1h1m1s1ms1us1ns') > duration('1s'))",
    "maps made": "input.list.all(x, {'a': x, 'b': [x, x, x], 'c': {'d': x}} != {'a': [input.list, input.list]})",
    "a long list made each time": f"input.list.all(x, !(-1 in [{','.join('1' * 150)}]))",
}

BOUNDED: dict[str, tuple[str, bool | ExpressionCode]] = {
    "RE2 knows no catastrophe": ("input.long.matches('(a+)+$')", False),
    "a deep body": ("input.deep == input.deep", "budget"),
    "texts that double": ("['ab'].map(a, a + a).map(a, a + a)[0] == 'abababab'", True),
    "a text that grows too long": ("(input.long + input.long) == ''", "too_large"),
    "long operands": ("input.longer.startsWith('ab') && !input.longer.endsWith('aa') && input.longer != 'ab'", True),
    "a long pattern": ("'a'.matches(input.long)", "too_large"),
    "a number of many digits": ("int(input.long) == 1 || double(input.longer) == 1.0", "eval"),
    "keys": ("input.map['19999'].a == 19999 && '20000' in input.map == false", True),
    "size counts nothing": ("size(input.map) == 20000 && size(input.longer) == 2000000", True),
}


@pytest.mark.parametrize("source", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_refused_before_it_is_evaluated(source: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression(source, returns=bool, macros=4)
    assert caught.value.code in ("syntax", "too_large")


@pytest.mark.parametrize("source", COSTLY.values(), ids=COSTLY.keys())
def test_ends_at_its_steps(source: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression(source, returns=bool, macros=4)(input=BODY)
    assert caught.value.code == "budget"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("source", "wanted"), BOUNDED.values(), ids=BOUNDED.keys())
def test_costs_little(source: str, wanted: bool | ExpressionCode) -> None:
    expression = Expression(source, returns=bool, macros=4)
    if isinstance(wanted, bool):
        outcome = expression.evaluate({"input": BODY})
        assert outcome.value is wanted
        assert outcome.steps < MAX_STEPS / 2
    else:
        with pytest.raises(ExpressionError) as caught:
            expression(input=BODY)
        assert caught.value.code == wanted


def test_what_is_not_looked_at_costs_nothing() -> None:
    expression = Expression("input.kind == 'a' && input.tags.exists(t, t == 'b')", returns=bool, macros=1)
    small = {"kind": "a", "tags": ["b"]}
    assert expression.evaluate({"input": small}).steps == expression.evaluate({"input": {**small, **BODY}}).steps < 20


def test_time_ends_it_too() -> None:
    """With a clock that a test moves: by 1 ms each time it is looked at, of which 256 steps make one."""
    looks: list[float] = []

    def clock() -> float:
        looks.append(0.03 * len(looks))
        return looks[-1]

    expression = Expression("input.list.all(x, input.ten.all(y, true))", returns=bool, macros=4, clock=clock)
    with pytest.raises(ExpressionError, match="longer than 100 ms") as caught:
        expression(input=BODY)
    assert caught.value.code == "budget"
    assert len(looks) == 5


def test_meter_is_exact() -> None:
    meter = Meter()
    for _ in range(MAX_STEPS):
        meter.step()
    with pytest.raises(ExpressionError):
        meter.step()
    Meter().step(MAX_STEPS)
    with pytest.raises(ExpressionError):
        Meter().step(MAX_STEPS + 1)


def test_the_parser_never_sees_a_literal() -> None:
    lexed = lex("'a\\'b' + r\"\\\" + b'\\x00' + '''\n''' // \"it's\n+ \"\\u00e9\"")
    assert lexed.masked == '"____" + "__" + b"____" + "_____" ' + " " * 9 + '+ "______"'
    assert len(lexed.masked) == len(lexed.source)
    assert list(lexed.literals.values()) == ["a'b", "\\", b"\x00", "\n", "é"]
