"""Expressions as users write them: what they give, what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from dispatcher.engine.expressions import Expression, ExpressionCode, ExpressionError

GITHUB = {
    "action": "opened",
    "number": 7,
    "pull_request": {
        "id": 279147437, "draft": False, "title": "Fix the thing", "additions": 100, "merged_at": None,
        "created_at": "2024-02-03T04:05:06Z",
        "head": {"ref": "feature/x"}, "base": {"ref": "main", "repo": {"full_name": "octo/hello", "private": False}},
        "labels": [{"name": "bug", "id": 1}, {"name": "later", "id": 2}], "user": {"login": "octocat", "type": "User"},
    },
    "repository": {"full_name": "octo/hello", "topics": ["a", "b"]},
}  # fmt: skip
STRIPE = {
    "id": "evt_1", "type": "payment_intent.created", "created": 1_706_933_106, "livemode": False,
    "data": {"object": {"id": "pi_1", "amount": 2_000, "amount_received": 0, "currency": "eur", "customer": None,
                        "metadata": {"env": "prod", "order": "7"}}},
}  # fmt: skip
SLACK = {"type": "event_callback", "command": "/deploy", "team_id": "T1", "event": {"type": "app_mention", "text": "<@U1> deploy main"}}
ORDER = {
    "user_id": "1234", "should_skip": False, "Tier": "gold", "random_number": 51, "price": 19.5, "tags": ["a", "b"], "big": 2**63,
    "huge": 2**64, "least": -(2**63),
    "sizes": [1, 2, 3], "empty": "", "note": "über", "decimal": Decimal("1.5"), "nothing": None, "control": "a\nb", "long": "x" * 513,
    "half": "\ud800", "odd": {1},
}  # fmt: skip
VARIABLES: dict[str, Any] = {
    "input": {**GITHUB, **STRIPE, **SLACK, **ORDER},
    "headers": {"x-github-event": "pull_request", "x-organization-id": "org_1"},
    "payload": {"main_character": "Anna"},
    "output": {"random_number": 51},
}

WRITTEN = [
    # event keys and scopes, those of the cookbooks first
    ("'stripe:' + input.type", "stripe:event_callback"),
    ("'github:' + headers['x-github-event'] + ':' + input.action", "github:pull_request:opened"),
    ("'github:' + headers['x-github-event']", "github:pull_request"),
    ("headers['x-github-event'] + (has(input.action) ? ':' + input.action : '')", "pull_request:opened"),
    ("headers['x-github-event'] + (has(input.absent) ? ':' + input.absent : '')", "pull_request"),
    ("has(input.absent) ? input.absent : has(input.action) ? input.action : 'none'", "opened"),
    ("'slack:event:' + input.event.type", "slack:event:app_mention"),
    ("'slack:command:' + input.command", "slack:command:/deploy"),
    ("'slack:interaction:' + input.type", "slack:interaction:event_callback"),
    ("headers['x-organization-id']", "org_1"),
    ("input.data.object.metadata.env", "prod"),
    ("input['pull_request']['head'].ref", "feature/x"),
    ("input.pull_request.labels[1].name", "later"),
    ('"webhook"', "webhook"),
    ("'''triple 'quoted' ''' + r'\\d'", "triple 'quoted' \\d"),
    ("input.user_id", "1234"),
    ("input.Tier", "gold"),
    ("string(input.number)", "7"),
    ("'pr-' + string(input.pull_request.id)", "pr-279147437"),
    ("string(input.price) + '/' + string(input.livemode) + '/' + string(2.0)", "19.5/false/2"),
    ("string(input.big)", "9223372036854775808"),
    ("string(input.decimal)", "1.5"),
    ("input.data.object.amount > 1000 ? 'large' : 'small'", "large"),
    ("input.pull_request.user.type == 'Bot' ? 'bots' : input.pull_request.base.ref", "main"),
    ("input.tags[0] + input.tags[size(input.tags) - 1]", "ab"),
    ("string(timestamp(input.created))", "2024-02-03T04:05:06Z"),
    ("string(duration('90m') + duration('0.5s'))", "5400.500s"),
    # filters
    ("true", True),
    ("input.should_skip == false", True),
    ("input.user_id == '1234'", True),
    ("output.random_number > 50", True),
    ("output.random_number <= 50", False),
    ("payload.main_character == 'Anna' && input.Tier in ['gold', 'silver']", True),
    ("!input.pull_request.draft && input.pull_request.base.ref == 'main'", True),
    ("input.pull_request.head.ref.startsWith('feature/') && !input.pull_request.title.contains('WIP')", True),
    ("input.pull_request.title.matches('^(Fix|Revert) ')", True),
    ("input.pull_request.labels.exists(l, l.name == 'bug')", True),
    ("input.pull_request.labels.all(l, l.id > 1)", False),
    ("input.pull_request.labels.exists_one(l, l.name.endsWith('r'))", True),
    ("size(input.pull_request.labels.filter(l, l.id > 1)) == 1", True),
    ("'later' in input.pull_request.labels.map(l, l.name)", True),
    ("input.sizes.map(s, s > 1, s * 2) == [4, 6]", True),
    ("input.data.object.metadata.all(k, k in ['env', 'order'])", True),
    ("'env' in input.data.object.metadata && has(input.data.object.metadata.order)", True),
    ("input.data.object.customer == null && input.pull_request.merged_at == null", True),
    ("input.nothing == 0 || input.nothing == '' || input.nothing == false", False),
    ("input.absent == 1 || input.number == 7", True),
    ("input.number == 7 || input.absent == 1", True),
    ("input.absent == 1 && input.number == 8", False),
    ("input.number == 7.0 && input.number < 7.5 && input.number != '7' && input.price >= 19", True),
    ("input.big == 9223372036854775808u && input.big > 1", True),
    ("input.decimal == 1.5", True),
    ("input.livemode == 0 || true == 1 || false == 0.0 || [true] == [1] || true in [1] || true in {1: 0}", False),
    ("size(input.note) == 4", True),
    ("timestamp(input.pull_request.created_at) > timestamp('2024-01-01T00:00:00Z') + duration('24h')", True),
    ("timestamp(input.pull_request.created_at).getDayOfWeek() in [0, 6]", True),
    ("type(input.number) == int && type(input.price) == double && type(input.nothing) == null_type", True),
    ("// a comment with 'quotes\ntrue", True),
    # numbers
    ("input.number", 7),
    ("input.data.object.amount / 100", 20),
    ("-7 / 2 + -7 % 2", -4),
    ("int('12') + int(2.9) + size('ab')", 16),
    ("-9223372036854775808", -(2**63)),
    ("0x1F", 31),
    ("input.least", -(2**63)),
    ("input.Tier == 'gold' ? 10 : 1", 10),
]  # fmt: skip


@pytest.mark.parametrize(("source", "wanted"), WRITTEN)
def test_expression_gives(source: str, wanted: str | bool | int) -> None:
    expression: Expression[Any] = Expression(source, returns=type(wanted), macros=4, names=VARIABLES)
    before = json.dumps(VARIABLES, default=str)
    value = expression(**VARIABLES)
    assert value == wanted
    assert type(value) is type(wanted)
    assert json.dumps(VARIABLES, default=str) == before


@pytest.mark.parametrize("source", [source for source, wanted in WRITTEN[:15] if isinstance(wanted, str)])
def test_event_keys_of_the_cookbooks_need_no_engine(source: str) -> None:
    assert Expression(source, returns=str).is_plain


REFUSED: list[tuple[str, type, ExpressionCode, int | None, str]] = [
    ("", str, "empty", None, "no expression"),
    (" \n// nothing\n", str, "empty", None, "no expression"),
    ("input.", str, "syntax", 6, "ends too early"),
    ("input.action ==", bool, "syntax", 15, "ends too early"),
    ("input.action == = 'a'", bool, "syntax", 16, "=="),
    ("input.action = 'a'", bool, "syntax", 13, "=="),
    ("input.a & input.b", bool, "syntax", 8, "&&"),
    ("input.a | input.b", bool, "syntax", 8, "||"),
    ("input.a and input.b", bool, "syntax", 8, "&&"),
    ("'github", str, "syntax", 0, "never ends"),
    ("input.type + 'a", str, "syntax", 13, "never ends"),
    ("'''a''", str, "syntax", 0, "never ends"),
    ("not input.a", bool, "syntax", 4, "write !"),
    ("'a' 'b'", str, "syntax", 4, "does not fit"),
    ("input inputs", bool, "syntax", 6, "does not fit"),
    ("“a”", str, "syntax", 0, "quotes"),
    ("'a\nb'", str, "syntax", 0, "never ends"),
    ("'\\q'", str, "syntax", 1, "escape"),
    ("'\\ud800'", str, "syntax", 1, "escape"),
    ("'\ud800'", str, "syntax", 1, "surrogate"),
    ("input.a + $x", str, "syntax", 10, "'$'"),
    ("(input.a", str, "syntax", 0, "never closed"),
    ("input.a)", str, "syntax", 7, "closes nothing"),
    ("input[0}", str, "syntax", 7, "closes nothing"),
    ("1.", int, "syntax", 0, "no number"),
    ("1abc", int, "syntax", 0, "no number"),
    ("9223372036854775808", int, "syntax", 0, "64 bits"),
    ("inptu.type", str, "syntax", 0, "there are headers, input, output, payload"),
    ("headers.x-github-event", str, "syntax", 10, "headers['x-github-event']"),
    ("lower(input.type)", str, "syntax", 0, "no function lower()"),
    ("input.type.lower()", str, "syntax", 0, "no method lower()"),
    ("startsWith(input.type, 'a')", bool, "syntax", 0, "called on a value"),
    ("input.type.size(1)", int, "syntax", 0, "takes 0 arguments"),
    ("size()", int, "syntax", 0, "takes 1 argument"),
    ("has(input)", bool, "syntax", 0, "has(input.action)"),
    ("has(input['a'])", bool, "syntax", 0, "has(input.action)"),
    ("input.tags.exists(t.x, true)", bool, "syntax", 0, "takes a name"),
    ("input.tags.exists(t)", bool, "syntax", 0, "takes a name"),
    ("input.tags.reduce(a, b, 0, a + b)", int, "syntax", 0, "no method reduce()"),
    ("google.protobuf.Int32Value{value: 1}", int, "syntax", 0, "messages"),
    (".size(1)", int, "syntax", 0, "dot"),
    ("x" * 1_025, str, "too_large", None, "1,025 characters"),
    ("(" * 33 + "1" + ")" * 33, int, "too_large", 32, "32 levels"),
    ("!" * 100 + "true", bool, "too_large", 36, "64 levels"),
    ("1" + "+1" * 200, int, "too_large", None, "401"),
    ("[1].all(a, [1].all(b, [1].all(c, [1].all(d, [1].all(e, true)))))", bool, "too_large", None, "at most 4"),
    # when evaluated
    ("input.absent", str, "missing_key", None, "'absent'"),
    ("headers['X-GitHub-Event']", str, "missing_key", None, "'X-GitHub-Event'"),
    ("'a' + input.pull_request.absent", str, "missing_key", None, "has("),
    ("input.tags[2]", str, "missing_key", None, "a list of 2"),
    ("input.tags[-1]", str, "missing_key", 0, "a list of 2"),
    ("{1: 'a'}[true]", str, "missing_key", 0, "no true"),
    ("input.absent == 'a'", bool, "missing_key", 0, "'absent'"),
    ("input.absent || false", bool, "missing_key", 0, "'absent'"),
    ("input.type.absent", str, "eval", None, "finds a string"),
    ("input.nothing.absent", str, "eval", None, "finds null"),
    ("has(input.nothing.absent)", bool, "eval", 0, "finds null"),
    ("input.nothing < 1", bool, "eval", 16, "null cannot be compared"),
    ("'pr-' + input.number", str, "eval", None, "string("),
    ("input.number + 1.5", int, "eval", None, "an int and a double"),
    ("9223372036854775807 + input.number", int, "eval", None, "64 bits"),
    ("input.huge == 1", bool, "eval", 0, "64 bits"),
    ("input.huge", int, "eval", None, "64 bits"),
    ("input.odd", int, "eval", None, "no JSON value"),
    ("1 / 0", int, "eval", 4, "zero"),
    ("input.number && true", bool, "eval", None, "takes bools"),
    ("input.number ? 1 : 2", int, "eval", 0, "takes a bool"),
    ("input.tags.exists(t, t > 1)", bool, "eval", 25, "cannot be compared"),
    ("input.type.map(c, c)", bool, "eval", 0, "a list or a map"),
    ("input.type.matches('(')", bool, "eval", 0, "pattern"),
    ("timestamp('2024') == timestamp(0)", bool, "eval", 0, "RFC 3339"),
    ("duration('1 day') == duration('1h')", bool, "eval", 0, "1h30m"),
    ("timestamp(0).getHours('Nowhere/Town')", int, "eval", 0, "time zone"),
    ("input.control", str, "eval", None, "U+000A"),
    ("input.half", str, "eval", None, "U+D800"),
    ("input.empty", str, "empty", None, "empty string"),
    ("input.long", str, "too_large", None, "513 characters"),
    ("input.number", str, "wrong_type", None, "string("),
    ("input.nothing", str, "wrong_type", None, "null, not a string"),
    ("input.pull_request", str, "wrong_type", None, "a map"),
    ("input.tags", bool, "wrong_type", None, "a list"),
    ("input.livemode", int, "wrong_type", None, "a bool, not an int"),
    ("input.number", bool, "wrong_type", None, "an int, not a bool"),
    ("input.price", int, "wrong_type", None, "a double"),
    ("input.big", int, "wrong_type", None, "a uint"),
    ("type(1)", str, "wrong_type", None, "a type"),
    ("b'abc'", str, "wrong_type", None, "a bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "returns", "code", "position", "says"), REFUSED)
def test_expression_refuses(source: str, returns: type, code: ExpressionCode, position: int | None, says: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression(source, returns=returns, macros=4, names=VARIABLES)(**VARIABLES)
    assert (caught.value.code, caught.value.position) == (code, position)
    assert says in str(caught.value)
    assert caught.value.__cause__ is None


def test_macros_are_for_filters() -> None:
    with pytest.raises(ExpressionError, match="none of them is taken here") as caught:
        Expression("input.tags.map(t, t)[0]", returns=str)
    assert caught.value.code == "too_large"
    assert Expression("has(input.tags) ? input.tags[0] : 'none'", returns=str)(input=ORDER) == "a"


def test_a_name_that_nobody_binds_is_told_when_called_too() -> None:
    expression = Expression("payload.x == 1 || true", returns=bool)
    with pytest.raises(ExpressionError, match="there is no payload"):
        expression(input={})


def test_names_that_a_macro_gives_are_its_own() -> None:
    expression = Expression("input.exists(headers, headers == 1) || headers.x == 2", returns=bool, macros=1)
    assert expression(input=[1], headers={"x": 3})
    assert expression(input=[3], headers={"x": 2})
    with pytest.raises(ExpressionError, match="there is no x"):
        Expression("input.all(x, true) && x == 1", returns=bool, macros=1, names=["input"])


@pytest.mark.parametrize("source", ["headers['X-GitHub-Event']", "headers.Accept == 'a'"])
def test_headers_in_capitals_are_warned_of(source: str) -> None:
    (warning,) = Expression(source, returns=str).warnings
    assert "lower-cased" in warning
    assert Expression(source.lower(), returns=str).warnings == ()


def test_bodies_stay_out_of_messages() -> None:
    secret = "s3cr3t" * 20
    for source in (
        "input.a.b",
        "input.a + 1",
        "input.a < 1",
        "nosuch(input.a) == 1",
        "input.a ? 1 : 2",
        "timestamp(input.a) == input.a",
        "input[input.a]",
        "'a'.matches('(' + input.a)",
    ):
        with pytest.raises(ExpressionError) as caught:
            Expression(source, returns=bool)(input={"a": secret})
        assert secret not in str(caught.value)


def test_nothing_of_the_process_is_changed() -> None:
    """`celpy.Environment` would set the recursion limit; importing the engine waits for the first expression that needs it."""
    script = """if True:
        import sys
        before = sys.getrecursionlimit()
        from dispatcher.engine.expressions import Expression
        assert Expression("'a' + input.b", returns=str)(input={"b": "c"}) == "ac"
        assert "celpy" not in sys.modules and "lark" not in sys.modules
        assert Expression("input.b == 'c'", returns=bool)(input={"b": "c"})
        assert sys.getrecursionlimit() == before
        from celpy.celparser import CELParser
        assert CELParser.CEL_PARSER is None
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_share_the_engine() -> None:
    from dispatcher.engine.expressions import expression as module

    def check(number: int) -> bool:
        module._compile.cache_clear()
        text = f"input.list.exists(x, x.n == {number} || x.s.startsWith('s{number}')) && {number} in [true ? {number} : 0]"
        return Expression(text, returns=bool, macros=1)(input={"list": [{"n": -1, "s": f"s{number}-"}]})

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(300)))


def test_compiled_texts_are_kept_and_bounded() -> None:
    from dispatcher.engine.expressions import expression as module

    module._compile.cache_clear()
    for number in range(2 * module.KEPT):
        Expression(f"input.a{number}", returns=str)
    Expression("input.a0", returns=str)
    info = module._compile.cache_info()
    assert (info.currsize, info.maxsize) == (module.KEPT, module.KEPT)
    assert Expression("input.a0", returns=str)._compiled is Expression("input.a0", returns=bool)._compiled
