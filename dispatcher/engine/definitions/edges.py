"""The edges of a graph of tasks: names resolved to nodes, cycles refused with their path."""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher.engine.definitions.reading import DefinitionError

Parents = Sequence[tuple[int, ...]]


def refuse_cycles(names: Sequence[str], parents: Parents, at: str) -> None:
    """Raises DefinitionError with the path of a cycle, from a task through its parents back to itself."""
    done: set[int] = set()
    for start in range(len(parents)):
        path: list[int] = []
        on_path: set[int] = set()
        stack = [(start, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                on_path.discard(path.pop())
                done.add(node)
            elif node in on_path:
                cycle = [names[n] for n in [*path[path.index(node) :], node]]
                raise DefinitionError(f"{at}[{node}].parents", f"tasks wait for each other: {' -> '.join(reversed(cycle))}")
            elif node not in done:
                path.append(node)
                on_path.add(node)
                stack.append((node, True))
                stack.extend((parent, False) for parent in parents[node])


def ancestors(parents: Parents) -> list[frozenset[int]]:
    """For each node of an acyclic graph, all it comes after."""
    found: dict[int, frozenset[int]] = {}
    for start in range(len(parents)):
        stack = [start]
        while stack:
            node = stack[-1]
            missing = [parent for parent in parents[node] if parent not in found]
            if node in found:
                stack.pop()
            elif missing:
                stack.extend(missing)
            else:
                found[node] = frozenset(parents[node]).union(*(found[parent] for parent in parents[node]))
                stack.pop()
    return [found[node] for node in range(len(parents))]
