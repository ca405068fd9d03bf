"""Made-up expressions and bodies: of fitting types mostly, so that most have a result, and of any type now and then."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from dispatcher.engine.expressions.values import TypeName

NAMES = ("s", "t", "i", "j", "f", "b", "n", "l", "m")
TEXTS = st.sampled_from(["", "a", "ab", "b", "é", "1", "true", "opened", "2024-01-02T03:04:05Z", "1h30m"])
INTS = st.one_of(st.integers(-3, 5), st.sampled_from([2**62, 2**63 - 1, -(2**63)]))
FLOATS = st.sampled_from([0.0, 1.0, 2.5, -1.0, 1e300])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=1),  # maps have no order
    max_leaves=8,
)
BODIES = st.one_of(
    st.fixed_dictionaries(
        {"s": TEXTS, "t": TEXTS, "i": INTS, "j": INTS, "f": FLOATS, "b": st.booleans(), "n": st.none()},
        optional={"l": st.lists(VALUES, max_size=4), "m": st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3)},
    ),
    VALUES,
)
HEADERS = st.dictionaries(st.sampled_from(["x-kind", "s"]), TEXTS)
VARIABLES = st.fixed_dictionaries({"input": BODIES, "headers": HEADERS, "x": INTS})

# <s> stands for an expression that gives a string, <i> an integer, <b> a bool, <l> a list, <any> anything.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "s": (
        "input.s", "input['t']", "'a'", '"ab"', "''", "headers['x-kind']", "'opened'", r"'\u00e9\n'",
        "<s> + <s>", "(<b> ? <s> : <s>)", "string(<i>)", "string(<b>)", "(<s>)",
    ),
    "i": (
        "input.i", "input.j", "0", "1", "2", "-1", "0x1f", "9223372036854775807", "input.l[0]", "size(input.m)",
        "<i> + <i>", "<i> - <i>", "<i> * <i>", "<i> / <i>", "<i> % <i>", "-(<i>)", "(<i>)", "size(<s>)", "<l>.size()",
        "int(<s>)", "int(<any>)",
        "timestamp('2024-02-29T23:59:59.5Z').getFullYear()", "timestamp('2024-02-29T23:59:59.5Z').getHours('+05:30')",
        "timestamp('2024-02-29T23:59:59.5Z').getDayOfYear('Europe/Vienna')", "timestamp('2024-02-29T23:59:59.5Z').getMilliseconds()",
        "timestamp(<s>).getMonth()", "timestamp(<i>).getDayOfWeek()", "timestamp(<i>).getDayOfMonth()", "timestamp(0).getDate('-01:00')",
        "duration('90m').getHours()", "duration('1h1.5s').getMilliseconds()", "duration('-3s').getSeconds()", "duration(<s>).getMinutes()",
    ),
    "b": (
        "input.b", "true", "false", "input.n == null", "has(input.l)", "has(input.m.s)",
        "!(<b>)", "<b> && <b>", "<b> || <b>", "(<b> == <b>)", "(<b>)", "has((<any>).s)", "<b> && <b> || <b>", "bool(<s>)",
        "<i> == <i>", "<i> != <i>", "<i> < <i>", "<i> <= <i>", "<i> > <i>", "<i> >= <i>", "<i> == 1.0", "<i> < 2.5", "<i> == 2u",
        "-1 < <i>",
        "<s> == <s>", "<s> != <s>", "<s> < <s>", "<s> >= <s>", "<any> == <any>", "<any> != null", "<any> < <any>",
        "<any> in <l>", "<s> in <l>", "<s> in input.m", "<s> in headers", "<any> in <any>",
        "<s>.contains(<s>)", "<s>.startsWith(<s>)", "<s>.endsWith(<s>)", "<s>.matches('^[a-z]+$')", "<s>.matches(<s>)",
        "<l>.all(x, <b>)", "<l>.exists(x, x == <any>)", "<l>.exists_one(x, <b>)", "<l>.all(x, type(x) == int)",
        "input.m.exists(k, k == <s>)",
        "timestamp(<s>) < timestamp('2024-01-02T03:04:05.001Z')", "timestamp(0) + duration(<s>) > timestamp(<i>)",
    ),
    "l": (
        "input.l", "[]", "[1, 'a', null]", "[1, 2.0, 3u]",
        "[<any>, <any>]", "(<l> + <l>)", "<l>.map(x, <any>)", "<l>.filter(x, <b>)", "<l>.map(x, <b>, <any>)", "<l>.map(x, [x, <any>])",
        "[{'s': <any>, <s>: <any>}]", "input.m.map(k, type(k))",
    ),
    "any": (
        "input.f", "input.n", "input.m", "input", "x", "input.m.s", "input.l[input.i]", "input.l[1]", "input.l[-1]", "input.i.j",
        "headers.s", "1u",
        "b'a'",
        "<s>", "<i>", "<b>", "<l>", "(<l>)[<i>]", "(<any>)[<any>]", "(<any>).s", "dyn(<any>)", "double(<any>)", "uint(<any>)",
        "type(<any>)",
        "bytes(<s>)", "timestamp(<any>)", "(<b> ? <any> : <any>)", "{'s': <any>}.s", "<any> + <any>", "-(<any>)", "!(<any>)",
        "<any> && <any>",
    ),
}  # fmt: skip
PLAIN_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "whole": ("<any>", "has(input.s) ? <sum> : <whole>", "has(<path>.s) ? <any> : <any>"),
    "any": ("<item>", "<item> + <any>", "(<whole>)", "(has(<path>.s) ? <sum> : <any>)", "<any> + <any>"),
    "sum": ("<item>", "<item> + <item>"),
    "item": ("<path>", "'a'", '"é"', "''", "':'", "1", "2.5", "5u", "true", "null", "b'a'", r"'\u00e9\n'", "9223372036854775807"),
    "path": (
        "input.s", "input.t", "input.i", "input.f", "input['b']", "input.l[0]", "input.l[1].s", "input.m.s.t", "input.n.s", "input", "x",
        "headers['x-kind']", "headers.s", "input.l", "input.m['s']", "input.m[0]",
    ),
}  # fmt: skip

_PLACE = re.compile(r"<([a-z]+)>")


@st.composite
def texts(draw: st.DrawFn, templates: Mapping[str, tuple[str, ...]] = TEMPLATES, *, depth: int = 3) -> str:
    """An expression grown from the templates; at the end of `depth` only those that ask for no more."""

    def grown(kind: str, left: int) -> str:
        options = [text for text in templates[kind] if left > 0 or not _PLACE.search(text)] or [templates[kind][0]]
        return _PLACE.sub(lambda match: grown(match[1], left - 1), draw(st.sampled_from(options)))

    return grown(draw(st.sampled_from(sorted(templates))), depth)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two results are one value of one type; ints may be of either kind, byte strings too. Types are told by their names."""
    if isinstance(ours, TypeName):
        return type(theirs).__name__ in ("Type", "TypeName")
    if isinstance(ours, bool) or isinstance(theirs, bool) or ours is None or theirs is None:
        return ours is theirs
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return isinstance(ours, float) == isinstance(theirs, float) and (ours == theirs or (ours != ours and theirs != theirs))  # noqa: PLR0124
    if isinstance(ours, bytes):
        return bytes(theirs) == ours
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and ours.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in ours.items())
    return bool(ours == theirs)
