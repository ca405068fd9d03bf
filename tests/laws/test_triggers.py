"""Event keys: `*` stands for any run of characters, everything else for itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.triggers import EventIndex

MATCHES = [
    ("order.created", "order.created", True),
    ("order.created", "orderXcreated", False),
    ("order_created", "orderXcreated", False),
    ("order_*", "order_created", True),
    ("order_*", "orderXcreated", False),
    ("100%", "100%", True),
    ("100%", "100 of them", False),
    ("100%*", "100% sure", True),
    ("100%*", "100 sure", False),
    ("order.*", "order.", True),
    ("order.*", "order.created", True),
    ("order.*", "orders.created", False),
    ("order.*", "preorder.created", False),
    ("*.created", "order.created", True),
    ("*.created", "order.created.twice", False),
    ("order.*.done", "order.a.b.done", True),
    ("order.*.done", "order.done", False),
    ("*", "", True),
    ("*", "anything\nat all", True),
    ("a*a", "a", False),
    ("a*a", "aa", True),
    ("a**b", "ab", True),
    ("[ab]?+(x)|^$\\*", "[ab]?+(x)|^$\\", True),
    ("[ab]?+(x)|^$\\*", "a", False),
    ("Order.*", "order.created", False),
    ("é*", "é!", True),
]


@pytest.mark.parametrize(("key", "event", "does"), MATCHES)
def test_match(key: str, event: str, does: bool) -> None:
    index = EventIndex.build([("wf", [key])])
    assert index.match(event) == (("wf",) if does else ())


def _glob(key: str, text: str) -> bool:
    """The definition of a match, by dynamic programming over both."""
    row = [True] + [False] * len(text)
    for letter in key:
        if letter == "*":
            row = [any(row[: i + 1]) for i in range(len(row))]
        else:
            row = [False] + [row[i] and text[i] == letter for i in range(len(text))]
    return row[-1]


@given(st.text("ab.*_%", max_size=8), st.text("ab.*_%", max_size=10))
def test_match_is_the_definition(key: str, event: str) -> None:
    assert bool(EventIndex.build([("wf", [key])]).match(event)) == _glob(key, event)


@given(st.text(max_size=20))
def test_a_key_without_stars_matches_itself_alone(text: str) -> None:
    key = text.replace("*", "")
    index = EventIndex.build([("wf", [key])])
    assert index.match(key) == ("wf",)
    assert index.match(f"{key}x") == ()


def test_a_workflow_runs_once_however_many_of_its_keys_match() -> None:
    index = EventIndex.build([("a", ["order.created", "order.*", "*"]), ("b", ["*.created"]), ("c", ["order.created"])])
    assert index.match("order.created") == ("a", "c", "b")
    assert index.match("user.created") == ("a", "b")


def test_many_stars_cost_no_more_than_the_text_is_long() -> None:
    """A key anyone may register must not stall the dispatcher for everyone: backtracking would take years here."""
    script = (
        "from dispatcher.engine.triggers import EventIndex\n"
        "index = EventIndex.build([('wf', ['*a' * 200 + 'b'])])\n"
        "assert index.match('a' * 500) == ()\n"
        "assert index.match('a' * 500 + 'b') == ('wf',)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=10)
