"""Becomes another program: as another user, in another directory, and ending with its parent.

Run as `python -I -S -c <this text> PARENT SIGNAL UID GID DIRECTORY PROGRAM ARGUMENT…`. The user is changed here and not by `subprocess`,
because that user may not be able to read the Python interpreter; everything needed is imported before.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
CANNOT_ENTER = 125  # exit code: the user cannot go to the directory
CANNOT_RUN = 126  # exit code: anything else, most often that the user cannot run the program


def _become(parent: int, death_signal: int, uid: int, gid: int, directory: str, command: list[str]) -> None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" and death_signal else None
    if os.geteuid() != uid:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, death_signal)  # after setuid, which clears it
    if os.getppid() != parent:
        sys.exit(0)  # the parent died before the line above
    os.umask(0o077)
    try:
        os.chdir(directory)
    except OSError as error:
        _leave(CANNOT_ENTER, error)
    os.execv(command[0], command)  # noqa: S606 - the program is chosen by the parent


def _leave(code: int, error: OSError) -> None:
    sys.stderr.write(f"{error}\n")
    sys.exit(code)


if __name__ == "__main__":
    try:
        _become(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6:])
    except OSError as error:
        _leave(CANNOT_RUN, error)
