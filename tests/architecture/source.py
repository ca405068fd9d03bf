"""The repository as its laws see it: tracked files, parsed once."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("dispatcher/", "handlers_sdk/", "webhooks/")


@dataclass(frozen=True)
class Source:
    """One file. `path` is relative to the repository, with forward slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(self.tree))

    @cached_property
    def docstrings(self) -> frozenset[int]:
        """Identities of the string nodes that document something: prose, not data."""
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        bodies = [node.body for node in self.nodes if isinstance(node, documented)]
        return frozenset(id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr))

    def strings(self) -> Iterator[tuple[int, str]]:
        """(line, value) of every string that is not a docstring."""
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in self.docstrings:
                yield node.lineno, node.value

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of every import; `from a import b` counts as `a.b`."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@cache
def tracked_paths() -> tuple[str, ...]:
    """What belongs to the repository: tracked files and new ones not ignored; without git, every file outside dot directories."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return tuple(path for path in sorted(set(listed.stdout.splitlines())) if (ROOT / path).is_file())
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return tuple(sorted(path.as_posix() for path in files if not any(part.startswith(".") and part != ".ci" for part in path.parts)))


@cache
def read(path: str) -> Source:
    return Source(path, (ROOT / path).read_text(encoding="utf-8", errors="replace"))


def python_files() -> list[Source]:
    return [read(path) for path in tracked_paths() if path.endswith(".py")]
