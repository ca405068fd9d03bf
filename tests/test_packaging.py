"""What is installed is what was locked, and what is built holds everything it needs."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import hatchling.build
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.architecture.source import PRODUCT, ROOT, tracked_paths

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
PIN = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))? \\$", re.MULTILINE)
RUNTIME = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = [Requirement(text) for texts in PROJECT["project"]["optional-dependencies"].values() for text in texts]
DEV = [Requirement(text) for text in PROJECT["dependency-groups"]["dev"]]


def locked() -> dict[str, list[Version]]:
    pins: dict[str, list[Version]] = {}
    for match in PIN.finditer(LOCK):
        pins.setdefault(canonicalize_name(match["name"]), []).append(Version(match["version"]))
    return pins


@pytest.mark.parametrize("requirement", [*RUNTIME, *EXTRAS, *DEV], ids=lambda requirement: requirement.name)
def test_lock_answers_the_project(requirement: Requirement) -> None:
    versions = locked().get(canonicalize_name(requirement.name), [])
    assert versions, f"{requirement.name} is not in requirements.lock: run `make lock`"
    assert all(requirement.specifier.contains(version) for version in versions), f"{requirement} is locked at {versions}: run `make lock`"


def test_lock_names_no_host() -> None:
    """An address in the lock would override the index the installing machine is set to."""
    entries = "\n".join(line for line in LOCK.splitlines() if not line.lstrip().startswith("#"))
    assert not re.search(r"://|^\s*-(?!-hash)|@\s", entries, re.MULTILINE)
    assert "://" not in LOCK


def test_every_locked_package_has_hashes() -> None:
    blocks = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PIN.findall(LOCK)) > 0
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("requirement", RUNTIME, ids=lambda requirement: requirement.name)
def test_runtime_dependencies_are_capped(requirement: Requirement) -> None:
    dates_not_an_interface = {"tzdata"}
    capped = any(specifier.operator in {"<", "~=", "=="} for specifier in requirement.specifier)
    assert capped or requirement.name in dates_not_an_interface


def test_wheel_holds_the_packages_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / hatchling.build.build_wheel(str(tmp_path))
    expected = {path for path in tracked_paths() if path.startswith(PRODUCT)}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert not expected - held
    assert {f"{package}py.typed" for package in PRODUCT} <= held
    assert not any(name.startswith("tests/") for name in held)
    assert wheel.stat().st_size < 2_000_000


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in changelog or f"## {version}" in changelog
