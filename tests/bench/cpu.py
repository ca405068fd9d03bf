"""Processor time by part of the system: user and system time of process trees, children that have ended included."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the split: process trees by their roots, and single processes without their children."""

    trees: tuple[int, ...] = ()
    alone: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    own_ms: float
    reaped_ms: float


def _processes() -> dict[int, _Process]:
    found: dict[int, _Process] = {}
    for entry in os.listdir(_PROC):  # noqa: PTH208 - a bench reads this often, and paths cost more than names
        if entry.isdigit():
            try:
                fields = (_PROC / entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            own, reaped = (int(fields[11]) + int(fields[12])), (int(fields[13]) + int(fields[14]))
            found[int(entry)] = _Process(int(fields[1]), own * _TICK_MS, reaped * _TICK_MS)
    return found


def spent(parts: Mapping[str, Part]) -> dict[str, float]:
    """Milliseconds of processor time each part has used so far."""
    processes = _processes()
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)

    def of_tree(pid: int) -> float:
        process = processes.get(pid)
        below = sum(of_tree(child) for child in children.get(pid, ()))
        return below + (process.own_ms + process.reaped_ms if process else 0.0)

    def of_part(part: Part) -> float:
        own = sum(processes[pid].own_ms for pid in part.alone if pid in processes)
        return own + sum(of_tree(pid) for pid in part.trees)

    return {name: of_part(part) for name, part in parts.items()}


def machine_ms() -> float:
    """Milliseconds all processors of the machine have worked so far, for whomever."""
    user, nice, system, _, _, irq, softirq, *_ = (int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) * _TICK_MS


def resident_mb(pid: int) -> float:
    """Memory a process holds."""
    pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
