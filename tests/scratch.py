"""Directories in which a Postgres of the tests may live: as root it runs as another user, who has to get in."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_PREFIX = "dispatcher-tests-"


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new directory, named after this process, and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def remove_leftovers() -> None:
    """Directories of test processes that were killed. Their Postgres ended with them."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = re.match(r"\d+", directory.name.removeprefix(_PREFIX))
        if owner and not psutil.pid_exists(int(owner[0])):
            shutil.rmtree(directory, ignore_errors=True)
