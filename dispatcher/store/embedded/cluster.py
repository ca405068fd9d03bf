"""The data directory: making it, the command line of its server, and its postmaster.pid."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from dispatcher.store.embedded.account import Account
from dispatcher.store.embedded.binaries import Binaries
from dispatcher.store.embedded.child import Child
from dispatcher.store.embedded.errors import EmbeddedPostgresError
from dispatcher.store.embedded.layout import PORT, SUPERUSER, Layout

_READY_LINE = 7  # of postmaster.pid, counted from 0; the same line pg_ctl waits for
_CHECKSUMS_BY_DEFAULT = 18

_SETTINGS: Mapping[str, str] = {
    "max_connections": "100",
    "jit": "off",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A queue rewrites its rows all the time: checkpoints further apart, dead rows collected early and without pausing.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "500",
    "autovacuum_vacuum_insert_scale_factor": "0.1",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
    "maintenance_work_mem": "64MB",
    # Statements are short and the data is on a local disk or in memory.
    "max_parallel_workers_per_gather": "0",
    "random_page_cost": "1.1",
    "deadlock_timeout": "200ms",  # below the lock_timeout of our sessions, so that a deadlock is reported as one
    "max_logical_replication_workers": "0",
    "log_line_prefix": "%m [%p] ",
    "log_parameter_max_length": "0",  # parameters are other people's payloads
}
# What keeps the server private; not for the caller to change.
_FORCED: Mapping[str, str] = {"listen_addresses": "", "port": str(PORT), "unix_socket_permissions": "0700", "logging_collector": "off"}


def major(data: Path) -> int | None:
    """The major version that made the data, or None when there is none yet."""
    try:
        return int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None


async def create(layout: Layout, binaries: Binaries, account: Account, *, durable: bool) -> None:
    """Run initdb beside the final place, then rename: killed half-way, nothing of it counts."""
    fresh = layout.make_fresh_data(account)
    command = [binaries.program("initdb"), "-D", str(fresh), "-U", SUPERUSER, "-E", "UTF8", "--locale=C"]
    command += ["--auth-local=trust", "--auth-host=reject", *([] if durable else ["--no-sync"])]
    if binaries.major < _CHECKSUMS_BY_DEFAULT:
        command.append("--data-checksums")
    since, code = await _run(layout, account, command, fresh)
    if code != 0:
        raise EmbeddedPostgresError(f"initdb failed ({code}):\n{layout.log_tail(since)}")
    layout.install_data(fresh)


def command_line(binaries: Binaries, data: Path, socket_directory: Path, settings: Mapping[str, str]) -> list[str]:
    """The postgres command: our settings for a queue, over them the caller's, over them what keeps the server private."""
    quoted = str(socket_directory).replace('"', '""')  # the setting is a list of quoted directories
    merged = {**_SETTINGS, **_for_this_machine(), **settings, **_FORCED, "unix_socket_directories": f'"{quoted}"'}
    return [binaries.program("postgres"), "-D", str(data), *(part for name, value in merged.items() for part in ("-c", f"{name}={value}"))]


def is_ready(data: Path, pid: int) -> bool:
    """Whether the postmaster `pid` accepts connections."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > _READY_LINE and lines[0] == str(pid) and lines[_READY_LINE].strip() == "ready"


def disown(data: Path) -> None:
    """Make a postmaster.pid left by a dead server harmless without losing what it protects.

    Postgres takes any live process with the recorded number for its predecessor, a reused number or a zombie too, but never its own
    parent: so the number becomes ours. The file stays, because the shared memory it names must be checked for surviving backends.
    """
    try:
        descriptor = os.open(data / "postmaster.pid", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "r+") as file:
        first, _, rest = file.read().partition("\n")
        if first.strip().lstrip("-").isdigit():
            file.seek(0)
            file.write(f"{os.getpid()}\n{rest}")
            file.truncate()
            return
    (data / "postmaster.pid").unlink()  # cut off while it was written; Postgres would refuse it


def remove_sockets(directory: Path) -> None:
    """Remove what a dead server left in its socket directory."""
    for path in directory.glob(".s.PGSQL.*"):
        path.unlink()


async def _run(layout: Layout, account: Account, command: list[str], directory: Path) -> tuple[int, int]:
    output = layout.open_log()
    since = layout.log.stat().st_size
    try:
        child = Child(account, command, directory=directory, output=output, death_signal=signal.SIGKILL)
    finally:
        os.close(output)
    try:
        return since, await child.exited()
    except BaseException:
        await child.end((signal.SIGKILL, 5.0))
        raise


def _for_this_machine() -> dict[str, str]:
    settings = {"shared_buffers": "256MB" if _memory_bytes() >= 4 << 30 else "128MB"}
    if sys.platform == "linux":
        settings["client_connection_check_interval"] = "2s"  # end statements whose client was killed
    return settings


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
