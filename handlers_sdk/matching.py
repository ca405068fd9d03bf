"""A log and what the code asks for now: what the log says at a glance, and whether an entry is what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from handlers_sdk.ops import Op
from handlers_sdk.schemas import parse_json

ENDPOINTS_OWN: Final = frozenset({"step", "scope", "checkpoint", "patch"})
"""What the endpoint settles itself."""

_MEMBERS: Final = frozenset({
    "expression", "input", "key", "labels", "metadata", "ms", "on_cancel", "priority", "scope", "since", "sticky", "timeout_ms", "until",
    "workflow",
})  # fmt: skip
"""What something can be asked for with: a member the code no longer asks for is a change like any other."""


def survey(log: Sequence[Mapping[str, Any]]) -> tuple[int, frozenset[str], dict[str, bool]]:
    """The place after the last entry that an endpoint wrote, the scopes that are closed, and the patches that are decided."""
    frontier, scopes, patches = 0, [], {}
    for index, entry in enumerate(log):
        kind = entry["op"]
        if kind in ENDPOINTS_OWN or entry["status"] == "pending":
            frontier = index + 1
            if kind == "scope":
                scopes.append(entry["id"])
            elif kind == "patch":
                patches[entry["id"]] = bool(entry.get("value"))
    return frontier, frozenset(scopes), patches


def same(op: Op[Any], entry: Mapping[str, Any]) -> bool:
    """Whether a pending entry says what is asked for now, no more and no less. What the dispatcher adds to it is not looked at."""
    asked = op.asked
    for name, value in asked.items():
        if name != "label" and entry.get(name) != (parse_json(value) if value.__class__ is bytes else value):
            return False
    return not any(name in _MEMBERS and name not in asked and entry[name] is not None for name in entry)


def described(op: Op[Any]) -> dict[str, Any]:
    """What is asked for now, as the log would say it."""
    asked = {name: parse_json(value) if value.__class__ is bytes else value for name, value in op.asked.items() if name != "value"}
    return {"id": op.id, "op": op.kind, **asked}


def summary(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What was recorded, without results."""
    return {name: value for name, value in entry.items() if name not in ("value", "at", "error", "run_id")}
