"""A workflow's graph drawn: as Mermaid text, or as an SVG of its own.

The SVG is laid out in columns: a task stands one column after the last of its parents, and within a column where its neighbours are, found
by letting each column follow the one before it a few times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

Graph = Mapping[str, Any]

_ROLES: Final = {"on_failure": "when a task has failed", "on_success": "when all have succeeded"}
_RULES: Final = {"wait_for": "waits for", "skip_if": "skipped if", "cancel_if": "cancelled if"}
_SWEEPS: Final = 4
_LINE: Final = 16
_LETTER: Final = 7
_PADDING: Final = 12
_GAP_X: Final = 60
_GAP_Y: Final = 20
_LONGEST: Final = 60
_OPEN: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
    'font-family="ui-monospace, monospace" font-size="12">'
)
_ARROW: Final = (
    '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#64748b"/></marker></defs>'
)


def lines_of(node: Mapping[str, Any]) -> list[str]:
    """What is written in a task's box: its name, then what it waits for, is skipped by, is cancelled by."""
    notes = [_ROLES[node["role"]]] if node["role"] in _ROLES else []
    notes += ["durable"] if node["kind"] == "durable" else []
    notes += [f"{words} {' and '.join(map(_group, node[rule]))}" for rule, words in _RULES.items() if node.get(rule)]
    return [_cut(line) for line in (node["name"], *notes)]


def _group(group: Mapping[str, Any]) -> str:
    if "or" in group:
        return f"({' or '.join(map(_condition, group['or']))})"
    return _condition(group)


def _condition(condition: Mapping[str, Any]) -> str:
    if "sleep" in condition:
        return str(condition["sleep"])
    asked = f"{condition['expression']}" if condition.get("expression") else ""
    if "event" in condition:
        return f"{condition['event']}{f' [{asked}]' if asked else ''}"
    return f"{condition['parent']} [{asked}]"


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


# ---- mermaid


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart."""
    ids = {node["name"]: f"t{number}" for number, node in enumerate(graph["nodes"])}
    lines = ["flowchart LR"]
    for node in graph["nodes"]:
        opening, closing = ("{{", "}}") if node["role"] in _ROLES else ("([", "])") if node["kind"] == "durable" else ("[", "]")
        lines.append(f'    {ids[node["name"]]}{opening}"{"<br/>".join(map(_mermaid_text, lines_of(node)))}"{closing}')
    lines += [f"    {ids[edge['from']]} --> {ids[edge['to']]}" for edge in graph["edges"]]
    lines += [f"    {ids[end]} -.-> {ids[node['name']]}" for node in graph["nodes"] if node["role"] == "on_success" for end in _ends(graph)]
    return "\n".join(lines)


def _mermaid_text(text: str) -> str:
    """Text in a box. Mermaid reads `#name;` as a character, and everything else of HTML as HTML."""
    special = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;"}
    return "".join(special.get(letter, letter) for letter in text)


def _ends(graph: Graph) -> list[str]:
    """The tasks nothing comes after."""
    parents = {edge["from"] for edge in graph["edges"]}
    return [node["name"] for node in graph["nodes"] if node["role"] == "task" and node["name"] not in parents]


# ---- SVG


@dataclass(slots=True)
class _Box:
    """A task's place. `middle` is where its edges begin and end."""

    role: str
    durable: bool
    lines: list[str]
    x: int = 0
    y: int = 0
    width: int = 0

    @property
    def height(self) -> int:
        return _LINE * len(self.lines) + _PADDING

    @property
    def middle(self) -> int:
        return self.y + self.height // 2


def svg(graph: Graph) -> str:
    """The graph as an SVG document."""
    boxes = {node["name"]: _Box(node["role"], node["kind"] == "durable", lines_of(node)) for node in graph["nodes"]}
    edges = [(edge["from"], edge["to"]) for edge in graph["edges"]]
    last = [node["name"] for node in graph["nodes"] if node["role"] == "on_success"]
    dashed = [(end, name) for name in last for end in _ends(graph)]
    width, height = _place(boxes, _columns(list(boxes), [*edges, *dashed]))
    drawn = [_path(boxes[a], boxes[b], "") for a, b in edges] + [_path(boxes[a], boxes[b], ' stroke-dasharray="4 4"') for a, b in dashed]
    return "\n".join([_OPEN.format(width=width, height=height), _ARROW, *drawn, *map(_drawn, boxes.values()), "</svg>"])


def _columns(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The tasks by column, each column ordered by its neighbours in the columns beside it."""
    before: dict[str, list[str]] = {name: [] for name in names}
    after: dict[str, list[str]] = {name: [] for name in names}
    for parent, child in edges:
        before[child].append(parent)
        after[parent].append(child)
    columns = _layers(names, before, after)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        rank = {name: place for column in columns for place, name in enumerate(column)}
        for column in columns if forward else reversed(columns):
            column.sort(key=lambda name: _pull(name, before if forward else after, rank))
            rank.update({name: place for place, name in enumerate(column)})
    return columns


def _layers(names: Sequence[str], before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[list[str]]:
    """Each task in the column after the last of its parents."""
    missing = {name: len(before[name]) for name in names}
    column = dict.fromkeys(names, 0)
    order = [name for name in names if not missing[name]]
    for name in order:  # grows while it is read
        for child in after[name]:
            column[child] = max(column[child], column[name] + 1)
            missing[child] -= 1
            if not missing[child]:
                order.append(child)
    layers: list[list[str]] = [[] for _ in range(max(column.values(), default=0) + 1)]
    for name in names:
        layers[column[name]].append(name)
    return layers


def _pull(name: str, beside: Mapping[str, list[str]], rank: Mapping[str, int]) -> float:
    near = [rank[other] for other in beside[name]]
    return sum(near) / len(near) if near else float(rank[name])


def _place(boxes: Mapping[str, _Box], columns: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Give every box its place; the size of the whole."""
    heights = [sum(boxes[name].height + _GAP_Y for name in column) - _GAP_Y for column in columns]
    height, x = max(heights), _GAP_Y
    for column, own in zip(columns, heights, strict=True):
        width = max(max(map(len, boxes[name].lines)) for name in column) * _LETTER + 2 * _PADDING
        y = _GAP_Y + (height - own) // 2
        for name in column:
            box = boxes[name]
            box.x, box.y, box.width = x, y, width
            y += box.height + _GAP_Y
        x += width + _GAP_X
    return x - _GAP_X + _GAP_Y, height + 2 * _GAP_Y


def _path(start: _Box, end: _Box, style: str) -> str:
    x1, x2 = start.x + start.width, end.x
    bend = (x2 - x1) // 2
    curve = f"M{x1} {start.middle}C{x1 + bend} {start.middle} {x2 - bend} {end.middle} {x2} {end.middle}"
    return f'<path d="{curve}" fill="none" stroke="#64748b"{style} marker-end="url(#end)"/>'


def _drawn(box: _Box) -> str:
    colour = {"on_failure": "#dc2626", "on_success": "#16a34a"}.get(box.role, "#2563eb")
    dash = ' stroke-dasharray="6 3"' if box.durable else ""
    parts = [f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6" fill="#ffffff" stroke="{colour}"{dash}/>']
    for number, line in enumerate(box.lines):
        fill = "#0f172a" if number == 0 else "#64748b"
        y = box.y + _PADDING // 2 + _LINE * number + 12
        parts.append(f'<text x="{box.x + _PADDING}" y="{y}" fill="{fill}">{escape(line)}</text>')
    return "".join(parts)
