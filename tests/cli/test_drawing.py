"""Graphs drawn: the Mermaid text, and an SVG whose boxes stand where their edges lead."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from dispatcher.cli.drawing import lines_of, mermaid, svg

SVG = "{http://www.w3.org/2000/svg}"


def node(name: str, **members: Any) -> dict[str, Any]:
    return {"name": name, "kind": "task", "role": "task", **members}


ORDER = {
    "nodes": [
        node("validate"),
        node("charge", wait_for=[{"or": [{"sleep": "1m"}, {"event": "paid", "expression": "input.n > 1"}]}, {"sleep": "5s"}]),
        node("reserve", kind="durable", skip_if=[{"parent": "validate", "expression": 'output.kind == "gift"'}]),
        node("ship", cancel_if=[{"event": "stop"}]),
        node("sorry", role="on_failure"),
        node("done", role="on_success"),
    ],
    "edges": [
        {"from": "validate", "to": "charge"},
        {"from": "validate", "to": "reserve"},
        {"from": "charge", "to": "ship"},
        {"from": "reserve", "to": "ship"},
    ],
}


def test_mermaid() -> None:
    assert mermaid(ORDER).splitlines() == [
        "flowchart LR",
        '    t0["validate"]',
        '    t1["charge<br/>waits for (1m or paid [input.n #gt; 1]) and 5s"]',
        '    t2(["reserve<br/>durable<br/>skipped if validate [output.kind == #quot;gift#quot;]"])',
        '    t3["ship<br/>cancelled if stop"]',
        '    t4{{"sorry<br/>when a task has failed"}}',
        '    t5{{"done<br/>when all have succeeded"}}',
        "    t0 --> t1",
        "    t0 --> t2",
        "    t1 --> t3",
        "    t2 --> t3",
        "    t3 -.-> t5",
    ]


def boxes(text: str) -> dict[str, dict[str, int]]:
    """Where each task stands, by its name."""
    root = ET.fromstring(text)
    names = [group.text or "" for group in root.iter(f"{SVG}text") if group.get("fill") == "#0f172a"]
    rects = [{name: int(rect.get(name, "")) for name in ("x", "y", "width", "height")} for rect in root.iter(f"{SVG}rect")]
    return dict(zip(names, rects, strict=True))


def test_svg_has_parents_left_of_their_children() -> None:
    found = boxes(svg(ORDER))
    assert list(found) == [one["name"] for one in ORDER["nodes"]]
    for edge in ORDER["edges"]:
        assert found[edge["from"]]["x"] + found[edge["from"]]["width"] < found[edge["to"]]["x"]
    assert found["ship"]["x"] < found["done"]["x"]


def test_svg_draws_every_edge_from_box_to_box() -> None:
    text = svg(ORDER)
    found = boxes(text)
    ends = {(box["x"], box["y"] + box["height"] // 2) for box in found.values()}
    starts = {(box["x"] + box["width"], box["y"] + box["height"] // 2) for box in found.values()}
    paths = re.findall(r'd="M(\d+) (\d+)C[^"]* (\d+) (\d+)" fill="none"', text)
    assert len(paths) == len(ORDER["edges"]) + 1
    for x1, y1, x2, y2 in paths:
        assert ((int(x1), int(y1)) in starts, (int(x2), int(y2)) in ends) == (True, True)


@pytest.mark.parametrize("width", [1, 2, 40])
def test_no_box_covers_another(width: int) -> None:
    middle = [node(f"m{n}", wait_for=[{"event": "x" * n}]) for n in range(width)]
    graph = {
        "nodes": [node("first"), *middle, node("last")],
        "edges": [{"from": a, "to": b} for one in middle for a, b in (("first", one["name"]), (one["name"], "last"))],
    }
    found = list(boxes(svg(graph)).values())
    for i, a in enumerate(found):
        for b in found[:i]:
            beside = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
            assert beside or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]


def test_edges_that_need_not_cross_do_not() -> None:
    names = ["a1", "b1", "c1", "c2", "b2", "a2"]
    graph = {"nodes": [node(name) for name in names], "edges": [{"from": f"{letter}1", "to": f"{letter}2"} for letter in "abc"]}
    found = boxes(svg(graph))
    assert sorted("abc", key=lambda letter: found[f"{letter}1"]["y"]) == sorted("abc", key=lambda letter: found[f"{letter}2"]["y"])


def test_text_cannot_leave_its_box() -> None:
    hostile = node('</text><script>x</script>"', skip_if=[{"event": "`#<&>" + "x" * 100}])
    text = svg({"nodes": [hostile], "edges": []})
    assert "<script" not in text
    assert boxes(text)['</text><script>x</script>"']["width"] > 0
    assert max(map(len, lines_of(hostile))) == 60
    assert "<script" not in mermaid({"nodes": [hostile], "edges": []})
    assert "`" not in mermaid({"nodes": [hostile], "edges": []})


def test_a_task_of_its_own_is_a_graph_of_one() -> None:
    assert mermaid({"nodes": [node("resize")], "edges": []}) == 'flowchart LR\n    t0["resize"]'
    assert list(boxes(svg({"nodes": [node("resize")], "edges": []}))) == ["resize"]
