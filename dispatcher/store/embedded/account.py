"""The user Postgres runs as. It refuses to run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from dispatcher.store.embedded.errors import EmbeddedPostgresError

_PREFERRED_NAMES = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this system. It needs a passwd entry: initdb looks its own name up."""

    name: str
    uid: int
    gid: int

    @property
    def is_us(self) -> bool:
        """Whether this process already runs as it."""
        return self.uid == os.geteuid()

    def own(self, path: Path) -> None:
        """Make it the owner of a file or directory of ours (only root can, and needs to)."""
        if not self.is_us:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


def choose(data: Path) -> Account:
    """Ourselves; as root the owner of the existing data, or else `postgres`, or else `nobody`."""
    if os.geteuid() != 0:
        return _ordinary(data)
    if data.exists():
        return _owner(data)
    for name in _PREFERRED_NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError("Postgres refuses to run as root, and there is no user `postgres` or `nobody`. Start as an ordinary user.")


def _ordinary(data: Path) -> Account:
    uid = os.geteuid()
    account = Account(name_of(uid), uid, os.getegid())
    if data.exists() and data.stat().st_uid != uid:
        raise EmbeddedPostgresError(f"{data} belongs to {name_of(data.stat().st_uid)}, this is {account.name}. Start as that user.")
    return account


def _owner(data: Path) -> Account:
    owner = data.stat()
    if owner.st_uid == 0:
        raise EmbeddedPostgresError(f"{data} belongs to root, and Postgres refuses to run as root. Give it away: chown -R postgres {data}")
    return Account(name_of(owner.st_uid), owner.st_uid, owner.st_gid)


def name_of(uid: int) -> str:
    """The name of a user, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
