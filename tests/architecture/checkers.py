"""The laws of the house as small pure functions: a source in, (line, what is wrong) out. `laws.py` says where each holds."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator

from tests.architecture.source import Source

Finding = tuple[int, str]
Checker = Callable[[Source], Iterator[Finding]]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

FUNCTION_LINES = 70
FILE_LINES = 700

SQL = re.compile(
    r"""^\s*(
        select\b.*\bfrom\b | select\s+\w+\( | insert\s+into\s | update\s+[\w.]+(\s+(as\s+)?\w+)?\s+set\s | delete\s+from\s
      | with\s+(recursive\s+)?\w+(\s*\([^)]*\))?\s+as\s+((not\s+)?materialized\s+)?\(
      | (create|alter|drop)\s+(or\s+replace\s+|unique\s+|unlogged\s+)?
        (table|index|schema|database|function|trigger|view|type|role|sequence|extension)\s
      | truncate\s+\w | (listen|notify)\s+\w+\s*;?\s*$ | set\s+(local|session)\s | copy\s+\w+\s*(\(|from|to) | lock\s+table\s
    )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
SQL_CLOCK = re.compile(
    r"""\bnow\s*\( | \b(clock|statement|transaction)_timestamp\b | \bcurrent_(timestamp|date|time)\b
      | \blocaltime(stamp)?\b | \btimeofday\b""",
    re.IGNORECASE | re.VERBOSE,
)
SQL_COMMENT = re.compile(r"--[^\n]*")
RUNS_SQL = frozenset({"fetch", "fetchrow", "fetchval", "fetchmany", "execute", "executemany", "prepare", "cursor"})
CLOCK_METHODS = frozenset({"now", "utcnow", "today"})
MACHINE_PATH = re.compile(r"(?<![\w.\-)}])/(?:root|work|home/[a-z]\w*|Users/\w+|opt/(?:pypi|wheels))(?=[/\s\"'`:,;)]|$)")
REGISTRY = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs|npmjs\.com|crates\.io|docker\.io|ghcr\.io|quay\.io|proxy\.golang)", re.IGNORECASE
)
BUCKETS = frozenset({"util", "utils", "helper", "helpers", "common", "misc", "shared", "stuff"})
NOT_PURE = """
asyncio concurrent contextvars ctypes ftplib http imaplib io logging multiprocessing os pathlib queue random secrets select selectors shutil
signal smtplib socket socketserver sqlite3 ssl subprocess sys tempfile threading time urllib uuid
"""
PURE_STDLIB = sys.stdlib_module_names - frozenset(NOT_PURE.split())
PURE_OTHERS = frozenset({"dispatcher.engine", "cron_descriptor", "croniter", "celpy", "lark", "re2", "msgspec", "tzdata"})


def _functions(source: Source) -> Iterator[FunctionNode]:
    yield from (node for node in source.nodes if isinstance(node, FunctionNode))


def _last_name(node: ast.expr) -> str:
    """`a.b.c` → `c`, `f().g` → `g`, `f()` → `f`."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


# ---- time


def reads_clock(source: Source) -> Iterator[Finding]:
    """The time module, datetime.now and its kin, ids made of time."""
    for line, name in source.imports():
        if name == "time" or name.startswith("time.") or name in {"uuid.uuid1", "uuid.uuid7"}:
            yield line, f"imports {name}: take `now` or a Clock as an argument"
    for node in source.nodes:
        if not isinstance(node, ast.Attribute):
            continue
        owner = _last_name(node.value)
        if node.attr in CLOCK_METHODS and owner in {"datetime", "date"}:
            yield node.lineno, f"reads {owner}.{node.attr}"
        if owner == "uuid" and node.attr in {"uuid1", "uuid7"}:
            yield node.lineno, f"uuid.{node.attr} reads the clock"


def reads_loop_clock(source: Source) -> Iterator[Finding]:
    """`loop.time()`, by whatever name the loop goes."""
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and node.attr == "time" and "loop" in _last_name(node.value).lower():
            yield node.lineno, f"reads the event loop's clock: {_last_name(node.value)}.time"


def sql_reads_clock(source: Source) -> Iterator[Finding]:
    """SQL never asks Postgres for the time: moments arrive as parameters."""
    if source.path.endswith(".sql"):
        texts: list[Finding] = [(number, line) for number, line in enumerate(source.text.splitlines(), 1)]
    else:
        texts = list(source.strings())
    for line, text in texts:
        if match := SQL_CLOCK.search(SQL_COMMENT.sub("", text)):
            yield line, f"SQL reads the clock: {match.group()}"


# ---- SQL


def holds_sql(source: Source) -> Iterator[Finding]:
    """Anything that reads as a statement."""
    for line, text in source.strings():
        if SQL.match(SQL_COMMENT.sub("", text)):
            yield line, f"SQL outside the store: {' '.join(text.split())[:60]!r}"


def _is_sql(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bool(SQL.match(SQL_COMMENT.sub("", node.value)))
    if isinstance(node, ast.JoinedStr):
        return any(_is_sql(part) for part in node.values)
    return isinstance(node, ast.BinOp) and (_is_sql(node.left) or _is_sql(node.right))


def builds_sql(source: Source) -> Iterator[Finding]:
    """A statement is one constant: never an f-string, a sum, a %, a format or a join."""
    for node in source.nodes:
        if isinstance(node, ast.JoinedStr) and _is_sql(node):
            yield node.lineno, "SQL in an f-string"
        if isinstance(node, ast.BinOp) and _is_sql(node):
            yield node.lineno, "SQL put together with an operator"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"format", "join", "replace", "format_map"} and any(map(_is_sql, [node.func.value, *node.args])):
                yield node.lineno, f"SQL put together with .{node.func.attr}()"
            if node.func.attr in RUNS_SQL and node.args and isinstance(node.args[0], ast.JoinedStr | ast.BinOp | ast.Call):
                yield node.lineno, f".{node.func.attr}() is given text built on the spot"


# ---- walls that need no import graph


def engine_imports(source: Source) -> Iterator[Finding]:
    """Rules import rules, and the parts of the standard library that do no I/O, read no clock and draw no lots."""
    for line, name in source.imports():
        if name.split(".", maxsplit=1)[0] not in PURE_STDLIB and not any(f"{name}.".startswith(f"{allowed}.") for allowed in PURE_OTHERS):
            yield line, f"a rule imports {name}"


def sdk_internals(source: Source) -> Iterator[Finding]:
    """Both ends share one definition of messages and signatures, and nothing else."""
    for line, name in source.imports():
        parts = name.split(".")
        if parts[0] == "handlers_sdk" and (len(parts) < 2 or parts[1] not in {"wire", "signing"}):
            yield line, f"imports {name}"


def only_here(module: str) -> Checker:
    """Nobody imports `module`; where it is allowed, the law does not apply."""

    def check(source: Source) -> Iterator[Finding]:
        for line, name in source.imports():
            if f"{name}.".startswith(f"{module}."):
                yield line, f"imports {name}"

    return check


# ---- size and shape


def long_functions(source: Source) -> Iterator[Finding]:
    for node in _functions(source):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {length} lines; {FUNCTION_LINES} is the limit"


def long_file(source: Source) -> Iterator[Finding]:
    lines = source.text.count("\n")
    if lines > FILE_LINES:
        yield 1, f"{lines} lines; {FILE_LINES} is the limit"


def unannotated(source: Source) -> Iterator[Finding]:
    """Every argument and every result has a type."""
    methods = {id(item) for node in source.nodes if isinstance(node, ast.ClassDef) for item in node.body}
    for node in _functions(source):
        static = any(_last_name(decorator) == "staticmethod" for decorator in node.decorator_list)
        positional = [*node.args.posonlyargs, *node.args.args]
        taken = positional[1:] if id(node) in methods and not static else positional
        rest = [argument for argument in (*node.args.kwonlyargs, node.args.vararg, node.args.kwarg) if argument is not None]
        for argument in (*taken, *rest):
            if argument.annotation is None:
                yield argument.lineno, f"{node.name}: {argument.arg} has no annotation"
        if node.returns is None:
            yield node.lineno, f"{node.name}: the result has no annotation"


def bucket_module(source: Source) -> Iterator[Finding]:
    """A module is named after what it knows, never after a heap."""
    for part in source.path.removesuffix(".py").split("/"):
        if part.strip("_") in BUCKETS:
            yield 1, f"{part!r} names no noun"


def undocumented_module(source: Source) -> Iterator[Finding]:
    if source.tree.body and ast.get_docstring(source.tree) is None:
        yield 1, "the module has no docstring"


def undocumented_classes(source: Source) -> Iterator[Finding]:
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield node.lineno, f"class {node.name} has no docstring"


def undocumented_functions(source: Source) -> Iterator[Finding]:
    """Public functions, and public methods of public classes."""
    owners: list[ast.Module | ast.ClassDef] = [source.tree]
    owners += [node for node in source.tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for owner in owners:
        for node in owner.body:
            if not isinstance(node, FunctionNode) or node.name.startswith("_") or ast.get_docstring(node) is not None:
                continue
            if not {_last_name(decorator) for decorator in node.decorator_list} & {"overload", "override", "setter"}:
                yield node.lineno, f"{node.name} has no docstring"


def unfinished(source: Source) -> Iterator[Finding]:
    """What is not built is absent: no stubs, no notes to do it later."""
    for node in source.nodes:
        if isinstance(node, ast.Raise) and node.exc is not None and _last_name(node.exc) == "NotImplementedError":
            yield node.lineno, "raises NotImplementedError"
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", line):
            yield number, f"a note: {match.group(1)}"


# ---- tests and texts


def sleeps(source: Source) -> Iterator[Finding]:
    """Tests await a signal or move the clock. Giving way once, `sleep(0)`, is no wait."""
    for node in source.nodes:
        if isinstance(node, ast.Call) and _last_name(node.func) == "sleep":
            first = node.args[0] if node.args else None
            if not (isinstance(first, ast.Constant) and first.value == 0):
                yield node.lineno, "sleeps"


def machine_bound(source: Source) -> Iterator[Finding]:
    """No directory of one machine, no address of a package registry."""
    for number, line in enumerate(source.text.splitlines(), 1):
        for pattern in (MACHINE_PATH, REGISTRY):
            if match := pattern.search(line):
                yield number, f"names {match.group()}"
