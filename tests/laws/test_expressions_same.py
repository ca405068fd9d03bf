"""Made-up expressions: the two ways to evaluate agree, a second implementation agrees, and no text does anything but give or refuse."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dispatcher.engine.expressions import Expression, ExpressionError
from dispatcher.engine.expressions.expression import _with_engine
from dispatcher.engine.expressions.faults import Fault, Meter, as_error
from dispatcher.engine.expressions.lexer import lex
from dispatcher.engine.expressions.plain import plain
from tests.laws.expression_texts import PLAIN_TEMPLATES, TEMPLATES, VARIABLES, same, texts

Outcome = tuple[str, Any]

SCRAPS = st.sampled_from([
    "'", '"', "'''", "\\", "\\n", "\\u12", "\n", "//", "r'", 'b"', "(", ")", "[", "]", "{", "}", ".", "..", ",", ":", "?", "+", "-", "!",
    "&&", "||", "=", "==", "<", "in", " ", "input", "headers", "x", "has", "map", "all", "true", "null", "1", "0x", "1e", "5u", "'a'", "é",
    "\x00", "\ud800", "\U0001f600",
])  # fmt: skip


def by_engine(source: str, variables: dict[str, Any]) -> Outcome:
    """The engine's answer, whether or not it is needed. No exception but ours may come out of it, however it was caused."""
    try:
        compiled = _with_engine(lex(source))
        compiled.check_names(variables)
        return "value", compiled.read(variables, Meter())
    except ExpressionError as error:
        return error.code, None
    except Fault as fault:
        return as_error(fault).code, None


@settings(max_examples=500)
@given(texts(PLAIN_TEMPLATES), VARIABLES)
def test_plain_expressions_mean_what_they_mean_to_the_engine(source: str, variables: dict[str, Any]) -> None:
    assume(len(source) < 900)
    lexed = lex(source)
    simple = plain(lexed.tokens)
    assert simple is not None
    ours: Outcome
    try:
        ours = "value", simple.read(variables, Meter())
    except (Fault, ExpressionError) as error:
        ours = error.code, None
    code, value = by_engine(source, variables)
    assert ours[0] == code
    assert same(ours[1], value)
    assert simple.names == _with_engine(lexed).names


@pytest.mark.parametrize(
    "source", ["input.in", "a.true", "in", "int", "input.a()", "has(a)", "has(a['b']) ? 1 : 2", "a ? 1 : 2", "-1", "a[-1]", "a[b]", "a{}"]
)
def test_what_is_not_plain_is_left_to_the_engine(source: str) -> None:
    assert plain(lex(source).tokens) is None


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=60), st.lists(SCRAPS, max_size=30).map("".join)), VARIABLES)
@example("'" + "\\" * 99, {"input": {}, "headers": {}, "x": 1})
def test_any_text_gives_or_is_refused(source: str, variables: dict[str, Any]) -> None:
    kinds: tuple[Any, ...] = (str, bool, int)
    for kind in kinds:
        try:
            value = Expression(source, returns=kind, macros=4)(**variables)
        except ExpressionError as error:
            assert error.__cause__ is None, "not foreseen"
            assert error.position is None or 0 <= error.position <= len(source)
        else:
            assert type(value) is kind


@settings(max_examples=300)
@given(texts(), VARIABLES)
def test_grown_expressions_fail_only_as_foreseen(source: str, variables: dict[str, Any]) -> None:
    assume(len(source) < 1_000)
    code, _ = by_engine(source, variables)
    assert code in ("value", "missing_key", "eval", "syntax", "budget", "too_large")


@settings(max_examples=400)
@given(st.one_of(texts(TEMPLATES), texts(PLAIN_TEMPLATES)), VARIABLES)
def test_a_second_implementation_agrees(source: str, variables: dict[str, Any]) -> None:
    """Google's, in C++: results are equal, and where one fails the other does. Its own limits are not ours."""
    if sys.version_info < (3, 12):
        pytest.skip("cel-expr-python counts references to null wrongly before Python 3.12, and ends the process")
    cel = pytest.importorskip("cel_expr_python.cel")
    assume(len(source) < 1_000)
    code, value = by_engine(source, variables)
    assume(code not in ("budget", "too_large"))
    theirs = _by_cel(cel, source, variables)
    assume(theirs[0] != "limit")
    assert (code == "value") == (theirs[0] == "value"), (code, theirs)
    if code == "value":
        assert same(value, theirs[1]), (value, theirs[1])


def _by_cel(cel: Any, source: str, variables: dict[str, Any]) -> Outcome:
    environment = cel.NewEnv(variables=dict.fromkeys(variables, cel.Type.DYN))
    try:
        result = environment.compile(source, disable_check=True).eval(data=variables)
    except Exception as error:
        return ("limit" if "limit" in str(error) or "max recursion" in str(error) else "refused"), str(error)
    kind = "error" if result.type().name() == "ERROR" else "value"
    return kind, result.plain_value()
