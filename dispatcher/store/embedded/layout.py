"""The files of the embedded Postgres below its directory.

    owner.lock    held by the process that runs the server
    data/         the cluster; run/ its socket, unless the path is too long for one
    socket        where the socket is, for processes that attach
    postgres.log  what the server says, postgres.log.1 what it said before

Started as root, the directory and the files in it stay ours, and only data/ and run/ belong to the user Postgres runs as: nothing that root
opens can be replaced by that user with a link to somewhere else.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import IO
from urllib.parse import quote

from dispatcher.store.embedded.account import Account, name_of
from dispatcher.store.embedded.errors import EmbeddedPostgresError

PORT = 5432  # only names the socket, nothing listens on TCP
SOCKET_NAME = f".s.PGSQL.{PORT}"
SUPERUSER = "postgres"
_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
_LOG_BYTES = 8 << 20


class Layout:
    """Paths, and the few operations on them that need care."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.data = self.root / "data"
        self.log = self.root / "postgres.log"
        self._lock: int | None = None

    def make(self) -> None:
        """Make the directory. As root others may pass through it, since Postgres runs as one of them."""
        try:
            if not self.root.is_dir():
                self.root.mkdir(parents=True)
                self.root.chmod(0o755 if os.geteuid() == 0 else 0o700)
        except (FileExistsError, PermissionError) as error:
            raise EmbeddedPostgresError(f"cannot use {self.root} for the embedded Postgres: {error.strerror}") from error

    def try_lock(self) -> bool:
        """Become the owner if there is none. The kernel takes the lock back when this process ends, however it ends."""
        descriptor = self._open("owner.lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor
        return True

    def unlock(self) -> None:
        """Let another process become the owner."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def make_fresh_data(self, account: Account) -> Path:
        """An empty directory for initdb; those of attempts that were killed are removed."""
        for leftover in self.root.glob("data.new.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix="data.new.", dir=self.root))
        account.own(fresh)
        return fresh

    def install_data(self, fresh: Path) -> None:
        """Let a complete cluster count, durably."""
        fresh.rename(self.data)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def open_log(self) -> int:
        """A descriptor that appends to the log; what was written before is cut down first."""
        self.trim_log()
        return self._open(self.log.name, os.O_WRONLY | os.O_APPEND)

    def trim_log(self) -> None:
        """Move a log of more than 8 MiB to postgres.log.1. Copied and cut rather than renamed, since Postgres keeps it open."""
        if not self.log.exists() or self.log.stat().st_size <= _LOG_BYTES:
            return
        with self._file("postgres.log", os.O_RDWR, "r+b") as log, self._file("postgres.log.1", os.O_WRONLY | os.O_TRUNC, "wb") as kept:
            log.seek(-_LOG_BYTES, os.SEEK_END)
            shutil.copyfileobj(log, kept)
            log.truncate(0)

    def log_tail(self, since: int) -> str:
        """The end of what was logged after position `since`."""
        if not self.log.exists():
            return ""
        with self._file("postgres.log", os.O_RDONLY, "rb") as log:
            log.seek(max(since, self.log.stat().st_size - 2000))
            return log.read().decode(errors="replace").strip()

    def make_socket_directory(self, account: Account) -> Path:
        """A directory only `account` (and root) can enter, which is what limits who may connect; its path is written to `socket`."""
        directory = self.root / "run"
        if _fits(directory):
            if not _make_private(directory, account):
                raise EmbeddedPostgresError(f"{directory} is not a private directory of {account.name}: remove it")
        else:
            directory = self._short_socket_directory(account)
        with self._file("socket", os.O_WRONLY | os.O_TRUNC, "wb") as file:
            file.write(os.fsencode(directory))
        return directory

    def socket_directory(self) -> Path | None:
        """Where the owner put its socket, if there was an owner."""
        try:
            text = (self.root / "socket").read_text()
        except FileNotFoundError:
            return None
        return Path(text) if text else None

    def remove_socket_directory(self) -> None:
        """Leave nothing behind in the temporary directory. One below our own directory stays."""
        directory = self.socket_directory()
        if directory is not None and directory.parent != self.root:
            shutil.rmtree(directory, ignore_errors=True)

    def _short_socket_directory(self, account: Account) -> Path:
        """The one used before if it is still safe, so that the address stays; else a new one with a name nobody can foresee."""
        before = self.socket_directory()
        if before is not None and _fits(before) and _make_private(before, account):
            return before
        directory = Path(tempfile.mkdtemp(prefix="dispatcher-", dir=_short_temporary_directory()))
        account.own(directory)
        return directory

    def _file(self, name: str, flags: int, mode: str) -> IO[bytes]:
        return os.fdopen(self._open(name, flags), mode)

    def _open(self, name: str, flags: int) -> int:
        path = self.root / name
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            owner = _owner_of(path)
            raise EmbeddedPostgresError(f"cannot open {path}: {error.strerror}. It belongs to {owner}; start as that user.") from error
        place = self.root.stat()
        if os.geteuid() == 0 and place.st_uid != 0:
            os.fchown(descriptor, place.st_uid, place.st_gid)  # root helping out in somebody's directory leaves it usable for them
        return descriptor


def dsn(directory: Path) -> str:
    """The address of a server whose socket is in `directory`. It names the port too, or PGPORT would change it."""
    return f"postgresql://{SUPERUSER}@/postgres?host={quote(str(directory), safe='/')}&port={PORT}"


def _fits(directory: Path) -> bool:
    # A comma would be read as a list of hosts.
    return "," not in str(directory) and len(os.fsencode(directory / SOCKET_NAME)) <= _SOCKET_PATH_BYTES


def _make_private(directory: Path, account: Account) -> bool:
    """Make the directory if it is missing; whether it now is one that only `account` can enter."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        account.own(directory)
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == account.uid and not status.st_mode & 0o077


def _short_temporary_directory() -> str:
    usual = tempfile.gettempdir()
    return usual if _fits(Path(usual, "dispatcher-12345678")) else "/tmp"  # noqa: S108 - mkdtemp makes a private directory in it


def _owner_of(path: Path) -> str:
    try:
        return name_of(path.lstat().st_uid)
    except OSError:
        return "somebody else"
