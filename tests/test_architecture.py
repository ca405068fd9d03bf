"""The laws of the house hold in every file, and every law can fail."""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.laws import LAWS, TEXT, Law
from tests.architecture.source import PRODUCT, ROOT, Source, python_files, read, tracked_paths

EVERY_LAW = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name.replace(" ", "_"))


@EVERY_LAW
def test_law_holds(law: Law) -> None:
    sources = [read(path) for path in tracked_paths() if path.endswith(TEXT)]
    broken = [f"{source.path}:{line}: {what}" for source in sources if law.covers(source) for line, what in law.check(source)]
    assert not broken, f"{law.name}:\n" + "\n".join(broken)


@EVERY_LAW
def test_law_can_fail(law: Law) -> None:
    for sample in law.bad:
        source = Source(law.sample_path, sample)
        assert law.covers(source), f"the law does not reach {law.sample_path}"
        assert list(law.check(source)), f"not found in:\n{sample}"


@EVERY_LAW
def test_law_spares_what_is_right(law: Law) -> None:
    for sample in law.good:
        assert not list(law.check(Source(law.sample_path, sample))), f"found in:\n{sample}"


@EVERY_LAW
def test_no_exception_outlives_its_file(law: Law) -> None:
    for prefix, reason in law.but.items():
        assert reason, f"{law.name}: {prefix} is spared without a reason"
        if prefix.startswith("tests/"):
            assert any(path.startswith(prefix) for path in tracked_paths()), f"{law.name}: {prefix} is gone; so should be its exception"


def test_a_clock_in_a_migration_is_seen() -> None:
    law = next(law for law in LAWS if law.name == "SQL never reads the clock")
    bad = Source("dispatcher/store/migrations/1.sql", "create table t (\n  at timestamptz default now()\n);\n")
    assert [line for line, _ in law.check(bad) if law.covers(bad)] == [2]


def test_most_functions_are_short(record_property: Callable[[str, object], None]) -> None:
    lengths = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for source in python_files()
        if source.path.startswith(PRODUCT)
        for node in source.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    ninth = statistics.quantiles(lengths, n=10)[-1]
    record_property("functions", len(lengths))
    record_property("function_lines_p90", ninth)
    print(f"{len(lengths)} functions: median {statistics.median(lengths):.0f} lines, p90 {ninth:.0f}, longest {max(lengths)}")
    assert ninth <= 30


@pytest.mark.parametrize("package", ["handlers_sdk", "webhooks"])
def test_package_works_alone(package: str, tmp_path: Path) -> None:
    """Imported from a directory that holds nothing else of ours."""
    (tmp_path / package).symlink_to(ROOT / package)
    script = f"import json, sys, {package}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-P", "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    others = {"dispatcher", "handlers_sdk", "webhooks"} - {package}
    assert not others & set(json.loads(done.stdout))


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["trigger", "--help"]])
def test_command_line_starts_without_the_server(arguments: list[str]) -> None:
    """A prompt answer: the server's packages are imported when a server is started."""
    script = f"""
import json, sys
from dispatcher.cli import main
try:
    main({arguments!r})
finally:
    print(json.dumps(sorted(name for name in sys.modules if "." not in name)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not loaded & {"aiohttp", "asyncpg", "cryptography", "httpx", "litestar", "msgspec", "pydantic", "uvicorn", "webhooks"}
